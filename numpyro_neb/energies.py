"""Energies: phi(y), with f(y) proportional to exp(-phi(y)) the density of the smoothed signal.

Everything after training sees only an `AbstractEnergy`: a learned network, an exact mixture and a
module of one's own are interchangeable.
"""

import abc
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.nn
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

_BUFFERS = ("sigma", "loc", "scale")


class AbstractEnergy(eqx.Module):
    r"""The energy phi of the smoothed signal Y = X + N(0, sigma^2 I), f(y) ∝ exp(-phi(y)).

    A subclass has four fields and one method, `__call__(y) -> scalar`. It takes one unbatched `y`
    of shape `event_shape`; batch with `jax.vmap`. phi matters up to an additive constant only.

    Attributes:
        sigma: The noise's standard deviation (never the variance), a scalar array.
        event_shape: The shape of one y, of any rank.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a scalar or of shape `event_shape`. With `loc` it gives
            the Gaussian that chains start from, N(loc, scale^2 + sigma^2).

    `sigma`, `loc` and `scale` are buffers: `fit` never trains them (see `trainable`).

    Reference:
        Saremi and Hyvarinen, Neural Empirical Bayes, JMLR 20 (2019), section 2.

    Example:
        An energy of one's own, a Gaussian's:

        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro_neb as neb
        >>> class GaussianEnergy(neb.AbstractEnergy):
        ...     sigma: jax.Array
        ...     loc: jax.Array
        ...     scale: jax.Array
        ...     event_shape: tuple[int, ...] = eqx.field(static=True)
        ...
        ...     def __call__(self, y):
        ...         return jnp.sum((y - self.loc) ** 2) / (2 * (self.scale**2 + self.sigma**2))
        >>> energy = GaussianEnergy(jnp.array(1.0), jnp.array(0.0), jnp.array(2.0), (3,))
        >>> energy.denoise(jnp.array([5.0, 0.0, -5.0]))  # shrinks by 2^2 / (2^2 + 1^2)
        Array([ 4.,  0., -4.], dtype=float32)
    """

    sigma: eqx.AbstractVar[Float[Array, ""]]
    event_shape: eqx.AbstractVar[tuple[int, ...]]
    loc: eqx.AbstractVar[Float[Array, "..."]]
    scale: eqx.AbstractVar[Float[Array, "..."]]

    @abc.abstractmethod
    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y), a scalar, known up to a constant.

        Args:
            y: One smoothed signal, of shape `event_shape`.
        """

    def score(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """-grad phi(y), close to grad log f(y), of shape `event_shape`."""
        return -jax.grad(self)(y)

    def denoise(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The jump, E[X given Y=y] = y - sigma^2 grad phi(y), of shape `event_shape`.

        Reference:
            Robbins 1956; Miyasawa 1961; NEB equation 3.
        """
        return y + self.sigma**2 * self.score(y)

    def __getstate__(self) -> dict[str, Any]:
        # jax.nn's activations do not pickle (each is a compiled wrapper that answers to the name of
        # the function inside), so an energy pickles their public names instead.
        return {k: jax.tree.map(_name_function, v) for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            value = jax.tree.map(_find_function, value, is_leaf=_is_named)
            object.__setattr__(self, name, value)


class NetworkEnergy(AbstractEnergy):
    r"""DEEN as published: phi(y) = network((y - loc) / scale), the network's scalar.

    `ResidualEnergy` learns better from the same network, and is the default: see there.

    Args:
        network: Maps an array of shape `event_shape` to a scalar of shape ().
        sigma: The noise's standard deviation, positive.
        event_shape: The shape of one y.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.

    Raises:
        ValueError: If sigma or scale is not positive and finite, a shape does not fit, or the
            network's output is no scalar.

    Reference:
        Saremi et al., Deep Energy Estimator Networks, arXiv 1805.08306 (2018).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((2,), "scalar", width_size=8, depth=2, key=jax.random.key(0))
        >>> energy = neb.NetworkEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> energy(jnp.zeros(2)).shape
        ()
    """

    network: Callable[[Float[Array, "*event"]], Float[Array, ""]]
    sigma: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(
        self,
        network: Callable,
        sigma: ArrayLike,
        event_shape: tuple[int, ...],
        loc: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
    ):
        self.network = network
        self.sigma, self.event_shape, self.loc, self.scale = _buffers(
            sigma, event_shape, loc, scale
        )

    def __check_init__(self):
        _check_network(self.network, self.event_shape, ())

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y) = network((y - loc) / scale)."""
        check_event(y, self.event_shape)
        return self.network((y - self.loc) / self.scale)


class ResidualEnergy(AbstractEnergy):
    r"""phi(y) = norm(y - r(y))^2 / (2 sigma^2), r(y) = loc + scale network((y - loc) / scale).

    The default form: the network has d outputs to learn a denoiser with, where a scalar one has to
    bend its gradient to that. With the same 3 x 256 MLP on scikit-learn's 8 x 8 digits at
    sigma = 0.3, the held-out loss after 4,000 steps of batch 128 is 0.94 in this form and 1.02 as
    `NetworkEnergy`; the exact kernel density has 1.28 (`python -m benchmarks.energies`).

    With the defaults loc = 0 and scale = 1, r is the network itself. loc and scale are a change of
    units: data measured in others give the same energy.

    Args:
        network: Maps an array of shape `event_shape` to one of the same shape.
        sigma: The noise's standard deviation, positive.
        event_shape: The shape of one y.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.

    Raises:
        ValueError: If sigma or scale is not positive and finite, a shape does not fit, or the
            network's output is not of shape `event_shape`.

    Reference:
        The DEEN objective of NEB section 3, on a network that reconstructs, as in Alain and
        Bengio, What regularized auto-encoders learn, JMLR 15 (2014).

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = eqx.nn.MLP(2, 2, width_size=8, depth=2, key=jax.random.key(0))
        >>> energy = neb.ResidualEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> energy.denoise(jnp.zeros(2)).shape
        (2,)
    """

    network: Callable[[Float[Array, "*event"]], Float[Array, "*event"]]
    sigma: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(
        self,
        network: Callable,
        sigma: ArrayLike,
        event_shape: tuple[int, ...],
        loc: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
    ):
        self.network = network
        self.sigma, self.event_shape, self.loc, self.scale = _buffers(
            sigma, event_shape, loc, scale
        )

    def __check_init__(self):
        _check_network(self.network, self.event_shape, self.event_shape)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y) = norm(y - r(y))^2 / (2 sigma^2)."""
        check_event(y, self.event_shape)
        # In standard units y - r(y) = scale (z - network(z)).
        z = (y - self.loc) / self.scale
        return jnp.sum((self.scale * (z - self.network(z))) ** 2) / (2 * self.sigma**2)


