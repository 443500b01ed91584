"""Pictures: matplotlib axes in, axes out."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from numpyro_neb._internal.checks import (
    Numbers,
    check_count,
    check_positive,
    check_shape,
    check_type,
    finite_on_host,
    kind,
    require,
)
from numpyro_neb.diagnostics import log_densities, refreshed_bfmi
from numpyro_neb.energies.base import AbstractEnergy, check_energy
from numpyro_neb.evaluation.verdicts import Evaluation
from numpyro_neb.geometry import SphereOverlaps
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


def overlaps(
    summary: SphereOverlaps, *, sigma: float | None = None, ax: Axes | None = None
) -> Axes:
    """The histogram of the overlaps chi, with sigma and sigma_c marked.

    Args:
        summary: What `sphere_overlaps` returned.
        sigma: A noise level to mark.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If summary is not a `SphereOverlaps`, or sigma not a number.
        ValueError: If sigma is not positive and finite.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> x = np.random.default_rng(0).normal(size=(50, 10))
        >>> ax = neb.plots.overlaps(neb.sphere_overlaps(x), sigma=0.5)
    """
    check_type("summary", summary, SphereOverlaps, "a SphereOverlaps")
    if sigma is not None:
        sigma = check_positive("sigma", sigma)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    shares = summary.counts / (summary.num_pairs * np.diff(summary.edges))
    ax.stairs(shares, summary.edges, fill=True, alpha=0.5)
    ax.axvline(summary.max, color="C1", linestyle="--", label=rf"$\sigma_c$ = {summary.max:.3g}")
    if sigma is not None:
        ax.axvline(sigma, color="C3", label=rf"$\sigma$ = {sigma:.3g}")
    ax.set_xlabel(r"overlap $\chi$")
    ax.set_ylabel("density of pairs")
    ax.set_yticks([])
    ax.legend(frameon=False)
    return ax


def landscape(
    energy: AbstractEnergy,
    limits: tuple[tuple[float, float], tuple[float, float]],
    *,
    walk: Numbers | None = None,
    ax: Axes | None = None,
) -> Axes:
    """An energy in two dimensions: its level lines and flow, and a walk with its jumps.

    Args:
        energy: An energy of event shape (2,).
        limits: The picture's edges, ((low, high), (low, high)).
        walk: The walk y, of shape (draws, 2): a line, with an arrow for the jump from each draw.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, or limits or walk are not real numbers.
        ValueError: If the energy or the walk is not in two dimensions, limits are not rising, or a
            number is not finite.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> walk = energy.sample(jax.random.key(0), (5,))
        >>> ax = neb.plots.landscape(energy, ((-2.0, 2.0), (-1.5, 1.5)), walk=walk)
    """
    check_energy(energy)
    event = energy.event_shape
    require(event == (2,), f"energy must have the event shape (2,), got {event}")
    edges = finite_on_host("limits", limits)
    rising = edges.shape == (2, 2) and np.all(edges[:, 0] < edges[:, 1])
    require(rising, f"limits must be ((low, high), (low, high)), rising, got {limits}")
    y = None if walk is None else finite_on_host("walk", walk)
    if y is not None:
        check_shape("walk", y, ("draws", 2))
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    across, along = (np.linspace(*edges, 60, dtype=np.float32) for edges in limits)
    points = jnp.asarray(np.stack(np.meshgrid(across, along), axis=-1))
    phi, score = jax.jit(jax.vmap(jax.vmap(lambda y: (energy(y), energy.score(y)))))(points)
    ax.contour(across, along, phi, levels=20, cmap="Greys_r", linewidths=0.6)
    flow = np.asarray(score).transpose(2, 0, 1)
    ax.streamplot(across, along, *flow, density=0.8, color="C0", linewidth=0.4, arrowsize=0.6)
    if y is not None:
        jump = np.asarray(jax.vmap(energy.denoise)(jnp.asarray(y)))
        ax.plot(*y.T, color="C1", linewidth=0.8, marker=".", label="walk $y$")
        arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
        ax.quiver(*y.T, *(jump - y).T, color="C3", **arrows, label=r"jump $\hat x(y)$")
        ax.legend(loc="upper right")
    ax.set(xlim=limits[0], ylim=limits[1], aspect="equal")
    return ax


def energy_transitions(data: Any, *, ax: Axes | None = None) -> Axes:
    """The spread of the energy, and how much of it a fresh momentum crosses in one draw.

    The filled histogram shows the energy phi(y) + K about its mean, with K the kinetic energy of a
    fresh momentum; the line shows the change K' - K. For a Gaussian both have the same width; if
    the line is much narrower, the walk and NUTS cross the energy's levels slowly.
    `diagnostics.refreshed_bfmi` is the ratio of their variances. (The transitions that
    `arviz.plot_energy` draws are those of the walk, which keeps part of its momentum.)

    Args:
        data: What `to_arviz` or `stream` returned for a walk.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        ValueError: If data is anything else.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=10, num_samples=100,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> ax = neb.plots.energy_transitions(neb.to_arviz(mcmc))
    """
    num_coordinates, lp = log_densities(data)
    bfmi = refreshed_bfmi(data)
    if ax is None:
        _, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    kinetic = np.random.default_rng(0).gamma(num_coordinates / 2, size=(2, lp.size))
    energy = kinetic[0] - lp.ravel()
    style = {"bins": 50, "density": True}
    ax.hist(energy - energy.mean(), **style, alpha=0.5, label=r"energy $\phi + K$")
    ax.hist(kinetic[1] - kinetic[0], **style, histtype="step", color="C1", label="change $K' - K$")
    text = ", ".join(f"{value:.2f}" for value in bfmi[:4]) + ", ..." * (len(bfmi) > 4)
    ax.legend(frameon=False, title=f"E-BFMI {text}")
    ax.set_xlabel("energy, about its mean")
    ax.set_yticks([])
    return ax


def evaluation(evaluation: Evaluation, *, axes: np.ndarray | None = None) -> np.ndarray:
    """What `evaluate` found: phi, the shares of the prototypes, the widths of the coordinates.

    Left: histograms of phi at noisy held-out data and at the ends of the walk, which agree if the
    energy is right. Middle: the shares of the jumps nearest to each prototype, of the data and of
    the walk, with two standard errors of their difference; image prototypes are shown below their
    bars. Right: the walk's standard deviations of y divided by the data's, as an image or as a
    point for each coordinate.

    Args:
        evaluation: What `evaluate` returned.
        axes: Three axes to draw on; new ones by default.

    Returns:
        The three axes.

    Raises:
        TypeError: If evaluation is not an `Evaluation`.
        ValueError: If axes does not hold three axes.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> x = jax.random.normal(jax.random.key(0), (100, 1))
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 1)), 0.5)
        >>> found = neb.evaluate(energy, x, key=jax.random.key(1), num_steps=100,
        ...                      num_temperatures=50, progress_bar=False)
        >>> axes = neb.plots.evaluation(found)
    """
    check_type("evaluation", evaluation, Evaluation, "an Evaluation")
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    axes = np.asarray(axes, object)
    three = axes.shape == (3,) and all(isinstance(ax, Axes) for ax in axes)
    require(three, f"axes must be three matplotlib axes, got an array of shape {axes.shape}")
    _histograms(evaluation, axes[0])
    _shares(evaluation, axes[1])
    _widths(evaluation, axes[2])
    axes[0].set_title(f"{evaluation.outcome}: p = {evaluation.p_value:.2g}", loc="left")
    return axes


def _histograms(found, ax):
    both = np.concatenate([found.phi_data, found.phi_walk])
    style = {"bins": np.histogram_bin_edges(both, 30), "density": True}
    ax.hist(found.phi_data, **style, alpha=0.5, label="noisy data")
    ax.hist(found.phi_walk, **style, histtype="step", color="C1", label="walk")
    ax.set_xlabel(r"energy $\phi(y)$, nats")
    ax.set_yticks([])
    ax.legend(frameon=False)


def _shares(found, ax):
    places = np.arange(len(found.prototypes))
    ax.bar(places - 0.2, found.data_shares, 0.4, alpha=0.5, label="data")
    style = {"fill": False, "edgecolor": "C1", "ecolor": "C1", "label": "walk"}
    ax.bar(places + 0.2, found.walk_shares, 0.4, yerr=2 * found.share_errors, **style)
    ax.set_ylabel("share of the jumps")
    ax.margins(y=0.3)  # room for the legend
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    if len(found.event_shape) != 2:
        ax.set_xticks(places)
        ax.set_xlabel("prototype")
        return
    ax.set_xticks([])
    ax.set_xlabel("prototype", labelpad=34)
    low, high = _range(found.prototypes)
    for place, image in zip(places, found.prototypes, strict=True):
        box = ax.inset_axes((place - 0.45, -0.2, 0.9, 0.18), transform=ax.get_xaxis_transform())
        box.imshow(image, cmap="gray_r", vmin=low, vmax=high)
        box.axis("off")


def _widths(found, ax):
    ratios = found.sd_ratios
    ax.set_title("sd of y, walk / data", loc="left")
    if ratios.ndim == 2:
        reach = max(0.1, np.abs(ratios - 1).max()) if np.all(np.isfinite(ratios)) else 1.0
        picture = ax.imshow(ratios, cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach)
        ax.figure.colorbar(picture, ax=ax)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    ax.axhline(1, color="C0", linewidth=0.8)
    ax.plot(ratios.ravel(), ".", color="C1")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("coordinate")


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
