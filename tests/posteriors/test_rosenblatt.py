"""X given y of a mixture as a function of standard normal noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from jax.test_util import check_grads
from scipy import stats

import numpyro_neb as neb

pytestmark = pytest.mark.statistical


def clusters(d, sigma=0.5):
    """Three narrow, rotated clusters about one apart, of unlike weights."""
    rng = np.random.default_rng(d)
    axes = np.linalg.qr(rng.normal(size=(3, d, d)))[0]
    spreads = rng.uniform(0.1, 0.3, size=(3, d))
    return neb.MixtureEnergy(
        jnp.asarray(rng.normal(size=(3, d)), float),
        sigma,
        log_weights=jnp.log(jnp.array([1.0, 2.0, 4.0])),
        covariances=jnp.asarray(np.einsum("kij,kj,klj->kil", axes, spreads**2, axes), float),
    )


def log_density_of_noise(energy, y, eps):
    """log p(x given y) + log abs det dx/d eps: a change of variables."""
    posterior = energy.posterior(y)
    slopes = jax.jacfwd(posterior.around_mean)(eps).reshape(eps.size, eps.size)
    x = posterior.mean + posterior.around_mean(eps)
    return posterior.log_prob(x) + jnp.linalg.slogdet(slopes)[1]


def changes_of_variables(d):
    energy = clusters(d)
    key_y, key_eps = jax.random.split(jax.random.key(0))
    y = energy.sample(key_y, (200,))
    eps = jax.random.normal(key_eps, (200, d))
    found = jax.jit(jax.vmap(lambda y, eps: log_density_of_noise(energy, y, eps)))(y, eps)
    return np.asarray(found, float), stats.norm.logpdf(np.asarray(eps, float)).sum(1)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_noise_is_standard_normal(d, x64):
    found, exact = changes_of_variables(d)
    # A quantile has an error of some eps / density, of which d are summed in nats.
    np.testing.assert_allclose(found, exact, atol=1e-8)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_noise_is_standard_normal_in_single_precision(d, x32):
    found, exact = changes_of_variables(d)
    # An x is known to eps of its size, and log p changes by (x - m) / s^2 per unit: 1e2 here.
    assert np.quantile(np.abs(found - exact), 0.95) < 1e-2 * d


def test_tails_in_single_precision(x32):
    """Both tails keep their digits: at eps = 6 the upper one is 1e-9."""
    energy = neb.MixtureEnergy(
        jnp.array([[-1.0], [1.0]]), 0.5, covariances=jnp.full((2, 1, 1), 0.04)
    )
    posterior = energy.posterior(jnp.zeros(1))
    eps = jnp.array([-8.0, -6.0, -1.0, 1.0, 6.0, 8.0])
    x = np.asarray(jax.vmap(lambda e: posterior.around_mean(e[None])[0])(eps), float)
    mean, sd = 1 - 0.04 / 0.29, 0.5 * np.sqrt(0.04 / 0.29)
    x = np.abs(x)  # symmetric about zero
    tail = (stats.norm.sf(x, mean, sd) + stats.norm.sf(x, -mean, sd)) / 2
    # d log tail = eps dx / sd, and x is known to a few roundings.
    np.testing.assert_allclose(tail, stats.norm.sf(np.abs(np.asarray(eps))), rtol=1e-4)


def test_one_component_is_linear():
    """m + L eps with L Cholesky's factor of the posterior's covariance."""
    energy = neb.MixtureEnergy(
        jnp.ones((1, 2)), 0.5, covariances=jnp.array([[[1.0, 0.3], [0.3, 0.2]]])
    )
    posterior, eps = energy.posterior(jnp.array([0.3, -1.0])), jnp.array([0.7, -1.9])
    around = posterior.around_mean(eps)
    exact = np.linalg.cholesky(np.asarray(posterior.covariance, float)) @ np.asarray(eps)
    np.testing.assert_allclose(around, exact, rtol=1e-5)


@pytest.mark.slow
def test_derivatives_of_two_orders(x64):
    energy = clusters(2)

    @jax.jit
    def x(y, eps):
        posterior = energy.posterior(jnp.asarray(y))
        return posterior.mean + posterior.around_mean(jnp.asarray(eps))

    check_grads(x, (jnp.array([0.2, -0.4]), jnp.array([0.3, -0.2])), 2, ["rev"], rtol=1e-3)


def test_only_a_density_has_one():
    atoms = neb.MixtureEnergy(jnp.array([[-1.0], [1.0]]), 0.5)
    assert atoms.posterior(jnp.zeros(1)).around_mean(jnp.zeros(1)) is None
    learned = neb.ResidualEnergy(lambda y: y / 2, 0.5, (1,))
    assert learned.posterior(jnp.zeros(1)).around_mean(jnp.zeros(1)) is None


def test_a_spike_among_slabs():
    """A component of zero covariance gets its share, about its location."""
    covariances = jnp.array([0.0, 1.0])[:, None, None]
    energy = neb.MixtureEnergy(jnp.zeros((2, 1)), 0.5, covariances=covariances)
    posterior = energy.posterior(jnp.array([0.4]))
    eps = jax.random.normal(jax.random.key(0), (20_000, 1))
    x = posterior.mean + jax.vmap(posterior.around_mean)(eps)
    spike, slab = (stats.norm.pdf(0.4, 0, s) for s in (0.5, np.sqrt(1.25)))
    share = spike / (spike + slab)
    # The spike's width stands for zero: 64 eps of sigma^2 in float32. The slab is near it rarely.
    near = np.abs(np.asarray(x)) < 0.02
    within = stats.norm(0.4 / 1.25, np.sqrt(0.25 / 1.25))
    share += (1 - share) * (within.cdf(0.02) - within.cdf(-0.02))
    targets.within(near.mean(), share, np.sqrt(share * (1 - share) / len(x)))


def test_strict_promotion(strict):
    energy = clusters(2)
    jax.grad(lambda eps: jnp.sum(energy.posterior(jnp.zeros(2)).around_mean(eps)))(jnp.ones(2))