class Frozen(eqx.Module):
    """Arrays that `fit` never trains, and that no weight decay shrinks.

    Attributes:
        value: A pytree of arrays.
    """

    value: PyTree


def trainable(energy: AbstractEnergy) -> PyTree[bool]:
    """The filter of what `fit` trains: every inexact array but sigma, loc, scale and the `Frozen`.

    Args:
        energy: The energy; energies inside it keep their own buffers.

    Returns:
        A pytree of booleans with the structure of `energy`, for `equinox.partition`.

    Example:
        A training loop of one's own, in which weight decay can't shrink sigma either:

        >>> import equinox as eqx, jax, numpyro_neb as neb
        >>> mlp = eqx.nn.MLP(2, 2, width_size=8, depth=2, key=jax.random.key(0))
        >>> energy = neb.ResidualEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> params, rest = eqx.partition(energy, neb.energies.trainable(energy))
        >>> params.sigma is None
        True
    """

    def mark(path, leaf):
        if isinstance(leaf, AbstractEnergy):
            return trainable(leaf)
        if isinstance(leaf, Frozen):
            return jax.tree.map(lambda _: False, leaf)
        return eqx.is_inexact_array(leaf) and getattr(path[0], "name", None) not in _BUFFERS

    def inner(node):
        return isinstance(node, AbstractEnergy | Frozen) and node is not energy

    return jax.tree_util.tree_map_with_path(mark, energy, is_leaf=inner)


