"""The cost of a walk compared with its peers: `python -m benchmarks.walk [section ...]`.

Every section times both sides in one run, in turns, and prints one row of a markdown table per
figure: the median, and the lowest to the highest ratio of the repeats. The cost of a step is the
slope between two run lengths, so that compilation and fixed costs cancel. `ess`, `langevin` and
`bias` are in `benchmarks.walk_ess`. `--quick` runs everything briefly, to check that it runs.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC, NUTS

import numpyro_neb as neb
from benchmarks.timing import (
    Row,
    Run,
    Settings,
    bench_module,
    compared,
    compilations,
    pairs,
    progress_bar,
)
from benchmarks.walk_ess import bias_section, ess_section, langevin_section

Size = tuple[int, int, int]

# (d, width, chains), and the thinning, which keeps the draws small.
SMALL, MEDIUM, WIDE, LARGE = (2, 64, 1), (64, 256, 16), (784, 512, 64), (784, 1024, 256)
THINNING = {SMALL: 100, MEDIUM: 100, LARGE: 10}
DEPTH = 3


def residual_energy(size: Size) -> neb.ResidualEnergy:
    """An untrained energy of that size."""
    d, width, _ = size
    network = neb.networks.MLP((d,), width_size=width, depth=DEPTH, key=jax.random.key(0))
    return neb.ResidualEnergy(network, 0.5, (d,))


def mcmc_run(
    energy: neb.AbstractEnergy, chains: int, thinning: int, *, bar: bool = False, num_steps: int = 1
) -> Run:
    """Runs of `MCMC(WalkJumpKernel)`; a step is a draw, `num_steps` steps of the walk.

    XLA's compilation is left out: it varies more between runs than what is measured.
    """

    def run(n: int) -> float:
        mcmc = MCMC(
            neb.WalkJumpKernel(energy, num_steps=num_steps),
            num_warmup=0,
            num_samples=n,
            thinning=thinning,
            num_chains=chains,
            chain_method="vectorized",
            progress_bar=bar,
        )
        start = time.perf_counter()
        with compilations() as compiling:
            mcmc.run(jax.random.key(0))
            jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        return time.perf_counter() - start - sum(compiling)

    return run


def scan_run(
    step: Callable,
    carry: Any,
    inputs: Callable[[int], Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Runs of a compiled `jax.lax.scan` of `step`, without compilation.

    With `inputs`, which are made beforehand for n steps, each is the second argument of `step`.
    """

    @functools.cache
    def compiled(n: int):
        body = lambda c, x: (step(c) if inputs is None else step(c, x), None)  # noqa: E731
        loop = lambda carry, xs: jax.lax.scan(body, carry, xs, length=n)[0]  # noqa: E731
        given = carry, None if inputs is None else inputs(n)
        return jax.jit(loop).lower(*given).compile(), given

    def run(n: int) -> float:
        loop, given = compiled(n)
        start = clock()
        jax.block_until_ready(loop(*given))
        return clock() - start

    return run


def bare_run(energy: neb.AbstractEnergy, chains: int, impl: str = "threefry2x32") -> Run:
    """The integrator's step in a bare scan: it splits keys like the kernel, and records nothing."""
    step, states, key = _bare(energy, chains, impl)

    def one(carry):
        state, key = carry
        key, key_step = jax.random.split(key)
        return step(state, key_step), key

    if chains == 1:
        return scan_run(one, (states, key))
    return scan_run(jax.vmap(one), (states, jax.random.split(key, chains)))


def split_beforehand_run(energy: neb.AbstractEnergy, chains: int) -> Run:
    """The integrator's step in a bare scan over keys split beforehand, in CPU time."""
    step, states, key = _bare(energy, chains)
    shape = () if chains == 1 else (chains,)
    keys = lambda n: jax.random.split(key, (n, *shape))  # noqa: E731
    return scan_run(jax.vmap(step) if shape else step, states, keys, time.process_time)


