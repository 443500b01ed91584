"""The cost of `fit` relative to the bare compiled update: `python -m benchmarks.training`.

Both do the same arithmetic: a DEEN step of a residual 3 x 256 MLP on 8 x 8 images, batch 128. The
bare loop holds one batch, draws no indices and records nothing.

`python -m benchmarks.training likelihood` times an update of `MaximumLikelihood` in `fit` against
num_steps + 2 bare gradients of phi at as many points as there are chains, in a compiled loop like
the walk's: for the MLP, and for a U-Net on 28 x 28 images.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

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
    """Seconds for a number of bare updates on one batch, without compilation."""
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


def gradients_seconds(energy: neb.AbstractEnergy, number: int, count: int) -> float:
    """Seconds for `count` gradients of phi at `number` points, without compilation.

    In a compiled loop like the walk's: convolutions are matrix products there.
    """
    y = jax.random.normal(jax.random.key(0), (number, *energy.event_shape))
    arrays, static = eqx.partition(energy, eqx.is_array)

    @functools.partial(jax.jit, static_argnums=2)
    def gradients(arrays, y, count):
        target = neb.integrators.Target(eqx.combine(arrays, static), energy.sigma)
        # A small step, so that each iteration computes a new gradient.
        step = lambda _, y: y - 1e-6 * jax.vmap(target)(y)[1]  # noqa: E731
        return jax.lax.fori_loop(0, count, step, y)

    jax.block_until_ready(gradients(arrays, y, count))
    start = time.perf_counter()
    jax.block_until_ready(gradients(arrays, y, count))
    return time.perf_counter() - start


def updates_seconds(energy: neb.AbstractEnergy, objective, count: int) -> float:
    """Seconds for `count` further updates of maximum likelihood: the slope of two lengths."""
    data = np.random.default_rng(0).random((1500, *energy.event_shape)).astype(np.float32)
    settings: Any = {"key": jax.random.key(0), "batch_size": objective.num_chains}

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        neb.fit(energy, data, num_steps=steps, objective=objective, **settings)
        return time.perf_counter() - start

    short = max(2, count // 5)
    return seconds(count + short) - seconds(short)


def likelihood(repeats: int) -> None:
    """An update of maximum likelihood over num_steps + 2 bare gradients in a loop, in turns."""
    image = (28, 28)
    unet = neb.networks.UNet(image, (24, 48), patch_size=2, key=jax.random.key(0))
    cases = {
        "3 x 256 MLP, 128 chains, 20 steps": (_energy(), neb.MaximumLikelihood(), 200),
        "U-Net (24, 48), 64 chains, 10 steps": (
            neb.ResidualEnergy(unet, 0.3, image),
            neb.MaximumLikelihood(num_chains=64, num_steps=10),
            10,
        ),
    }
    print("| energy and chains | update | gradients | ratio |")
    print("|---|---|---|---|")
    for name, (energy, objective, count) in cases.items():
        ratios, update, bare = [], 0.0, 0.0
        for _ in range(repeats):
            number = objective.num_steps + 2
            bare = gradients_seconds(energy, objective.num_chains, number * count) / count
            update = updates_seconds(energy, objective, count) / count
            ratios.append(update / bare)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        median = statistics.median(ratios)
        print(
            f"| {name} | {1e3 * update:.1f} ms | {1e3 * bare:.1f} ms | {median:.2f} ({spread}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stage", nargs="?", choices=("denoising", "likelihood"), default="denoising"
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.stage == "likelihood":
        likelihood(arguments.repeats)
        return
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
