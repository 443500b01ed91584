"""The walk on NumPyro models, compared with NumPyro's NUTS: `python -m benchmarks.models`.

Gradients of the potential that a chain needs after warm-up until its mean of x^2 is good: with
b^2 = (mean of x^2 - E x^2)^2 / Var x^2 at the worst coordinate in the constrained space, the median
over the chains of the running b^2 stays below 0.01 from there on. The gradients of warm-up are
shown apart. Everything has the settings that a user gets who sets nothing, but for the number of
steps between draws, 4, and the lengths. Seconds are those of all chains, without compilation.

Targets and exact moments are those of sampler comparisons in the literature (Inference Gym, and
Robnik et al.). The observations of `brownian`, `german_credit` and `item_response` are read from
the folder `targets` in the one named by the environment variable NEB_DATA, or else in
../shared/data; without them, these are left out.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from numpyro.infer import NUTS

import numpyro_neb as neb
from benchmarks.normal_means import data_folder
from benchmarks.priors import read
from benchmarks.timing import time_of
from numpyro_neb.integrators import BAOAB, GHMC, MAMS, Microcanonical

GOOD = 0.01
STEPS = 4  # of a walk between draws
INTEGRATORS = {i.__name__: i for i in (Microcanonical, BAOAB, GHMC, MAMS)}


class Target(NamedTuple):
    """A model, E x^2 and sd(x^2) of its sites, and how many thousands of gradients to spend."""

    model: Callable
    squares: dict[str, Any]
    deviations: dict[str, Any]
    thousands: int
    warmup: int


def banana() -> Target:
    """In the plane, along a parabola."""

    def model():
        x: Any = numpyro.sample("x", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(0.03 * (x**2 - 100), 1))

    return Target(model, {"x": 100, "y": 19}, {"x": 20000**0.5, "y": 4610**0.5}, 16, 8)


def rosenbrock() -> Target:
    """18 independent bent pairs, narrow across."""

    def model():
        x: Any = numpyro.sample("x", dist.Normal(1, 1).expand([18]).to_event(1))
        numpyro.sample("y", dist.Normal(x**2, 0.1**0.5).to_event(1))

    one = np.ones(18)
    deviations = {"x": 6**0.5 * one, "y": 668**0.5 * one}
    return Target(model, {"x": 2 * one, "y": 10.1 * one}, deviations, 100, 20)


def funnel() -> Target:
    """Neal's, 20 coordinates; measured after standardising."""

    def model():
        theta: Any = numpyro.sample("theta", dist.Normal(0, 3))
        x: Any = numpyro.sample("x", dist.Normal(0, jnp.exp(theta / 2)).expand([19]).to_event(1))
        numpyro.deterministic("wide", theta / 3)
        numpyro.deterministic("narrow", x * jnp.exp(-theta / 2))

    squares = {"wide": 1, "narrow": np.ones(19)}
    return Target(model, squares, {k: 2**0.5 * v for k, v in squares.items()}, 400, 20)


def brownian() -> Target:
    """A walk of 30 steps, seen with noise at 20 of them; both scales unknown."""
    rows = read("brownian_truth.csv")
    seen = {i: row["observed"] for i, row in enumerate(rows[1:-1]) if row["observed"]}
    at, y = np.array(list(seen)), np.array([float(value) for value in seen.values()])

    def model():
        step: Any = numpyro.sample("innovation_noise_scale", dist.LogNormal(0, 2))
        noise: Any = numpyro.sample("observation_noise_scale", dist.LogNormal(0, 2))
        x: Any = numpyro.sample("locs", dist.GaussianRandomWalk(step, num_steps=30))
        numpyro.sample("observed", dist.Normal(x[at], noise), obs=y)

    return Target(model, *_truth(rows), 16, 8)


