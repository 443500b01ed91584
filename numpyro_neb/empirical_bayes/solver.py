"""The weights of a mixture that maximise its likelihood: a convex problem, with its certificate."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls

from numpyro_neb.empirical_bayes.kernels import AbstractKernel


class MixtureWeights(NamedTuple):
    """The maximum of the likelihood.

    Attributes:
        active: The components of positive weight.
        weights: Their weights.
        gap: The log-likelihood is at most this far below that of the best weights.
        num_iterations: Newton steps taken.
    """

    active: Int[np.ndarray, " k"]
    weights: Float[np.ndarray, " k"]
    gap: float
    num_iterations: int


def maximise(
    kernel: AbstractKernel,
    start: Int[np.ndarray, " k"],
    weights: Float[np.ndarray, " k"] | None = None,
    *,
    max_gap: float,
    max_iterations: int,
    bar: Any,
) -> MixtureWeights:
    """The weights w that maximise sum_j c_j log sum_i w_i p(y_j | i).

    Newton's method on an active set: over the current components and the local maxima of the
    gradient, it minimises the quadratic model for w >= 0, then searches the line towards that
    minimum. It stops when n log max_i g_i, the duality gap, is at most `max_gap`.

    Args:
        kernel: The likelihood of each observation under each component.
        start: Components to start from.
        weights: Their weights; equal ones by default.
        max_gap: The gap to reach, in units of the log-likelihood of all data.
        max_iterations: Maximum number of Newton steps.
        bar: A tqdm bar.

    Reference:
        Koenker and Mizera, JASA 109 (2014), for the dual; Wang, JRSS B 69 (2007), for the
        constrained Newton method.
    """
    total, gap, steps = kernel.counts.sum(), np.inf, 0
    active = start
    current = np.full(len(start), 1 / len(start)) if weights is None else weights
    for steps in range(max_iterations + 1):
        log_f = kernel.log_density(active, current)
        gradient = kernel.gradient(log_f)
        gap = total * max(0.0, float(np.log(gradient.max())))
        found = {"log-likelihood": f"{kernel.counts @ log_f:.4f}", "gap": f"{gap:.3g}"}
        bar.set_postfix(found, refresh=False)
        if gap <= max_gap or steps == max_iterations:
            break
        bar.update()
        peaks = kernel.peaks(gradient, active)
        wider = np.union1d(active, peaks[gradient[peaks] > 1])
        begin = np.zeros(len(wider))
        begin[np.searchsorted(wider, active)] = current
        current = _newton_step(kernel.ratios(wider, log_f), kernel.counts, begin)
        active, current = wider[current > 0], current[current > 0]
    return MixtureWeights(active, current, gap, steps)


def _newton_step(ratios, counts, start):
    """New weights on the same components, with a higher likelihood.

    With p = ratios @ u, log p is close to (p - 1) - (p - 1)^2 / 2: the minimum over u >= 0 of
    u'Hu/2 - (2g - 1)'u is a non-negative least-squares problem.
    """
    weighted = ratios * counts[:, None]
    values, vectors = np.linalg.eigh(ratios.T @ weighted / counts.sum())
    roots = np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    gradient = weighted.sum(0) / counts.sum()
    target = vectors.T @ (2 * gradient - 1) / roots
    expected = start * gradient  # an EM step, which never lowers the likelihood
    try:
        goal, _ = nnls(roots[:, None] * vectors.T, target, maxiter=100 * len(start))
    except RuntimeError:  # nnls has an iteration limit
        return expected / expected.sum()
    if not goal.sum() > 0:
        return expected / expected.sum()
    direction = goal / goal.sum() - start
    change = ratios @ direction
    slope, step = counts @ change, 1.0
    # No observation may lose most of its likelihood at once: far out, the quadratic model fails.
    while step > 1e-12:
        factors = 1 + step * change
        if factors.min() > 0.05 and counts @ np.log(factors) >= 1e-4 * step * slope:
            break
        step /= 2
    else:
        return expected / expected.sum()
    weights = np.maximum(start + step * direction, 0)
    weights[weights < 1e-14] = 0
    return weights / weights.sum()
