"""i-spheres: how far apart the data lie, in units of the noise, and so which sigma to choose."""

from math import sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy.spatial.distance import pdist


class SphereOverlaps(NamedTuple):
    """The overlaps chi_ij = norm(X_i - X_j) / (2 sqrt(d)) over all pairs, summarised.

    Attributes:
        min: The smallest overlap: the closest pair.
        median: The median.
        mean: The mean.
        max: The largest one, sigma_c: from this sigma on, all i-spheres overlap.
        num_pairs: How many pairs there are.
    """

    min: float
    median: float
    mean: float
    max: float
    num_pairs: int

    def __str__(self) -> str:
        return (
            f"overlaps chi of {self.num_pairs:,} pairs: min {self.min:.3f},"
            f" median {self.median:.3f}, mean {self.mean:.3f}, max (sigma_c) {self.max:.3f}"
        )


def sphere_overlaps(x: Float[Array, "n *event"] | Float[np.ndarray, "n *event"]) -> SphereOverlaps:
    """The overlaps chi_ij = norm(X_i - X_j) / (2 sqrt(d)) of the data's i-spheres.

    In high dimension the noisy samples Y of X_i lie on a thin shell about it, the i-sphere, of
    radius sigma sqrt(d). Two of them begin to overlap at sigma = chi_ij.

    Args:
        x: Clean data, of shape (n, *event_shape), n at least 2.

    Returns:
        The summary, in the data's units; it prints as a sentence.

    Raises:
        ValueError: If there are fewer than two points, or one is not finite.

    Reference:
        NEB section 4.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> print(neb.sphere_overlaps(np.array([[0.0], [2.0], [6.0]])))
        overlaps chi of 3 pairs: min 1.000, median 2.000, mean 2.000, max (sigma_c) 3.000
    """
    x = np.asarray(x)
    if x.ndim == 0 or len(x) < 2 or x.size == 0:
        raise ValueError(f"x must hold at least two points, got shape {x.shape}")
    x = x.reshape(len(x), -1)
    if not np.all(np.isfinite(x)):
        raise ValueError("x must be finite, got NaN or infinity")
    chi = pdist(x) / (2 * sqrt(x.shape[1]))
    return SphereOverlaps(
        min=float(chi.min()),
        median=float(np.median(chi)),
        mean=float(chi.mean()),
        max=float(chi.max()),
        num_pairs=len(chi),
    )


def critical_sigma(x: Float[Array, "n *event"] | Float[np.ndarray, "n *event"]) -> float:
    """sigma_c = max chi_ij, the noise at which the last two i-spheres meet.

    Args:
        x: Clean data, of shape (n, *event_shape), n at least 2.

    Returns:
        sigma_c, in the data's units.

    Raises:
        ValueError: If there are fewer than two points, or one is not finite.

    Reference:
        NEB section 4.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> neb.critical_sigma(np.array([[0.0], [2.0], [6.0]]))
        3.0
    """
    return sphere_overlaps(x).max