def _bare(energy, chains, impl="threefry2x32"):
    integrator = neb.integrators.BAOAB()
    target = neb.integrators.Target(energy, energy.sigma)
    step = lambda state, key: integrator.step(target, state, key)[0]  # noqa: E731
    key = jax.random.key(0, impl=impl)
    position = energy.sigma * jax.random.normal(key, (chains, *energy.event_shape))
    if chains == 1:
        return step, integrator.init(target, position[0], key), key
    keys = jax.random.split(key, chains)
    states = jax.vmap(lambda y, key: integrator.init(target, y, key))(position, keys)
    return step, states, key


def kernel_run(energy: neb.AbstractEnergy, chains: int) -> Run:
    """`WalkJumpKernel.sample` in a scan, a draw for each step, in CPU time."""
    kernel, key = neb.WalkJumpKernel(energy), jax.random.key(0)
    state = kernel.init(key if chains == 1 else jax.random.split(key, chains), 0, None)
    return scan_run(kernel.sample, state, clock=time.process_time)


def kernel_section(settings: Settings) -> Iterator[Row]:
    """A step of the kernel, without NumPyro's loop, compared with one over keys split beforehand.

    In CPU time, which other programs on the machine hardly change.
    """
    for size, target in ((SMALL, "<= 1.2"), (MEDIUM, "<= 1.05"), (WIDE, "<= 1.05")):
        energy, chains = residual_energy(size), size[2]
        ours, peer = kernel_run(energy, chains), split_beforehand_run(energy, chains)
        found = pairs(ours, peer, settings)
        yield compared(f"a step of the kernel / of a scan over split keys, {size}", found, target)


def step_section(settings: Settings) -> Iterator[Row]:
    """A further step of `MCMC` compared with one of the bare scan."""
    for size, target in ((SMALL, "<= 1.3"), (MEDIUM, "<= 1.05"), (LARGE, "<= 1.05")):
        energy, chains = residual_energy(size), size[2]
        ours, peer = mcmc_run(energy, chains, THINNING[size]), bare_run(energy, chains)
        repeats = 3 if size == LARGE else 7
        found = pairs(ours, peer, settings, repeats, THINNING[size])
        yield compared(f"a step of MCMC / of a bare scan, {size}", found, target)


def fixed_section(settings: Settings) -> Iterator[Row]:
    """A second `run` of one MCMC, compared with NUTS, and what the progress bar compiles in it."""
    energy = residual_energy(MEDIUM)
    # A tree of depth 1, and two draws: mostly compilation, hardly a step.
    nuts = NUTS(potential_fn=lambda y: energy(y), max_tree_depth=1)
    kernels = {"ours": (neb.WalkJumpKernel(energy), {}), "nuts": (nuts, {"init_params": _START})}
    options: dict[str, Any] = {"num_warmup": 1, "num_samples": 1, "progress_bar": False}
    runs = {}
    for name, (kernel, arguments) in kernels.items():
        mcmc = MCMC(kernel, **options)
        mcmc.run(jax.random.key(0), **arguments)
        runs[name] = functools.partial(_timed_run, mcmc, arguments)
    found = [(runs["ours"](i), runs["nuts"](i)) for i in range(1, settings.repeats + 1)]
    yield compared("a second run of MCMC, bar off / of NUTS", found, "<= 1")
    mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=10, num_samples=50)
    with progress_bar():
        mcmc.run(jax.random.key(0))
        with compilations() as count:
            mcmc.run(jax.random.key(1))
    what = "XLA compilations in a second run, bar on"
    yield Row(what, str(len(count)), "", float(len(count)), "<= 0")


_START = np.zeros(MEDIUM[0], np.float32)


def _timed_run(mcmc, arguments, seed):
    start = time.perf_counter()
    mcmc.run(jax.random.key(seed), **arguments)
    jax.block_until_ready(mcmc.get_samples())
    return time.perf_counter() - start


