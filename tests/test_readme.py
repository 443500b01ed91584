import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
def test_the_programs_run_as_printed():
    names = {}
    for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(program, names)
    assert names["data"].posterior["x"].shape == (4, 1000, 8, 8)
    assert np.all(np.isfinite(names["data"].posterior["x"].values))
    # The offset is told from the digit behind it, though not by much.
    offset = names["mcmc"].get_samples()["offset"]
    assert abs(offset.mean() - 0.2) < 0.1


def test_names_in_the_table_exist():
    import numpyro_neb as neb

    table = README.split("## What is in it")[1].split("## Good to know")[0]
    names = set(re.findall(r"`([a-zA-Z_.]+)\(", table)) | {"plots.denoising", "plots.walk_jump"}
    for name in names - {"MCMC", "numpyro.sample"}:
        found = neb
        for part in name.split("."):
            found = getattr(found, part)
