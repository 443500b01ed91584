"""Normal means: the law of X from noisy observations alone, by nonparametric maximum likelihood."""

import warnings

import numpy as np
from numpyro.util import find_stack_level
from scipy.optimize import nnls
from tqdm.auto import tqdm

from numpyro_neb._internal.checks import (
    Numbers,
    check_count,
    check_positive,
    check_shape,
    check_squares,
    finite_on_host,
)
from numpyro_neb.empirical_bayes.mixture_fit import MixtureFit, check_observations
from numpyro_neb.empirical_bayes.normal_kernel import NormalKernel


def fit_mixture(
    y: Numbers,
    sigma: Numbers,
    *,
    locs: Numbers | None = None,
    max_gap: float = 1e-3,
    max_iterations: int = 200,
    progress_bar: bool = True,
) -> MixtureFit:
    r"""The nonparametric maximum-likelihood estimate of the law of X, from noisy Y alone.

    Y_j = X_j + N(0, sigma_j^2 I), and the X_j are draws of an unknown law: the weights w on the
    locations m maximise

        sum_j log sum_i w_i N(y_j; m_i, sigma_j^2 I),

    a concave function. If you have clean X, use `MixtureEnergy(x, sigma)` or `fit` instead.

    Newton's method on an active set: over the current locations and the local maxima of the
    gradient g_i = mean_j N(y_j; m_i, ..) / f(y_j), it minimises the quadratic model for w >= 0,
    then searches the line towards that minimum. It stops when n log max_i g_i, a bound on how far
    the log-likelihood is below the best, is at most `max_gap`. It runs in float64 on the CPU, in
    blocks: it needs memory for n numbers per location of positive weight, of which there are few.

    Args:
        y: Observations, of shape (n,), or (n, *event_shape) in several dimensions.
        sigma: The noise's standard deviation, one for all or one for each, of shape (n,).
        locs: Where X may be, of shape (K, *event_shape). By default, in one dimension, a uniform
            grid of 300 points over the range of y, finer around observations with a sigma below ten
            spacings, and including zero if that is in the range; in several, the observations
            themselves (if there are few of them or many dimensions, each keeps its own location and
            nothing shrinks). For sign rates of effects that are either zero or large enough to
            matter, leave a gap around zero: the data can hardly tell zero from a tenth of sigma,
            and the likelihood will put weight on both.
        max_gap: The duality gap to reach, in units of the log-likelihood of all data.
        max_iterations: Maximum number of Newton steps.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The fit: `energy`, the mixture; `log_likelihood`; `posterior_mean`, `posterior_std`,
        `posterior_second_moment` and `lfsr` of each observation; `predict` for others. Use the
        posterior means; intervals and sign rates of point masses claim too much, and `lfsr` is NaN
        where point masses crowd zero (see `MixtureFit`).

    Raises:
        TypeError: If y, sigma, locs or max_gap holds anything but real numbers.
        ValueError: If y is empty or not finite, sigma is not positive or has the wrong shape, or
            locs does not fit y.

    Warns:
        UserWarning: If max_iterations was too few, with the gap reached; or if the grid had to be
            coarser than a fifth of sigma.

    Reference:
        Kiefer and Wolfowitz, Annals of Mathematical Statistics 27 (1956); Koenker and Mizera, JASA
        109 (2014), for the dual; Wang, JRSS B 69 (2007), for the constrained Newton method.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> rng = np.random.default_rng(0)
        >>> x = np.where(rng.random(1000) < 0.9, 0.0, 5.0)  # nine in ten are zero
        >>> y = x + rng.normal(size=1000)
        >>> fit = neb.fit_mixture(y, 1.0)
        >>> print(f"{np.sum((y - x) ** 2):.0f}, {np.sum((fit.posterior_mean - x) ** 2):.0f}")
        1052, 65
    """
    y, sigma = check_observations(y, sigma)
    max_gap = check_positive("max_gap", max_gap)
    max_iterations = check_count("max_iterations", max_iterations)
    candidates = _candidates(y, sigma, locs)
    kernel = NormalKernel(y.reshape(len(y), -1), sigma, candidates.reshape(len(candidates), -1))
    with tqdm(total=max_iterations, disable=not progress_bar, delay=1, desc="fit_mixture") as bar:
        active, weights, gap, steps = _maximise(kernel, max_gap, max_iterations, bar)
    if gap > max_gap:
        warnings.warn(
            f"fit_mixture stopped after max_iterations = {max_iterations} with a duality gap of"
            f" {gap:.3g}, above max_gap = {max_gap:.3g}",
            stacklevel=find_stack_level(),
        )
    level, blur = float(np.median(sigma)), _blur(candidates, sigma)
    return MixtureFit(y, sigma, candidates[active], weights, gap, steps, level, blur)


def _blur(candidates, sigma):
    """Two standard errors of a second moment near zero; zero if the candidates leave a gap."""
    sizes = np.abs(candidates[candidates != 0])
    if sizes.min(initial=np.inf) >= np.median(sigma) / 4:
        return 0.0
    # Var(y^2) = 2 sigma^4 of noise; each observation weighs by its inverse.
    least = sigma.min()
    return 2 * float(np.sqrt(2 / np.sum((least / sigma) ** 4))) * least**2


