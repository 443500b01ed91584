"""`MixtureFit`: right at any offset, and no sign rates where point masses crowd zero."""

import jax
import numpy as np
import pytest
import targets
from scipy import special

import numpyro_neb as neb

pytestmark = pytest.mark.statistical


def given(fit, y, sigma):
    """Responsibilities in float64, by the textbook."""
    return special.softmax(-((y[:, None] - fit.locs) ** 2) / 2 / sigma**2 + np.log(fit.weights), 1)


def test_groups_far_apart(x32):
    """Two groups, 10,000 sigma apart: the law of X given y in JAX is that of the host."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 0.2, 100), 1000 + rng.normal(0, 0.2, 100)])
    y = x + 0.1 * rng.normal(size=200)
    fit = neb.fit_mixture(y, 0.1)
    r = given(fit, y, 0.1)
    mean = r @ fit.locs
    std = np.sqrt(np.sum(r * (fit.locs - mean[:, None]) ** 2, 1))
    np.testing.assert_allclose(fit.posterior_mean, mean, atol=1e-9)
    np.testing.assert_allclose(fit.posterior_std, std, atol=1e-9)
    # Rounding at 1,000 is half of 6e-5; where two atoms compete it counts a few times.
    np.testing.assert_allclose(fit.posterior.mean, mean, atol=1e-3)
    np.testing.assert_allclose(fit.posterior.stddev, std, atol=1e-3)
    draws = fit.sample(jax.random.key(0), (2000,))
    assert draws.shape == (2000, 200)
    assert set(np.unique(draws)) <= set(fit.locs)
    targets.within(draws.mean(0), mean, std / np.sqrt(2000) + 1e-9)


@pytest.mark.parametrize("outlier", [1e6, -9.96921e36])
def test_an_outlier_does_not_touch_the_others(outlier):
    y = 2 * np.random.default_rng(0).normal(size=100)
    fit = neb.fit_mixture(np.append(y, outlier), 1.0)
    r = given(fit, y, 1.0)
    mean = r @ fit.locs
    np.testing.assert_allclose(fit.posterior_mean[:100], mean, atol=1e-9)
    std = np.sqrt(np.sum(r * (fit.locs - mean[:, None]) ** 2, 1))
    np.testing.assert_allclose(fit.posterior_std[:100], std, atol=1e-9)
    np.testing.assert_allclose(fit.posterior_mean[-1], outlier, rtol=1e-7)
    assert fit.sample(jax.random.key(0), (5,))[:, :100].max() < 10


def test_what_the_dtype_cannot_hold(x32):
    y = np.random.default_rng(0).normal(size=50)
    with pytest.warns(UserWarning, match=r"values up to 1000000.*is lost in rounding"):
        _ = neb.fit_mixture(np.append(y, 1e6), 1.0).posterior
    with pytest.raises(ValueError, match="locs must be at most"):
        _ = neb.fit_mixture(np.append(y, 1e30), 1.0).posterior
    near = neb.fit_mixture(y, 1.0).predict([0.0, 1e6], 1.0)
    with pytest.warns(UserWarning, match="y has values up to"):
        _ = near.posterior
    assert near.posterior_mean[1] == near.locs.max()


@pytest.mark.parametrize("far", [1e10, 1e30])
def test_far_out_the_nearest_point_mass_has_all(far):
    y = np.random.default_rng(0).normal(size=(60, 2)) * 2
    fit = neb.fit_mixture(y, 1.0)
    new = fit.predict([[far, 0.0], [0.0, -far]], 1.0)
    right, low = fit.locs[np.argmax(fit.locs[:, 0])], fit.locs[np.argmin(fit.locs[:, 1])]
    np.testing.assert_allclose(new.posterior_mean, [right, low], rtol=1e-12)
    np.testing.assert_array_equal(new.posterior_std, 0)


def test_many_dimensions_at_an_offset():
    """Differences in place of a matrix product, and the same fit."""
    rng = np.random.default_rng(0)
    y = np.round(rng.normal(size=(80, 3)) * 2, 3)
    sigma = rng.uniform(0.5, 1.5, 80)
    far = np.array([1e9, 0.0, 0.0])
    plain = neb.fit_mixture(np.concatenate([y, far[None] / 1e6]), np.append(sigma, 1.0))
    moved = neb.fit_mixture(np.concatenate([y, far[None]]), np.append(sigma, 1.0))
    np.testing.assert_allclose(moved.posterior_mean[:80], plain.posterior_mean[:80], atol=1e-4)
    np.testing.assert_allclose(moved.log_likelihood, plain.log_likelihood, atol=2e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("effects", ["normal", "three"])
def test_no_sign_rates_where_atoms_crowd_zero(effects, seed):
    """Four in five effects are zero: the plain fit would "discover" them by the hundred."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(300) < 0.8, 0, 3 * rng.normal(size=300) if effects == "normal" else 3)
    y = x + rng.normal(size=300)
    fit = neb.fit_mixture(y, 1.0)
    with pytest.warns(UserWarning, match="lfsr is NaN: the data can't tell .* point masses within"):
        rate = fit.lfsr
    assert np.isnan(rate).all()
    assert not np.any(rate < 0.05)
    assert "no lfsr: the data can't tell" in str(fit)
    with pytest.warns(UserWarning, match="lfsr is NaN"):
        assert np.isnan(fit.predict([0.1, 2.0], 1.0).lfsr).all()
    # A gap is a statement about X, and gives rates.
    grid = np.arange(-10, 11.0)
    stated = neb.fit_mixture(y, 1.0, locs=grid)
    named = stated.lfsr < 0.05
    wrong = np.mean(np.sign(y[named]) != np.sign(x[named]))
    assert wrong < 0.05 + 5 * np.sqrt(0.05 * 0.95 / named.sum())


