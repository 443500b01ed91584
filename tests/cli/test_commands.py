"""The command line on files of arrays."""

import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import numpyro_neb as neb
from numpyro_neb import cli as command_line

DATA = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
QUICK = ["--steps", "120", "--batch", "32", "--width", "16", "--depth", "2"]
QUICK += ["--likelihood-steps", "0"]


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "data.npy", DATA)
    return tmp_path / "data.npy"


@pytest.fixture(scope="module")
def energy(tmp_path_factory):
    """The exact energy of the data: two far modes."""
    path = tmp_path_factory.mktemp("energy") / "energy.safetensors"
    neb.save(path, neb.MixtureEnergy(jnp.array([[-2.0] * 4, [2.0] * 4]), 0.5))
    return path


def run(*arguments):
    return command_line.main([str(argument) for argument in arguments])


def assert_equal(one, other):
    arrays = [jax.tree.leaves(eqx.filter(neb.load(path), eqx.is_array)) for path in (one, other)]
    for a, b in zip(*arrays, strict=True):
        np.testing.assert_array_equal(a, b)


def test_train(data, tmp_path, capsys):
    out = tmp_path / "energy.safetensors"
    assert run("train", data, "--sigma", "auto", "--out", out, *QUICK) == 0
    shown = capsys.readouterr()
    assert "285 examples of shape (4,), 15 held out" in shown.out
    assert f"written: {out}" in shown.out
    assert "120/120" in shown.err
    energy = neb.load(out)
    # sigma_c is 1.9 here, more than the data's standard deviation.
    assert neb.critical_sigma(DATA) > 1.5
    np.testing.assert_allclose(energy.sigma, np.sqrt(DATA.var(0).mean()), rtol=1e-5)
    np.testing.assert_allclose(energy.loc, DATA[:285].mean(0), rtol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"data.npy", "energy.safetensors"}
    assert "maximum likelihood" not in shown.out
    # One seed, one energy.
    assert run("train", data, "--sigma", "auto", "--out", tmp_path / "again", *QUICK) == 0
    assert_equal(tmp_path / "again", out)


def test_train_in_both_stages(data, tmp_path, capsys):
    arguments = ["train", data, "--sigma", 0.5, *QUICK, "--steps", 5]
    assert run(*arguments, "--out", tmp_path / "denoised") == 0
    second = ["--likelihood-steps", 3, "--chains", 8]
    assert run(*arguments, *second, "--out", tmp_path / "both") == 0
    shown = capsys.readouterr()
    assert "3/3" in shown.err
    assert "gap=" in shown.err
    assert "python -m numpyro_neb evaluate" in shown.out
    denoised, both = (neb.load(tmp_path / name) for name in ("denoised", "both"))
    weights = [energy.network.layers.layers[0].weight for energy in (denoised, both)]
    # Three steps of Adam at 2e-4 and less move no weight by more than 6e-4.
    assert 1e-5 < np.abs(weights[0] - weights[1]).max() < 7e-4


@pytest.mark.slow
@pytest.mark.statistical
def test_train_a_u_net(tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((20, 4, 4)))
    arguments = ["--network", "unet", "--channels", 2, 4, "--steps", 2, "--held-out", 0]
    arguments += ["--likelihood-steps", 2, "--chains", 4]
    out = tmp_path / "energy"
    assert run("train", tmp_path / "images.npy", "--sigma", 0.3, "--out", out, *arguments) == 0
    assert neb.load(out).network.channels == (2, 4)


def test_control_c_leaves_a_training_that_goes_on(data, tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "energy", tmp_path / "whole"
    assert run("train", data, "--sigma", 0.5, "--out", whole, *QUICK) == 0
    real = neb.fit

    def interrupted(*args, **kwargs):
        def stop(done, metrics):
            raise KeyboardInterrupt

        return real(*args, **kwargs, callback=stop)

    monkeypatch.setattr(neb, "fit", interrupted)
    assert run("train", data, "--sigma", 0.5, "--out", out, *QUICK) == 130
    assert "the same call resumes from the newest checkpoint" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "energy.checkpoints" / "denoising").iterdir()} == {
        "6"
    }
    monkeypatch.setattr(neb, "fit", real)
    assert run("train", data, "--sigma", 0.5, "--out", out, *QUICK) == 0
    assert_equal(out, whole)
    assert not (tmp_path / "energy.checkpoints").exists()


