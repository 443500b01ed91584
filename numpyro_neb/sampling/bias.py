"""The bias of a walk without a Metropolis test, measured by Stein's identity."""

import warnings
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.util import find_stack_level

__all__ = ["measure_bias"]

# Effective draws from which a Monte Carlo standard error can be trusted.
_ENOUGH = 100
# An R-hat beyond which chains have not mixed (Vehtari et al. 2021), and draws that should suffice.
_APART, _MANY = 1.01, 1000


def measure_bias(data: Any, max_bias: float) -> None:
    """Writes the measured bias of a tuned walk's variances to `sample_stats`, and warns of it.

    Under the exact law E (y_i - c_i) d_i phi(y) = 1 for each coordinate and any fixed c, in the
    unconstrained space that the walk moves in. If a Gaussian's variance comes out as s'^2 where it
    is s^2, the mean is s'^2 / s^2. So the mean of `stein_ratio` minus 1 estimates the relative bias
    of the variances, averaged over the coordinates. Its attribute is `variance_bias`, that of its
    Monte Carlo standard error `variance_bias_mcse`. Draws of chains that diverged are left out.

    In a funnel or a heavy tail, an unadjusted walk may stay where its step is right, or be stuck
    where it is too long; then the mean above says little, but the chains differ in their densities.

    Args:
        data: What ArviZ made of the draws.
        max_bias: The kernel's.

    Warns:
        UserWarning: If the bias is beyond max_bias by more than two standard errors, and the draws
            are worth at least 100 independent ones: the error itself is not known from fewer. Or if
            the R-hat of the log density or of `stein_ratio` is beyond 1.01, in 1,000 draws or more.

    Reference:
        Stein, Annals of Statistics 9 (1981), lemma 2.
    """
    stats = data["sample_stats"]
    if "stein_ratio" not in stats:
        return
    ratio = np.asarray(stats["stein_ratio"].values, float)
    diverging = np.asarray(stats["diverging"].values).any(axis=1)
    ratio = ratio[~diverging]
    if not ratio.shape[0] or ratio.shape[1] < 4:
        return
    bias = float(ratio.mean() - 1)
    size = float(effective_sample_size(ratio))
    error = float(ratio.std() / np.sqrt(size))
    stats.attrs |= {"variance_bias": bias, "variance_bias_mcse": error}
    if size >= _ENOUGH and abs(bias) - max_bias > 2 * error:
        warnings.warn(
            f"the walk is biased: by Stein's identity variances are {1 + bias:.2f} ± {error:.2f} of"
            f" the exact ones, if the law were Gaussian, and max_bias is {max_bias}. Take"
            " integrator=integrators.GHMC(), whose law is exact, or a smaller max_bias.",
            stacklevel=find_stack_level(),
        )
        return
    lp = np.asarray(stats["lp"].values, float)[~diverging] if "lp" in stats else ratio
    apart = max(split_gelman_rubin(values) for values in (ratio, lp))
    if ratio.shape[1] >= _MANY and apart > _APART:
        warnings.warn(
            f"R-hat of the log density is {apart:.3f}, above {_APART}: there are too few draws,"
            " or the law has a funnel or a heavy tail, where no step of an unadjusted walk is"
            " right. Take more draws, or integrator=integrators.GHMC(), whose law is exact.",
            stacklevel=find_stack_level(),
        )
