"""Capacity of the associative memory as i-spheres overlap: `python -m benchmarks.memories`.

The patterns are the first training images (`benchmarks.images`: digits, or those of --data). For
each sigma, two energies of the same patterns, the exact kernel density and a multilayer perceptron
trained on them, recall every pattern from two cues: the pattern with noise of that sigma, and the
pattern with its lower half replaced by the mean.

    recalled     the share of cues from which the flow ends in a stable memory that is the
                 pattern's: nearer to it than half the distance to the nearest other pattern
    memories     the number of memories
    creative     the share of memories whose nearest pattern is farther away than the median
                 distance from a pattern to its nearest other pattern
    distance     from a memory to the nearest pattern, median of the root mean square per pixel

With --out, pictures of the memories and of the overlaps are written to that folder.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial.distance import cdist

import numpyro_neb as neb
from benchmarks.images import load_images, parser, weighed, write_picture


class Capacity(NamedTuple):
    """What one energy remembers of its patterns."""

    recalled_from_noise: float
    recalled_from_half: float
    num_memories: int
    creative: float
    distance: float


def trained(
    patterns: np.ndarray, sigma: float, num_steps: int, num_updates: int
) -> neb.ResidualEnergy:
    """A residual multilayer perceptron's energy of the patterns at sigma."""
    shape = patterns.shape[1:]
    network = neb.networks.MLP(shape, width_size=256, depth=3, key=jax.random.key(0))
    scale = float(patterns.std())
    energy = neb.ResidualEnergy(network, sigma, shape, loc=patterns.mean(0), scale=scale)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
    settings = {"num_steps": num_steps, "batch_size": 128, "optimizer": optimizer}
    energy = neb.fit(energy, patterns, key=jax.random.key(1), **settings).energy
    return weighed(energy, patterns, num_updates)


def capacity(
    energy: neb.AbstractEnergy, patterns: np.ndarray
) -> tuple[Capacity, neb.memories.FoundMemories]:
    """How many of the patterns the energy recalls, and what its memories are."""
    n, height, _ = patterns.shape
    noise = np.random.default_rng(0).normal(size=patterns.shape).astype(np.float32)
    half = patterns.copy()
    half[:, height // 2 :] = patterns.mean(0)[height // 2 :]
    flat = patterns.reshape(n, -1)
    among = cdist(flat, flat)
    np.fill_diagonal(among, np.inf)

    def share(cues):
        found = neb.recall(energy, cues)
        left = np.linalg.norm(np.asarray(found.attractors).reshape(n, -1) - flat, axis=1)
        return float(np.mean(np.asarray(found.stable) & (left < among.min(1) / 2)))

    found = neb.memories.find_memories(energy, patterns)
    distances = cdist(found.attractors[found.stable].reshape(-1, flat.shape[1]), flat).min(1)
    result = Capacity(
        share(patterns + float(energy.sigma) * noise),
        share(half),
        len(distances),
        float(np.mean(distances > np.median(among.min(1)))),
        float(np.median(distances)) / np.sqrt(flat.shape[1]),
    )
    return result, found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--patterns", type=int, default=300)
    options.add_argument("--steps", type=int, default=3000, help="training steps of each energy")
    options.add_argument("--sigmas", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
    arguments = options.parse_args()
    patterns = load_images(arguments.data)[0][: arguments.patterns]
    overlaps = neb.sphere_overlaps(patterns)
    print(overlaps)
    print("| sigma | energy | from noise | from the upper half | memories | creative | distance |")
    print("|---|---|---|---|---|---|---|")
    for sigma in arguments.sigmas:
        energies = {
            "kernel density": neb.MixtureEnergy(jnp.asarray(patterns), sigma),
            "trained": trained(patterns, sigma, arguments.steps, arguments.updates),
        }
        for name, energy in energies.items():
            result, found = capacity(energy, patterns)
            print(
                f"| {sigma:.2f} | {name} | {result.recalled_from_noise:.0%}"
                f" | {result.recalled_from_half:.0%}"
                f" | {result.num_memories}"
                f" | {result.creative:.0%} | {result.distance:.3f} |",
                flush=True,
            )
            if arguments.out:
                neb.plots.memories(found)
                write_picture(arguments.out, f"memories_{name.split()[0]}_{sigma:.2f}")
    if arguments.out:
        neb.plots.overlaps(overlaps)
        write_picture(arguments.out, "overlaps")


if __name__ == "__main__":
    main()
