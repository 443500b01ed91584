"""An energy phi(y): the smoothed signal has a density f(y) proportional to exp(-phi(y))."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_neb._internal.checks import (
    check_key,
    check_network,
    check_positive,
    check_reals,
    check_sizes,
    finite,
    kind,
    require,
)
from numpyro_neb._internal.events import as_event, too_coarse
from numpyro_neb._internal.final import AbstractOrFinal
from numpyro_neb._internal.named_functions import Picklable
from numpyro_neb.integrators.base import Target, walk
from numpyro_neb.integrators.underdamped import GHMC
from numpyro_neb.posteriors.base import AbstractPosterior
from numpyro_neb.posteriors.levels import (
    NUM_LEVELS,
    NUM_STEPS,
    LevelsPosterior,
    down,
    drawn,
    geometric,
)
from numpyro_neb.posteriors.linearised import LinearisedPosterior
from numpyro_neb.posteriors.spreads import AbstractSpread, Full


class AbstractScoreField(Picklable, AbstractOrFinal):
    """What is known of the smoothed signal Y = X + N(0, sigma^2 I) by its score alone.

    A subclass has four fields and one method, `score(y)`. An `AbstractEnergy` is one whose score is
    a gradient, of an energy with a value.

    Attributes:
        sigma: The noise's standard deviation (never the variance), a scalar array.
        event_shape: The shape of one y, of any rank.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a scalar or of shape `event_shape`.
        buffers: Names of the fields that `fit` never trains.
        one_level: True: it is for one noise level, a family for many.
        has_value: Whether phi(y) itself is known, as for an `AbstractEnergy`.
    """

    sigma: eqx.AbstractVar[Float[Array, ""]]
    event_shape: eqx.AbstractVar[tuple[int, ...]]
    loc: eqx.AbstractVar[Float[Array, "..."]]
    scale: eqx.AbstractVar[Float[Array, "..."]]

    buffers: ClassVar[tuple[str, ...]] = ("sigma", "loc", "scale")
    one_level: ClassVar[bool] = True
    has_value: ClassVar[bool] = False

    def __str__(self) -> str:
        return _described(self, f"sigma = {_range(self.sigma)}")

    @abc.abstractmethod
    def score(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """-grad phi(y), close to grad log f(y), of shape `event_shape`."""

    def denoise(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The jump, E[X given Y=y] = y - sigma^2 grad phi(y), of shape `event_shape`.

        Reference:
            Robbins 1956; Miyasawa 1961; NEB equation 3.
        """
        y = as_event(y, self.event_shape)
        return y + self.sigma**2 * self.score(y)

    def posterior(self, y: Float[Array, "*event"]) -> AbstractPosterior:
        """The law of X given Y=y, by default the Gaussian with its mean and covariance.

        The two moments are as accurate as the score, but the true posterior may have several
        modes or bounds. A `MixtureEnergy` gives the exact law.
        """
        y = as_event(y, self.event_shape)
        return LinearisedPosterior(self.denoise, self.sigma, y)


