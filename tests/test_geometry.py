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


def test_prints_as_a_sentence():
    text = str(neb.sphere_overlaps(np.array([0.0, 2.0, 6.0])))
    assert text.endswith("min 1.000, median 2.000, mean 2.000, max (sigma_c) 3.000")


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


def test_points_all_alike():
    found = neb.sphere_overlaps(np.ones((5, 3)))
    assert found.min == found.median == found.max == 0
    assert found.num_pairs == 10


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
    found = neb.sphere_overlaps(np.array([0.0, 2.0, 6.0]))
    assert "sigma_c = 3" in found.advice
    assert "from 2 to 3 jumps are sharper" in found.advice


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
