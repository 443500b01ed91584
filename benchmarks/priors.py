"""The priors of `fit_mixture` on published designs: `python -m benchmarks.priors [TABLE ...]`.

The tables are `ebnm` (coverage and errors on its three simulations), `signs` (five truths with
unequal errors), `robust` (critical values and average coverage), `precision` (where the standard
error predicts the effect), `counts` (published data sets), `several` (a covariance for each
observation) and `million`. Data sets are read from the folder named by NEB_DATA, or else from
../shared/data, in its folder `targets`.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import numpyro_neb as neb
from benchmarks.normal_means import data_folder
from numpyro_neb.empirical_bayes import robust_interval

PRIORS = ("npmle", "normal", "point_normal", "scale_mixture", "unimodal", "spline")
Design = tuple[np.ndarray, np.ndarray, np.ndarray]


def covered(lower: Any, upper: Any, x: np.ndarray) -> float:
    """The share of x between the ends, but for the rounding of float32."""
    slack = 1e-5 * (1 + np.abs(x))
    return float(np.mean((np.asarray(lower) <= x + slack) & (x - slack <= np.asarray(upper))))


def ebnm_effects(name: str, rng: np.random.Generator, n: int = 1000) -> np.ndarray:
    """The effects of ebnm's simulations, for unit noise."""
    if name == "normal":
        return 2 * rng.normal(size=n)
    if name == "point-t":
        return np.where(rng.random(n) < 0.8, 0.0, 1.5 * rng.standard_t(5, n))
    return rng.uniform(-5, 10, n)


def ebnm(repeats: int) -> None:
    """Root mean squared errors, and coverage of nominal 90% intervals."""
    print("| prior | normal: error, coverage | point-t | tophat |\n|---|---|---|---|")
    for prior in PRIORS:
        row = f"| {prior} "
        for name in ("normal", "point-t", "tophat"):
            found = []
            for seed in range(repeats):
                rng = np.random.default_rng(seed)
                x = ebnm_effects(name, rng)
                y = x + rng.normal(size=len(x))
                fit = neb.fit_mixture(y, 1.0, prior=prior, progress_bar=False)
                error = np.sqrt(np.mean((fit.posterior_mean - x) ** 2))
                found.append((error, covered(*fit.posterior.interval(0.9), x)))
            error, coverage = np.mean(found, axis=0)
            row += f"| {error:.3f}, {coverage:.3f} "
        print(row + "|", flush=True)


