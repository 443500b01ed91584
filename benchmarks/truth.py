"""Is the density right? Energies trained in both stages, judged on data they have not seen.

    python -m benchmarks.truth                # all tables, about 15 minutes on 2 cores
    python -m benchmarks.truth digits moons   # some of them

Each energy is trained by denoising, then by maximum likelihood, and a row is printed after each
stage. A quarter of the data are held out, by scikit-learn's `train_test_split(random_state=0)`. The
columns:

    AUC         of a classifier (scikit-learn's HistGradientBoostingClassifier) that tells the
                walk's y from noisy data: trained on 4,000 of the walk and 4,000 noisy training
                examples, scored on 2,000 more of the walk and 2,000 noisy held-out examples;
                0.5 is right
    classes     total variation between the classes of the walk's jumps and of jumps from noisy
                held-out examples, by a support vector classifier; in the data's row, between the
                labels of training and held-out examples
    commonest   the share of the commonest class among the walk's jumps
    -log f      of noisy held-out examples, in nats, with log_normalizer's standard error
    jump        the denoising loss, E norm(x - x_hat(y))^2, on held-out examples
    widths      standard deviations of the walk's y over those of noisy training data: the smallest,
                the mean and the largest over the coordinates; in the data's row, those of noisy
                held-out data
    smaller     the share of the smaller moon among the walk's jumps
    verdict     of `evaluate`, and its p-value

The last one, `evaluate`, knows nothing about the classes or the classifier.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer, load_digits, make_moons
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import numpyro_neb as neb

NUM_CHAINS = 120
QUIET: Any = {"progress_bar": False}


def noisy(x, sigma, number, seed):
    """Noisy copies of `number` examples drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = x[rng.integers(len(x), size=number)]
    return (rows + sigma * rng.normal(size=rows.shape)).astype(np.float32)


