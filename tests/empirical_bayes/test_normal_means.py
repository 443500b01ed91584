"""`fit_mixture` against the optimality conditions, closed forms and the published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy import special, stats

import numpyro_neb as neb
from benchmarks.normal_means import (
    REFERENCE,
    columns,
    data_folder,
    efron_morris,
    johnstone_silverman,
)
from numpyro_neb.empirical_bayes import grids, kernels, normal_means
from numpyro_neb.empirical_bayes.normal_means import candidates

pytestmark = pytest.mark.statistical

FOLDER = data_folder()
needs_data = pytest.mark.skipif(FOLDER is None, reason="NEB_DATA names no folder with the data")


def two_groups(n=1000, seed=0):
    """Nine in ten are zero, the others 3; unit noise."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(n) < 0.9, 0.0, 3.0)
    return x, x + rng.normal(size=n)


def log_kernel(y, sigma, locs):
    """log N(y_j; m_i, sigma_j^2 I), by the textbook."""
    y, locs = np.reshape(y, (len(y), -1)), np.reshape(locs, (len(locs), -1))
    sigma = np.broadcast_to(sigma, len(y))[:, None, None]
    return stats.norm.logpdf(y[:, None], locs[None], sigma).sum(-1)


@pytest.mark.parametrize("case", ["one sigma", "one each", "plane", "given locs"])
def test_is_the_maximum(case):
    """Kiefer and Wolfowitz: mean_j N(y_j; m) / f(y_j) is at most one at every location."""
    rng = np.random.default_rng(1)
    _, y = two_groups(400)
    sigma, locs = 1.0, None
    if case == "one each":
        sigma = rng.uniform(0.3, 2.0, 400)
    if case == "plane":
        y = rng.normal(size=(150, 2)) * np.array([3, 1]) + rng.normal(size=(150, 2))
        locs = y
    if case == "given locs":
        locs = np.array([4.0, -1.0, 0.0, 0.5, 2.5, 3.1])
    fit = neb.fit_mixture(y, sigma, locs=None if case == "plane" else locs, max_gap=1e-4)
    log_f = special.logsumexp(log_kernel(y, sigma, fit.locs), axis=1, b=fit.weights)
    np.testing.assert_allclose(fit.energy.locs, fit.locs, rtol=1e-6)
    np.testing.assert_allclose(np.exp(fit.energy.log_weights), fit.weights, rtol=1e-5)
    np.testing.assert_allclose(fit.log_likelihoods, log_f, rtol=1e-9)
    np.testing.assert_allclose(fit.log_likelihood, log_f.sum(), rtol=1e-9)
    everywhere = candidates(y, np.broadcast_to(sigma, len(y)), locs)
    gradient = np.exp(log_kernel(y, sigma, everywhere) - log_f[:, None]).mean(0)
    assert len(y) * np.log(gradient.max()) < 1e-4 + 1e-8
    assert fit.duality_gap <= 1e-4
    assert fit.energy.sigma == jnp.asarray(np.median(sigma), float)


def test_beats_em(x64):
    """2,000 steps of expectation maximisation on the same grid come no higher."""
    _, y = two_groups(300)
    grid = np.linspace(y.min(), y.max(), 100)
    kernel = np.exp(log_kernel(y, 1.0, grid))
    weights = np.full(100, 0.01)
    for _ in range(2000):
        weights *= (kernel / (kernel @ weights)[:, None]).mean(0)
    em = np.log(kernel @ weights).sum()
    fit = neb.fit_mixture(y, 1.0, locs=grid, max_gap=1e-6)
    assert em <= fit.log_likelihood + 1e-6
    assert fit.log_likelihood < em + 300 * np.log(
        (kernel / (kernel @ weights)[:, None]).mean(0).max()
    )