def initial_position(energy: AbstractEnergy, key: PRNGKeyArray) -> Float[Array, "*event"]:
    """One draw from N(loc, scale^2 + sigma^2), the Gaussian that chains start from.

    Args:
        energy: The energy that the chain will walk on.
        key: A JAX random key.

    Returns:
        An array of shape `event_shape`.
    """
    loc = jnp.broadcast_to(energy.loc, energy.event_shape)
    noise = jax.random.normal(key, loc.shape, loc.dtype)
    return loc + jnp.sqrt(energy.scale**2 + energy.sigma**2) * noise


def over_batch(
    fn: Callable, energy: AbstractEnergy, *values: Float[Array, "..."]
) -> PyTree[Float[Array, "..."]]:
    """Applies `fn(energy, *events)`, written for one energy and one event, over any batch.

    Args:
        fn: A function of an energy and of arrays of shape `event_shape`.
        energy: One energy, or several stacked along leading dimensions of their arrays, which are
            the shape of `sigma`.
        values: Arrays of shape (*batch, *event_shape), whose batches broadcast with one another and
            with the energies' leading dimensions.

    Returns:
        fn's outputs, with the broadcast batch in front.

    Raises:
        ValueError: If a value's trailing dimensions are not `event_shape`.
    """
    stack = jnp.shape(energy.sigma)
    batch = jnp.broadcast_shapes(stack, *(batch_shape_of(v, energy.event_shape) for v in values))
    events = [jnp.broadcast_to(v, (*batch, *energy.event_shape)) for v in values]
    # The draws' own dimensions are one; each of the energies' keeps its place behind it.
    own = batch[: len(batch) - len(stack)]
    events = [e.reshape(-1, *e.shape[len(own) :]) for e in events]
    arrays, static = eqx.partition(energy, eqx.is_array)
    kept = tuple(n for n in stack if n != 1)
    arrays = jax.tree.map(lambda a: a.reshape(*kept, *a.shape[len(stack) :]), arrays)
    mapped = lambda arrays, *events: fn(eqx.combine(arrays, static), *events)  # noqa: E731
    for size in reversed(stack):
        mapped = jax.vmap(mapped, (None if size == 1 else 0, *[0] * len(events)))
    out = jax.vmap(mapped, (None, *[0] * len(events)))(arrays, *events)
    return jax.tree.map(lambda leaf: leaf.reshape(*own, *leaf.shape[1:]), out)


