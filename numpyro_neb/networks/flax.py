"""Flax modules as networks: see `networks.from_nnx` and `networks.from_linen`."""

import io
import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from numpyro_neb._internal.checks import check_type, kind, require
from numpyro_neb._internal.named_functions import find_function, function_name
from numpyro_neb.energies.base import NonTrainable

if TYPE_CHECKING:
    from flax import linen, nnx


class _FlaxNetwork(eqx.Module):
    params: PyTree
    rest: NonTrainable

    def __getstate__(self) -> bytes:
        # A module's activations are not leaves, so the energy can't take care of pickling them.
        stream = io.BytesIO()
        _Pickler(stream).dump(dict(vars(self)))
        return stream.getvalue()

    def __setstate__(self, state: bytes) -> None:
        for name, value in pickle.loads(state).items():
            object.__setattr__(self, name, value)


class NNXNetwork(_FlaxNetwork):
    """A Flax NNX module as an Equinox one, in inference mode: what `from_nnx` returns.

    Attributes:
        params: The module's `nnx.Param`, which train.
        rest: Everything else: batch statistics, random number state. It never changes.
        graphdef: NNX's description of the module.
    """

    graphdef: Any = eqx.field(static=True)

    def __call__(self, y: Float[Array, "*event"], *t: Float[Array, ""]) -> Float[Array, "..."]:
        """The module's output for one y, and one t if it is conditional."""
        from flax import nnx

        return nnx.merge(self.graphdef, self.params, _unstored(self.rest.value))(y, *t)


class LinenNetwork(_FlaxNetwork):
    """A Flax Linen module with its variables as an Equinox module: what `from_linen` returns.

    Attributes:
        params: The collection "params", which trains.
        rest: The other collections, which never change.
        module: The Linen module.
    """

    module: Any = eqx.field(static=True)

    def __call__(self, y: Float[Array, "*event"], *t: Float[Array, ""]) -> Float[Array, "..."]:
        """The module's output for one y, and one t if it is conditional."""
        variables = {"params": self.params, **_unstored(self.rest.value)}
        return self.module.apply(variables, y, *t)


def from_nnx(module: "nnx.Module") -> NNXNetwork:
    """A Flax NNX module as a network for an energy.

    Its `nnx.Param` are trained. Everything else, including batch statistics, stays fixed, and the
    module is evaluated in inference mode (`module.eval()`, on a copy): an energy has one value.
    `save` writes such an energy, and `load(path, like=energy)` reads it.

    Args:
        module: Maps one array of the event shape, without a batch axis, to what the energy
            expects; for a `ConditionalEnergy`, that array and a scalar t. It is not modified.

    Returns:
        The network, which can be pickled if the module's attributes can.

    Raises:
        TypeError: If `module` is not an instance of `flax.nnx.Module`.
        ValueError: If it has no `nnx.Param`, like a lazy module before its initialisation, or
            shapes instead of arrays, as from `nnx.eval_shape`.
        ImportError: If Flax is not installed.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> from flax import nnx
        >>> linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> energy = neb.ResidualEnergy(neb.networks.from_nnx(linear), 0.5, (2,))
        >>> energy(jnp.zeros(2))
        Array(0., dtype=float32)
    """
    from flax import nnx

    check_type("module", module, nnx.Module, "an instance of flax.nnx.Module")
    module = nnx.clone(module)
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    params = _parameters("module", params)
    return NNXNetwork(params, NonTrainable(_stored("module", rest)), graphdef)


def from_linen(module: "linen.Module", variables: Mapping[str, Any]) -> LinenNetwork:
    """A Flax Linen module and its variables as a network for an energy.

    The collection "params" is trained; the others stay fixed. Configure the module for inference
    (`deterministic=True`, `use_running_average=True`): it is applied without random numbers, and
    nothing is mutable. `save` writes such an energy, and `load(path, like=energy)` reads it.

    Args:
        module: Maps one array of the event shape, without a batch axis, to what the energy expects;
            for a `ConditionalEnergy`, that array and a scalar t.
        variables: What `module.init(key, y)` returned, or `module.init(key, y, t)`.

    Returns:
        The network. It can be pickled if `module` can: a built-in Linen layer can't, since its
        fields hold local functions, but a module that makes layers in `setup` or under
        `@linen.compact` can.

    Raises:
        TypeError: If `module` is not an instance of `flax.linen.Module`.
        ValueError: If variables has no collection "params", or an empty one, or holds shapes
            instead of arrays, as from `jax.eval_shape`.
        ImportError: If Flax is not installed.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from flax import linen
        >>> dense = linen.Dense(2)
        >>> variables = dense.init(jax.random.key(0), jnp.zeros(2))
        >>> energy = neb.ResidualEnergy(neb.networks.from_linen(dense, variables), 0.5, (2,))
        >>> energy(jnp.zeros(2))
        Array(0., dtype=float32)
    """
    from flax import linen

    check_type("module", module, linen.Module, "an instance of flax.linen.Module")
    got = list(variables) if isinstance(variables, Mapping) else kind(variables)
    wanted = 'what module.init returned, with a collection "params"'
    initialised = isinstance(variables, Mapping) and "params" in variables
    require(initialised, f"variables must be {wanted}, got {got}")
    rest = {name: value for name, value in variables.items() if name != "params"}
    params = _parameters("variables", variables["params"])
    return LinenNetwork(params, NonTrainable(_stored("variables", rest)), module.clone(parent=None))


class _Key(eqx.Module):
    """A typed random key as its bits, which a file can hold."""

    bits: Array
    generator: str = eqx.field(static=True)


def _stored(name, tree):
    """`tree` with JAX arrays as leaves: a checkpoint's are NumPy arrays, which `save` skips."""
    shapes = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))
    require(not shapes, f"{name} must hold arrays, got shapes alone: initialise, not eval_shape")

    def store(leaf):
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _Key(jax.random.key_data(leaf), str(jax.random.key_impl(leaf)))
        return leaf

    return jax.tree.map(store, tree)


def _unstored(tree):
    is_key = lambda node: isinstance(node, _Key)  # noqa: E731
    return jax.tree.map(
        lambda node: (
            jax.random.wrap_key_data(node.bits, impl=node.generator) if is_key(node) else node
        ),
        tree,
        is_leaf=is_key,
    )


def _parameters(name, params):
    some = jax.tree.leaves(params)
    require(some, f"{name} must hold parameters, got none: initialise a lazy module first")
    return _stored(name, params)


class _Pickler(pickle.Pickler):
    """Pickles functions of jax.nn by their public names, as an energy does its leaves."""

    def reducer_override(self, obj: Any) -> Any:
        name = function_name(obj)
        return NotImplemented if name is None else (find_function, (name,))
