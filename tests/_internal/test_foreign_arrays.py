"""Tables, tensors and other foreign arrays: taken as the numbers that they hold, or refused."""

from decimal import Decimal

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr

import numpyro_neb as neb
from numpyro_neb._internal.checks import as_array, check_floats, check_reals

ROWS = np.array([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]])
TABLE = pd.DataFrame(ROWS, columns=["a", "b"], index=[7, 8, 9])


class Tensor:
    """What NumPy sees of a torch tensor: an error of torch's if it has a gradient."""

    shape = (3, 2)
    dtype = "torch.float64"

    def __init__(self, requires_grad=False):
        self.requires_grad = requires_grad

    def __len__(self):
        return 3

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use detach()")
        return np.asarray(ROWS, dtype)


FORMS = {
    "frame": TABLE,
    "of several types": TABLE.astype({"a": "float32"}),
    "nullable": TABLE.astype("Float64"),
    "objects": TABLE.astype(object),
    "rows": ROWS.tolist(),
    "rows of arrays": list(ROWS),
    "DataArray": xr.DataArray(ROWS, dims=("case", "column")),
    "tensor": Tensor(),
    "long doubles": ROWS.astype(np.longdouble),
    "the other byte order": ROWS.astype(ROWS.dtype.newbyteorder()),
    "nothing masked": np.ma.array(ROWS, mask=False),
}
ENERGY = neb.MixtureEnergy(ROWS, 0.5)


def trained(x):
    network = neb.networks.MLP((2,), width_size=4, depth=1, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, 0.5, (2,))
    settings = {"key": jax.random.key(1), "num_steps": 2, "progress_bar": False}
    found = neb.fit(energy, x, batch_size=2, validation_data=x, validate_every=1, **settings)
    return found.losses, found.validation_losses


FUNCTIONS = {
    "posterior_mean": lambda x: neb.posterior_mean(ENERGY, x),
    "log_prob": lambda x: neb.SmoothedDensity(ENERGY).log_prob(x),
    "MixtureEnergy": lambda x: neb.MixtureEnergy(x, 0.5).locs,
    "sphere_overlaps": lambda x: neb.sphere_overlaps(x).max,
    "fit": trained,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_from_each(name, untyped):
    expected = FUNCTIONS[name](ROWS)
    # `fit` compiles at each call.
    forms = ("frame", "tensor", "long doubles") if name == "fit" else FORMS
    for form, x in ((form, FORMS[form]) for form in forms):
        # A float64 table and a float32 column give float64, of float32's values: these are exact.
        np.testing.assert_array_equal(FUNCTIONS[name](x), expected, err_msg=form)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tensor_with_a_gradient_is_refused_by_the_arguments_name(name, untyped):
    argument = {"posterior_mean": "y", "fit": "data"}
    argument |= {"log_prob": "value", "MixtureEnergy": "locs", "sphere_overlaps": "x"}
    with pytest.raises(TypeError, match=rf"^{argument[name]} must be .*got Tensor: .*detach"):
        FUNCTIONS[name](Tensor(requires_grad=True))


def test_long_doubles_on_disk(tmp_path, untyped):
    np.save(tmp_path / "x.npy", ROWS.astype(np.longdouble))
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.all(np.isfinite(trained(on_disk)[0]))


def test_python_numbers_of_several_types():
    array = as_array("x", np.array([[1, 2.5], [Decimal("0.1"), np.float32(4)]], object))
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, [[1, 2.5], [0.1, 4]])
    assert as_array("x", np.array([1, 2], object)).dtype == np.int64
    np.testing.assert_array_equal(as_array("x", np.array([2**70, 1], object)), [2.0**70, 1])
    np.testing.assert_array_equal(as_array("x", np.array([[np.nan], [1]], object)), [[np.nan], [1]])


def test_a_long_double_beyond_float64_is_infinite():
    if np.finfo(np.longdouble).max > np.finfo(float).max:
        assert np.isinf(as_array("x", np.full(2, np.longdouble("1e400")))).all()


MASKED = "x must be a plain array, got a masked one: fill or drop its gaps"


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (TABLE.assign(c=["u", "v", "w"]), "got str 'u' in row 0 of column 'c': leave it out"),
        (TABLE.assign(c=[True, False, True]), "got bool True in row 0 of column 'c'"),
        (TABLE.assign(c=pd.Timestamp("2020-01-01")), "got Timestamp .* of column 'c'"),
        (
            TABLE.assign(c=np.array([1.0, None, 2.0], object)),
            "missing value in row 1 of column 'c'",
        ),
        (pd.Series([1.0, pd.NA], dtype=object), r"got a missing value at \(1,\): fill or drop"),
        (np.array([1j, 2], object), r"got complex 1j at \(0,\)"),
        (np.array([np.ones(2), np.ones(3)], object), "got float64 of shape"),
        (np.array(["1.5"]), "got <U3: if it is the text of numbers, convert it with np.asarray"),
        (np.ones(2, bool), r"got bool: convert it with np.asarray\(x, float\)"),
        (np.ones(2, "m8[s]"), r"got timedelta64\[s\]: divide it by a unit"),
        (np.ones(2, "M8[s]"), r"got datetime64\[s\]: subtract one time from all"),
        (np.ones(2, [("a", float)]), "structured_to_unstructured"),
        ({"a": [1.0]}, r"got dict: make it a table with pandas.DataFrame\(x\)"),
        (scipy.sparse.csr_array(np.eye(2)), r"got csr_array: make it dense with \.toarray"),
        (xr.Dataset({"a": 1.0}), "got Dataset: .*DataArray"),
        ((i for i in range(3)), "got generator"),
        ([np.ma.array([1.0, 2.0], mask=[False, True])], MASKED),
        ([1.0, np.ma.masked], MASKED),
    ],
)
def test_what_is_refused(x, message):
    for check in (check_floats, check_reals):
        with pytest.raises(TypeError, match=f"^x must .*{message.removeprefix('x must ')}"):
            check("x", x)
