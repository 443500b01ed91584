"""Trainings that stop and go on."""

import gc
import hashlib
import json
import os
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trainings import CLOSE, DATA, Epochs, StopError, energy, fit, same, stop_after

import numpyro_neb as neb
from numpyro_neb.training import checkpoints

SETTINGS = {"num_steps": 30, "ema_decay": 0.9, "validation_data": DATA[:20], "validate_every": 7}


# Patience runs out at step 28: the best validation loss is at step 14, and 21 is worse.
IMPATIENT = {"patience": 2, "optimizer": optax.adam(0.1)}


@pytest.fixture(scope="module", params=[{}, IMPATIENT, {"data": Epochs(), "batch_size": None}])
def undisturbed(request):
    """Further settings, and a training with them that is not interrupted."""
    result = fit(**SETTINGS, **request.param)
    assert len(result.losses) == (28 if request.param is IMPATIENT else 30)
    return request.param, result


@pytest.mark.parametrize("every", [5, timedelta(microseconds=1)])
def test_goes_on_as_if_it_had_not_stopped(tmp_path, every, undisturbed):
    more, whole = undisturbed
    kept = {"checkpoint_dir": tmp_path / "run", "checkpoint_every": every}
    for step in (10, 24):
        with pytest.raises(StopError):
            fit(**SETTINGS, **more, **kept, callback=stop_after(step))
    result = fit(**SETTINGS, **more, **kept)
    same(result, whole)
    np.testing.assert_array_equal(result.validation_steps, whole.validation_steps)
    np.testing.assert_array_equal(result.validation_losses, whole.validation_losses)
    # Once at its end, it has nothing to do.
    calls = []
    same(fit(**SETTINGS, **more, **kept, callback=lambda *args: calls.append(args)), whole)
    assert not calls


def test_the_last_two_are_kept(tmp_path):
    fit(checkpoint_dir=tmp_path, checkpoint_every=20)
    assert {path.name for path in tmp_path.iterdir()} == {"40", "50"}


def test_another_training_is_refused(tmp_path):
    fit(checkpoint_dir=tmp_path)
    mlp = neb.networks.MLP((2,), width_size=8, depth=2, key=jax.random.key(0))
    others = {
        "num_steps": {"num_steps": 70},
        "key": {"key": jax.random.key(2)},
        "data": {"data": DATA[:100]},
        "batch_size": {"batch_size": 16},
        "energy": {"start": neb.ResidualEnergy(mlp, 0.5, (2,))},
        "sigma, loc, scale": {"start": neb.ResidualEnergy(energy().network, 0.4, (2,))},
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=f"holds a training run with another {name}"):
            fit(**other, checkpoint_dir=tmp_path)


def weighted(weight):
    def objective(energy, x, key):
        return weight.sum() * neb.denoising_loss(energy, x, key)

    return objective


def scheduled(steps):
    return optax.adam(optax.cosine_decay_schedule(1e-3, steps))


CHANGED = DATA.copy()
CHANGED[7, 1] += 1e-3
PAIRS = {
    "another optimiser": ({}, {"optimizer": optax.sgd(1e-3)}, "optimizer"),
    "a schedule": ({"optimizer": scheduled(10)}, {"optimizer": scheduled(20)}, "optimizer .*decay"),
    "a value in the data": ({}, {"data": CHANGED}, "data"),
    "held-out data": (
        {"validation_data": DATA[:20]},
        {"validation_data": DATA[1:21]},
        "validation_data",
    ),
    "an array that the objective reads": (
        {"objective": weighted(np.ones(2))},
        {"objective": weighted(np.array([1.0, 2.0]))},
        "objective .*closure variable 'weight'",
    ),
    "two lambdas": (
        {"objective": lambda energy, x, key: neb.denoising_loss(energy, x, key)},
        {"objective": lambda energy, x, key: 2 * neb.denoising_loss(energy, x, key)},
        "objective .*code",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_a_training_depends_on_is_compared(tmp_path, name):
    one, other, what = PAIRS[name]
    fit(**one, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=f"holds a training run with another {what}"):
        fit(**other, checkpoint_dir=tmp_path)
    fit(**one, checkpoint_dir=tmp_path)


def test_of_an_array_on_disk_some_rows_are_read(tmp_path):
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1000, 2))
    array[:] = np.random.default_rng(0).normal(size=array.shape)
    fit(data=array, checkpoint_dir=tmp_path / "run")
    fit(data=np.load(tmp_path / "x.npy", mmap_mode="r"), checkpoint_dir=tmp_path / "run")
    array[-1] += 1
    with pytest.raises(ValueError, match="holds a training run with another data"):
        fit(data=array, checkpoint_dir=tmp_path / "run")


