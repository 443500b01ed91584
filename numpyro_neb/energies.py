"""Energies: phi(y), with f(y) proportional to exp(-phi(y)) the density of the smoothed signal.

Everything after training sees only an `AbstractEnergy`: a learned network, an exact mixture and a
module of one's own are interchangeable.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_neb.activations import name_functions, restore_functions
from numpyro_neb.checks import (
    Numbers,
    as_jax,
    check_floats,
    check_function,
    check_network,
    check_reals,
    check_sizes,
    finite,
    kind,
    positive,
    positive_scalar,
)

_BUFFERS = ("sigma", "loc", "scale")


class _Picklable(eqx.Module):
    def __getstate__(self) -> dict[str, Any]:
        # jax.nn's activations do not pickle (each is a compiled wrapper that answers to the name of
        # the function inside), so an energy pickles their public names instead.
        return {k: name_functions(v) for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, restore_functions(value))


class AbstractEnergy(_Picklable):
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
        y = check_event(y, self.event_shape)
        return -jax.grad(self)(y)

    def denoise(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The jump, E[X given Y=y] = y - sigma^2 grad phi(y), of shape `event_shape`.

        Reference:
            Robbins 1956; Miyasawa 1961; NEB equation 3.
        """
        y = check_event(y, self.event_shape)
        return y + self.sigma**2 * self.score(y)


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
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
    ):
        self.network = network
        self.sigma, self.event_shape, self.loc, self.scale = _buffers(
            sigma, event_shape, loc, scale
        )

    def __check_init__(self):
        hint = "; eqx.nn.MLP gives a scalar with out_size='scalar'"
        check_function("network", self.network)
        check_network("network", self.network, self.event_shape, (), self.sigma.dtype, hint)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y) = network((y - loc) / scale)."""
        y = check_event(y, self.event_shape)
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
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
    ):
        self.network = network
        self.sigma, self.event_shape, self.loc, self.scale = _buffers(
            sigma, event_shape, loc, scale
        )

    def __check_init__(self):
        check_function("network", self.network)
        shape = self.event_shape
        check_network("network", self.network, shape, shape, self.sigma.dtype)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y) = norm(y - r(y))^2 / (2 sigma^2)."""
        y = check_event(y, self.event_shape)
        # In standard units y - r(y) = scale (z - network(z)).
        z = (y - self.loc) / self.scale
        return jnp.sum((self.scale * (z - self.network(z))) ** 2) / (2 * self.sigma**2)


class Frozen(eqx.Module):
    """Arrays that `fit` never trains, and that no weight decay shrinks.

    Attributes:
        value: A pytree of arrays.
    """

    value: PyTree


class ConditionalEnergy(_Picklable):
    r"""One network for a range of noise levels: `at(sigma)` is the energy at one of them.

    phi(y; sigma) = norm(y - r(y, t))^2 / (2 sigma^2), r(y, t) = loc + scale network((y - loc) /
    scale, t), where t goes from -1 to 1 as log sigma goes through the range. It carries one prior
    to data of other noise levels. `fit` trains it on clean data: `denoising_loss` draws a sigma for
    each example, log-uniformly, and counts its squared error in units of sigma^2.

    Args:
        network: Maps an array of shape `event_shape` and the scalar t to an array of that shape, as
            `networks.MLP(..., conditional=True)` does.
        event_shape: The shape of one y.
        sigma_range: The least and the greatest sigma.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.

    Raises:
        ValueError: If sigma_range is not two rising, positive numbers, scale is not positive, a
            shape does not fit, or the network's output is not of shape `event_shape`.

    Reference:
        Song and Ermon, Generative modeling by estimating gradients of the data distribution,
        NeurIPS 2019, for one network and many noise levels.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((2,), width_size=8, depth=2, conditional=True,
        ...                        key=jax.random.key(0))
        >>> energies = neb.ConditionalEnergy(mlp, (2,), sigma_range=(0.1, 1.0))
        >>> energies.at(0.5).denoise(jnp.zeros(2)).shape
        (2,)
    """

    network: Callable[[Float[Array, "*event"], Float[Array, ""]], Float[Array, "*event"]]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    sigma_range: tuple[float, float] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(
        self,
        network: Callable,
        event_shape: tuple[int, ...],
        sigma_range: tuple[float, float],
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
    ):
        ends = np.asarray(check_reals("sigma_range", sigma_range))
        if ends.shape != (2,) or not 0 < ends[0] < ends[1] < np.inf:
            raise ValueError(f"sigma_range must be two rising, positive numbers, got {sigma_range}")
        low, high = map(float, ends)
        self.network, self.sigma_range = network, (low, high)
        _, self.event_shape, self.loc, self.scale = _buffers(high, event_shape, loc, scale)

    def __check_init__(self):
        shape, dtype = self.event_shape, self.loc.dtype
        t = jnp.zeros((), dtype)
        network = lambda y: self.network(y, t)  # noqa: E731
        check_function("network", self.network)
        check_network("network", network, shape, shape, dtype)

    def at(self, sigma: ArrayLike) -> ResidualEnergy:
        """The energy at one noise level.

        Args:
            sigma: The noise's standard deviation, in `sigma_range`.

        Raises:
            ValueError: If sigma is outside `sigma_range`, where the network knows nothing.
        """
        low, high = self.sigma_range
        level: Any = positive_scalar("sigma", sigma)
        slack = 1e-6  # a float32 of the range's own ends lies in it
        outside = (level < low * (1 - slack)) | (level > high * (1 + slack))
        message = f"sigma must be in sigma_range = ({low:g}, {high:g})"
        if not isinstance(level, Tracer) and outside:
            raise ValueError(f"{message}, got {level:g}")
        return self.unchecked_at(eqx.error_if(level, outside, message))

    def unchecked_at(self, sigma: Float[Array, ""]) -> ResidualEnergy:
        """`at`, for a sigma that is known to be in the range."""
        # In the energy's own precision: a float32 network, of a file say, need not take float64.
        low, high, sigma = *self.sigma_range, sigma.astype(self.loc.dtype)
        t = 2 * (jnp.log(sigma) - jnp.log(low)) / (jnp.log(high) - jnp.log(low)) - 1
        network = AtLevel(self.network, Frozen(t))
        return ResidualEnergy(network, sigma, self.event_shape, self.loc, self.scale)