def test_a_rate_that_point_masses_near_zero_do_not_touch(x64):
    """Two observations at 8: with all near zero counted as zero their rate is as small."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(400) < 0.5, 8.0, -8.0)
    fit = neb.fit_mixture(x + rng.normal(size=400), 1.0)
    assert not fit.lfsr_withheld
    assert fit.lfsr.max() < 1e-6


@pytest.mark.parametrize(("settings", "warns"), [({}, 1), ({"prior": "scale_mixture"}, 0)])
def test_print_says_that_point_masses_are_too_short_a_prior(settings, warns):
    """No effect is zero, and the plain fit's rates, although they are there, are too low."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random(200) < 0.5, 8.0, -8.0) + rng.normal(size=200)
    text = str(neb.fit_mixture(y, 1.0, **settings))
    assert text.count("for intervals and sign rates use another prior") == warns
    assert text.count("lfsr < 0.05 for ") == 1 - warns


def test_a_point_mass_at_zero_counts_on_both_sides():
    fit = neb.fit_mixture(np.array([-1.0, 0.1, 0.2, 4.0]), 1.0, locs=[-1.0, 0.0, 4.0])
    r = given(fit, fit.y, 1.0)
    expected = np.minimum(r[:, fit.locs <= 0].sum(1), r[:, fit.locs >= 0].sum(1))
    np.testing.assert_allclose(fit.lfsr, expected, rtol=1e-9)
    assert 0 in fit.locs


def test_crowding_is_by_coordinate():
    """In the first coordinate effects are zero or near it, in the second far from it."""
    rng = np.random.default_rng(0)
    x = np.stack([np.zeros(200), np.where(rng.random(200) < 0.5, 6.0, -6.0)], 1)
    fit = neb.fit_mixture(x + rng.normal(size=x.shape), 1.0)
    with pytest.warns(UserWarning, match="from zero in 1 of 2 coordinates"):
        rate = fit.lfsr
    assert np.isnan(rate[:, 0]).all()
    assert np.all(rate[:, 1] < 0.05)


def test_the_bound_is_two_standard_errors():
    """sum w m^2 <= 2 sqrt(2 / n) sigma^2, in the data's units."""
    y = np.linspace(-3, 3, 50)
    for unit in (1.0, 1e-3):
        fit = neb.fit_mixture(y * unit, unit)
        np.testing.assert_allclose(fit.blur, 2 * np.sqrt(2 / 50) * unit**2)
    mixed = neb.fit_mixture(y, np.repeat([1.0, 2.0], 25))
    np.testing.assert_allclose(mixed.blur, 2 * np.sqrt(2 / (25 + 25 / 16)))
    assert neb.fit_mixture(y, 1.0, locs=[-1.0, 0.0, 0.25]).blur == 0
    assert neb.fit_mixture(y, 1.0, locs=[-1.0, 0.0, 0.2]).blur > 0
