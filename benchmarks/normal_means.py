"""`fit_mixture` on data from the empirical-Bayes literature: `python -m benchmarks.normal_means`.

The total squared errors of the Johnstone-Silverman design (1,000 means, k of them mu, unit noise,
40 repeats), the log-likelihoods of the weighted on-base averages of 2022 and of the prostate
z-values, the batters of Efron and Morris, and the times. The data sets are read from the folder
named by the environment variable NEB_DATA, or else from ../shared/data.
"""

import argparse
import csv
import os
import time
from pathlib import Path

import jax
import numpy as np

import numpyro_neb as neb

# From our earlier run of the same design: the nonparametric maximum-likelihood estimate's errors.
REFERENCE = {
    (5, 3): 34.6, (5, 4): 22.7, (5, 5): 20.3, (5, 7): 7.5,
    (50, 3): 153.1, (50, 4): 109.2, (50, 5): 49.6, (50, 7): 10.2,
    (500, 3): 442.9, (500, 4): 290.2, (500, 5): 136.9, (500, 7): 20.2,
}  # fmt: skip


def data_folder() -> Path | None:
    """Where the data sets are, or None."""
    named = os.environ.get("NEB_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


def columns(folder: Path, file: str, *names: str) -> list[np.ndarray]:
    """Columns of numbers of a CSV file."""
    with (folder / file).open() as lines:
        rows = list(csv.DictReader(lines))
    return [np.array([float(row[name]) for row in rows]) for name in names]


def johnstone_silverman(k: int, mu: float, repeats: int) -> np.ndarray:
    """The total squared error of the posterior means in each repeat."""
    errors = []
    for seed in range(repeats):
        x = np.where(np.arange(1000) < k, mu, 0.0)
        y = x + np.random.default_rng(seed).normal(size=1000)
        fit = neb.fit_mixture(y, 1.0, progress_bar=False)
        errors.append(np.sum((np.asarray(fit.posterior_mean) - x) ** 2))
    return np.array(errors)


def efron_morris(folder: Path) -> float:
    """The total squared error on the arcsine scale, on which the noise has unit variance."""
    seen, truth = (
        np.sqrt(45) * np.arcsin(2 * p - 1)
        for p in columns(folder, "efron_morris_1975.csv", "y", "p")
    )
    fit = neb.fit_mixture(seen, 1.0, progress_bar=False)
    return float(np.sum((np.asarray(fit.posterior_mean) - truth) ** 2))


def timed(name: str, y: np.ndarray, sigma: np.ndarray | float) -> neb.MixtureFit:
    """Fits twice, the second time with everything compiled, and prints the results."""
    for number in ("first", "again"):
        start = time.perf_counter()
        fit = neb.fit_mixture(y, sigma, progress_bar=False)
        jax.block_until_ready(fit.posterior_mean)
        seconds = time.perf_counter() - start
        print(f"{name}, {number}: {seconds:.2f} s with the posterior means", flush=True)
    print(f"  log-likelihood {fit.log_likelihood:.4f}, gap {fit.duality_gap:.1g}", flush=True)
    return fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    if (folder := data_folder()) is None:
        print("no data sets: NEB_DATA does not name a folder, and ../shared/data does not exist")
    else:
        x, s = columns(folder, "woba_2022.csv", "x", "s")
        fit = timed("wOBA", x, s)
        print("  first posterior means", np.round(np.asarray(fit.posterior_mean)[:3], 3))
        timed("prostate", columns(folder, "prostate_z.csv", "z")[0], 1.0)
        print(f"Efron and Morris: total squared error {efron_morris(folder):.2f}", flush=True)
    rng = np.random.default_rng(0)
    x = np.where(rng.random(100_000) < 0.9, 0, rng.normal(size=100_000) * 3)
    timed("100,000 simulated", x + rng.normal(size=100_000), 1.0)
    noise = rng.uniform(0.5, 2, 100_000)
    timed("100,000, each its sigma", x + noise * rng.normal(size=100_000), noise)
    for (k, mu), reference in REFERENCE.items():
        errors = johnstone_silverman(k, mu, arguments.repeats)
        error, doubt = errors.mean(), errors.std(ddof=1) / np.sqrt(len(errors))
        above = (error - reference) / doubt
        print(
            f"k = {k}, mu = {mu}: {error:.1f} +- {doubt:.1f}; reference {reference}"
            f" ({above:+.1f} standard errors)",
            flush=True,
        )


if __name__ == "__main__":
    main()