def german_credit() -> Target:
    """Sparse logistic regression on 25 columns."""
    rows = read("german_credit.csv")
    x = np.array([[float(row[f"a{i}"]) for i in range(1, 25)] for row in rows])
    x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
    bad = np.array([float(row["class"] == "2") for row in rows])

    def model():
        scale: Any = numpyro.sample("global_scale", dist.Gamma(0.5, 0.5))
        local: Any = numpyro.sample("local_scales", dist.Gamma(0.5, 0.5).expand([25]).to_event(1))
        normal = dist.Normal(0, 1).expand([25]).to_event(1)
        u: Any = numpyro.sample("unscaled_weights", normal)
        numpyro.sample("bad", dist.Bernoulli(logits=x @ (u * local * scale)), obs=bad)

    return Target(model, *_truth(read("german_credit_truth.csv")), 60, 16)


def item_response() -> Target:
    """400 abilities and 100 difficulties, 30,012 answers."""
    with np.load(_folder() / "item_response.npz") as file:
        arrays = dict(file)
    student, question = np.nonzero(arrays["answers"] >= 0)
    right = arrays["answers"][student, question].astype(float)

    def model():
        mean: Any = numpyro.sample("overall", dist.Normal(0.75, 1))
        ability: Any = numpyro.sample("student", dist.Normal(0, 1).expand([400]).to_event(1))
        difficulty: Any = numpyro.sample("question", dist.Normal(0, 1).expand([100]).to_event(1))
        logits = mean + ability[student] - difficulty[question]
        numpyro.sample("right", dist.Bernoulli(logits=logits), obs=right)

    squares, deviations = {}, {}
    for name in ("overall", "student", "question"):
        mean, sd = (np.asarray(arrays[f"{name}_{what}"], float) for what in ("mean", "sd"))
        squares[name] = mean**2 + sd**2
        deviations[name] = (2 * sd**4 + 4 * mean**2 * sd**2) ** 0.5
    return Target(model, squares, deviations, 24, 8)


SIMULATED = {f.__name__: f for f in (banana, rosenbrock, funnel)}
MEASURED = {f.__name__: f for f in (brownian, german_credit, item_response)}


class Found(NamedTuple):
    """What a sampler did on a target."""

    gradients: float  # of a chain, until b^2 is good; infinite if it is not at the end
    tuning: float
    last: float  # b^2 at the end
    seconds: float  # of all chains, until b^2 is good


