"""Walk-jump chains on images, figure 5 of the paper: `python -m benchmarks.chains`.

The paper's walk, overdamped with a step of sigma / 100, beside the default one, from the same noisy
test images and with the same number of gradients. Printed for each:

    range      of the pixels of all jumps
    moved      how far a chain's last jump lies from its first, the root mean square per pixel, as
               a share of that between two test images
    ESS        the effective sample size of phi, over all chains

With --out, a picture of both sorts of chains.
"""

from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC

import numpyro_neb as neb
from benchmarks.images import add_noise, load_images, parser, train_energy, write_picture

INTEGRATORS = {"paper's": neb.integrators.ULA.paper(), "default": neb.integrators.BAOAB()}


def walk(energy, integrator, start, num_samples: int, num_steps: int):
    """The jumps, of shape (chains, num_samples, height, width), and the walk's log densities."""
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=num_steps)
    settings = {"num_chains": len(start), "chain_method": "vectorized"}
    mcmc = MCMC(kernel, num_warmup=0, num_samples=num_samples, **settings)
    mcmc.run(jax.random.key(1), init_params=start)
    lp = mcmc.get_extra_fields(group_by_chain=True)["lp"]
    return np.asarray(mcmc.get_samples(group_by_chain=True)["x"]), np.asarray(lp)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--energy", type=Path, help="one that benchmarks.denoising kept")
    arguments.add_argument("--sigma", type=float, default=0.3, help="of the energy to train")
    arguments.add_argument("--steps", type=int, default=1000, help="training steps")
    arguments.add_argument("--chains", type=int, default=5)
    arguments.add_argument("--draws", type=int, default=200)
    arguments.add_argument("--every", type=int, default=10, help="gradients between draws")
    options = arguments.parse_args()
    train, test = load_images(options.data)
    if options.energy:
        energy = neb.load(options.energy)
    else:
        energy = train_energy(train, options.sigma, options.steps)
    clean = test[: options.chains]
    apart = np.sqrt(np.mean((test[: len(test) // 2] - test[-(len(test) // 2) :]) ** 2))
    print("| walk | range | moved | ESS of phi |")
    print("|---|---|---|---|")
    _, axes = plt.subplots(1, 2, figsize=(14, 0.4 * len(clean) + 0.6))
    for ax, (name, integrator) in zip(axes, INTEGRATORS.items(), strict=True):
        start = add_noise(clean, float(energy.sigma))
        jumps, lp = walk(energy, integrator, start, options.draws, options.every)
        moved = np.sqrt(np.mean((jumps[:, -1] - jumps[:, 0]) ** 2)) / apart
        ess = float(effective_sample_size(lp))
        print(f"| {name} | [{jumps.min():.2f}, {jumps.max():.2f}] | {moved:.2f} | {ess:.0f} |")
        neb.plots.walk_jump(jumps[:, :: max(1, options.draws // 20)], ax=ax)
        ax.set_title(f"{name} walk")
    write_picture(options.out, "chains")


if __name__ == "__main__":
    main()
