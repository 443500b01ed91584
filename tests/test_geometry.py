import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_neb as neb


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