def measure(kernel: Any, target: Target, chains: int, num_warmup: float, gradients: float) -> Found:
    """Runs chains of a kernel for about so many gradients each, and follows their b^2."""
    num_warmup = max(1, int(num_warmup))
    nuts = isinstance(kernel, NUTS)
    squares, deviations = (_flat(truth) for truth in (target.squares, target.deviations))
    state = kernel.init(jax.random.split(jax.random.key(0), chains), num_warmup, None, (), {})
    # NUTS knows the model's constraints only now.
    constrain = jax.vmap(kernel.postprocess_fn((), {})) if nuts else (lambda draw: draw)

    def tune(state, _):
        state = kernel.sample(state, (), {})
        return state, _gradients(state)

    def draw(carry, count):
        state, mean = carry
        state = kernel.sample(state, (), {})
        draws = constrain(state.z if nuts else state.draw)
        x = jax.vmap(lambda d: _flat({name: d[name] for name in target.squares}))(draws)
        mean += (x**2 - mean) / count
        return (state, mean), (jnp.max(((mean - squares) / deviations) ** 2, 1), _gradients(state))

    (state, tuning), _ = _timed(lambda s: jax.lax.scan(tune, s, length=num_warmup), state)
    tuning = np.asarray(tuning, float).mean(1)
    num_draws = max(1, int(gradients / tuning[num_warmup // 2 :].mean()))
    counts = jnp.arange(1.0, num_draws + 1)
    start = state, jnp.zeros((chains, squares.size))
    found, seconds = _timed(lambda s: jax.lax.scan(draw, s, counts), start)
    b2, spent = (np.asarray(array, float) for array in found[1])
    curve, total = np.median(np.nan_to_num(b2, nan=np.inf), 1), np.cumsum(spent.mean(1))
    bad = np.flatnonzero(curve >= GOOD)
    first = bad[-1] + 1 if bad.size else 0
    reached = first < num_draws
    gradients = float(total[first]) if reached else np.inf
    seconds = seconds * gradients / total[-1] if reached else np.inf
    return Found(gradients, float(tuning.sum()), float(curve[-1]), seconds)


def row(name: str, sampler: str, found: Found, peer: Found | None) -> str:
    """One line of the table."""
    reached = np.isfinite(found.gradients)
    faster = ""
    if peer is not None and reached and np.isfinite(peer.seconds):
        faster = f"{peer.seconds / found.seconds:.2g}"
    shown = f"{found.gradients:,.0f}" if reached else "not reached"
    cells = (name, sampler, shown, f"{found.tuning:,.0f}", f"{found.last:.2g}")
    return f"| {' | '.join(cells)} | {time_of(found.seconds) if reached else ''} | {faster} |"


def rows(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the table."""
    for name in options.targets:
        if name in MEASURED and _folder() is None:
            print(f"{name} skipped: no folder targets in the data folder (NEB_DATA)", flush=True)
            continue
        target = (SIMULATED | MEASURED)[name]()
        gradients, warmup = (1000 * n / options.shorter for n in (target.thousands, target.warmup))
        peer = None
        if "NUTS" in options.samplers and options.nuts > 0:
            kernel, draws = NUTS(target.model), 1000 / options.shorter
            peer = measure(kernel, target, options.chains, draws, options.nuts * gradients)
            yield row(name, "NUTS", peer, None)
        for sampler in (sampler for sampler in options.samplers if sampler != "NUTS"):
            settings: Any = {"integrator": INTEGRATORS[sampler](), "num_steps": STEPS}
            kernel = neb.WalkJumpKernel(model=target.model, **settings)
            found = measure(kernel, target, options.chains, warmup / STEPS, gradients)
            yield row(name, sampler, found, peer)


def _gradients(state):
    found = getattr(state, "num_steps", None)
    return jnp.full(state.diverging.shape, STEPS) if found is None else found


def _folder() -> Any:
    folder = data_folder()
    return folder / "targets" if folder and (folder / "targets").is_dir() else None


def _flat(tree):
    return ravel_pytree(jax.tree.map(lambda a: jnp.asarray(a, float), tree))[0]


def _timed(function, argument):
    compiled = jax.jit(function).lower(argument).compile()
    start = time.perf_counter()
    return jax.block_until_ready(compiled(argument)), time.perf_counter() - start


def _truth(rows) -> tuple[dict[str, Any], dict[str, Any]]:
    """E x^2 and sd(x^2), the rows `name_0`, `name_1`, ... joined."""
    squares, deviations = {}, {}
    for entry in rows:
        stem, _, index = entry["name"].rpartition("_")
        name = stem if index.isdigit() else entry["name"]
        squares.setdefault(name, []).append(float(entry["e_x2"]))
        deviations.setdefault(name, []).append(float(entry["sd_x2"]))
    first, second = ({k: np.array(v) for k, v in d.items()} for d in (squares, deviations))
    return first, second


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    targets, samplers = [*SIMULATED, *MEASURED], ["NUTS", *INTEGRATORS]
    parser.add_argument("--targets", nargs="+", choices=targets, default=targets)
    parser.add_argument("--samplers", nargs="+", choices=samplers, default=samplers)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument(
        "--nuts", type=float, default=4, help="its gradients, as a multiple (4); 0 leaves it out"
    )
    parser.add_argument("--shorter", type=float, default=1, help="divides all lengths (1)")
    options = parser.parse_args(arguments)
    print(
        "| target | sampler | gradients | of warm-up | b^2 at the end | time | NUTS's time / it |"
    )
    print("|---|---|---|---|---|---|---|")
    for line in rows(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
