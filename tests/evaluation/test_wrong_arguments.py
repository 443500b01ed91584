import numpy as np
import pytest
from wrong_arguments import (
    FAMILY,
    KEY,
    MIXTURE,
    NAN,
    Rows,
    Wrong,
    Y,
    cases,
    wrong_arrays,
    wrong_counts,
    wrong_energies,
    wrong_keys,
)

import numpyro_neb as neb
from numpyro_neb.integrators import BAOAB

HELD_OUT = np.tile(Y, (10, 1))

ROWS = (
    Rows(
        neb.evaluate,
        {"energy": MIXTURE, "held_out": HELD_OUT, "key": KEY, "progress_bar": False},
        [
            *wrong_energies(family=False),
            *wrong_arrays("held_out", HELD_OUT, floats=True),
            *wrong_arrays("train", HELD_OUT, floats=True, none=False),
            *wrong_keys(),
            Wrong(
                "no levels",
                {"energy": FAMILY, "sigmas": ()},
                ValueError,
                "sigmas must be one or more noise levels",
            ),
            Wrong(
                "levels: words",
                {"energy": FAMILY, "sigmas": "no"},
                TypeError,
                "sigmas must hold real numbers",
            ),
            *wrong_counts("num_steps", "num_swaps", "chunk_size"),
            *wrong_counts("num_pairs", least=20),
            *wrong_counts("num_particles", "num_temperatures", least=2),
            Wrong(
                "held_out: few",
                {"held_out": Y},
                ValueError,
                "held_out must hold at least 20 examples",
            ),
            Wrong(
                "energy: NaN",
                {"energy": NAN},
                FloatingPointError,
                "energy and its jumps must be finite at noisy held",
            ),
            Wrong(
                "integrator: 3",
                {"integrator": 3},
                TypeError,
                "integrator must be one of numpyro_neb.in",
            ),
            Wrong(
                "integrator: a class",
                {"integrator": BAOAB},
                TypeError,
                "integrator must be one of .* got the class BAOAB",
            ),
            Wrong(
                "integrator: at rest",
                {"integrator": BAOAB(initial_velocity="zero")},
                ValueError,
                "integrator must start with random velocities, .* got 'zero'",
            ),
        ],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
