"""The exact energy of a smoothed mixture: kernel density, nonparametric MLE, Gaussian mixture."""

import warnings
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.util import find_stack_level

from numpyro_neb._internal.checks import (
    Numbers,
    check_key,
    check_positive,
    check_reals,
    check_shape,
    finite,
    require,
)
from numpyro_neb._internal.configurations import Values, configured
from numpyro_neb._internal.events import as_event, too_coarse
from numpyro_neb.energies.base import AbstractEnergy
from numpyro_neb.posteriors.components import Components, contract
from numpyro_neb.posteriors.mixture import MixturePosterior


@configured(
    "MixtureEnergy",
    arrays={
        "locs": Values.FINITE,
        "sigma": Values.POSITIVE,
        "log_weights": Values.BOUNDED_ABOVE,
        "spreads": Values.NOT_NEGATIVE,
        "axes": Values.FINITE,
        "loc": Values.FINITE,
        "scale": Values.NOT_NEGATIVE,  # a coordinate may have no spread at all
    },
    # Covariances are stored as spreads and axes; the axes have the covariances' shape.
    make=lambda locs, sigma, axes=None, **_: MixtureEnergy(locs, sigma, covariances=axes),
)
@final
class MixtureEnergy(AbstractEnergy):
    r"""phi(y) = -log sum_i w_i N(y; m_i, sigma^2 I + C_i), exact and normalised.

    X has the law sum_i w_i N(m_i, C_i). With C_i = 0 and the data as locations, f is Parzen's
    kernel density: `MixtureEnergy(data, sigma)`.

    Args:
        locs: The locations m_i, of shape (K, *event_shape); one-dimensional data of shape (K,) have
            the event shape ().
        sigma: The noise's standard deviation, positive.
        log_weights: log w_i up to a constant, of shape (K,); equal weights by default. -inf drops
            a component.
        covariances: The C_i, positive semi-definite, of shape (K, d, d) over the flattened event;
            zero by default.

    Attributes:
        loc: The mean of X, of shape `event_shape`.
        scale: The standard deviation of X in each coordinate, of shape `event_shape`.

    Memory: components are processed 2,048 at a time, so a batch of n points needs 2,048 n numbers
    in addition to the components and the result, however large K is (2,048 / d at a time, but no
    fewer than 16, with covariances and where rounding asks for differences).

    Rounding: log densities are right to about .01 nats for locations and y as the dtype holds
    them, however far from zero and whatever the scales of the columns. Where locations are more
    than about 290 sigma from their mean, in float32, that takes their differences from each y in
    place of a matrix product, and more time.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, the square of sigma or of a
            distance is too small or too large for the dtype, or a covariance is not symmetric and
            positive semi-definite, up to rounding.

    Warns:
        UserWarning: If the dtype can't hold sigma next to numbers of the locations' size.

    Reference:
        Parzen 1962; Miyasawa 1961; NEB section 2.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> energy.denoise(jnp.array(0.5))  # tanh(y / sigma^2)
        Array(0.46211717, dtype=float32)
    """

    locs: Float[Array, "K *event"]
    sigma: Float[Array, ""]
    log_weights: Float[Array, " K"]
    # C_i = axes_i diag(spreads_i) axes_i', so that every sigma shares one factorisation.
    spreads: Float[Array, "K d"] | None
    axes: Float[Array, "K d d"] | None
    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        locs: Numbers,
        sigma: ArrayLike,
        log_weights: Numbers | None = None,
        covariances: Numbers | None = None,
    ):
        locs = finite("locs", locs)
        some = locs.ndim > 0 and locs.size > 0
        require(some, f"locs must have shape (K, *event_shape) and not be empty, got {locs.shape}")
        count, dim = locs.shape[0], locs[0].size
        self.locs, self.event_shape = locs, locs.shape[1:]
        self.sigma = _squared(sigma)
        self.log_weights = _normalised(log_weights, count)
        self.spreads, self.axes = _factorised(covariances, (count, dim, dim))
        _check_range(self.locs, self.sigma)
        weights = jnp.exp(self.log_weights)
        flat = locs.reshape(count, dim)
        # About one of the locations: weights that sum to one but for rounding don't move the mean.
        mean = flat[0] + contract("k,kd->d", weights, flat - flat[:1])
        variance = contract("k,kd->d", weights, (flat - mean[None]) ** 2)
        if self.spreads is not None and self.axes is not None:
            variance += contract("k,kij,kj->i", weights, self.axes**2, self.spreads)
        self.loc = mean.reshape(self.event_shape)
        self.scale = jnp.sqrt(variance).reshape(self.event_shape)

    @property
    def components(self) -> Components:
        """The law of X."""
        return Components(self.locs, self.log_weights, self.spreads, self.axes, self.loc)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y), normalised: exp(-phi) integrates to one."""
        y = as_event(y, self.event_shape)
        return -self.components.log_density(y, self.sigma)

    def score(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """-grad phi(y), the components' scores averaged by their responsibilities."""
        y = as_event(y, self.event_shape)
        if self.spreads is None:
            return (self.denoise(y) - y) / self.sigma**2

        def scores(part):
            scaled = part.rotated(y) / (part.spreads + self.sigma**2)
            return None, -contract("kij,kj->ki", part.axes, scaled)

        return self.components.average(y, self.sigma, scores).reshape(self.event_shape)

    def denoise(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The jump: the components' posterior means, averaged by their responsibilities.

        Equal to y - sigma^2 grad phi, without that formula's cancellation of two large numbers far
        from the data.
        """
        return self.posterior(y).mean

    def posterior(self, y: Float[Array, "*event"]) -> MixturePosterior:
        """The exact law of X given Y=y, again a mixture."""
        y = as_event(y, self.event_shape)
        return MixturePosterior(self.components, self.sigma, y)

    def at(self, sigma: ArrayLike) -> "MixtureEnergy":
        """The same law of X at another noise level.

        Args:
            sigma: The new standard deviation, positive; gradients flow through it.

        Example:
            >>> import jax.numpy as jnp, numpyro_neb as neb
            >>> neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0).at(0.5).sigma
            Array(0.5, dtype=float32)
        """
        return self.unchecked_at(_squared(sigma))

    def unchecked_at(self, sigma: Float[Array, ""]) -> "MixtureEnergy":
        """`at`, for a sigma that is known to be positive."""
        return eqx.tree_at(lambda e: e.sigma, self, sigma)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact, independent draws of Y.

        Args:
            key: A JAX random key.
            shape: The shape of the batch of draws.

        Returns:
            An array of shape (*shape, *event_shape).
        """
        check_key(key)
        key_component, key_within, key_noise = jax.random.split(key, 3)
        index = jax.random.categorical(key_component, self.log_weights, shape=shape)
        y = self.locs[index]
        y += self.sigma * jax.random.normal(key_noise, y.shape, y.dtype)
        if self.spreads is None or self.axes is None:
            return y
        z = jax.random.normal(key_within, (*shape, self.spreads.shape[1]), y.dtype)
        x = jnp.einsum("...ij,...j->...i", self.axes[index], jnp.sqrt(self.spreads[index]) * z)
        return y + x.reshape(y.shape)


