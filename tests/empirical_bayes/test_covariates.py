"""A prior that a network computes from covariates and sigma."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_neb as neb
from numpyro_neb.empirical_bayes import covariates, normal_means


@pytest.mark.statistical
def test_the_risk_estimate_is_unbiased(x64):
    """Its mean over y is E (x - estimate)^2 for a fixed law, by quadrature over y."""
    prior = covariates.ConditionalPrior(1, jax.random.key(0))
    energy = covariates._RowEnergy(prior, 4)
    x, sigma, columns = 0.7, 0.6, np.array([0.3, -0.2])
    y = np.linspace(x - 8 * sigma, x + 8 * sigma, 2001)
    density = np.exp(-((y - x) ** 2) / (2 * sigma**2))
    density /= density.sum()
    rows = jnp.asarray(np.column_stack([y, np.full(2001, sigma), np.tile(columns, (2001, 1))]))
    each = jax.vmap(lambda row: covariates.unbiased_risk(energy, row[None], jax.random.key(0)))
    scores = -jax.vmap(jax.grad(energy))(rows)[:, 0]
    error = density @ (y + sigma**2 * np.asarray(scores) - x) ** 2
    np.testing.assert_allclose(density @ np.asarray(each(rows)), error, rtol=1e-6)


@pytest.mark.slow
def test_covariates_help():
    """X ~ N(2 v + .5, .25 v), v a function of a covariate: near the Bayes risk, .2 v."""
    rng = np.random.default_rng(0)
    column = rng.random(3000)
    variance = 2 * column**2 + 5 * column + 1
    x = 2 * variance + 0.5 + np.sqrt(0.25 * variance) * rng.normal(size=3000)
    sigma = np.sqrt(variance)
    y = x + sigma * rng.normal(size=3000)
    fit = neb.fit_mixture(y, sigma, covariates=column, key=jax.random.key(0), progress_bar=False)
    error = np.mean((fit.posterior_mean - x) ** 2)
    # A fifth of v is the Bayes risk; without covariates it is four times that.
    assert error < 1.25 * np.mean(0.2 * variance)
    assert np.mean((neb.fit_mixture(y, sigma).posterior_mean - x) ** 2) > 2 * error
    np.testing.assert_allclose(np.asarray(fit.posterior.mean), fit.posterior_mean, rtol=1e-3)


def test_what_a_fit_with_covariates_can_do(monkeypatch):
    """Moments, draws, predictions; errors where there is no one prior."""
    monkeypatch.setattr(normal_means, "_TRAINING_STEPS", 3)
    rng = np.random.default_rng(1)
    y, columns = rng.normal(size=40), rng.normal(size=(40, 2))
    sigma = rng.uniform(0.5, 1, 40)
    sigma[0], y[0] = np.inf, np.nan
    fit = neb.fit_mixture(y, sigma, covariates=columns, key=jax.random.key(0), progress_bar=False)
    assert fit.locs.shape == fit.weights.shape == (40, 10)
    np.testing.assert_allclose(fit.weights.sum(1), 1)
    draws = fit.sample(jax.random.key(1), (3000,))
    error = 5 * fit.posterior_std / 3000**0.5
    assert np.all(np.abs(draws.mean(0) - fit.posterior_mean) < error)
    # A missing observation has its prior.
    np.testing.assert_allclose(fit.posterior_mean[0], fit.weights[0] @ fit.locs[0], rtol=1e-6)
    assert "covariates: 10 components" in str(fit)
    again = fit.predict(y[1:5], sigma[1:5], covariates=columns[1:5])
    np.testing.assert_allclose(again.posterior_mean, fit.posterior_mean[1:5], rtol=1e-5)
    with pytest.raises(ValueError, match=r"fit\.energy needs"):
        _ = fit.energy
    with pytest.raises(ValueError, match="covariates must be given"):
        fit.predict(y[1:5], sigma[1:5])
