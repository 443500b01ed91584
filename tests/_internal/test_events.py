"""What all rooms ask of data."""

import warnings

import numpy as np
import pytest

from numpyro_neb._internal.events import warn_unlike_scales

TABLE = np.random.default_rng(0).normal(size=(3000, 3))


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_columns_of_unlike_scales(unit):
    """A factor of 1,000, up to five standard errors of a standard deviation of 1,000 rows."""
    x = unit * (TABLE * [1, 1e3, 3] + [0, 5, 1e6])
    with pytest.warns(UserWarning, match="the columns of x differ in scale by a factor") as said:
        warn_unlike_scales("x", x)
    text = str(said[0].message)
    factor = float(text.partition("factor of ")[2].partition(":")[0].replace(",", ""))
    assert abs(factor / 1000 - 1) < 5 / np.sqrt(1000)
    assert "in column 0 and" in text
    assert "in column 1. The noise" in text


@pytest.mark.parametrize(
    "x",
    [
        TABLE * [1, 20, 5],
        TABLE * [1, 0, 1],  # a constant column has no scale
        TABLE * [0, 0, 0],
        TABLE[:1],
        TABLE[:, :1] * 1e3,
        (TABLE > 2.5) * TABLE * [1, 1, 0] + TABLE * [0, 0, 1],  # pixels, mostly black
        (TABLE * [1, 2, 3]).astype(np.float16),
        (TABLE * [1, 1e3, 3])[:, :, None],  # an image, whose pixels have one unit
    ],
)
def test_other_data_are_left_alone(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unlike_scales("x", x)


def test_pixels(digits):
    train, _ = digits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unlike_scales("x", train.reshape(len(train), -1))
