"""A multilayer perceptron on events of any shape."""

from collections.abc import Callable
from math import prod
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import (
    check_choice,
    check_count,
    check_key,
    check_number,
    check_sizes,
    check_type,
    finite_on_host,
    require,
)
from numpyro_neb._internal.configurations import (
    ACTIVATION,
    NAME,
    NUMBER,
    SHAPE,
    SIZE,
    SIZE_OR_SCALAR,
    TRUTH,
    configured,
)


def _extent_of_equinox(arguments):
    ends = {word: arguments[word] for word in ("in_size", "out_size")}
    sizes = {word: 1 if size == "scalar" else size for word, size in ends.items()}
    return arguments["depth"], sizes | _width(arguments)


def _extent(arguments):
    return arguments["depth"], {"event_shape": prod(arguments["event_shape"])} | _width(arguments)


def _width(arguments):
    # Without hidden layers, width_size is not used.
    return {"width_size": arguments["width_size"]} if arguments["depth"] else {}


configured(
    "eqx.nn.MLP",
    {
        "in_size": SIZE_OR_SCALAR,
        "out_size": SIZE_OR_SCALAR,
        "width_size": SIZE,
        "depth": SIZE,
        "use_bias": TRUTH,
        "use_final_bias": TRUTH,
        "activation": ACTIVATION,
        "final_activation": ACTIVATION,
    },
    # With scan=True the layers are one stack, which is another structure.
    fields=lambda mlp: {} if getattr(mlp, "scan", False) else vars(mlp),
    extent=_extent_of_equinox,
)(eqx.nn.MLP)


@configured(
    "networks.MLP",
    {
        "event_shape": SHAPE,
        "out": NAME,
        "width_size": SIZE,
        "depth": SIZE,
        "activation": ACTIVATION,
        "conditional": TRUTH,
        "skip": NUMBER,
    },
    fields=lambda mlp: vars(mlp.layers) | vars(mlp),
    extent=_extent,
)
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
        conditional: Whether it also takes a scalar t, like the network of a `ConditionalEnergy`.
        skip: A multiple of the input to add to an output of its shape. In a `ResidualEnergy` with
            scale s, a network of zeros with skip = 1 - sigma / sqrt(s^2 + sigma^2) is that of
            X ~ N(loc, s^2): where the data are few and nearly normal, begin there.
        key: A JAX random key, for the initial weights.

    Raises:
        TypeError: If activation is not callable, skip is not a number, or key is not a random key.
        ValueError: If `out` is neither "event" nor "scalar", a size is not a positive int (depth
            may be zero), skip is not finite, or not zero with out="scalar", or t is missing or not
            expected.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((8, 8), "event", width_size=32, depth=2, key=jax.random.key(0))
        >>> mlp(jnp.zeros((8, 8))).shape
        (8, 8)
    """

    layers: eqx.nn.MLP
    event_shape: tuple[int, ...] = eqx.field(static=True)
    out: Literal["event", "scalar"] = eqx.field(static=True)
    conditional: bool = eqx.field(static=True)
    skip: float = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        out: Literal["event", "scalar"] = "event",
        *,
        width_size: int,
        depth: int,
        activation: Callable = jax.nn.silu,
        conditional: bool = False,
        skip: float = 0.0,
        key: PRNGKeyArray,
    ):
        check_choice("out", out, ("event", "scalar"))
        check_type("activation", activation, Callable, "callable")
        check_key(key)
        self.event_shape = check_sizes("event_shape", event_shape)
        self.out, self.conditional = out, conditional
        self.skip = float(finite_on_host("skip", check_number("skip", skip)))
        needless = f"skip must be 0 with out={out!r}, got {self.skip:g}"
        require(out == "event" or self.skip == 0, needless)
        width_size, depth = check_count("width_size", width_size), check_count("depth", depth, 0)
        size = prod(self.event_shape)
        out_size = size if out == "event" else "scalar"
        in_size = size + conditional
        self.layers = eqx.nn.MLP(in_size, out_size, width_size, depth, activation, key=key)

    def __call__(
        self, y: Float[Array, "*event"], t: Float[Array, ""] | None = None
    ) -> Float[Array, "..."]:
        """The network's output for one y of shape `event_shape`, and one t if it is conditional."""
        given, wanted = t is not None, self.conditional
        require(given == wanted, f"t must be given if and only if conditional={wanted}")
        flat = y.reshape(-1)
        out = self.layers(flat if t is None else jnp.append(flat, t))
        if self.out == "scalar":
            return out
        out = out.reshape(self.event_shape)
        return out + self.skip * y if self.skip else out