@pytest.fixture
def without_orbax(monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)


def test_train_without_orbax(data, tmp_path, capsys, without_orbax):
    arguments = ["train", data, "--sigma", 0.5, *QUICK, "--steps", 5]
    arguments += ["--likelihood-steps", 2, "--chains", 4, "--out", tmp_path / "energy"]
    install = "pip install 'numpyro-neb[checkpoints]'"
    assert run(*arguments) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if install in line)
    assert line.startswith("no checkpoints, so if killed or stopped it has to start over")
    assert {path.name for path in tmp_path.iterdir()} == {"data.npy", "energy"}
    # Asked for, they are not left out without a word.
    assert run(*arguments, "--checkpoints", tmp_path / "kept") == 1
    error = capsys.readouterr().err
    assert error.startswith("train: checkpoints are written by orbax: ")
    assert install in error
    assert not (tmp_path / "kept").exists()


def test_sample(energy, tmp_path, capsys):
    out = tmp_path / "draws.nc"
    sizes = ["--chains", 2, "--draws", 30, "--num-steps", 5]
    assert run("sample", energy, "--out", out, *sizes) == 0
    shown = capsys.readouterr().out
    assert "the walk: R-hat at most" in shown
    assert "of 60" in shown
    draws = az.from_netcdf(str(out))
    assert draws.posterior["x"].shape == (2, 30, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["draws.nc"]


@pytest.mark.parametrize("out", ["draws.nc", "draws.zarr"])
def test_few_draws(energy, tmp_path, capsys, out):
    sizes = ["--chains", 2, "--draws", 3, "--warmup", 1, "--num-steps", 1]
    assert run("sample", energy, "--out", tmp_path / out, *sizes) == 0
    assert "3 draws per chain are too few for R-hat" in capsys.readouterr().out
    assert (tmp_path / out).exists()


def test_jumps_that_never_change(tmp_path, capsys):
    neb.save(tmp_path / "one", neb.MixtureEnergy(jnp.zeros((1, 2)), 0.5))  # x = 0 for each y
    sizes = ["--draws", 30, "--chains", 2]
    assert run("sample", tmp_path / "one", "--out", tmp_path / "draws.nc", *sizes) == 0
    shown = capsys.readouterr().out
    assert "the jumps: the same in each draw" in shown
    assert "the walk: R-hat at most 0.9" in shown or "the walk: R-hat at most 1." in shown


def test_evaluate(energy, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "all.npz", train=np.ones(3), held_out=2.0 * rng.choice([-1, 1], (40, 4)))
    short = ["--num-steps", 20, "--num-temperatures", 3, "--array", "held_out"]
    assert run("evaluate", energy, tmp_path / "all.npz", *short) == 0
    assert "log-likelihood" in capsys.readouterr().out


def test_denoise_and_recall(energy, tmp_path, capsys):
    noisy = np.array([[-1.5, -2.0, -2.5, -1.0], [1.0, 2.0, 2.5, 3.0]])
    np.save(tmp_path / "noisy.npy", noisy)
    assert run("denoise", energy, tmp_path / "noisy.npy", "--out", tmp_path / "clean.npy") == 0
    expected = np.broadcast_to([[-2.0], [2.0]], (2, 4))
    np.testing.assert_allclose(np.load(tmp_path / "clean.npy"), expected, atol=1e-3)
    assert run("recall", energy, tmp_path / "noisy.npy", "--out", tmp_path / "m.npz") == 0
    assert "2 of 2 cues came to rest, 2 in a stable memory" in capsys.readouterr().out
    with np.load(tmp_path / "m.npz") as found:
        np.testing.assert_allclose(found["attractors"], expected, atol=1e-3)
        assert found["stable"].all()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("noise", "warns"), [(0.5, False), (1.0, True), (0.2, True)])
