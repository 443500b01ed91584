"""The law of X given Y=y: exact for a mixture, a Gaussian of matched moments otherwise."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, constraints

from numpyro_neb._internal.checks import check_events, check_key, check_positive, positive
from numpyro_neb._internal.convolutions import for_compiled_loops
from numpyro_neb.energies.base import AbstractEnergy
from numpyro_neb.energies.mixture import MixtureEnergy


class _Posterior(Distribution):
    """What the two posteriors share: a law of X with the event shape of an energy.

    `cdf`, `icdf` and `lfsr` are those of each coordinate by itself.
    """

    arg_constraints: dict = {}  # noqa: RUF012 (NumPyro declares it so)

    @constraints.dependent_property(is_discrete=False)  # pyright: ignore[reportArgumentType]
    def support(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """All of R^d."""
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def has_rsample(self) -> bool:
        """False: a draw of the component has no derivative."""
        return False

    @property
    def stddev(self) -> Float[Array, "..."]:
        """The standard deviation of each coordinate."""
        return jnp.sqrt(self.variance)

    def interval(self, probability: float = 0.9) -> tuple[Array, Array]:
        """Equal-tailed credible intervals, one for each coordinate: the lower and upper ends.

        Raises:
            ValueError: If probability is not between 0 and 1.
        """
        check_positive("probability", probability, 1.0)
        tail = (1 - probability) / 2
        return self.icdf(tail), self.icdf(1 - tail)


class MixturePosterior(_Posterior):
    r"""The exact law of X given Y=y under a `MixtureEnergy`, itself a mixture.

        sum_i r_i N(m_i + C_i (C_i + sigma^2 I)^-1 (y - m_i), sigma^2 C_i (C_i + sigma^2 I)^-1)

    with the responsibilities r_i = P(i given y). With C_i = 0 it lives on the locations, and
    `log_prob` is the log of a probability, not of a density: -inf away from them.

    Args:
        energy: The mixture.
        y: Observations, of shape (*batch, *event_shape).
        sigma: The noise of each, of y's batch shape; by default the energy's.

    Reference:
        Miyasawa 1961; Stephens, False discovery rates: a new deal, Biostatistics 18 (2017), for the
        local false sign rate.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> posterior = neb.posterior_distribution(energy, jnp.array([-0.5, 0.0]))
        >>> posterior.mean  # tanh(y / sigma^2)
        Array([-0.46211717,  0.        ], dtype=float32)
        >>> jnp.allclose(posterior.lfsr, 1 / (1 + jnp.exp(jnp.array([1.0, 0.0]))))  # P(X = 1)
        Array(True, dtype=bool)
    """

    pytree_data_fields = ("_arrays", "y", "sigma")
    pytree_aux_fields = ("_static",)

    def __init__(
        self,
        energy: MixtureEnergy,
        y: Float[Array, "..."],
        sigma: Float[Array, "*batch"] | None = None,
        *,
        validate_args: bool | None = None,
    ):
        self._arrays, self._static = eqx.partition(energy, eqx.is_array)
        batch = check_events("y", y, energy.event_shape)
        self.y = y
        if sigma is not None and not isinstance(sigma, Tracer):
            sigma = positive("sigma", sigma)
        self.sigma = jnp.broadcast_to(energy.sigma if sigma is None else sigma, batch)
        super().__init__(batch, energy.event_shape, validate_args=validate_args)

    @property
    def energy(self) -> MixtureEnergy:
        """The mixture."""
        return eqx.combine(self._arrays, self._static)

    @property
    def mean(self) -> Float[Array, "..."]:
        """E[X given Y=y]."""
        return self._each(_mean)

    @property
    def variance(self) -> Float[Array, "..."]:
        """Var(X given Y=y) of each coordinate."""
        return self._each(_variance)

    @property
    def covariance_matrix(self) -> Float[Array, "*batch d d"]:
        """Cov(X given Y=y), over the flattened event."""
        return self._each(_covariance)

    @property
    def lfsr(self) -> Float[Array, "..."]:
        """The local false sign rate of each coordinate, min(P(X <= 0), P(X >= 0)) given Y=y."""
        return self._each(_lfsr)

    def cdf(self, value: ArrayLike) -> Float[Array, "..."]:
        """P(X <= value given Y=y) of each coordinate, over any leading dimensions of `value`."""
        wide, value = self._broadcast(value)
        return wide._each(_cdf, value)

    def icdf(self, q: ArrayLike) -> Float[Array, "..."]:
        """The quantile at q of each coordinate: the least value whose `cdf` reaches q.

        NaN where q is not between 0 and 1.
        """
        wide, q = self._broadcast(q)
        if self.energy.spreads is not None:
            return wide._each(_quantile_of_gaussians, q)
        locs = self.energy.locs
        order = jnp.argsort(locs.reshape(len(locs), -1), axis=0)  # once for all observations
        return wide._each(_quantile_of_atoms, q, shared=(order,))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of X, of shape (*sample_shape, *batch_shape, *event_shape)."""
        keys = jax.random.split(check_key(key), self.batch_shape)
        sample_shape = tuple(sample_shape)
        draws = self._each(_draws, keys, shared=(sample_shape,))
        rank, size = len(self.batch_shape), len(sample_shape)
        return jnp.moveaxis(draws, range(rank, rank + size), range(size))

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Float[Array, "..."]:  # noqa: ARG002
        """The log density at `value`; where C_i = 0, the log probability of it."""
        energy, value = self.energy, jnp.asarray(value)
        spreads = energy.spreads
        if spreads is not None and not isinstance(spreads, Tracer) and not np.all(spreads > 0):
            raise ValueError("log_prob needs a mixture whose covariances are positive definite")
        check_events("value", value, self.event_shape)
        wide, value = self._broadcast(value)
        return wide._each(_log_prob, value)

    def _broadcast(self, value):
        """The posterior and the value with the batch that both have together."""
        value = jnp.asarray(value, self.y.dtype)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        batch = shape[: len(shape) - len(self.event_shape)]
        wide = jnp.broadcast_to(self.y, shape), jnp.broadcast_to(self.sigma, batch)
        return MixturePosterior(self.energy, *wide), jnp.broadcast_to(value, shape)

    def _each(self, fn: Callable, *values: Array, shared: tuple[Any, ...] = ()) -> Any:
        """fn(energy, y, *values, *shared) of each observation, in chunks of what `_SIZE` allows."""
        energy, batch = self.energy, self.batch_shape
        operands = (self.y, self.sigma, *values)
        operands = tuple(a.reshape(-1, *a.shape[len(batch) :]) for a in operands)
        out = _mapped(fn, energy, operands, shared, max(1, _SIZE // energy.locs.size))
        return out.reshape(*batch, *out.shape[1:])


@eqx.filter_jit
def _mapped(fn, energy, operands, shared, at_once):
    def one(operands):
        y, sigma, *rest = operands
        return fn(eqx.tree_at(lambda e: e.sigma, energy, sigma), y, *rest, *shared)

    if len(operands[0]) <= at_once:
        return jax.vmap(one)(operands)
    return jax.lax.map(one, operands, batch_size=at_once)


class GaussianPosterior(_Posterior):
    r"""The Gaussian with the mean and the covariance of X given Y=y.

    Not the law of X given Y, unless X is Gaussian, but the two moments that an energy knows of it.

    Args:
        mean: E[X given Y=y], of shape (*batch, *event_shape).
        covariance_matrix: Cov(X given Y=y) over the flattened event, of shape (*batch, d, d). A
            learned energy's need not be positive definite: an eigenvalue below the least that the
            dtype tells from zero beside the largest is raised to that, and `projected` is the share
            of those that were.

    Reference:
        Efron, Tweedie's formula and selection bias, JASA 106 (2011).

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro_neb.empirical_bayes.posteriors import GaussianPosterior
        >>> posterior = GaussianPosterior(jnp.zeros(2), jnp.diag(jnp.array([1.0, 4.0])))
        >>> posterior.lfsr
        Array([0.5, 0.5], dtype=float32)
    """

    pytree_data_fields = ("loc", "axes", "roots", "projected")

    def __init__(
        self,
        mean: Float[Array, "..."],
        covariance_matrix: Float[Array, "*batch d d"],
        *,
        validate_args: bool | None = None,
    ):
        values, self.axes = jnp.linalg.eigh(covariance_matrix)
        least = jnp.finfo(values.dtype).eps * values.shape[-1] * jnp.abs(values).max(-1)
        least = jnp.maximum(least, jnp.finfo(values.dtype).tiny)[..., None]
        self.projected = jnp.mean(values < -least, -1, dtype=values.dtype)
        self.roots = jnp.sqrt(jnp.maximum(values, least))
        self.loc = mean
        rank = covariance_matrix.ndim - 2
        super().__init__(mean.shape[:rank], mean.shape[rank:], validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """True: a draw is a differentiable function of the mean and the covariance."""
        return True

    @property
    def mean(self) -> Float[Array, "..."]:
        """E[X given Y=y]."""
        return self.loc

    @property
    def covariance_matrix(self) -> Float[Array, "*batch d d"]:
        """Cov(X given Y=y), over the flattened event."""
        scaled = self.axes * self.roots[..., None, :]
        return scaled @ jnp.swapaxes(scaled, -1, -2)

    @property
    def variance(self) -> Float[Array, "..."]:
        """Var(X given Y=y) of each coordinate."""
        variance = jnp.sum((self.axes * self.roots[..., None, :]) ** 2, -1)
        return variance.reshape(self.loc.shape)

    @property
    def lfsr(self) -> Float[Array, "..."]:
        """The local false sign rate of each coordinate, min(P(X <= 0), P(X >= 0)) given Y=y."""
        return ndtr(-jnp.abs(self.loc) / self.stddev)

    def cdf(self, value: ArrayLike) -> Float[Array, "..."]:
        """P(X <= value given Y=y) of each coordinate."""
        return ndtr((value - self.loc) / self.stddev)

    def icdf(self, q: ArrayLike) -> Float[Array, "..."]:
        """The quantile at q of each coordinate."""
        return self.loc + self.stddev * ndtri(jnp.asarray(q, self.loc.dtype))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of X, of shape (*sample_shape, *batch_shape, *event_shape)."""
        noise = jax.random.normal(
            check_key(key), (*sample_shape, *self.roots.shape), self.roots.dtype
        )
        x = jnp.einsum("...ij,...j->...i", self.axes, self.roots * noise)
        return self.loc + x.reshape(*sample_shape, *self.loc.shape)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Float[Array, "..."]:  # noqa: ARG002
        """The log density at `value`."""
        value = jnp.asarray(value)
        batch = check_events("value", value, self.event_shape)
        centred = jnp.broadcast_to(
            value - self.loc, jnp.broadcast_shapes(value.shape, self.loc.shape)
        )
        centred = centred.reshape(*jnp.broadcast_shapes(batch, self.batch_shape), -1)
        scaled = jnp.einsum("...ij,...i->...j", self.axes, centred) / self.roots
        return -jnp.sum(scaled**2 / 2 + jnp.log(self.roots) + jnp.log(2 * jnp.pi) / 2, -1)


def covariance_product(
    energy: AbstractEnergy, y: Float[Array, "*event"]
) -> Callable[[Float[Array, "*event"]], Float[Array, "*event"]]:
    """The map of v to Cov(X given Y=y) v, without the matrix.

    For a mixture an average over its components; for another energy sigma^2 times a
    Jacobian-vector product of the jump, whose convolutions are matrix products: it may be used in a
    compiled loop.

    Args:
        energy: The energy.
        y: One observation, of shape `event_shape`.
    """
    if isinstance(energy, MixtureEnergy):
        mean = _mean(energy, y).reshape(-1) - energy.loc.reshape(-1)

        def product(v):
            def between(part):
                centred = energy.posterior_means(y, part) - mean[None]
                return centred @ v.reshape(-1), centred

            def within(part):
                scaled = _shrunk(energy, part) * jnp.einsum("kji,j->ki", part.axes, v.reshape(-1))
                return jnp.ones_like(part.log_weights), jnp.einsum("kij,kj->ki", part.axes, scaled)

            total = energy.average(y, between)
            if energy.spreads is not None:
                total += energy.average(y, within)
            return total.reshape(v.shape)

        return product
    _, jacobian = jax.linearize(for_compiled_loops(energy.denoise), y)
    return lambda v: energy.sigma**2 * jacobian(v)


# As many observations are worked on at once as keep the components' numbers below this.
_SIZE = 2**22


def _mean(energy, y):
    return energy.denoise(y)


def _variance(energy, y):
    mean = _mean(energy, y).reshape(-1) - energy.loc.reshape(-1)

    def values(part):
        squares = (energy.posterior_means(y, part) - mean[None]) ** 2 + _variances(energy, part)
        return jnp.ones_like(part.log_weights), squares

    return energy.average(y, values).reshape(y.shape)


def _covariance(energy, y):
    r, means = jnp.exp(energy.log_responsibilities(y)), energy.posterior_means(y)
    centred = means - (r @ means)[None]
    between = (r[:, None] * centred).T @ centred
    if energy.spreads is None:
        return between
    shrunk = _shrunk(energy, energy.components)
    return between + jnp.einsum("k,kij,kj,klj->il", r, energy.axes, shrunk, energy.axes)


def _variances(energy, part):
    """Var(X given y, i) of each coordinate, of shape (k, d); of shape (1, 1) where it is zero."""
    if part.spreads is None:
        return jnp.zeros((1, 1), energy.sigma.dtype)
    return jnp.einsum("kij,kj->ki", part.axes**2, _shrunk(energy, part))


def _shrunk(energy, part):
    """The eigenvalues of Cov(X given y, i), sigma^2 C_i (C_i + sigma^2 I)^-1."""
    return energy.sigma**2 * part.spreads / (part.spreads + energy.sigma**2)


def _coordinates(energy, y):
    """Each coordinate's mixture given y: weights (K,), means and standard deviations (K, d)."""
    means = energy.posterior_means(y) + energy.loc.reshape(1, -1)
    deviations = jnp.sqrt(_variances(energy, energy.components))
    return jnp.exp(energy.log_responsibilities(y)), means, deviations


def _cdf(energy, y, x):
    if energy.spreads is None:
        locs = energy.locs.reshape(len(energy.locs), -1)
        below = (locs <= x.reshape(1, -1)).astype(x.dtype)
        return (jnp.exp(energy.log_responsibilities(y)) @ below).reshape(y.shape)
    weights, means, deviations = _coordinates(energy, y)
    return (weights @ _normal_cdf(x.reshape(1, -1), means, deviations)).reshape(y.shape)


def _lfsr(energy, y):
    # Each tail by its own sum: one minus the other would lose the digits of a small one.
    if energy.spreads is None:
        # Not by way of `posterior_means`: whether a location is exactly zero has to survive.
        locs = energy.locs.reshape(len(energy.locs), -1)
        weights = jnp.exp(energy.log_responsibilities(y))
        tails = weights @ (locs <= 0).astype(y.dtype), weights @ (locs >= 0).astype(y.dtype)
    else:
        weights, means, deviations = _coordinates(energy, y)
        tails = [weights @ _normal_cdf(0.0, sign * means, deviations) for sign in (1, -1)]
    return jnp.minimum(*tails).reshape(y.shape)


def _normal_cdf(x, mean, deviation):
    # A deviation of zero is a step.
    tiny = jnp.finfo(mean.dtype).tiny
    return ndtr((x - mean) / jnp.maximum(deviation, tiny))


def _quantile_of_atoms(energy, y, q, order):
    locs = energy.locs.reshape(len(energy.locs), -1)
    reached = jnp.cumsum(jnp.exp(energy.log_responsibilities(y))[order], axis=0)
    # What rounding leaves the sum short of one must not move the last quantile.
    q = q.reshape(-1)
    first = jnp.argmax(reached / reached[-1:] >= q[None], axis=0)
    coordinate = jnp.arange(locs.shape[1])
    known = (q >= 0) & (q <= 1) & jnp.isfinite(reached[-1])
    atoms = locs[order[first, coordinate], coordinate]
    return jnp.where(known, atoms, jnp.nan).reshape(y.shape)


def _quantile_of_gaussians(energy, y, q):
    import optimistix as optx

    weights, means, deviations = _coordinates(energy, y)

    def one(q, means, deviations):
        # The quantile of the mixture lies between those of its components.
        ends = means + deviations * ndtri(q)
        lower, upper = jnp.min(ends), jnp.max(ends)
        margin = jnp.finfo(q.dtype).eps * (1 + jnp.abs(lower) + jnp.abs(upper)) * 8
        bracket = {"lower": lower - margin, "upper": upper + margin}
        short = lambda x, _: weights @ _normal_cdf(x, means, deviations) - q  # noqa: E731
        solver = optx.Bisection(rtol=1e-6, atol=0.0, expand_if_necessary=True)
        start = (lower + upper) / 2
        return optx.root_find(short, solver, start, options=bracket, throw=False).value

    return jax.vmap(one, (0, 1, 1))(q.reshape(-1), means, deviations).reshape(y.shape)


def _draws(energy, y, key, shape):
    key_component, key_within = jax.random.split(key)
    count = len(energy.locs)
    index = jax.random.choice(
        key_component, count, shape, p=jnp.exp(energy.log_responsibilities(y))
    )
    if energy.spreads is None:
        return energy.locs[index]
    shrunk = _shrunk(energy, energy.components)
    z = jax.random.normal(key_within, (*shape, shrunk.shape[1]), y.dtype)
    within = jnp.einsum("...ij,...j->...i", energy.axes[index], jnp.sqrt(shrunk[index]) * z)
    x = energy.posterior_means(y)[index] + energy.loc.reshape(-1) + within
    return x.reshape(*shape, *y.shape)


def _log_prob(energy, y, x):
    log_r = energy.log_responsibilities(y)
    if energy.spreads is None:
        here = jnp.all((energy.locs == x[None]).reshape(len(energy.locs), -1), axis=1)
        return jax.nn.logsumexp(jnp.where(here, log_r, -jnp.inf))
    shrunk = _shrunk(energy, energy.components)
    centred = (x - energy.loc).reshape(1, -1) - energy.posterior_means(y)
    along = jnp.einsum("kij,ki->kj", energy.axes, centred)
    logs = jnp.sum(along**2 / shrunk + jnp.log(2 * jnp.pi * shrunk), axis=1)
    return jax.nn.logsumexp(log_r - logs / 2)
