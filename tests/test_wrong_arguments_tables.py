"""Wrong arguments of what stands tables on one scale."""

import numpy as np
import pytest
from wrong_arguments import Rows, cases, each, wrong_arrays

import numpyro_neb as neb

TABLE = np.array([[0.0, 1.0], [2.0, 0.5], [1.0, 3.0]])
ROWS = [
    Rows(
        neb.Standardizer,
        {"table": TABLE, "log": ()},
        [
            *wrong_arrays("table", TABLE, floats=False, event=False),
            *each("log", TypeError, "log must be a list of names", ["x0"]),
            *each("log", ValueError, "log must name columns", [["a"]]),
        ],
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_a_wrong_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
