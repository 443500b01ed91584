"""Empirical-Bayes intervals that cover on average whatever the law of X."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from numpyro_neb._internal.checks import (
    Numbers,
    check_positive,
    check_shape,
    finite_on_host,
    require,
)
from numpyro_neb.empirical_bayes.mixture_fit import MixtureFit
from numpyro_neb.empirical_bayes.observations import NormalObservations


class PriorMoments(NamedTuple):
    """The moments of X about its regression that the robust intervals rest on.

    Attributes:
        centre: The regression of X on the covariates for each observation, of shape (n,).
        second_moment: E (X - centre)^2.
        kurtosis: E (X - centre)^4 / second_moment^2.
    """

    centre: Float[np.ndarray, " n"]
    second_moment: float
    kurtosis: float


def cva(second_moment: float, kurtosis: float = math.inf, alpha: float = 0.05) -> float:
    r"""The critical value of an interval whose bias is known by its moments.

    With t ~ N(b, 1), it is the smallest chi such that P(abs(t) > chi) is at most alpha on average
    over *every* law of the bias b with E b^2 = second_moment and E b^4 at most
    kurtosis * second_moment^2. The worst average is a linear programme over laws of b^2; a law of
    at most two points solves it, so that what is left is a maximum over one number.

    Args:
        second_moment: E b^2, in squared standard errors of the estimate; not negative.
        kurtosis: A bound on E b^4 / (E b^2)^2, at least one; infinite if not known.
        alpha: The average probability of missing, between 0 and 1.

    Returns:
        chi, in standard errors.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Armstrong, Kolesar and Plagborg-Moller, Econometrica 90 (2022), sections 3 and 4.

    Example:
        >>> import numpyro_neb as neb
        >>> print(f"{neb.empirical_bayes.cva(4.0, kurtosis=3.0, alpha=0.05):.4f}")
        4.6195
    """
    alpha = check_positive("alpha", alpha, 1.0)
    kurtosis = float(kurtosis)
    require(kurtosis >= 1, f"kurtosis must be at least 1, got {kurtosis}")
    second_moment = float(second_moment)
    fits = 0 <= second_moment < math.inf
    require(fits, f"second_moment must be finite and not negative, got {second_moment}")
    return _critical_value(second_moment, kurtosis, alpha)


def robust_interval(
    fit: MixtureFit,
    probability: float = 0.9,
    kurtosis: float | None = None,
    *,
    covariates: Numbers | None = None,
    weights: Numbers | None = None,
    length_optimal: bool = False,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    r"""Intervals for each X_j whose average coverage does not depend on the law of X.

    About the shrinkage estimate mu_j + w_j (y_j - mu_j), with w_j = S_j / (1 + S_j) and
    S_j = second_moment / sigma_j^2, the interval reaches

        cva((1 / w_j - 1)^2 S_j, kurtosis, 1 - probability) w_j sigma_j

    to either side. Only the second moment and the kurtosis of X - mu are estimated from the data;
    the fitted mixture is not used, but for its observations. Of all n intervals a share of at least
    `probability` covers, in the limit of many observations, if (X - mu)^2 does not depend on
    sigma. The average is over the observations: those with an extreme X are covered less often.
    Use these intervals if the shape of the law of X is in doubt; `fit.posterior.interval` is
    shorter where the fitted prior is right.

    Args:
        fit: A fit of observations in one dimension; its y and sigma are used.
        probability: The average coverage.
        kurtosis: The kurtosis of X - mu; None to estimate it, `math.inf` to assume nothing.
        covariates: Columns that mu is a linear regression on, of shape (n, p), without an
            intercept, which is always included.
        weights: The weight of each observation in the regression and the moments; equal ones by
            default.
        length_optimal: Whether w_j is chosen for the shortest interval, in place of the least
            squared error.

    Returns:
        The lower and the upper ends.

    Raises:
        TypeError: If an argument does not hold real numbers.
        ValueError: If the fit is not of observations in one dimension with normal noise, or an
            argument is out of range.

    Reference:
        Armstrong, Kolesar and Plagborg-Moller, Econometrica 90 (2022).

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_t(3, size=2000)
        >>> fit = neb.fit_mixture(x + rng.normal(size=2000), 1.0)
        >>> lower, upper = neb.empirical_bayes.robust_interval(fit, 0.9)
        >>> bool(np.mean((lower <= x) & (x <= upper)) > 0.88)
        True
    """
    alpha = 1 - check_positive("probability", probability, 1.0)
    normal = isinstance(fit.observed, NormalObservations)
    require(normal, "fit must be of normal noise with a standard deviation for each observation")
    moments = prior_moments(fit.y, fit.sigma, covariates=covariates, weights=weights)
    kurtosis = moments.kurtosis if kurtosis is None else float(kurtosis)
    require(kurtosis >= 1, f"kurtosis must be at least 1, got {kurtosis}")
    shrinkage, half = _intervals(fit.sigma, moments.second_moment, kurtosis, alpha, length_optimal)
    seen = np.where(np.isfinite(fit.sigma), fit.y, moments.centre)
    estimate = moments.centre + shrinkage * (seen - moments.centre)
    return estimate - half, estimate + half


def prior_moments(
    y: Numbers,
    sigma: Numbers,
    *,
    covariates: Numbers | None = None,
    weights: Numbers | None = None,
    trim: bool = True,
) -> PriorMoments:
    r"""The regression of X on covariates, and the moments of X about it, from noisy Y.

    With e the residuals of the weighted regression of y, second_moment = mean(e^2 - sigma^2), and
    the fourth moment is mean(e^4 - 6 sigma^2 e^2 + 3 sigma^4), weighted. If `trim`, both are kept
    above the estimates of their posterior means under a flat prior, so that noise does not make
    them zero or negative.

    Args:
        y: Observations, of shape (n,).
        sigma: The noise of each, a scalar or of shape (n,); an infinite one is left out.
        covariates: As for `robust_interval`.
        weights: As for `robust_interval`.
        trim: Whether to bound the moments from below.

    Returns:
        The regression's value for each observation, and the two moments.

    Raises:
        TypeError: If an argument does not hold real numbers.
        ValueError: If an argument has the wrong shape or is out of range, or no observation has a
            finite sigma.

    Reference:
        Armstrong, Kolesar and Plagborg-Moller, Econometrica 90 (2022), section 4.1.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> rng = np.random.default_rng(0)
        >>> y = 2 * rng.normal(size=10_000) + rng.normal(size=10_000)
        >>> moments = neb.empirical_bayes.prior_moments(y, 1.0)
        >>> print(f"{moments.second_moment:.1f}, {moments.kurtosis:.1f}")
        3.9, 3.0
    """
    observed = NormalObservations.of(y, sigma)
    check_shape("y", observed.y, ("n",))
    y, sigma, seen = observed.y, observed.sigma, np.isfinite(observed.sigma)
    columns = np.ones((len(y), 1))
    if covariates is not None:
        given = finite_on_host("covariates", covariates)
        check_shape("covariates", given, (len(y), "p"))
        columns = np.hstack([columns, given])
    weights = np.ones(len(y)) if weights is None else finite_on_host("weights", weights)
    check_shape("weights", weights, y.shape)
    require(bool(np.all(weights >= 0)), "weights must not be negative")
    root = np.sqrt(weights[seen])
    slopes = np.linalg.lstsq(columns[seen] * root[:, None], y[seen] * root, rcond=None)[0]
    centre = columns @ slopes
    moments = _moments(y[seen] - centre[seen], sigma[seen], weights[seen], trim)
    return PriorMoments(centre, *moments)


def _moments(residual, se, weights, trim):
    average = lambda values: float(np.average(values, weights=weights))  # noqa: E731
    second = average(residual**2 - se**2)
    fourth = average(residual**4 - 6 * se**2 * residual**2 + 3 * se**4)
    if trim:
        least = 2 * np.mean(weights**2 * se**4) / (np.sum(weights) * np.mean(weights * se**2))
        second = max(second, float(least))
    kurtosis = fourth / second**2 if second > 0 else math.inf
    if trim:
        excess = 32 * np.mean(weights**2 * se**8) / (np.sum(weights) * np.mean(weights * se**4))
        kurtosis = max(kurtosis, 1 + float(excess) / second**2)
    return second, kurtosis


def _intervals(sigma, second_moment, kurtosis, alpha, length_optimal):
    """The shrinkage factor and half the length of each interval."""
    # A missing observation's interval is the limit of large sigma.
    largest = 1e4 * math.sqrt(second_moment) if second_moment > 0 else 1.0
    se = np.minimum(sigma, np.maximum(largest, np.max(sigma[np.isfinite(sigma)])))
    unique, inverse = np.unique(se, return_inverse=True)
    nodes = unique if len(unique) <= _NUM_NODES else _nodes(unique)
    each = np.array([_one(s, second_moment, kurtosis, alpha, length_optimal) for s in nodes])
    if nodes is not unique:
        each = np.stack([np.interp(unique, nodes, column) for column in each.T], axis=1)
    return each[inverse, 0], each[inverse, 1]


# Up to this many unequal standard errors, each has its own critical value; beyond, they are
# interpolated between as many.
_NUM_NODES = 1000


def _nodes(unique):
    return np.interp(np.linspace(0, 1, _NUM_NODES), np.linspace(0, 1, len(unique)), unique)


def _one(se, second_moment, kurtosis, alpha, length_optimal):
    if se == 0:
        return 1.0, 0.0
    signal = second_moment / se**2
    if signal == 0:
        return 0.0, 0.0

    def length(shrinkage):
        bias = (1 / shrinkage - 1) ** 2 * signal
        return _critical_value(bias, kurtosis, alpha) * shrinkage * se

    best = signal / (1 + signal)
    if length_optimal:
        inside: Any = scipy.optimize.minimize_scalar(
            length, bounds=(1e-3 * best, 1.0), method="bounded", options={"xatol": 1e-6}
        )
        best = float(inside.x)
    return best, length(best)


@lru_cache(maxsize=4096)
def _critical_value(second_moment, kurtosis, alpha):
    if second_moment == 0:
        return float(-ndtri(alpha / 2))
    # Between the value without a bias, and that of Chebyshev's inequality.
    low, high = 0.0, math.sqrt((1 + second_moment) / alpha) + 1
    missing = lambda chi: _worst(second_moment, kurtosis, chi) - alpha  # noqa: E731
    root: Any = scipy.optimize.brentq(missing, low, high, xtol=1e-11)
    return float(root)


def _worst(second_moment, kurtosis, chi):
    """The largest E P(abs(N(b, 1)) > chi) over laws of b with these moments."""
    turn = _concave_from(chi)
    if second_moment >= turn:
        return float(_miss(second_moment, chi))
    if turn <= kurtosis * second_moment:
        share = second_moment / turn
        return float((1 - share) * _miss(0.0, chi) + share * _miss(turn, chi))

    # The bound on the kurtosis holds with equality, for two points of b^2.
    def average(low):
        high = second_moment + (kurtosis - 1) * second_moment**2 / (second_moment - low)
        share = (second_moment - low) / (high - low)
        return (1 - share) * _miss(low, chi) + share * _miss(high, chi)

    lows = second_moment * np.linspace(0, 1, 65)[:-1]
    values = average(lows)
    best = int(np.argmax(values))
    around = lows[max(best - 1, 0)], lows[min(best + 1, len(lows) - 1)]
    inside: Any = scipy.optimize.minimize_scalar(
        lambda low: -average(low), bounds=around, method="bounded", options={"xatol": 1e-10}
    )
    return float(max(values[best], -inside.fun))


def _miss(square, chi):
    """P(abs(N(b, 1)) > chi) for b^2 = square."""
    bias = np.sqrt(square)
    return ndtr(-chi - bias) + ndtr(bias - chi)


def _slope(square, chi):
    """The derivative of `_miss` by b^2."""
    bias = math.sqrt(square)
    if bias < 1e-8:
        return chi * math.exp(-(chi**2) / 2) / math.sqrt(2 * math.pi)
    near, far = math.exp(-((chi - bias) ** 2) / 2), math.exp(-((chi + bias) ** 2) / 2)
    return (near - far) / (2 * bias * math.sqrt(2 * math.pi))


def _concave_from(chi):
    """Where the chord from 0 touches `_miss` as a function of b^2; it is concave beyond."""
    if chi <= math.sqrt(3):
        return 0.0

    def above(square):
        return _miss(square, chi) - _miss(0.0, chi) - square * _slope(square, chi)

    # At b = chi the chord is still the steeper one, for all but small chi.
    low, high = (chi**2 if chi > 2.6 else 1e-3), (chi + 1) ** 2
    if above(low) >= 0:
        return 0.0
    while above(high) < 0:
        high *= 2
    root: Any = scipy.optimize.brentq(above, low, high, xtol=1e-12)
    return float(root)
