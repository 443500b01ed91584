"""A kernel two-sample test of whether pairs of points are exchangeable, by swaps within pairs."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class PairedTest(NamedTuple):
    """What `paired_test` returns.

    Attributes:
        p_value: The permutation test's p-value, between 1 / (1 + num_swaps) and 1.
        auc: How well a kernel classifier tells the second points of the pairs from the first: the
            probability that it ranks one of each correctly, 0.5 on average if both have one law.
    """

    p_value: float
    auc: float


def paired_test(
    first: dict[str, Float[np.ndarray, "n ..."]],
    second: dict[str, Float[np.ndarray, "n ..."]],
    *,
    num_swaps: int,
    seed: int,
) -> PairedTest:
    r"""Tests whether the pairs (a_i, b_i) and (b_i, a_i) have the same law.

    For each feature of the points, the statistic is the squared maximum mean discrepancy (MMD)

        T = norm(mean_i K(b_i, .) - mean_i K(a_i, .))^2,

    with K the mean of Gaussian kernels whose widths are 1/4 to 2 times the median distance of the
    2n points, or a third of the 0.9 quantile of the distances if that is larger. If the pairs are
    exchangeable, T has the same law after any swaps within pairs. A feature's p-value is the rank
    of T among its values after random swaps; the test's statistic is the smallest of these
    p-values, ranked among those that the swaps themselves give, so the test stays exact with
    several features (Westfall and Young). n pairs take n^2 numbers per feature.

    The classifier ranks a point by the mean of K to the second points minus that to the first. To
    compare b_i with a_j it leaves out pairs i and j, which makes its AUC exactly 0.5 on average
    if the pairs are exchangeable.

    Args:
        first: The points a_i, features by name, each of shape (n, ...).
        second: The points b_i, with the same features.
        num_swaps: The number of random sets of swaps.
        seed: The seed of the swaps.

    Returns:
        The p-value, (1 + the number of swaps at least as extreme) / (1 + num_swaps), and the AUC.

    Reference:
        Gretton et al., A kernel two-sample test, JMLR 13 (2012); Westfall and Young,
        Resampling-based multiple testing (1993); Phipson and Smyth, Permutation p-values should
        never be zero, Stat. Appl. Genet. Mol. Biol. 9 (2010).

    Example:
        >>> import numpy as np
        >>> from numpyro_neb.evaluation.two_sample import paired_test
        >>> a, b = np.random.default_rng(0).normal(size=(2, 100, 3))
        >>> paired_test({"y": a}, {"y": b + 1}, num_swaps=99, seed=0).p_value
        0.01
    """
    kernels = [_kernel(_flat(first[name]), _flat(second[name])) for name in first]
    n = kernels[0].shape[0] // 2
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (num_swaps + 1, n))
    signs[0] = 1  # nothing swapped
    # Swapping pair i flips the sign of its part: T = e'Me / n^2, with e_i = -1 if swapped.
    products = [k[n:, n:] - k[n:, :n] - k[:n, n:] + k[:n, :n] for k in kernels]
    statistics = np.stack([np.einsum("si,si->s", signs @ m, signs) for m in products])
    # Rounding must not separate equal statistics, such as those of all swaps and of none.
    largest = np.maximum(np.abs(statistics).max(axis=1, keepdims=True), np.finfo(float).tiny)
    statistics = np.round(statistics / largest, 10)
    smallest: np.ndarray = np.min([_p_values(s) for s in statistics], axis=0)
    return PairedTest(float(_p_values(-smallest)[0]), _auc(sum(kernels)))


_FACTORS = (0.25, 0.5, 1.0, 2.0)


def _flat(points):
    return np.reshape(points, (len(points), -1)).astype(float)


def _kernel(first, second):
    """K among the 2n points, the first ones first, of shape (2n, 2n)."""
    points = np.concatenate([first, second])
    points = points - points.mean(0)
    norms = np.sum(points**2, axis=1)
    squares = np.maximum(norms[:, None] + norms - 2 * points @ points.T, 0)
    median, large = np.quantile(squares[np.triu_indices(len(points), 1)], (0.5, 0.9))
    # If most points coincide, the median distance is only rounding error.
    scaled = squares / (2 * max(median, large / 10, np.finfo(float).tiny))
    return np.mean([np.exp(-scaled / factor**2) for factor in _FACTORS], axis=0)


def _p_values(statistics):
    """For each statistic, the share of all that are at least as large."""
    below = np.searchsorted(np.sort(statistics), statistics, side="left")
    return (len(statistics) - below) / len(statistics)


def _auc(kernel):
    n = len(kernel) // 2
    a, b = slice(None, n), slice(n, None)
    towards_second = kernel[:, b] - kernel[:, a]  # (2n, n): what pair m adds to a point's value
    of_first, of_second = towards_second[a], towards_second[b]
    values_first, values_second = (s.sum(1) - s.diagonal() for s in (of_first, of_second))
    # The values of b_i without pair j and of a_j without pair i, both of shape (i, j).
    second = values_second[:, None] - (of_second - np.diag(of_second.diagonal()))
    first = values_first - (of_first - np.diag(of_first.diagonal())).T
    return float(np.mean(second > first) + np.mean(second == first) / 2)
