import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist
from scipy.special import ive

import numpyro_neb as neb
from numpyro_neb import geometry


def test_three_points():
    overlaps = neb.sphere_overlaps(np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
    unit = 2 * np.sqrt(2)
    assert overlaps.num_pairs == 3
    np.testing.assert_allclose(overlaps[:4], np.array([5, 5, 20 / 3, 10]) / unit)


def test_digits():
    """The paper's kind of data: its sigma_c is that of scikit-learn's digits, .301."""
    from sklearn.datasets import load_digits

    x = load_digits().images / 16
    overlaps = neb.sphere_overlaps(x)
    assert overlaps.num_pairs == 1797 * 1796 // 2
    np.testing.assert_allclose([overlaps.min, overlaps.median, overlaps.max],
                               [0.021, 0.192, 0.301], atol=5e-4)  # fmt: skip
    assert neb.critical_sigma(jnp.asarray(x)) == pytest.approx(overlaps.max, rel=1e-6)


def test_prints_in_three_lines():
    lines = str(neb.sphere_overlaps(np.array([0.0, 2.0, 6.0]))).split("\n")
    assert lines[0].endswith("min 1.000, median 2.000, mean 2.000, max (sigma_c) 3.000")
    assert lines[1] == "spread per coordinate 3.06; for a walk begin with 3"
    assert lines[2].startswith("largest sigma for a learned prior in a model: too few data")


@pytest.mark.parametrize("measure", [neb.sphere_overlaps, neb.critical_sigma])
def test_bad_data(measure, untyped):
    with pytest.raises(ValueError, match=r"x must hold at least two points, got shape \(1, 2\)"):
        measure(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="x must be finite"):
        measure(np.array([[0.0], [np.nan]]))


@pytest.mark.parametrize("block", [7, 20, 64])
def test_blocks_do_not_show(block, monkeypatch):
    """50 points, two of them alike, against all pairs at once."""
    x = np.random.default_rng(0).normal(size=(50, 2, 3)) + 1e3
    x[41] = x[3]
    chi = pdist(x.reshape(50, 6)) / (2 * np.sqrt(6))
    monkeypatch.setattr(geometry, "_BLOCK", block)
    found = neb.sphere_overlaps(x)
    assert found.min == 0
    np.testing.assert_allclose([found.mean, found.max], [chi.mean(), chi.max()], rtol=1e-9)
    np.testing.assert_allclose(found.median, np.median(chi), atol=found.edges[-1] / 200_000)
    np.testing.assert_array_equal(found.counts, np.histogram(chi, found.edges)[0])
    assert found.num_pairs == found.counts.sum() == 50 * 49 // 2
    for sigma in (0.2, 0.5, 0.9):
        shares = np.mean(sigma < chi), np.mean((chi <= sigma) & (sigma < 2 * chi))
        regimes = neb.overlap_regimes(x, sigma)
        np.testing.assert_allclose(regimes[:2], shares, atol=1e-12)
        np.testing.assert_allclose(sum(regimes), 1)


@pytest.mark.parametrize("value", [1, 0.1, 1e9 + 0.3, 5e-324, np.float16(0.1)])
@pytest.mark.parametrize("count", [2, 5, 3000])
def test_points_all_alike(value, count):
    """Also where a mean of equal numbers is rounded to another one."""
    found = neb.sphere_overlaps(np.full((count, 3), value))
    assert found[:4] == (0, 0, 0, 0)
    assert found.num_pairs == count * (count - 1) // 2
    assert found.spread == 0
    assert "same" in found.advice
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).normal(size=(40, 3)),
        np.random.default_rng(0).normal(size=(40, 3)) + 2.0**30,
        np.random.default_rng(0).normal(size=(40, 3)) * 1e-200,
        np.random.default_rng(0).normal(size=(40, 3)) * 1e140,
        np.random.default_rng(0).integers(0, 5, size=(40, 3)),
        np.random.default_rng(0).normal(size=(40, 3)).astype(np.float16),
        np.array([[0, 3.0], [0, 3.0], [4.0, 0]]),
        np.array([[5e-324], [0.0]]),
    ],
)
def test_the_spread_is_that_of_the_coordinates(x):
    """In the unit of the largest number, so that no square underflows."""
    found = neb.sphere_overlaps(x)
    x = np.asarray(x, float)
    unit = np.abs(x - x[0]).max()
    expected = np.sqrt(np.mean(np.var((x - x[0]) / unit, axis=0, ddof=1))) * unit
    np.testing.assert_allclose(found.spread, expected, rtol=1e-9)
    # E chi^2 over the pairs is half of it, and the histogram's bins are 1/200 of the largest chi.
    middles = (found.edges[:-1] + found.edges[1:]) / 2 / unit
    mean_square = np.sum(found.counts * middles**2) / found.num_pairs
    # (Bins of a subnormal number are rounded away.)
    assert abs(np.sqrt(2 * mean_square) * unit - expected) <= max(2 * found.edges[1], 5e-324)
    assert found.max == neb.critical_sigma(x)


