"""Exact mixtures at any offset, in any units, with unlike columns: against float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy import special, stats

import numpyro_neb as neb
from numpyro_neb.empirical_bayes import Diagonal, Isotropic, LinearisedPosterior
from numpyro_neb.posteriors.spreads import floor

pytestmark = pytest.mark.statistical

RNG = np.random.default_rng(0)
SIGMA = np.float32(0.3)


def table(scales, n=300):
    """Clean and noisy rows in float32, columns of the scales given."""
    x = (RNG.normal(size=(n, len(scales))) * scales).astype(np.float32)
    return x, (x + SIGMA * RNG.normal(size=x.shape)).astype(np.float32)


def of_atoms(x, y, sigma=SIGMA):
    """Phi, mean and standard deviation of X given y, in float64."""
    x, y, sigma = (np.asarray(a, float) for a in (x, y, sigma))
    logs = -((y[:, None] - x) ** 2).sum(-1) / (2 * sigma**2)
    phi = -special.logsumexp(logs, axis=1) + np.log(len(x))
    phi += x.shape[1] * np.log(sigma * np.sqrt(2 * np.pi))
    r = special.softmax(logs, axis=1)
    centred = x - x[np.argmax(r, axis=1)][:, None]
    mean = np.einsum("nk,nkd->nd", r, centred)
    std = np.sqrt(np.einsum("nk,nkd->nd", r, (centred - mean[:, None]) ** 2))
    return phi, mean + x[np.argmax(r, axis=1)], std


@pytest.mark.parametrize("scales", [[1.0, 1000.0], [1.0, 1.0]], ids=["unlike", "alike"])
def test_columns_of_any_scale(scales, x32):
    x, y = table(scales)
    energy = neb.MixtureEnergy(x, SIGMA)
    phi, mean, std = of_atoms(x, y)
    # An offset of a column is held to eps times its size, a ten-thousandth of sigma.
    np.testing.assert_allclose(jax.vmap(energy)(y), phi, atol=0.02)
    np.testing.assert_allclose(neb.posterior_mean(energy, y), mean, atol=0.01 * SIGMA)
    np.testing.assert_allclose(neb.posterior_std(energy, y), std, atol=0.01 * SIGMA)
    score = jax.vmap(lambda y: -jax.grad(energy)(y))(y)
    np.testing.assert_allclose(score, jax.vmap(energy.score)(y), atol=0.03 / SIGMA)


@pytest.mark.parametrize("covariances", [None, np.full((5, 1, 1), 0.2)], ids=["atoms", "smooth"])
@pytest.mark.parametrize("offset", [1024.0, 16384.0])
def test_an_offset_moves_answers_and_nothing_else(covariances, offset, x32):
    """Numbers on a grid of 2^-6, so that float32 holds the sums exactly."""
    grid = lambda a: np.round(np.asarray(a) * 64) / 64  # noqa: E731
    locs, y = grid([-2.0, -0.3, 0.5, 1.1, 4.0]), grid(RNG.normal(size=40) * 2).astype(np.float32)
    plain = neb.MixtureEnergy(locs, 0.7, covariances=covariances)
    moved = neb.MixtureEnergy(locs + offset, 0.7, covariances=covariances)
    z = (y + offset).astype(np.float32)
    # A result next to the offset is rounded to its spacing.
    spacing = np.spacing(np.float32(offset))
    np.testing.assert_allclose(jax.vmap(moved)(z), jax.vmap(plain)(y), atol=1e-4)
    means = neb.posterior_mean(moved, z) - offset, neb.posterior_mean(plain, y)
    np.testing.assert_allclose(*means, atol=spacing + 1e-4)
    stds = neb.posterior_std(moved, z), neb.posterior_std(plain, y)
    np.testing.assert_allclose(*stds, atol=1e-4)
    there, here = (neb.posterior_distribution(e, a) for e, a in ((moved, z), (plain, y)))
    np.testing.assert_allclose(there.cdf(offset + 0.25), here.cdf(0.25), atol=1e-4)
    for q in (0.05, 0.6):
        np.testing.assert_allclose(there.icdf(q) - offset, here.icdf(q), atol=2 * spacing + 1e-4)
    if covariances is not None:
        np.testing.assert_allclose(there.log_prob(z), here.log_prob(y), atol=1e-3)
    draws = there.sample(jax.random.key(0), (1000,)) - offset
    within = np.asarray(stds[1]) / np.sqrt(1000) + spacing
    targets.within(draws.mean(0), means[1], within)


@pytest.mark.parametrize("spread", [None, 0.5], ids=["atoms", "smooth"])
def test_a_component_far_away_does_not_show(spread, x32):
    locs = np.array([-1.0, 0.4, 2.0, 1e5])
    y = np.linspace(-2, 3, 11, dtype=np.float32)
    near, all_of_them = (
        neb.MixtureEnergy(m, 1.0, None, None if spread is None else np.full((len(m), 1, 1), spread))
        for m in (locs[:3], locs)
    )
    here, there = (neb.posterior_distribution(e, y) for e in (near, all_of_them))
    for name in ("mean", "stddev", "lfsr"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), atol=1e-5)
    for q in (0.05, 0.5, 0.95):
        np.testing.assert_allclose(there.icdf(q), here.icdf(q), atol=1e-5)


@pytest.mark.parametrize("y", [1e4, 1e12, 1e30])
def test_far_out_the_nearest_atom_has_all(y, x32):
    energy = neb.MixtureEnergy([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.5]], 0.5)
    found = energy.posterior(jnp.array([y, 0.1]))
    # Log weights that are rounded leave shares of one but for eps.
    np.testing.assert_allclose(found.mean, [1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found.std, 0, atol=1e-6)
    np.testing.assert_array_equal(found.sample(jax.random.key(0), (3,)), [[1, 0]] * 3)
    np.testing.assert_allclose(energy.posterior(jnp.array([-y, 0.1])).mean, [-1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(energy.posterior(jnp.array([0.0, y])).mean[1], 0.5, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6, 1e12])
def test_units_do_not_show(unit, x32):
    locs, spreads = np.array([-2.0, 3.0]), np.array([0.2, 0.5]).reshape(2, 1, 1)
    y = np.linspace(-3, 4, 8, dtype=np.float32)
    plain = neb.posterior_distribution(neb.MixtureEnergy(locs, 1.0, None, spreads), y)
    energy = neb.MixtureEnergy(locs * unit, unit, None, spreads * unit**2)
    scaled = neb.posterior_distribution(energy, np.float32(unit) * y)
    for ask in (lambda p: p.mean, lambda p: p.stddev, lambda p: p.icdf(0.3)):
        np.testing.assert_allclose(ask(scaled) / unit, ask(plain), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scaled.lfsr, plain.lfsr, rtol=1e-3)
    atoms = neb.MixtureEnergy(locs * unit, unit).posterior(jnp.float32(0.3 * unit))
    expected = special.softmax(-((0.3 - locs) ** 2) / 2) @ locs
    np.testing.assert_allclose(atoms.mean / unit, expected, rtol=1e-5)


def test_what_the_dtype_cannot_hold(x32, untyped):
    with pytest.raises(ValueError, match=r"locs must be at most .* got 9.9692.*fill value"):
        neb.MixtureEnergy(np.array([0.0, 9.96921e36]), 1.0)
    with pytest.raises(ValueError, match=r"sigma must be between .* got 1e-20: change the units"):
        neb.MixtureEnergy(np.array([0.0, 1e-20]), 1e-20)
    with pytest.raises(ValueError, match=r"sigma must be between .* got 1e\+18: change the units"):
        neb.MixtureEnergy(np.zeros(1), 1.0).at(1e18)
    with pytest.warns(UserWarning, match="noise of sigma = 0.3 is lost in rounding"):
        neb.MixtureEnergy(np.array([1e6, 1e6 + 1]), 0.3)


def test_covariances_of_more_columns_than_rows():
    x = RNG.gamma(5, size=(30, 1)) + 0.02 * RNG.normal(size=(30, 60))
    energy = neb.MixtureEnergy(x.mean(0)[None], 0.3, covariances=np.cov(x.T)[None])
    np.testing.assert_allclose(energy.scale, x.std(0, ddof=1), rtol=1e-4)
    narrow = np.cov(x.T).astype(np.float32)[None]
    np.testing.assert_allclose(
        neb.MixtureEnergy(x[:1], 0.3, None, narrow).scale, energy.scale, rtol=1e-4
    )


def test_each_direction_of_a_covariance_in_its_own_units():
    """Standard deviations of .001 and 1,000, correlated: conditioning by hand, in float64."""
    covariance = np.array([[1e-6, 0.6], [0.6, 1e6]])
    energy = neb.MixtureEnergy(np.zeros((1, 2)), 0.001, covariances=covariance[None])
    np.testing.assert_allclose(energy.scale, [1e-3, 1e3], rtol=1e-5)
    expected = covariance - covariance @ np.linalg.solve(covariance + 1e-6 * np.eye(2), covariance)
    found = neb.posterior_std(energy, np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(found[0], np.sqrt(np.diag(expected)), rtol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [[[1e6, 0.0], [0.0, -1e-3]], [[1e-6, 0.8], [0.6, 1e6]], [[1e-6, 1.1], [1.1, 1e6]]],
    ids=["negative", "not symmetric", "correlation above one"],
)
def test_no_covariance_in_a_small_direction(wrong):
    with pytest.raises(ValueError, match="covariances must be symmetric and positive semi-def"):
        neb.MixtureEnergy(np.zeros((1, 2)), 1.0, covariances=np.array([wrong]))


def test_isotropic_makes_nothing_of_d_by_d():
    d = 300
    found = LinearisedPosterior(lambda y: y * jnp.linspace(0, 1, d), jnp.array(1.0), jnp.ones(d))
    shapes = targets.array_shapes(lambda eps: Isotropic(8).root(found, eps)[0], jnp.ones(d))
    assert max(np.prod(shape) for shape in shapes) <= 8 * d
    # Eight orthogonal directions of 300: near the mean variance, 1/2, within five errors.
    variance = float(Isotropic(8).root(found, jnp.ones(d))[0][0]) ** 2
    error = np.sqrt(2 * np.var(np.linspace(0, 1, d)) / (8 * d))
    targets.within(variance, 0.5, error)


def test_the_diagonal_has_its_own_floor(x32):
    """A variance of 1e-4 beside one of 1,000 is kept: each is computed by itself."""
    values = jnp.array([1e-4, 1e3])
    found = LinearisedPosterior(lambda y: values * y, jnp.array(1.0), jnp.ones(2))
    root, projected = Diagonal().root(found, jnp.ones(2))
    np.testing.assert_allclose(root**2, values, rtol=1e-5)
    assert projected == 0
    assert floor(values) > 1e-4  # that of an eigendecomposition of both


def test_a_density_is_compiled_once():
    traced = []

    class Counted(targets.Wrapped):
        def __call__(self, y):
            traced.append(y)
            return super().__call__(y)

    density = neb.SmoothedDensity(Counted(neb.MixtureEnergy([[0.0], [1.0]], 1.0)))
    before = len(traced)
    values = [density.log_prob(jnp.full((3, 1), float(i))) for i in range(4)]
    assert len(traced) == before + 1
    expected = stats.norm.logpdf(2 - np.array([0.0, 1.0]))
    np.testing.assert_allclose(values[2][0], special.logsumexp(expected) - np.log(2), rtol=1e-5)
    moved = eqx.tree_at(lambda e: e.loc, density.energy, density.energy.loc + 1)
    neb.SmoothedDensity(moved).log_prob(jnp.zeros((3, 1)))
    assert len(traced) <= before + 2  # arrays are arguments: only a new object is checked


@pytest.mark.parametrize("size", [1e3, 1e14, 1e17])
def test_an_energy_is_quadratic_however_far_out(size):
    """At 10^17 sigma, too: otherwise a walk that goes off is never seen to become infinite."""
    for covariances in (None, np.full((2, 1, 1), 0.25)):
        energy = neb.MixtureEnergy(np.array([[-1.0], [1.0]]), 0.5, covariances=covariances)
        variance = 0.25 if covariances is None else 0.5
        value, slope = jax.value_and_grad(energy)(jnp.array([size]))
        np.testing.assert_allclose(float(value), size**2 / (2 * variance), rtol=3e-3)
        np.testing.assert_allclose(float(slope[0]), size / variance, rtol=3e-3)
