"""The families of priors of `fit_mixture`: maxima, posteriors by quadrature, coverage."""

from functools import partial

import jax
import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import ndtr

import numpyro_neb as neb

pytestmark = pytest.mark.statistical

FAMILIES = ("npmle", "normal", "point_normal", "scale_mixture", "unimodal", "spline")
SMOOTH = FAMILIES[1:]


def sparse(n=1000, seed=0, noise=1.0):
    """Eight in ten effects are zero, the others 1.5 times a t with five degrees of freedom."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.8, 0.0, 1.5 * rng.standard_t(5, n))
    return x, x + noise * rng.normal(size=n)


def log_density(prior, y, sigma):
    """Log f(y) of a mixture of normals, by the textbook."""
    spread = np.sqrt(prior.variances + np.reshape(sigma, (-1, 1)) ** 2)
    return np.log(stats.norm.pdf(y[:, None], prior.locs, spread) @ prior.weights)


def distribution_function(prior, at):
    """P(X <= at)."""
    spread = np.sqrt(np.where(prior.variances > 0, prior.variances, 1))
    below = np.where(prior.variances > 0, ndtr((at - prior.locs) / spread), at >= prior.locs)
    return prior.weights @ below


@pytest.mark.parametrize("family", FAMILIES)
def test_posteriors_by_quadrature(family, x64):
    """Moments, quantiles, sign rates and likelihoods of a fitted prior, integrated on a grid."""
    sigma = np.random.default_rng(1).uniform(0.5, 1.5, 300)
    _, y = sparse(300, noise=sigma)
    fit = neb.fit_mixture(y, sigma, prior=family)
    prior = fit.prior
    np.testing.assert_allclose(fit.log_likelihoods, log_density(prior, y, sigma), rtol=1e-9)
    # A point mass is a narrow normal law to a grid: they are added up apart from the rest.
    grid = np.linspace(-30, 30, 60_001)
    atoms, rest = prior.variances == 0, prior.variances > 0
    for j in range(0, 300, 60):
        points = np.concatenate([grid, prior.locs[atoms]])
        density = np.zeros_like(grid)
        if rest.any():
            each = stats.norm.pdf(grid[:, None], prior.locs[rest], np.sqrt(prior.variances[rest]))
            density = each @ prior.weights[rest] * (grid[1] - grid[0])
        mass = np.concatenate([density, prior.weights[atoms]])
        mass *= np.exp(-((y[j] - points) ** 2) / (2 * sigma[j] ** 2))
        mass /= mass.sum()
        mean = mass @ points
        np.testing.assert_allclose(fit.posterior_mean[j], mean, atol=1e-8)
        deviation = np.sqrt(mass @ (points - mean) ** 2)
        np.testing.assert_allclose(fit.posterior_std[j], deviation, atol=1e-7)
        np.testing.assert_allclose(np.asarray(fit.posterior.mean)[j], mean, atol=1e-8)
        if family != "npmle":
            # Half of the grid's cell at zero lies on each side, a point mass there on both.
            spike = np.append(np.full(len(grid), 0.5), np.ones(atoms.sum()))
            here = mass[points == 0] @ spike[points == 0]
            rate = min(mass[points < 0].sum(), mass[points > 0].sum()) + here
            np.testing.assert_allclose(fit.lfsr[j], rate, atol=1e-5)
        lower, upper = (np.asarray(end)[j] for end in fit.posterior.interval(0.9))
        tail = 0.05 + 1e-6
        assert mass[points < lower - 1e-3].sum() <= tail
        assert mass[points > upper + 1e-3].sum() <= tail
        assert mass[points <= lower + 1e-3].sum() >= 0.05 - 1e-4
        assert mass[points >= upper - 1e-3].sum() >= 0.05 - 1e-4


def test_normal_is_the_closed_form():
    """With one sigma, tau^2 = mean(y - mode)^2 - sigma^2, and zero if that is negative."""
    _, y = sparse()
    fit = neb.fit_mixture(y, 1.0, prior="normal")
    np.testing.assert_allclose(fit.prior.variances, np.mean(y**2) - 1, rtol=1e-5)
    centred = neb.fit_mixture(y + 7, 1.0, prior="normal", mode="estimate")
    np.testing.assert_allclose(centred.prior.locs, y.mean() + 7, atol=1e-3)
    none = neb.fit_mixture(0.5 * y / y.std(), 1.0, prior="normal")
    assert none.prior.variances == 0
    np.testing.assert_array_equal(none.posterior_mean, 0)


def test_point_normal_is_a_maximum():
    """No other weight and scale on a fine grid has a higher likelihood."""
    _, y = sparse()
    fit = neb.fit_mixture(y, 1.0, prior="point_normal")
    scales, shares = np.meshgrid(np.geomspace(0.1, 20, 100), np.linspace(0.001, 0.999, 100))
    null = stats.norm.pdf(y)
    values = [
        np.log((1 - w) * null + w * stats.norm.pdf(y, 0, np.hypot(1, tau))).sum()
        for tau, w in zip(scales.ravel(), shares.ravel(), strict=True)
    ]
    assert fit.log_likelihood >= max(values)
    assert fit.log_likelihood - max(values) < 0.1  # the grid comes near


@pytest.mark.parametrize("family", ["scale_mixture", "unimodal"])
def test_the_certificate(family):
    """A finer solution is above the fit by at most the gap, in the penalised likelihood."""
    _, y = sparse(400)
    fit = neb.fit_mixture(y, 1.0, prior=family, max_gap=1e-4)
    assert fit.duality_gap <= 1e-4
    finer = neb.fit_mixture(y, 1.0, prior=family, max_gap=1e-9)
    values = [
        law.log_likelihood + 3 * np.log(law.weights[law.prior.variances == 0].sum())
        for law in (fit, finer)
    ]
    assert -1e-6 <= values[1] - values[0] <= 1e-4 + 1e-6


def test_scale_mixtures_by_em():
    """EM on the same scales, with three observations more that are zero, finds the same law."""
    _, y = sparse(300)
    fit = neb.fit_mixture(y, 1.0, prior="scale_mixture", max_gap=1e-9)
    scales = np.append(0, 0.1 * 2 ** (0.25 * np.arange(40)))
    scales = scales[scales <= 2**1.25 * 2 * np.sqrt(np.max(y**2) - 1)]
    likelihood = stats.norm.pdf(y[:, None], 0, np.hypot(1, scales))
    weights = np.full(len(scales), 1 / len(scales))
    for _ in range(20_000):
        counts = (likelihood * weights / (likelihood @ weights)[:, None]).sum(0)
        counts[0] += 3
        weights = counts / counts.sum()
    expected = np.log(likelihood @ weights).sum() + 3 * np.log(weights[0])
    null = fit.weights[fit.prior.variances == 0].sum()
    np.testing.assert_allclose(fit.log_likelihood + 3 * np.log(null), expected, atol=1e-3)
    np.testing.assert_allclose(null, weights[0], atol=0.01)


def test_a_unimodal_prior_has_one_mode():
    """Its density falls on either side of the mode, and may be skewed."""
    rng = np.random.default_rng(2)
    y = rng.exponential(2.0, 2000) + 0.5 * rng.normal(size=2000)
    prior = neb.fit_mixture(y, 0.5, prior="unimodal").prior
    order = np.argsort(prior.locs)
    locs, weights = prior.locs[order], prior.weights[order]
    cells = prior.variances[order] > 0
    right, left = weights[cells & (locs > 0)], weights[cells & (locs < 0)]
    assert np.all(np.diff(right) <= 1e-12)
    assert np.all(np.diff(left) >= -1e-12)
    assert right.sum() > 0.9


def test_a_spline_is_its_penalised_maximum():
    """The gradient of the penalised likelihood is zero, by finite differences of slopes."""
    from numpyro_neb.empirical_bayes.priors import NormalData
    from numpyro_neb.empirical_bayes.spline import natural_spline, spline_weights

    _, y = sparse(300)
    data = NormalData(np.ones(300), y, np.ones(300))
    grid = np.linspace(y.min(), y.max(), 60)
    kernel = data.kernel(grid, 0.0)
    weights = spline_weights(kernel, grid, 5, 1.0)
    basis = natural_spline(grid, 5)
    basis = basis - basis.mean(0)
    basis /= np.linalg.norm(basis, axis=0)
    likelihood = stats.norm.pdf(y[:, None], grid)

    def objective(slopes):
        law = np.exp(basis @ slopes)
        return np.linalg.norm(slopes) - np.log(likelihood @ (law / law.sum())).sum()

    slopes = np.linalg.lstsq(basis, np.log(weights) - np.log(weights).mean(), rcond=None)[0]
    found = optimize.minimize(objective, slopes, method="Nelder-Mead", options={"xatol": 1e-4})
    assert objective(slopes) - found.fun < 1e-3


def test_a_natural_spline_is_linear_at_its_ends():
    """And cubic between: its second derivative is zero at the first and the last point."""
    from numpyro_neb.empirical_bayes.spline import natural_spline

    x = np.linspace(0, 1, 2001)
    basis = natural_spline(x, 5)
    assert basis.shape == (2001, 5)
    assert np.linalg.matrix_rank(basis) == 5
    second = np.diff(basis, 2, axis=0) / (x[1] - x[0]) ** 2
    inside = np.abs(second).max(0)
    assert np.all(np.abs(second[[0, -1]]) < 0.02 * inside)


@pytest.mark.parametrize("family", SMOOTH)
def test_missing_and_exact_observations(family):
    """An infinite sigma gives the prior, and zero the observation itself; neither is fitted to."""
    _, y = sparse(500)
    plain = neb.fit_mixture(y, 1.0, prior=family)
    more = np.concatenate([y, [np.nan, 2.5]])
    fit = neb.fit_mixture(more, np.concatenate([np.ones(500), [np.inf, 0.0]]), prior=family)
    np.testing.assert_allclose(fit.prior.weights, plain.prior.weights, rtol=1e-9)
    np.testing.assert_allclose(fit.log_likelihood, plain.log_likelihood, rtol=1e-12)
    prior = fit.prior
    mean = prior.weights @ prior.locs
    variance = prior.weights @ (prior.variances + (prior.locs - mean) ** 2)
    np.testing.assert_allclose(fit.posterior_mean[-2:], [mean, 2.5], atol=1e-9)
    np.testing.assert_allclose(fit.posterior_std[-2:], [np.sqrt(variance), 0], rtol=1e-9)
    lower, upper = fit.posterior.interval(0.9)
    np.testing.assert_allclose([lower[-1], upper[-1]], 2.5, rtol=1e-5)
    cdf = partial(distribution_function, prior)
    assert cdf(float(upper[-2]) + 1e-3) >= 0.95 - 1e-6
    assert cdf(float(lower[-2]) - 1e-3) <= 0.05 + 1e-6
    draws = fit.sample(jax.random.key(0), (4000,))
    assert np.all(draws[:, -1] == 2.5)
    # Five standard errors of the mean of 4,000 draws.
    assert abs(draws[:, -2].mean() - mean) < 5 * np.sqrt(variance / 4000)


@pytest.mark.parametrize("family", ["npmle", "normal", "point_normal"])
def test_ties_count_as_often_as_they_are(family):
    """Every observation three times has the same law, and three times the likelihood."""
    _, y = sparse(200)
    once = neb.fit_mixture(y, 1.0, prior=family, max_gap=1e-8)
    thrice = neb.fit_mixture(np.tile(y, 3), 1.0, prior=family, max_gap=1e-8)
    np.testing.assert_allclose(thrice.log_likelihood, 3 * once.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(thrice.posterior_mean[:200], once.posterior_mean, atol=2e-3)


@pytest.mark.parametrize("family", SMOOTH)
def test_units_do_not_matter(family):
    """The same effects in other units have the same posterior in those units."""
    _, y = sparse(200)
    plain = neb.fit_mixture(y, 1.0, prior=family)
    for unit in (1e-6, 1e6):
        fit = neb.fit_mixture(unit * y, unit, prior=family)
        np.testing.assert_allclose(fit.posterior_mean / unit, plain.posterior_mean, atol=2e-3)
        np.testing.assert_allclose(fit.lfsr, plain.lfsr, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["scale_mixture", "spline"])
@pytest.mark.parametrize("law", ["normal", "sparse", "tophat"])
def test_intervals_cover(family, law):
    """ebnm's designs: at least .86 of a nominal .9, where the nonparametric ones cover .7."""
    covered = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x = sparse(1000, seed)[0]
        if law != "sparse":
            x = 2 * rng.normal(size=1000) if law == "normal" else rng.uniform(-5, 10, 1000)
        fit = neb.fit_mixture(x + rng.normal(size=1000), 1.0, prior=family, progress_bar=False)
        lower, upper = (np.asarray(end, float) for end in fit.posterior.interval(0.9))
        covered.append(np.mean((lower <= x + 1e-6) & (x - 1e-6 <= upper)))
    assert np.mean(covered) > 0.86


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": "lognormal"}, "prior must be 'npmle'"),
        ({"mode": 1.0}, "mode must be 0 for prior='npmle'"),
        ({"prior": "normal", "locs": [0.0]}, "locs must be None for prior='normal'"),
        ({"family": "poisson", "sigma": 1.0}, "sigma must be None"),
        ({"family": "poisson", "sigma": None, "prior": "normal"}, "prior must be one of"),
        ({"family": "binomial", "sigma": None}, "trials must be given"),
        ({"sigma": None}, "sigma must be given"),
        ({"covariates": np.zeros((3, 1))}, "key must be given"),
        ({"exposure": 1.0}, "exposure must be None"),
        ({"location_scale": True, "locs": [0.0]}, "locs must be None with location_scale"),
    ],
)
def test_bad_arguments(arguments, message, untyped):
    """A message that names the argument, before anything is computed."""
    with pytest.raises(ValueError, match=message):
        neb.fit_mixture(**({"y": np.zeros(3), "sigma": 1.0} | arguments))
