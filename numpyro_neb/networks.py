"""Networks to build energies from."""

from collections.abc import Callable
from math import prod
from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray


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
