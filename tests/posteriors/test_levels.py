"""Draws of X given y down the noise levels, against quadrature and exact mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from targets import MixtureFamily, Wrapped

import numpyro_neb as neb
from numpyro_neb.energies.base import draws_at
from numpyro_neb.posteriors.levels import NUM_LEVELS, LevelsPosterior, down, flowed, geometric

pytestmark = pytest.mark.statistical

KEY = jax.random.key(0)
LINE = neb.MixtureEnergy(
    np.array([-1.0, 0.5, 2.0]), 1.0, np.log([0.3, 0.5, 0.2]), np.full((3, 1, 1), 0.04)
)
RNG = np.random.default_rng(0)
SPACE = neb.MixtureEnergy(
    RNG.normal(size=(4, 3)),
    1.0,
    np.log([0.4, 0.3, 0.2, 0.1]),
    np.stack([np.diag(v) for v in RNG.uniform(0.01, 0.2, (4, 3))]),
)


@pytest.mark.parametrize(
    "at",
    [LINE.at, pytest.param(lambda s: Wrapped(LINE.at(s)), marks=pytest.mark.slow)],
    ids=["exact", "learned"],
)
def test_on_the_line_against_quadrature(at):
    """Kolmogorov-Smirnov distance of the draws from the law of X given y, of three modes."""
    y, sigma, number = 0.3, 1.5, 4000
    grid = np.linspace(-4, 5, 20_001)
    prior = sum(w * stats.norm.pdf(grid, m, 0.2) for w, m in ((0.3, -1.0), (0.5, 0.5), (0.2, 2.0)))
    density = prior * stats.norm.pdf(y, grid, sigma)
    cdf = np.cumsum(density) / density.sum()
    posterior = LevelsPosterior(at, sigma, 0.05, jnp.asarray(y))
    x = np.sort(np.asarray(posterior.sample(KEY, (number,))))
    place = np.interp(x, grid, cdf)
    distance = np.abs(place - (np.arange(number) + 0.5) / number).max()
    # Exceeded by exact draws once in 10^5, and one percent for the levels.
    assert distance < 2.5 / np.sqrt(number) + 0.01
    # A Gaussian of its moments is far off.
    gauss = stats.norm.cdf(grid, posterior.mean, posterior.std)
    assert np.abs(gauss - cdf).max() > 0.07


@pytest.mark.slow
def test_a_mixture_in_space():
    """Mean and covariance of the draws, and of the posterior, are the exact law's."""
    y, sigma, number = jnp.array([0.5, -0.3, 0.2]), 1.2, 4000
    exact = SPACE.at(sigma).posterior(y)
    family = MixtureFamily(SPACE, (0.05, 5.0))
    posterior = family.posterior(y, sigma)
    np.testing.assert_allclose(posterior.mean, exact.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(posterior.covariance, exact.covariance, rtol=1e-2, atol=1e-3)
    x = np.asarray(posterior.sample(KEY, (number,)), float)
    error = 5 * np.sqrt(np.diag(exact.covariance) / number) + 0.01
    assert np.all(np.abs(x.mean(0) - exact.mean) < error)
    covariance = np.asarray(exact.covariance, float)
    spread = np.sqrt(np.diag(covariance))
    # Products of two coordinates have an sd of up to sqrt(2) of them; 2% for the levels.
    slack = (5 * np.sqrt(2 / number) + 0.02) * np.outer(spread, spread)
    assert np.all(np.abs(np.cov(x.T) - covariance) < slack)


def test_draws_at_another_observation_compile_nothing():
    traced = []

    def at(sigma):
        traced.append(sigma)
        return LINE.at(sigma)

    law = lambda y: LevelsPosterior(at, 1.5, 0.05, jnp.asarray(y), num_levels=2)  # noqa: E731
    law(0.3).sample(KEY, (3,))
    before = len(traced)
    posterior = law(1.0)  # which has moments of its own, at sigma
    constructed = len(traced)
    posterior.sample(KEY, (3,))
    assert (len(traced) - constructed, constructed - before) == (0, 1)


def test_accumulated_measurements_are_the_same_chain():
    """At sigma / sqrt(m): with m = 1, ..., 25 the last level is a fifth of sigma."""
    y, sigma, number = jnp.asarray(0.3), 1.5, 4000
    levels = jnp.asarray(sigma / np.sqrt(np.arange(1, 26)), y.dtype)
    draw = jax.jit(jax.vmap(lambda key: down(LINE.at, y, levels, key, 4)))
    x = np.asarray(draw(jax.random.split(KEY, number)), float)
    # Given y, Y at the last level is X given y and noise of the variance that both explain.
    last = float(levels[-1]) ** 2
    grid = np.linspace(-6, 7, 20_001)
    prior = sum(
        w * stats.norm.pdf(grid, m, np.sqrt(0.04 + last))
        for w, m in ((0.3, -1.0), (0.5, 0.5), (0.2, 2.0))
    )
    density = prior * stats.norm.pdf(0.3, grid, np.sqrt(sigma**2 - last))
    density /= density.sum()
    mean, variance = density @ grid, density @ grid**2 - (density @ grid) ** 2
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / number) + 0.01
    assert abs(x.var() / variance - 1) < 5 * np.sqrt(2 / number) + 0.02