def _maximise(kernel, max_gap, max_iterations, bar):
    """The active locations, their weights, the duality gap, and the steps taken."""
    n, gap, steps = len(kernel.y), np.inf, 0
    active, weights = _start(kernel)
    for steps in range(max_iterations + 1):
        log_f = kernel.log_density(active, weights)
        gradient = kernel.gradient(log_f)
        gap = n * max(0.0, float(np.log(gradient.max())))
        bar.set_postfix(
            {"log-likelihood": f"{log_f.sum():.4f}", "gap": f"{gap:.3g}"}, refresh=False
        )
        if gap <= max_gap or steps == max_iterations:
            break
        bar.update()
        wider = np.union1d(active, _rising(kernel, gradient, active))
        start = np.zeros(len(wider))
        start[np.searchsorted(wider, active)] = weights
        ratios = kernel.ratios(wider, log_f)
        weights = _newton_step(ratios, start)
        active, weights = wider[weights > 0], weights[weights > 0]
    return active, weights, gap, steps


def _start(kernel):
    """Locations near all observations; in several dimensions, those that EM favours."""
    count = len(kernel.locs)
    if kernel.locs.shape[1] == 1:
        # The location nearest each observation, or one within the same two sigmas.
        y, locs = kernel.y[:, 0], kernel.locs[:, 0]
        octave = np.floor(np.log2(kernel.sigma))
        cells = np.stack([octave, np.round(y / 2.0 ** (octave + 1))], axis=1)
        chosen = np.unique(cells, axis=0, return_index=True)[1]
        middle = (locs[1:] + locs[:-1]) / 2
        active = np.unique(np.searchsorted(middle, y[chosen]))
        return active, np.full(len(active), 1 / len(active))
    weights = np.full(count, 1 / count)
    for _ in range(10):
        weights *= kernel.gradient(kernel.log_density(np.arange(count), weights))
    active = np.flatnonzero(weights >= 0.5 / count)
    return active, weights[active] / weights[active].sum()


def _rising(kernel, gradient, active):
    """Locations to add: the gradient's local maxima that would raise the likelihood."""
    if kernel.locs.shape[1] == 1:
        padded = np.concatenate([[-np.inf], gradient, [-np.inf]])
        peaks = (gradient >= padded[:-2]) & (gradient >= padded[2:])
    else:
        # The highest in the neighbourhood of each active location.
        nearest = np.argmin(_squares(kernel.locs, kernel.locs[active]), axis=1)
        order = np.lexsort((-gradient, nearest))
        peaks = np.zeros(len(gradient), bool)
        peaks[order[np.unique(nearest[order], return_index=True)[1]]] = True
    return np.flatnonzero(peaks & (gradient > 1))


def _squares(a, b):
    return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T


def _newton_step(ratios, start):
    """New weights on the same locations, with a higher likelihood.

    With p = ratios @ u, log p is close to (p - 1) - (p - 1)^2 / 2: the minimum over u >= 0 of
    u'Hu/2 - (2g - 1)'u is a non-negative least-squares problem.
    """
    n = len(ratios)
    values, vectors = np.linalg.eigh(ratios.T @ ratios / n)
    roots = np.sqrt(np.maximum(values, 1e-12 * values[-1]))
    gradient = ratios.mean(0)
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
    slope, step = change.sum(), 1.0
    # No observation may lose most of its likelihood at once: far out, the quadratic model fails.
    while step > 1e-12:
        factors = 1 + step * change
        if factors.min() > 0.05 and np.log(factors).sum() >= 1e-4 * step * slope:
            break
        step /= 2
    else:
        return expected / expected.sum()
    weights = np.maximum(start + step * direction, 0)
    weights[weights < 1e-14] = 0
    return weights / weights.sum()


def _candidates(y, sigma, locs):
    if locs is not None:
        locs = finite_on_host("locs", locs, in_jax=True)
        check_shape("locs", locs, ("K", *y.shape[1:]))
        check_squares("locs", locs, sigma.min())
        return np.unique(locs, axis=0)
    if y.ndim > 1:
        return np.unique(y, axis=0)
    low, high = y.min(), y.max()
    if high - low <= 1e-300:  # a grid would have no spacing
        return np.asarray([low])
    coarser, locs = 1.0, _grid(y, sigma, 1.0)
    while len(locs) > max(3000, 2e7 / len(y)):
        coarser *= 2
        locs = _grid(y, sigma, coarser)
    if coarser > 2:
        warnings.warn(
            f"locs would be too many at a tenth of sigma: the grid's spacing is {coarser / 10:g}"
            " sigma, and the likelihood may lie below the best by more than the duality gap",
            stacklevel=find_stack_level(),
        )
    return locs


def _grid(y, sigma, coarser):
    """A coarse grid over the range of y, refined around each observation to a tenth of sigma."""
    low, high = y.min(), y.max()
    widest = (high - low) / 300
    # Multiples of the spacing: zero, a common true value, is one of them if it is in the range.
    parts = [np.arange(np.floor(low / widest), np.ceil(high / widest) + 1)]
    octaves = np.floor(np.log2(sigma))
    for octave in np.unique(octaves):
        finest = 0.1 * coarser * 2.0**octave
        if finest >= widest:
            continue
        # Halvings of one grid: locations of different octaves coincide, or lie well apart.
        share = 0.5 ** np.ceil(np.log2(widest / finest))
        cells = np.unique(np.round(y[octaves == octave] / (widest * share)))
        near = np.arange(-int(80 / coarser), int(80 / coarser) + 1)
        parts.append(np.unique((cells[:, None] + near).ravel()) * share)
    locs = widest * np.unique(np.concatenate(parts))
    return locs[(locs > low - widest) & (locs < high + widest)]