def walked(energy, number, num_steps=20, burn_in=100, seed=1):
    """Draws of the walk from N(loc, scale^2 + sigma^2): y and x, of shape (number, *event)."""
    kernel = neb.WalkJumpKernel(energy, num_steps=num_steps)
    sample = jax.jit(lambda state: kernel.sample(state))
    keys = jax.random.split(jax.random.key(seed), NUM_CHAINS)
    state, draws = kernel.init(keys, 0, None), []
    for i in range(burn_in + -(-number // NUM_CHAINS)):
        state = sample(state)
        if i >= burn_in:
            draws.append(jax.device_get(state.draw))
    return tuple(np.concatenate([draw[name] for draw in draws])[:number] for name in ("y", "x"))


def auc(y, x_train, x_test, sigma):
    """How well a classifier tells 6,000 draws y of the walk from noisy data."""
    flat = lambda a: a.reshape(len(a), -1)  # noqa: E731
    y = np.random.default_rng(0).permutation(y)
    train = flat(np.concatenate([y[:4000], noisy(x_train, sigma, 4000, 2)]))
    test = flat(np.concatenate([y[4000:], noisy(x_test, sigma, len(y) - 4000, 3)]))
    classifier = HistGradientBoostingClassifier(max_iter=150, random_state=0)
    classifier.fit(train, np.repeat([1, 0], 4000))
    return roc_auc_score(np.repeat([1, 0], len(test) // 2), classifier.predict_proba(test)[:, 1])


def held_out_figures(energy, x, repeats=20):
    """-log f of noisy held-out examples with the error of log Z, and the denoising loss."""
    sigma, rng = float(energy.sigma), np.random.default_rng(4)
    x = np.repeat(x, repeats, axis=0)
    y = jnp.asarray(x + sigma * rng.normal(size=x.shape), jnp.float32)
    phi, jump = jax.jit(jax.vmap(lambda y: (energy(y), energy.denoise(y))))(y)
    log_z, error = neb.empirical_bayes.log_normalizer(energy, jax.random.key(5), **QUIET)
    loss = np.mean(np.sum(((x - jump) ** 2).reshape(len(x), -1), axis=1))
    return float(jnp.mean(phi) + log_z), float(error), float(loss)


def widths(y, x, sigma):
    """Standard deviations of the walk's y over those of noisy data: smallest, mean, largest."""
    ratio = y.std(0) / np.sqrt(x.var(0) + sigma**2)
    return f"{ratio.min():.2f}, {ratio.mean():.2f}, {ratio.max():.2f}"


def shares(classifier, x):
    """The shares of the classes that a classifier finds."""
    found = classifier.predict(x.reshape(len(x), -1))
    return np.bincount(found, minlength=len(classifier.classes_)) / len(x)


def variation(one, other):
    """The total variation between two tuples of shares."""
    return np.abs(one - other).sum() / 2


def verdict(energy, train, held_out):
    """The outcome of `evaluate`, and its p-value."""
    found = neb.evaluate(energy, held_out, train=train, key=jax.random.key(6), **QUIET)
    return f"{found.outcome.upper()}, {found.p_value:.3f}"


def stages(energy, x, num_steps, num_updates, weight_decay=0.0):
    """Yields a name and the energy after each of the two stages."""
    common = {"batch_size": 128, **QUIET}
    start = time.perf_counter()
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, num_steps), weight_decay=weight_decay)
    settings = {"optimizer": optimizer, "num_steps": num_steps, **common}
    energy = neb.fit(energy, x, key=jax.random.key(0), **settings).energy
    yield f"denoising, {num_steps:,} steps, {time.perf_counter() - start:.0f} s", energy
    start = time.perf_counter()
    settings = {"objective": neb.MaximumLikelihood(), "num_steps": num_updates, **common}
    energy = neb.fit(energy, x, key=jax.random.key(1), **settings).energy
    yield f"then likelihood, {num_updates:,} updates, {time.perf_counter() - start:.0f} s", energy


def perceptron(x, sigma, width=256):
    """An energy of a perceptron with three hidden layers."""
    shape, key = x.shape[1:], jax.random.key(0)
    network = neb.networks.MLP(shape, width_size=width, depth=3, key=key)
    return neb.ResidualEnergy(network, sigma, shape, loc=x.mean(0), scale=x.std())


def digits(num_updates):
    """scikit-learn's digits at sigma = 0.3 and 0.2."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images = np.asarray(images.reshape(-1, 8, 8) / 16, np.float32)
    split: Any = train_test_split(images, labels, random_state=0)
    train, held_out, classes, others = split
    classifier = SVC().fit(train.reshape(-1, 64), classes)
    counts = [np.bincount(c, minlength=10) / len(c) for c in (classes, others)]
    print("| sigma | energy | AUC | classes | commonest | -log f | jump | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for sigma, num_steps in ((0.3, 6000), (0.2, 8000)):
        exact = neb.MixtureEnergy(train, sigma)
        nats, _, loss = held_out_figures(exact, held_out)
        print(
            f"| {sigma} | data, and their kernel density | 0.5 | {variation(*counts):.3f}", end=""
        )
        print(f" | {counts[1].max():.3f} | {nats:.2f} | {loss:.3f} | |", flush=True)
        for name, energy in stages(perceptron(train, sigma), train, num_steps, num_updates, 1.0):
            y, x = walked(energy, 6000)
            jumps = neb.posterior_mean(energy, noisy(held_out, sigma, 6000, 7), **QUIET)
            found, right = shares(classifier, x), shares(classifier, np.asarray(jumps))
            nats, error, loss = held_out_figures(energy, held_out)
            print(
                f"| {sigma} | {name} | {auc(y, train, held_out, sigma):.3f}"
                f" | {variation(found, right):.3f} | {found.max():.3f} | {nats:.2f} +- {error:.2f}"
                f" | {loss:.3f} | {verdict(energy, train, held_out)} |",
                flush=True,
            )


def moons(num_updates):
    """Two moons of 1,400 and 600 points, sigma = 0.15."""
    sigma = 0.15
    sizes: Any = (1400, 600)  # its annotation says int
    x, label = map(np.asarray, make_moons(sizes, noise=0.05, random_state=0))
    x = x.astype(np.float32)
    train, held_out, classes, _ = train_test_split(x, label, random_state=0)
    nearest = KNeighborsClassifier(1).fit(train, classes)
    print("| energy | smaller | AUC | -log f | jump | verdict |")
    print("|---|---|---|---|---|---|")
    exact = neb.MixtureEnergy(train, sigma)
    jumps = neb.posterior_mean(exact, noisy(held_out, sigma, 6000, 7), **QUIET)
    nats, _, loss = held_out_figures(exact, held_out)
    print(f"| data, and their kernel density | {shares(nearest, np.asarray(jumps))[1]:.3f}", end="")
    print(f" | 0.5 | {nats:.3f} | {loss:.4f} | |", flush=True)
    for name, energy in stages(perceptron(train, sigma, 128), train, 4000, num_updates):
        y, jump = walked(energy, 6000)
        nats, error, loss = held_out_figures(energy, held_out)
        print(
            f"| {name} | {shares(nearest, jump)[1]:.3f} | {auc(y, train, held_out, sigma):.3f}"
            f" | {nats:.3f} +- {error:.3f} | {loss:.4f} | {verdict(energy, train, held_out)} |",
            flush=True,
        )


def cancer(num_updates):
    """scikit-learn's breast cancer, 30 standardised columns, sigma = 0.5."""
    sigma = 0.5
    x = np.asarray(load_breast_cancer(return_X_y=True)[0])
    train, held_out = train_test_split(x, random_state=0)
    scaler = StandardScaler().fit(train)
    scaled = (scaler.transform(a) for a in (train, held_out))
    train, held_out = (np.asarray(a, np.float32) for a in scaled)
    print("| energy | AUC | widths | -log f | jump | verdict |")
    print("|---|---|---|---|---|---|")
    nats, _, loss = held_out_figures(neb.MixtureEnergy(train, sigma), held_out)
    between = widths(noisy(held_out, sigma, 6000, 7), train, sigma)
    print(f"| data, and their kernel density | 0.5 | {between} | {nats:.2f} | {loss:.3f} | |")
    for name, energy in stages(perceptron(train, sigma, 128), train, 1500, num_updates, 1.0):
        y, _ = walked(energy, 6000)
        nats, error, loss = held_out_figures(energy, held_out)
        print(
            f"| {name} | {auc(y, train, held_out, sigma):.3f} | {widths(y, train, sigma)}"
            f" | {nats:.2f} +- {error:.2f} | {loss:.3f} | {verdict(energy, train, held_out)} |",
            flush=True,
        )


TABLES = {"digits": digits, "moons": moons, "cancer": cancer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", choices=[*TABLES, "all"], default="all")
    parser.add_argument("--updates", type=int, default=1000, help="of maximum likelihood (1000)")
    options = parser.parse_args()
    for name in TABLES if "all" in options.tables else options.tables:
        print(f"\n{TABLES[name].__doc__}\n")
        TABLES[name](options.updates)


if __name__ == "__main__":
    main()
