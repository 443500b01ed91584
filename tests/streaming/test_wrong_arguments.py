import tempfile
from pathlib import Path

import pytest
from wrong_arguments import (
    KEY,
    WALK,
    Rows,
    cases,
    each,
    wrong_counts,
    wrong_keys,
    wrong_paths,
    wrong_walks,
)

import numpyro_neb as neb
from numpyro_neb import streaming

NEVER = Path(tempfile.gettempdir(), "never-written-by-the-tests", "file")
GOOD = {"mcmc": WALK, "path": NEVER}
MISSING = each("path", FileNotFoundError, "no file .*never-written", {"no file": NEVER})

ROWS = (
    Rows(streaming.save_state, GOOD, [*wrong_walks(), *wrong_paths("path")]),
    Rows(streaming.load_state, GOOD, [*wrong_walks(unrun=False), *wrong_paths("path"), *MISSING]),
    Rows(
        neb.stream,
        {"mcmc": WALK, "key": KEY, "store": NEVER, "progress_bar": False},
        [
            *wrong_walks(unrun=False),
            *wrong_keys(),
            *wrong_paths("store"),
            *wrong_counts("draws_per_write"),
        ],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