def test_denoise_warns_of_another_noise(energy, tmp_path, capsys, noise, warns):
    rng = np.random.default_rng(0)
    noisy = rng.choice([-2.0, 2.0], (500, 1)) + noise * rng.normal(size=(500, 4))
    np.save(tmp_path / "noisy.npy", noisy)
    assert run("denoise", energy, tmp_path / "noisy.npy", "--out", tmp_path / "clean.npy") == 0
    found = re.search(r"warning: the noise of y looks like ([\d.]+), not", capsys.readouterr().err)
    assert (found is not None) == warns
    if found is not None:
        # A standard error of 1 / sqrt(2 * 2,000), and two digits.
        np.testing.assert_allclose(float(found[1]), noise, rtol=5 / np.sqrt(4000) + 0.05)


def test_info(energy, data, tmp_path, capsys):
    assert run("info", energy) == 0
    assert "MixtureEnergy, event shape (4,)\nsigma 0.5\n" in capsys.readouterr().out
    network = neb.networks.MLP((4,), width_size=3, depth=1, conditional=True, key=jax.random.key(0))
    neb.save(tmp_path / "conditional", neb.ConditionalEnergy(network, (4,), (0.1, 1.0)))
    assert run("info", tmp_path / "conditional") == 0
    shown = capsys.readouterr().out
    assert "ConditionalEnergy of a network MLP" in shown
    # 34 of the network, and the functions of log sigma beside it: 6 of the skip, 5 of the offset.
    assert "sigma from 0.1 to 1\n45 trainable parameters" in shown
    assert run("info", data) == 0
    shown = capsys.readouterr().out
    assert "300 examples of shape (4,), float32" in shown
    assert str(neb.sphere_overlaps(DATA)) in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "none.npy", "--sigma", 1, "--out", "e"), "there is no file none.npy"),
        (("train", "data.npy", "--sigma", "large", "--out", "e"), "--sigma must be a number or"),
        (("train", "data.npy", "--sigma", -1, "--out", "e"), "sigma must be"),
        (("train", "data.npy", "--sigma", 1, "--out", "e", "--held-out", 1), "--held-out must be"),
        (("train", "bytes.npy", "--sigma", 1, "--out", "e"), "data must hold floats, got uint8"),
        (("train", "pickle.npy", "--sigma", 1, "--out", "e"), "pickle.npy is not a .npy file"),
        (("train", "text.npy", "--sigma", 1, "--out", "e"), "text.npy is not a .npy file"),
        (("train", "nan.npy", "--sigma", 1, "--out", "e"), "data must be finite"),
        (("train", "one.npy", "--sigma", "auto", "--out", "e"), "x must hold at least two points"),
        (("train", "data.npy", "--sigma", 1, "--out", "e", "--steps", 0), "--steps must be a posi"),
        (("denoise", "good", "one.npy", "--out", "e"), "y must end in the event shape (4,)"),
        (("recall", "good", "bytes.npy", "--out", "e"), "y must hold floats, got uint8"),
        (("sample", "good", "--num-steps", 0, "--out", "e"), "num_steps must be a positive int"),
        (("denoise", "text.npy", "data.npy", "--out", "e"), "text.npy"),
        (("sample", "none", "--out", "e"), "there is no file none"),
        (("sample", "good", "--out", "e", "--chains", 0), "--chains must be a positive int, got 0"),
        (("sample", "good", "--out", "e", "--draws", 2**31), "--draws must be less than 2^31"),
        (("sample", "good", "--out", "e", "--seed", 2**63), "--seed must be less than 2^63"),
        (("sample", "good", "--out", "no/e.nc"), "--out: there is no folder no"),
        (("train", "data.npy", "--sigma", 1, "--out", "e", "--batch", 0), "--batch must be a pos"),
        (("train", "data.npy", "--sigma", 1, "--out", "e", "--held-out", "nan"), "--held-out must"),
        (("train", "data.npy", "--sigma", 1, "--out", "e", "--learning-rate", 0), "--learning-rat"),
        (("train", "data.npy", "--sigma", 1, "--out", "e", "--weight-decay", "inf"), "--weight-de"),
        (("info", "number.npy"), "must hold several examples, got one number"),
        (("denoise", "good", "good", "--out", "e"), "good is not a .npy file of numbers, nor .npz"),
        (("info", "text.npy"), "text.npy is not a .npy file of numbers"),
    ],
)
def test_a_sentence_in_place_of_a_traceback(
    arguments, message, data, tmp_path, capsys, monkeypatch, untyped
):
    monkeypatch.chdir(tmp_path)
    np.save("bytes.npy", np.zeros((5, 2), np.uint8))
    np.save("pickle.npy", np.array([{}, "x"], object))
    np.save("nan.npy", DATA * np.nan)
    np.save("one.npy", DATA[:1, :3])
    np.save("number.npy", 1.0)
    neb.save("good", neb.MixtureEnergy(jnp.zeros((1, 4)), 0.5))
    (tmp_path / "text.npy").write_text("not an array")
    before = {path.name for path in tmp_path.iterdir()}
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{arguments[0]}: ")
    assert message in error
    assert "Traceback" not in error
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "info: stopped\n"),
        (
            PermissionError(13, "Permission denied", "x"),
            1,
            "info: [Errno 13] Permission denied: 'x'",
        ),
        (AssertionError("odd"), 1, "info: unexpected AssertionError: odd ("),
    ],
)
def test_no_command_ends_in_a_traceback(error, code, message, energy, capsys, monkeypatch):
    def load(path):
        raise error

    monkeypatch.setattr(neb, "load", load)
    assert run("info", energy) == code
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert "Traceback" not in shown


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_sentence(energy, capsys, monkeypatch):
    def load(path):
        for text in ("first", "first", "second"):
            warnings.warn(text, stacklevel=2)
        raise ValueError("then")

    monkeypatch.setattr(neb, "load", load)
    assert run("info", energy) == 1
    assert capsys.readouterr().err == "info: warning: first\ninfo: warning: second\ninfo: then\n"


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--version")
    assert capsys.readouterr().out == f"numpyro-neb {neb.__version__}\n"


