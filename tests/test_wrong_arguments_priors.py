import jax
import numpy as np
import pytest
from numpyro.distributions import constraints
from wrong_arguments import Rows, Wrong, cases, each, wrong_counts, wrong_keys, wrong_numbers

import numpyro_neb as neb

DRAWS = np.random.default_rng(0).normal(size=(200, 2))
POSITIVE = {"constraint": constraints.positive}
ROWS = (
    Rows(
        neb.prior_from_draws,
        {"name": "theta", "samples": DRAWS, "key": jax.random.key(0)},
        [
            *each("name", TypeError, "name must be a string, got int", [3]),
            *each("constraint", TypeError, "constraint must be one of numpyro", ["positive", None]),
            *wrong_keys(),
            *wrong_counts("num_steps", least=2),
            *wrong_numbers("sigma", none=False),
            *each("samples", TypeError, "samples must hold real numbers", [["a"] * 200, None]),
            *each("samples", ValueError, "samples must be finite", [np.full(200, np.nan)]),
            *each("samples", ValueError, "samples must be at least 100 draws", [1.0, DRAWS[:9]]),
            *each(
                "samples",
                ValueError,
                "samples must vary in every direction",
                {"constant": np.ones((200, 2)), "collinear": DRAWS[:, [0, 0]]},
            ),
            Wrong(
                "samples: out", {"samples": -(DRAWS**2)} | POSITIVE, ValueError, "lie in the supp"
            ),
            Wrong("samples: on the edge", {"samples": 0 * DRAWS} | POSITIVE, ValueError, "lie in"),
        ],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
