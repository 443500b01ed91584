"""One network for a range of noise levels."""

from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import (
    Numbers,
    check_network,
    check_positive,
    check_reals,
    check_type,
    require,
)
from numpyro_neb._internal.configurations import (
    MODULE,
    NUMBERS,
    SHAPE,
    TRUTH,
    Values,
    configured,
)
from numpyro_neb._internal.events import as_event
from numpyro_neb.energies.base import (
    AbstractEnergy,
    AbstractEnergyFamily,
    NonTrainable,
    checked_buffers,
    draws_at,
)
from numpyro_neb.energies.network import ResidualEnergy


def _from_file(*, preconditioned: bool = False, **words: Any) -> "ConditionalEnergy":
    # Files of 0.1 have no such word, and networks of the form without it.
    return ConditionalEnergy(**words, preconditioned=preconditioned)


@configured(
    "ConditionalEnergy",
    {"event_shape": SHAPE, "sigma_range": NUMBERS, "network": MODULE, "preconditioned": TRUTH},
    arrays={"loc": Values.FINITE, "scale": Values.POSITIVE},
    make=_from_file,
    fields=lambda family: vars(family) | {"preconditioned": family.preconditioned},
)
@final
class ConditionalEnergy(AbstractEnergyFamily):
    r"""One network for a range of noise levels: `at(sigma)` is the energy at one of them.

    With d the number of coordinates and all operations by coordinate,

        phi(y; sigma) = norm(y - r)^2 / (2 sigma^2) + c + d b(t) + e,
        y - r = ((1 - a(t)) sigma + a(t) sqrt(scale^2 + sigma^2)) z - scale network(z, t),
        z = (y - loc) / sqrt(scale^2 + sigma^2),

    where c = sum log(2 pi (scale^2 + sigma^2)) / 2 is the Gaussian's constant, t goes from -1 to 1
    as log sigma goes through the range, and a and b are polynomials of degree 5 that are trained
    too, zero at first, b(1) = 0. e is zero unless `empirical_bayes.normalized` sets it. The
    network's input has standard deviation 1 at every level, and
    without the network phi is that of X ~ N(loc, scale^2), normalised, and the jump is exact, so
    that a range from a small part of the data's spread to several times it trains well. a goes from
    the network as a correction of the Gaussian, 0, to the network as an estimate of x, 1:
    perceptrons at small sigma learn that better. With a network of a scalar, such as
    `networks.ConvNet`, the first term is norm(z)^2 / 2 + network(z, t).

    `fit` trains it on clean data. `denoising_loss` draws a log-uniform sigma for each example, and
    leaves the constants b open. `dual_score_loss` also matches the derivative of phi by log sigma,
    which ties them to the largest sigma, where the noise hides X and phi is the Gaussian's: phi is
    then -log f itself, as well as the training went. What denoising lacks at each level adds up
    from the largest sigma down. `empirical_bayes.normalized` sets the constants of all levels,
    whatever the training, and log Z by `empirical_bayes.log_normalizer` says how well phi is
    normalised: it should be zero within its standard error.

    Draws of X and of X given y, from the largest sigma down: see `sample` and `posterior`.

    Args:
        network: Maps an array of shape `event_shape` and the scalar t to an array of that shape, as
            `networks.MLP(..., conditional=True)` does, or to a scalar.
        event_shape: The shape of one y.
        sigma_range: The smallest and the largest sigma. For draws from noise, from a part of the
            distance that matters to several times the largest spread of X, that of its first
            principal component.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.
        preconditioned: False is the form of release 0.1, which its files have: phi is the first
            term alone, and y - r = scale (w - network(w, t)) with w = (y - loc) / scale.

    Attributes:
        skip: The coefficients of a, by Chebyshev polynomials of degree 0 to 5, over ten so that
            they learn as fast as a network's weights; None if not preconditioned.
        offset: Those of b, of degree 1 to 5.
        constant: e, never trained.

    Raises:
        TypeError: If the network is not callable.
        ValueError: If sigma_range is not two rising, positive numbers, scale is not positive, a
            shape does not fit, or the network's output is neither of shape `event_shape` nor a
            scalar.

    Reference:
        Song and Ermon, Generative modeling by estimating gradients of the data distribution,
        NeurIPS 2019, for one network and many noise levels; Karras et al., Elucidating the design
        space of diffusion-based generative models, NeurIPS 2022, for its scaling.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((2,), width_size=8, depth=2, conditional=True,
        ...                        key=jax.random.key(0))
        >>> energies = neb.ConditionalEnergy(mlp, (2,), sigma_range=(0.1, 1.0))
        >>> energies.at(0.5).denoise(jnp.zeros(2)).shape
        (2,)
    """

    network: Callable[[Float[Array, "*event"], Float[Array, ""]], Float[Array, "..."]]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    sigma_range: tuple[float, float] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]
    skip: Float[Array, " a"] | None
    offset: Float[Array, " b"] | None
    constant: Float[Array, ""] | None

    buffers: ClassVar[tuple[str, ...]] = ("loc", "scale", "constant")

    def __init__(
        self,
        network: Callable,
        event_shape: tuple[int, ...],
        sigma_range: tuple[float, float],
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
        *,
        preconditioned: bool = True,
    ):
        ends = np.asarray(check_reals("sigma_range", sigma_range))
        rising = ends.shape == (2,) and 0 < ends[0] < ends[1] < np.inf
        require(rising, f"sigma_range must be two rising, positive numbers, got {sigma_range}")
        low, high = map(float, ends)
        self.network, self.sigma_range = network, (low, high)
        _, self.event_shape, self.loc, self.scale = checked_buffers(low, event_shape, loc, scale)
        check_type("preconditioned", preconditioned, bool, "a bool")
        dtype = self.loc.dtype
        self.skip = jnp.zeros(_DEGREE + 1, dtype) if preconditioned else None
        self.offset = jnp.zeros(_DEGREE, dtype) if preconditioned else None
        self.constant = jnp.zeros((), dtype) if preconditioned else None

    def __check_init__(self):
        check_type("network", self.network, Callable, "callable")
        shape, t = self.event_shape, jnp.zeros((), self.loc.dtype)

        def out(y):
            value = self.network(y, t)
            scalar = self.preconditioned and getattr(value, "shape", None) == ()
            return jnp.broadcast_to(value, shape) if scalar else value

        check_network("network", out, shape, shape, t.dtype)

    @property
    def preconditioned(self) -> bool:
        """Whether it has the form above, not that of release 0.1."""
        return self.skip is not None

    @property
    def has_constants(self) -> bool:
        """That of the form: phi of release 0.1 is a square, without a constant."""
        return self.preconditioned

    def at(self, sigma: ArrayLike) -> AbstractEnergy:
        """The energy at one noise level.

        Args:
            sigma: The noise's standard deviation, in `sigma_range`.

        Raises:
            ValueError: If sigma is outside `sigma_range`: the network is not trained there.
        """
        low, high = self.sigma_range
        level: Any = jnp.asarray(check_positive("sigma", sigma), float)
        slack = 1e-6  # lets the range's ends in when rounded to float32
        outside = (level < low * (1 - slack)) | (level > high * (1 + slack))
        message = f"sigma must be in sigma_range = ({low:g}, {high:g})"
        if not isinstance(level, Tracer):
            require(not outside, f"{message}, got {level:g}")
        return self.unchecked_at(eqx.error_if(level, outside, message))

    def unchecked_at(self, sigma: Float[Array, ""]) -> AbstractEnergy:
        """`at`, for a sigma that is known to be in the range."""
        # In the energy's own precision: a float32 network, say from a file, may reject float64.
        sigma = sigma.astype(self.loc.dtype)
        if self.preconditioned:
            return LevelEnergy(self, sigma)
        network = AtLevel(self.network, NonTrainable(self._time(sigma)))
        return ResidualEnergy(network, sigma, self.event_shape, self.loc, self.scale)

    def levels(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """The noise level for each u in [0, 1], log-uniform over `sigma_range`."""
        # Python's floats, which keep u's precision.
        low, high = map(float, np.log(self.sigma_range))
        return jnp.exp(low + (high - low) * u)

    def shifted(
        self,
        sigma: Float[Array, " level"],
        by: Float[np.ndarray, " level"],
        error: Float[np.ndarray, " level"],
    ) -> "ConditionalEnergy":
        """The family with other constants: something is added to phi at each noise level.

        Args:
            sigma: Noise levels.
            by: What to add at each of them, met by weighted least squares of the constants.
            error: The standard errors of `by`, positive.
        """
        slopes = jax.vmap(lambda t: self._offsets(_chebyshev(t)))(self._time(sigma))
        terms = np.column_stack([np.ones(len(slopes)), slopes]) / error[:, None]
        found, *_ = np.linalg.lstsq(terms, by / error, rcond=None)
        found = jnp.asarray(found, self.loc.dtype)
        before: Any = self.constant, self.offset
        after = before[0] + found[0], before[1] + found[1:]
        return eqx.tree_at(lambda family: (family.constant, family.offset), self, after)

    def _offsets(self, polynomials):
        """What multiplies the coefficients of b in phi, where the polynomials are as given."""
        return 10 * prod(self.event_shape) * (polynomials[1:] - 1)

    def _time(self, sigma):
        """t, from -1 at the smallest sigma to 1 at the largest."""
        low, high = self.sigma_range
        return 2 * (jnp.log(sigma) - jnp.log(low)) / (jnp.log(high) - jnp.log(low)) - 1


@configured("energies.LevelEnergy", {"family": MODULE}, arrays={"sigma": Values.POSITIVE})
@final
class LevelEnergy(AbstractEnergy):
    """A `ConditionalEnergy` at one noise level: what `ConditionalEnergy.at` returns.

    Attributes:
        family: The energies of all levels. Its network trains, if this energy does.
        sigma: The noise level, a scalar array, never trained.
    """

    family: ConditionalEnergy
    sigma: Float[Array, ""]

    def __init__(self, family: ConditionalEnergy, sigma: Float[Array, ""]):
        self.family, self.sigma = family, sigma

    @property
    def event_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The shape of one y."""
        return self.family.event_shape

    @property
    def loc(self) -> Float[Array, "..."]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The mean of X."""
        return self.family.loc

    @property
    def scale(self) -> Float[Array, "..."]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The standard deviation of X."""
        return self.family.scale

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y; sigma), see `ConditionalEnergy`."""
        y, family, t = as_event(y, self.event_shape), self.family, self.family._time(self.sigma)
        root = jnp.sqrt(self.scale**2 + self.sigma**2)
        z = (y - self.loc) / root
        out = family.network(z, t)
        polynomials, skip = _chebyshev(t), jnp.asarray(family.skip)
        logs = jnp.sum(jnp.broadcast_to(jnp.log(2 * jnp.pi * root**2), y.shape)) / 2
        levels = jnp.sum(jnp.asarray(family.offset) * family._offsets(polynomials))
        constant = logs + jnp.asarray(family.constant) + levels
        if jnp.shape(out) != self.event_shape:
            return jnp.sum(z**2) / 2 + out + constant
        gain = 10 * jnp.sum(skip * polynomials)
        residual = (1 + gain * (root / self.sigma - 1)) * z - self.scale / self.sigma * out
        return jnp.sum(residual**2) / 2 + constant

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of Y, from the largest sigma of the family down to this one.

        Args:
            key: A JAX random key.
            shape: The shape of the batch of draws.

        Returns:
            An array of shape (*shape, *event_shape): see `AbstractEnergyFamily.sample`.
        """
        return draws_at(self.family, self.sigma, key, shape)


_DEGREE = 5


def _chebyshev(t):
    """The Chebyshev polynomials of t, of degree 0 to 5."""
    values = [jnp.ones_like(t), t]
    for _ in range(_DEGREE - 1):
        values.append(2 * t * values[-1] - values[-2])
    return jnp.stack(values)


def _at_some_level(network: Callable, **_: Any) -> "AtLevel":
    return AtLevel(network, NonTrainable(jnp.zeros(())))


@configured(
    "energies.AtLevel",
    {"network": MODULE},
    arrays={"level.value": Values.FINITE},
    make=_at_some_level,
)
class AtLevel(eqx.Module):
    """A conditional network at one noise level t, in the form of release 0.1.

    Attributes:
        network: The network of y and t.
        level: t, from -1 at the smallest sigma to 1 at the largest. It is never trained.
    """

    network: Callable
    level: NonTrainable

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """network(y, t)."""
        return self.network(y, self.level.value)
