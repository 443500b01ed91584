"""Posteriors of images given data, by `LevelsKernel`: `python -m benchmarks.inverse digits`.

    python -m benchmarks.inverse digits              # 8 x 8 digits of scikit-learn
    python -m benchmarks.inverse mnist --images 10   # MNIST; mnist.npz is read from NEB_DATA
    python -m benchmarks.inverse peers --draws 30    # other methods on the 8 x 8 digits
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

`peers` compares `LevelsKernel` with three methods that are written here by their formulas and use
the same denoisers and as many of their evaluations. They know the noise, and their settings are
those of the least error on 50 other held-out digits:

    plug-and-play      proximal gradient with a denoiser in place of the proximal step
    PnP-ULA            Langevin steps with the denoiser's score (Laumont et al., SIAM J. Imaging
                       Sciences 15, 2022, algorithm 1)
    DPS                reverse diffusion with guidance (Chung et al., ICLR 2023, algorithm 1); an
                       evaluation and its derivative count as two gradients
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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

NOISE, COUNT, SIGMA, WARMUP = 0.1, 3.0, 0.07, 5


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


def linear(energy: neb.AbstractEnergy, matrix: np.ndarray, known: float | None = None) -> Callable:
    """The model of a linear problem, whose noise is unknown or known."""

    def model(seen):
        x = numpyro.sample("x", neb.SmoothedDensity(energy))
        noise = numpyro.sample("noise", dist.HalfNormal(0.2)) if known is None else known
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
        mcmc = MCMC(kernel, num_warmup=WARMUP, num_samples=num_draws, progress_bar=False)
        mcmc.run(key, seen)
        return mcmc.get_samples()

    keys = jax.random.split(jax.random.key(2), (len(seen), 2))
    both = jax.vmap(chain, (None, 0))
    draws = jax.jit(jax.vmap(both))(jnp.asarray(seen), keys)
    jumps = neb.SmoothedDensity(energy).denoise(draws["x"])
    draws["mean"] = jumps.mean((1, 2))
    return {name: np.asarray(values) for name, values in draws.items()}


def quality(x: np.ndarray, draws: dict[str, np.ndarray]) -> tuple[str, str]:
    """The coverage of 90% intervals, of all pixels and of those that vary, and R-hat."""
    flat = draws["x"].reshape(len(x), -1, x.shape[1])
    low, high = np.quantile(flat, [0.05, 0.95], axis=1)
    inside, varying = (low <= x) & (x <= high), flat.std(1) > 1.5 * SIGMA
    ratio = [split_gelman_rubin(chains) for chains in draws["x"]]
    coverage = f"{inside.mean():.1%} | {inside[varying].mean():.1%} of {varying.mean():.0%}"
    return coverage, f"{np.quantile(ratio, 0.95):.3f}"


def report(name: str, x: np.ndarray, run: Callable, other: np.ndarray | None) -> None:
    """Prints a row of the table."""
    start, cpu = time.perf_counter(), time.process_time()
    draws = run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    error = np.mean((draws["mean"] - x) ** 2)
    coverage, ratio = quality(x, draws)
    ess = [effective_sample_size(chains) for chains in draws["x"][:10]]
    noise = f"{draws['noise'].mean():.3f}" if "noise" in draws else ""
    number = draws["x"][0].size // x.shape[1]
    error_of_other = np.nan if other is None else np.mean((other - x) ** 2)
    print(
        f"| {name} | {error:.5f} | {error_of_other:.5f} | {error / error_of_other - 1:+.0%}"
        f" | {coverage} | {noise} | {ratio} | {np.median(ess):.0f} of {number}"
        f" | {cpu / len(x):.1f} | {seconds / len(x):.1f} |",
        flush=True,
    )


def family_of(arguments: argparse.Namespace, train: np.ndarray) -> neb.ConditionalEnergy:
    """The family of a table, from a file or trained."""
    if arguments.energy:
        return neb.load(arguments.energy)
    small = train.shape[1] == 64
    settings = (256, 5000, 128, 3.0, 1.0) if small else (512, 13_000, 192, 0.7, 1e-3)
    family = trained(train, *settings)
    if arguments.save:
        neb.save(arguments.save, family)
    return family


def images(arguments: argparse.Namespace) -> None:
    """The table of digits."""
    train, test = mnist() if arguments.table == "mnist" else learned_prior.digits()
    family = family_of(arguments, train)
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


class Problem(NamedTuple):
    """What the peers need to know of a problem.

    Attributes:
        fit: The log likelihood of x given what is seen.
        misfit: The norm of which DPS descends the gradient.
        curvature: The largest curvature of the log likelihood, or the usual one for counts.
        model: The model of `LevelsKernel`, with the noise known.
        simulate: What is seen of images.
    """

    fit: Callable
    misfit: Callable
    curvature: float
    model: Callable
    simulate: Callable


def linear_problem(energy: neb.AbstractEnergy, matrix: np.ndarray) -> Problem:
    """A linear problem, with noise of sd `NOISE`."""
    misfit = lambda x, seen: jnp.linalg.norm(seen - matrix @ x)  # noqa: E731
    fit = lambda x, seen: -((misfit(x, seen) / NOISE) ** 2) / 2  # noqa: E731
    curvature = float(np.linalg.norm(matrix, 2) / NOISE) ** 2
    simulate = lambda x: learned_prior.observed(matrix, x)  # noqa: E731
    return Problem(fit, misfit, curvature, linear(energy, matrix, NOISE), simulate)


def counts_problem(energy: neb.AbstractEnergy, background: float = 0.2) -> Problem:
    """Poisson counts; DPS weighs their errors by 1 / (2 count)^(1/2), of one count at least."""
    rate = lambda x: COUNT * jax.nn.softplus(20 * x) / 20 + background  # noqa: E731
    fit = lambda x, seen: jnp.sum(seen * jnp.log(rate(x)) - rate(x))  # noqa: E731
    misfit = lambda x, seen: jnp.linalg.norm(  # noqa: E731
        (seen - rate(x)) / jnp.sqrt(2 * jnp.maximum(seen, 1))
    )
    simulate = lambda x: (  # noqa: E731
        np.random.default_rng(0).poisson(COUNT * x + background).astype(x.dtype)
    )
    return Problem(fit, misfit, COUNT**2 / background, counts(energy, background), simulate)


def plug_and_play(
    family: Any, problem: Problem, seen: jax.Array, key: jax.Array, setting: tuple, size: Any
) -> jax.Array:
    """Proximal gradient, x <- D(x + step grad log p(seen given x)): where it ends."""
    del key
    sigma, step = setting
    energy, step = family.unchecked_at(jnp.asarray(sigma)), step / problem.curvature

    def one(_, x):
        return energy.denoise(x + step * jax.grad(problem.fit)(x, seen))

    x = jax.lax.fori_loop(0, size.steps, one, jnp.broadcast_to(family.loc, family.event_shape))
    return x[None]


def langevin(
    family: Any, problem: Problem, seen: jax.Array, key: jax.Array, setting: float, size: Any
) -> jax.Array:
    """PnP-ULA, eps = SIGMA^2 and pixels pulled back to [-1, 2]: draws after warm-up.

    x <- x + step (grad log p(seen given x) + (D(x) - x) / eps + (proj(x) - x) / pull)
           + (2 step)^(1/2) noise
    """
    energy, total = family.at(SIGMA), problem.curvature + 1 / SIGMA**2
    pull = 1 / (2 * total)
    step = setting / (total + 1 / pull)

    def one(_, carry):
        x, key = carry
        key, key_noise = jax.random.split(key)
        drift = jax.grad(problem.fit)(x, seen) + (energy.denoise(x) - x) / SIGMA**2
        drift += (jnp.clip(x, -1, 2) - x) / pull
        noise = jax.random.normal(key_noise, x.shape, x.dtype)
        return x + step * drift + jnp.sqrt(2 * step) * noise, key

    def draw(carry, _):
        carry = jax.lax.fori_loop(0, size.steps, one, carry)
        return carry, carry[0]

    start = jnp.broadcast_to(family.loc, family.event_shape), key
    return jax.lax.scan(draw, start, length=size.warmup + size.draws)[1][size.warmup :]


def guided_diffusion(
    family: Any, problem: Problem, seen: jax.Array, key: jax.Array, setting: float, size: Any
) -> jax.Array:
    """DPS: x <- reverse diffusion(x) - setting grad norm(seen - A D(x)), from noise to an image.

    The published steps are for z = y / (1 + r^2)^(1/2), r = sigma / scale, in units of the scale:
    here they are in those of y, so that the gradient has the factor (1 + r^2)^(1/2) of this level
    and of the next.
    """
    low, high = family.sigma_range
    sigmas = jnp.append(jnp.geomspace(high, low, size.steps // 2), 0.0)
    scale = jnp.mean(family.scale)

    def one(y, operands):
        sigma, after, key = operands

        def of(y):
            x = family.unchecked_at(sigma).denoise(y)
            return problem.misfit(x, seen), x

        slope, x = jax.grad(of, has_aux=True)(y)
        share = (after / sigma) ** 2
        noise = jax.random.normal(key, y.shape, y.dtype)
        mean = x + share * (y - x) + after * jnp.sqrt(1 - share) * noise
        factor = jnp.sqrt((1 + (sigma / scale) ** 2) * (1 + (after / scale) ** 2))
        return mean - setting * scale * factor * slope, None

    def draw(key):
        key, key_start = jax.random.split(key)
        spread = jnp.sqrt(high**2 + family.scale**2)
        y = family.loc + spread * jax.random.normal(key_start, family.event_shape)
        keys = jax.random.split(key, len(sigmas) - 1)
        return jax.lax.scan(one, y, (sigmas[:-1], sigmas[1:], keys))[0]

    number = size.warmup + size.draws
    return jax.lax.map(draw, jax.random.split(key, number), batch_size=number)


class Peer(NamedTuple):
    """A method: draws of one chain, the settings to choose from, and whether draws are of Y."""

    method: Callable
    settings: list
    jumps: bool


PEERS = {
    "plug-and-play": Peer(
        plug_and_play, [(s, t) for s in (0.05, 0.1, 0.2, 0.4) for t in (0.1, 0.3, 1.0)], False
    ),
    "PnP-ULA": Peer(langevin, [1 / 3, 1.0], True),
    "DPS": Peer(guided_diffusion, [0.03, 0.1, 0.3, 1.0], False),
}


def by_peer(peer: Peer, family: Any, problem: Problem, size: Any) -> Callable:
    """A function of images and a setting: draws of their posteriors, and the means."""

    def chain(seen, key, setting):
        return peer.method(family, problem, seen, key, setting, size)

    both = jax.jit(jax.vmap(jax.vmap(chain, (None, 0, None)), (0, 0, None)))

    def run(x, setting):
        keys = jax.random.split(jax.random.key(3), (len(x), 2))
        draws = both(jnp.asarray(problem.simulate(x)), keys, setting)
        means = neb.SmoothedDensity(family.at(SIGMA)).denoise(draws) if peer.jumps else draws
        return {"x": np.asarray(draws), "mean": np.asarray(means.mean((1, 2)))}

    return run


def chosen(run: Callable, settings: list, x: np.ndarray) -> Any:
    """The setting of the least mean squared error on the images x."""

    def error(setting):
        return np.nan_to_num(np.mean((run(x, setting)["mean"] - x) ** 2), nan=np.inf)

    return min(settings, key=error)


def peers(arguments: argparse.Namespace) -> None:
    """The table of other methods."""
    train, test = learned_prior.digits()
    family = family_of(arguments, train)
    energy, x, others = family.at(SIGMA), test[: arguments.images], test[-50:]
    matrices = operators(64)
    problems = {name: linear_problem(energy, matrix) for name, matrix in matrices.items()}
    problems["counts"] = counts_problem(energy)
    size = argparse.Namespace(steps=arguments.steps, draws=arguments.draws, warmup=WARMUP)
    few = argparse.Namespace(steps=arguments.steps, draws=max(2, arguments.draws // 5), warmup=1)
    print(
        "| problem | method | setting | error | change | coverage | varying | R-hat | gradients |"
    )
    print("|---|---|---|---|---|---|---|---|---|")

    def row(name, method, setting, draws, other, gradients):
        error = np.mean((draws["mean"] - x) ** 2)
        change = "" if other is None else f"{error / np.mean((other - x) ** 2) - 1:+.0%}"
        alone = draws["x"][0].size // x.shape[1] <= 2
        coverage, ratio = ("|", "") if alone else quality(x, draws)
        print(
            f"| {name} | {method} | {setting} | {error:.5f} | {change} | {coverage} | {ratio}"
            f" | {gradients:,} |",
            flush=True,
        )

    for name in arguments.problems or problems:
        problem, matrix = problems[name], matrices.get(name)
        seen = problem.simulate(x)
        other = None if matrix is None else gaussian(train, matrix, seen)
        counted = {"num_steps": size.steps, "num_draws": size.draws}
        models = {"LevelsKernel": problem.model}
        if matrix is not None:
            models["LevelsKernel, noise unknown"] = linear(energy, matrix)
        total = 2 * (size.warmup + size.draws) * size.steps
        for method, model in models.items():
            row(name, method, "", posterior(model, energy, seen, **counted), other, total)
        for method, peer in PEERS.items():
            setting = chosen(by_peer(peer, family, problem, few), peer.settings, others)
            draws = by_peer(peer, family, problem, size)(x, setting)
            gradients = size.steps if peer.method is plug_and_play else total
            shown = ", ".join(f"{number:.2g}" for number in np.atleast_1d(setting))
            row(name, method, shown, draws, other, gradients)


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
    parser.add_argument("table", choices=["digits", "mnist", "peers", "mixture"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--problems", nargs="*", help="which problems; for `mixture`, the file")
    parser.add_argument("--energy", help="a file of the trained family")
    parser.add_argument("--save", help="where to save it")
    arguments = parser.parse_args()
    if arguments.table == "mixture":
        mixture(arguments)
    elif arguments.table == "peers":
        peers(arguments)
    elif arguments.table == "mnist" and data_folder() is None:
        print("no data sets: NEB_DATA does not name a folder, and ../shared/data does not exist")
    else:
        images(arguments)


if __name__ == "__main__":
    main()