def test_overlaps_of_mnist():
    """The figures of the paper's data: the first 6,000 images."""
    from benchmarks.normal_means import data_folder

    if (folder := data_folder()) is None:
        pytest.skip("NEB_DATA names no folder with mnist.npz")
    with np.load(folder / "mnist.npz") as arrays:
        x = arrays["x_train"][:6000] / 255
    found = neb.sphere_overlaps(x)
    np.testing.assert_allclose(found[:4], [0.019, 0.183, 0.182, 0.283], atol=5e-4)


def test_the_noise_lies_on_a_shell():
    for dim in (1, 5, 784, 999, 1000, np.int64(3000)):
        shell = geometry.sphere_shell(dim, 0.3)
        law = stats.chi(dim, scale=0.3)
        np.testing.assert_allclose(shell, [law.mean(), law.std()], rtol=1e-6)


def test_noise_expands_a_circle_and_the_jump_brings_it_back():
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    locs = np.zeros((360, 50), np.float32)
    locs[:, 0], locs[:, 1] = np.cos(angles), np.sin(angles)
    energy = neb.MixtureEnergy(jnp.asarray(locs), 0.3)
    y = energy.sample(jax.random.key(0), (4000,))
    radius = jnp.hypot(y[:, 0], y[:, 1])
    off = jnp.hypot(radius - 1, jnp.linalg.norm(y[:, 2:], axis=1))
    shell = geometry.sphere_shell(49, 0.3)
    assert abs(off.mean() - shell.radius) < 4 * shell.width / np.sqrt(4000)
    # A von Mises law's mean, of concentration k, in the circle's plane.
    k = np.asarray(radius, float) / 0.3**2
    expected = np.zeros(y.shape)
    expected[:, :2] = (ive(1, k) / ive(0, k) / radius)[:, None] * y[:, :2]
    np.testing.assert_allclose(jax.vmap(energy.denoise)(y), expected, atol=1e-4)


def test_the_shell_in_very_many_dimensions():
    shell = geometry.sphere_shell(10**9, 1.0)
    np.testing.assert_allclose(shell, [np.sqrt(10**9 - 0.5), np.sqrt(0.5)], rtol=1e-9)


def test_repeated_points_are_told_from_near_ones():
    x = np.random.default_rng(0).normal(size=(2500, 3))
    x[1::2] = x[::2] + np.array([1e-9, 0, 0])
    x[0] += 1e4  # an outlier, beside which all others lie near together
    found = neb.sphere_overlaps(x)
    np.testing.assert_allclose(found.min, 1e-9 / (2 * np.sqrt(3)), rtol=1e-3)


def test_advice_names_the_figures():
    found = neb.sphere_overlaps(np.array([[0.0] * 9, [2.0] * 9, [6.0] * 9]))
    assert "sigma_c = 3" in found.advice
    assert "from 2 to 3 jumps are sharper" in found.advice
    assert "these data are too few to show" in found.advice


@pytest.mark.parametrize(("dim", "shells"), [(1, False), (2, False), (8, False), (9, True)])
def test_few_dimensions_have_no_shells(dim, shells):
    """The width over the radius, about 1 / sqrt(2 d), is above a quarter up to d = 8."""
    x = np.random.default_rng(0).normal(size=(300, dim))
    advice = neb.sphere_overlaps(x).advice
    assert ("there are no thin shells" in advice) == (not shells)
    assert ("i-spheres" in advice) == shells


def test_the_walk_begins_below_the_spread():
    """In two dimensions sigma_c is far above it, in 300 below."""
    rng = np.random.default_rng(0)
    few = neb.sphere_overlaps(rng.normal(size=(2000, 2)))
    assert few.max > 2 * few.spread
    assert few.walk_sigma == few.spread
    many = neb.sphere_overlaps(rng.normal(size=(300, 300)))
    assert many.walk_sigma == many.max < many.spread


LOCS, WITHIN = np.arange(-2.0, 3.0), 0.1
GRID = np.linspace(-4, 4, 1601)


