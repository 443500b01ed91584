"""What `fit` costs over the bare compiled update: `python -m benchmarks.training`.

Both do the same arithmetic: a DEEN step of a residual 3 x 256 MLP on 8 x 8 images, batch 128. The
bare loop holds one batch, draws no indices and records nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import numpyro_neb as neb
from numpyro_neb.energies import trainable

_BATCH = 128


def _energy() -> neb.ResidualEnergy:
    network = neb.networks.MLP((8, 8), width_size=256, depth=3, key=jax.random.key(0))
    return neb.ResidualEnergy(network, 0.3, (8, 8))


def bare_run(energy: neb.AbstractEnergy, batch: jax.Array) -> Callable[[int], float]:
    """Seconds that so many bare updates on one batch take, compilation apart."""
    optimizer = optax.adam(1e-3)
    params, rest = eqx.partition(energy, trainable(energy))

    @jax.jit
    def step(params, opt_state, batch, key):
        loss = lambda params: neb.denoising_loss(eqx.combine(params, rest), batch, key)  # noqa: E731
        grads = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def run(num_steps: int) -> float:
        keys = list(jax.random.split(jax.random.key(0), num_steps))
        state = jax.block_until_ready(step(params, optimizer.init(params), batch, keys[0]))
        start = time.perf_counter()
        for key in keys:
            state = step(*state, batch, key)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return run


def fit_seconds(data: np.ndarray, num_steps: int) -> float:
    """Seconds for `num_steps` further steps of `fit`, bar and all: the slope of two lengths."""

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        neb.fit(_energy(), data, key=jax.random.key(0), num_steps=steps, batch_size=_BATCH)
        return time.perf_counter() - start

    return seconds(num_steps + 200) - seconds(200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    data = np.random.default_rng(0).random((1500, 8, 8)).astype(np.float32)
    ratios = []
    run = bare_run(_energy(), jnp.asarray(data[:_BATCH]))
    for _ in range(arguments.repeats):
        bare, fitted = run(arguments.steps), fit_seconds(data, arguments.steps)
        ratios.append(fitted / bare)
        print(
            f"bare update {1e3 * bare / arguments.steps:.3f} ms,"
            f" a step of fit {1e3 * fitted / arguments.steps:.3f} ms, ratio {ratios[-1]:.3f}"
        )
    print(f"median ratio {statistics.median(ratios):.3f} on {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main()
