import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets

from numpyro_neb._internal.checks import check_counts, check_finite, check_positive, require
from numpyro_neb._internal.events import as_events, check_rows


def test_require():
    require(True, "nothing")
    with pytest.raises(TypeError, match="a must be b, got c"):
        require(False, "a must be b, got c", TypeError)


def test_counts_are_named_by_their_own_names():
    assert check_counts(a=1, b=np.int64(2)) == (1, 2)
    with pytest.raises(ValueError, match="b must be an int of at least 2, got 1"):
        check_counts(2, a=2, b=1)


def test_a_positive_scalar_keeps_its_digits():
    found = check_positive("a", np.float64(0.1))
    assert isinstance(found, float)
    assert found == 0.1


@pytest.mark.parametrize(
    ("value", "below", "message"),
    [
        (-0.3, np.inf, "a must be positive, got -0.3"),
        (np.nan, np.inf, "a must be positive, got nan"),
        (np.inf, np.inf, "a must be finite, got inf"),
        (1.0, 1.0, "a must be between 0 and 1, got 1.0"),
    ],
)
def test_what_is_not_positive(value, below, message):
    with pytest.raises(ValueError, match=message):
        check_positive("a", value, below)


def test_positive_in_the_dtype_of_the_computation():
    with pytest.raises(ValueError, match="a must be positive"):
        check_positive("a", [1.0, 1e-60], scalar=False)  # zero in float32


def test_a_traced_number_is_checked_at_run_time():
    @jax.jit
    def double(a):
        return 2 * check_positive("a", a, 1.0)

    assert double(0.25) == 0.5
    for wrong in (-0.3, 1.0, np.nan):
        with pytest.raises(Exception, match="a must be between 0 and 1"):
            double(wrong)


def test_too_large_for_jax():
    large = np.array([1e300])
    check_finite("a", large)
    with pytest.raises(ValueError, match="a must be finite, got NaN or infinity in float32"):
        check_finite("a", large, in_jax=True)


ENERGY = targets.gaussian([1.0, 2.0], 0.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8", jnp.bfloat16])
def test_events_are_in_the_dtype_of_the_energy(dtype):
    y = as_events("y", np.ones((3, 1, 2), dtype), ENERGY)
    assert (y.shape, y.dtype) == ((3, 1, 2), ENERGY.sigma.dtype)


def test_events_keep_a_wider_dtype(x64):
    energy = jax.tree.map(lambda a: a.astype(jnp.float32), ENERGY)
    assert as_events("y", np.ones(2), energy).dtype == np.float64


def test_events_may_be_traced():
    assert jax.jit(lambda y: as_events("y", y, ENERGY))(jnp.full(2, jnp.nan)).shape == (2,)


@pytest.mark.parametrize(
    ("rows", "value", "message"),
    [
        (None, np.ones((2, 3)), r"y must end in the event shape \(2,\), got shape \(2, 3\)"),
        (None, np.float32(1), r"y must end in the event shape \(2,\), got shape \(\)"),
        ("m", np.ones(2), r"y must have shape \(m, \*event_shape\) .* m at least 1, got \(2,\)"),
        ("m", np.ones((0, 2)), r"y must have shape .*, got \(0, 2\)"),
        (None, [0.0, np.inf], "y must be finite, got NaN or infinity"),
    ],
)
def test_what_is_not_an_event(rows, value, message):
    with pytest.raises(ValueError, match=message):
        as_events("y", value, ENERGY, rows)


def test_rows_on_disk_stay_there(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(check_rows("x", on_disk, (2,)), on_disk)
