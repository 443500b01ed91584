"""Memories of all training images as sigma grows (NEBULA): `python -m benchmarks.nebula`.

For each sigma there is an energy of the training images: energy_<sigma>.safetensors of the folder
--energies, as saved by `benchmarks.denoising`, or a new one without that folder. The gradient
flow starts from the first training images. It prints

    memories   the attractors, how many of them are stable, and how many cues did not come to rest
    largest    the largest basin's share of the cues
    distance   from a memory to the nearest training image, the median of the root mean square per
               pixel
    creative   the share of memories whose nearest training image is farther away than the median
               distance from a training image to its nearest neighbour

With --out, it draws the memories of each sigma, each above the training image nearest to it.
"""

from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist

import numpyro_neb as neb
from benchmarks.images import load_images, parser, train_energy, write_picture


def energy_at(sigma: float, images: np.ndarray, folder: Path | None, num_steps: int, updates: int):
    """The energy at sigma: that of the folder, or a new one if there is no folder."""
    if folder is None:
        return train_energy(images, sigma, num_steps, num_updates=updates)
    return neb.load(folder / f"energy_{sigma}.safetensors")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sigmas", type=float, nargs="+", default=[0.15, 0.2, 0.3, 0.5, 0.7])
    arguments.add_argument("--steps", type=int, default=1000, help="training steps of each energy")
    arguments.add_argument("--cues", type=int, default=100)
    arguments.add_argument("--max-steps", type=int, default=400, help="of the flow's solver")
    arguments.add_argument("--energies", type=Path, help="a folder with energies")
    options = arguments.parse_args()
    train, _ = load_images(options.data)
    flat, cues = train.reshape(len(train), -1), train[: options.cues]
    per_pixel = np.sqrt(flat.shape[1])
    neighbours = np.partition(cdist(flat[: options.cues], flat), 1, axis=1)[:, 1]
    usual = np.median(neighbours)
    print(f"nearest neighbours among the training images: {usual / per_pixel:.3f}")
    print("| sigma | memories | largest | distance | creative |")
    print("|---|---|---|---|---|")
    for sigma in options.sigmas:
        energy = energy_at(sigma, train, options.energies, options.steps, options.updates)
        found = neb.memories.find_memories(energy, cues, max_steps=options.max_steps)
        apart = cdist(found.attractors.reshape(len(found.counts), -1), flat)
        nearest = apart.min(1)
        lost = int(np.sum(found.basins < 0))
        print(
            f"| {sigma} | {len(found.counts)} ({found.stable.sum()} stable, {lost} not at rest)"
            f" | {found.counts.max(initial=0) / len(cues):.0%}"
            f" | {np.median(nearest) / per_pixel:.3f} | {np.mean(nearest > usual):.0%} |",
            flush=True,
        )
        shown = min(12, len(found.counts))
        pairs = np.stack([found.attractors[:shown], train[apart.argmin(1)[:shown]]])
        ax = neb.plots.walk_jump(pairs)
        height = train.shape[1] + 1
        ax.set_yticks([height / 2, 1.5 * height], ["memory", "nearest"])
        ax.set_xlabel("by falling size of the basin")
        ax.set_title(rf"$\sigma$ = {sigma}")
        write_picture(options.out, f"memories_{sigma}")


if __name__ == "__main__":
    main()
