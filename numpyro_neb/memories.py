"""NEBULA: the energy as an associative memory, whose memories are the attractors of its flow."""

from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from numpyro_neb._internal.batching import in_chunks
from numpyro_neb._internal.checks import (
    check_choice,
    check_counts,
    check_positive,
    finite_on_host,
    require,
)
from numpyro_neb._internal.convolutions import for_compiled_loops
from numpyro_neb._internal.events import as_events, check_rows
from numpyro_neb.empirical_bayes.components import posterior_components
from numpyro_neb.energies.base import AbstractEnergy, AbstractScoreField, check_energy

Cues = Float[Array, "..."] | Float[np.ndarray, "..."]


class Memories(NamedTuple):
    """What `recall` finds for each cue; `*batch` are the cues' leading dimensions.

    Attributes:
        attractors: Where the flow comes to rest, of shape (*batch, *event_shape).
        energies: phi there, of shape (*batch); only differences have a meaning. NaN for a
            `ScoreField`.
        converged: Whether it came to rest, of shape (*batch).
        stable: Whether it is a memory, of shape (*batch): at rest, with the energy rising in every
            direction: a lower bound of the smallest curvature is above the tolerance. A saddle or
            a valley with a flat bottom is not, nor is a point where 100 products of the Hessian
            leave that open.
        num_steps: Steps that the solver took, of shape (*batch).
        times: The time that it took, in units of sigma^2, of shape (*batch).
        curvatures: The smallest eigenvalue of the energy's Hessian in units of 1/sigma^2, of shape
            (*batch), as `posterior_components` finds it: 1 - its largest variance / sigma^2, which
            is at least the true one, and `stable` allows for what its `upper` leaves open. Between
            0 and 1 at a memory of the true energy; NaN if the flow went to infinity.
    """

    attractors: Float[Array, "..."]
    energies: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    stable: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    times: Float[Array, "*batch"]
    curvatures: Float[Array, "*batch"]

    def __str__(self) -> str:
        at_rest, stable = int(np.sum(self.converged)), int(np.sum(self.stable))
        first = f"{np.size(self.stable):,} cues: {at_rest:,} at rest, {stable:,} stable"
        if not np.any(np.isfinite(self.curvatures)):
            return first
        lines = {"energies": self.energies, "smallest curvatures": self.curvatures}
        known = {name: a for name, a in lines.items() if np.any(np.isfinite(a))}
        ends = {name: (np.nanmin(a), np.nanmax(a)) for name, a in known.items()}
        second = ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in ends.items())
        steps, times = np.asarray(self.num_steps), np.asarray(self.times)
        third = f"steps: median {np.median(steps):.0f}, at most {steps.max():,}"
        third += f"; time: median {np.median(times):.3g} sigma^2"
        return f"{first}\n{second} (in 1/sigma^2)\n{third}"


