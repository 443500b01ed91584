"""Timing two things in turns in one run, and the rows that compare them."""

import contextlib
import dataclasses
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Seconds that a number of steps take, with or without compilation: a slope is the same.
Run = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        seconds: How far apart the two lengths of a run are, in seconds of the peer.
        repeats: Repeats at the small sizes; at the large one there are at most 3.
        num_train: Steps of denoising of the digits energies; a sixth as many updates follow.
        num_steps: Steps of each of the 4 walks of the digits energies; the peers' follow from it.
        num_paper: Steps of each of the 4 walks of the paper's kind.
        quick: Whether the run is too short for meaningful figures.
    """

    seconds: float = 2.0
    repeats: int = 7
    num_train: int = 6000
    num_steps: int = 200_000
    num_paper: int = 2_000_000
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure and what it should be: `target` is as in "<= 1.05", or empty."""

    what: str
    ours: str
    peer: str
    ratio: float
    target: str = ""
    spread: str = ""

    def show(self, settings: Settings) -> None:
        """Prints the row."""
        verdict = "no target"
        if self.target:
            sign, bound = self.target.split()
            met = self.ratio <= float(bound) if sign == "<=" else self.ratio >= float(bound)
            verdict = "yes" if met else "no"
        verdict = "not meaningful" if settings.quick else verdict
        ratio = f"{self.ratio:.3g}" + (f" ({self.spread})" if self.spread else "")
        cells = (self.what, self.ours, self.peer, ratio, self.target, verdict)
        print("| " + " | ".join(cells) + " |", flush=True)


def time_of(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if abs(seconds) * scale >= 1 or unit == "us":
            return f"{seconds * scale:.3g} {unit}"
    raise AssertionError


def bench_module(name: str) -> Any:
    """The peer of that name; if it is not installed, prints a sentence and returns None."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        print(f"{name} skipped: pip install 'numpyro-neb[bench]'", flush=True)
        return None


def loop_run(step: Callable, state: Any) -> Run:
    """Runs of a loop of `step`, compiled once for all lengths."""
    loop = jax.jit(lambda state, n: jax.lax.fori_loop(0, n, lambda _, state: step(state), state))
    jax.block_until_ready(loop(state, 1))

    def run(n: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(loop(state, n))
        return time.perf_counter() - begin

    return run


def walk_run(kernel: Any, chains: int) -> Run:
    """Runs of all chains of a kernel on an energy."""
    keys = jax.random.split(jax.random.key(0), chains)
    return loop_run(kernel.sample, kernel.init(keys, 0, None))


def slope(run: Run, short: int, long: int) -> float:
    """Seconds of one further step."""
    return (run(long) - run(short)) / (long - short)


def lengths(run: Run, seconds: float, multiple: int = 1) -> tuple[int, int]:
    """Two lengths that are `seconds` of `run` apart, in multiples of `multiple`."""
    short, longer = multiple, 2 * multiple
    fixed = min(run(short), run(short))
    while (extra := run(longer) - fixed) < seconds / 4:
        longer *= int(np.clip(seconds / max(extra, 1e-6) / 4, 2, 16))
    per_step = extra / (longer - short)
    return short, short + multiple * max(1, round(seconds / per_step / multiple))


def pairs(
    ours: Run, peer: Run, settings: Settings, repeats: int = 7, multiple: int = 1
) -> list[tuple[float, float]]:
    """Seconds of a step of ours and of the peer's, measured in turns."""
    short, long = lengths(peer, settings.seconds, multiple)
    found = []
    for i in range(min(repeats, settings.repeats)):
        order = (ours, peer) if i % 2 == 0 else (peer, ours)
        seconds = {side: slope(side, short, long) for side in order}
        found.append((seconds[ours], seconds[peer]))
    return found


def compared(what: str, found: list[tuple[float, float]], target: str, *, speed=False) -> Row:
    """The row of a comparison: ours / peer in seconds, or peer / ours if `speed`."""
    ratios = sorted((peer / ours) if speed else (ours / peer) for ours, peer in found)
    ours, peer = (time_of(statistics.median(side)) for side in zip(*found, strict=True))
    spread = f"{ratios[0]:.3g} to {ratios[-1]:.3g}"
    return Row(what, ours, peer, statistics.median(ratios), target, spread)


@contextlib.contextmanager
def progress_bar() -> Iterator[None]:
    """Makes NumPyro show its bar, which it doesn't under CI, and discards the output."""
    hidden = {name: os.environ.pop(name, None) for name in ("CI", "PYTEST_XDIST_WORKER")}
    try:
        with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
            yield
    finally:
        os.environ.update({name: value for name, value in hidden.items() if value is not None})


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Collects the seconds of each program that XLA compiles meanwhile."""
    found = []

    def listen(event, duration_secs, **_kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
