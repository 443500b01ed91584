"""The generation of ArviZ that is installed, through the one module that knows of two."""

import arviz as az
import numpy as np
import xarray as xr

import numpyro_neb as neb
from numpyro_neb._internal.arviz_data import (
    SupportsArviz,
    add_groups,
    created_by,
    datasets,
    event_dims,
    from_groups,
    from_tree,
)

KIND = "InferenceData" if az.__version__.startswith("0.") else "DataTree"
DRAWS = np.arange(40.0).reshape(2, 5, 4)


def data():
    groups = {"posterior": {"x": DRAWS}, "observed_data": {"y": np.arange(4.0)}}
    return from_groups(groups, {"place": list("abcd")}, {"x": ("place",), "y": ("place",)})


def test_groups_of_arrays():
    made = data()
    assert type(made).__name__ == KIND
    assert made["posterior"]["x"].dims == ("chain", "draw", "place")
    assert list(made["observed_data"]["place"].values) == list("abcd")
    assert from_groups({"posterior": {"x": DRAWS}})["posterior"]["x"].shape == DRAWS.shape


def test_more_groups():
    made = data()
    more = {"warmup_posterior": {"x": DRAWS + 1}, "prior": {"x": DRAWS[:1]}}
    add_groups(made, from_groups(more))
    found = datasets(made)
    assert set(found) == {"posterior", "observed_data", "warmup_posterior", "prior"}
    assert all(isinstance(group, xr.Dataset) for group in found.values())
    np.testing.assert_array_equal(found["warmup_posterior"]["x"], DRAWS + 1)
    np.testing.assert_array_equal(made["posterior"]["x"], DRAWS)


def test_a_tree_read_from_a_store():
    posterior = datasets(data())["posterior"]
    made = from_tree(xr.DataTree.from_dict({"posterior": posterior}))
    assert type(made).__name__ == KIND
    np.testing.assert_array_equal(made["posterior"]["x"], DRAWS)


def test_names():
    assert event_dims(()) == []
    assert event_dims((2, 3)) == ["height", "width"]
    assert event_dims((5, 2, 3)) == ["channel", "height", "width"]
    assert event_dims((4,)) == ["event_dim_0"]
    assert created_by() == {"created_by": f"numpyro_neb {neb.__version__}"}
    assert isinstance(neb.fit_mixture(np.zeros(3), 1.0), SupportsArviz)
    assert not isinstance(3, SupportsArviz)