def recall(
    energy: AbstractScoreField,
    y: Cues,
    *,
    flow: Literal["gradient", "jump"] = "gradient",
    tolerance: float = 1e-3,
    max_steps: int = 4096,
    chunk_size: int = 256,
    progress_bar: bool = True,
) -> Memories:
    r"""Follows dy/dt = -grad phi(y) from each cue to the memory in whose basin it lies.

    At a memory y* grad phi(y*) = 0 and Hess phi(y*) > 0, so that x_hat(y*) = y*: the jump leaves it
    where it is. The flow stops when g = norm(grad phi) sigma is below the tolerance. A small
    gradient alone may be that of a plateau: with the smallest curvature k there, in units of
    1/sigma^2, the distance that remains is about sigma g / k. While it is more than 0.005 sigma,
    the flow continues to a smaller gradient, up to five times; a cue whose remaining distance is
    above 0.025 sigma after that is not `converged`. Where abs(k) is below the tolerance, as in a
    valley with a flat bottom, the tolerance stands in for it.

    Args:
        energy: The energy phi.
        y: Cues, of shape (*batch, *event_shape): noisy, half erased, or anything.
        flow: "gradient", the flow itself, by Tsitouras' 5(4) method with adaptive steps (diffrax);
            or "jump", y <- x_hat(y), its Euler step of length sigma^2: it ends in attractors of
            the same kind, and often but not always in the same one.
        tolerance: The norm of the energy's gradient at rest, in units of 1/sigma, and the smallest
            curvature of a memory, in units of 1/sigma^2.
        max_steps: Maximum number of steps; a cue not at rest by then is not `converged`.
        chunk_size: How many cues to follow at once, at most. Up to 128 cues go in chunks of 16, and
            more in at least eight chunks, so that the bar moves early.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The attractors, their energies, whether they are stable, and how long it took.

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If y has the wrong shape or is not finite, flow is neither, tolerance is not
            positive, or a count is not a positive int.
        FloatingPointError: If phi is NaN or infinite at every cue.

    Reference:
        NEB section 5.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.3)
        >>> found = neb.recall(energy, jnp.array([[0.4, 0.5], [-0.2, -3.0]]))
        >>> print(found.attractors[:, 0].round(2))
        [ 1. -1.]
        >>> found.stable
        Array([ True,  True], dtype=bool)
    """
    flat, batch = _flat(energy, y)
    max_steps, chunk_size = check_counts(max_steps=max_steps, chunk_size=chunk_size)
    tolerance = check_positive("tolerance", tolerance)
    check_choice("flow", flow, tuple(_FLOWS))
    run = partial(_FLOWS[flow], energy, max_steps=max_steps)
    chunk_size = _share(len(flat), chunk_size)

    def settle(start, tolerances):
        found: Any = in_chunks(run, (start, tolerances), chunk_size, progress_bar)
        return _Settled(*found, *_curvatures(energy, found[0], progress_bar))

    found = settle(flat, jnp.full(len(flat), tolerance, flat.dtype))
    _check_energies(energy, flat, found.energies)
    converged = going = found.slopes < tolerance
    for _ in range(_ROUNDS):
        scales = jnp.maximum(jnp.abs(found.curvatures), tolerance)
        going = going & (found.slopes > _NEAR * scales)
        if not isinstance(going, Tracer) and not np.any(going):
            break
        targets = jnp.where(going, jnp.minimum(_NEAR * scales, found.slopes / 2), jnp.inf)
        further = settle(found.ends, targets)
        found = _chosen(going & jnp.isfinite(further.curvatures), further, found)
        going = going & (found.slopes <= targets)
    scales = jnp.maximum(jnp.abs(found.curvatures), tolerance)
    converged = converged & (found.slopes <= _REST * scales)
    stable = converged & (found.least > tolerance)
    steps = found.num_steps, found.times, found.curvatures
    out = (found.ends, found.energies, converged, stable, *steps)
    return Memories(*(a.reshape(*batch, *a.shape[1:]) for a in out))


# The remaining distance, in units of sigma, that a flow aims at, and at which it is at rest. At a
# minimum that is flatter than a parabola the distance is a few times what a gradient shows.
_NEAR, _REST = 0.005, 0.025
# How often a flow continues.
_ROUNDS = 5


class _Settled(NamedTuple):
    """Where n flows ended; slopes are norm(grad phi) sigma, `least` bounds the curvatures below."""

    ends: Float[Array, "..."]
    energies: Float[Array, " n"]
    slopes: Float[Array, " n"]
    num_steps: Int[Array, " n"]
    times: Float[Array, " n"]
    curvatures: Float[Array, " n"]
    least: Float[Array, " n"]


def _chosen(which, further, found):
    """Takes the further results where the flow continued."""

    def choose(new, old):
        return jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, further, found)._replace(
        num_steps=found.num_steps + choose(further.num_steps, 0),
        times=found.times + choose(further.times, 0),
    )


def _curvatures(energy, ends, progress_bar):
    """The smallest eigenvalue of sigma^2 times the Hessian, and a lower bound of it.

    NaN where y is not finite, or went so far that sigma is lost in rounding.
    """
    near = jnp.finfo(ends.dtype).eps * jnp.abs(ends) <= energy.sigma / 16
    near = jnp.all(near, axis=tuple(range(1, ends.ndim)))
    safe = jnp.where(near.reshape(-1, *[1] * (ends.ndim - 1)), ends, 0)
    settings = {"tolerance": 1e-2, "progress_bar": progress_bar}
    found = posterior_components(energy, safe, 1, **settings)
    largest = found.variances[:, 0], found.upper[:, 0]
    return tuple(jnp.where(near, 1 - a / energy.sigma**2, jnp.nan) for a in largest)


class FoundMemories(NamedTuple):
    """The distinct resting points that `find_memories` found, most cues first.

    Attributes:
        attractors: One for each, of shape (m, *event_shape).
        energies: phi there, of shape (m,).
        stable: Whether each is a memory, not a saddle or a flat valley, of shape (m,).
        counts: How many of the cues lie in its basin, of shape (m,).
        basins: The index of each cue's memory, or -1 if the flow did not come to rest, of shape
            (n,).
        curvatures: The smallest curvature there, of shape (m,), as in `Memories`: below 0 at a
            saddle, and about 0 on a continuous attractor, such as a ring of minima, of which each
            cue shows one point.
    """

    attractors: Float[np.ndarray, "m *event"]
    energies: Float[np.ndarray, " m"]
    stable: Bool[np.ndarray, " m"]
    counts: Int[np.ndarray, " m"]
    basins: Int[np.ndarray, " n"]
    curvatures: Float[np.ndarray, " m"]

    def __str__(self) -> str:
        lost = int(np.sum(self.basins < 0))
        flat = int(np.sum(~self.stable & (np.abs(self.curvatures) < _FLAT)))
        saddles = len(self.counts) - int(np.sum(self.stable)) - flat
        text = f"{int(np.sum(self.stable))} memories of {len(self.basins)} cues"
        text += f", {saddles} unstable resting point(s)" if saddles else ""
        text += f", {flat} point(s) in valleys with a flat bottom" if flat else ""
        text += f", {lost} cues not at rest" if lost else ""
        if not len(self.counts):
            return text
        more = ", ..." if len(self.counts) > 10 else ""
        return f"{text}; basins of {', '.join(map(str, self.counts[:10]))}{more}"


