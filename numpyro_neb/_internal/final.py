"""Classes that are final at run time too, not only for type checkers."""

from typing import Any

import equinox as eqx


class AbstractOrFinal(eqx.Module):
    """A module whose subclasses marked `typing.final` can't be subclassed.

    A subclass of an exact energy that changes phi would silently keep its parent's posterior.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if vars(base).get("__final__", False):
                parent = next(b for b in base.__mro__ if not vars(b).get("__final__", False))
                raise TypeError(
                    f"{cls.__name__} must not be a subclass of {base.__name__}, which is final:"
                    f" write a subclass of {parent.__name__} with a {base.__name__} as a field"
                )
