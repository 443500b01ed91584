"""Processes that are really killed, at random moments."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import equinox as eqx
import jax
import numpy as np
import pytest
import xarray as xr

import numpyro_neb as neb

TRAINING = """
import sys
import jax, numpy as np
import numpyro_neb as neb

data = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
mlp = neb.networks.MLP((2,), width_size=16, depth=2, key=jax.random.key(0))
energy = neb.ResidualEnergy(mlp, 0.5, (2,))
folder, out = sys.argv[1:]
result = neb.fit(
    energy, data, key=jax.random.key(1), num_steps=6000, batch_size=32, ema_decay=0.99,
    validation_data=data[:50], checkpoint_dir=folder, checkpoint_every=50, progress_bar=False,
    objective=neb.MaximumLikelihood(num_chains=16, num_steps=2), validate_every=1500,
    callback=lambda *_: print("going", flush=True),
)
neb.save(out, result.energy)
np.save(out + ".npy", result.losses)
np.save(out + ".chains.npy", result.objective_state.position)
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.statistical
def test_eight_kills_of_a_training_change_nothing(tmp_path):
    undisturbed = start(TRAINING, tmp_path / "one", tmp_path / "whole")
    undisturbed.communicate()
    assert undisturbed.returncode == 0
    chance = random.Random(0)
    for _ in range(8):
        process = start(TRAINING, tmp_path / "other", tmp_path / "killed")
        process.stdout.readline()  # it is under way
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = start(TRAINING, tmp_path / "other", tmp_path / "killed")
    last.communicate()
    assert last.returncode == 0
    for kept in ("npy", "chains.npy"):
        arrays = [np.load(tmp_path / f"{name}.{kept}") for name in ("whole", "killed")]
        np.testing.assert_array_equal(*arrays)
    energies = [neb.load(tmp_path / name) for name in ("whole", "killed")]
    arrays = [jax.tree.leaves(eqx.filter(energy, eqx.is_array)) for energy in energies]
    for one, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def sampling(folder, *arguments):
    """The command line, with compiled functions kept from one process to the next."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    cache |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "numpyro_neb", "sample", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | cache)


def under_way(process, draws):
    """Waits until the progress bar counts more draws than were there before."""
    seen = b""
    while not (count := re.findall(rb" (\d+)/3000 ", seen)) or int(count[-1]) < draws:
        character = process.stderr.read(1)
        assert character, seen.decode()
        seen += character


@pytest.mark.slow
@pytest.mark.statistical
def test_eight_kills_of_a_sampling_change_nothing(tmp_path):
    neb.save(tmp_path / "energy", neb.MixtureEnergy(np.eye(4), 0.5))
    sizes = ("--draws", 3000, "--draws-per-write", 10, "--chains", 2, "--num-steps", 2)
    store, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    undisturbed = sampling(tmp_path, tmp_path / "energy", "--out", whole, *sizes)
    undisturbed.communicate()
    assert undisturbed.returncode == 0
    expected = xr.open_datatree(whole, engine="zarr").load()
    chance = random.Random(0)
    seen = [0]
    for number in range(8):
        process = sampling(tmp_path, tmp_path / "energy", "--out", store, *sizes)
        # Every other one at its beginning, before or while it compiles; the others after a write.
        under_way(process, seen[-1] + 10 * (number % 2))
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if store.exists():
            # What is there opens, and is a beginning of the whole.
            found = xr.open_datatree(store, engine="zarr").load()
            seen.append(found["posterior"].sizes["draw"])
            for group in ("posterior", "sample_stats"):
                begun = expected[group].to_dataset().isel(draw=slice(seen[-1]))
                xr.testing.assert_equal(found[group].to_dataset(), begun)
    assert seen == sorted(seen)
    assert seen[-1] < 3000
    assert len(set(seen)) > 4  # it wrote before each of the others
    last = sampling(tmp_path, tmp_path / "energy", "--out", store, *sizes)
    last.communicate()
    assert last.returncode == 0
    found = xr.open_datatree(store, engine="zarr").load()
    for group in ("posterior", "sample_stats", "constant_data"):
        xr.testing.assert_equal(found[group].to_dataset(), expected[group].to_dataset())
