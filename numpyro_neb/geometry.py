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
from numpyro_neb._internal.events import warn_unlike_scales


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
        spread: The root mean square of the coordinates' standard deviations (of n - 1 degrees of
            freedom): E chi^2 is half its square.
        prior_sigma: The largest sigma, at most a third of the spread, at which X given y is nearly
            Gaussian by the data's kernel density, so that `learned_prior` is right; NaN if the data
            are too few to tell. See `sphere_overlaps`.
        dim: The dimension d.
    """

    min: float
    median: float
    mean: float
    max: float
    num_pairs: int
    counts: np.ndarray
    edges: np.ndarray
    spread: float
    prior_sigma: float
    dim: int

    def __str__(self) -> str:
        first = (
            f"overlaps chi of {self.num_pairs:,} pairs: min {self.min:.3f},"
            f" median {self.median:.3f}, mean {self.mean:.3f}, max (sigma_c) {self.max:.3f}"
        )
        if self.spread == 0:
            return first
        prior = "too few data" if np.isnan(self.prior_sigma) else f"{self.prior_sigma:.2g}"
        return (
            f"{first}\nspread per coordinate {self.spread:.3g}; for a walk begin with"
            f" {self.walk_sigma:.3g}\nlargest sigma for a learned prior in a model: {prior};"
            " `advice` says more"
        )

    @property
    def walk_sigma(self) -> float:
        """The sigma to begin with for a walk: sigma_c, but never above the data's spread.

        Noise wider than the data leaves little of them, and in few dimensions sigma_c is set by
        the two examples that are farthest apart.
        """
        return min(self.max, self.spread)

    @property
    def advice(self) -> str:
        """What these overlaps say about the choice of sigma, in words."""
        if self.spread == 0:
            return "All examples are the same: they say nothing about the choice of sigma."
        radius, width = sphere_shell(self.dim, 1.0)
        walk, check = f"{self.walk_sigma:.3g}", "After training, check it with `evaluate`."
        if width > radius / 4:
            lines = (
                f"In {self.dim} dimension(s) there are no thin shells: the norm of the noise is"
                f" {radius:.2g} +- {width:.2g} sigma, and the overlaps of spheres say little, since"
                f" sigma_c = {self.max:.3g} is set by the two examples that are farthest apart.",
                f"The data's spread is {self.spread:.3g} per coordinate: begin with sigma = {walk}"
                " or less to walk between examples, and with a smaller one to keep details.",
            )
        else:
            kept = 1 / np.hypot(1, self.walk_sigma / self.spread)
            lines = (
                f"Below sigma = {self.min:.3g} no two i-spheres meet: the smoothed density"
                f" remembers each example separately. At the median, {self.median:.3g}, half of the"
                f" pairs overlap; from sigma_c = {self.max:.3g} on all do, and noisy versions of"
                f" any two mix. Above {2 * self.max:.2g} each i-sphere contains all examples, and"
                " details are lost.",
                f"Begin with {walk}, the smaller of sigma_c and the spread, to walk between"
                f" examples; from {min(self.median, self.walk_sigma):.2g} to {self.walk_sigma:.2g}"
                " jumps are sharper and the walk is slower; use a smaller sigma to recall details.",
                f"The data's spread is {self.spread:.2g} per coordinate: for a Gaussian with that"
                f" spread, jumps at {walk} keep {kept:.0%}.",
            )
        return "\n".join((*lines, self._prior_advice, check))

    @property
    def _prior_advice(self):
        """Which sigma a learned prior needs."""
        need = "A learned prior in a model needs X given y to be nearly Gaussian:"
        if np.isnan(self.prior_sigma):
            return (
                f"{need} these data are too few to show up to which sigma it is. Begin with a third"
                f" of the spread, {self.spread / 3:.2g}, or with a third of that inside of the"
                " clusters if the data have clusters, and compare the results with those at half"
                " the sigma."
            )
        return f"{need} by the data's kernel density it is up to sigma = {self.prior_sigma:.2g}."


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

    For `prior_sigma`, 500 noisy versions y of up to 2,000 of the examples are drawn with a fixed
    seed. X given y is then a weighted sample of the data. Along its widest direction its negentropy
    is about skewness^2 / 12 + excess kurtosis^2 / 48: sigma is reduced from a third of the spread,
    by factors of sqrt(2), until this is above 1/4 for at most 3% of the y. If a typical y weighs
    fewer than 50 examples, the data are too few to tell.

    Args:
        x: Clean data, real numbers of shape (n, *event_shape), n at least 2.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The summary, in the data's units; it prints in three lines, and `advice` says more.

    Raises:
        TypeError: If x does not hold real numbers.
        ValueError: If there are fewer than two points, or one is not finite.

    Warns:
        UserWarning: If the columns of a table differ in scale more than thirtyfold.

    Reference:
        NEB section 4.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> print(neb.sphere_overlaps(np.array([[0.0], [2.0], [6.0]])))
        overlaps chi of 3 pairs: min 1.000, median 2.000, mean 2.000, max (sigma_c) 3.000
        spread per coordinate 3.06; for a walk begin with 3
        largest sigma for a learned prior in a model: too few data; `advice` says more
    """
    x, unit = _centred(x)
    # No two points are farther apart than the diameter of a ball that contains them all.
    bound = np.sqrt((x**2).sum(1).max() / x.shape[1]) * (1 + 1e-9)
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
    spread = np.sqrt((x**2).sum() / (len(x) - 1) / x.shape[1])
    coarse = counts[:_BINS].reshape(200, -1).sum(1)
    coarse[-1] += counts[_BINS]
    return SphereOverlaps(
        min=float(low * unit),
        median=float(np.mean(sums[middle] / counts[middle]) * unit),
        mean=float(sums.sum() / counts.sum() * unit),
        max=float(high * unit),
        num_pairs=int(counts.sum()),
        counts=coarse.astype(int),
        edges=np.linspace(0, bound, 201) * unit,
        spread=float(spread * unit),
        prior_sigma=_prior_sigma(x, spread) * unit,
        dim=x.shape[1],
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
    x, unit = _centred(x)
    return float(max(chi.max() for chi in _overlaps(x, progress_bar)) * unit)


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
    (x, unit), sigma = _centred(x), check_positive("sigma", sigma)
    apart = contained = total = 0
    for chi in _overlaps(x, progress_bar):
        chi = chi * unit
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


def _centred(x) -> tuple[np.ndarray, float]:
    """The data about their mean in a unit that is a power of two, and the unit."""
    x = finite_on_host("x", x)
    several = x.ndim > 0 and len(x) > 1 and x.size > 0
    require(several, f"x must hold at least two points, got shape {x.shape}")
    warn_unlike_scales("x", x)
    x = x.reshape(len(x), -1)
    check_squares("x", x)
    # Equal numbers are exactly zero, as their rounded mean would not have them.
    x = x - np.where(x.min(0) == x.max(0), x[0], x.mean(0))
    exponent = int(np.frexp(np.abs(x).max())[1])
    return np.ldexp(x, -exponent), float(np.ldexp(1.0, exponent))


def _prior_sigma(x, spread):
    """The largest sigma at which X given y is nearly Gaussian, or NaN; see `sphere_overlaps`."""
    rng = np.random.default_rng(0)
    x = rng.permutation(x)[:2000]
    at, noise = rng.integers(len(x), size=500), rng.normal(size=(500, x.shape[1]))
    for sigma in spread / 3 * 2.0 ** (-np.arange(13) / 2):
        if sigma == 0:
            break
        y = x[at] + sigma * noise
        logits = (y @ x.T - (x**2).sum(1) / 2) / sigma**2
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        weighed = 1 / (weights**2).sum(1)
        if np.median(weighed) < 50:
            break
        far = _negentropies(x, weights, noise, spread)[weighed > 10] > 1 / 4
        if np.mean(far) <= 0.03:
            return sigma
    return np.nan


def _negentropies(x, weights, direction, spread):
    """About the negentropy of each weighted sample along its widest direction (power iteration)."""
    means = weights @ x

    def along(u):
        return u @ x.T - (u * means).sum(1, keepdims=True)

    for _ in range(5 if x.shape[1] > 1 else 1):
        image = weights * along(direction)
        direction = image @ x - image.sum(1, keepdims=True) * means
        norm = np.linalg.norm(direction, axis=1, keepdims=True)
        direction = direction / np.where(norm > 0, norm, 1)
    z = along(direction)
    variances = (weights * z**2).sum(1, keepdims=True)
    # A point mass is a Gaussian of no width.
    wide = variances > 1e-12 * spread**2
    z = np.where(wide, z / np.sqrt(np.where(wide, variances, 1)), 0)
    skewness, kurtosis = ((weights * z**n).sum(1) for n in (3, 4))
    return np.where(wide[:, 0], skewness**2 / 12 + (kurtosis - 3) ** 2 / 48, 0)
