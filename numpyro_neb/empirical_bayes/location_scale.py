"""The mean and the scale of X as functions of the standard error, by local linear regression."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class LocationScale(NamedTuple):
    """X given sigma is m(sigma) + s(sigma) eta, with the law of eta the same for all sigma.

    Attributes:
        log_sigma: log10 of the standard errors that it was fitted to, in increasing order.
        location: m at each of them.
        scale: s at each of them.
    """

    log_sigma: Float[np.ndarray, " n"]
    location: Float[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]

    def __call__(
        self, sigma: Float[np.ndarray, "*batch"]
    ) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
        """The values of m and s at standard errors; beyond the data, those at the ends."""
        with np.errstate(divide="ignore"):
            x = np.log10(sigma)
        return (
            np.interp(x, self.log_sigma, self.location),
            np.interp(x, self.log_sigma, self.scale),
        )


def location_scale(y: Float[np.ndarray, " n"], sigma: Float[np.ndarray, " n"]) -> LocationScale:
    r"""Local linear estimates of m(sigma) = E[X | sigma] and s(sigma) = sd(X | sigma).

    m is the regression of y on log10 sigma, and s^2 that of (y - m)^2, less sigma^2. s^2 is kept
    above 2 / (k + 2) times the regression of (y - m)^2, or times the smallest sigma^2 if that is
    larger, with k the number of observations that count in the window.

    Args:
        y: Observations.
        sigma: The standard error of each.

    Reference:
        Chen, "Empirical Bayes when estimation precision predicts parameters" (2022), section 3.
    """
    order = np.argsort(sigma, kind="stable")
    x, y, sigma = np.log10(sigma[order]), y[order], sigma[order]
    if x[-1] - x[0] < 1e-12:
        scale = np.sqrt(max(y.var() - sigma[0] ** 2, 2 / (len(y) + 2) * max(y.var(), 1e-300)))
        return LocationScale(x[:1], y.mean(keepdims=True), np.array([scale]))
    location, _ = local_linear(x, y)
    square, effective = local_linear(x, (y - location) ** 2)
    square = np.maximum(square, 0)
    floor = 2 / (effective + 2) * np.maximum(square, sigma.min() ** 2)
    return LocationScale(x, location, np.sqrt(np.maximum(square - sigma**2, floor)))


def local_linear(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The local linear regression of y on increasing x, and how many observations count at each.

    The kernel is Epanechnikov's. The bandwidth is the rule of thumb for the integrated squared
    error, from a global quartic fit.

    Reference:
        Fan and Gijbels, "Local Polynomial Modelling and Its Applications" (1996), section 4.2.
    """
    points = np.unique(np.quantile(x, np.linspace(0, 1, _NUM_POINTS)))
    bandwidth = _bandwidth(x, y)
    fitted, effective = np.empty(len(points)), np.empty(len(points))
    for i, point in enumerate(points):
        fitted[i], effective[i] = _at(x, y, point, bandwidth)
    return np.interp(x, points, fitted), np.interp(x, points, effective)


def _at(x, y, point, bandwidth):
    # At least the nearest few, where the data are sparse.
    distance = np.abs(x - point)
    near = np.partition(distance, min(_LEAST, len(x) - 1))[min(_LEAST, len(x) - 1)]
    width = max(bandwidth, 1.01 * near)
    inside = slice(*np.searchsorted(x, [point - width, point + width]))
    u = x[inside] - point
    weight = np.maximum(1 - (u / width) ** 2, 0)
    moments = [np.sum(weight * u**power) for power in range(3)]
    determinant = moments[0] * moments[2] - moments[1] ** 2
    if determinant <= 1e-10 * moments[0] * width**2 * moments[0]:
        own = weight / moments[0]
    else:
        own = weight * (moments[2] - moments[1] * u) / determinant
    return own @ y[inside], 1 / np.sum(own**2)


def _bandwidth(x, y):
    middle = (x >= np.quantile(x, 0.05)) & (x <= np.quantile(x, 0.95))
    scaled = (x - x.mean()) / x.std()
    quartic = np.polynomial.Polynomial.fit(scaled, y, min(4, len(np.unique(x)) - 1))
    noise = np.mean((y - quartic(scaled)) ** 2)
    curvature = np.sum(quartic.deriv(2)(scaled[middle]) ** 2)
    length = scaled[middle].max() - scaled[middle].min()
    span = scaled[-1] - scaled[0]
    if curvature <= 0:
        return span * x.std()
    # 1.719 is the constant of Epanechnikov's kernel.
    return x.std() * min(1.719 * (noise * length / curvature) ** 0.2, span)


# The regression is computed at this many quantiles, and linear between them.
_NUM_POINTS = 400
# A window holds at least so many observations.
_LEAST = 10