def clusters(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(LOCS, n) + WITHIN * rng.normal(size=n)


def prior_sd_errors(sigma):
    """Log errors in the sd of X given two observations, by quadrature.

    Under the learned prior, X is Gaussian given y with the energy's mean and variance.
    """
    covariances = np.full((5, 1, 1), WITHIN**2)
    energy = neb.MixtureEnergy(LOCS[:, None], sigma, covariances=covariances)
    y = jnp.asarray(GRID[:, None], energy.sigma.dtype)
    mean = np.asarray(neb.posterior_mean(energy, y), float)[:, 0]
    std = np.asarray(neb.posterior_std(energy, y), float)[:, 0]
    density = np.exp(-np.asarray(jax.vmap(energy)(y), float))
    learned = stats.norm.pdf(GRID[:, None], mean, std) @ density
    true = stats.norm.pdf(GRID[:, None], LOCS, WITHIN).sum(1)
    errors = []
    for seen, noise in ((0.6, 0.3), (1.15, 0.2)):
        sds = []
        for prior in (learned, true):
            weights = prior * stats.norm.pdf(seen, GRID, noise)
            weights /= weights.sum()
            sds.append(np.sqrt(weights @ GRID**2 - (weights @ GRID) ** 2))
        errors.append(np.log(sds[0] / sds[1]))
    return np.abs(errors)


@pytest.mark.statistical
def test_the_advised_prior_is_right_for_clusters():
    """A third of the spread is wrong by more than a quarter, for a cluster is far narrower."""
    found = neb.sphere_overlaps(clusters(1000))
    assert prior_sd_errors(found.spread / 3).max() > 0.25
    assert found.prior_sigma < found.spread / 3
    assert prior_sd_errors(found.prior_sigma).max() < 0.1
    # X given y is exactly Gaussian for one cluster; it need not be far below its width.
    assert found.prior_sigma > WITHIN / 2
    assert f"up to sigma = {found.prior_sigma:.2g}" in found.advice


@pytest.mark.parametrize("seed", range(3))
def test_the_advice_follows_units_and_offsets(seed):
    x = clusters(800, seed)
    found = neb.sphere_overlaps(x).prior_sigma
    np.testing.assert_allclose(neb.sphere_overlaps(x * 1e-6 + 5).prior_sigma, found * 1e-6)


def test_clusters_along_a_diagonal():
    """Five of them: a y between two is no rarity at a third of the spread."""
    rng = np.random.default_rng(0)
    x = 0.1 * rng.normal(size=(1500, 3)) + rng.choice(LOCS, (1500, 1))
    found = neb.sphere_overlaps(x)
    assert found.prior_sigma < found.spread / 3 or np.isnan(found.prior_sigma)


@pytest.mark.parametrize("dim", [1, 2])
def test_gaussian_data_take_a_third_of_the_spread(dim):
    """X given y is exactly Gaussian at every sigma."""
    found = neb.sphere_overlaps(np.random.default_rng(1).normal(size=(1500, dim)))
    assert found.prior_sigma == pytest.approx(found.spread / 3)


def test_repeated_values_and_few_examples():
    """X given y is a point where values are far apart; two examples tell nothing."""
    found = neb.sphere_overlaps(np.repeat([0.0, 100.0, 200.0], 200))
    assert 0 < found.prior_sigma < 20
    assert np.isnan(neb.sphere_overlaps(np.array([0.0, 1.0])).prior_sigma)


def test_progress(capsys, monkeypatch):
    real = geometry.tqdm
    monkeypatch.setattr(geometry, "tqdm", lambda **kwargs: real(**kwargs | {"delay": 0}))
    neb.critical_sigma(np.eye(5))
    assert "overlaps" in capsys.readouterr().err
    neb.critical_sigma(np.eye(5), progress_bar=False)
    assert not capsys.readouterr().err


def test_bad_sigma_and_dimension(untyped):
    with pytest.raises(ValueError, match="sigma must be positive, got -1"):
        neb.overlap_regimes(np.eye(3), -1.0)
    with pytest.raises(ValueError, match="dim must be a positive int, got 0"):
        geometry.sphere_shell(0, 1.0)


def test_columns_of_unlike_scales():
    x = np.random.default_rng(0).normal(size=(50, 2)) * [1, 1000]
    for function in (neb.sphere_overlaps, neb.critical_sigma):
        with pytest.warns(UserWarning, match="the columns of x differ in scale by a factor of"):
            function(x)
    neb.sphere_overlaps(x[:, :, None])  # an image