class AtLevel(eqx.Module):
    """A conditional network at one noise level, t: what `ConditionalEnergy.at` gives an energy.

    Attributes:
        network: The network of y and t.
        level: t, from -1 at the least sigma to 1 at the greatest. It never trains.
    """

    network: Callable
    level: Frozen

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """network(y, t)."""
        return self.network(y, self.level.value)


def trainable(energy: AbstractEnergy | ConditionalEnergy) -> PyTree[bool]:
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


def check_energy(energy: Any, *, conditional: bool = False) -> None:
    """Raises an error unless `energy` is an `AbstractEnergy` whose value is a scalar.

    Args:
        energy: One energy, or several stacked along leading dimensions of their arrays.
        conditional: Whether a `ConditionalEnergy` will do as well.

    Raises:
        TypeError: If it is no energy: the message says how to wrap a network or function.
        ValueError: If its value is no scalar float. Nothing is computed to find that out.
    """
    if isinstance(energy, ConditionalEnergy):
        if conditional:
            return
        raise TypeError(
            "energy must be one at one noise level, got a ConditionalEnergy: use energy.at(sigma)"
        )
    if isinstance(getattr(energy, "energy", None), AbstractEnergy):
        raise TypeError(
            f"energy must be a numpyro_neb.AbstractEnergy, got {kind(energy)}: give its .energy"
        )
    if isinstance(energy, type) or not isinstance(energy, AbstractEnergy):
        raise TypeError(
            f"energy must be a numpyro_neb.AbstractEnergy, got {kind(energy)}: wrap a network or"
            " function"
            " that returns a scalar as NetworkEnergy(network, sigma, event_shape), and one that"
            " returns an array of the event shape as ResidualEnergy(network, sigma, event_shape)"
        )
    # Of the package's own it is known from their constructors.
    if type(energy).__module__.partition(".")[0] != __package__:
        stack = len(jnp.shape(energy.sigma))
        one = jax.tree.map(lambda leaf: _without(leaf, stack), energy)
        # In its own precision: a float32 network need not take float64.
        hint, dtype = ": its value is a scalar", one.sigma.dtype
        check_network("energy", one, energy.event_shape, (), dtype, hint)


def _without(leaf, stack):
    """The shape of an array without so many leading dimensions."""
    if not eqx.is_array(leaf):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape[stack:], leaf.dtype)


def check_event(y: Any, event_shape: tuple[int, ...]) -> Float[Array, "*event"]:
    """`y` as an array; raises an error where it is not one unbatched event of floats."""
    array = as_jax(check_floats("y", y))
    if array.shape != event_shape:
        raise ValueError(
            f"y must have the event shape {event_shape}, got {array.shape};"
            " an energy takes one y: batch with jax.vmap"
        )
    return array


def in_dtype_of(
    energy: "AbstractEnergy | ConditionalEnergy", y: Array | np.ndarray
) -> Float[Array, "..."]:
    """Data in the dtype in which the energy answers: float16 data are computed in the energy's."""
    y, sigma = jnp.asarray(y), getattr(energy, "sigma", energy.loc)
    # Not result_type of both: sigma = jnp.asarray(0.5) is weakly typed, and would give way.
    return y.astype(jnp.promote_types(y.dtype, jnp.result_type(sigma)))


def _buffers(sigma, event_shape, loc, scale):
    event_shape = check_sizes("event_shape", event_shape)
    for name, value in (("loc", loc), ("scale", scale)):
        shape = check_reals(name, value).shape
        if shape not in ((), event_shape):
            raise ValueError(
                f"{name} must be a scalar or of the event shape {event_shape}, got shape {shape}"
            )
    buffers = positive_scalar("sigma", sigma), finite("loc", loc), positive("scale", scale)
    # Those of a float32 energy, of a file say, stay so where x64 makes float64 JAX's default.
    if all(getattr(value, "dtype", None) == jnp.float32 for value in (sigma, loc, scale)):
        buffers = [buffer.astype(jnp.float32) for buffer in buffers]
    sigma, loc, scale = buffers
    return sigma, event_shape, loc, scale
