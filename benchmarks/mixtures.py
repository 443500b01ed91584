"""The speed of `MixtureEnergy` against a plain matrix product: `python -m benchmarks.mixtures`.

60,000 locations in 784 dimensions, the size of MNIST's training set. The energy of n points needs
one product of (60000, 784) with (784, n), their scores need two.
"""

import argparse
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import numpyro_neb as neb


def seconds(fn: Callable, *args, repeats: int) -> float:
    """The median time of a compiled call."""
    jax.block_until_ready(fn(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--locations", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=784)
    parser.add_argument("--points", type=int, nargs="*", default=[128, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    locs = jnp.asarray(rng.random((arguments.locations, arguments.dim), np.float32))
    energy = neb.MixtureEnergy(locs, 0.3)
    product = jax.jit(lambda a, b: a @ b.T)
    forward = eqx.filter_jit(lambda energy, y: jax.vmap(energy)(y))
    score = eqx.filter_jit(lambda energy, y: jax.vmap(energy.score)(y))
    for n in arguments.points:
        y = locs[:n] + 0.3 * jnp.asarray(rng.normal(size=(n, arguments.dim)).astype(np.float32))
        work = 2e-9 * arguments.locations * arguments.dim * n
        plain = work / seconds(product, locs, y, repeats=arguments.repeats)
        rates = {
            "energy": work / seconds(forward, energy, y, repeats=arguments.repeats),
            "score": 2 * work / seconds(score, energy, y, repeats=arguments.repeats),
        }
        print(f"{n} points: a plain matrix product {plain:.0f} GFLOP/s", flush=True)
        for name, rate in rates.items():
            print(f"  {name} {rate:.0f} GFLOP/s, {rate / plain:.2f} of it", flush=True)


if __name__ == "__main__":
    main()
