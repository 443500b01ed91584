"""Small trainings, and what tests of training share."""

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import numpyro_neb as neb

SIGMA = 0.5
DATA = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)


def energy():
    mlp = neb.networks.MLP((2,), width_size=16, depth=2, key=jax.random.key(0))
    return neb.ResidualEnergy(mlp, SIGMA, (2,))


def fit(start=None, data=DATA, **kwargs):
    settings = {"key": jax.random.key(1), "num_steps": 50, "batch_size": 32, "progress_bar": False}
    return neb.fit(energy() if start is None else start, data, **(settings | kwargs))


def conditional():
    settings = {"width_size": 32, "depth": 2, "conditional": True, "key": jax.random.key(0)}
    network = neb.networks.MLP((2,), **settings)
    return neb.ConditionalEnergy(network, (2,), sigma_range=(0.2, 1.0))


class Epochs:
    """Batches that begin again, as a DataLoader's do."""

    def __iter__(self):
        return (DATA[i : i + 32] for i in range(0, 192, 32))


def same(one, other):
    np.testing.assert_array_equal(one.losses, other.losses)
    arrays = [jax.tree.leaves(eqx.filter(result.energy, eqx.is_array)) for result in (one, other)]
    for a, b in zip(*arrays, strict=True):
        np.testing.assert_array_equal(a, b)


class StopError(Exception):
    pass


def stop_after(step):
    def callback(done, metrics):
        if done >= step:
            raise StopError

    return callback


# Sums in another order; Adam's division by the gradient's size makes more of the difference.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def over(*axes, split=None, devices=None):
    devices = np.array(jax.devices()[:4] if devices is None else devices)
    mesh = Mesh(devices.reshape([2] * len(axes) if len(axes) > 1 else -1), axes)
    return NamedSharding(mesh, PartitionSpec(axes) if split is None else split)
