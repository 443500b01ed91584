"""Networks to build energies from."""

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_neb.energies import Frozen

if TYPE_CHECKING:
    from flax import linen, nnx


class MLP(eqx.Module):
    """A multilayer perceptron on events of any shape, flattened inside.

    Args:
        event_shape: The shape of the input.
        out: "event" for an output of the input's shape (what `ResidualEnergy` takes), "scalar" for
            a scalar (`NetworkEnergy`).
        width_size: The width of each hidden layer.
        depth: The number of hidden layers.
        activation: The activation between layers; the smooth ReLU u / (1 + exp(-u)) of NEB by
            default. An energy has to be smooth: with `jax.nn.relu`, phi has no Hessian.
        key: A JAX random key, for the initial weights.

    Raises:
        ValueError: If `out` is neither "event" nor "scalar".

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((8, 8), "event", width_size=32, depth=2, key=jax.random.key(0))
        >>> mlp(jnp.zeros((8, 8))).shape
        (8, 8)
    """

    layers: eqx.nn.MLP
    event_shape: tuple[int, ...] = eqx.field(static=True)
    out: Literal["event", "scalar"] = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        out: Literal["event", "scalar"] = "event",
        *,
        width_size: int,
        depth: int,
        activation: Callable = jax.nn.silu,
        key: PRNGKeyArray,
    ):
        if out not in ("event", "scalar"):
            raise ValueError(f"out must be 'event' or 'scalar', got {out!r}")
        self.event_shape, self.out = tuple(event_shape), out
        size = prod(self.event_shape)
        out_size = size if out == "event" else "scalar"
        self.layers = eqx.nn.MLP(size, out_size, width_size, depth, activation, key=key)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, "..."]:
        """The network's output for one y of shape `event_shape`."""
        out = self.layers(y.reshape(-1))
        return out.reshape(self.event_shape) if self.out == "event" else out


class NNXNetwork(eqx.Module):
    """A Flax NNX module as an Equinox one, in inference mode: what `from_nnx` returns.

    Attributes:
        params: The module's `nnx.Param`, which train.
        rest: All else it holds: batch statistics, the state of random numbers. It never changes.
        graphdef: NNX's description of the module.
        key_types: Where `rest` has typed random keys, the generator of each; files hold their bits.
    """

    params: PyTree
    rest: Frozen
    graphdef: Any = eqx.field(static=True)
    key_types: tuple[str | None, ...] = eqx.field(static=True)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, "..."]:
        """The module's output for one y."""
        from flax import nnx

        leaves, structure = jax.tree.flatten(self.rest.value)
        leaves = [
            leaf if key_type is None else jax.random.wrap_key_data(leaf, impl=key_type)
            for leaf, key_type in zip(leaves, self.key_types, strict=True)
        ]
        rest = jax.tree.unflatten(structure, leaves)
        return nnx.merge(self.graphdef, self.params, rest)(y)


class LinenNetwork(eqx.Module):
    """A Flax Linen module with its variables as an Equinox module: what `from_linen` returns.

    Attributes:
        params: The collection "params", which trains.
        rest: The other collections, which never change.
        module: The Linen module.
    """

    params: PyTree
    rest: Frozen
    module: Any = eqx.field(static=True)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, "..."]:
        """The module's output for one y."""
        return self.module.apply({"params": self.params, **self.rest.value}, y)


def from_nnx(module: "nnx.Module") -> NNXNetwork:
    """A Flax NNX module as a network for an energy.

    Its `nnx.Param` train. Everything else, batch statistics among it, stays as it is, and the
    module is evaluated in inference mode (`module.eval()`, on a copy): an energy has one value.
    `save` writes such an energy, and `load(path, like=energy)` reads it.

    Args:
        module: Maps one array of the event shape to what the energy asks for.

    Raises:
        TypeError: If `module` is no instance of `flax.nnx.Module`.
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

    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be an instance of flax.nnx.Module, got {_kind(module)}")
    module = nnx.clone(module)
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    leaves, structure = jax.tree.flatten(rest)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    key_types = tuple(
        str(jax.random.key_impl(leaf)) if key else None
        for leaf, key in zip(leaves, is_key, strict=True)
    )
    leaves = [
        jax.random.key_data(leaf) if key else jnp.asarray(leaf)
        for leaf, key in zip(leaves, is_key, strict=True)
    ]
    return NNXNetwork(params, Frozen(jax.tree.unflatten(structure, leaves)), graphdef, key_types)


def from_linen(module: "linen.Module", variables: Mapping[str, Any]) -> LinenNetwork:
    """A Flax Linen module and its variables as a network for an energy.

    The collection "params" trains; the others stay as they are. Configure the module for inference
    (`deterministic=True`, `use_running_average=True`): it is applied without random numbers, and
    nothing is mutable. `save` writes such an energy, and `load(path, like=energy)` reads it.

    Args:
        module: Maps one array of the event shape to what the energy asks for.
        variables: What `module.init(key, y)` returned.

    Raises:
        TypeError: If `module` is no instance of `flax.linen.Module`.
        ValueError: If variables has no collection "params".
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

    if not isinstance(module, linen.Module):
        raise TypeError(f"module must be an instance of flax.linen.Module, got {_kind(module)}")
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            'variables must be what module.init returned, with a collection "params",'
            f" got {sorted(variables) if isinstance(variables, Mapping) else _kind(variables)}"
        )
    rest = {name: value for name, value in variables.items() if name != "params"}
    return LinenNetwork(variables["params"], Frozen(rest), module)


def _kind(value):
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
