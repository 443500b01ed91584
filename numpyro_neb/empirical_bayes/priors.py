"""Families of priors for `fit_mixture`: each is a mixture of normals and point masses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float
from scipy.special import expit, logit

from numpyro_neb.empirical_bayes.kernels import BlendKernel, NormalKernel
from numpyro_neb.empirical_bayes.solver import maximise
from numpyro_neb.empirical_bayes.spline import spline_weights


class NormalMixture(NamedTuple):
    """A prior: sum_i weights_i N(locs_i, variances_i), a point mass where the variance is zero.

    Attributes:
        locs: The means.
        variances: The variances.
        weights: The weights, which sum to one.
        gap: The duality gap; NaN for a family that is not convex.
        num_iterations: The solver's steps.
    """

    locs: Float[np.ndarray, " K"]
    variances: Float[np.ndarray, " K"]
    weights: Float[np.ndarray, " K"]
    gap: float
    num_iterations: int


class NormalData(NamedTuple):
    """Observations with normal noise, equal ones as one row.

    Attributes:
        counts: How many observations each row stands for.
        y: The observations.
        sigma: The noise's standard deviation for each.
    """

    counts: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]

    def kernel(self, locs: Any, variances: Any) -> NormalKernel:
        """The likelihood under components of these means and variances."""
        locs, variances = np.broadcast_arrays(np.asarray(locs, float), np.asarray(variances, float))
        return NormalKernel(self.counts, self.y[:, None], self.sigma, locs[:, None], variances)

    def with_nulls(self, mode: float) -> "NormalData":
        """The data and three observations of the mode without noise: a penalty -3 log w_0.

        Small effects can't be told from none, so that the likelihood alone puts too little weight
        w_0 on a point mass at the mode: one and a half times as many discoveries are wrong as
        claimed. With three, as many are as claimed, and intervals still cover if no X is zero.

        Reference:
            Stephens, Biostatistics 18 (2017), section 2.3: a Dirichlet prior, with nine by default.
        """
        tiny = 1e-4 * self.sigma.min()
        ends = [(self.counts, 3.0), (self.y, mode), (self.sigma, tiny)]
        return NormalData(*(np.append(column, value) for column, value in ends))

    def log_likelihood(self, prior: NormalMixture) -> float:
        """The log-likelihood of all observations."""
        kernel = self.kernel(prior.locs, prior.variances)
        log_f = kernel.log_density(np.arange(len(prior.locs)), prior.weights)
        return float(self.counts @ log_f)


Solver = dict[str, Any]
"""max_gap, max_iterations and bar of `maximise`."""


def normal(data: NormalData, mode: float, solver: Solver) -> NormalMixture:
    """N(mode, tau^2)."""
    del solver
    variance = _best_variance(data, lambda v: data.kernel([mode], [v]).log_density(_FIRST, _ONE))
    return NormalMixture(np.array([mode]), np.array([variance]), _ONE, np.nan, 0)


def point_normal(data: NormalData, mode: float, solver: Solver) -> NormalMixture:
    """A point mass at the mode with weight w, and N(mode, tau^2) with weight 1 - w."""
    del solver

    def log_density(variance):
        logs = data.kernel([mode, mode], [0.0, variance]).logs(slice(None), slice(None))
        share = _best_share(data.counts, logs)
        return np.logaddexp(logs[:, 0] + np.log1p(-share), logs[:, 1] + np.log(share))

    variance = _best_variance(data, log_density)
    logs = data.kernel([mode, mode], [0.0, variance]).logs(slice(None), slice(None))
    share = _best_share(data.counts, logs)
    weights = np.array([1 - share, share])
    return NormalMixture(np.array([mode, mode]), np.array([0.0, variance]), weights, np.nan, 0)


def scale_mixture(data: NormalData, mode: float, solver: Solver) -> NormalMixture:
    """A mixture of N(mode, tau^2) over a grid of tau, zero among them; see `with_nulls`."""
    variances = np.concatenate([[0.0], _scales(data, mode) ** 2])
    kernel = data.with_nulls(mode).kernel(np.full(len(variances), mode), variances)
    found = maximise(kernel, np.arange(len(variances)), **solver)
    locs = np.full(len(found.active), mode)
    return NormalMixture(
        locs, variances[found.active], found.weights, found.gap, found.num_iterations
    )


def unimodal(data: NormalData, mode: float, solver: Solver) -> NormalMixture:
    """A mixture of uniform laws from the mode to a point on either side, and of a point mass.

    Each uniform law is one of cells at most half a sigma wide, and each cell is a normal law of the
    same variance. See also `with_nulls`.
    """
    scales = _scales(data, mode)
    width = max(0.5 * data.sigma.min(), scales[-1] / _MOST_CELLS)
    ends = np.unique(np.maximum(1, np.round(scales / width)).astype(int))
    centres = width * (np.arange(ends[-1]) + 0.5)
    locs = mode + np.concatenate([-centres[::-1], [0.0], centres])
    variances = np.where(locs == mode, 0.0, width**2 / 12)
    spans = np.arange(ends[-1]) < ends[:, None]
    right = spans / ends[:, None]
    empty, spike = np.zeros_like(right), np.zeros((1, len(locs)))
    spike[0, ends[-1]] = 1.0
    zero = np.zeros((len(right), 1))
    shares = np.concatenate(
        [
            np.hstack([right[::-1, ::-1], zero, empty]),
            spike,
            np.hstack([empty, zero, right]),
        ]
    )
    data = data.with_nulls(mode)
    kernel = BlendKernel(data.counts, data.kernel(locs, variances), shares)
    found = maximise(kernel, np.arange(len(shares)), **solver)
    weights = found.weights @ shares[found.active]
    kept = weights > 0
    return NormalMixture(
        locs[kept], variances[kept], weights[kept], found.gap, found.num_iterations
    )


def spline(data: NormalData, degrees: int = 7, penalty: float = 1.0) -> NormalMixture:
    """A density whose logarithm is a natural cubic spline, in cells over the range of y."""
    low, high = data.y.min(), data.y.max()
    count = int(np.clip(np.ceil((high - low) / (0.25 * data.sigma.min())), 20, _MOST_CELLS))
    width = (high - low) / count
    locs = low + width * (np.arange(count) + 0.5)
    variances = np.full(count, width**2 / 12)
    weights = spline_weights(data.kernel(locs, variances), locs, degrees, penalty)
    return NormalMixture(locs, variances, weights, np.nan, 0)


def with_best_mode(
    data: NormalData, fit: Callable[[float], NormalMixture]
) -> tuple[float, NormalMixture]:
    """The mode of the highest likelihood, and the fit there."""
    negative = lambda mode: -data.log_likelihood(fit(mode))  # noqa: E731
    starts = np.unique(np.quantile(data.y, np.linspace(0.05, 0.95, 13)))
    values = [negative(mode) for mode in starts]
    best = int(np.argmin(values))
    if len(starts) == 1:
        return float(starts[0]), fit(float(starts[0]))
    bounds = starts[max(best - 1, 0)], starts[min(best + 1, len(starts) - 1)]
    tolerance = 1e-4 * data.sigma.min()
    found: Any = scipy.optimize.minimize_scalar(
        negative, bounds=bounds, method="bounded", options={"xatol": tolerance}
    )
    mode = float(found.x if found.fun < values[best] else starts[best])
    return mode, fit(mode)


def _scales(data, mode):
    """Standard deviations from well below the smallest sigma to beyond the data's."""
    least = data.sigma.min() / 10
    excess = np.max((data.y - mode) ** 2 - data.sigma**2)
    most = 2 * np.sqrt(excess) if excess > 0 else 8 * least
    count = int(np.ceil(np.log(max(most / least, 2)) / np.log(_RATIO)))
    return least * _RATIO ** np.arange(count + 1)