class AbstractEnergy(AbstractScoreField):
    r"""The energy phi of the smoothed signal Y = X + N(0, sigma^2 I), f(y) ∝ exp(-phi(y)).

    A subclass has four fields and one method, `__call__(y) -> scalar`. It takes one unbatched `y`
    of shape `event_shape`; batch with `jax.vmap`. phi matters only up to an additive constant. The
    constructor checks once that its value is a scalar.

    Attributes:
        sigma: The noise's standard deviation (never the variance), a scalar array.
        event_shape: The shape of one y, of any rank.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a scalar or of shape `event_shape`. With `loc` it gives
            the Gaussian that chains start from, N(loc, scale^2 + sigma^2).
        buffers: Names of the fields that `fit` never trains (see `trainable`): `sigma`, `loc` and
            `scale`; a subclass that trains one of them overrides this.
        one_level: True: an energy is for one noise level, a family for many.
        has_value: True.

    Reference:
        Saremi and Hyvarinen, Neural Empirical Bayes, JMLR 20 (2019), section 2.

    Example:
        A custom Gaussian energy:

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

    has_value: ClassVar[bool] = True

    def __check_init__(self):
        # In its own precision: a float32 network may not accept float64.
        dtype = jnp.result_type(self.sigma)
        check_network("energy", self, self.event_shape, (), dtype, ": its value is a scalar")

    @abc.abstractmethod
    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y), a scalar, known up to a constant.

        Args:
            y: One smoothed signal, of shape `event_shape`.
        """

    def score(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """-grad phi(y), close to grad log f(y), of shape `event_shape`."""
        y = as_event(y, self.event_shape)
        return -jax.grad(self)(y)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact, independent draws of Y, of shape (*shape, *event_shape), if a sampler exists.

        Raises:
            NotImplementedError: If the energy does not have an exact sampler, as learned ones do
                not: `SmoothedDensity.sample` then runs a walk.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exact sampler: run a walk instead")

    def levels(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """The noise level for each u in [0, 1]: always sigma."""
        return jnp.full_like(u, self.sigma)

    def unchecked_at(self, sigma: Float[Array, ""]) -> "AbstractEnergy":
        """The energy at one of its `levels`, which is this energy."""
        del sigma
        return self


class AbstractEnergyFamily(Picklable, AbstractOrFinal):
    """Energies of one law of X over a range of noise levels.

    Attributes:
        event_shape: The shape of one y, of any rank.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a scalar or of shape `event_shape`.
        buffers: Names of the fields that `fit` never trains.
        one_level: False.
    """

    event_shape: eqx.AbstractVar[tuple[int, ...]]
    loc: eqx.AbstractVar[Float[Array, "..."]]
    scale: eqx.AbstractVar[Float[Array, "..."]]

    buffers: ClassVar[tuple[str, ...]] = ("loc", "scale")
    one_level: ClassVar[bool] = False

    @property
    def has_constants(self) -> bool:
        """Whether phi can be -log f itself, with a constant for each level."""
        return True

    def __str__(self) -> str:
        levels = self.levels(jnp.asarray([0.0, 1.0]))
        return _described(self, f"noise levels, sigma = {_range(levels)}")

    @abc.abstractmethod
    def at(self, sigma: ArrayLike) -> AbstractEnergy:
        """The energy at one noise level."""

    @abc.abstractmethod
    def unchecked_at(self, sigma: Float[Array, ""]) -> AbstractEnergy:
        """`at`, for a sigma that is known to be in the range."""

    @abc.abstractmethod
    def levels(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """The noise level for each u in [0, 1], rising, spread evenly over the range."""

    def posterior(
        self,
        y: Float[Array, "*event"],
        sigma: ArrayLike,
        *,
        covariance: AbstractSpread = Full(),  # noqa: B008 (frozen)
        num_levels: int = NUM_LEVELS,
        num_steps: int = NUM_STEPS,
    ) -> LevelsPosterior:
        """The law of X given Y=y, by draws down the noise levels: see `LevelsPosterior`.

        `at(sigma).posterior(y)` takes the law of X given y to be Gaussian, which is wrong if the
        noise mixes modes of X. Here only that of X given Y at the smallest sigma is.

        Args:
            y: One observation, of shape `event_shape`.
            sigma: The noise's standard deviation in y, in the range.
            covariance: The spread of X given Y at the smallest sigma: for large events,
                `empirical_bayes.Isotropic()`.
            num_levels: Steps from one level to the next.
            num_steps: Steps of `GHMC` at each level; a draw costs num_levels (num_steps + 2)
                gradients, with none of them num_levels.
        """
        y = as_event(y, self.event_shape)
        lowest = self.levels(jnp.zeros((), self.loc.dtype))
        sigma = jnp.maximum(self.at(sigma).sigma, lowest)
        steps = {"num_levels": num_levels, "num_steps": num_steps}
        return LevelsPosterior(self.unchecked_at, sigma, lowest, y, covariance, **steps)

    def sample(
        self,
        key: PRNGKeyArray,
        shape: tuple[int, ...] = (),
        *,
        covariance: AbstractSpread = Full(),  # noqa: B008 (frozen)
        num_levels: int = NUM_LEVELS,
        num_steps: int = NUM_STEPS,
    ) -> Float[Array, "..."]:
        """Independent draws of X, from noise down the levels: nothing has to mix.

        Y at the largest sigma is drawn by 96 steps of `GHMC` from N(loc, scale^2 + sigma^2), and X
        given it by `posterior`. The first is right if that sigma is so large that one walk visits
        all of it: twice the spread of X is enough. The draws are of X, not jumps: they have all of
        its variance.

        Args:
            key: A JAX random key.
            shape: The shape of the batch of draws.
            covariance: As for `posterior`.
            num_levels: As for `posterior`.
            num_steps: As for `posterior`.

        Returns:
            An array of shape (*shape, *event_shape).
        """
        steps = {"num_levels": num_levels, "num_steps": num_steps}
        draw = eqx.Partial(_one_of_x, covariance, tuple(steps.items()))
        return drawn(draw, self, check_key(key), shape)


def draws_at(
    family: AbstractEnergyFamily, sigma: Float[Array, ""], key: PRNGKeyArray, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Independent draws of Y at one level, from noise at the largest one down.

    Args:
        family: The energies of all levels.
        sigma: The level.
        key: A JAX random key.
        shape: The shape of the batch of draws.

    Returns:
        An array of shape (*shape, *event_shape).
    """
    return drawn(_one_at, (family, sigma), check_key(key), shape)


def _one_at(operands, key):
    family, sigma = operands
    y, highest, key_down = _noise(family, key)
    levels = geometric(jnp.maximum(highest, sigma), sigma, NUM_LEVELS)
    return down(family.unchecked_at, y, levels, key_down, NUM_STEPS)


def _one_of_x(covariance, steps, family, key):
    y, highest, key_down = _noise(family, key)
    lowest = family.levels(jnp.zeros_like(highest))
    law = LevelsPosterior(family.unchecked_at, highest, lowest, y, covariance, **dict(steps))
    return law.sample(key_down)


def _noise(family, key):
    """Y at the largest level, that level, and a key for the rest.

    A walk makes what N(loc, scale^2 + sigma^2) is not, if sigma is not much larger than scale.
    """
    key_start, key_init, key_walk, key_down = jax.random.split(key, 4)
    highest = family.unchecked_at(family.levels(jnp.ones((), family.loc.dtype)))
    integrator, target = GHMC(), Target(highest, highest.sigma)
    state = integrator.init(target, initial_position(highest, key_start), key_init)
    y = walk(integrator, target, state, key_walk, NUM_LEVELS * NUM_STEPS)[0].position
    return y, highest.sigma, key_down


class NonTrainable(eqx.Module):
    """Arrays that `fit` never trains and weight decay never shrinks.

    Attributes:
        value: A pytree of arrays.
    """

    value: PyTree


def trainable(energy: AbstractScoreField | AbstractEnergyFamily) -> PyTree[bool]:
    """The filter for what `fit` trains: every inexact array except buffers and `NonTrainable`.

    Args:
        energy: The energy; energies inside it keep their own buffers.

    Returns:
        A pytree of booleans with the structure of `energy`, for `equinox.partition`.

    Example:
        In your own training loop, weight decay can't shrink sigma either:

        >>> import equinox as eqx, jax, numpyro_neb as neb
        >>> mlp = eqx.nn.MLP(2, 2, width_size=8, depth=2, key=jax.random.key(0))
        >>> energy = neb.ResidualEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> params, rest = eqx.partition(energy, neb.energies.trainable(energy))
        >>> params.sigma is None
        True
    """
    buffers = getattr(energy, "buffers", ())

    def mark(path, leaf):
        if isinstance(leaf, AbstractScoreField | AbstractEnergyFamily):
            return trainable(leaf)
        if isinstance(leaf, NonTrainable):
            return jax.tree.map(lambda _: False, leaf)
        return eqx.is_inexact_array(leaf) and getattr(path[0], "name", None) not in buffers

    def inner(node):
        own = isinstance(node, AbstractScoreField | AbstractEnergyFamily | NonTrainable)
        return own and node is not energy

    return jax.tree_util.tree_map_with_path(mark, energy, is_leaf=inner)


def initial_position(energy: AbstractScoreField, key: PRNGKeyArray) -> Float[Array, "*event"]:
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


def _described(energy, levels):
    """Three lines: what it is for, the data that it expects, and what `fit` trains of it."""
    trained = jax.tree.leaves(eqx.filter(energy, trainable(energy)))
    name, *others = [type(energy).__name__, *(f"{x.dtype}" for x in trained[:1])]
    count = f"{sum(x.size for x in trained):,} numbers to train{''.join(f', {o}' for o in others)}"
    return "\n".join([
        f"{name} of y of shape {energy.event_shape}, {levels}",
        f"data: loc = {_range(energy.loc)}, scale = {_range(energy.scale)}",
        count,
    ])  # fmt: skip


def _range(values):
    """One number, or the smallest and the largest of several, as text."""
    if isinstance(values, Tracer):
        return str(values.aval)
    low, high = (f"{float(end(np.asarray(values))):.3g}" for end in (np.min, np.max))
    return low if low == high else f"{low} to {high}"


def check_energy(
    energy: Any,
    *,
    conditional: bool = False,
    score: bool = False,
    single: bool = False,
    hint: str = "",
) -> None:
    """Raises a TypeError that says how to wrap a network or function, unless given an energy.

    Args:
        energy: One energy, or several stacked along leading dimensions of their arrays.
        conditional: Whether an `AbstractEnergyFamily` is accepted too.
        score: Whether an `AbstractScoreField` without a value is accepted too.
        single: Whether stacked energies raise a ValueError.
        hint: Text to append, on what else may have been meant.
    """
    wanted = f"energy must be a numpyro_neb.AbstractEnergy, got {kind(energy)}"
    if isinstance(energy, AbstractEnergyFamily):
        at = f"energy must be for one noise level, got a {kind(energy)}: use energy.at(sigma)"
        require(conditional, at, TypeError)
        return
    only = isinstance(energy, AbstractScoreField) and not energy.has_value
    what = f"energy must have a value phi(y), which this needs, got a {kind(energy)}, which has"
    require(score or not only, f"{what} a score alone", TypeError)
    has_one = isinstance(getattr(energy, "energy", None), AbstractEnergy)
    require(not has_one, f"{wanted}: give its .energy", TypeError)
    require(
        isinstance(energy, AbstractScoreField),
        f"{wanted}: wrap a network or function that returns a scalar as"
        " NetworkEnergy(network, sigma, event_shape), and one that returns an array of the event"
        f" shape as ResidualEnergy(network, sigma, event_shape){hint}",
        TypeError,
    )
    stack = jnp.shape(energy.sigma)
    require(
        stack == () or not single,
        f"energy must be a single one, with a scalar sigma, got a stack of shape {stack}:"
        " take its energies one by one",
    )


def checked_buffers(
    sigma: Any, event_shape: Any, loc: Any, scale: Any
) -> tuple[Float[Array, ""], tuple[int, ...], Float[Array, "..."], Float[Array, "..."]]:
    """Checks the arguments that energies have in common; returns arrays and a tuple."""
    event_shape = check_sizes("event_shape", event_shape)
    for name, value in (("loc", loc), ("scale", scale)):
        shape = check_reals(name, value).shape
        wanted = f"a scalar or of the event shape {event_shape}"
        require(shape in ((), event_shape), f"{name} must be {wanted}, got shape {shape}")
    # A float32 energy, say from a file, stays float32 when x64 makes float64 JAX's default.
    narrow = all(getattr(value, "dtype", None) == jnp.float32 for value in (sigma, loc, scale))
    dtype = jnp.float32 if narrow else float
    buffers = (
        check_positive("sigma", sigma),
        finite("loc", loc),
        check_positive("scale", scale, scalar=False),
    )
    sigma, loc, scale = (jnp.asarray(buffer, dtype) for buffer in buffers)
    if not any(isinstance(buffer, Tracer) for buffer in (sigma, loc)):
        # Not in JAX: inside of jax.jit, what it computes from known values is traced too.
        level, limits = float(sigma), jnp.finfo(sigma.dtype)
        low, high = (float(x) ** 0.5 for x in (limits.tiny, limits.max))
        squares = f"sigma must be between {low:.2g} and {high:.2g}, to be squared in {sigma.dtype}"
        require(low <= level <= high, f"{squares}, got {level:g}: use other units")
        text = too_coarse("loc", float(np.abs(np.asarray(loc)).max()), level, sigma.dtype)
        require(not text, text)
    return sigma, event_shape, loc, scale
