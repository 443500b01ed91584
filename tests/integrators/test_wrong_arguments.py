import pytest
from wrong_arguments import Rows, Wrong, cases, wrong_choices, wrong_counts, wrong_numbers

from numpyro_neb import integrators

STEP = wrong_numbers("step_size")
MOMENTUM = [*STEP, *wrong_numbers("friction"), *wrong_choices("initial_velocity")]

ROWS = (
    Rows(integrators.AbstractIntegrator, {}, [Wrong("itself", {}, TypeError, "abstract")]),
    Rows(integrators.ULA, {}, STEP),
    Rows(integrators.MALA, {}, STEP),
    Rows(integrators.BAOAB, {}, MOMENTUM),
    Rows(integrators.ABOBA, {}, MOMENTUM),
    Rows(integrators.GHMC, {}, MOMENTUM),
    Rows(integrators.Microcanonical, {}, [*STEP, *wrong_numbers("friction")]),
    Rows(integrators.MAMS, {}, [*STEP, *wrong_numbers("friction")]),
    Rows(
        integrators.walk,
        dict.fromkeys(("integrator", "target", "state", "key")),
        wrong_counts("num_steps"),
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