def _best_variance(data, log_density):
    """The variance of the highest log-likelihood, zero included."""
    grid = np.log(_scales(data, 0.0))
    negative = lambda log_scale: -(data.counts @ log_density(np.exp(2 * log_scale)))  # noqa: E731
    values = [negative(log_scale) for log_scale in grid]
    best = int(np.argmin(values))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found: Any = scipy.optimize.minimize_scalar(
        negative, bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    at_zero = -(data.counts @ log_density(0.0))
    return 0.0 if at_zero <= found.fun else float(np.exp(2 * found.x))


def _best_share(counts, logs):
    """The weight of the second of two components with the highest likelihood."""
    difference = logs[:, 1] - logs[:, 0]

    def slope(log_odds):
        return counts @ (expit(log_odds + difference) - expit(log_odds))

    # The likelihood is concave in the weight, so that its slope changes sign at most once.
    low, high = logit(1e-12), -logit(1e-12)
    if slope(low) <= 0:
        return 1e-12
    if slope(high) >= 0:
        return 1 - 1e-12
    root: Any = scipy.optimize.brentq(slope, low, high, xtol=1e-10)
    return float(expit(root))


_FIRST, _ONE = np.array([0]), np.array([1.0])
_RATIO = 2**0.25
# A cell is wider than half a sigma only where there would be more cells than this.
_MOST_CELLS = 1000
