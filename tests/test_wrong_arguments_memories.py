import numpy as np
import pytest
from wrong_arguments import (
    MIXTURE,
    NAN,
    Rows,
    Wrong,
    Y,
    cases,
    each,
    wrong_arrays,
    wrong_choices,
    wrong_counts,
    wrong_energies,
    wrong_numbers,
)

import numpyro_neb as neb
from numpyro_neb import memories

GOOD = {"energy": MIXTURE, "y": Y, "progress_bar": False}
TIMES = np.array([0.0, 1.0])
OBSERVED = [*wrong_energies(), *wrong_arrays("y", Y, floats=True)]
RECALLED = [
    *OBSERVED,
    *wrong_counts("chunk_size", "max_steps"),
    *wrong_numbers("tolerance"),
    *wrong_choices("flow"),
    Wrong("energy: NaN", {"energy": NAN}, FloatingPointError, "energy must be finite at the cu"),
]
OUT_OF_ORDER = [np.zeros(0), 1.0, [1.0, 0.5], [-1.0, 0.0], [1.0, 1.0], np.ones((1, 1))]

ROWS = (
    Rows(neb.recall, GOOD, RECALLED),
    Rows(
        memories.find_memories,
        GOOD,
        [
            *RECALLED,
            *wrong_numbers("merge_distance"),
            *each("y", ValueError, r"y must have shape \(n, \*event_shape\)", {"one": Y[0]}),
            *each("y", ValueError, "y must have shape .* n at least 1", {"none": Y[:0]}),
        ],
    ),
    Rows(
        memories.follow,
        {**GOOD, "times": TIMES},
        [
            *OBSERVED,
            *wrong_counts("chunk_size", "max_steps"),
            *wrong_arrays("times", TIMES, floats=False, event=False),
            *each("times", ValueError, "times must be finite, rising and not", OUT_OF_ORDER),
        ],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
