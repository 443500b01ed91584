import re
from pathlib import Path

import numpy as np
import pytest
from pages import names_after_running

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_programs_run_as_printed():
    names = names_after_running(README)
    assert names["data"].posterior["x"].shape == (4, 1000, 8, 8)
    assert np.all(np.isfinite(names["data"].posterior["x"].values))
    # The offset is told from the digit behind it, though not by much.
    offset = names["mcmc"].get_samples()["offset"]
    assert abs(offset.mean() - 0.2) < 0.1


@pytest.mark.slow
@pytest.mark.statistical
def test_the_page_on_learned_priors_runs_as_printed():
    names = names_after_running((ROOT / "docs" / "learned_prior.md").read_text())
    assert names["x"].shape == (100, 64)
    # Nearer to the digit than a picture of nothing but the mean of all digits.
    error = np.mean((np.asarray(names["x"]).mean(0) - names["held_out"][0]) ** 2)
    assert error < np.mean((names["mean"] - names["held_out"][0]) ** 2) / 2
    assert np.all(np.isfinite(names["log_density"]))


@pytest.mark.slow
def test_the_page_on_empirical_bayes_runs_as_printed():
    names = names_after_running((ROOT / "docs" / "empirical_bayes.md").read_text())
    x, fit = names["x"], names["fit"]
    y = np.asarray(fit.y)
    assert np.sum((np.asarray(fit.posterior_mean) - x) ** 2) < 0.5 * np.sum((y - x) ** 2)
    assert names["new"].posterior_mean.shape == (2,)
    assert names["fit"].log_likelihood - names["gapped"].log_likelihood < 1
    assert len(names["result"].losses) < 1000  # patience ran out
    held_out = names["result"].validation_losses
    assert held_out.min() < held_out[0]
    assert names["posterior"].batch_shape == (10,)


@pytest.mark.slow
def test_the_page_on_memories_runs_as_printed():
    names = names_after_running((ROOT / "docs" / "memories.md").read_text())
    memories = names["memories"]
    assert 10 <= len(memories.counts) <= 20
    assert memories.stable.all()
    assert memories.basins.min() >= 0
    assert names["recalled"].mean() > 0.95


def test_names_in_the_table_exist():
    import numpyro_neb as neb

    table = README.split("## What is in it")[1].split("## Good to know")[0]
    names = set(re.findall(r"`([a-zA-Z_.]+)\(", table)) | {"plots.denoising", "plots.walk_jump"}
    for name in names - {"MCMC", "numpyro.sample", "at"}:
        found = neb
        for part in name.split("."):
            found = getattr(found, part)
