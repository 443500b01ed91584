"""Inverse problems on digits with a learned prior: `python -m benchmarks.learned_prior`.

Held-out 8 x 8 digits are reconstructed from half of their pixels, from a blurred image, and from 16
random projections, under noise of sd 0.1 that the model does not know. `learned_prior` is compared
with a Gaussian prior of the training digits' mean and covariance in the same model. Each digit
has its own NUTS chain; all run in parallel under `jax.vmap`.
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
from numpyro.infer import MCMC, NUTS, init_to_mean
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import numpyro_neb as neb
from benchmarks.images import weighed

NOISE = 0.1
SIGMA = 0.2


class Reconstruction(NamedTuple):
    """The quality of the posteriors of many digits, judged by the true digits."""

    mean_squared_error: float
    coverage: float
    noise: float
    ess: float
    projected: float
    seconds: float
    mean: np.ndarray

    def __str__(self) -> str:
        return (
            f"mean squared error {self.mean_squared_error:.5f}, 90% intervals cover"
            f" {self.coverage:.1%}, noise sd {self.noise:.3f}, median ESS {self.ess:.0f},"
            f" directions projected {self.projected:.1%}, {self.seconds:.0f} s"
        )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,500 digits to train on and 297 held out, of 64 pixels in [0, 1]."""
    bunch: Any = load_digits()
    images = (bunch.images / 16).astype(np.float32).reshape(-1, 64)
    train, held_out = train_test_split(images, test_size=297, random_state=0)
    return np.asarray(train), np.asarray(held_out)


def trained(
    train: np.ndarray, *, num_steps: int = 4000, width: int = 64, num_updates: int = 1000
) -> neb.AbstractEnergy:
    """A small energy: the gradient of a full covariance costs 64 times one of the energy."""
    network = neb.networks.MLP((64,), width_size=width, depth=2, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, SIGMA, (64,), loc=train.mean(0), scale=train.std())
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, num_steps), weight_decay=0.3)
    settings: Any = {"num_steps": num_steps, "batch_size": 128, "optimizer": optimizer}
    energy = neb.fit(energy, train, key=jax.random.key(1), progress_bar=False, **settings).energy
    return weighed(energy, train, num_updates)


def operators() -> dict[str, np.ndarray]:
    """The three problems: matrices from 64 pixels to what is seen."""
    rng = np.random.default_rng(0)
    kept = np.sort(rng.permutation(64)[:32])
    kernel = np.convolve([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
    rows = sum(w * np.eye(8, k=k) for k, w in zip(range(-2, 3), kernel, strict=True))
    projections = rng.normal(size=(16, 64)) / 4
    problems = {"in-painting": np.eye(64)[kept], "blur": np.kron(rows, rows)}
    problems |= {"compressed sensing": projections}
    return {name: matrix.astype(np.float32) for name, matrix in problems.items()}


def observed(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What is seen of each digit, with noise."""
    noise = np.random.default_rng(0).normal(size=(len(x), len(matrix))).astype(np.float32)
    return x @ matrix.T + NOISE * noise


def learned(energy: neb.AbstractEnergy, covariance: Any = "full") -> Callable:
    """The prior of a digit as a site x."""
    return lambda: neb.learned_prior("x", energy, covariance)


def gaussian(train: np.ndarray) -> Callable:
    """The Gaussian prior of the same mean and covariance, non-centred."""
    mean = train.mean(0)
    root = np.linalg.cholesky(np.cov(train.T) + 1e-6 * np.eye(64)).astype(np.float32)

    def prior():
        eps = numpyro.sample("eps", dist.Normal(0.0, 1.0).expand([64]).to_event(1))
        return numpyro.deterministic("x", mean + root @ eps)

    return prior


def reconstruct(
    prior: Callable,
    matrix: np.ndarray,
    x: np.ndarray,
    *,
    num_warmup: int = 80,
    num_samples: int = 80,
    max_tree_depth: int = 4,
) -> Reconstruction:
    """The posterior of each of the digits `x`, given what is seen of it."""

    def model(seen):
        digit = prior()
        noise = numpyro.sample("noise", dist.HalfNormal(0.2))
        numpyro.sample("seen", dist.Normal(matrix @ digit, noise).to_event(1), obs=seen)

    def posterior(seen, key):
        kernel = NUTS(model, init_strategy=init_to_mean, max_tree_depth=max_tree_depth)
        mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
        mcmc.run(key, seen)
        return mcmc.get_samples()

    start = time.perf_counter()
    keys = jax.random.split(jax.random.key(2), len(x))
    draws = jax.jit(jax.vmap(posterior))(jnp.asarray(observed(matrix, x)), keys)
    draws = {name: np.asarray(values) for name, values in draws.items()}
    low, high = np.quantile(draws["x"], [0.05, 0.95], axis=1)
    mean = draws["x"].mean(1)
    ess = [numpyro.diagnostics.effective_sample_size(chain[None]) for chain in draws["x"][:10]]
    return Reconstruction(
        mean_squared_error=float(np.mean((mean - x) ** 2)),
        coverage=float(np.mean((low <= x) & (x <= high))),
        noise=float(draws["noise"].mean()),
        ess=float(np.median(ess)),
        projected=float(draws["x_projected"].mean()) if "x_projected" in draws else 0.0,
        seconds=time.perf_counter() - start,
        mean=mean,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=int, default=100)
    parser.add_argument("--draws", type=int, default=80)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--updates", type=int, default=1000, help="of maximum likelihood, or 0 (1000)"
    )
    parser.add_argument("--covariance", nargs="*", default=["full", "isotropic"])
    arguments = parser.parse_args()
    train, held_out = digits()
    x = held_out[: arguments.digits]
    energy = trained(train, width=arguments.width, num_updates=arguments.updates)
    priors = {"Gaussian": gaussian(train)}
    priors |= {f"learned, {c}": learned(energy, c) for c in arguments.covariance}
    for problem, matrix in operators().items():
        for name, prior in priors.items():
            # The Gaussian's gradient is nearly free, so its trees may be deeper.
            depth = 6 if name == "Gaussian" else 4
            counts = {"num_warmup": arguments.draws, "num_samples": arguments.draws}
            found = reconstruct(prior, matrix, x, max_tree_depth=depth, **counts)
            print(f"{problem}, {name}: {found}", flush=True)


if __name__ == "__main__":
    main()
