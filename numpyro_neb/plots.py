"""Pictures: matplotlib axes in, axes out."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes

Images = Float[Array, "n height width"] | Float[np.ndarray, "n height width"]


def denoising(clean: Images, noisy: Images, jump: Images, *, ax: Axes | None = None) -> Axes:
    """Three rows of images: clean, noisy, and the jump from the noisy one.

    Args:
        clean: The clean images X, of shape (n, height, width).
        noisy: The noisy ones Y = X + N(0, sigma^2 I), of the same shape.
        jump: The jumps E[X given Y], of the same shape.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the shapes differ or are not (n, height, width).

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> x = np.random.default_rng(0).random((5, 8, 8))
        >>> ax = neb.plots.denoising(x, x, x)
    """
    images = np.stack([_images("clean", clean), _images("noisy", noisy), _images("jump", jump)])
    ax = _grid(images, ax, limits=(images[0].min(), images[0].max()))
    height = images.shape[2] + 1
    ax.set_yticks([height * (row + 0.5) for row in range(3)], ["clean $x$", "noisy $y$", "jump"])
    return ax


def walk_jump(
    x: Float[Array, "chains draws height width"] | Float[np.ndarray, "chains draws height width"],
    *,
    ax: Axes | None = None,
) -> Axes:
    """The jumps along each chain: a row a chain, time from left to right.

    Args:
        x: Jumps, of shape (chains, draws, height, width); choose the draws to show.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        ValueError: If x is not of that shape.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> ax = neb.plots.walk_jump(np.random.default_rng(0).random((4, 10, 8, 8)))
    """
    images = np.asarray(x)
    if images.ndim != 4:
        raise ValueError(f"x must have shape (chains, draws, height, width), got {images.shape}")
    ax = _grid(images, ax, limits=tuple(np.quantile(images, (0.01, 0.99))))
    height = images.shape[2] + 1
    names = [f"chain {chain}" for chain in range(len(images))]
    ax.set_yticks([height * (row + 0.5) for row in range(len(images))], names)
    ax.set_xlabel("draws, from left to right")
    return ax


def _images(name: str, array: Any) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 3:
        raise ValueError(f"{name} must have shape (n, height, width), got {array.shape}")
    return array


def _grid(images: np.ndarray, ax: Axes | None, limits: tuple[float, float]) -> Axes:
    """Draws images of shape (rows, columns, height, width), dark on white, with a seam between."""
    rows, columns, height, width = images.shape
    if ax is None:
        size = (0.6 * columns + 1.2, 0.6 * rows * height / width + 0.4)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    canvas = np.full((rows, columns, height + 1, width + 1), np.nan)
    canvas[:, :, :height, :width] = images
    picture = canvas.transpose(0, 2, 1, 3).reshape(rows * (height + 1), columns * (width + 1))
    low, high = limits  # one scale for all; what lies outside is drawn white or black
    extent = (0, picture.shape[1], picture.shape[0], 0)
    ax.imshow(picture, cmap="gray_r", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