def five_truths(seed: int, n: int = 300) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Effects of five laws, and unequal standard errors."""
    rng = np.random.default_rng(seed)
    sigma = rng.choice([0.3, 0.6, 1.0, 1.5], n)
    yield "normal", rng.normal(size=n), sigma
    yield "t4", rng.standard_t(4, n), sigma
    yield "80% zeros", np.where(rng.random(n) < 0.8, 0.0, 2 * rng.normal(size=n)), sigma
    yield "skewed", rng.exponential(1.5, n), sigma
    yield "two-sided", rng.choice([-1.5, 1.5], n) + 0.5 * rng.normal(size=n), sigma


def signs(repeats: int) -> None:
    """Coverage, and the signs that are wrong among those of a rate below .05, beside the claim."""
    print("| prior | truth | 90% intervals cover | wrong / claimed, of |\n|---|---|---|---|")
    for prior in ("scale_mixture", "unimodal"):
        found: dict[str, list] = {}
        for seed in range(repeats):
            for name, x, sigma in five_truths(seed):
                y = x + sigma * np.random.default_rng(10_000 + seed).normal(size=len(x))
                fit = neb.fit_mixture(y, sigma, prior=prior, progress_bar=False)
                rates = fit.lfsr
                small = rates < 0.05
                wrong = np.sum(np.sign(x[small]) != np.sign(fit.posterior_mean[small]))
                cover = covered(*fit.posterior.interval(0.9), x)
                found.setdefault(name, []).append((cover, wrong, rates[small].sum(), small.sum()))
        for name, rows in found.items():
            cover, wrong, claimed, count = np.mean(rows, axis=0)
            counts = f"{wrong:.2f} / {claimed:.2f} = {wrong / claimed:.2f}, {count:.0f}"
            print(f"| {prior} | {name} | {cover:.3f} | {counts} |", flush=True)


CRITICAL = [
    (4.0, np.inf, 0.05, 7.216351),
    (4.0, 3.0, 0.05, 4.619513),
    (25.0, 3.0, 0.05, 11.88358367),
    (1.0, 3.0, 0.2, 1.8494683),
    (100.0, 3.0, 0.05, 24.86172217),
    (7.84, 8.0, 0.1, 7.0779747158),
]


def robust(repeats: int) -> None:
    """Critical values, and the average coverage of nominal 90% intervals."""
    for second, kurtosis, alpha, value in CRITICAL:
        found = neb.empirical_bayes.cva(second, kurtosis, alpha)
        print(f"cva({second:g}, {kurtosis:g}, {alpha:g}) = {found:.7f}, {found - value:+.1e}")
    designs = {name: [] for name in ("normal", "point-t", "tophat")}
    for seed in range(repeats):
        for name, found in designs.items():
            rng = np.random.default_rng(seed)
            x = ebnm_effects(name, rng)
            fit = neb.fit_mixture(x + rng.normal(size=len(x)), 1.0, prior="normal")
            found.append(covered(*robust_interval(fit, 0.9), x))
        for name, x, sigma in five_truths(seed):
            y = x + sigma * np.random.default_rng(10_000 + seed).normal(size=len(x))
            fit = neb.fit_mixture(y, sigma, prior="normal")
            designs.setdefault(name + ", unequal", []).append(
                covered(*robust_interval(fit, 0.9), x)
            )
    for name, found in designs.items():
        print(f"robust intervals, {name}: {np.mean(found):.3f}", flush=True)


def by_precision(name: str, rng: np.random.Generator, n: int) -> Design:
    """X, sigma and covariates of designs of arXiv 2502.20123, where sigma predicts X."""
    none = np.zeros((n, 0))
    if name == "e":
        v = np.where(np.arange(n) < n // 2, 0.1, 0.5)
        law = np.where(v == 0.1, 2 + np.sqrt(0.1) * rng.normal(size=n), 0.0)
        return np.where(v == 0.1, law, np.sqrt(0.5) * rng.normal(size=n)), np.sqrt(v), none
    if name == "g":
        v = rng.uniform(0.1, 0.5, n)
        return np.where(rng.random(n) < 0.5, v, 10 * v), np.sqrt(v), none
    column = rng.random((n, 1))
    v = 2 * column[:, 0] ** 2 + 5 * column[:, 0] + 1
    return 2 * v + 0.5 + np.sqrt(0.25 * v) * rng.normal(size=n), np.sqrt(v), column


def precision(repeats: int) -> None:
    """Mean squared errors with location_scale and with covariates."""
    print("| design | npmle | location_scale | covariates |\n|---|---|---|---|")
    for name in "egj":
        found = []
        for seed in range(repeats):
            rng = np.random.default_rng(seed)
            x, sigma, columns = by_precision(name, rng, 6400)
            y = x + sigma * rng.normal(size=len(x))
            key = jax.random.key(seed)
            fits = (
                neb.fit_mixture(y, sigma, progress_bar=False),
                neb.fit_mixture(y, sigma, location_scale=True, progress_bar=False),
                neb.fit_mixture(y, sigma, covariates=columns, key=key, progress_bar=False),
            )
            found.append([np.mean((fit.posterior_mean - x) ** 2) for fit in fits])
        print(f"| {name} | " + " | ".join(f"{e:.4f}" for e in np.mean(found, 0)) + " |", flush=True)
    shares = []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        sigma = 0.1 + rng.random(10_000)
        x = sigma + 0.3 * rng.normal(size=10_000)
        y = x + sigma * rng.normal(size=10_000)
        fit = neb.fit_mixture(y, sigma, location_scale=True, progress_bar=False)
        oracle = sigma + 0.09 / (0.09 + sigma**2) * (y - sigma)
        errors = [np.mean((e - x) ** 2) for e in (y, fit.posterior_mean, oracle)]
        shares.append((errors[0] - errors[1]) / (errors[0] - errors[2]))
    print(f"CLOSE's design: {np.mean(shares):.2%} of the oracle's gain")


def read(file: str) -> list[dict[str, str]]:
    """The rows of a published table."""
    folder = data_folder()
    if folder is None:
        raise SystemExit("no data sets: NEB_DATA does not name a folder")
    with (folder / "targets" / file).open() as lines:
        return list(csv.DictReader(lines))


def counts(repeats: int) -> None:
    """Log-likelihoods and posterior means of Poisson and binomial data sets."""
    del repeats
    table = read("eb_counts.csv")

    def histogram(name):
        rows = [r for r in table if r["dataset"] == name]
        return np.repeat([float(r["x"]) for r in rows], [int(r["count"]) for r in rows])

    for name, due in (("thyrion", -5340.7035), ("bichsel", -54609.4482)):
        fit = neb.fit_mixture(histogram(name), family="poisson")
        means = fit.predict(np.arange(8.0)).posterior_mean
        print(f"{name}: {fit.log_likelihood:.4f} (published {due}), means {np.round(means, 4)}")
    rows = read("norberg.csv")
    exposure = np.array([float(r["Exposure"]) for r in rows]) / 344
    deaths = np.array([float(r["Death"]) for r in rows])
    fit = neb.fit_mixture(deaths, family="poisson", exposure=exposure)
    means = fit.posterior_mean[[12, 52]]
    print(f"Norberg: {fit.log_likelihood:.4f} (-140.2910), {np.round(means, 4)} (2.4623, 1.6217)")
    tacks = neb.fit_mixture(histogram("tacks_of_9"), family="binomial", trials=9.0)
    print(f"tacks: {np.round(tacks.locs, 4)}, {np.round(tacks.weights, 3)}")
    rows = read("surgery.csv")
    trials, found = (np.array([float(r[name]) for r in rows]) for name in ("n", "s"))
    fit = neb.fit_mixture(found, family="binomial", trials=trials)
    three = fit.predict([3.0], trials=[6.0]).posterior_mean[0]
    print(f"surgery: {fit.log_likelihood:.4f} (-1941.3420), E[X | 3 of 6] {three:.4f} (.4489)")
    fit = neb.fit_mixture(histogram("lord_cressie_of_20"), family="binomial", trials=20.0)
    rows = [r for r in table if r["dataset"] == "lord_cressie_of_20" and r["published_lower"]]
    x, low, high = (
        np.array([float(r[name]) for r in rows])
        for name in ("x", "published_lower", "published_upper")
    )
    means = fit.predict(x, trials=20.0).posterior_mean
    inside = np.sum((low <= means) & (means <= high))
    print(f"Lord-Cressie: {fit.log_likelihood:.3f} (-34422.538), {inside} of {len(x)} means inside")


def several(repeats: int) -> None:
    """10^5 rows in two dimensions, each with a covariance of its own."""
    del repeats
    n, rng = 100_000, np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, n)
    x = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    roots = 0.4 * rng.normal(size=(n, 2, 2))
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(2)
    y = x + np.einsum("nij,nj->ni", np.linalg.cholesky(covariances), rng.normal(size=(n, 2)))
    start = time.perf_counter()
    fit = neb.fit_mixture(y, covariances, max_gap=1e-4 * n, progress_bar=False)
    seconds = time.perf_counter() - start
    error = np.mean(np.sum((fit.posterior_mean - x) ** 2, 1))
    print(f"{n} rows in two dimensions: {seconds:.0f} s, at most {fit.duality_gap / n:.1e} n below")
    print(f"squared error {error:.3f}, of the observations {np.mean(np.sum((y - x) ** 2, 1)):.3f}")


def million(repeats: int) -> None:
    """10^6 observations in one dimension with unequal sigma."""
    del repeats
    rng = np.random.default_rng(0)
    x = np.where(rng.random(10**6) < 0.7, 0.0, 2 * rng.normal(size=10**6))
    sigma = rng.uniform(0.5, 1.5, 10**6)
    y = x + sigma * rng.normal(size=10**6)
    for prior in ("npmle", "scale_mixture"):
        start = time.perf_counter()
        fit = neb.fit_mixture(y, sigma, prior=prior, progress_bar=False)
        middle = time.perf_counter()
        error = np.mean((fit.posterior_mean - x) ** 2)
        seconds = f"{middle - start:.0f} s and {time.perf_counter() - middle:.0f} s for the means"
        print(
            f"10^6 observations, {prior}: {seconds}, gap {fit.duality_gap:.1e}, error {error:.4f}"
        )


TABLES: dict[str, Callable[[int], None]] = {
    "ebnm": ebnm,
    "signs": signs,
    "robust": robust,
    "precision": precision,
    "counts": counts,
    "several": several,
    "million": million,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    for name in TABLES if "all" in arguments.tables else arguments.tables:
        print(f"\n## {name}", flush=True)
        TABLES[name](arguments.repeats)


if __name__ == "__main__":
    main()
