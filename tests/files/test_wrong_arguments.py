import tempfile
from pathlib import Path

import pytest
from wrong_arguments import MIXTURE, Rows, cases, each, wrong_energies, wrong_paths

import numpyro_neb as neb
from numpyro_neb.files import energy_file

NEVER = Path(tempfile.gettempdir(), "never-written-by-the-tests", "file")
MISSING = each("path", FileNotFoundError, "no file .*never-written", {"no file": NEVER})

ROWS = (
    Rows(
        neb.save,
        {"path": NEVER, "energy": MIXTURE},
        [*wrong_paths("path"), *wrong_energies(family=False)],
    ),
    Rows(neb.load, {}, [*wrong_paths("path"), *MISSING]),
    Rows(energy_file.read_arrays, {"format_name": "x"}, [*wrong_paths("path"), *MISSING]),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