def files_of(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_says_so(tmp_path, harm, capfd):
    """Whatever file is hurt, there is an error that names it, and no noise of orbax's or asyncio's.

    Only the checksums themselves may be gone: a kill can come before they are written.
    """
    whole = fit(checkpoint_dir=tmp_path, checkpoint_every=25)
    newest = tmp_path / "50"
    for path in files_of(newest):
        content = path.read_bytes()
        middle = len(content) // 2
        if harm == "flip":
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        elif harm == "truncate":
            path.write_bytes(content[:middle])
        else:
            path.unlink()
        if harm == "remove" and path.name == "SHA256SUMS":
            same(fit(checkpoint_dir=tmp_path), whole)
        else:
            with pytest.raises(ValueError, match=f"{newest} is damaged .*(checksum|missing|among)"):
                fit(checkpoint_dir=tmp_path)
        path.write_bytes(content)
    gc.collect()
    assert "never" not in "".join(capfd.readouterr())


def test_a_checkpoint_with_links_is_refused(tmp_path):
    """Through one, a checkpoint of somebody else's could be read or written outside its folder."""
    (tmp_path / "elsewhere").mkdir()
    fit(checkpoint_dir=tmp_path / "run")
    for place in ("run/60", "run/50/state/link"):
        (tmp_path / place).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=r"(link|60) is a symbolic link"):
            fit(checkpoint_dir=tmp_path / "run")
        (tmp_path / place).unlink()
    (tmp_path / "one").symlink_to(tmp_path / "run")  # one's own way to the folder may be one
    fit(checkpoint_dir=tmp_path / "one")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_newer_format(tmp_path):
    fit(checkpoint_dir=tmp_path)
    header = tmp_path / "50" / "header" / "metadata"
    (tmp_path / "50" / "SHA256SUMS").unlink()
    content = json.loads(header.read_text())
    del content["sha256"]

    def write(**changes):
        changed = content | changes
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        header.write_text(json.dumps(changed | {"sha256": digest}))

    write(version=3)
    with pytest.raises(
        ValueError, match="has format version 3, and this numpyro_neb reads 2: another"
    ):
        fit(checkpoint_dir=tmp_path)
    write(format="something")
    with pytest.raises(ValueError, match="is not a numpyro_neb checkpoint"):
        fit(checkpoint_dir=tmp_path)


def test_what_tells_trainings_apart_is_not_said_in_sentences(tmp_path):
    """A sentence gets reworded, and the checkpoint would be another training's."""
    fit(checkpoint_dir=tmp_path)
    identity = json.loads((tmp_path / "50" / "header" / "metadata").read_text())["identity"]
    assert set(identity) == {
        *("num_steps", "batch_size", "validate_every", "patience", "ema_decay", "key"),
        *("data", "energy", "fixed_arrays", "objective", "content"),
    }
    assert identity["data"] == "array [200, 2]"
    assert identity["objective"] == "function"


# Written by numpyro_neb 0.1.0 after 25 steps of this training, of format version 1.
OLD = Path(__file__).parent.parent / "data" / "checkpoint-1"
OF_OLD = {"num_steps": 60, "ema_decay": 0.9, "validation_data": DATA[:20], "validate_every": 10}


def test_goes_on_from_a_checkpoint_of_0_1_0(tmp_path, x32):
    shutil.copytree(OLD, tmp_path / "run")
    done = []
    kept = {"checkpoint_dir": tmp_path / "run", "callback": lambda step, _: done.append(step)}
    result, whole = fit(**OF_OLD, **kept), fit(**OF_OLD)
    assert done == [30, 40, 50, 60]
    np.testing.assert_array_equal(result.validation_steps, [10, 20, 30, 40, 50, 60])
    # Another machine's arithmetic.
    np.testing.assert_allclose(result.losses, whole.losses, **CLOSE)
    np.testing.assert_allclose(result.validation_losses, whole.validation_losses, **CLOSE)
    # From here on it is a checkpoint of this release.
    assert json.loads((tmp_path / "run/60/header/metadata").read_text())["version"] == 2
    same(fit(**OF_OLD, checkpoint_dir=tmp_path / "run"), result)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("sigma, loc, scale", {"start": neb.ResidualEnergy(energy().network, 0.4, (2,))}),
        (r"data \('array \[200, 2\]', now 'array \[100, 2\]'\)", {"data": DATA[:100]}),
        (r"data \('array \[200, 2\]', now 'iterable'\)", {"data": Epochs(), "batch_size": None}),
        ("objective", {"objective": neb.MaximumLikelihood(num_chains=4, num_steps=1)}),
    ],
)
def test_another_training_than_that_of_0_1_0(tmp_path, name, other, x32):
    shutil.copytree(OLD, tmp_path / "run")
    with pytest.raises(ValueError, match=f"holds a training run with another {name}"):
        fit(**OF_OLD | other, checkpoint_dir=tmp_path / "run")


