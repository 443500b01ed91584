"""Posteriors in two stages and in one: `python -m benchmarks.two_stages`.

The data are split in two. NUTS on the first half gives draws; `prior_from_draws`, with its default
settings, makes them a prior, and NUTS on the second half gives the posterior. It is compared with
that of NUTS on all data. For scale, so is the posterior with a Gaussian of the draws' mean and
covariance in place of the learned prior, and NUTS on all data once more, which shows the Monte
Carlo error. All quantities are on the real line: a logarithm for each scale.

    hierarchical   8 groups of 6 normal observations: their mean and scale, and the 8 effects
    logistic       8 coefficients of inputs with a correlation of 0.7, 400 outcomes
    funnel         a scale and 8 effects, of which the data say little

Columns, each the mean over seeds of the data with its standard error, and the largest:

    mean           the largest |difference of means| over the quantities, in sds
    sd             the largest relative difference of sds
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import numpyro_neb as neb

GROUPS = 8


class Posterior(NamedTuple):
    """A prior, a likelihood and data.

    Attributes:
        prior: A function of a model, whose value is the vector of all quantities.
        likelihood: The likelihood of that vector, given arrays of data.
        data: Data of a seed, arrays of as many rows.
    """

    prior: Callable
    likelihood: Callable
    data: Callable


def effects(mean: Any, log_scale: Any) -> jax.Array:
    """The effects of the groups, non-centred."""
    raw = numpyro.sample("raw", dist.Normal(0.0, 1.0).expand([GROUPS]).to_event(1))
    return mean + jnp.exp(log_scale) * jnp.asarray(raw)


def hierarchical() -> Posterior:
    """Observations y_ij ~ N(theta_j, 1), theta_j ~ N(mu, tau^2).

    The quantities are (mu, log tau, theta_1, ..., theta_8).
    """

    def prior():
        mean = jnp.asarray(numpyro.sample("mean", dist.Normal(0.0, 3.0)))
        log_scale = jnp.asarray(numpyro.sample("log_scale", dist.Normal(0.0, 1.0)))
        return jnp.concatenate([jnp.stack([mean, log_scale]), effects(mean, log_scale)])

    def likelihood(u, y):
        numpyro.sample("y", dist.Normal(u[2:], 1.0).to_event(1), obs=y)

    def data(rng):
        return (rng.normal(size=GROUPS) + rng.normal(size=(6, GROUPS)),)

    return Posterior(prior, likelihood, data)


def logistic() -> Posterior:
    """Outcomes y ~ Bernoulli(logit = x' beta), beta ~ N(0, I)."""

    def prior():
        law = dist.Normal(0.0, 1.0).expand([8]).to_event(1)
        return jnp.asarray(numpyro.sample("beta", law))

    def likelihood(u, x, y):
        numpyro.sample("y", dist.Bernoulli(logits=x @ u).to_event(1), obs=y)

    def data(rng):
        x = rng.normal(size=(400, 8)) * 0.3**0.5 + rng.normal(size=(400, 1)) * 0.7**0.5
        rate = 1 / (1 + np.exp(-x @ rng.normal(size=8)))
        return x, rng.random(400) < rate

    return Posterior(prior, likelihood, data)


def funnel() -> Posterior:
    """Observations y_ij ~ N(theta_j, 2^2), theta_j ~ N(0, tau^2).

    The quantities are (log tau, theta_1, ..., theta_8).
    """

    def prior():
        log_scale = jnp.asarray(numpyro.sample("log_scale", dist.Normal(0.0, 1.5)))
        return jnp.concatenate([log_scale[None], effects(0.0, log_scale)])

    def likelihood(u, y):
        numpyro.sample("y", dist.Normal(u[1:], 2.0).to_event(1), obs=y)

    def data(rng):
        return (rng.normal(size=GROUPS) + 2 * rng.normal(size=(2, GROUPS)),)

    return Posterior(prior, likelihood, data)


POSTERIORS = {"hierarchical": hierarchical, "logistic": logistic, "funnel": funnel}


def draws(
    posterior: tuple, data: tuple, key: jax.Array, num: int, *, warmup: int, thinning: int = 1
) -> np.ndarray:
    """Draws by NUTS with four chains, of shape (num, d), one in `thinning`."""
    prior, likelihood = posterior

    def model():
        u = numpyro.deterministic("all", prior())
        likelihood(u, *data)

    settings: Any = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    counts = {"num_warmup": warmup, "num_samples": num * thinning // 4, "thinning": thinning}
    mcmc = MCMC(NUTS(model, target_accept_prob=0.9), **counts, **settings)
    mcmc.run(key)
    return np.asarray(mcmc.get_samples()["all"], float)


def gaussian(samples: np.ndarray) -> Callable:
    """The Gaussian prior of the draws' mean and covariance."""
    law = dist.MultivariateNormal(
        jnp.asarray(samples.mean(0), float), jnp.asarray(np.cov(samples.T), float)
    )
    return lambda: jnp.asarray(numpyro.sample("u", law))


def differences(found: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """The largest difference of means, in sds, and the largest relative one of sds."""
    means = (found.mean(0) - exact.mean(0)) / exact.std(0)
    return float(np.abs(means).max()), float(np.abs(found.std(0) / exact.std(0) - 1).max())


def compared(
    posterior: Posterior, seed: int, num: int, warmup: int, settings: dict
) -> dict[str, tuple[float, float]]:
    """The differences from NUTS on all data, of each way to have the posterior."""
    prior, likelihood, data = posterior
    arrays = tuple(jnp.asarray(array, float) for array in data(np.random.default_rng(seed)))
    halves = [tuple(array[part::2] for array in arrays) for part in (0, 1)]
    keys = jax.random.split(jax.random.key(seed), 6)
    joint, counts = (prior, likelihood), {"warmup": warmup}
    thinned = counts | {"thinning": 4}
    first = draws(joint, halves[0], keys[0], num, **thinned)
    learned: Any = neb.prior_from_draws("u", first, key=keys[1], progress_bar=False, **settings)
    exact = draws(joint, arrays, keys[2], 2 * num, **thinned)
    ways = {
        "learned prior": draws((learned, likelihood), halves[1], keys[3], num, **counts),
        "Gaussian prior": draws((gaussian(first), likelihood), halves[1], keys[4], num, **counts),
        "all data again": draws(joint, arrays, keys[5], num, **thinned),
    }
    return {way: differences(found, exact) for way, found in ways.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--posteriors", nargs="+", choices=list(POSTERIORS), default=POSTERIORS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--steps", type=int, help="of training (the default of prior_from_draws)")
    options = parser.parse_args(arguments)
    settings = {} if options.steps is None else {"num_steps": options.steps}
    print("| posterior | prior of the second stage | mean | largest | sd | largest |")
    print("|---|---|---|---|---|---|")
    for name in options.posteriors:
        posterior = POSTERIORS[name]()
        counts = options.draws, options.warmup, settings
        found = [compared(posterior, seed, *counts) for seed in options.seeds]
        for way in found[0]:
            each = np.array([row[way] for row in found])
            error = each.std(0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else each[0] * np.nan
            (mean, sd), (most, most_sd) = each.mean(0), each.max(0)
            print(
                f"| {name} | {way} | {mean:.3f} ± {error[0]:.3f} | {most:.3f}"
                f" | {sd:.1%} ± {error[1]:.1%} | {most_sd:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