def bar_section(settings: Settings) -> Iterator[Row]:
    """A further draw of 10 steps with the progress bar compared with one without."""
    energy, chains = residual_energy(MEDIUM), MEDIUM[2]
    off, on = (mcmc_run(energy, chains, 10, bar=bar, num_steps=10) for bar in (False, True))
    with progress_bar():
        found = pairs(on, off, settings, multiple=10)
    yield compared(f"a draw of 10 steps, bar on / off, {MEDIUM}", found, "<= 1.1")


def torch_run(torch: Any, energy: neb.ResidualEnergy, chains: int) -> Run:
    """BAOAB in eager PyTorch on the same weights, checked to have the same gradient."""
    layers = energy.network.layers.layers  # pyright: ignore[reportFunctionMemberAccess]
    weights = [
        (torch.tensor(np.asarray(x.weight)), torch.tensor(np.asarray(x.bias))) for x in layers
    ]
    sigma, (d,) = float(energy.sigma), energy.event_shape
    half, decay = sigma / 2, float(np.exp(-0.2))

    def gradient(y):
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            hidden = y
            for weight, bias in weights[:-1]:
                hidden = torch.nn.functional.silu(torch.nn.functional.linear(hidden, weight, bias))
            residual = y - torch.nn.functional.linear(hidden, *weights[-1])
            return torch.autograd.grad((residual**2).sum() / (2 * sigma**2), y)[0]

    @torch.no_grad()
    def run(n: int) -> float:
        y, v = sigma * torch.randn(chains, d), torch.randn(chains, d)
        grad = gradient(y)
        start = time.perf_counter()
        for _ in range(n):
            v = v - half * grad
            y = y + half * v
            v = decay * v + (1 - decay**2) ** 0.5 * torch.randn_like(v)
            y = y + half * v
            grad = gradient(y)
            v = v - half * grad
        return time.perf_counter() - start

    y = np.random.default_rng(0).normal(size=(chains, d)).astype(np.float32)
    ours = jax.vmap(jax.grad(energy))(jnp.asarray(y))
    np.testing.assert_allclose(gradient(torch.tensor(y)).numpy(), ours, rtol=1e-3, atol=1e-3)
    return run


def fastest_threads(torch: Any, run: Run) -> int:
    """Sets the number of threads, 1 or all cores, at which `run` is faster."""
    seconds = {}
    for threads in {os.cpu_count() or 1, 1}:
        torch.set_num_threads(threads)
        seconds[threads] = sum(run(5) for _ in range(3))
    best = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(best)
    return best


def torch_section(settings: Settings) -> Iterator[Row]:
    """A step of `MCMC` compared with one of BAOAB in PyTorch."""
    torch = bench_module("torch")
    if torch is None:
        return
    for size, target in ((MEDIUM, ">= 2"), (LARGE, ">= 1")):
        energy, chains = residual_energy(size), size[2]
        ours = mcmc_run(energy, chains, THINNING[size])
        repeats = 3 if size == LARGE else 7
        peer = torch_run(torch, energy, chains)
        threads = fastest_threads(torch, peer)
        found = pairs(ours, peer, settings, repeats, THINNING[size])
        what = f"speed, PyTorch's step on {threads} threads / ours, {size}"
        yield compared(what, found, target, speed=True)


def flops_section(settings: Settings) -> Iterator[Row]:
    """The floating-point rate of a large step compared with a matrix product's."""
    d, width, chains = LARGE
    weight = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (width, width)))[0]
    start = jax.random.normal(jax.random.key(1), (chains, width))
    product = scan_run(lambda x: x @ weight, start)
    # 2 m n k per product; a gradient has the forward products and as many backward ones.
    of_product = 2 * chains * width**2
    of_step = 2 * 2 * chains * (2 * d * width + (DEPTH - 1) * width**2)
    found = pairs(mcmc_run(residual_energy(LARGE), chains, 10), product, settings, 5, 10)
    rates = [(of_step / ours, of_product / peer) for ours, peer in found]
    ratios = sorted(ours / peer for ours, peer in rates)
    ours, peer = (
        f"{statistics.median(side) / 1e9:.4g} Gflop/s" for side in zip(*rates, strict=True)
    )
    spread = f"{ratios[0]:.3g} to {ratios[-1]:.3g}"
    what = f"rate of a step's products, {LARGE} / of ({chains}, {width}) @ ({width}, {width})"
    yield Row(what, ours, peer, statistics.median(ratios), ">= 0.8", spread)


