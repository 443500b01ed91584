"""Poisson and binomial counts: the published figures, and Robbins' formula."""

import numpy as np
import pytest
from scipy import stats

import numpyro_neb as neb
from numpyro_neb.empirical_bayes.kernels import BinomialKernel
from numpyro_neb.empirical_bayes.spline import spline_weights

pytestmark = pytest.mark.statistical

# Claims of 9,461 insured (Thyrion; Robbins' formula and the estimates are published with them).
CLAIMS = np.repeat(np.arange(8), [7840, 1317, 239, 42, 14, 4, 4, 1])


def test_claims():
    """The log-likelihood and the posterior means of the maximum, to their published digits."""
    fit = neb.fit_mixture(CLAIMS.astype(float), family="poisson", max_gap=1e-6)
    assert fit.log_likelihood == pytest.approx(-5340.7035, abs=5e-5)
    first = [int(np.flatnonzero(k == CLAIMS)[0]) for k in range(8)]
    means = [0.1680, 0.3628, 0.5302, 1.2566, 2.2035, 2.5054, 2.5541, 2.5611]
    np.testing.assert_allclose(fit.posterior_mean[first], means, atol=6e-4)


def test_robbins_formula():
    """E[X | y] = (y + 1) f(y + 1) / f(y), whatever the law of X: exactly so under the fit."""
    fit = neb.fit_mixture(CLAIMS.astype(float), family="poisson")
    f = np.exp(fit.predict(np.arange(9.0)).log_likelihoods)
    means = fit.predict(np.arange(8.0)).posterior_mean
    np.testing.assert_allclose(means, np.arange(1, 9) * f[1:] / f[:-1], rtol=1e-9)


def test_likelihoods_are_the_textbooks(x64):
    """With their constants, and posterior intervals from the discrete law of X given y."""
    rng = np.random.default_rng(0)
    exposure = rng.uniform(0.5, 3.0, 200)
    y = rng.poisson(exposure * rng.choice([1.0, 4.0], 200)).astype(float)
    fit = neb.fit_mixture(y, family="poisson", exposure=exposure)
    each = stats.poisson.pmf(y[:, None], exposure[:, None] * fit.locs)
    np.testing.assert_allclose(fit.log_likelihoods, np.log(each @ fit.weights), rtol=1e-9)
    shares = each * fit.weights
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(fit.posterior_mean, shares @ fit.locs, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(fit.posterior.mean), shares @ fit.locs, rtol=1e-9)
    lower, _ = fit.posterior.interval(0.9)
    quantile = fit.locs[np.argmax(np.cumsum(shares, 1) >= 0.05 - 1e-12, axis=1)]
    np.testing.assert_allclose(np.asarray(lower), quantile, rtol=1e-9)
    trials = rng.integers(1, 20, 200).astype(float)
    y = rng.binomial(trials.astype(int), rng.beta(2, 3, 200)).astype(float)
    fit = neb.fit_mixture(y, family="binomial", trials=trials)
    each = stats.binom.pmf(y[:, None], trials[:, None], fit.locs)
    np.testing.assert_allclose(fit.log_likelihoods, np.log(each @ fit.weights), rtol=1e-9)


def test_the_maximum_over_all_locations():
    """No location anywhere would raise the likelihood: mean_j p(y_j | m) / f(y_j) <= 1."""
    rng = np.random.default_rng(1)
    trials = rng.integers(5, 40, 300).astype(float)
    y = rng.binomial(trials.astype(int), rng.beta(2, 3, 300)).astype(float)
    fit = neb.fit_mixture(y, family="binomial", trials=trials, max_gap=1e-4)
    everywhere = np.linspace(0, 1, 5001)
    each = stats.binom.pmf(y[:, None], trials[:, None], everywhere)
    gradient = np.mean(each / np.exp(fit.log_likelihoods)[:, None], axis=0)
    assert 300 * np.log(gradient.max()) < 2e-3


def test_a_spline_of_probabilities_is_close_to_the_truth():
    """A smooth law of probabilities, by its mean and its quartiles."""
    rng = np.random.default_rng(2)
    x = rng.beta(4, 8, 4000)
    y = rng.binomial(20, x).astype(float)
    grid = np.linspace(0.01, 0.99, 99)
    kernel = BinomialKernel(np.ones(4000), grid[:, None], y, np.full(4000, 20.0))
    weights = spline_weights(kernel, grid, 5, 1.0)
    assert weights.sum() == pytest.approx(1)
    assert weights @ grid == pytest.approx(1 / 3, abs=5 * np.std(y / 20) / 4000**0.5)
    quartiles = [np.interp(q, np.cumsum(weights), grid) for q in (0.25, 0.75)]
    np.testing.assert_allclose(quartiles, stats.beta.ppf([0.25, 0.75], 4, 8), atol=0.03)
    fit = neb.fit_mixture(y, family="binomial", trials=20.0, prior="spline")
    assert np.mean((fit.posterior_mean - x) ** 2) < 0.8 * np.mean((y / 20 - x) ** 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": [1.5, 2.0]}, "y must be counts"),
        ({"y": [-1.0, 2.0]}, "y must be counts"),
        ({"exposure": 0.0}, "exposure must be positive"),
        ({"exposure": [1.0]}, r"exposure must be a scalar or of shape \(2,\)"),
        ({"family": "binomial", "trials": [2.0, 1.0]}, "trials must be positive whole numbers"),
        ({"family": "binomial", "trials": 2.5}, "trials must be positive whole numbers"),
    ],
)
def test_bad_arguments(arguments, message, untyped):
    """A message that names the argument."""
    with pytest.raises(ValueError, match=message):
        neb.fit_mixture(**({"y": [1.0, 2.0], "family": "poisson"} | arguments))
