"""Discoveries and ranks against exhaustive counts and known truths."""

import jax
import numpy as np
import pytest

import numpyro_neb as neb
from numpyro_neb.empirical_bayes.selection import Ranking, q_values

pytestmark = pytest.mark.statistical


def test_q_values_are_running_means():
    """Of the rates in increasing order; equal ones share the largest, NaN stays NaN."""
    rates = np.array([0.3, 0.01, np.nan, 0.2, 0.01, 0.5])
    expected = [0.13, 0.01, np.nan, 0.22 / 3, 0.01, 1.02 / 5]
    np.testing.assert_allclose(q_values(rates), expected)
    np.testing.assert_allclose(q_values(np.array([0.1, 0.1, 0.4])), [0.1, 0.1, 0.2])
    assert np.all(np.isnan(q_values(np.full(3, np.nan))))


def effects(n=4000, seed=0):
    """Nine in ten are zero, the others N(0, 3^2)."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.8, 0.0, 3 * rng.normal(size=n))
    return x, x + rng.normal(size=n)


def test_the_share_of_wrong_discoveries():
    """Of those selected at .1, a tenth may be zero or have the wrong sign: five standard errors."""
    x, y = effects()
    fit = neb.fit_mixture(y, 1.0, prior="scale_mixture")
    chosen = fit.select(0.1)
    wrong = np.mean(np.sign(fit.posterior_mean[chosen]) != np.sign(x[chosen]))
    assert chosen.sum() > 300
    assert abs(wrong - 0.1) < 5 * np.sqrt(0.09 / chosen.sum())
    assert np.mean(fit.lfsr[chosen]) <= 0.1
    # The next one would be too many.
    rates = np.sort(fit.lfsr)
    assert np.mean(rates[: chosen.sum() + 1]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["scale_mixture", "unimodal"])
def test_small_effects_are_not_discovered_too_often(prior):
    """12 x 3,000 effects with unequal noise: 200 wrong ones claimed, 20% more are three errors.

    By the likelihood alone 60% more than claimed are wrong.
    """
    wrong, claimed = 0, 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = np.where(rng.random(3000) < 0.85, 0.0, 2.5 * rng.normal(size=3000))
        sigma = rng.uniform(0.5, 1.5, 3000)
        y = x + sigma * rng.normal(size=3000)
        fit = neb.fit_mixture(y, sigma, prior=prior, progress_bar=False)
        chosen = fit.select(0.1)
        wrong += np.sum(np.sign(fit.posterior_mean[chosen]) != np.sign(x[chosen]))
        claimed += fit.lfsr[chosen].sum()
    assert claimed > 150
    assert wrong < 1.1 * claimed + 3 * np.sqrt(claimed)


def test_the_local_false_discovery_rate_is_calibrated():
    """Among effects with P(X = 0 | y) near .5, half are zero."""
    x, y = effects(40_000)
    fit = neb.fit_mixture(y, 1.0, prior="point_normal")
    middle = (fit.lfdr > 0.4) & (fit.lfdr < 0.6)
    expected, count = fit.lfdr[middle].mean(), middle.sum()
    assert count > 300
    assert abs(np.mean(x[middle] == 0) - expected) < 5 * np.sqrt(0.25 / count)
    assert np.all(neb.fit_mixture(y[:100], 1.0, prior="normal").lfdr == 0)


def test_ranks_of_known_draws():
    """Two draws of three: ranks, means, the top and the table of probabilities."""
    ranking = Ranking.of(np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [5.0, 4.0, 3.0]]))
    np.testing.assert_allclose(ranking.ranks, [[1, 2, 3], [3, 2, 1], [1, 2, 3]])
    np.testing.assert_allclose(ranking.mean, [5 / 3, 2, 7 / 3])
    np.testing.assert_allclose(ranking.probability_in_top(1), [2 / 3, 0, 1 / 3])
    np.testing.assert_array_equal(ranking.top(2), [1, 0])
    np.testing.assert_allclose(
        ranking.probabilities, np.array([[2, 0, 1], [0, 3, 0], [1, 0, 2]]) / 3
    )
    with pytest.raises(ValueError, match="k must be at most"):
        ranking.top(4)


def test_the_top_is_more_often_right_than_that_of_the_observations():
    """With unequal noise the largest y are the noisiest; the posterior top is larger."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=2000)
    sigma = rng.choice([0.3, 2.0], 2000)
    y = x + sigma * rng.normal(size=2000)
    fit = neb.fit_mixture(y, sigma, prior="normal", mode="estimate")
    top = fit.rank(jax.random.key(0), 500).top(100)
    assert x[top].mean() > x[np.argsort(-y)[:100]].mean() + 0.3
    truth = set(np.argsort(-x)[:100])
    assert len(truth & set(top)) > len(truth & set(np.argsort(-y)[:100]))


def test_a_table_for_data_frames():
    """One row for each observation, with interval and rates."""
    _, y = effects(50)
    fit = neb.fit_mixture(y, 1.0, prior="scale_mixture")
    table = fit.to_dataframe(0.8)
    lower, upper = fit.posterior.interval(0.8)
    np.testing.assert_allclose(table["lower"], np.asarray(lower, float))
    np.testing.assert_allclose(table["upper"], np.asarray(upper, float))
    np.testing.assert_allclose(table["posterior_mean"], fit.posterior_mean)
    names = ["y", "sigma", "posterior_mean", "posterior_std", "lower", "upper", "lfsr", "lfdr"]
    assert list(table) == names
    counts = neb.fit_mixture([0.0, 1.0, 5.0], family="poisson").to_dataframe()
    assert list(counts) == ["y", "exposure", *names[2:6]]
