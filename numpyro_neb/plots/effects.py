"""Pictures of a fit of noisy observations: shrinkage, the prior, and discoveries."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from numpyro_neb._internal.checks import check_positive, check_type, require
from numpyro_neb.empirical_bayes.mixture_fit import MixtureFit

_MOST = 2000


def shrinkage(fit: MixtureFit, *, probability: float = 0.9, ax: Axes | None = None) -> Axes:
    """Posterior means against observations, with credible intervals; larger dots are more precise.

    Without shrinkage all dots lie on the dashed line. Of more than 2,000 observations every k-th is
    shown, in the order of y.

    Args:
        fit: A fit of numbers, from `fit_mixture`.
        probability: The probability of each interval.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If fit is not a `MixtureFit`.
        ValueError: If its observations are not numbers, or probability is not between 0 and 1.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> y = 2 * np.random.default_rng(0).normal(size=50)
        >>> ax = neb.plots.shrinkage(neb.fit_mixture(y, 1.0, prior="scale_mixture"))
    """
    check_positive("probability", probability, 1.0)
    _checked(fit)
    ax = _axes(ax)
    if fit.sigma is None:
        (size,) = fit.observed.known.values()
        seen, precision = fit.y / size, size
    else:
        known = fit.observed.informative
        seen = np.where(np.isfinite(fit.sigma), fit.y, np.nan)
        precision = 1 / np.where(known, fit.sigma, np.median(fit.sigma[known]))
    order = np.argsort(seen)[: int(np.isfinite(seen).sum())]
    rows = order[:: -(-len(order) // _MOST)]
    lower, upper = (np.asarray(end, float)[rows] for end in fit.posterior.interval(probability))
    size = 4 + 26 * (precision[rows] - precision.min()) / max(np.ptp(precision), 1e-300)
    ax.vlines(seen[rows], lower, upper, color="0.75", linewidth=0.8, label=f"{probability:.0%}")
    ax.scatter(seen[rows], fit.posterior_mean[rows], s=size, zorder=3, label="posterior mean")
    ends = [seen[rows].min(), seen[rows].max()]
    ax.plot(ends, ends, "k--", linewidth=0.8, label="no shrinkage")
    ax.set(xlabel="observation", ylabel="X given y")
    ax.legend(frameon=False)
    return ax


def prior(fit: MixtureFit, *, ax: Axes | None = None) -> Axes:
    """The fitted law of X: a curve for its density, and a line for each point mass.

    The histogram shows the observations. With `location_scale` the law is that at the median sigma.

    Args:
        fit: A fit of numbers, from `fit_mixture`, with one law for all observations.
        ax: Where to draw; new axes by default.

    Returns:
        The axes, with a second one at their right for the weights of point masses.

    Raises:
        TypeError: If fit is not a `MixtureFit`.
        ValueError: If its observations are not numbers, or their laws depend on covariates.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> y = 2 * np.random.default_rng(0).normal(size=50)
        >>> ax = neb.plots.prior(neb.fit_mixture(y, 1.0, prior="scale_mixture"))
    """
    shared = _checked(fit).prior.by_covariates is None
    require(shared, "fit must have one prior for all observations")
    ax = _axes(ax)
    known = next(iter(fit.observed.known.values()))
    seen = fit.y / known if fit.sigma is None else fit.y[fit.observed.informative]
    ax.hist(seen, bins="auto", density=True, color="0.85", label="observations")
    shift, stretch = (float(a[0]) for a in fit.prior.placed(np.array([fit.level])))
    locs, spread = shift + stretch * fit.locs, stretch**2 * fit.prior.variances
    smooth = spread > 0
    if smooth.any():
        x = np.linspace(seen.min(), seen.max(), 1000)
        logs = -((x[:, None] - locs[smooth]) ** 2) / (2 * spread[smooth])
        density = np.exp(logs) @ (fit.weights[smooth] / np.sqrt(2 * np.pi * spread[smooth]))
        ax.plot(x, density, label="density of X")
    ax.set(xlabel="X", ylabel="density")
    ax.legend(frameon=False, loc="upper left")
    if not smooth.all():
        right = ax.twinx()
        right.vlines(locs[~smooth], 0, fit.weights[~smooth], color="C1", label="point masses")
        right.set(ylabel="weight", ylim=(0, None))
        right.legend(frameon=False, loc="upper right")
    return ax


def fdr(fit: MixtureFit, *, level: float = 0.1, ax: Axes | None = None) -> Axes:
    """How many observations can be reported at each false discovery rate.

    The curve shows the q-values of `fit.q_values` in increasing order.

    Args:
        fit: A fit of numbers with normal noise, from `fit_mixture`.
        level: The false discovery rate to mark.
        ax: Where to draw; new axes by default.

    Returns:
        The axes.

    Raises:
        TypeError: If fit is not a `MixtureFit`.
        ValueError: If its observations are not numbers with normal noise, level is not between 0
            and 1, or the fit has no sign rates.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> y = 3 * np.random.default_rng(0).normal(size=50)
        >>> ax = neb.plots.fdr(neb.fit_mixture(y, 1.0, prior="scale_mixture"))
    """
    level = check_positive("level", level, 1.0)
    require(_checked(fit).sigma is not None, "fit must be of observations with normal noise")
    require(not fit.lfsr_withheld, f"fit must have sign rates: {fit.lfsr_withheld}")
    ax = _axes(ax)
    values = np.sort(fit.q_values)
    count = int(np.sum(values <= level))
    ax.plot(np.arange(1, len(values) + 1), values)
    ax.axhline(level, color="0.7", linestyle="--")
    ax.plot([count], [level], "o", color="C1", label=f"{count} at a rate of {level:g}")
    ax.set(xlabel="observations reported", ylabel="share that is wrong", ylim=(0, None))
    ax.legend(frameon=False)
    return ax


def _checked(fit: Any) -> MixtureFit:
    check_type("fit", fit, MixtureFit, "a MixtureFit")
    numbers = fit.y.ndim == 1
    require(numbers, f"fit must be of observations of shape (n,), got {fit.y.shape}")
    return fit


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(5, 3.4), layout="constrained")[1] if ax is None else ax