def batch_shape_of(y: Array | np.ndarray, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading dimensions of a `y` of shape (*batch, *event_shape).

    Raises:
        ValueError: If y's trailing dimensions are not `event_shape`.
    """
    rank = jnp.ndim(y) - len(event_shape)
    if rank < 0 or jnp.shape(y)[rank:] != event_shape:
        raise ValueError(f"y must end in the event shape {event_shape}, got shape {jnp.shape(y)}")
    return jnp.shape(y)[:rank]


def check_energy(energy: Any) -> None:
    """Raises a TypeError that says how to wrap what is no `AbstractEnergy`."""
    if isinstance(energy, type) or not isinstance(energy, AbstractEnergy):
        got = f"the class {energy.__name__}" if isinstance(energy, type) else type(energy).__name__
        raise TypeError(
            f"energy must be a numpyro_neb.AbstractEnergy, got {got}: wrap a network or function"
            " that returns a scalar as NetworkEnergy(network, sigma, event_shape), and one that"
            " returns an array of the event shape as ResidualEnergy(network, sigma, event_shape)"
        )


def check_event(y: Float[Array, "..."], event_shape: tuple[int, ...]) -> None:
    """Raises a ValueError where `y` is not one unbatched event."""
    if jnp.shape(y) != event_shape:
        raise ValueError(
            f"y must have the event shape {event_shape}, got {jnp.shape(y)};"
            " an energy takes one y: batch with jax.vmap"
        )


def positive(name: str, value: Any) -> Float[Array, "..."]:
    """`value` as a float array, checked to be positive and finite.

    Args:
        name: The argument's name, for the message.
        value: A number or array; a traced one is checked when the program runs.

    Raises:
        ValueError: If a value that is known now is not positive and finite.
    """
    array = jnp.asarray(value, dtype=float)
    if isinstance(value, Tracer):
        wrong = ~(jnp.isfinite(array) & (array > 0))
        return eqx.error_if(array, wrong, f"{name} must be positive and finite")
    host = np.asarray(value, dtype=float)
    if not np.all(host > 0):
        raise ValueError(f"{name} must be positive, got {value}")
    if not np.all(np.isfinite(host)):
        raise ValueError(f"{name} must be finite, got {value}")
    return array


def positive_scalar(name: str, value: Any) -> Float[Array, ""]:
    """`positive`, for a scalar.

    Raises:
        ValueError: If `value` has dimensions or is not positive and finite.
    """
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
    return positive(name, value)


def _buffers(sigma, event_shape, loc, scale):
    if isinstance(event_shape, int) or not all(isinstance(n, int) and n > 0 for n in event_shape):
        raise ValueError(
            f"event_shape must be a tuple of positive ints, as in (64,), got {event_shape}"
        )
    event_shape = tuple(event_shape)
    for name, value in (("loc", loc), ("scale", scale)):
        if jnp.shape(value) not in ((), event_shape):
            raise ValueError(
                f"{name} must be a scalar or of the event shape {event_shape},"
                f" got shape {jnp.shape(value)}"
            )
    loc = jnp.asarray(loc, dtype=float)
    if not isinstance(loc, Tracer) and not np.all(np.isfinite(loc)):
        raise ValueError(f"loc must be finite, got {loc}")
    return positive_scalar("sigma", sigma), event_shape, loc, positive("scale", scale)


def _check_network(network, event_shape, out_shape):
    if not callable(network):
        raise TypeError(f"network must be callable, got {type(network).__name__}")
    y = jax.ShapeDtypeStruct(event_shape, jnp.result_type(float))
    try:
        out = eqx.filter_eval_shape(network, y)
    except Exception as error:
        raise ValueError(
            f"network must take one array of the event shape {event_shape}; it raised: {error}"
        ) from error
    if not hasattr(out, "shape") or out.shape != out_shape:
        hint = "; eqx.nn.MLP gives a scalar with out_size='scalar'" if out_shape == () else ""
        raise ValueError(
            f"network must return an array of shape {out_shape},"
            f" got {getattr(out, 'shape', type(out).__name__)}{hint}"
        )


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
        ValueError: If it is no public function of jax.nn or jax.numpy.
    """
    if name == "equinox.identity":
        return _IDENTITY
    module, _, attribute = name.rpartition(".")
    function = getattr({"jax.nn": jax.nn, "jax.numpy": jnp}.get(module), attribute, None)
    if attribute.startswith("_") or not callable(function):
        raise ValueError(f"{name} is no public function of jax.nn or jax.numpy")
    return function


class _Named(NamedTuple):
    function: str
    partial: tuple[tuple, dict[str, Any]] | None


def _name_function(leaf: Any) -> Any:
    bound = isinstance(leaf, functools.partial)
    name = function_name(leaf.func if bound else leaf)
    if name is None:
        return leaf
    return _Named(name, (leaf.args, leaf.keywords) if bound else None)


def _find_function(leaf: Any) -> Any:
    if not _is_named(leaf):
        return leaf
    function = find_function(leaf.function)
    if leaf.partial is None:
        return function
    args, keywords = leaf.partial
    return functools.partial(function, *args, **keywords)


def _is_named(leaf: Any) -> bool:
    return isinstance(leaf, _Named)