def test_the_script_runs_the_same_function():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {project["name"]: "numpyro_neb.cli:main"}


def test_the_name_in_the_help_is_how_it_was_called(capsys, monkeypatch):
    for called, name in (("/bin/numpyro-neb", "numpyro-neb"), ("m.py", "python -m numpyro_neb")):
        monkeypatch.setattr(sys, "argv", [called])
        with pytest.raises(SystemExit, match="0"):
            run("--help")
        assert capsys.readouterr().out.startswith(f"usage: {name} ")


COMMANDS = """
import sys
from numpyro_neb.cli import main
for arguments in (["--help"], ["train", "--help"], ["demo", "--help"], ["info", sys.argv[1]]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0
print(*sys.modules)
"""


def test_help_and_info_load_nothing_that_they_do_not_need(energy):
    command = [sys.executable, "-c", COMMANDS, str(energy)]
    *shown, modules = subprocess.check_output(command, text=True).splitlines()
    assert "sigma 0.5" in shown
    late = {"arviz", "matplotlib", "xarray", "pandas", "orbax", "sklearn", "zarr"}
    assert not late & set(modules.split())


@pytest.mark.parametrize(("out", "separator"), [("clean.csv", ","), ("clean.tsv", "\t")])
def test_denoise_writes_a_table_with_the_names_of_its_columns(energy, tmp_path, out, separator):
    noisy = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    lines = ["mass, age,red shift,x", *(",".join(map(str, row)) for row in noisy)]
    (tmp_path / "noisy.csv").write_text("\n".join(lines))
    assert run("denoise", energy, tmp_path / "noisy.csv", "--out", tmp_path / out) == 0
    table = pd.read_csv(tmp_path / out, sep=separator)
    assert list(table) == ["mass", "age", "red shift", "x"]
    exact = neb.posterior_mean(neb.load(energy), noisy)
    np.testing.assert_array_equal(table.to_numpy(np.float32), exact)
    np.save(tmp_path / "noisy.npy", noisy)
    assert run("denoise", energy, tmp_path / "noisy.npy", "--out", tmp_path / out) == 0
    assert list(pd.read_csv(tmp_path / out, sep=separator)) == ["x0", "x1", "x2", "x3"]


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "denoise", "recall", "info"])
def test_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help")
    assert len(capsys.readouterr().out) > 200
    with pytest.raises(SystemExit, match="2"):
        run(command)
