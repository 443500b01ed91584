"""Which form of energy learns better from one network: `python -m benchmarks.energies`.

The held-out DEEN loss on scikit-learn's digits at sigma = 0.3 with the same 3 x 256 MLP, compared
with the exact kernel density of the training images.
"""

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import numpyro_neb as neb

_SIGMA = 0.3


def held_out_loss(energy: neb.AbstractEnergy, images: np.ndarray) -> float:
    """The loss on `images`, averaged over 20 draws of the noise."""
    loss, x = eqx.filter_jit(neb.denoising_loss), jnp.asarray(images)
    return float(np.mean([loss(energy, x, k) for k in jax.random.split(jax.random.key(9), 20)]))


def trained(form: type, train: np.ndarray, num_steps: int) -> neb.AbstractEnergy:
    """An energy of that form on the MLP, trained with `fit`'s defaults."""
    out = "scalar" if form is neb.NetworkEnergy else "event"
    network = neb.networks.MLP((8, 8), out, width_size=256, depth=3, key=jax.random.key(0))
    energy = form(network, _SIGMA, (8, 8), loc=train.mean(0), scale=train.std())
    key = jax.random.key(1)
    return neb.fit(energy, train, key=key, num_steps=num_steps, batch_size=128).energy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32)
    splits: dict[str, Any] = {
        "random 297 held out": train_test_split(images, test_size=297, random_state=0),
        "last 297 held out": (images[:-297], images[-297:]),
    }
    for name, (train, held_out) in splits.items():
        losses = {"kernel density": held_out_loss(neb.MixtureEnergy(train, _SIGMA), held_out)}
        for form in (neb.NetworkEnergy, neb.ResidualEnergy):
            energy = trained(form, train, arguments.steps)
            losses[form.__name__] = held_out_loss(energy, held_out)
        print(name, {form: round(loss, 3) for form, loss in losses.items()}, flush=True)


if __name__ == "__main__":
    main()
