"""The weights of a mixture that maximise its likelihood: a convex problem, with its certificate."""

from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float, Int

from numpyro_neb.empirical_bayes.kernels import AbstractKernel


class MixtureWeights(NamedTuple):
    """The maximum of the likelihood.

    Attributes:
        active: The components of positive weight.
        weights: Their weights.
        gap: The log-likelihood is at most this far below that of the best weights.
        num_iterations: Passes over all components before the last.
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
    minimum, until the gap on this set is a tenth of what it was on all components. Only then does
    it pass over all of them again. It stops when n log max_i g_i, the duality gap, is at most
    `max_gap`.

    Args:
        kernel: The likelihood of each observation under each component.
        start: Components to start from.
        weights: Their weights; equal ones by default.
        max_gap: The gap to reach, in units of the log-likelihood of all data.
        max_iterations: Maximum number of passes over all components.
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
        ratios = kernel.ratios(wider, log_f)
        current = _newton(ratios, kernel.counts, begin, max(max_gap / 2, gap / 10))
        active, current = wider[current > 0], current[current > 0]
    return MixtureWeights(active, current, gap, steps)


def _newton(ratios, counts, weights, max_gap):
    """Weights on the same components, at most `max_gap` below the best of them if that is quick.

    It changes `ratios`, which stay those of the current weights.
    """
    for _ in range(_STEPS_PER_PASS):
        weights = _newton_step(ratios, counts, weights)
        ratios /= (ratios @ weights)[:, None]
        if counts.sum() * np.log((counts @ ratios).max() / counts.sum()) <= max_gap:
            break
    return weights


def _newton_step(ratios, counts, start):
    """New weights on the same components, with a higher likelihood.

    With p = ratios @ u, log p is close to (p - 1) - (p - 1)^2 / 2: the minimum over u >= 0 of
    u'Hu/2 - (2g - 1)'u is a non-negative least-squares problem. It is solved for u times the root
    of H's diagonal, whose entries may differ by ten orders of magnitude.
    """
    weighted = ratios * counts[:, None]
    hessian = ratios.T @ weighted / counts.sum()
    scale = np.sqrt(np.maximum(np.diag(hessian), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    roots = np.sqrt(np.maximum(values, 1e-14 * values[-1]))
    gradient = weighted.sum(0) / counts.sum()
    target = vectors.T @ ((2 * gradient - 1) / scale) / roots
    expected = start * gradient  # an EM step, which never lowers the likelihood
    try:
        goal, _ = scipy.optimize.nnls(roots[:, None] * vectors.T, target, maxiter=100 * len(start))
    except RuntimeError:  # nnls has an iteration limit
        return expected / expected.sum()
    if not goal.sum() > 0:
        return expected / expected.sum()
    goal = goal / scale
    direction = goal / goal.sum() - start
    change = ratios @ direction
    slope, step = counts @ change, 1.0
    # No observation may lose most of its likelihood at once: far out, the quadratic model fails.
    while step > 1e-12:
        ahead = step * change
        if ahead.min() > -0.95 and counts @ np.log1p(ahead) >= 1e-4 * step * slope:
            break
        step /= 2
    else:
        return expected / expected.sum()
    weights = np.maximum(start + step * direction, 0)
    weights[weights < 1e-14] = 0
    return weights / weights.sum()


# Newton steps on an active set, each far cheaper than the pass over all components before it.
_STEPS_PER_PASS = 10
