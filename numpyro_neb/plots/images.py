"""Pictures of images: their denoising, the walk's jumps, paths and memories."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from numpyro_neb._internal.checks import (
    Numbers,
    check_count,
    check_shape,
    check_type,
    finite_on_host,
    kind,
    require,
)
from numpyro_neb.memories import FoundMemories


def denoising(clean: Numbers, noisy: Numbers, jump: Numbers, *, ax: Axes | None = None) -> Axes:
    """Three rows of images: clean, noisy, and the jump from the noisy one.

    Args:
        clean: The clean images X, of shape (n, height, width).
        noisy: The noisy ones Y = X + N(0, sigma^2 I), of the same shape.
        jump: The jumps E[X given Y], of the same shape.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If they are not real numbers.
        ValueError: If the shapes differ or are not (n, height, width), or one is not finite.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> x = np.random.default_rng(0).random((5, 8, 8))
        >>> ax = neb.plots.denoising(x, x, x)
    """
    named = {"clean": clean, "noisy": noisy, "jump": jump}
    rows = [_images(name, value, ("n", "height", "width")) for name, value in named.items()]
    for name, row in zip(named, rows, strict=True):
        wanted = f"the shape of clean, {rows[0].shape}"
        require(row.shape == rows[0].shape, f"{name} must have {wanted}, got {row.shape}")
    images = np.stack(rows)
    ax = _grid(images, ax, limits=_range(images[0]))
    height = images.shape[2] + 1
    ax.set_yticks([height * (row + 0.5) for row in range(3)], ["clean $x$", "noisy $y$", "jump"])
    return ax


def walk_jump(x: Numbers, *, ax: Axes | None = None) -> Axes:
    """The jumps along each chain: one row per chain, time from left to right.

    Args:
        x: Jumps, of shape (chains, draws, height, width); choose the draws to show, at most 200.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If x does not hold real numbers.
        ValueError: If x is not of that shape, or not finite.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> ax = neb.plots.walk_jump(np.random.default_rng(0).random((4, 10, 8, 8)))
    """
    hint = f"x must be an array, got {kind(x)}: give its posterior['x'][:, ::50], say"
    require(not hasattr(x, "posterior"), hint, TypeError)
    images = _images("x", x, ("chains", "draws", "height", "width"))
    count = images.shape[1]
    most = f"x must hold at most 200 draws to look at, got {count}: choose, as in x[:, ::50]"
    require(count <= 200, most)
    ax = _grid(images, ax, limits=tuple(np.quantile(images, (0.01, 0.99))))
    height = images.shape[2] + 1
    names = [f"chain {chain}" for chain in range(len(images))]
    ax.set_yticks([height * (row + 0.5) for row in range(len(images))], names)
    ax.set_xlabel("draws, from left to right")
    return ax


def recall_paths(paths: Numbers, *, ax: Axes | None = None) -> Axes:
    """The paths of `memories.follow`: one row per cue, from the cue on the left to its memory.

    Args:
        paths: Of shape (cues, times, height, width).
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If paths does not hold real numbers.
        ValueError: If paths is not of that shape, or not finite.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> ax = neb.plots.recall_paths(np.random.default_rng(0).random((3, 6, 8, 8)))
    """
    images = _images("paths", paths, ("cues", "times", "height", "width"))
    # Scaled to the memories: a cue's noise would make them grey.
    ax = _grid(images, ax, limits=_range(images[:, -1]))
    height = images.shape[2] + 1
    ax.set_yticks(
        [height * (row + 0.5) for row in range(len(images))], map(str, range(len(images)))
    )
    ax.set_ylabel("cue")
    ax.set_xlabel("time, from the cue on the left to its memory")
    return ax


def memories(found: FoundMemories, *, columns: int = 10, ax: Axes | None = None) -> Axes:
    """The memories as images, each with the size of its basin; a saddle is marked.

    Args:
        found: What `memories.find_memories` found, of an event shape (height, width).
        columns: How many per row.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If found is not a `FoundMemories`.
        ValueError: If the memories are not images, there are none, or columns is not a positive
            int.

    Example:
        >>> import jax, numpyro_neb as neb
        >>> patterns = jax.random.normal(jax.random.key(0), (4, 3, 3))
        >>> energy = neb.MixtureEnergy(patterns, sigma=0.2)
        >>> ax = neb.plots.memories(neb.memories.find_memories(energy, patterns))
    """
    check_type("found", found, FoundMemories, "a FoundMemories")
    require(len(found.attractors) > 0, "found must hold at least one memory, got none")
    attractors = _images("found.attractors", found.attractors, ("n", "height", "width"))
    columns = min(check_count("columns", columns), len(attractors))
    rows = -(-len(attractors) // columns)
    count, height, width = attractors.shape
    # Room for the text under each.
    below = 1 + height // 4
    canvas = np.full((rows * columns, height + below, width), np.nan)
    canvas[:count, :height] = attractors
    images = canvas.reshape(rows, columns, height + below, width)
    ax = _grid(images, ax, limits=_range(attractors))
    for i, (basin, stable) in enumerate(zip(found.counts, found.stable, strict=True)):
        row, column = divmod(i, columns)
        place = (column + 0.5) * (width + 1), row * (height + below + 1) + height + below / 2
        text = f"{basin}" if stable else f"{basin}, saddle"
        ax.text(*place, text, ha="center", va="center", fontsize=8)
    ax.set_yticks([])
    return ax


def _range(images: np.ndarray) -> tuple[float, float]:
    return float(images.min()), float(images.max())


def _images(name: str, value: Any, axes: tuple[str, ...]) -> np.ndarray:
    array = finite_on_host(name, value)
    some = array.size > 0
    require(some, f"{name} must hold at least one pixel, got shape {array.shape}")
    check_shape(name, array, axes)
    return array


def _grid(images: np.ndarray, ax: Axes | None, limits: tuple[float, float]) -> Axes:
    """Draws images of shape (rows, columns, height, width), dark on white, with gaps between."""
    rows, columns, height, width = images.shape
    if ax is None:
        size = (0.6 * columns + 1.2, 0.6 * rows * height / width + 0.4)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    canvas = np.full((rows, columns, height + 1, width + 1), np.nan)
    canvas[:, :, :height, :width] = images
    picture = canvas.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))
    low, high = limits  # one scale for all; values outside it are drawn white or black
    extent = (0, picture.shape[1], picture.shape[0], 0)
    ax.imshow(picture, cmap="gray_r", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
