"""log N(y_j; m_i, sigma_j^2 I) for many observations and locations, in float64 on the host."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp, softmax


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
            squares = (y - locs.T) ** 2
        else:
            centre = self.locs.mean(0)
            u, v = y - centre, locs - centre
            squares = (u**2).sum(1)[:, None] + (v**2).sum(1) - 2 * u @ v.T
        return -squares / (2 * sigma**2) - y.shape[1] * np.log(sigma * np.sqrt(2 * np.pi))

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

    def averages(
        self, weights: Float[np.ndarray, " K"], columns: Float[np.ndarray, "K c"]
    ) -> Float[np.ndarray, "n c"]:
        """The posterior expectations, given each y_j, of columns with a value per location."""
        everything = slice(None)
        blocks = self.blocks(len(self.locs))
        parts = [softmax(self.logs(b, everything) + np.log(weights), axis=1) for b in blocks]
        return np.concatenate([part @ columns for part in parts])

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
