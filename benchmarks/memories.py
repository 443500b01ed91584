"""Capacity of the associative memory as i-spheres overlap: `python -m benchmarks.memories`.

The patterns are images in [0, 1]: scikit-learn's digits, or the first of `x_train` in an .npz file
named by --data (values up to 255 are divided by 255). For each sigma, two energies of the same
patterns, the exact kernel density and a multilayer perceptron trained on them, are asked for every
pattern from two cues: with noise of that sigma, and with its lower half replaced by the mean.

    recalled     the share of cues from which the flow ends nearest to the pattern itself
    memories     how many attractors there are, and how many of them are stable
    creative     the share of memories farther from every pattern than the two nearest patterns are
                 from one another, in the median over patterns
    distance     from a memory to the nearest pattern, the root mean square per pixel, in the median

With --out, pictures of the memories and of the overlaps are written to that folder.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

import numpyro_neb as neb


class Capacity(NamedTuple):
    """What one energy remembers of its patterns."""

    recalled_from_noise: float
    recalled_from_half: float
    num_memories: int
    num_stable: int
    creative: float
    distance: float


def patterns_of(path: str | None, count: int) -> np.ndarray:
    """The first `count` images, of shape (count, height, width), in [0, 1]."""
    if path is None:
        images = load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16
    else:
        with np.load(path) as file:
            images = file["x_train"][:count]
        images = images / 255 if images.max() > 1 else images
    return images[:count].astype(np.float32)


def trained(patterns: np.ndarray, sigma: float, num_steps: int) -> neb.ResidualEnergy:
    """A residual multilayer perceptron's energy of the patterns at sigma."""
    shape = patterns.shape[1:]
    network = neb.networks.MLP(shape, width_size=256, depth=3, key=jax.random.key(0))
    scale = float(patterns.std())
    energy = neb.ResidualEnergy(network, sigma, shape, loc=patterns.mean(0), scale=scale)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
    settings = {"num_steps": num_steps, "batch_size": 128, "optimizer": optimizer}
    return neb.fit(energy, patterns, key=jax.random.key(1), **settings).energy


def capacity(
    energy: neb.AbstractEnergy, patterns: np.ndarray
) -> tuple[Capacity, neb.memories.FoundMemories]:
    """How many of the patterns the energy recalls, and what its memories are."""
    n, height, _ = patterns.shape
    noise = np.random.default_rng(0).normal(size=patterns.shape).astype(np.float32)
    half = patterns.copy()
    half[:, height // 2 :] = patterns.mean(0)[height // 2 :]
    flat = patterns.reshape(n, -1)

    def share(cues):
        attractors = neb.recall(energy, cues).attractors
        nearest = cdist(np.asarray(attractors).reshape(n, -1), flat).argmin(1)
        return float(np.mean(nearest == np.arange(n)))

    found = neb.memories.find_memories(energy, patterns)
    distances = cdist(found.attractors.reshape(len(found.counts), -1), flat).min(1)
    among = cdist(flat, flat)
    np.fill_diagonal(among, np.inf)
    result = Capacity(
        share(patterns + float(energy.sigma) * noise),
        share(half),
        len(found.counts),
        int(found.stable.sum()),
        float(np.mean(distances > np.median(among.min(1)))),
        float(np.median(distances)) / np.sqrt(flat.shape[1]),
    )
    return result, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="an .npz file with x_train")
    parser.add_argument("--patterns", type=int, default=300)
    parser.add_argument("--steps", type=int, default=3000, help="training steps of each energy")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--out", type=Path, help="a folder for pictures")
    arguments = parser.parse_args()
    patterns = patterns_of(arguments.data, arguments.patterns)
    overlaps = neb.sphere_overlaps(patterns)
    print(overlaps)
    print("| sigma | energy | from noise | from the upper half | memories | creative | distance |")
    print("|---|---|---|---|---|---|---|")
    for sigma in arguments.sigmas:
        energies = {
            "kernel density": neb.MixtureEnergy(jnp.asarray(patterns), sigma),
            "trained": trained(patterns, sigma, arguments.steps),
        }
        for name, energy in energies.items():
            result, found = capacity(energy, patterns)
            print(
                f"| {sigma:.2f} | {name} | {result.recalled_from_noise:.0%}"
                f" | {result.recalled_from_half:.0%}"
                f" | {result.num_memories} ({result.num_stable} stable)"
                f" | {result.creative:.0%} | {result.distance:.3f} |",
                flush=True,
            )
            if arguments.out:
                neb.plots.memories(found)
                _write(arguments.out / f"memories_{name.split()[0]}_{sigma:.2f}.png")
    if arguments.out:
        neb.plots.overlaps(overlaps)
        _write(arguments.out / "overlaps.png")


def _write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=150)
    plt.close()


if __name__ == "__main__":
    main()
