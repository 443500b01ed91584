"""Priors learned from draws: the site's law, two-stage posteriors against exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, Predictive
from scipy import stats

import numpyro_neb as neb
from numpyro_neb.priors import PriorFromDraws

RNG = np.random.default_rng(0)


def exact(constraint=constraints.real):
    """One whose whitened law is N(0, I) exactly, of unlike scales."""
    energy = neb.MixtureEnergy(jnp.zeros((1, 2)), 0.5, covariances=jnp.eye(2)[None])
    root = jnp.array([[2.0, 0.0], [0.3, 0.1]])
    loc, shape = jnp.array([1.0, -1.0]), (2,)
    return PriorFromDraws("theta", energy, loc, root, shape, constraint, None)


@pytest.mark.parametrize("plate", [(), (3,)])
@pytest.mark.parametrize("constraint", [constraints.real, constraints.positive])
def test_the_site_has_the_law(constraint, plate):
    """Mean and covariance on the real line, in a plate too."""
    prior = exact(constraint)

    def model():
        if plate:
            with numpyro.plate("rows", *plate):
                return prior()
        return prior()

    draws = Predictive(model, num_samples=2000)(jax.random.key(0))["theta"]
    assert draws.shape == (2000, *plate, 2)
    u = np.asarray(draws, float).reshape(-1, 2)
    u = np.log(u) if constraint is constraints.positive else u
    root = np.asarray(prior.root, float)
    variance = np.diag(root @ root.T)
    targets.within(u.mean(0), np.asarray(prior.loc), np.sqrt(variance / len(u)))
    targets.within(u.var(0), variance, variance * np.sqrt(2 / len(u)))
    whitened = np.linalg.solve(root, (u - np.asarray(prior.loc)).T)
    targets.within(np.corrcoef(whitened)[0, 1], 0, 1 / np.sqrt(len(u)))


def run(model):
    settings = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1000, **settings)
    mcmc.run(jax.random.key(1))
    return mcmc.get_samples(group_by_chain=True)


def assert_close(draws, mean, sd):
    """Means within .1 sd, sds within 7%, besides the error of the draws."""
    flat = np.asarray(draws, float)
    ess = np.asarray(numpyro.diagnostics.effective_sample_size(flat))
    flat = flat.reshape(-1, *flat.shape[2:])
    assert np.all(np.abs(flat.mean(0) - mean) < sd * (0.1 + 3 / np.sqrt(ess)))
    assert np.all(np.abs(flat.std(0) / sd - 1) < 0.07 + 3 / np.sqrt(2 * ess))


@pytest.mark.slow
@pytest.mark.statistical
def test_a_rate_in_two_stages():
    """Gamma draws of a rate, then a Poisson count: the posterior is a gamma."""
    draws = RNG.gamma(4.0, 0.5, size=4000)
    settings = {"key": jax.random.key(0), "progress_bar": False}
    prior = neb.prior_from_draws("rate", draws, constraints.positive, **settings)
    assert prior.evaluation.outcome in ("right", "doubtful")
    assert "sigma = " in str(prior)

    def model():
        rate = prior()
        numpyro.sample(
            "counts", dist.Poisson(rate).expand([3]).to_event(1), obs=jnp.array([1, 3, 2])
        )

    posterior = stats.gamma(4 + 6, scale=1 / (2 + 3))
    assert_close(run(model)["rate"], posterior.mean(), posterior.std())


@pytest.mark.slow
@pytest.mark.statistical
def test_correlated_effects_in_two_stages():
    """Draws of a normal of unlike scales, then two measurements: the posterior is normal."""
    root = np.array([[1, 0, 0], [0.8, 0.6, 0], [-0.5, 0.3, 0.4]]) * np.array([[1.0], [10], [0.1]])
    draws = RNG.normal(size=(4000, 3)) @ root.T + np.array([5.0, 0, 1])
    prior = neb.prior_from_draws("b", draws, key=jax.random.key(0), progress_bar=False)
    # The whitened draws are normal, and so is the energy that they teach.
    variance = 1 + float(prior.energy.sigma) ** 2
    y = np.random.default_rng(1).normal(size=(2000, 3)).astype(np.float32) * variance**0.5
    slopes = jax.jit(jax.vmap(jax.grad(prior.energy)))(y)
    assert np.sqrt(np.mean(np.sum((slopes - y / variance) ** 2, 1))) < 0.15

    def model():
        b = prior()
        numpyro.sample("first", dist.Normal(b[0], 0.5), obs=4.0)
        numpyro.sample("second", dist.Normal(b[1], 5.0), obs=3.0)

    precision, mean = np.linalg.inv(np.cov(draws.T)), draws.mean(0)
    covariance = np.linalg.inv(precision + np.diag([1 / 0.25, 1 / 25, 0]))
    centre = covariance @ (precision @ mean + np.array([4 / 0.25, 3 / 25, 0]))
    assert_close(run(model)["b"], centre, np.sqrt(np.diag(covariance)))


def test_outside_of_a_model():
    with pytest.raises(RuntimeError, match="must be called inside a NumPyro model"):
        exact()()