def find_memories(
    energy: AbstractEnergy,
    y: Cues,
    *,
    merge_distance: float = 0.1,
    flow: Literal["gradient", "jump"] = "gradient",
    tolerance: float = 1e-3,
    max_steps: int = 4096,
    chunk_size: int = 256,
    progress_bar: bool = True,
) -> FoundMemories:
    r"""Recalls from every cue, and groups the attractors into distinct ones.

    Two attractors count as one if they are closer than `merge_distance` * sigma, or if a chain of
    others at such distances joins them (single linkage).

    Args:
        energy: The energy phi.
        y: Cues, of shape (n, *event_shape).
        merge_distance: In units of sigma, well above the distance that `tolerance` leaves.
        flow: As in `recall`.
        tolerance: As in `recall`.
        max_steps: As in `recall`.
        chunk_size: As in `recall`.
        progress_bar: As in `recall`.

    Returns:
        The memories, the sizes of their basins among the cues, and the memory of each cue.

    Raises:
        TypeError: As `recall`.
        ValueError: As `recall`; or if y does not have shape (n, *event_shape), or merge_distance
            is not positive.

    Reference:
        NEB section 5.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0], [1.0]]), sigma=0.3)
        >>> found = neb.memories.find_memories(energy, jnp.array([[0.4], [2.0], [-0.1]]))
        >>> print(found)
        2 memories of 3 cues; basins of 2, 1
    """
    merge_distance = check_positive("merge_distance", merge_distance)
    check_energy(energy)
    check_rows("y", y, energy.event_shape)
    settings = {"flow": flow, "tolerance": tolerance, "max_steps": max_steps}
    recalled = recall(energy, y, chunk_size=chunk_size, progress_bar=progress_bar, **settings)
    found: Any = jax.tree.map(np.asarray, recalled)
    rest = np.flatnonzero(found.converged)
    labels = np.full(len(found.converged), -1)
    points = found.attractors.reshape(len(labels), int(np.prod(energy.event_shape)))[rest]
    if len(rest) > 1:
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import pdist

        tree = linkage(pdist(points), "single")
        reach = merge_distance * float(energy.sigma)
        labels[rest] = fcluster(tree, reach, "distance") - 1
    elif len(rest) == 1:
        labels[rest] = 0
    names, counts = np.unique(labels[rest], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(names), int)
    rank[order] = np.arange(len(names))
    labels[rest] = rank[np.searchsorted(names, labels[rest])]
    # The lowest of each group represents it.
    lowest = rest[np.argsort(found.energies[rest], kind="stable")]
    chosen = lowest[np.unique(labels[lowest], return_index=True)[1]]
    one_of_each = (found.attractors[chosen], found.energies[chosen], found.stable[chosen])
    return FoundMemories(*one_of_each, counts[order], labels, found.curvatures[chosen])


# A curvature that a float32 does not tell from zero, in units of 1/sigma^2.
_FLAT = 1e-3


def follow(
    energy: AbstractScoreField,
    y: Cues,
    times: Float[Array, " t"] | Float[np.ndarray, " t"],
    *,
    max_steps: int = 4096,
    chunk_size: int = 256,
    progress_bar: bool = True,
) -> Float[Array, "..."]:
    r"""The path of dy/dt = -grad phi(y) from each cue, for plots.

    Args:
        energy: The energy phi.
        y: Cues, of shape (*batch, *event_shape).
        times: The times to record, rising and not negative, in units of sigma^2: one unit is a step
            of the jump.
        max_steps: Maximum number of solver steps.
        chunk_size: As in `recall`.
        progress_bar: As in `recall`.

    Returns:
        The positions, of shape (*batch, t, *event_shape).

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If y has the wrong shape or is not finite, times are not as described, or a
            count is not a positive int.
        FloatingPointError: If a path does not reach its end.

    Reference:
        NEB section 5.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 1)), sigma=0.5)  # dy/dt = -y / sigma^2
        >>> path = neb.memories.follow(energy, jnp.ones(1), jnp.array([0.0, 1.0]))
        >>> jnp.allclose(path[:, 0], jnp.exp(jnp.array([0.0, -1.0])), atol=1e-4)
        Array(True, dtype=bool)
    """
    flat, batch = _flat(energy, y)
    max_steps, chunk_size = check_counts(max_steps=max_steps, chunk_size=chunk_size)
    times = finite_on_host("times", times)
    rising = times.ndim == 1 and len(times) > 0 and times[0] >= 0 and np.all(np.diff(times) > 0)
    require(rising, f"times must be finite, rising and not negative, got {times}")
    run = partial(_paths, energy, times=jnp.asarray(times, flat.dtype), max_steps=max_steps)
    paths: Any = in_chunks(run, (flat,), _share(len(flat), chunk_size), progress_bar)
    if not np.all(np.isfinite(paths)):
        raise FloatingPointError(
            f"a path did not reach its end in max_steps = {max_steps} steps, or became NaN or"
            f" infinite before time {times[-1]}"
        )
    return paths.reshape(*batch, *paths.shape[1:])


