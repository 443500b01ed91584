"""Training and chains over several devices, and over processes joined by jax.distributed."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from trainings import CLOSE, DATA, Epochs, conditional, energy, fit, over, same

import numpyro_neb as neb
from numpyro_neb.training import fitting
from numpyro_neb.training.devices import Devices

SETTINGS = {"num_steps": 40, "ema_decay": 0.9, "validation_data": DATA[:20], "validate_every": 7}


def close(one, other):
    np.testing.assert_allclose(one.losses, other.losses, **CLOSE)
    np.testing.assert_allclose(one.validation_losses, other.validation_losses, **CLOSE)
    arrays = [jax.tree.leaves(eqx.filter(result.energy, eqx.is_array)) for result in (one, other)]
    for a, b in zip(*arrays, strict=True):
        np.testing.assert_allclose(a, b, **CLOSE)


@pytest.fixture(scope="module")
def on_one_device():
    return fit(**SETTINGS)


@pytest.mark.parametrize("axes", [("batch",), ("host", "device")])
def test_four_devices_train_as_one(axes, on_one_device):
    result = fit(**SETTINGS, sharding=over(*axes))
    close(result, on_one_device)
    # The energy is used as it would have been without devices.
    leaves = jax.tree.leaves(eqx.filter(result.energy, eqx.is_array))
    assert {device for x in leaves for device in x.devices()} == {jax.devices()[0]}


def test_a_mesh_with_explicit_axes(on_one_device):
    mesh = jax.make_mesh((4,), ("batch",))
    close(fit(**SETTINGS, sharding=NamedSharding(mesh, PartitionSpec("batch"))), on_one_device)


def test_a_conditional_energy_and_patience():
    settings = {"validation_data": DATA[:30], "patience": 2, "validate_every": 3}
    one, many = (fit(conditional(), sharding=s, **settings) for s in (None, over("batch")))
    close(many, one)


def test_arrays_on_disk_and_batches(tmp_path, on_one_device):
    np.save(tmp_path / "data.npy", DATA)
    on_disk = np.load(tmp_path / "data.npy", mmap_mode="r")
    close(fit(**SETTINGS, data=on_disk, sharding=over("batch")), on_one_device)
    given = {"data": Epochs(), "batch_size": None}
    close(fit(**SETTINGS, **given, sharding=over("batch")), fit(**SETTINGS, **given))


def test_goes_on_with_another_number_of_devices(tmp_path, on_one_device):
    class StopError(Exception):
        pass

    def stop(done, metrics):
        if done >= 14:
            raise StopError

    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 5}
    with pytest.raises(StopError):
        fit(**SETTINGS, **kept, sharding=over("batch"), callback=stop)
    first = {int(path.name) for path in tmp_path.iterdir()}
    two = over("batch", devices=jax.devices()[:2])
    close(fit(**SETTINGS, **kept, sharding=two), on_one_device)
    assert max(first) == 10
    same(fit(**SETTINGS, **kept), fit(**SETTINGS, **kept, sharding=over("batch")))


def test_one_all_reduce_is_all_that_is_communicated(monkeypatch):
    """Of the gradient and the loss; each weight has one in y and one in the gradient's own pass."""
    programs, compiled = [], fitting._compiled

    def listening(*args):
        step, evaluate = compiled(*args)

        def spied(*args):
            programs.append(step.lower(*args).compile().as_text())
            return step(*args)

        return spied, evaluate

    monkeypatch.setattr(fitting, "_compiled", listening)
    fit(num_steps=1, sharding=over("batch"))
    kinds = "all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", programs[0])
    assert [kind for _, kind in found] == ["all-reduce"]
    bits = jax.numpy.finfo(jax.numpy.result_type(float)).bits
    shapes = re.findall(rf"f{bits}\[([\d,]*)\]", found[0][0])
    sent = sum(int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes)
    size = sum(x.size for x in jax.tree.leaves(eqx.filter(energy().network, eqx.is_array)))
    assert size < sent <= 2 * size + 1


@pytest.mark.parametrize(
    ("sharding", "more", "error", "message"),
    [
        (lambda: over("batch").mesh, {}, TypeError, "must be a jax.sharding.NamedSharding.*Mesh"),
        (lambda: over("batch", split=PartitionSpec()), {}, ValueError, "split the first axis"),
        (
            lambda: over("batch", split=PartitionSpec(None, "batch")),
            {},
            ValueError,
            r"over all axes of its mesh, \('batch',\), got \w+\(None, 'batch'\)",
        ),
        (
            lambda: over("host", "device", split=PartitionSpec("host")),
            {},
            ValueError,
            r"over all axes of its mesh, \('host', 'device'\), got",
        ),
        (
            lambda: over("batch"),
            {"batch_size": 30},
            ValueError,
            "batch_size must be divisible by the 4 devices of sharding, got 30",
        ),
        (
            lambda: over("batch"),
            {"data": iter([DATA[:30]]), "batch_size": None},
            ValueError,
            "a batch of data must be divisible by the 4 devices of this process, got 30 examples",
        ),
    ],
)
def test_bad_arguments(sharding, more, error, message, untyped):
    with pytest.raises(error, match=message):
        fit(sharding=sharding(), **more)


def test_an_axis_that_the_mesh_has_not():
    """JAX itself says so, before `fit` is called."""
    with pytest.raises(ValueError, match="batch"):
        over("chains", split=PartitionSpec("batch"))


# Real processes. Each runs this file with its rank, a port, a folder and what to do.


def joined(rank, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank, heartbeat_timeout_seconds=5)
    return over("batch", devices=jax.devices())


