"""Posteriors of images given data, by `LevelsKernel`: `python -m benchmarks.inverse digits`.

    python -m benchmarks.inverse digits              # 8 x 8 digits of scikit-learn
    python -m benchmarks.inverse mnist --images 10   # MNIST; mnist.npz is read from NEB_DATA
    python -m benchmarks.inverse mixture --problems FILE.npz

Held-out digits are reconstructed from half of their pixels, from a blurred image and from random
projections, four pixels to one, under noise of sd 0.1 that the model does not know, and from
Poisson counts with a mean of 3. The prior is a `ConditionalEnergy` trained on other digits; a
Gaussian prior of their mean and covariance, with the noise known, is solved exactly. Each image has
two chains, all of them in parallel under `jax.vmap`. Columns:

    error       mean squared error of the posterior mean, and the Gaussian's
    coverage    share of the pixels within their 90% intervals
    varying     the same, of pixels whose posterior sd is above 1.5 sigma: others are known
    noise       posterior mean of the noise's sd
    R-hat       its 95% quantile over pixels and images, and the median effective sample size
    seconds     for each image, of CPU and of the clock

`mixture` takes linear problems with a prior of 25 Gaussian components and prints the largest sliced
Wasserstein distance, over 100 directions, between 1,000 draws and 10,000 exact ones, of five chains
and of five times 1,000 exact draws.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC

import numpyro_neb as neb
from benchmarks import learned_prior
from benchmarks.normal_means import data_folder

NOISE, COUNT, SIGMA = 0.1, 3.0, 0.07


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """The first 50,000 digits to train on, and the 10,000 of the test set, in [0, 1]."""
    folder: Any = data_folder()
    with np.load(folder / "mnist.npz") as arrays:
        train, test = (arrays[k].reshape(-1, 784) for k in ("x_train", "x_test"))
    return train[:50_000].astype(np.float32) / 255, test.astype(np.float32) / 255


def trained(
    train: np.ndarray, width: int, num_steps: int, batch: int, largest: float, decay: float
) -> neb.ConditionalEnergy:
    """A family of a perceptron."""
    shape, loc = train.shape[1:], train.mean(0)
    network = neb.networks.MLP(shape, width_size=width, depth=3, conditional=True,
                               key=jax.random.key(0))  # fmt: skip
    scale = float((train - loc).std())
    family = neb.ConditionalEnergy(network, shape, (0.05, largest), loc, scale)
    schedule = optax.cosine_decay_schedule(1e-3, num_steps)
    settings: Any = {"num_steps": num_steps, "batch_size": batch, "progress_bar": False}
    settings["optimizer"] = optax.adamw(schedule, weight_decay=decay)
    return neb.fit(family, train, key=jax.random.key(1), **settings).energy


def operators(d: int) -> dict[str, np.ndarray]:
    """Matrices from d pixels to what is seen."""
    if d == 64:
        return learned_prior.operators()
    side, rng = int(np.sqrt(d)), np.random.default_rng(0)
    kept = np.sort(rng.permutation(d)[: d // 2])
    rows = sum(w * np.eye(side, k=k) for k, w in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True))
    problems = {"in-painting": np.eye(d)[kept], "blur": np.kron(rows, rows) / 256}
    problems["projections"] = rng.normal(size=(d // 4, d)) / np.sqrt(d // 4)
    return {name: matrix.astype(np.float32) for name, matrix in problems.items()}


def gaussian(train: np.ndarray, matrix: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Posterior means under a Gaussian prior, with the noise known."""
    mean, matrix = train.mean(0, dtype=float), matrix.astype(float)
    cross = np.cov(train.T) @ matrix.T
    gain = np.linalg.solve(matrix @ cross + NOISE**2 * np.eye(len(matrix)), cross.T)
    return mean + (seen - matrix @ mean) @ gain


def linear(energy: neb.AbstractEnergy, matrix: np.ndarray) -> Callable:
    """The model of a linear problem with unknown noise."""

    def model(seen):
        x = numpyro.sample("x", neb.SmoothedDensity(energy))
        noise = numpyro.sample("noise", dist.HalfNormal(0.2))
        numpyro.sample("seen", dist.Normal(matrix @ x, noise).to_event(1), obs=seen)

    return model


def counts(energy: neb.AbstractEnergy, background: float = 0.2) -> Callable:
    """The model of Poisson counts of a white pixel's mean `COUNT` over a background."""

    def model(seen):
        x = numpyro.sample("x", neb.SmoothedDensity(energy))
        rate = COUNT * jax.nn.softplus(20 * x) / 20 + background
        numpyro.sample("seen", dist.Poisson(rate).to_event(1), obs=seen)

    return model


def posterior(
    model: Callable, energy: neb.AbstractEnergy, seen: np.ndarray, *, num_steps: int, num_draws: int
) -> Any:
    """Draws for each row of `seen`, of shape (rows, 2 chains, draws, ...)."""

    def chain(seen, key):
        kernel = neb.LevelsKernel(model, num_steps=num_steps)
        mcmc = MCMC(kernel, num_warmup=5, num_samples=num_draws, progress_bar=False)
        mcmc.run(key, seen)
        return mcmc.get_samples()

    keys = jax.random.split(jax.random.key(2), (len(seen), 2))
    both = jax.vmap(chain, (None, 0))
    draws = jax.jit(jax.vmap(both))(jnp.asarray(seen), keys)
    jumps = neb.SmoothedDensity(energy).denoise(draws["x"])
    draws["mean"] = jumps.mean((1, 2))
    return {name: np.asarray(values) for name, values in draws.items()}