def test_an_observation_far_from_all_others():
    """Its likelihood under the bulk is zero to all digits; the bulk's fit does not suffer."""
    _, y = two_groups(500)
    bulk = neb.fit_mixture(y, 1.0)
    fit = neb.fit_mixture(np.append(y, 1e4), 1.0)
    assert fit.duality_gap <= 1e-3
    # An atom of its own, at most half a spacing of a tenth away: (1/20)^2 / 2 of likelihood.
    lost = np.log(501) + np.log(2 * np.pi) / 2 + 0.00125 - 500 * np.log(500 / 501)
    assert fit.log_likelihood > bulk.log_likelihood - lost - 0.1
    np.testing.assert_allclose(fit.posterior_mean[-1], 1e4, atol=0.1)
    np.testing.assert_allclose(fit.weights.min(), 1 / 501, rtol=1e-3)


@pytest.mark.parametrize("ratio", [10.0, 1e2, 1e3, 1e5])
def test_very_different_sigmas(ratio):
    """A tenth of the observations is far more precise than the others."""
    rng = np.random.default_rng(0)
    x, _ = two_groups(300)
    sigma = np.where(rng.random(300) < 0.1, 1 / ratio, 1.0)
    y = x + sigma * rng.normal(size=300)
    fit = neb.fit_mixture(y, sigma)
    assert fit.duality_gap <= 1e-3
    precise = sigma < 1
    assert np.all(np.abs(fit.posterior_mean - y)[precise] < 4 * sigma[precise])
    # The true law is two of the candidates, or as good as: no better than the fit.
    oracle = neb.fit_mixture(y, sigma, locs=np.array([0.0, 3.0]))
    assert fit.log_likelihood > oracle.log_likelihood - 0.5


def test_sigma_far_below_the_range():
    y = np.random.default_rng(0).random(300)
    fit = neb.fit_mixture(y, 1e-4)
    assert fit.duality_gap <= 1e-3
    assert np.all(np.abs(fit.posterior_mean - y) < 5e-4)


def test_says_where_the_grid_is_coarse():
    y = np.random.default_rng(0).random(20_000)
    with pytest.warns(UserWarning, match="the grid's spacing is .* sigma, and the likelihood may"):
        grids.line(y, np.full(20_000, 1e-5))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_digits_are_kept(offset):
    """All in float64: data far from zero are fitted as those around it."""
    _, y = two_groups(200)
    grid = np.array([0.0, 1.0, 3.0])
    expected = neb.fit_mixture(y, 1.0, locs=grid)
    fit = neb.fit_mixture(y + offset, 1.0, locs=grid + offset)
    np.testing.assert_allclose(fit.log_likelihood, expected.log_likelihood, rtol=1e-8)
    np.testing.assert_allclose(fit.posterior_mean - offset, expected.posterior_mean, atol=1e-6)
    np.testing.assert_allclose(fit.posterior_std, expected.posterior_std, atol=1e-6)