@pytest.mark.slow
def test_from_noise_all_modes_are_drawn():
    """Ten standard deviations of Y apart at the lowest level, weights 0.9 and 0.1."""
    far = neb.MixtureEnergy(np.array([0.0, 10.0]), 1.0, np.log([0.9, 0.1]))
    family = MixtureFamily(far, (1.0, 30.0))
    x = np.asarray(family.sample(KEY, (2000,)))
    share = np.mean(x > 5)
    # Five standard errors, and the bias of N(loc, scale^2 + sigma^2) at a sigma of ten times the
    # spread, below 0.01.
    assert abs(share - 0.1) < 5 * np.sqrt(0.09 / 2000) + 0.01
    # The law of X given y at the lowest level is exact here: atoms.
    assert set(np.unique(x)) == {0.0, 10.0}


def test_a_largest_level_that_leaves_modes_apart():
    """At sigma = 0.5 two points six apart never show a y between them, where N(loc, 9.25) does."""
    two = MixtureFamily(neb.MixtureEnergy(np.array([-3.0, 3.0]), 0.5), (0.1, 0.5))
    y = np.asarray(draws_at(two, jnp.asarray(0.5), KEY, (1000,)))
    x = np.asarray(two.sample(KEY, (1000,)))
    # P(norm(eps) > 3.6) is 3e-4.
    for draws in (y, x):
        assert np.mean(np.abs(np.abs(draws) - 3) > 1.8) < 0.01


def test_levels_that_are_the_same_keep_y():
    y, same = jnp.asarray(0.3), jnp.full(3, 0.5)
    for num_steps in (0, 2):
        assert down(LINE.at, y, same, KEY, num_steps) == y


def test_the_flow_keeps_the_law():
    """Normal draws at sigma = 30 become the mixture's quantiles, in order."""
    levels = geometric(jnp.asarray(30.0), jnp.asarray(0.05), NUM_LEVELS)
    u = np.linspace(0.02, 0.98, 25)
    top = np.sqrt(float(LINE.scale) ** 2 + 900)
    y = jnp.asarray(stats.norm.ppf(u, float(LINE.loc), top))
    x = np.asarray(jax.jit(jax.vmap(lambda y: flowed(LINE.at, y, levels)))(y), float)
    cdf = sum(
        w * stats.norm.cdf(x, m, np.sqrt(0.04 + 0.05**2))
        for w, m in ((0.3, -1.0), (0.5, 0.5), (0.2, 2.0))
    )
    np.testing.assert_allclose(cdf, u, atol=0.01)


def test_spreads_and_shapes():
    family = MixtureFamily(SPACE, (0.05, 5.0))
    y = jnp.zeros(3)
    few = {"num_levels": 2, "num_steps": 1}
    posterior = family.posterior(y, 1.0, covariance=neb.empirical_bayes.Isotropic(), **few)
    assert posterior.sample(KEY, (2, 1)).shape == (2, 1, 3)
    assert posterior.variance.shape == (3,)
    for ask in (posterior.cdf, posterior.upper_tail, posterior.icdf, posterior.log_prob):
        with pytest.raises(NotImplementedError, match="known by draws alone: use sample"):
            ask(y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_levels": 0}, "num_levels must be a positive int, got 0"),
        ({"num_steps": -1}, "num_steps must be an int of at least 0, got -1"),
        ({"sigma": 7.0}, r"sigma must be in sigma_range = \(0.1, 1\), got 7"),
        ({"y": np.zeros(3)}, r"y must have the event shape \(2,\)"),
    ],
)
def test_wrong_arguments(given, message, untyped):
    def nothing(y, t):
        return jnp.zeros_like(y)

    family = neb.ConditionalEnergy(nothing, (2,), (0.1, 1.0))
    with pytest.raises(ValueError, match=message):
        family.posterior(**({"y": np.zeros(2), "sigma": 0.5} | given))
