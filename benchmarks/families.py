"""Draws of X, and densities, of one network for many noise levels, on scikit-learn's digits.

    python -m benchmarks.families             # about 15 minutes on 2 cores
    python -m benchmarks.families exact       # the exact mixture alone

`exact` draws X from the mixture of the digits, from sigma = 3 down to 0.1, at several numbers of
levels and steps. `trained` trains a `ConditionalEnergy` by dual score matching, then by maximum
likelihood on all levels, on three quarters of the digits, and sets its constants by
`empirical_bayes.normalized`. Its columns:

    -log f      of noisy held-out digits at sigma = 0.3 and 0.2, in nats, as the family normalises
                itself, and with `log_normalizer` and its standard error
    jump        the denoising loss on them
    variance    of draws of X over that of X, summed over the pixels
    AUC         of a classifier that tells draws of X, rounded to the 17 grey levels of the data,
                from held-out digits: 0.5 is right
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

import numpyro_neb as neb
from benchmarks.truth import QUIET, held_out_figures
from numpyro_neb.posteriors.levels import down, geometric


def digits() -> np.ndarray:
    """The images, from 0 to 1."""
    return np.asarray(np.asarray(load_digits(return_X_y=True)[0]) / 16, np.float32)


def exact(quick: bool) -> None:
    """The mixture of all digits: the variance of Y at 0.1, drawn from noise at 3, over the true."""
    x, number = digits(), 500 if quick else 3000
    energy = neb.MixtureEnergy(x, 0.1)

    def draw(levels, num_steps, key):
        key_start, key_down = jax.random.split(key)
        spread = jnp.sqrt(energy.scale**2 + levels[0] ** 2)
        y = energy.loc + spread * jax.random.normal(key_start, energy.event_shape)
        return down(energy.at, y, levels, key_down, num_steps)

    print("| levels | steps at each | gradients | variance |")
    print("|---|---|---|---|")
    for num_levels, num_steps in ((24, 4), (12, 4), (24, 0), (96, 0)):
        levels = geometric(jnp.asarray(3.0), jnp.asarray(0.1), num_levels)
        keys = jax.random.split(jax.random.key(0), number)
        y = np.asarray(jax.jit(jax.vmap(partial(draw, levels, num_steps)))(keys))
        squares = np.sum((y - y.mean(0)) ** 2, 1) / np.sum(x.var(0) + 0.01)
        error = squares.std() / np.sqrt(number)
        gradients = num_levels * (num_steps + 2 if num_steps else 1)
        print(
            f"| {num_levels} | {num_steps} | {gradients} | {squares.mean():.4f} +- {error:.4f} |",
            flush=True,
        )


def trained(quick: bool) -> None:
    """A family of a perceptron, sigma from 0.1 to 3."""
    x = digits()
    train, held_out = map(np.asarray, train_test_split(x, random_state=0))
    network = neb.networks.MLP((64,), width_size=256, depth=3, conditional=True,
                               key=jax.random.key(0))  # fmt: skip
    loc = train.mean(0)
    family = neb.ConditionalEnergy(network, (64,), (0.1, 3.0), loc, float((train - loc).std()))
    steps = 300 if quick else 9000
    schedule = optax.cosine_decay_schedule(1e-3, steps)
    dual = {
        "objective": partial(neb.dual_score_loss, weight=2.0),
        "num_steps": steps,
        "batch_size": 128,
        "optimizer": optax.adamw(schedule, weight_decay=1.0),
    }
    likelihood = {
        "objective": neb.MaximumLikelihood(num_chains=256),
        "num_steps": 20 if quick else 1000,
        "batch_size": 256,
    }
    print("| training | sigma | -log f, own | -log f, annealed | jump |")
    print("|---|---|---|---|---|")
    stages = (("dual score", dual), ("then likelihood", likelihood))
    for seed, (name, settings) in enumerate(stages):
        family = neb.fit(family, train, key=jax.random.key(seed), **settings, **QUIET).energy
        densities(name, family, held_out)
    counts = {"num_particles": 100, "num_levels": 100} if quick else {}
    family = neb.empirical_bayes.normalized(family, jax.random.key(6), **counts, **QUIET)
    densities("then normalized", family, held_out)
    draws = np.asarray(family.sample(jax.random.key(9), (200 if quick else 1500,)))
    ratio = draws.var(0).sum() / x.var(0).sum()
    found = auc(draws, train, held_out)
    print(f"\nvariance of draws of X over that of X: {ratio:.3f}; AUC {found:.3f}")


def densities(name: str, family: neb.ConditionalEnergy, held_out: np.ndarray) -> None:
    """-log f and the denoising loss of noisy held-out digits, at two noise levels."""
    for sigma in (0.3, 0.2):
        energy = family.at(sigma)
        nats, error, loss = held_out_figures(energy, held_out)
        log_z, _ = neb.empirical_bayes.log_normalizer(energy, jax.random.key(5), **QUIET)
        print(
            f"| {name} | {sigma} | {nats - float(log_z):.2f} | {nats:.2f} +- {error:.2f}"
            f" | {loss:.3f} |",
            flush=True,
        )


def auc(draws: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
    """How well a classifier tells rounded draws from digits."""
    draws = np.clip(np.round(16 * draws), 0, 16) / 16
    half = len(draws) // 2
    rows = np.random.default_rng(0).integers(len(train), size=half)
    classifier = HistGradientBoostingClassifier(max_iter=150, random_state=0)
    classifier.fit(np.concatenate([draws[:half], train[rows]]), np.repeat([1, 0], half))
    test = np.concatenate([draws[half:], held_out])
    truth = np.repeat([1, 0], [len(draws) - half, len(held_out)])
    return float(roc_auc_score(truth, classifier.predict_proba(test)[:, 1]))


TABLES = {"exact": exact, "trained": trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, "all"], default="all")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    for name in TABLES if "all" in arguments.tables else arguments.tables:
        print(f"\n## {name}", flush=True)
        TABLES[name](arguments.quick)


if __name__ == "__main__":
    main()
