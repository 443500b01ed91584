"""Robust intervals against the constants of their authors and a linear programme."""

import math

import numpy as np
import pytest
from scipy import optimize, special

import numpyro_neb as neb
from numpyro_neb.empirical_bayes import cva, prior_moments, robust_interval

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize(
    ("second_moment", "kurtosis", "alpha", "value"),
    [
        (4.0, math.inf, 0.05, 7.216351),
        (4.0, 3.0, 0.05, 4.619513),
        (25.0, 3.0, 0.05, 11.88358367),
        (1.0, 3.0, 0.2, 1.8494683),
        (100.0, 3.0, 0.05, 24.86172217),
        (2.8**2, 8.0, 0.1, 7.0779747158),
    ],
)
def test_critical_values_of_the_authors(second_moment, kurtosis, alpha, value):
    """The constants in the tests of Armstrong, Kolesar and Plagborg-Moller's package, to 1e-6."""
    assert cva(second_moment, kurtosis, alpha) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("kurtosis", [1.0, 1.3, 3.0, 20.0, math.inf])
@pytest.mark.parametrize("second_moment", [0.2, 1.5, 4.0, 30.0])
def test_critical_values_solve_the_linear_programme(second_moment, kurtosis):
    """The worst law of b^2 on a grid, by linear programming, misses with probability alpha."""
    chi = cva(second_moment, kurtosis, 0.1)
    top = max(20 * second_moment, (chi + 8) ** 2)
    top = max(top, 4 * kurtosis * second_moment) if math.isfinite(kurtosis) else top
    squares = np.union1d(np.linspace(0, math.sqrt(top), 6000) ** 2, second_moment)
    bias = np.sqrt(squares)
    missing = special.ndtr(-chi - bias) + special.ndtr(bias - chi)
    bound = None if math.isinf(kurtosis) else [(squares / second_moment) ** 2]
    solved = optimize.linprog(
        -missing,
        A_ub=bound,
        b_ub=None if bound is None else [kurtosis],
        A_eq=[np.ones_like(squares), squares / second_moment],
        b_eq=[1, 1],
        method="highs",
    )
    # The grid can only lose: by its spacing squared times the curvature, below 1e-4.
    assert -solved.fun <= 0.1 + 1e-9
    assert -solved.fun == pytest.approx(0.1, abs=1e-4)


def test_without_a_bias_it_is_the_normal_quantile():
    """And with the kurtosis of one, b is known but for its sign: a folded normal's quantile."""
    assert cva(0.0, alpha=0.05) == pytest.approx(-special.ndtri(0.025), abs=1e-9)
    chi = cva(4.0, 1.0, 0.05)
    assert special.ndtr(-chi - 2) + special.ndtr(2 - chi) == pytest.approx(0.05, abs=1e-9)


def test_moments_are_those_of_the_law():
    """Of a scaled t law with 9 degrees of freedom, whose kurtosis is 3 + 6 / 5."""
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.5, 1.5, 200_000)
    columns = rng.normal(size=(200_000, 2))
    x = 1 + columns @ [0.5, -2.0] + 1.5 * rng.standard_t(9, 200_000)
    y = x + sigma * rng.normal(size=200_000)
    moments = prior_moments(y, sigma, covariates=columns)
    second = 1.5**2 * 9 / 7
    # The standard deviation of e^2 is below 6, of e^4 below 400 second^2: five errors of the mean.
    assert moments.second_moment == pytest.approx(second, abs=5 * 6 / 200_000**0.5)
    assert moments.kurtosis == pytest.approx(4.2, abs=0.5)
    np.testing.assert_allclose(moments.centre, 1 + columns @ [0.5, -2.0], atol=0.05)


def test_moments_stay_positive_where_all_is_noise():
    """X = 0: the estimate of its second moment is kept above zero, and the kurtosis above one."""
    y = 0.9 * np.random.default_rng(0).normal(size=100)
    assert prior_moments(y, 1.0, trim=False).second_moment < 0
    moments = prior_moments(y, 1.0)
    assert moments.second_moment == pytest.approx(2 / 100)  # 2 / n in units of sigma^2
    assert moments.kurtosis >= 1


LAWS = {
    "normal": lambda rng, n: 2 * rng.normal(size=n),
    "nine in ten are zero": lambda rng, n: np.where(rng.random(n) < 0.9, 0, 4.0),
    "t": lambda rng, n: rng.standard_t(3, size=n),
    "two points": lambda rng, n: rng.choice([-1.0, 1.0], n),
    "skewed": lambda rng, n: rng.exponential(2.0, n),
}


@pytest.mark.parametrize("law", LAWS)
def test_average_coverage_whatever_the_law(law):
    """At least the nominal share of X is covered: 4,000 of them, five standard errors."""
    rng = np.random.default_rng(1)
    x = LAWS[law](rng, 4000)
    sigma = rng.choice(np.linspace(0.5, 1.5, 9), 4000)
    fit = neb.fit_mixture(x + sigma * rng.normal(size=4000), sigma, prior="normal", mode="estimate")
    lower, upper = robust_interval(fit, 0.9)
    covered = np.mean((lower <= x) & (x <= upper))
    assert covered > 0.9 - 5 * np.sqrt(0.09 / 4000)
    # Shorter than the intervals that do not shrink.
    assert np.mean(upper - lower) < np.mean(2 * 1.645 * sigma)


def test_the_shortest_is_shorter():
    """The shrinkage of the least squared error does not give the shortest interval."""
    rng = np.random.default_rng(2)
    fit = neb.fit_mixture(rng.normal(size=50) * 1.5, 1.0, prior="normal")
    plain = np.subtract(*robust_interval(fit, 0.95, 3.0)[::-1])
    shortest = np.subtract(*robust_interval(fit, 0.95, 3.0, length_optimal=True)[::-1])
    assert np.all(shortest < plain)
    assert np.all(shortest > 0.8 * plain)


def test_missing_and_exact_observations():
    """An exact one is its own interval; a missing one has that of X about its mean."""
    y = np.append(np.random.default_rng(3).normal(size=200) * 2, [np.nan, 0.7])
    sigma = np.append(np.ones(200), [np.inf, 0.0])
    fit = neb.fit_mixture(y, sigma, prior="normal")
    lower, upper = robust_interval(fit, 0.9, math.inf)
    assert lower[-1] == upper[-1] == pytest.approx(0.7)
    moments = prior_moments(np.delete(y, 200), np.delete(sigma, 200))
    # Chebyshev: X is further than this from its mean with a probability of at most 0.1.
    most = np.sqrt(moments.second_moment / 0.1)
    assert upper[-2] - lower[-2] == pytest.approx(2 * most, rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"second_moment": -1.0}, "second_moment must be finite and not negative"),
        ({"second_moment": 1.0, "kurtosis": 0.5}, "kurtosis must be at least 1"),
        ({"second_moment": 1.0, "alpha": 1.5}, "alpha must be"),
    ],
)
def test_bad_arguments(arguments, message):
    """A message that names the argument."""
    with pytest.raises(ValueError, match=message):
        cva(**arguments)
