"""log N(y_j; m_i, sigma_j^2 I) for many observations and locations, in float64 on the host."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax


class Responsibilities(NamedTuple):
    """P(m_i given y_j) for a block of observations, and the locations relative to one near each.

    Attributes:
        rows: Which observations.
        weights: P(m_i given y_j).
        centres: A location near each observation.
        offsets: The locations relative to it.
    """

    rows: slice
    weights: Float[np.ndarray, "j K"]
    centres: Float[np.ndarray, "j d"]
    offsets: Float[np.ndarray, "j K d"]


@dataclass(frozen=True)
class NormalKernel:
    """log N(y_j; m_i, sigma_j^2 I), a block of rows at a time.

    Attributes:
        y: The observations y_j.
        sigma: The noise's standard deviation for each.
        locs: The locations m_i.
    """

    y: Float[np.ndarray, "n d"]
    sigma: Float[np.ndarray, " n"]
    locs: Float[np.ndarray, "K d"]

    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (locations)."""
        y, sigma, locs = self.y[rows], self.sigma[rows, None], self.locs[columns]
        if y.shape[1] == 1:
            squares = ((y - locs.T) / sigma) ** 2
        elif self._compact:
            u, v = y - self.locs.mean(0), locs - self.locs.mean(0)
            squares = ((u**2).sum(1)[:, None] + (v**2).sum(1) - 2 * u @ v.T) / sigma**2
        else:
            squares = (cdist(y, locs) / sigma) ** 2
        return -squares / 2 - y.shape[1] * (np.log(sigma) + np.log(2 * np.pi) / 2)

    @cached_property
    def _compact(self):
        """Whether a matrix product is exact enough, with its error of eps times these squares."""
        centre = self.locs.mean(0)
        reach = max(np.abs(a - centre).max() for a in (self.y, self.locs)) / self.sigma.min()
        return np.finfo(float).eps * self.locs.shape[1] * reach**2 < 1e-7

    def blocks(self, width: int) -> list[slice]:
        """Slices of the observations, each small enough for a core's cache at `width` columns."""
        size = max(1, _BLOCK // width)
        return [slice(i, i + size) for i in range(0, len(self.y), size)]

    def log_density(
        self, active: Int[np.ndarray, " k"], weights: Float[np.ndarray, " k"]
    ) -> Float[np.ndarray, " n"]:
        """Log f(y_j) of the mixture with these weights on the active locations."""
        blocks = self.blocks(len(active))
        parts = [logsumexp(self.logs(b, active), axis=1, b=weights) for b in blocks]
        return np.concatenate(parts)

    def responsibilities(self, weights: Float[np.ndarray, " K"]) -> Iterator[Responsibilities]:
        """Which location each y_j may have come from, a block of observations at a time."""
        everything = slice(None)
        for rows in self.blocks(self.locs.size):
            centres = self.locs[np.argmax(self.logs(rows, everything), axis=1)]
            offsets = self.locs - centres[:, None]
            # norm(y - m)^2 without what all m have in common, which would drown the rest far out.
            sigma = self.sigma[rows, None, None]
            u, v = (self.y[rows] - centres)[:, None] / sigma, offsets / sigma
            logits = np.log(weights) + (v * (u - v / 2)).sum(-1)
            yield Responsibilities(rows, softmax(logits, axis=1), centres, offsets)

    def ratios(
        self, active: Int[np.ndarray, " k"], log_f: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n k"]:
        """N(y_j; m_i, sigma_j^2 I) / f(y_j) of the active locations."""
        parts = [self._ratio(block, active, log_f) for block in self.blocks(len(active))]
        return np.concatenate(parts)

    def gradient(self, log_f: Float[np.ndarray, " n"]) -> Float[np.ndarray, " K"]:
        """g_i, the mean over j of the ratio, for all locations."""
        everything = slice(None)
        blocks = self.blocks(len(self.locs))
        total = sum(self._ratio(block, everything, log_f).sum(0) for block in blocks)
        return np.asarray(total) / len(self.y)

    def _ratio(self, rows, columns, log_f):
        logs = self.logs(rows, columns)
        logs -= log_f[rows, None]
        return np.exp(np.minimum(logs, _HIGHEST, out=logs), out=logs)


# The numbers in a block, which fits in a core's cache.
_BLOCK = 2**18
# exp() of this, squared and summed over the data, is still finite.
_HIGHEST = 300.0
