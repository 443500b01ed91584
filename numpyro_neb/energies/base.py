"""An energy phi(y), with f(y) proportional to exp(-phi(y)) the density of the smoothed signal."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_neb._internal.checks import (
    as_jax,
    check_floats,
    check_network,
    check_reals,
    check_sizes,
    finite,
    kind,
    positive,
    positive_scalar,
)
from numpyro_neb._internal.named_functions import Picklable

_BUFFERS = ("sigma", "loc", "scale")


class AbstractEnergy(Picklable):
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


class AbstractEnergyFamily(Picklable):
    """Energies of one law of X at a range of noise levels.

    Attributes:
        event_shape: The shape of one y, of any rank.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a scalar or of shape `event_shape`.
    """

    event_shape: eqx.AbstractVar[tuple[int, ...]]
    loc: eqx.AbstractVar[Float[Array, "..."]]
    scale: eqx.AbstractVar[Float[Array, "..."]]

    @abc.abstractmethod
    def at(self, sigma: ArrayLike) -> AbstractEnergy:
        """The energy at one noise level."""


class Frozen(eqx.Module):
    """Arrays that `fit` never trains, and that no weight decay shrinks.

    Attributes:
        value: A pytree of arrays.
    """

    value: PyTree


def trainable(energy: AbstractEnergy | AbstractEnergyFamily) -> PyTree[bool]:
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
        conditional: Whether an `AbstractEnergyFamily` will do as well.

    Raises:
        TypeError: If it is no energy: the message says how to wrap a network or function.
        ValueError: If its value is no scalar float. Nothing is computed to find that out.
    """
    if isinstance(energy, AbstractEnergyFamily):
        if conditional:
            return
        raise TypeError(
            f"energy must be one at one noise level, got a {type(energy).__name__}:"
            " use energy.at(sigma)"
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
    if type(energy).__module__.partition(".")[0] != "numpyro_neb":
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
    energy: "AbstractEnergy | AbstractEnergyFamily", y: Array | np.ndarray
) -> Float[Array, "..."]:
    """Data in the dtype in which the energy answers: float16 data are computed in the energy's."""
    y, sigma = jnp.asarray(y), getattr(energy, "sigma", energy.loc)
    # Not result_type of both: sigma = jnp.asarray(0.5) is weakly typed, and would give way.
    return y.astype(jnp.promote_types(y.dtype, jnp.result_type(sigma)))


def checked_buffers(
    sigma: Any, event_shape: Any, loc: Any, scale: Any
) -> tuple[Float[Array, ""], tuple[int, ...], Float[Array, "..."], Float[Array, "..."]]:
    """The arguments that energies have in common, as arrays and a tuple, once checked."""
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