def test_posteriors_are_each_at_its_own_sigma(x64):
    rng = np.random.default_rng(2)
    x, _ = two_groups(50)
    sigma = rng.uniform(0.5, 2, 50)
    y = x + sigma * rng.normal(size=50)
    fit = neb.fit_mixture(y, sigma, locs=np.array([-1.0, 0.0, 2.0, 3.0]))
    locs, weights = fit.locs, fit.weights
    r = weights * np.exp(log_kernel(y, sigma, locs))
    r /= r.sum(1, keepdims=True)
    np.testing.assert_allclose(fit.posterior_mean, r @ locs, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(fit.posterior_second_moment, r @ locs**2, rtol=1e-8, atol=1e-12)
    variance = r @ locs**2 - (r @ locs) ** 2
    np.testing.assert_allclose(fit.posterior_std**2, variance, rtol=1e-6, atol=1e-12)
    rate = np.minimum(r[:, locs <= 0].sum(1), r[:, locs >= 0].sum(1))
    np.testing.assert_allclose(fit.lfsr, rate, atol=1e-12)
    assert not fit.lfsr_withheld


def test_new_data_and_draws():
    _, y = two_groups()
    fit = neb.fit_mixture(y, 1.0)
    held_out = two_groups(500, seed=1)[1]
    new = fit.predict(held_out, np.full(500, 1.0))
    np.testing.assert_allclose(
        new.posterior_mean, neb.posterior_mean(fit.energy, held_out), atol=1e-5
    )
    expected = -np.sum(np.asarray(jax.vmap(fit.energy)(jnp.asarray(held_out, float))))
    np.testing.assert_allclose(new.log_likelihood, expected, rtol=1e-5)
    assert "below" not in str(new)  # the bound is that of other data
    assert np.isnan(new.duality_gap)
    again = fit.predict(y, 1.0)
    np.testing.assert_allclose(again.posterior_mean, fit.posterior_mean)
    np.testing.assert_allclose(again.log_likelihood, fit.log_likelihood)
    draws = np.asarray(fit.sample(jax.random.key(0), (4000,)), float)
    assert draws.shape == (4000, 1000)
    doubt = np.asarray(fit.posterior_std) / np.sqrt(4000) + 1e-6
    targets.within(draws.mean(0), np.asarray(fit.posterior_mean), doubt)


def test_what_it_is_for():
    """The errors come down to a tenth, and the named signs are right as often as they say."""
    x, y = two_groups(4000)
    fit = neb.fit_mixture(y, 1.0)
    error = (np.asarray(fit.posterior_mean) - x) ** 2
    # The Bayes rule of the true law, which knows the two groups.
    oracle = neb.MixtureEnergy(jnp.array([0.0, 3.0]), 1.0, jnp.log(jnp.array([0.9, 0.1])))
    best = (np.asarray(neb.posterior_mean(oracle, y)) - x) ** 2
    difference = error - best
    assert difference.mean() < 0.02 + 5 * difference.std() / np.sqrt(4000)
    assert error.mean() < 0.25 * np.mean((y - x) ** 2)


def test_prints_in_three_lines():
    _, y = two_groups(30)
    fit = neb.fit_mixture(y, 1.0, locs=[0.0, 3.0])
    title, law, posterior = str(fit).splitlines()
    assert title.startswith("MixtureFit of 30 observations: log-likelihood ")
    assert law == f"npmle: 2 point masses: {fit.weights[0]:.3g} at 0, {fit.weights[1]:.3g} at 3"
    assert posterior.startswith(f"posterior_std is {fit.posterior_std.min():.2g} to ")
    assert posterior.endswith(f"; lfsr < 0.05 for {np.sum(fit.lfsr < 0.05)} of 30")
    assert "point masses" in str(neb.fit_mixture(np.stack([y, y], 1), 1.0))
    many = neb.fit_mixture(np.arange(0.0, 200.0, 10.0), 0.5)
    assert len(many.locs) > 12
    assert str(many).splitlines()[1].count(" at ") == 12


def test_zero_is_on_the_grid():
    _, y = two_groups(100)
    assert 0.0 in grids.line(y, np.ones(100))


def test_newton_falls_back_on_em(monkeypatch):
    """Where least squares gives up, the likelihood still rises to the same maximum."""
    _, y = two_groups(200)
    grid = np.array([0.0, 1.5, 3.0])
    expected = neb.fit_mixture(y, 1.0, locs=grid).log_likelihood

    def fails(*args, **kwargs):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr("scipy.optimize.nnls", fails)
    fit = neb.fit_mixture(y, 1.0, locs=grid, max_iterations=2000)
    np.testing.assert_allclose(fit.log_likelihood, expected, atol=2e-3)


def test_far_observations_do_not_stop_newton():
    """A component that explains one observation in 10^6 makes H's diagonal range over 10^6."""
    y = np.append(np.round(2.2 * np.random.default_rng(0).normal(size=10**6), 1), [20.0, -25.0])
    fit = neb.fit_mixture(y, 1.0, locs=np.arange(-26, 21, 0.05))
    assert fit.duality_gap < 1e-3
    assert fit.num_iterations < 20


def test_all_observations_alike():
    fit = neb.fit_mixture(np.full(5, 2.0), 1.0)
    np.testing.assert_allclose(fit.posterior_mean, 2.0)
    assert fit.duality_gap == 0


def test_says_where_it_did_not_arrive():
    _, y = two_groups(200)
    with pytest.warns(UserWarning, match=r"max_iterations = 1 with a duality gap of .*, above"):
        fit = neb.fit_mixture(y, 1.0, max_iterations=1)
    assert fit.num_iterations == 1
    assert fit.duality_gap > 1e-3


def test_progress(capsys, monkeypatch):
    real = normal_means.tqdm
    monkeypatch.setattr(normal_means, "tqdm", lambda **kwargs: real(**kwargs | {"delay": 0}))
    _, y = two_groups(200)
    neb.fit_mixture(y, 1.0)
    assert "fit_mixture" in capsys.readouterr().err
    neb.fit_mixture(y, 1.0, progress_bar=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.zeros(0)}, r"y must have shape \(n,\) or \(n, \*event_shape\) and not be empty"),
        ({"y": np.array([0.0, np.nan])}, "y must be finite, got NaN or infinity"),
        ({"y": np.array([0.0, np.inf])}, "y must be finite, got NaN or infinity"),
        ({"sigma": np.ones(3)}, r"sigma must be a scalar or of shape \(2,\), got \(3,\)"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"sigma": np.array([1.0, -0.3])}, "sigma must be positive and finite, got -0.3"),
        ({"sigma": np.array([1.0, np.nan])}, "sigma must be positive and finite, got nan"),
        ({"locs": np.zeros((3, 1))}, r"locs must have shape \(K,\), got \(3, 1\)"),
        ({"locs": np.array([np.nan])}, "locs must be finite"),
        ({"max_gap": 0.0}, "max_gap must be positive, got 0.0"),
        ({"max_iterations": 1.5}, "max_iterations must be a positive int, got 1.5"),
    ],
)
def test_bad_arguments(arguments, message, untyped):
    with pytest.raises(ValueError, match=message):
        neb.fit_mixture(**({"y": np.zeros(2), "sigma": 1.0} | arguments))


