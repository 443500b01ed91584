"""Walk-jump chains on images, figure 5 of the paper: `python -m benchmarks.chains`.

The energy is trained by denoising and then by maximum likelihood. It prints two tables.

The paper's walk, overdamped with a step of sigma / 100, compared with the default one, from the
same noisy test images and with the same number of gradients:

    range      of the pixels of all jumps
    moved      the distance of a chain's last jump from its first, the root mean square per pixel,
               as a share of that between two test images
    ESS        the effective sample size of phi, over all chains

The default walk of --many chains, from noisy test images and from N(loc, scale^2 + sigma^2), as the
number of steps grows:

    phi        the mean over the chains, minus that of noisy test images, in nats
    blank      the share of jumps with less ink than all but one in 1,000 training images
    classes    total variation between the classes of the jumps, from all looks since the last row,
               and of jumps from noisy test images, by a support vector classifier whose test
               accuracy is printed, as is its value by chance for as many independent images
    commonest  the share of the commonest class

With --out it also writes pictures of both kinds of chains, and of chains from either start.
"""

from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

import numpyro_neb as neb
from benchmarks.images import (
    add_noise,
    load_images,
    load_labels,
    parser,
    train_energy,
    write_picture,
)

INTEGRATORS = {"paper's": neb.integrators.ULA.paper(), "default": neb.integrators.BAOAB()}


def walk(energy, integrator, start, num_samples: int, num_steps: int):
    """The jumps, of shape (chains, num_samples, height, width), and the walk's log densities."""
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=num_steps)
    settings = {"num_chains": len(start), "chain_method": "vectorized"}
    mcmc = MCMC(kernel, num_warmup=0, num_samples=num_samples, **settings)
    mcmc.run(jax.random.key(1), init_params=start)
    lp = mcmc.get_extra_fields(group_by_chain=True)["lp"]
    return np.asarray(mcmc.get_samples(group_by_chain=True)["x"]), np.asarray(lp)


def paper_and_default(energy, test, options) -> None:
    """The first table, and its picture."""
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


def many_chains(energy, train, test, labels, options) -> None:
    """The second table, and a picture of chains from either start."""
    flat = lambda x: np.reshape(x, (len(x), -1))  # noqa: E731
    classifier = make_pipeline(PCA(40, random_state=0), SVC(C=10))
    classifier.fit(flat(train[:30_000]), labels[0][:30_000])
    accuracy = classifier.score(flat(test[:2000]), labels[1][:2000])
    print(f"\nthe classifier is right on {accuracy:.1%} of test images\n")
    sigma, count = float(energy.sigma), options.many
    noisy = add_noise(test[:2000], sigma)
    jumps = np.asarray(neb.posterior_mean(energy, noisy))
    shares = lambda x: np.bincount(classifier.predict(flat(x)), minlength=10) / len(x)  # noqa: E731
    phi_data = np.mean(jax.jit(jax.vmap(energy))(noisy[:count]))
    right, least = shares(jumps), np.quantile(flat(train).mean(1), 0.001)
    draws = np.random.default_rng(0).multinomial(count, right, 1000) / count
    chance = np.mean(np.abs(draws - right).sum(1) / 2)
    print(f"{count} chains; total variation by chance {chance:.3f}\n")
    kernel = neb.WalkJumpKernel(energy, num_steps=options.steps_between)
    sample = jax.jit(lambda state: kernel.sample(state))
    starts: dict[str, Any] = {"noisy test images": noisy[:count], "N(loc, scale^2 + sigma^2)": None}
    print("| start | steps | phi | blank | classes | commonest |")
    print("|---|---|---|---|---|---|")
    for number, (name, start) in enumerate(starts.items()):
        state = kernel.init(jax.random.split(jax.random.key(2 + number), count), 0, start)
        rows, since = [], []
        for i in range(options.many_steps // options.steps_between):
            state = sample(state)
            x = np.asarray(state.draw["x"])
            rows.append(x[:10])
            every = max(1, options.many_steps // options.steps_between // 4)
            since = [*since, x] if i % every else [x]
            if (i + 1) % every == 0:
                found = shares(np.concatenate(since))
                phi = -np.mean(state.lp) - phi_data
                print(
                    f"| {name} | {(i + 1) * options.steps_between:,} | {phi:+.1f}"
                    f" | {np.mean(flat(x).mean(1) < least):.1%}"
                    f" | {np.abs(found - right).sum() / 2:.3f} | {found.max():.2f} |",
                    flush=True,
                )
        neb.plots.walk_jump(np.stack(rows, axis=1)[:, :20])
        write_picture(options.out, f"chains_{number}")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--energy", type=Path, help="one saved by benchmarks.denoising")
    arguments.add_argument("--sigma", type=float, default=0.3, help="of the energy to train")
    arguments.add_argument("--steps", type=int, default=1000, help="of denoising")
    arguments.add_argument("--chains", type=int, default=5)
    arguments.add_argument("--draws", type=int, default=200)
    arguments.add_argument("--every", type=int, default=10, help="gradients between draws")
    arguments.add_argument("--many", type=int, default=200, help="chains of the second table")
    arguments.add_argument("--many-steps", type=int, default=2000, help="of each chain")
    arguments.add_argument("--steps-between", type=int, default=100, help="two looks")
    options = arguments.parse_args()
    train, test = load_images(options.data)
    if options.energy:
        energy = neb.load(options.energy)
    else:
        energy = train_energy(train, options.sigma, options.steps, num_updates=options.updates)
    paper_and_default(energy, test, options)
    many_chains(energy, train, test, load_labels(options.data), options)


if __name__ == "__main__":
    main()
