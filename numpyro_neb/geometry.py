"""i-spheres: how far apart the data are, in units of the noise, to guide the choice of sigma."""

from collections.abc import Iterator
from math import sqrt
from typing import NamedTuple, SupportsIndex

import numpy as np
from scipy.spatial.distance import pdist
from scipy.special import gammaln
from tqdm.auto import tqdm

from numpyro_neb._internal.checks import (
    Numbers,
    check_count,
    check_positive,
    check_squares,
    finite_on_host,
    require,
)


class SphereOverlaps(NamedTuple):
    """The overlaps chi_ij = norm(X_i - X_j) / (2 sqrt(d)) over all pairs, summarised.

    Attributes:
        min: The smallest overlap: the closest pair.
        median: The median, exact to the width of a bin.
        mean: The mean.
        max: The largest one, sigma_c: from this sigma on, all i-spheres overlap.
        num_pairs: How many pairs there are.
        counts: A histogram of the overlaps in 200 equal bins from 0 to beyond `max`, of shape
            (200,).
        edges: Its edges, of shape (201,).
    """

    min: float
    median: float
    mean: float
    max: float
    num_pairs: int
    counts: np.ndarray
    edges: np.ndarray

    def __str__(self) -> str:
        return (
            f"overlaps chi of {self.num_pairs:,} pairs: min {self.min:.3f},"
            f" median {self.median:.3f}, mean {self.mean:.3f}, max (sigma_c) {self.max:.3f}"
        )

    @property
    def spread(self) -> float:
        """The root mean square of the coordinates' standard deviations.

        E chi^2 is half its square; exact to the width of a bin.
        """
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        return float(np.sqrt(2 * np.sum(self.counts * middles**2) / self.num_pairs))

    @property
    def advice(self) -> str:
        """What these overlaps say about the choice of sigma, in words."""
        ratio = self.max / self.spread
        return (
            f"Below sigma = {self.min:.3g} no two i-spheres meet: the smoothed density remembers"
            f" each example separately. At the median, {self.median:.3g}, half of the pairs"
            f" overlap; from sigma_c = {self.max:.3g} on all do, and noisy versions of any two mix."
            f" Use sigma_c or slightly more to walk between examples; from {self.median:.2g} to"
            f" {self.max:.2g} jumps are sharper and the walk is slower, and `evaluate` shows"
            " whether it still visits all of the data; use a smaller sigma to recall details. Above"
            f" {2 * self.max:.2g} each i-sphere contains all examples, and details are lost. The"
            f" data's spread is {self.spread:.2g} per coordinate: for a Gaussian with that spread,"
            f" jumps at sigma_c keep {1 / np.hypot(1, ratio):.0%}; a learned prior in a model needs"
            f" a third of it, {self.spread / 3:.2g}, or less."
        )


class OverlapRegimes(NamedTuple):
    """The shares of pairs of i-spheres at one sigma.

    Attributes:
        apart: sigma < chi.
        overlapping: chi <= sigma < 2 chi.
        contained: sigma >= 2 chi: each centre lies in the other's sphere.
    """

    apart: float
    overlapping: float
    contained: float

    def __str__(self) -> str:
        return (
            f"{self.apart:.1%} of the pairs are apart, {self.overlapping:.1%} overlap,"
            f" {self.contained:.1%} are contained in one another"
        )


class SphereShell(NamedTuple):
    """Where the noise norm(Y - X) concentrates.

    Attributes:
        radius: Its mean, sigma sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2): about sigma sqrt(d).
        width: Its standard deviation: about sigma / sqrt(2), however large d.
    """

    radius: float
    width: float


