"""Processes that are really killed, at random moments."""

import random
import signal
import subprocess
import sys
import time

import equinox as eqx
import jax
import numpy as np
import pytest

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
    callback=lambda *_: print("going", flush=True),
)
neb.save(out, result.energy)
np.save(out + ".npy", result.losses)
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.statistical
def test_twenty_kills_of_a_training_change_nothing(tmp_path):
    undisturbed = start(TRAINING, tmp_path / "one", tmp_path / "whole")
    undisturbed.communicate()
    assert undisturbed.returncode == 0
    chance = random.Random(0)
    for _ in range(20):
        process = start(TRAINING, tmp_path / "other", tmp_path / "killed")
        process.stdout.readline()  # it is under way
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = start(TRAINING, tmp_path / "other", tmp_path / "killed")
    last.communicate()
    assert last.returncode == 0
    losses = [np.load(tmp_path / f"{name}.npy") for name in ("whole", "killed")]
    np.testing.assert_array_equal(*losses)
    energies = [neb.load(tmp_path / name) for name in ("whole", "killed")]
    arrays = [jax.tree.leaves(eqx.filter(energy, eqx.is_array)) for energy in energies]
    for one, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(one, other)
