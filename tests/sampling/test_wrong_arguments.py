import numpy as np
import pytest
from wrong_arguments import (
    KEY,
    MIXTURE,
    NAN,
    Rows,
    Wrong,
    Y,
    cases,
    each,
    wrong_counts,
    wrong_energies,
    wrong_functions,
    wrong_numbers,
)

import numpyro_neb as neb
from numpyro_neb import integrators

START = {"rng_key": KEY, "num_warmup": 0, "init_params": None}
EITHER = "one of energy and model must be given"

ROWS = (
    Rows(
        neb.WalkJumpKernel,
        {"energy": MIXTURE},
        [
            *wrong_energies(none=False),
            *wrong_counts("num_steps"),
            *wrong_numbers("inverse_temperature"),
            *wrong_numbers("max_bias", share=True),
            *wrong_numbers("max_score", none=False),
            *wrong_numbers("target_accept_prob", share=True, none=False),
            *wrong_functions("init_strategy"),
            Wrong(
                "integrator",
                {"integrator": "BAOAB"},
                TypeError,
                "integrator must be one of numpyro_neb",
            ),
            Wrong(
                "integrator: class",
                {"integrator": integrators.BAOAB},
                TypeError,
                "integrator must be",
            ),
            Wrong("both", {"model": lambda: None}, ValueError, EITHER),
            Wrong("neither", {"energy": None}, ValueError, EITHER),
            Wrong(
                "model", {"energy": None, "model": 3}, TypeError, "model must be callable, got int"
            ),
            *each(
                "frozen",
                ValueError,
                "frozen must be a boolean array",
                {"3": np.ones(3, bool), "int": np.ones(2, int)},
            ),
        ],
    ),
    Rows(
        neb.WalkJumpKernel.init,
        {"self": neb.WalkJumpKernel(MIXTURE)} | START,
        [
            *each(
                "init_params",
                ValueError,
                r"init_params must be a float array of shape \(2,\), got ",
                {
                    "a batch": Y,
                    "ints": np.zeros(2, int),
                    "bools": np.zeros(2, bool),
                    "complex": np.zeros(2, complex),
                    "another event": np.zeros(3),
                },
            ),
            *each(
                "init_params",
                ValueError,
                "init_params must be finite",
                {"NaN": np.array([0.0, np.nan]), "infinity": np.array([0.0, np.inf])},
            ),
        ],
    ),
    Rows(
        neb.WalkJumpKernel.init,
        START,
        [
            Wrong(
                "energy: NaN",
                {"self": neb.WalkJumpKernel(NAN)},
                FloatingPointError,
                "energy must have a finite value .*got nan in chain 0: look at init_params",
            )
        ],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
