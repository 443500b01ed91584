"""Laws in closed form, and how far a sample may lie from them."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

import numpyro_neb as neb

# Five standard errors; for the Kolmogorov-Smirnov statistic the level of the same probability.
STANDARD_ERRORS = 5.0
KOLMOGOROV = stats.kstwobign.isf(2 * stats.norm.sf(STANDARD_ERRORS))


class Wrapped(neb.AbstractEnergy):
    """phi = another energy's, or a function of y and that one, which nobody can see through."""

    inner: neb.AbstractEnergy
    value: Callable
    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inner, value=lambda y, phi: phi(y)):
        self.inner, self.value, self.event_shape = inner, value, inner.event_shape
        self.sigma, self.loc, self.scale = inner.sigma, inner.loc, inner.scale

    def __call__(self, y):
        return self.value(y, self.inner)


def gaussian(standard_deviations, sigma, *, locs=None):
    """The energy of Y for X ~ N(locs, diag(standard_deviations^2))."""
    s = jnp.asarray(standard_deviations, float)
    locs = jnp.zeros_like(s) if locs is None else jnp.asarray(locs, float)
    return neb.MixtureEnergy(locs[None], sigma, covariances=jnp.diag(s**2)[None])


def skewed_mixture(sigma=0.7):
    """Three unequal, overlapping, rotated Gaussians in the plane: no symmetry hides a sign."""
    rng = np.random.default_rng(7)
    root = rng.normal(size=(3, 2, 2)) * 0.5
    return neb.MixtureEnergy(
        jnp.array([[-1.0, 0.5], [1.2, -0.3], [0.3, 1.5]]),
        sigma,
        log_weights=jnp.log(jnp.array([0.6, 0.3, 0.1])),
        covariances=jnp.asarray(root @ root.swapaxes(1, 2), float),
    )


def moments(energy):
    """The mean and covariance of Y under a `MixtureEnergy`, in float64."""
    weights, means, covariances = components(energy)
    mean = weights @ means
    centred = means - mean
    between = (weights[:, None] * centred).T @ centred
    return mean, between + np.tensordot(weights, covariances, 1)


def components(energy):
    """Weights, means and covariances of Y's components, in float64."""
    k = len(energy.locs)
    means = np.asarray(energy.locs, float).reshape(k, -1)
    d = means.shape[1]
    covariances = np.broadcast_to(float(energy.sigma) ** 2 * np.eye(d), (k, d, d))
    if energy.spreads is not None:
        axes = np.asarray(energy.axes, float)
        covariances = covariances + np.einsum(
            "kij,kj,klj->kil", axes, np.asarray(energy.spreads, float), axes
        )
    return np.exp(np.asarray(energy.log_weights, float)), means, covariances


def brute_force(locs, sigma, log_weights, covariances, y):
    """phi, its gradient and Hessian at y by the textbook formulas in float64."""
    k, d = locs.shape
    covariances = np.zeros((k, d, d)) if covariances is None else covariances
    total = covariances + sigma**2 * np.eye(d)
    precisions = np.linalg.inv(total)
    u = y - locs
    logs = (
        log_weights
        - special.logsumexp(log_weights)
        - np.einsum("ki,kij,kj->k", u, precisions, u) / 2
        - (np.linalg.slogdet(total)[1] + d * np.log(2 * np.pi)) / 2
    )
    r = special.softmax(logs)
    gradients = np.einsum("kij,kj->ki", precisions, u)
    gradient = r @ gradients
    outer = np.einsum("k,ki,kj->ij", r, gradients, gradients)
    hessian = np.tensordot(r, precisions, 1) - outer + np.outer(gradient, gradient)
    return -special.logsumexp(logs), gradient, hessian


def assert_law(y, energy):
    """Independent draws `y` of shape (n, d) have the law of a `MixtureEnergy`'s Y.

    Mean and covariance within five standard errors, estimated from the draws; the Kolmogorov-
    Smirnov distance of three one-dimensional projections below its level at the same probability.
    """
    y = np.asarray(y, float)
    n, d = y.shape
    mean, covariance = moments(energy)
    within(y.mean(0), mean, y.std(0) / np.sqrt(n))
    products = np.einsum("ni,nj->nij", y - mean, y - mean)
    within(products.mean(0), covariance, products.std(0) / np.sqrt(n))
    weights, means, covariances = components(energy)
    directions = np.vstack([np.eye(d)[:2], np.random.default_rng(0).normal(size=(1, d))])
    for direction in directions:
        scales = np.sqrt(np.einsum("i,kij,j->k", direction, covariances, direction))
        centres = means @ direction

        def cdf(t, centres=centres, scales=scales):
            return stats.norm.cdf((np.asarray(t)[..., None] - centres) / scales) @ weights

        distance = stats.kstest(y @ direction, cdf).statistic
        assert distance < KOLMOGOROV / np.sqrt(n)


def within(estimate, truth, standard_error):
    excess = np.abs(np.asarray(estimate) - truth) / standard_error
    assert np.all(excess < STANDARD_ERRORS), f"{excess.max():.1f} standard errors off"


def independent_draws(kernel, *, num_chains, num_draws, key=0):
    """The last draw of each of many chains: independent, so that their number is their ESS."""
    from numpyro.infer import MCMC

    mcmc = MCMC(
        kernel,
        num_warmup=num_draws - 1,
        num_samples=1,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(key))
    return {name: np.asarray(draws) for name, draws in mcmc.get_samples().items()}


def array_shapes(fn, *args):
    """The shapes of all arrays that the program of fn makes, inner programs included."""

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (tuple(getattr(v.aval, "shape", ())) for v in equation.outvars)
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    yield from shapes(inner) if hasattr(inner, "eqns") else ()

    return set(shapes(jax.make_jaxpr(fn)(*args).jaxpr))


class MixtureFamily(neb.energies.AbstractEnergyFamily):
    """An exact mixture at a range of noise levels."""

    mixture: neb.MixtureEnergy
    sigma_range: tuple[float, float] = eqx.field(static=True)

    @property
    def event_shape(self):
        return self.mixture.event_shape

    @property
    def loc(self):
        return self.mixture.loc

    @property
    def scale(self):
        return self.mixture.scale

    def at(self, sigma):
        return self.mixture.at(sigma)

    def unchecked_at(self, sigma):
        return self.mixture.at(sigma)

    def levels(self, u):
        low, high = np.log(self.sigma_range)
        return jnp.exp(low + (high - low) * u)
