import re
import subprocess
import sys

import arviz as az
import pandas as pd
import pytest
from matplotlib.image import imread

import numpyro_neb as neb
from numpyro_neb import cli as command_line


@pytest.mark.slow
def test_demo(tmp_path):
    out = tmp_path / "new" / "folder"
    result = subprocess.run(
        [sys.executable, "-m", "numpyro_neb", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    printed = result.stdout
    assert "Warning" not in result.stderr
    rows = "denoising loss|of no denoising, sigma\\^2 d|of the best linear denoiser"
    rows += "|of the kernel density(?= +[^-\\s])"  # not that of its log-likelihood
    losses = [float(x) for x in re.findall(rf"^ *(?:{rows}) +([\d.]+)", printed, re.MULTILINE)]
    energy, noise, linear, kernel_density = losses
    assert energy <= 1.0
    assert energy < kernel_density < linear < noise
    assert "WRONG" not in printed
    assert "min 0.021, median 0.192" in printed
    for name in ("jumps", "walk"):
        assert float(re.search(rf"the {name}: R-hat at most ([\d.]+)", printed)[1]) <= 1.05
    assert "6000/6000" in result.stderr

    energy = neb.load(out / "energy.safetensors")
    assert energy.event_shape == (8, 8)
    data = az.from_netcdf(str(out / "draws.nc"))
    assert data.posterior["x"].shape == (4, 1000, 8, 8)
    assert not data.sample_stats["diverging"].values.any()
    summary = pd.read_csv(out / "summary.csv", index_col=0)
    assert len(summary) == 128
    assert summary["r_hat"].astype(float).max() <= 1.05
    for name in ("denoising.png", "walk_jump.png", "trace.png", "evaluation.png"):
        assert imread(out / name).std() > 0.05


def test_help_and_bad_commands(capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main(["--help"])
    assert "demo" in capsys.readouterr().out
    for argv in ([], ["dance"]):
        with pytest.raises(SystemExit, match="2"):
            command_line.main(argv)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert command_line.main(["demo", "--out", str(tmp_path)]) == 1
    assert "pip install 'numpyro-neb[demo]'" in capsys.readouterr().err