def train(rank, port, folder):
    """Every kind of data, and an argument that differs."""
    sharding, calls = joined(rank, port), []
    settings = SETTINGS | {"sharding": sharding}
    record = lambda *args: calls.append(args)  # noqa: E731
    kept = {"checkpoint_dir": folder / "run", "checkpoint_every": 10, "progress_bar": True}
    results = {"array": fit(**settings, **kept, callback=record)}
    assert bool(calls) == (rank == 0)
    on_disk = np.load(folder / "data.npy", mmap_mode="r")
    results["disk"] = fit(**settings, data=on_disk)
    mine = [DATA[i : i + 32][16 * rank : 16 * rank + 16] for i in range(0, 192, 32)]
    parts = Parts(mine)
    results["batches"] = fit(**settings, data=parts, batch_size=None, patience=3)
    try:
        fit(**settings | {"key": jax.random.key(rank)})
    except ValueError as error:
        print(error)
    try:
        fit(sharding=over("batch", devices=jax.local_devices()))
    except ValueError as error:
        print(error)
    for name, result in results.items():
        neb.save(folder / f"{name}{rank}", result.energy)
        np.savez(folder / f"{name}{rank}.npz", *result[1:4])


@dataclasses.dataclass
class Parts:
    batches: list

    def __iter__(self):
        return iter(self.batches)


def chains(rank, port, folder):
    from jax.experimental import multihost_utils

    sharding = joined(rank, port)
    keys = Devices(sharding).replicated(KEYS())
    mcmc = sampler()
    mcmc.run(jax.jit(lambda k: k, out_shardings=sharding)(keys))
    draws = multihost_utils.process_allgather(mcmc.get_samples(group_by_chain=True), tiled=True)
    assert len(mcmc.last_state.draw["y"].addressable_shards) == 1
    np.save(folder / f"draws{rank}.npy", draws["y"])


def KEYS():  # noqa: N802
    return jax.random.split(jax.random.key(3), 4)


def sampler():
    from numpyro.infer import MCMC

    settings = {"num_warmup": 5, "num_samples": 20, "num_chains": 4, "chain_method": "vectorized"}
    return MCMC(neb.WalkJumpKernel(energy(), num_steps=2), progress_bar=False, **settings)


LONG = {"num_steps": 600, "validation_data": DATA[:20]}


def long(rank, port, folder):
    sharding = joined(rank, port)
    say = lambda *_: print("going", flush=True)  # noqa: E731
    often = timedelta(microseconds=1)  # each time that the processes look at the clock
    kept = {"checkpoint_dir": folder / "run", "checkpoint_every": often, "callback": say}
    result = fit(**LONG, **kept, sharding=sharding)
    np.save(folder / f"losses{rank}.npy", result.losses)


def pair(what, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), str(tests.parent)])
    environment = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""}
    return [
        subprocess.Popen(
            [sys.executable, __file__, what, str(rank), str(port), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]


def both(what, folder):
    processes = pair(what, folder)
    texts = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    return texts


@pytest.mark.slow
def test_two_processes_train_as_one_device(tmp_path, on_one_device):
    np.save(tmp_path / "data.npy", DATA)
    (said, bar), (said_too, no_bar) = both("train", tmp_path)
    assert "another key in some of the 2 processes" in said
    assert "the same number of devices from each process" in said
    assert "another key in some of the 2 processes" in said_too
    assert "40/40" in bar
    assert "40/40" not in no_bar
    given = {"data": Epochs(), "batch_size": None, "patience": 3}
    expected = {"array": on_one_device, "disk": on_one_device, "batches": fit(**SETTINGS, **given)}
    for name, one in expected.items():
        files = [np.load(tmp_path / f"{name}{rank}.npz") for rank in (0, 1)]
        energies = [neb.load(tmp_path / f"{name}{rank}") for rank in (0, 1)]
        results = [
            neb.FitResult(energy, *file.values(), {}, None)
            for energy, file in zip(energies, files, strict=True)
        ]
        same(*results)
        close(results[0], one)
    # One process goes on with the checkpoint that two have written.
    close(fit(**SETTINGS, checkpoint_dir=tmp_path / "run"), on_one_device)


@pytest.mark.slow
def test_chains_of_two_processes(tmp_path):
    both("chains", tmp_path)
    mcmc = sampler()
    mcmc.run(KEYS())
    expected = mcmc.get_samples(group_by_chain=True)["y"]
    for rank in (0, 1):
        np.testing.assert_allclose(np.load(tmp_path / f"draws{rank}.npy"), expected, **CLOSE)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    both("long", folder)
    return np.load(folder / "losses0.npy")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_other_and_a_restart_goes_on(tmp_path, victim, undisturbed):
    processes = pair("long", tmp_path)
    lines = (line for line in processes[0].stdout if line == "going\n")
    for _ in range(6):  # at 30, 60, 90, 100 (and a checkpoint), 120 and 150 steps
        next(lines)
    processes[victim].kill()
    killed = time.monotonic()
    survivor = processes[1 - victim]
    _, said = survivor.communicate(timeout=60)
    assert time.monotonic() - killed < 30  # the heartbeat's five seconds, and a busy machine
    processes[victim].communicate()
    assert processes[victim].returncode == -signal.SIGKILL
    assert survivor.returncode != 0
    if victim == 1:
        assert "a step over 2 processes failed in process 0: most likely another process" in said
        assert f"resumes from the newest checkpoint in {tmp_path / 'run'}" in said
    else:
        assert "another task died" in said  # JAX's own words: process 0 is what joins the others
    assert max(int(path.name) for path in (tmp_path / "run").iterdir() if path.name.isdigit()) > 0
    both("long", tmp_path)
    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(tmp_path / f"losses{rank}.npy"), undisturbed)


if __name__ == "__main__":
    from pathlib import Path

    _, what, rank, port, folder = sys.argv
    {"train": train, "chains": chains, "long": long}[what](int(rank), port, Path(folder))
