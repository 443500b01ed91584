"""Packages for normal means in Python on the same data: `python -m benchmarks.shrinkage`.

On ebnm's three simulations, 1,000 effects with unit noise, and on two laws with unequal errors: the
root mean squared error of the posterior means, the coverage of 90% intervals where a package has
them, and the seconds of a fit and its summaries after a first one. Their settings are the defaults;
npeb's point masses are 300 equally spaced ones that its EM may move; an error is NaN if its solver,
cvxpy's, gives up. AShrink and npeb come with the extra bench, and one that is not installed is left
out.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import numpyro_neb as neb
from benchmarks.priors import covered, ebnm_effects, five_truths
from benchmarks.timing import bench_module

Interval = tuple[np.ndarray, np.ndarray] | None
Method = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Interval]]


def ours(prior: Any) -> Method:
    def fitted(y: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, Interval]:
        fit = neb.fit_mixture(y, sigma, prior=prior, progress_bar=False)
        if prior == "npmle":  # whose intervals are too short
            return np.asarray(fit.posterior_mean), None
        low, high = map(np.asarray, fit.posterior.interval(0.9))
        return np.asarray(fit.posterior_mean), (low, high)

    return fitted


def ashrink(y: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, Interval]:
    fit = bench_module("ashrink").fit(y, sigma)
    low, high = fit.interval(0.9).T
    return fit.posterior_mean, (low, high)


def npeb(y: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, Interval]:
    atoms = np.linspace(y.min(), y.max(), 300)[:, None]
    fit = bench_module("npeb").GLMixture(prec_type="diagonal", atoms_init=atoms)
    precision = (1 / sigma**2)[:, None]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            fit.fit(y[:, None], precision)
        except bench_module("cvxpy").error.SolverError:
            return np.full(len(y), np.nan), None
    return fit.posterior_mean(y[:, None], precision)[:, 0], None


def methods() -> dict[str, Method]:
    found = {f"ours, {prior}": ours(prior) for prior in ("npmle", "scale_mixture", "unimodal")}
    if bench_module("ashrink"):
        found["AShrink"] = ashrink
    if bench_module("npeb"):
        found["npeb"] = npeb
    return found


def designs(seed: int, n: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    for name in ("normal", "point-t", "tophat"):
        rng = np.random.default_rng(seed)
        x = ebnm_effects(name, rng, n)
        yield name, x, x + rng.normal(size=n), np.ones(n)
    for name, x, sigma in five_truths(seed, n):
        if name in ("80% zeros", "skewed"):
            yield name, x, x + sigma * np.random.default_rng(10_000 + seed).normal(size=n), sigma


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--effects", type=int, default=1000)
    arguments = parser.parse_args()
    names = [name for name, *_ in designs(0, 10)]
    print(f"| method | {' | '.join(names)} | seconds |\n|{'---|' * (len(names) + 2)}")
    for label, method in methods().items():
        found: dict[str, list] = {name: [] for name in names}
        for seed in (0, *range(arguments.repeats)):  # the first one compiles
            for name, x, y, sigma in designs(seed, arguments.effects):
                start = time.perf_counter()
                mean, interval = method(y, sigma)
                seconds = time.perf_counter() - start
                cover = np.nan if interval is None else covered(*interval, x)
                found[name].append((np.sqrt(np.mean((mean - x) ** 2)), cover, seconds))
        means = [np.mean(rows[1:], axis=0) for rows in found.values()]
        row = " | ".join(f"{error:.3f}, {cover:.3f}" for error, cover, _ in means)
        seconds = np.mean([seconds for *_, seconds in means])
        print(f"| {label} | {row.replace(', nan', '')} | {seconds:.3f} |", flush=True)


if __name__ == "__main__":
    main()
