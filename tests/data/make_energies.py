"""Writes an energy file of each kind, and what it says: `python tests/data/make_energies.py`.

Run once for each format version, with the release that writes it, into a folder of its own. The
files stay as they are: that later releases load them is what tests/files/test_old_files.py shows.
"""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_neb as neb

FOLDER = Path(__file__).parent / "energies-1"
KEY = jax.random.key(0)
IMAGE = (4, 4)


def energies():
    """By name, an energy and the sigma to look at it, if it is one of many noise levels."""
    networks = neb.networks
    loc, scale = np.linspace(-1.0, 1.0, 6).reshape(2, 3), np.linspace(0.5, 2.0, 6).reshape(2, 3)
    scalar = networks.MLP((2, 3), "scalar", width_size=6, depth=1, key=KEY)
    event = networks.MLP((2, 3), width_size=6, depth=2, activation=jax.nn.softplus, key=KEY)
    convnet = networks.ConvNet(IMAGE, (2, 3), bottleneck=3, stride=2, key=KEY)
    unet = networks.UNet((1, *IMAGE), (3, 4), patch_size=1, activation=jax.nn.gelu, key=KEY)
    bare = eqx.nn.MLP(2, 2, 5, 2, activation=jnp.tanh, use_final_bias=False, key=KEY)
    many = networks.MLP((2,), width_size=5, depth=1, conditional=True, key=KEY)
    patches = networks.UNet(IMAGE, (2, 3), patch_size=2, conditional=True, key=KEY)
    family = neb.ConditionalEnergy(many, (2,), (0.1, 1.0), loc=np.array([0.5, 1.0]), scale=2.0)
    locs = np.arange(12.0).reshape(4, 3) / 5
    covariances = np.stack([np.diag([0.1, 0.2, 0.3]) + 0.05 * i for i in range(4)])
    weights = np.log([0.1, 0.2, 0.3, 0.4])
    yield "NetworkEnergy-MLP", neb.NetworkEnergy(scalar, 0.3, (2, 3), loc, scale), None
    yield "NetworkEnergy-ConvNet", neb.NetworkEnergy(convnet, 0.4, IMAGE), None
    yield "ResidualEnergy-MLP", neb.ResidualEnergy(event, 0.3, (2, 3), loc, scale), None
    yield "ResidualEnergy-UNet", neb.ResidualEnergy(unet, 0.5, (1, *IMAGE)), None
    yield "ResidualEnergy-eqx.nn.MLP", neb.ResidualEnergy(bare, 0.3, (2,), 0.1, 1.5), None
    yield "ResidualEnergy-at-a-level", family.at(0.3), None
    yield "ConditionalEnergy-MLP", family, 0.7
    yield "ConditionalEnergy-UNet", neb.ConditionalEnergy(patches, IMAGE, (0.2, 2.0)), 0.4
    yield "MixtureEnergy-kernel-density", neb.MixtureEnergy(locs, 0.3), None
    yield "MixtureEnergy-covariances", neb.MixtureEnergy(locs, 0.3, weights, covariances), None
    yield "MixtureEnergy-line", neb.MixtureEnergy(np.array([-1.0, 1.0]), 0.8), None


def with_random_weights(energy):
    """Some layers are zero at first, and zeros would hide which of them is which."""
    params, rest = eqx.partition(energy, neb.energies.trainable(energy))
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(x + 0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return eqx.combine(jax.tree.unflatten(treedef, leaves), rest)


def main():
    FOLDER.mkdir()  # never over the files of a release
    values = {}
    for name, energy, sigma in energies():
        if not isinstance(energy, neb.MixtureEnergy):
            energy = with_random_weights(energy)
        neb.save(FOLDER / f"{name}.safetensors", energy)
        looked_at = energy if sigma is None else energy.at(sigma)
        y = np.random.default_rng(1).normal(size=energy.event_shape).astype(np.float32)
        values[name] = {
            "sigma": sigma,
            "y": y.tolist(),
            "phi": float(looked_at(y)),
            "score": np.asarray(looked_at.score(y)).tolist(),
        }
    text = json.dumps({"numpyro_neb": neb.__version__, "values": values}, indent=1)
    (FOLDER / "values.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
