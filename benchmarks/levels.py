"""Several noise levels: `python -m benchmarks.levels [TABLE ...]`.

The tables are `weights` (modes ten sigma apart), `mog` (mixtures of 8 and 40 Gaussians: a mean,
the kernel two-sample distance and the entropic Wasserstein distance, by exact draws as well),
`blobs` (two blobs, learned on a ladder) and `cost` (a step of L levels over L steps of one). The
means of the 40 are read from the folder named by NEB_DATA, or else from ../shared/data, in its
folder `targets`. Replica exchange is with its default walk, GHMC.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpyro.infer import MCMC

import numpyro_neb as neb
from benchmarks.normal_means import columns, data_folder
from benchmarks.timing import Settings, compared, pairs, walk_run

Table = Callable[[Settings], None]


def draws(kernel: neb.WalkJumpKernel, chains: int, number: int, **settings: Any) -> MCMC:
    """A run of some chains, with a tenth more of warm-up unless told."""
    warmup = settings.pop("num_warmup", number // 10 + 20)
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=number,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(settings.pop("seed", 0)), **settings)
    return mcmc


def rates(mcmc: MCMC) -> str:
    """The smallest and the largest rate of exchange."""
    found = np.mean(np.asarray(mcmc.get_extra_fields()["exchange_rate"]), axis=0)
    return f"exchange rates {found.min():.2f} to {found.max():.2f}"


def share(mcmc: MCMC, middle: float) -> tuple[float, float]:
    """The share of the draws beyond a first coordinate, and its error from independent chains."""
    beyond = (np.asarray(mcmc.get_samples(group_by_chain=True)["y"])[..., 0] > middle).mean(1)
    return float(beyond.mean()), float(beyond.std(ddof=1) / np.sqrt(len(beyond)))


def weights(settings: Settings) -> None:
    """An exact mixture of weights .9 and .1, 10 sigma apart, from the larger mode."""
    number = 100 if settings.quick else 400
    locs = np.array([[0.0, 0.0], [10.0, 0.0]])
    energy = neb.MixtureEnergy(locs, 1.0, log_weights=np.log([0.9, 0.1]))
    given = {"sigmas": (1.0, 1.5, 2.2, 3.3, 5.0)}
    chosen = {"num_levels": 5, "max_sigma": 5.0}
    levels: dict[str, Any]
    for levels in (given, chosen):
        kernel = neb.WalkJumpKernel(energy, num_steps=32, **levels)
        start = jnp.zeros((100, 2))
        mcmc = draws(kernel, 100, number, init_params=start)
        value, error = share(mcmc, 5.0)
        print(f"| {levels} | {value:.4f} +- {error:.4f} | .1 | {rates(mcmc)} |", flush=True)


def sinkhorn(x: np.ndarray, y: np.ndarray, epsilon: float = 0.05, num_steps: int = 300) -> float:
    """The entropic Wasserstein distance, the root of the transport cost, of two equal samples.

    Log-domain Sinkhorn iterations; epsilon, in the unit of squared distances, falls to its value.
    """
    cost = jnp.sum((jnp.asarray(x)[:, None] - jnp.asarray(y)[None]) ** 2, axis=-1)
    steps = jnp.geomspace(jnp.max(cost), epsilon, num_steps // 2)
    steps = jnp.concatenate([steps, jnp.full(num_steps - len(steps), epsilon)])

    @jax.jit
    def potentials(cost):
        def step(both, epsilon):
            f, g = both
            f = -epsilon * (logsumexp((g[None] - cost) / epsilon, axis=1) - jnp.log(len(cost)))
            g = -epsilon * (logsumexp((f[:, None] - cost) / epsilon, axis=0) - jnp.log(len(cost)))
            return (f, g), None

        zero = jnp.zeros(len(cost))
        (f, g), _ = jax.lax.scan(step, (zero, zero), steps)
        plan = jnp.exp((f[:, None] + g[None] - cost) / epsilon) / len(cost) ** 2
        return jnp.sum(plan * cost) / jnp.sum(plan)

    return float(jnp.sqrt(potentials(cost)))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The kernel two-sample distance of DiGS: five widths about the mean squared distance."""
    pooled = np.concatenate([x, y]).astype(np.float32)
    signs = np.concatenate([np.full(len(x), 1 / len(x)), np.full(len(y), -1 / len(y))])
    squares = np.sum(pooled.astype(float) ** 2, axis=1)
    mean = 2 * (squares.mean() - np.sum(pooled.astype(float).mean(0) ** 2))
    mean *= len(pooled) / (len(pooled) - 1)
    total = 0.0
    for rows in np.array_split(np.arange(len(pooled)), max(1, len(pooled) // 500)):
        away = squares[rows, None] + squares[None] - 2 * pooled[rows] @ pooled.T
        unit = np.exp(-np.maximum(away, 0) / (mean / 4 * 16))
        # exp(-L / (h 2^i)), i = 0 to 4: powers of the widest.
        kernel = unit + unit**2 + unit**4 + unit**8 + unit**16
        total += float(signs[rows] @ (kernel @ signs))
    return total


def quadratic(x: np.ndarray) -> np.ndarray:
    """The function whose mean under MoG-40 is 1777.886."""
    u = x + np.array([3.08199, -0.58686])
    a = np.array([[0.61485, 1.26816], [0.98019, 1.79289]])
    return np.einsum("ni,ij,nj->n", u, a, u) + u @ np.array([0.45563, 0.63231])


def mog(settings: Settings) -> None:
    """MoG-40 at 1,000 gradients a draw; entropic distances of MoG-40 and of 8 on a circle."""
    if (folder := data_folder()) is None:
        print("mog skipped: NEB_DATA must name a folder with targets/mog40_means.csv")
        return
    means = np.stack(columns(folder / "targets", "mog40_means.csv", "x", "y"), axis=1)
    truth = 1777.886
    energy = neb.MixtureEnergy(means, 1.31326)
    levels = tuple(np.geomspace(1.31326, 24.0, 4))
    # 4 levels of 224 steps and of 14 rounds of exchanges: 952 gradients.
    kernel = neb.WalkJumpKernel(energy, sigmas=levels, num_steps=224)
    number = 100 if settings.quick else 1000
    start = jnp.zeros((10, 2))
    mcmc = draws(kernel, 10, number, init_params=start, num_warmup=20)
    y = np.asarray(mcmc.get_samples(group_by_chain=True)["y"], float)
    values = quadratic(y.reshape(-1, 2)).reshape(y.shape[:2])
    error = values.mean(1).std(ddof=1) / np.sqrt(10) / truth
    relative = abs(values.mean() / truth - 1)
    exact = [np.asarray(energy.sample(jax.random.key(i), (10 * number,)), float) for i in range(3)]
    floor = [abs(quadratic(x).mean() / truth - 1) for x in exact]
    spread = quadratic(exact[0]).std() / np.sqrt(len(exact[0])) / truth
    print(f"| MoG-40, {10 * number} draws: relative error | {relative:.4f}, its standard error "
          f"{error:.4f} | exact draws {np.mean(floor):.4f}, standard error {spread:.4f} |"
          f" {rates(mcmc)} |", flush=True)  # fmt: skip
    ours = squared_mmd(y.reshape(-1, 2), exact[1])
    print(f"| MoG-40: MMD | {ours:.5f} | exact draws {squared_mmd(exact[0], exact[1]):.5f} |")
    angles = np.arange(1, 9) * np.pi / 4
    circle = 10 * (1 + np.stack([np.cos(angles), np.sin(angles)], axis=1))
    cube = np.random.default_rng(0).uniform(-20, 20, (40, 2))
    for name, energy in {
        "8-MoG": neb.MixtureEnergy(circle, 0.7**0.5),
        "40-MoG": neb.MixtureEnergy(cube, 1.0),
        "MoG-40": neb.MixtureEnergy(means, 1.31326),
    }.items():
        levels = tuple(np.geomspace(float(energy.sigma), float(np.linalg.norm(energy.scale)), 7))
        chains, found = 100, []
        mcmc = draws(neb.WalkJumpKernel(energy, sigmas=levels, num_steps=128), chains, 60)
        y = np.asarray(mcmc.get_samples(group_by_chain=True)["y"], float)
        for i in range(2 if settings.quick else 4):
            ours = y[:, 15 * i : 15 * (i + 1)].reshape(-1, 2)
            one, other = (np.asarray(energy.sample(jax.random.key(10 * i + j), (len(ours),)), float)
                          for j in range(2))  # fmt: skip
            found.append((sinkhorn(ours, other), sinkhorn(one, other)))
        ours, perfect = np.mean(found, axis=0)
        error = np.std([a - b for a, b in found], ddof=1) / np.sqrt(len(found))
        print(f"| {name}: entropic W2 of {chains * 15} draws | {ours:.3f} | exact draws"
              f" {perfect:.3f} | ratio {ours / perfect:.3f} +- {error / perfect:.3f},"
              f" {rates(mcmc)} |", flush=True)  # fmt: skip


def blobs(settings: Settings) -> None:
    """Blobs of sd .5, five apart, weights .8 and .2, learned for sigma from .7 to 5."""
    rng, n = np.random.default_rng(0), 5000
    right = rng.random(n) < 0.2
    x = (np.stack([5.0 * right, 0 * right], 1) + 0.5 * rng.normal(size=(n, 2))).astype(np.float32)
    network = neb.networks.MLP(
        (2,), width_size=64, depth=3, conditional=True, key=jax.random.key(0)
    )
    family = neb.ConditionalEnergy(network, (2,), (0.7, 5.0), x.mean(0), x.std(0))
    short = settings.quick
    common: dict = {"batch_size": 256, "progress_bar": False}
    begin = time.perf_counter()
    denoised = neb.fit(
        family, x, key=jax.random.key(1), num_steps=200 if short else 8000, **common
    ).energy
    seconds = time.perf_counter() - begin
    likelihood = neb.MaximumLikelihood(128, 10, num_levels=8)
    begin = time.perf_counter()
    result = neb.fit(denoised, x, key=jax.random.key(2), num_steps=20 if short else 4000,
                     objective=likelihood, **common)  # fmt: skip
    times = seconds, time.perf_counter() - begin
    y = x + 0.7 * rng.normal(size=x.shape)
    truth = np.mean(y[:, 0] > 2.5)
    for name, energy, seconds in zip(
        ("denoising", "maximum likelihood after it"), (denoised, result.energy), times, strict=True
    ):
        kernel = neb.WalkJumpKernel(energy, sigmas=tuple(np.geomspace(0.7, 4.99, 8)), num_steps=32)
        mcmc = draws(kernel, 100, 100 if short else 200)
        value, error = share(mcmc, 2.5)
        print(f"| blobs, {name}, {seconds:.0f} s | {value:.4f} +- {error:.4f} | of the data"
              f" {truth:.4f} | {rates(mcmc)} |", flush=True)  # fmt: skip


def cost(settings: Settings) -> None:
    """A step of eight levels over eight steps of one, in turns: a perceptron in 64 dimensions."""
    network = neb.networks.MLP(
        (64,), width_size=256, depth=3, conditional=True, key=jax.random.key(0)
    )
    family = neb.ConditionalEnergy(network, (64,), (0.1, 1.0))
    levels = tuple(np.geomspace(0.1, 0.99, 8))
    walk = neb.integrators.GHMC()
    for num_steps in (1, 16):
        kernels = (
            neb.WalkJumpKernel(family, sigmas=levels, num_steps=num_steps),
            neb.WalkJumpKernel(family.at(0.1), num_steps=num_steps, integrator=walk),
        )
        # Eight levels of 4 chains, and 32 chains of one level: as many gradients.
        ours, peer = walk_run(kernels[0], 4), walk_run(kernels[1], 32)
        name = f"{num_steps} steps of 8 levels, over 8 times as many chains of one"
        compared(name, pairs(ours, peer, settings), "<= 1.1").show(settings)


TABLES: dict[str, Table] = {"weights": weights, "mog": mog, "blobs": blobs, "cost": cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, "all"], default="all")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    settings = Settings(seconds=0.2 if arguments.quick else 2.0, quick=arguments.quick)
    for name in TABLES if "all" in arguments.tables else arguments.tables:
        print(f"\n## {name}", flush=True)
        TABLES[name](settings)


if __name__ == "__main__":
    main()