def sphere_overlaps(x: Numbers, *, progress_bar: bool = True) -> SphereOverlaps:
    """The overlaps chi_ij = norm(X_i - X_j) / (2 sqrt(d)) of the data's i-spheres.

    In high dimension the noisy samples Y of X_i lie on a thin shell around it, the i-sphere, of
    radius sigma sqrt(d). Two of them begin to overlap at sigma = chi_ij. All pairs are visited, in
    blocks of 2,048 x 2,048, so that memory does not grow with n^2.

    Args:
        x: Clean data, real numbers of shape (n, *event_shape), n at least 2.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The summary, in the data's units; it prints as a sentence, and `advice` is a paragraph.

    Raises:
        TypeError: If x does not hold real numbers.
        ValueError: If there are fewer than two points, or one is not finite.

    Reference:
        NEB section 4.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> print(neb.sphere_overlaps(np.array([[0.0], [2.0], [6.0]])))
        overlaps chi of 3 pairs: min 1.000, median 2.000, mean 2.000, max (sigma_c) 3.000
    """
    x = _centred(x)
    # No two points are farther apart than the diameter of a ball that contains them all.
    bound = np.sqrt(((x - x.mean(0)) ** 2).sum(1).max() / x.shape[1]) * (1 + 1e-9)
    bound = bound if bound > 0 else 1.0
    scale = _BINS / bound
    counts, sums = np.zeros(_BINS + 1), np.zeros(_BINS + 1)
    low, high = np.inf, 0.0
    for chi in _overlaps(x, progress_bar):
        bins = np.minimum((chi * scale).astype(np.int32), _BINS)
        counts += np.bincount(bins, minlength=_BINS + 1)
        sums += np.bincount(bins, chi, minlength=_BINS + 1)
        low, high = min(low, chi.min()), max(high, chi.max())
    # The two middle ranks, each as the mean of its bin.
    middle = np.searchsorted(
        np.cumsum(counts), [(counts.sum() - 1) // 2, counts.sum() // 2], "right"
    )
    coarse = counts[:_BINS].reshape(200, -1).sum(1)
    coarse[-1] += counts[_BINS]
    return SphereOverlaps(
        min=float(low),
        median=float(np.mean(sums[middle] / counts[middle])),
        mean=float(sums.sum() / counts.sum()),
        max=float(high),
        num_pairs=int(counts.sum()),
        counts=coarse.astype(int),
        edges=np.linspace(0, bound, 201),
    )


def critical_sigma(x: Numbers, *, progress_bar: bool = True) -> float:
    """sigma_c = max chi_ij, the noise at which the last two i-spheres meet.

    Args:
        x: Clean data, real numbers of shape (n, *event_shape), n at least 2.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        sigma_c, in the data's units.

    Raises:
        TypeError: If x does not hold real numbers.
        ValueError: If there are fewer than two points, or one is not finite.

    Reference:
        NEB section 4.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> neb.critical_sigma(np.array([[0.0], [2.0], [6.0]]))
        3.0
    """
    return sphere_overlaps(x, progress_bar=progress_bar).max


def overlap_regimes(
    x: Numbers,
    sigma: float,
    *,
    progress_bar: bool = True,
) -> OverlapRegimes:
    """The shares of pairs of i-spheres apart, overlapping and contained at one sigma.

    Args:
        x: Clean data, real numbers of shape (n, *event_shape), n at least 2.
        sigma: The noise's standard deviation, positive.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The three shares, which sum to one; they print as a sentence.

    Raises:
        TypeError: If x does not hold real numbers, or sigma is not a real number.
        ValueError: If there are fewer than two points, one is not finite, or sigma is not positive.

    Reference:
        NEB section 4.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> print(neb.overlap_regimes(np.array([[0.0], [2.0], [6.0]]), sigma=2.0))
        33.3% of the pairs are apart, 33.3% overlap, 33.3% are contained in one another
    """
    x, sigma = _centred(x), check_positive("sigma", sigma)
    apart = contained = total = 0
    for chi in _overlaps(x, progress_bar):
        apart += int(np.sum(sigma < chi))
        contained += int(np.sum(sigma >= 2 * chi))
        total += len(chi)
    return OverlapRegimes(apart / total, (total - apart - contained) / total, contained / total)


def sphere_shell(dim: SupportsIndex, sigma: float) -> SphereShell:
    """The radius and the width of the shell on which Y lies around X: a chi distribution's moments.

    Args:
        dim: The dimension d.
        sigma: The noise's standard deviation, positive.

    Returns:
        The mean and the standard deviation of norm(Y - X).

    Raises:
        TypeError: If sigma is not a real number.
        ValueError: If dim is not a positive int, or sigma is not positive.

    Reference:
        NEB section 4.

    Example:
        >>> import numpyro_neb as neb
        >>> shell = neb.geometry.sphere_shell(784, sigma=0.3)
        >>> print(f"{shell.radius:.2f} +- {shell.width:.2f}")
        8.40 +- 0.21
    """
    d, sigma = float(check_count("dim", dim)), check_positive("sigma", sigma)
    if d < 1000:
        mean = sqrt(2) * np.exp(gammaln((d + 1) / 2) - gammaln(d / 2))
        variance = d - mean**2
    else:  # the difference would lose its digits; Stirling's series keeps them
        variance = 1 / 2 - 1 / (8 * d) - 1 / (16 * d**2)
        mean = sqrt(d - variance)
    return SphereShell(float(sigma * mean), float(sigma * sqrt(variance)))


# A histogram's bins: a multiple of 200.
_BINS = 200 * 1000
_BLOCK = 2048


def _overlaps(x: np.ndarray, progress_bar: bool) -> Iterator[np.ndarray]:
    """The overlaps of all pairs, a block at a time."""
    starts = range(0, len(x), _BLOCK)
    unit = 2 * sqrt(x.shape[1])
    total = len(starts) * (len(starts) + 1) // 2
    with tqdm(total=total, disable=not progress_bar, delay=1, desc="overlaps") as bar:
        for i in starts:
            rows = x[i : i + _BLOCK]
            for j in range(i, len(x), _BLOCK):
                chi = pdist(rows) if i == j else _distances(rows, x[j : j + _BLOCK])
                bar.update()
                if chi.size:
                    yield chi.ravel() / unit


def _distances(a, b):
    """Distances by one matrix product; those it can't tell from zero, one by one."""
    norms = (a**2).sum(1)[:, None] + (b**2).sum(1)
    squares = norms - 2 * a @ b.T
    rows, columns = np.nonzero(squares < 1e-9 * norms)
    for start in range(0, len(rows), _BLOCK):
        i, j = rows[start : start + _BLOCK], columns[start : start + _BLOCK]
        squares[i, j] = ((a[i] - b[j]) ** 2).sum(1)
    return np.sqrt(squares)


def _centred(x) -> np.ndarray:
    x = finite_on_host("x", x)
    several = x.ndim > 0 and len(x) > 1 and x.size > 0
    require(several, f"x must hold at least two points, got shape {x.shape}")
    x = x.reshape(len(x), -1)
    check_squares("x", x)
    return x - x.mean(0)