def test_sentences_of_version_1():
    """What 0.1.0 wrote of other data."""
    old = {"sigma, loc, scale or frozen array": "0a", "num_steps": 5}
    for data, expected in {
        "an array of shape (200,)": "array [200]",
        "an array of shape (3, 10, 2)": "array [3, 10, 2]",
        "batches from an iterable": "iterable",
    }.items():
        assert checkpoints.identity_of_version_1({"arguments": old | {"data": data}}) == {
            "num_steps": 5,
            "fixed_arrays": "0a",
            "data": expected,
            "objective": "function",
        }


def test_without_orbax_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax", None)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)

    def objective(energy, x, key):
        raise AssertionError("training has begun")

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'numpyro-neb\[checkpoints\]'"):
        fit(objective=objective, checkpoint_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(fit(num_steps=2).losses) == 2


def test_a_nan_leaves_the_last_good_one(tmp_path):
    def objective(energy, x, key):
        return neb.denoising_loss(energy, x, key)

    poison = optax.GradientTransformation(
        lambda params: jnp.zeros((), int),
        lambda grads, step, params: (
            jax.tree.map(lambda g: jnp.where(step == 29, jnp.nan, -0.01 * g), grads),
            step + 1,
        ),
    )
    settings = {"objective": objective, "optimizer": poison, "checkpoint_dir": tmp_path}
    with pytest.raises(FloatingPointError, match="a parameter is not finite after step 29"):
        fit(**settings, checkpoint_every=10)
    assert {path.name for path in tmp_path.iterdir()} == {"10", "20"}


def test_control_c_says_how_to_go_on(tmp_path, capsys):
    def interrupt(done, metrics):
        raise KeyboardInterrupt

    settings = {"num_steps": 150, "callback": interrupt}
    with pytest.raises(KeyboardInterrupt):
        fit(**settings)
    said = capsys.readouterr().err
    assert "stopped after 100 of 150 steps; nothing was kept: checkpoint_dir= keeps" in said
    with pytest.raises(KeyboardInterrupt):
        fit(**settings, checkpoint_dir=tmp_path)
    said = capsys.readouterr().err
    assert f"the same call resumes from the newest checkpoint in {tmp_path}, of step 100." in said
    assert {path.name for path in tmp_path.iterdir()} == {"100"}
    same(fit(num_steps=150, checkpoint_dir=tmp_path), fit(num_steps=150))


@pytest.fixture
def default_interrupts():
    """pytest-xdist's workers ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_control_c_in_the_middle_of_a_step(tmp_path, capsys, default_interrupts):
    """The step ends, and its state is kept; without any checkpoint the message says so."""
    sent = tmp_path / "sent"  # a list in the closure would be part of the objective

    def interrupt():
        if not sent.exists():
            sent.touch()
            os.kill(os.getpid(), signal.SIGINT)

    def objective(energy, x, key):
        jax.debug.callback(interrupt)
        return neb.denoising_loss(energy, x, key)

    with pytest.raises(KeyboardInterrupt):
        fit(objective=objective, checkpoint_dir=tmp_path / "run")
    (kept,) = (tmp_path / "run").iterdir()
    assert (
        f"the newest checkpoint in {tmp_path / 'run'}, of step {kept.name}."
        in capsys.readouterr().err
    )
    same(fit(objective=objective, checkpoint_dir=tmp_path / "run"), fit(objective=objective))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("every", "error", "message"),
    [
        (0, ValueError, "checkpoint_every must be positive, got 0"),
        (timedelta(0), ValueError, "checkpoint_every must be positive"),
        (2.5, TypeError, "checkpoint_every must be an int or a timedelta, got 2.5"),
        (True, TypeError, "checkpoint_every must be an int or a timedelta, got True"),
    ],
)
def test_bad_arguments(tmp_path, every, error, message, untyped):
    with pytest.raises(error, match=message):
        fit(checkpoint_dir=tmp_path / "new", checkpoint_every=every)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint_dir must be a folder, got the file"):
        fit(checkpoint_dir=tmp_path / "file")


def test_the_energy_that_was_given_survives(tmp_path):
    start = energy()
    fit(start, checkpoint_dir=tmp_path)
    assert not any(x.is_deleted() for x in jax.tree.leaves(start) if isinstance(x, jax.Array))
