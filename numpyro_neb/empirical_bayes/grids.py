"""Where X may be: candidate locations for a nonparametric estimate."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpyro.util import find_stack_level

from numpyro_neb.empirical_bayes.kernels import AbstractKernel, LinearKernel
from numpyro_neb.empirical_bayes.solver import MixtureWeights, maximise


def line(y: Float[np.ndarray, " n"], sigma: Float[np.ndarray, " n"]) -> Float[np.ndarray, " K"]:
    """A grid over the range of y, finer around observations with a sigma below ten spacings.

    Warns:
        UserWarning: If the grid had to be coarser than a fifth of sigma.
    """
    low, high = y.min(), y.max()
    if high - low <= 1e-300:  # a grid would have no spacing
        return np.asarray([low])
    coarser, locs = 1.0, _grid(y, sigma, 1.0)
    while len(locs) > max(3000, 2e7 / len(y)):
        coarser *= 2
        locs = _grid(y, sigma, coarser)
    if coarser > 2:
        warnings.warn(
            f"locs would be too many at a tenth of sigma: the grid's spacing is {coarser / 10:g}"
            " sigma, and the likelihood may lie below the best by more than the duality gap",
            stacklevel=find_stack_level(),
        )
    return locs


def near_each(
    locs: Float[np.ndarray, " K"], y: Float[np.ndarray, " n"], sigma: Float[np.ndarray, " n"]
) -> Any:
    """The location nearest to each observation, or one within the same two sigmas, as indices."""
    octave = np.floor(np.log2(sigma))
    cells = np.stack([octave, np.round(y / 2.0 ** (octave + 1))], axis=1)
    chosen = np.unique(cells, axis=0, return_index=True)[1]
    middle = (locs[1:] + locs[:-1]) / 2
    return np.unique(np.searchsorted(middle, y[chosen]))


def _grid(y, sigma, coarser):
    """A coarse grid over the range of y, refined around each observation to a tenth of sigma."""
    low, high = y.min(), y.max()
    widest = (high - low) / 300
    # Multiples of the spacing: zero, a common true value, is one of them if it is in the range.
    parts = [np.arange(np.floor(low / widest), np.ceil(high / widest) + 1)]
    octaves = np.floor(np.log2(sigma))
    for octave in np.unique(octaves):
        finest = 0.1 * coarser * 2.0**octave
        if finest >= widest:
            continue
        # Halvings of one grid: locations of different octaves coincide, or lie well apart.
        share = 0.5 ** np.ceil(np.log2(widest / finest))
        cells = np.unique(np.round(y[octaves == octave] / (widest * share)))
        near = np.arange(-int(80 / coarser), int(80 / coarser) + 1)
        parts.append(np.unique((cells[:, None] + near).ravel()) * share)
    locs = widest * np.unique(np.concatenate(parts))
    return locs[(locs > low - widest) & (locs < high + widest)]


def refined(
    kernel_at: Callable[[Float[np.ndarray, " K"]], AbstractKernel],
    scale: tuple[Callable, Callable],
    bounds: tuple[float, float],
    spacing: float,
    solver: dict[str, Any],
) -> tuple[Float[np.ndarray, " K"], MixtureWeights]:
    """The estimate on a grid that is even on some scale, made finer around its point masses.

    Args:
        kernel_at: The likelihood of point masses at these locations.
        scale: To the scale on which the data are equally precise everywhere, and back.
        bounds: The lowest and the highest location.
        spacing: Of the first grid, on that scale.
        solver: As for `maximise`.

    Returns:
        All locations tried, and the weights on them.
    """
    there, back = scale
    low, high = there(np.asarray(bounds))
    whole = np.arange(np.ceil(low / spacing), np.floor(high / spacing) + 1)
    places = np.unique(np.concatenate([[low], whole * spacing, [high]]))
    step = max(1, len(places) // 40)
    found = maximise(kernel_at(back(places)), np.arange(0, len(places), step), **solver)
    for _ in range(_REFINEMENTS):
        spacing /= 4
        old = places[found.active]
        around = (np.round(old[:, None] / spacing) + np.arange(-4, 5)).ravel() * spacing
        inside = around[(around > low) & (around < high)]
        places = np.unique(np.concatenate([places, inside]))
        start = np.searchsorted(places, old)
        found = maximise(kernel_at(back(places)), start, found.weights, **solver)
    return back(places), found


# Each makes the grid around the point masses four times finer.
_REFINEMENTS = 7


def several(
    kernel: LinearKernel, solver: dict[str, Any], rounds: int
) -> tuple[LinearKernel, MixtureWeights]:
    """The estimate in several dimensions, whose point masses move to where the data want them.

    It starts on every k-th observation, if they are many.

    Args:
        kernel: The likelihood at the first locations.
        solver: As for `maximise`.
        rounds: How often the point masses move.

    Returns:
        The kernel with all locations tried, and the weights on them.
    """
    total = len(kernel.counts)
    some = slice(None, None, max(1, total // _AT_FIRST))
    few = kernel.take(some)
    first = solver | {"max_gap": solver["max_gap"] * len(few.counts) / total}
    found = maximise(few, *by_em(few), **first)
    for _ in range(rounds):
        old = few.locs[found.active]
        locs = np.unique(np.vstack([few.locs, few.moved(found.active, found.weights)]), axis=0)
        few = replace(few, locs=locs)
        start = np.array([np.flatnonzero((locs == own).all(1))[0] for own in old])
        order = np.argsort(start)
        found = maximise(few, start[order], found.weights[order], **first)
    kernel = replace(kernel, locs=few.locs)
    if len(few.counts) < total:
        found = maximise(kernel, found.active, found.weights, **solver)
    return kernel, found


def lattice(
    low: Float[np.ndarray, " d"], high: Float[np.ndarray, " d"], count: int
) -> Float[np.ndarray, "K d"]:
    """About `count` points, evenly over a box."""
    each = max(2, round(count ** (1 / len(low))))
    axes = [np.linspace(a, b, each) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(low))


def by_em(kernel: AbstractKernel) -> tuple[Any, Any]:
    """The locations that a few steps of EM favour, and their weights."""
    count = kernel.num_columns
    weights = np.full(count, 1 / count)
    for _ in range(10):
        weights *= kernel.gradient(kernel.log_density(np.arange(count), weights))
    active = np.flatnonzero(weights >= 0.5 / count)
    return active, weights[active] / weights[active].sum()


# The observations that the estimate in several dimensions starts on.
_AT_FIRST = 5000
