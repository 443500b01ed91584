"""Activation functions by their public names: how energies pickle, and what files hold."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.nn
import jax.numpy as jnp

# Equinox's identity, an MLP's default last activation, is a lambda.
_IDENTITY = inspect.signature(eqx.nn.MLP).parameters["final_activation"].default


def function_name(leaf: Any) -> str | None:
    """The public name of a function of jax.nn or jax.numpy, or of Equinox's identity, else None."""
    if leaf is _IDENTITY:
        return "equinox.identity"
    name = getattr(leaf, "__name__", None)
    for module in (jax.nn, jnp):
        if isinstance(name, str) and getattr(module, name, None) is leaf:
            return f"{module.__name__}.{name}"
    return None


def find_function(name: str) -> Callable:
    """The function that `function_name` gave that name.

    Raises:
        ValueError: If it is not a public function of jax.nn or jax.numpy.
    """
    if name == "equinox.identity":
        return _IDENTITY
    module, _, attribute = name.rpartition(".")
    function = getattr({"jax.nn": jax.nn, "jax.numpy": jnp}.get(module), attribute, None)
    if attribute.startswith("_") or not callable(function):
        raise ValueError(f"{name} is not a public function of jax.nn or jax.numpy")
    return function


class _Named(NamedTuple):
    function: str
    partial: tuple[tuple, dict[str, Any]] | None


def name_functions(tree: Any) -> Any:
    """The pytree with a name in place of every function that has one."""
    return jax.tree.map(_name, tree)


def restore_functions(tree: Any) -> Any:
    """The pytree that `name_functions` was given."""
    return jax.tree.map(_restore, tree, is_leaf=_is_named)


def _name(leaf: Any) -> Any:
    bound = isinstance(leaf, functools.partial)
    name = function_name(leaf.func if bound else leaf)
    if name is None:
        return leaf
    return _Named(name, (leaf.args, leaf.keywords) if bound else None)


def _restore(leaf: Any) -> Any:
    if not _is_named(leaf):
        return leaf
    function = find_function(leaf.function)
    if leaf.partial is None:
        return function
    args, keywords = leaf.partial
    return functools.partial(function, *args, **keywords)


def _is_named(leaf: Any) -> bool:
    return isinstance(leaf, _Named)


class Picklable(eqx.Module):
    """A module that pickles even with functions of jax.nn or jax.numpy among its leaves."""

    def __getstate__(self) -> dict[str, Any]:
        # jax.nn's activations do not pickle (each is a compiled wrapper that answers to the name of
        # the function inside), so an energy pickles their public names instead.
        return {k: name_functions(v) for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, restore_functions(value))