def conv_section(settings: Settings) -> Iterator[Row]:
    """A step of `MCMC` on a convolutional energy compared with its gradient outside any loop."""
    chains, keys = 64, jax.random.split(jax.random.key(0), 3)
    layers: list[Any] = []
    for i, (channels_in, channels_out) in enumerate(((1, 32), (32, 32), (32, 1))):
        layers += [eqx.nn.Lambda(jax.nn.softplus)] if i else []
        layers += [eqx.nn.Conv2d(channels_in, channels_out, 3, padding=1, key=keys[i])]
    shape = (1, 28, 28)
    network = eqx.nn.Sequential(layers)
    energy = neb.ResidualEnergy(lambda y: network(y), 0.5, shape)
    gradient = jax.jit(jax.vmap(jax.value_and_grad(energy)))
    y = 0.5 * jax.random.normal(jax.random.key(1), (chains, *shape))
    jax.block_until_ready(gradient(y))

    def peer(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            jax.block_until_ready(gradient(y))
        return time.perf_counter() - start

    found = pairs(mcmc_run(energy, chains, 1), peer, settings, 3)
    what = f"a step of MCMC, convolutions, {chains} chains / the gradient outside a loop"
    yield compared(what, found, "<= 1.5")


def random_section(settings: Settings) -> Iterator[Row]:
    """The share of a bare step that goes to random numbers."""

    def noise_run(d: int, chains: int, impl: str) -> Run:
        def one(carry):
            total, key = carry
            key, key_step = jax.random.split(key)
            return total + jax.random.normal(key_step, (d,)), key

        key = jax.random.key(0, impl=impl)
        if chains == 1:
            return scan_run(one, (jnp.zeros(d), key))
        return scan_run(jax.vmap(one), (jnp.zeros((chains, d)), jax.random.split(key, chains)))

    for size in (SMALL,) if settings.quick else (SMALL, MEDIUM):
        d, _, chains = size
        for impl in ("threefry2x32", "rbg"):
            step = bare_run(residual_energy(size), chains, impl)
            found = pairs(noise_run(d, chains, impl), step, settings, 5)
            yield compared(f"share of random numbers, {impl}, {size}", found, "")


SECTIONS: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "step": step_section,
    "kernel": kernel_section,
    "fixed": fixed_section,
    "bar": bar_section,
    "ess": ess_section,
    "langevin": langevin_section,
    "bias": bias_section,
    "torch": torch_section,
    "flops": flops_section,
    "conv": conv_section,
    "random": random_section,
}


def _print_head(settings: Settings) -> None:
    packages = ("numpyro-neb", "jax", "numpyro", "equinox", "blackjax", "torch")
    versions = []
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    device = f"{jax.devices()[0].device_kind}; {processor}, {os.cpu_count()} cores"
    print(f"{device}; {', '.join(versions)}")
    print(f"{settings}; sizes are (d, width, chains)\n")
    print("| what | ours | peer | ratio | target | met |\n|---|---|---|---|---|---|", flush=True)


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="briefly: figures without meaning")
    for name in ("seconds", "repeats", "num_train", "num_steps", "num_paper"):
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), help=f"{default} by default")
    arguments = vars(parser.parse_args())
    sections = arguments.pop("sections")
    brief = {"seconds": 0.1, "repeats": 1, "num_train": 100, "num_steps": 4000, "num_paper": 10_000}
    chosen = {name: value for name, value in arguments.items() if value is not None}
    settings = Settings(**((brief if arguments["quick"] else {}) | chosen))
    _print_head(settings)
    for name in SECTIONS if "all" in sections else sections:
        start = time.perf_counter()
        for row in SECTIONS[name](settings):
            row.show(settings)
        print(f"| ({name}: {time.perf_counter() - start:.0f} s) | | | | | |", flush=True)


if __name__ == "__main__":
    main()
