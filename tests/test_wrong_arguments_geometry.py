import pytest
from wrong_arguments import PAIRS, Rows, cases, each, wrong_arrays, wrong_counts, wrong_numbers

import numpyro_neb as neb
from numpyro_neb import geometry

POINTS = [
    *wrong_arrays("x", PAIRS, floats=False, event=False),
    *each(
        "x",
        ValueError,
        "x must hold at least two points, got shape",
        {"one": PAIRS[:1], "none": PAIRS[:0], "number": 1.0, "flat": [[], []]},
    ),
]

ROWS = (
    Rows(neb.sphere_overlaps, {}, POINTS),
    Rows(neb.critical_sigma, {}, POINTS),
    Rows(neb.overlap_regimes, {"x": PAIRS, "sigma": 1.0}, [*POINTS, *wrong_numbers("sigma")]),
    Rows(
        geometry.sphere_shell,
        {"dim": 3, "sigma": 1.0},
        [*wrong_counts("dim"), *wrong_numbers("sigma")],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
