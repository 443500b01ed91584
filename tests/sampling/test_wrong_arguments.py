import numpy as np
import pytest
from wrong_arguments import (
    FAMILY,
    KEY,
    MIXTURE,
    NAN,
    OWN,
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


class Shapes:
    """Energies that are of one coordinate below sigma = 0.3 and of two above."""

    def at(self, sigma):
        return neb.MixtureEnergy(np.zeros((1, 1 if sigma < 0.3 else 2)), sigma)


ROWS = (
    Rows(
        neb.LevelsKernel,
        {"model": lambda: None},
        [
            *wrong_functions("model"),
            *wrong_counts("num_steps", least=32),
            *wrong_numbers("max_sigma", none=False),
            Wrong("integrator", {"integrator": 3}, TypeError, "integrator must be one of"),
        ],
    ),
    Rows(
        neb.WalkJumpKernel,
        {"energy": MIXTURE},
        [
            *wrong_energies(none=False),
            *wrong_counts("num_steps"),
            *wrong_numbers("inverse_temperature"),
            *wrong_numbers("max_bias", share=True, none=False),
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
            *each(
                "sigmas",
                ValueError,
                "sigmas must be two or more rising, positive numbers, got ",
                {
                    "falling": (0.7, 0.5),
                    "equal": (0.5, 0.5),
                    "zero": (0.0, 0.5),
                    "negative": (-0.1, 0.5),
                    "NaN": (0.5, np.nan),
                    "infinite": (0.5, np.inf),
                    "one": (0.5,),
                    "a number": 0.5,
                    "none": (),
                    "two rows": np.ones((2, 2)),
                },
            ),
            *each(
                "sigmas",
                TypeError,
                "sigmas must ",
                {"words": "no", "bools": (True, False), "complex": (0.5, 1j)},
            ),
            *each("sigma", ValueError, "num_levels must be given with sigma", [0.5]),
            *each("max_sigma", ValueError, "num_levels must be given with max_sigma", [0.5]),
            *wrong_counts("num_levels", least=2, none=False),
        ],
    ),
    Rows(
        neb.WalkJumpKernel,
        {"energy": MIXTURE, "num_levels": 3, "max_sigma": 2.0},
        [
            *wrong_numbers("sigma", none=False),
            *wrong_numbers("max_sigma", none=False),
            *each("max_sigma", ValueError, "max_sigma must be above sigma, 0.5, got ", [0.5, 0.1]),
            *each("sigmas", ValueError, "max_sigma must be None with sigmas", [(0.5, 1.0)]),
            Wrong(
                "a model",
                {"energy": None, "model": lambda: None},
                ValueError,
                "num_levels must be None with a model",
            ),
        ],
    ),
    Rows(
        neb.WalkJumpKernel,
        {"energy": FAMILY, "sigmas": (0.2, 0.5)},
        [
            *each(
                "energy",
                TypeError,
                r"energy must have \.at\(sigma\) to walk on several noise levels.*, got ",
                {"one level": OWN, "a class": neb.MixtureEnergy, "a number": 3},
            ),
            *each(
                "sigmas",
                ValueError,
                "sigmas must be noise levels of the energy: sigma must be in sigma_range",
                {"below": (0.05, 0.5), "above": (0.2, 1.5)},
            ),
            Wrong("no levels", {"sigmas": None}, TypeError, r"energy\.at\(sigma\), or give sigmas"),
            Wrong(
                "no lowest level",
                {"sigmas": None, "num_levels": 3},
                ValueError,
                "sigma must be given: the lowest",
            ),
            *each("frozen", ValueError, "frozen must be a boolean array", {"3": np.ones(3, bool)}),
            *each(
                "num_steps",
                ValueError,
                "num_steps must be a multiple of 16 for several levels, or nearly, got 1009",
                [1009],
            ),
            Wrong(
                "no at, with num_levels",
                {"energy": lambda y: 0, "sigmas": None, "num_levels": 3, "sigma": 0.5},
                TypeError,
                r"energy must have \.at\(sigma\)",
            ),
            Wrong(
                "two event shapes",
                {"energy": Shapes()},
                ValueError,
                r"must have one event shape at all levels, got \[\(1,\), \(2,\)\]",
            ),
            *(
                Wrong(
                    f"one coordinate for {kind.__name__}",
                    {"integrator": kind(), "frozen": np.array([True, False])},
                    ValueError,
                    f"frozen must leave 2 coordinates to move for {kind.__name__}, got 1",
                )
                for kind in (integrators.MAMS, integrators.Microcanonical)
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