def report(name: str, x: np.ndarray, run: Callable, other: np.ndarray | None) -> None:
    """Prints a row of the table."""
    start, cpu = time.perf_counter(), time.process_time()
    draws = run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    flat = draws["x"].reshape(len(x), -1, x.shape[1])
    error = np.mean((draws["mean"] - x) ** 2)
    low, high = np.quantile(flat, [0.05, 0.95], axis=1)
    inside, varying = (low <= x) & (x <= high), flat.std(1) > 1.5 * SIGMA
    ratio = [split_gelman_rubin(chains) for chains in draws["x"]]
    ess = [effective_sample_size(chains) for chains in draws["x"][:10]]
    noise = f"{draws['noise'].mean():.3f}" if "noise" in draws else ""
    error_of_other = np.nan if other is None else np.mean((other - x) ** 2)
    print(
        f"| {name} | {error:.5f} | {error_of_other:.5f} | {error / error_of_other - 1:+.0%}"
        f" | {inside.mean():.1%} | {inside[varying].mean():.1%} of {varying.mean():.0%} | {noise}"
        f" | {np.quantile(ratio, 0.95):.3f} | {np.median(ess):.0f} of {flat.shape[1]}"
        f" | {cpu / len(x):.1f} | {seconds / len(x):.1f} |",
        flush=True,
    )


def images(arguments: argparse.Namespace) -> None:
    """The table of digits."""
    small = arguments.table == "digits"
    train, test = learned_prior.digits() if small else mnist()
    if arguments.energy:
        family: Any = neb.load(arguments.energy)
    else:
        settings = (256, 5000, 128, 3.0, 1.0) if small else (512, 13_000, 192, 0.7, 1e-3)
        family = trained(train, *settings)
        if arguments.save:
            neb.save(arguments.save, family)
    x, energy = test[: arguments.images], family.at(SIGMA)
    counted = {"num_steps": arguments.steps, "num_draws": arguments.draws}
    print(
        "| problem | error | Gaussian | | coverage | varying | noise | R-hat | ESS | CPU | clock |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, matrix in operators(x.shape[1]).items():
        if name in (arguments.problems or name):
            seen = learned_prior.observed(matrix, x)
            model = linear(energy, matrix)
            run = lambda m=model, s=seen: posterior(m, energy, s, **counted)  # noqa: E731
            report(name, x, run, gaussian(train, matrix, seen))
    if "counts" in (arguments.problems or "counts"):
        seen = np.random.default_rng(0).poisson(COUNT * x + 0.2)
        report("counts", x, lambda: posterior(counts(energy), energy, seen, **counted), None)


def mixture(arguments: argparse.Namespace) -> None:
    """The table of 25 components."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(100, 8))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def distance(draws, exact):
        ends = np.sort(draws @ directions.T, 0), np.sort(exact @ directions.T, 0)
        each = np.repeat(ends[0], len(exact) // len(draws), 0)
        return np.sqrt(np.mean((each - ends[1]) ** 2, 0)).max()

    print("| seen | distance | of exact draws | accepted |")
    print("|---|---|---|---|")
    with np.load(arguments.problems[0]) as file:
        arrays = dict(file)
    identity = np.broadcast_to(np.eye(8), (25, 8, 8))
    sigma = 0.01
    energy = neb.MixtureEnergy(
        arrays["means_8"], sigma, np.log(arrays["weights"]), (1 - sigma**2) * identity
    )
    for rows in (1, 2, 4):
        names = "A", "y", "noise_var", "post_weights", "post_means", "post_cov"
        matrix, seen, variance, weights, means, covariance = (
            arrays[f"{n}_{rows}_8"] for n in names
        )

        def exact(n, parts=(weights, means, covariance)):
            index = rng.choice(25, n, p=parts[0])
            return parts[1][index] + rng.multivariate_normal(np.zeros(8), parts[2], n)

        def model(seen, matrix=matrix, variance=float(variance)):
            x = numpyro.sample("x", neb.SmoothedDensity(energy))
            loc = jnp.asarray(matrix, float) @ x
            numpyro.sample("seen", dist.Normal(loc, variance**0.5).to_event(1), obs=seen)

        settings: Any = {"num_warmup": 10, "num_samples": 1000, "num_chains": 5}
        kernel = neb.LevelsKernel(model)
        mcmc = MCMC(kernel, chain_method="vectorized", progress_bar=False, **settings)
        mcmc.run(jax.random.key(0), jnp.asarray(seen, float))
        fields: Any = mcmc.get_extra_fields()
        truth = exact(10_000)
        chains = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
        found = [distance(chain, truth) for chain in chains]
        floor = [distance(exact(1000), truth) for _ in range(5)]
        rate = float(fields["acceptance_rate"].mean())
        ranges = [f"{min(each):.2f} to {max(each):.2f}" for each in (found, floor)]
        print(f"| {rows} of 8 | {ranges[0]} | {ranges[1]} | {rate:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["digits", "mnist", "mixture"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--problems", nargs="*", help="which problems; for `mixture`, the file")
    parser.add_argument("--energy", help="a file of the trained family")
    parser.add_argument("--save", help="where to save it")
    arguments = parser.parse_args()
    if arguments.table == "mixture":
        mixture(arguments)
    elif arguments.table == "mnist" and data_folder() is None:
        print("no data sets: NEB_DATA does not name a folder, and ../shared/data does not exist")
    else:
        images(arguments)


if __name__ == "__main__":
    main()
