"""Images, and energies of them, for the benchmarks that repeat the paper's experiments."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import optax.contrib
from sklearn.datasets import load_digits

import numpyro_neb as neb


def load_images(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Images for training and for testing, of shape (n, height, width), in [0, 1].

    From `x_train` and `x_test` of an .npz file (values up to 255 are divided by 255); without one,
    scikit-learn's 1,797 digits, the last 300 of them for testing.
    """
    if path is None:
        images = (load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16).astype(np.float32)
        return images[:-300], images[-300:]
    with np.load(path) as file:
        train, test = file["x_train"], file["x_test"]
    unit = 255 if train.max() > 1 else 1
    return (train / unit).astype(np.float32), (test / unit).astype(np.float32)


def load_labels(path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The classes of `load_images`'s images, from `y_train` and `y_test`."""
    if path is None:
        labels = np.asarray(load_digits(return_X_y=True)[1])
        return labels[:-300], labels[-300:]
    with np.load(path) as file:
        return file["y_train"], file["y_test"]


def train_energy(
    images: np.ndarray,
    sigma: float,
    num_steps: int,
    batch_size: int = 64,
    channels: tuple[int, ...] = (48, 96),
    num_blocks: int = 1,
    optimizer: str = "muon",
    num_updates: int = 0,
    callback: Callable | None = None,
) -> neb.ResidualEnergy:
    """The energy of a U-Net, of 290,000 weights by default, on patches of 2 x 2 pixels.

    `num_steps` of denoising, then `num_updates` of maximum likelihood with 64 chains. `callback` is
    `fit`'s, in both.
    """
    shape, key = images.shape[1:], jax.random.key(0)
    network = neb.networks.UNet(shape, channels, num_blocks=num_blocks, patch_size=2, key=key)
    scale = float(images.std())
    energy = neb.ResidualEnergy(network, sigma, shape, loc=images.mean(0), scale=scale)
    warmup = min(100, num_steps // 10)
    schedule = lambda rate: (  # noqa: E731
        optax.warmup_cosine_decay_schedule(0.0, rate, warmup, num_steps)
    )
    update = optax.adam(schedule(3e-3), b2=0.99)
    if optimizer == "muon":
        update = optax.contrib.muon(
            schedule(5e-3),
            adam_learning_rate=schedule(3e-3),
            adam_b2=0.99,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=_kernels,
        )
    update = optax.chain(optax.clip_by_global_norm(5.0), update)
    settings: Any = {"num_steps": num_steps, "batch_size": batch_size, "callback": callback}
    settings["optimizer"] = update
    energy = neb.fit(energy, images, key=jax.random.key(1), **settings).energy
    chains = {"num_chains": 64, "num_steps": 10, "callback": callback}
    return weighed(energy, images, num_updates, batch_size, **chains)


def weighed(
    energy: neb.ResidualEnergy,
    data: np.ndarray,
    num_updates: int,
    batch_size: int = 128,
    callback: Callable | None = None,
    **chains: Any,
) -> neb.ResidualEnergy:
    """The energy after `num_updates` of maximum likelihood, unchanged if that is 0."""
    if num_updates == 0:
        return energy
    settings: Any = {"num_steps": num_updates, "batch_size": batch_size, "callback": callback}
    objective = neb.MaximumLikelihood(**chains)
    return neb.fit(energy, data, key=jax.random.key(5), objective=objective, **settings).energy


def _kernels(params):
    """Muon takes each convolution as a matrix of output channels, and leaves biases to Adam."""
    kernel = optax.contrib.MuonDimensionNumbers((1, 2, 3), 0)
    return jax.tree.map(lambda weight: kernel if weight.ndim == 4 else None, params)


def add_noise(images: np.ndarray, sigma: float, seed: int = 0) -> jnp.ndarray:
    """One draw of Y = X + N(0, sigma^2 I)."""
    noise = np.random.default_rng(seed).normal(size=images.shape)
    return jnp.asarray(images + sigma * noise, jnp.float32)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that these benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="an .npz file with x_train and x_test; default: digits")
    parser.add_argument("--out", type=Path, help="a folder for pictures and energies")
    parser.add_argument(
        "--updates", type=int, default=1000, help="of maximum likelihood, or 0 (1000)"
    )
    return parser


def write_picture(folder: Path | None, name: str) -> None:
    """Writes the newest figure as folder/name.png, if there is a folder, and closes it."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        plt.savefig(folder / f"{name}.png", dpi=150)
    plt.close()