def _normalised(log_weights, count):
    if log_weights is None:
        return jnp.full((count,), -jnp.log(count), dtype=float)
    log_weights = jnp.asarray(check_reals("log_weights", log_weights), dtype=float)
    check_shape("log_weights", log_weights, (count,))
    total = jax.nn.logsumexp(log_weights)
    known = isinstance(total, Tracer) or np.isfinite(total)
    require(known, "log_weights must hold a finite value, and no NaN or +infinity")
    return log_weights - total


def _squared(sigma):
    """A noise level, whose square is also a number of the dtype."""
    sigma = jnp.asarray(check_positive("sigma", sigma), float)
    if not isinstance(sigma, Tracer):
        info = jnp.finfo(sigma.dtype)
        # A millionth of sigma^2 still has all its digits.
        low, high = 1e3 * np.sqrt(float(info.tiny)), 1e-3 * np.sqrt(float(info.max))
        wanted = f"between {low:.1g} and {high:.1g} in {sigma.dtype}, to be squared"
        require(low <= sigma <= high, f"sigma must be {wanted}, got {sigma:g}: change the units")
    return sigma


def _check_range(locs, sigma):
    """Raises an error if squares of distances overflow, warns if sigma is lost in rounding."""
    if isinstance(locs, Tracer) or isinstance(sigma, Tracer):
        return
    host = np.asarray(locs)
    largest, limit = float(np.abs(host).max()), 1e-3 * np.sqrt(float(jnp.finfo(locs.dtype).max))
    wanted = f"locs must be at most {limit:.1g} in {locs.dtype}, to be squared"
    require(largest <= limit, f"{wanted}, got {largest:g}: is it a fill value?")
    if text := too_coarse("locs", largest, float(sigma), locs.dtype):
        warnings.warn(text, stacklevel=find_stack_level())


def _factorised(covariances, shape):
    """The eigenvalues and eigenvectors of covariances, in JAX's default float."""
    if covariances is None:
        return None, None
    given = check_reals("covariances", covariances)
    check_shape("covariances", given, shape)
    if isinstance(given, Tracer):
        spreads, axes = jnp.linalg.eigh(finite("covariances", given))
        return jnp.maximum(spreads, 0), axes
    finite("covariances", given)
    # In float64: the variances of columns of unlike scales lie far apart.
    host = np.asarray(given, np.float64)
    spreads, axes = np.linalg.eigh(host)
    # Each direction is judged in its own units, as a correlation: NumPy's covariance of more
    # columns than rows, or one computed in float32, has negative eigenvalues of that rounding.
    roots = np.sqrt(np.maximum(np.diagonal(host, axis1=1, axis2=2), 0))
    units = np.where(roots > 0, roots, 1)
    scaled = host / units[:, :, None] / units[:, None]
    rounding = [jnp.finfo(float).eps]
    rounding += [jnp.finfo(given.dtype).eps] if jnp.issubdtype(given.dtype, jnp.floating) else []
    slack = 1e2 * float(max(rounding))
    symmetric = np.abs(scaled - scaled.swapaxes(1, 2)).max() <= slack
    positive = spreads.min() >= 0
    if not positive:
        values = np.linalg.eigvalsh(scaled)
        positive = np.all(values[:, 0] >= -slack / 10 * values[:, -1])
    require(symmetric and positive, "covariances must be symmetric and positive semi-definite")
    return jnp.asarray(np.maximum(spreads, 0), float), jnp.asarray(axes, float)
