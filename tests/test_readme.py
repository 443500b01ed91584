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
    assert np.mean((np.asarray(names["low"]) <= x) & (x <= np.asarray(names["high"]))) > 0.86
    assert len(names["result"].losses) < 1000  # patience ran out
    held_out = names["result"].validation_losses
    assert held_out.min() < held_out[0]
    assert names["posterior"].batch_shape == (10,)


@pytest.mark.slow
def test_the_page_on_priors_runs_as_printed():
    names = names_after_running((ROOT / "docs" / "normal_means.md").read_text())
    assert names["chosen"].sum() > 30
    assert abs(names["fit"].log_likelihood + 5340.7035) < 1e-4  # published
    x, close = names["x"], names["close"]
    assert np.mean((close.posterior_mean - x) ** 2) < 0.7 * np.mean(
        (names["plain"].posterior_mean - x) ** 2
    )


@pytest.mark.slow
def test_the_page_on_memories_runs_as_printed():
    names = names_after_running((ROOT / "docs" / "memories.md").read_text())
    memories = names["memories"]
    assert 10 <= len(memories.counts) <= 20
    assert memories.stable.all()
    assert memories.basins.min() >= 0
    assert names["recalled"].mean() > 0.95


@pytest.mark.slow
@pytest.mark.statistical
def test_the_page_on_diagnostics_runs_as_printed():
    names = names_after_running((ROOT / "docs" / "diagnostics.md").read_text())
    assert names["rhat"].max() < 1.02
    ratio, error = names["ratio"], names["error"]
    assert error < 0.01
    # BAOAB's bias at a step of sigma is below the error, about the page's own.
    assert abs(ratio.mean() - 1) < 5 * error + 0.005
    assert 0.75 < names["kinetic_temperature"](names["data"]).mean() < 1
    assert 0.1 < names["left_out"](names["data"]) < 0.4
    np.testing.assert_allclose(
        names["bfmi_of_a_gaussian"](1.0, 0.2, 1, [1.0, 1.0, 3.0]), 0.3285, 1e-3
    )
    np.testing.assert_allclose(names["neb"].diagnostics.refreshed_bfmi(names["data"]), 1, rtol=0.2)
    assert names["begun"]["warmup_posterior"]["y"].shape == (4, 200, 8, 8)
    for group in ("prior", "prior_predictive", "posterior_predictive", "log_likelihood"):
        assert "y" in names["fitted"][group] or group == "prior"
    assert np.isfinite(
        names["loo"].elpd if hasattr(names["loo"], "elpd") else names["loo"].elpd_loo
    )


FEATURES = (ROOT / "docs" / "features.md").read_text()


@pytest.mark.parametrize("page", [README, FEATURES], ids=["front page", "features"])
def test_names_in_the_tables_exist(page):
    import numpyro_neb as neb

    table = "".join(re.findall(r"^\|.*\n", page, re.MULTILINE))
    names = set(re.findall(r"`([a-zA-Z_.]+)\(", table)) | {"plots.denoising", "plots.walk_jump"}
    assert len(names) > 10
    for name in names - {"MCMC", "numpyro.sample", "at"}:
        found = neb
        for part in name.split("."):
            found = getattr(found, part)


@pytest.mark.slow
@pytest.mark.statistical
def test_the_page_on_inverse_problems_runs_as_printed():
    names = names_after_running((ROOT / "docs" / "inverse_problems.md").read_text())
    truth, mean = names["truth"], np.asarray(names["mean"])
    assert np.mean((mean - truth) ** 2) < np.mean((names["train"].mean(0) - truth) ** 2) / 2
    assert names["replicated"].shape == (200, 64)
    assert float(names["data"].posterior["x"].std()) > 0
    assert 0.05 < np.mean(names["draws"]["noise"]) < 0.15


@pytest.mark.slow
def test_the_page_on_saving_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_after_running((ROOT / "docs" / "saving.md").read_text())
    # A stream, longer by 500 draws, and a run that a second process goes on with.
    streamed = names["data"].posterior["y"].values
    assert streamed.shape == (4, 1500, 2)
    first, second = (
        names[name].get_samples(group_by_chain=True)["y"] for name in ("mcmc", "again")
    )
    np.testing.assert_array_equal(streamed[:, :1000], first)
    np.testing.assert_array_equal(streamed[:, 1000:], second[:, :500])
