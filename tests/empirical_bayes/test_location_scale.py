"""Local linear regression, and effects that the standard error predicts."""

import numpy as np
import pytest

import numpyro_neb as neb
from numpyro_neb.empirical_bayes.location_scale import local_linear, location_scale

pytestmark = pytest.mark.statistical


def test_a_line_is_exact():
    """Local linear regression has no bias on a line, also at its ends."""
    x = np.sort(np.random.default_rng(0).uniform(size=500)) ** 2
    fitted, effective = local_linear(x, 2 - 3 * x)
    np.testing.assert_allclose(fitted, 2 - 3 * x, atol=1e-9)
    assert np.all((effective >= 1) & (effective <= 500))


def test_a_curve_is_found():
    """Within five standard errors of the mean over the effective number of observations."""
    rng = np.random.default_rng(1)
    x = np.sort(rng.uniform(size=20_000))
    fitted, effective = local_linear(x, np.sin(4 * x) + 0.5 * rng.normal(size=20_000))
    error = np.abs(fitted - np.sin(4 * x))
    # The rule of thumb balances the bias and the error: twice that for the sum of both.
    assert np.mean(error < 2 * 0.5 / np.sqrt(effective)) > 0.9
    assert error.max() < 5 * 0.5 / np.sqrt(effective.min())


def test_mean_and_scale_given_sigma():
    """E[X | sigma] = 3 sigma and sd(X | sigma) = 0.5 + sigma, between the outer percentiles."""
    rng = np.random.default_rng(2)
    sigma = rng.uniform(0.2, 1.0, 40_000)
    x = 3 * sigma + (0.5 + sigma) * rng.normal(size=40_000)
    found = location_scale(x + sigma * rng.normal(size=40_000), sigma)
    location, scale = found(np.array([0.3, 0.5, 0.8]))
    np.testing.assert_allclose(location, [0.9, 1.5, 2.4], atol=0.1)
    np.testing.assert_allclose(scale, [0.8, 1.0, 1.3], rtol=0.08)


@pytest.mark.slow
def test_the_share_of_the_oracles_gain():
    """X is sigma plus noise of sd 0.3 (README of the reference code): at least 97%."""
    rng = np.random.default_rng(3)
    sigma = 0.1 + rng.random(10_000)
    x = sigma + 0.3 * rng.normal(size=10_000)
    y = x + sigma * rng.normal(size=10_000)
    error = lambda estimate: np.mean((estimate - x) ** 2)  # noqa: E731
    fit = neb.fit_mixture(y, sigma, location_scale=True, progress_bar=False)
    oracle = error(sigma + 0.09 / (0.09 + sigma**2) * (y - sigma))
    gain = lambda estimate: (error(y) - error(estimate)) / (error(y) - oracle)  # noqa: E731
    assert gain(fit.posterior_mean) > 0.97
    plain = neb.fit_mixture(y, sigma, progress_bar=False)
    assert gain(plain.posterior_mean) < 0.9


def test_predictions_use_the_new_sigma():
    """The posterior of a new observation is that of the location and scale at its sigma."""
    rng = np.random.default_rng(4)
    sigma = rng.uniform(0.2, 1.0, 3000)
    y = 3 * sigma + np.hypot(0.5, sigma) * rng.normal(size=3000)
    fit = neb.fit_mixture(y, sigma, prior="normal", location_scale=True)
    new = fit.predict([1.0, 1.0], [0.3, 0.9])
    location, scale = fit.prior.placed(np.array([0.3, 0.9]))
    spread = scale**2 * fit.prior.variances[0]
    share = spread / (spread + np.array([0.3, 0.9]) ** 2)
    np.testing.assert_allclose(new.posterior_mean, location + share * (1.0 - location), rtol=1e-9)
    np.testing.assert_allclose(new.posterior_std, np.sqrt(share) * [0.3, 0.9], rtol=1e-9)
    np.testing.assert_allclose(np.asarray(new.posterior.mean), new.posterior_mean, rtol=1e-5)


def test_log_likelihoods_are_those_of_y():
    """With the change of variables: the density of y, not of (y - m) / s."""
    rng = np.random.default_rng(5)
    sigma = rng.uniform(0.2, 1.0, 2000)
    y = 3 * sigma + np.hypot(0.5, sigma) * rng.normal(size=2000)
    fit = neb.fit_mixture(y, sigma, prior="normal", location_scale=True)
    grid = np.linspace(-20, 25, 20_001)
    densities = np.exp(fit.predict(grid, np.full(len(grid), 0.4)).log_likelihoods)
    assert np.sum(densities) * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-6)