def test_new_data_of_another_shape(untyped):
    fit = neb.fit_mixture(np.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"y must have shape \(m,\), got \(4, 2\)"):
        fit.predict(np.zeros((4, 2)), 1.0)


@needs_data
def test_weighted_on_base_averages():
    """The published log-likelihoods and posterior means of R's ebnm."""
    x, s = columns(FOLDER, "woba_2022.csv", "x", "s")
    fit = neb.fit_mixture(x, s)
    assert fit.log_likelihood >= 994.26
    names = (FOLDER / "woba_2022.csv").read_text().splitlines()[1:]
    published = {"Khalil Lee": 0.303, "Chadwick Tromp": 0.308, "Otto Lopez": 0.311}
    published |= {"Matt Carpenter": 0.354, "Aaron Judge": 0.427}
    for name, value in published.items():
        (row,) = (i for i, line in enumerate(names) if name in line)
        assert round(float(fit.posterior_mean[row]), 3) == value, name


@needs_data
def test_prostate():
    (z,) = columns(FOLDER, "prostate_z.csv", "z")
    fit = neb.fit_mixture(z, 1.0)
    assert fit.log_likelihood >= -9286.06


@needs_data
def test_efron_and_morris():
    assert efron_morris(FOLDER) <= 5.3


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("k", "mu"), REFERENCE)
def test_the_johnstone_silverman_table(k, mu):
    errors = johnstone_silverman(k, mu, 40)
    assert errors.mean() < REFERENCE[k, mu] + 2 * errors.std(ddof=1) / np.sqrt(40)


def test_threads_do_not_show(monkeypatch):
    rng = np.random.default_rng(0)
    y, sigma, locs = rng.normal(size=(500, 1)), rng.uniform(0.5, 1, 500), np.linspace(-3, 3, 40)
    kernel = kernels.NormalKernel(np.ones(500), y, sigma, locs[:, None], np.zeros(40))
    active, weights = np.array([3, 20, 30]), np.array([0.2, 0.5, 0.3])
    monkeypatch.setattr(kernels, "_BLOCK", 800)
    found = []
    for least in (1, 10_000):
        monkeypatch.setattr(kernels, "_SOME", least)
        log_f = kernel.log_density(active, weights)
        found.append((log_f, kernel.ratios(active, log_f), kernel.gradient(log_f)))
    for threads, alone in zip(*found, strict=True):
        np.testing.assert_array_equal(threads, alone)
