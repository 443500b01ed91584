import pytest
from wrong_arguments import (
    KEY,
    PAIRS,
    WALK,
    Rows,
    Wrong,
    Y,
    cases,
    each,
    wrong_counts,
    wrong_keys,
    wrong_walks,
)

import numpyro_neb as neb
from numpyro_neb import diagnostics

FIT = neb.fit_mixture(PAIRS[:, 0], 1.0, progress_bar=False)

ROWS = (
    Rows(neb.to_arviz, {}, wrong_walks(", or a MixtureFit")),
    Rows(
        neb.to_arviz,
        {"mcmc": FIT, "num_samples": 2},
        [*wrong_counts("num_samples", none=False), *wrong_keys(none=False)],
    ),
    Rows(
        neb.to_arviz,
        {"mcmc": WALK},
        [Wrong("key", {"key": KEY}, TypeError, "num_samples and key are for")],
    ),
    Rows(
        diagnostics.refreshed_bfmi,
        {},
        each(
            "data",
            ValueError,
            "data must be what to_arviz or stream ret",
            {"an array": Y, "none": None, "an MCMC": WALK, "a dict": {}},
        ),
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