def _share(count, chunk_size):
    """The size of a chunk: at least eight of them, unless it would be less than 16."""
    return min(chunk_size, max(16, -(-count // 8)))


def _flow_of(energy):
    """The flow in units of sigma^2: x_hat(y) - y, without rounding at y's scale."""
    score = for_compiled_loops(energy.score)
    return lambda y: energy.sigma**2 * score(y)


def _solution(energy, y, end, tolerance, **settings):
    import diffrax

    flow = _flow_of(energy)
    # A step's error stays below a tenth of the flow's norm at rest, or at rounding level, so that
    # the attractor, not the solver's error, sets the end of the path.
    atol = 0.1 * tolerance * energy.sigma / max(1, y.size) ** 0.5
    controller = diffrax.PIDController(rtol=4 * float(jnp.finfo(y.dtype).eps), atol=atol)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda _t, y, _: flow(y)),
        diffrax.Tsit5(),
        0.0,
        end,
        0.1,
        y,
        stepsize_controller=controller,
        throw=False,
        **settings,
    )


@eqx.filter_jit
def _paths(energy, y, times, max_steps):
    import diffrax

    settings = {"saveat": diffrax.SaveAt(ts=times), "max_steps": max_steps}
    return jax.vmap(lambda y: _solution(energy, y, times[-1], 1e-3, **settings).ys)(y)


@eqx.filter_jit
def _gradient_flow(energy, y, tolerances, max_steps):
    import diffrax

    flow = _flow_of(energy)

    def one(y, tolerance):
        slope = lambda y: jnp.linalg.norm(flow(y)) / energy.sigma  # noqa: E731
        event = diffrax.Event(lambda _t, y, _, **_settings: slope(y) < tolerance)
        settings = {"event": event, "max_steps": max_steps}
        solution: Any = _solution(energy, y, jnp.inf, tolerance, **settings)
        end = solution.ys[0]
        return end, _value(energy, end), slope(end), solution.stats["num_steps"], solution.ts[0]

    return jax.vmap(one)(y, tolerances)


@eqx.filter_jit
def _jumps(energy, y, tolerances, max_steps):
    flow = _flow_of(energy)

    def one(y, tolerance):
        moving = lambda move: jnp.linalg.norm(move) >= tolerance * energy.sigma  # noqa: E731

        def jump(state):
            y, move, steps = state
            return y + move, flow(y + move), steps + 1

        goes_on = lambda state: moving(state[1]) & (state[2] < max_steps)  # noqa: E731
        end, move, steps = jax.lax.while_loop(goes_on, jump, (y, flow(y), jnp.array(0)))
        slope = jnp.linalg.norm(move) / energy.sigma
        return end, _value(energy, end), slope, steps, steps.astype(y.dtype)

    return jax.vmap(one)(y, tolerances)


_FLOWS = {"gradient": _gradient_flow, "jump": _jumps}


def _value(energy, y):
    return energy(y) if energy.has_value else jnp.full((), jnp.nan, y.dtype)


def _check_energies(energy, cues, energies):
    """Raises an error if nothing was found because the energy is not finite at any cue."""
    known = isinstance(energies, Tracer) or np.any(np.isfinite(energies))
    if known or not energy.has_value:
        return
    at_cues = np.asarray(jax.vmap(energy)(cues))
    if len(at_cues) and not np.any(np.isfinite(at_cues)):
        raise FloatingPointError(
            f"energy must be finite at the cues y, got {at_cues[0]} at all {len(at_cues)} of them"
        )


def _flat(energy, y):
    """The cues along one dimension, and the shape of their batch."""
    check_energy(energy, score=True)
    y, shape = as_events("y", y, energy), energy.event_shape
    return y.reshape(-1, *shape), y.shape[: y.ndim - len(shape)]
