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
    check_count,
    check_counts,
    check_positive,
    finite_on_host,
    require,
)
from numpyro_neb._internal.convolutions import for_compiled_loops
from numpyro_neb._internal.events import as_events, check_rows
from numpyro_neb.empirical_bayes.components import posterior_components
from numpyro_neb.energies.base import AbstractEnergy, check_energy

Cues = Float[Array, "..."] | Float[np.ndarray, "..."]


class Memories(NamedTuple):
    """What `recall` finds for each cue; `*batch` are the cues' leading dimensions.

    Attributes:
        attractors: Where the flow comes to rest, of shape (*batch, *event_shape).
        energies: phi there, of shape (*batch); only differences have a meaning.
        converged: Whether it came to rest, of shape (*batch).
        stable: Whether it is a memory, of shape (*batch): at rest, with the energy rising in every
            direction (the smallest curvature is above the tolerance). A saddle or a valley with a
            flat bottom is not.
        num_steps: Steps that the solver took, of shape (*batch).
        times: The time that it took, in units of sigma^2, of shape (*batch).
        curvatures: The smallest eigenvalue of the energy's Hessian in units of 1/sigma^2, of shape
            (*batch): between 0 and 1 at a memory of the true energy; NaN if the flow became NaN or
            infinite.
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
        return f"{np.size(self.stable):,} cues: {at_rest:,} at rest, {stable:,} stable"


def recall(
    energy: AbstractEnergy,
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
    where it is. The flow stops when norm(grad phi) < tolerance / sigma; if that is on a saddle, or
    the smallest curvature k, in units of 1/sigma^2, is below 40 tolerance, it continues to a
    gradient 40 times smaller, so that the remaining distance, tolerance sigma / k, is small too.

    Args:
        energy: The energy phi.
        y: Cues, of shape (*batch, *event_shape): noisy, half erased, or anything.
        flow: "gradient", the flow itself, by Tsitouras' 5(4) method with adaptive steps (diffrax);
            or "jump", y <- x_hat(y), its Euler step of length sigma^2: it ends in attractors of
            the same kind, and often but not always in the same one.
        tolerance: The norm of the energy's gradient at rest, in units of 1/sigma, and the smallest
            curvature of a memory, in units of 1/sigma^2.
        max_steps: Maximum number of steps; a cue not at rest by then is not `converged`.
        chunk_size: How many cues to follow at once.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The attractors, their energies, whether they are stable, and how long it took.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, or y does not hold floats.
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

    def settle(start, tolerances):
        found: Any = in_chunks(run, (start, tolerances), chunk_size, progress_bar)
        return _Settled(*found, curvatures=_curvatures(energy, found[0], progress_bar))

    tolerances = jnp.full(len(flat), tolerance, flat.dtype)
    found = settle(flat, tolerances)
    _check_energies(energy, flat, found.energies)
    unsure = found.converged & (found.curvatures < _FINER * tolerance)
    if isinstance(unsure, Tracer) or np.any(unsure):
        further = settle(found.ends, jnp.where(unsure, tolerances / _FINER, tolerances))
        found = _chosen(unsure & jnp.isfinite(further.curvatures), further, found)
    stable = found.converged & (found.curvatures > tolerance)
    out = (*found[:3], stable, *found[3:])
    return Memories(*(a.reshape(*batch, *a.shape[1:]) for a in out))


class _Settled(NamedTuple):
    ends: Float[Array, "..."]
    energies: Float[Array, " n"]
    converged: Bool[Array, " n"]
    num_steps: Int[Array, " n"]
    times: Float[Array, " n"]
    curvatures: Float[Array, " n"]


def _chosen(which, further, found):
    """Takes the further results where the flow continued; keeps the first `converged`."""

    def choose(new, old):
        return jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, further, found)._replace(
        converged=found.converged,
        num_steps=found.num_steps + choose(further.num_steps, 0),
        times=found.times + choose(further.times, 0),
    )


# By this factor the tolerance shrinks in flat valleys and at saddles.
_FINER = 40


def _curvatures(energy, ends, progress_bar):
    """The smallest eigenvalue of sigma^2 times the Hessian, NaN where y is not finite."""
    finite = jnp.all(jnp.isfinite(ends), axis=tuple(range(1, ends.ndim)))
    safe = jnp.where(finite.reshape(-1, *[1] * (ends.ndim - 1)), ends, 0)
    found = posterior_components(energy, safe, 1, progress_bar=progress_bar)
    # A Ritz value is too small by about its residual's square.
    largest = found.variances[:, 0] * (1 + found.residuals[:, 0] ** 2)
    return jnp.where(finite, 1 - largest / energy.sigma**2, jnp.nan)


class FoundMemories(NamedTuple):
    """The distinct resting points that `find_memories` found, most cues first.

    Attributes:
        attractors: One for each, of shape (m, *event_shape).
        energies: phi there, of shape (m,).
        stable: Whether each is a memory, not a saddle or a flat valley, of shape (m,).
        counts: How many of the cues lie in its basin, of shape (m,).
        basins: The index of each cue's memory, or -1 if the flow did not come to rest, of shape
            (n,).
    """

    attractors: Float[np.ndarray, "m *event"]
    energies: Float[np.ndarray, " m"]
    stable: Bool[np.ndarray, " m"]
    counts: Int[np.ndarray, " m"]
    basins: Int[np.ndarray, " n"]

    def __str__(self) -> str:
        lost = int(np.sum(self.basins < 0))
        saddles = len(self.counts) - int(np.sum(self.stable))
        text = f"{len(self.counts) - saddles} memories of {len(self.basins)} cues"
        text += f", {saddles} unstable resting point(s)" if saddles else ""
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
    return FoundMemories(*one_of_each, counts[order], labels)


def follow(
    energy: AbstractEnergy,
    y: Cues,
    times: Float[Array, " t"] | Float[np.ndarray, " t"],
    *,
    max_steps: int = 4096,
) -> Float[Array, "..."]:
    r"""The path of dy/dt = -grad phi(y) from each cue, for plots.

    Args:
        energy: The energy phi.
        y: Cues, of shape (*batch, *event_shape).
        times: The times to record, rising and not negative, in units of sigma^2: one unit is a step
            of the jump.
        max_steps: Maximum number of solver steps.

    Returns:
        The positions, of shape (*batch, t, *event_shape).

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, or y does not hold floats.
        ValueError: If y has the wrong shape or is not finite, or times are not as described.
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
    max_steps = check_count("max_steps", max_steps)
    times = finite_on_host("times", times)
    rising = times.ndim == 1 and len(times) > 0 and times[0] >= 0 and np.all(np.diff(times) > 0)
    require(rising, f"times must be finite, rising and not negative, got {times}")
    paths: Any = _paths(energy, flat, jnp.asarray(times, flat.dtype), max_steps)
    if not np.all(np.isfinite(paths)):
        raise FloatingPointError(
            f"a path did not reach its end in max_steps = {max_steps} steps, or became NaN or"
            f" infinite before time {times[-1]}"
        )
    return paths.reshape(*batch, *paths.shape[1:])


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
        at_rest = lambda y: jnp.linalg.norm(flow(y)) < tolerance * energy.sigma  # noqa: E731
        event = diffrax.Event(lambda _t, y, _, **_settings: at_rest(y))
        settings = {"event": event, "max_steps": max_steps}
        solution: Any = _solution(energy, y, jnp.inf, tolerance, **settings)
        end = solution.ys[0]
        return end, energy(end), at_rest(end), solution.stats["num_steps"], solution.ts[0]

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
        converged = jnp.linalg.norm(move) < tolerance * energy.sigma
        return end, energy(end), converged, steps, steps.astype(y.dtype)

    return jax.vmap(one)(y, tolerances)


_FLOWS = {"gradient": _gradient_flow, "jump": _jumps}


def _check_energies(energy, cues, energies):
    """Raises an error if nothing was found because the energy is not finite at any cue."""
    if isinstance(energies, Tracer) or np.any(np.isfinite(energies)):
        return
    at_cues = np.asarray(jax.vmap(energy)(cues))
    if len(at_cues) and not np.any(np.isfinite(at_cues)):
        raise FloatingPointError(
            f"energy must be finite at the cues y, got {at_cues[0]} at all {len(at_cues)} of them"
        )


def _flat(energy, y):
    """The cues along one dimension, and the shape of their batch."""
    check_energy(energy)
    y, shape = as_events("y", y, energy), energy.event_shape
    return y.reshape(-1, *shape), y.shape[: y.ndim - len(shape)]
