"""ArviZ data of either generation: an `InferenceData` under 0.x, an `xarray.DataTree` under 1.x."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_neb._internal.checks import require

# Not row and column: the plots of ArviZ 1.x keep these for themselves.
_EVENT_DIMS = {2: ("height", "width"), 3: ("channel", "height", "width")}


@runtime_checkable
class SupportsArviz(Protocol):
    """An object that draws its own ArviZ data, such as a `MixtureFit`."""

    def to_arviz(
        self,
        key: PRNGKeyArray,
        coords: Mapping[str, Sequence] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        *,
        num_samples: int = 1000,
    ) -> Any:
        """ArviZ data of draws with this key."""
        ...


def event_dims(shape: tuple[int, ...]) -> list[str]:
    """The names of an event's dimensions: those of an image, or numbered ones."""
    return list(_EVENT_DIMS.get(len(shape), [f"event_dim_{i}" for i in range(len(shape))]))


def check_variable(name: str) -> None:
    """Raises a ValueError for a name with a slash: a tree of data takes it for a path.

    Args:
        name: The name of a site or a plate.
    """
    hint = "rename it, or in numpyro.handlers.scope pass divider='.'"
    require("/" not in name, f"a site must have a name without a slash, got {name!r}: {hint}")


def created_by() -> dict[str, str]:
    """The attribute that says who made the data."""
    from numpyro_neb import __version__

    return {"created_by": f"numpyro_neb {__version__}"}


def from_groups(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """ArviZ data of groups of named arrays.

    Args:
        groups: Arrays by group and name; those of draws begin with (chain, draw).
        coords: The coordinates of dimensions, 0, 1, ... by default.
        dims: The names of each array's dimensions, after those of chain and draw.
    """
    import arviz as az

    named = {name: list(names) for name, names in (dims or {}).items()}
    settings = {"coords": dict(coords or {}), "dims": named, "save_warmup": True}
    # ArviZ 0.x takes the groups by name, 1.x in one mapping.
    from_dict: Any = az.from_dict
    return from_dict(**groups, **settings) if _is_first() else from_dict(groups, **settings)


def add_groups(data: Any, more: Any) -> None:
    """Adds the groups of `more` to ArviZ data."""
    if _is_first():
        data.extend(more)
    else:
        data.update(more.children)


def datasets(data: Any) -> dict[str, Any]:
    """The groups of ArviZ data, each an `xarray.Dataset`."""
    if _is_first():
        return {name: data[name] for name in data.groups()}
    return {name: node.to_dataset() for name, node in data.children.items()}


def from_tree(tree: Any) -> Any:
    """An `xarray.DataTree` as ArviZ data."""
    import arviz as az

    return az.from_datatree(tree) if _is_first() else tree


def _is_first():
    import arviz as az

    return az.__version__.startswith("0.")
