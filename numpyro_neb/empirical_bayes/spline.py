"""Efron's g-modelling: a prior whose log density is a natural cubic spline."""

from typing import Any

import numpy as np
import scipy
from jaxtyping import Float
from scipy.special import log_softmax

from numpyro_neb.empirical_bayes.kernels import AbstractKernel


def spline_weights(
    kernel: AbstractKernel, positions: Float[np.ndarray, " K"], degrees: int, penalty: float
) -> Float[np.ndarray, " K"]:
    r"""The weights exp(Q a - log sum exp(Q a)) on a grid, with Q a natural cubic spline's basis.

    They maximise the penalised log-likelihood sum_j log sum_i w_i p(y_j | i) - penalty * norm(a).
    The columns of Q are centred and have norm one, so that penalty 1 is about one observation's
    worth of information, and large penalties lead to equal weights.

    Args:
        kernel: The likelihood of each observation under each component.
        positions: Where the components are, in increasing order.
        degrees: The dimension of the spline.
        penalty: c_0, not negative.

    Reference:
        Efron, Biometrika 103 (2016); Narasimhan and Efron, J. Stat. Software 94 (2020).
    """
    basis = natural_spline(positions, degrees)
    basis = basis - basis.mean(0)
    basis = basis / np.linalg.norm(basis, axis=0)

    def objective(slopes):
        log_weights = log_softmax(basis @ slopes)
        weights = np.exp(log_weights)
        log_f = kernel.log_density(np.arange(kernel.num_columns), weights)
        total = kernel.counts.sum()
        # The derivative by log w_i, before the weights are normalised.
        pull = total * weights * (kernel.gradient(log_f) - 1)
        size = np.sqrt(slopes @ slopes + _TINY)
        value = penalty * size - kernel.counts @ log_f
        return value, penalty * slopes / size - basis.T @ pull

    start = np.zeros(degrees)
    found = scipy.optimize.minimize(
        objective, start, jac=True, method="BFGS", options={"gtol": 1e-7 * kernel.counts.sum()}
    )
    return np.exp(log_softmax(basis @ found.x))


# A norm's derivative at zero.
_TINY = 1e-16


def natural_spline(x: Float[np.ndarray, " K"], degrees: int) -> Float[np.ndarray, "K degrees"]:
    """A basis of the natural cubic splines on x without the constant, with knots at its quantiles.

    It is linear beyond the first and the last x. The basis is that of the B-splines, less what has
    a second derivative at the ends, as in Hastie's `ns`, since a penalty depends on the basis.
    """
    inner = np.quantile(x, np.linspace(0, 1, degrees + 1)[1:-1])
    knots = np.concatenate([np.repeat(x[0], 4), inner, np.repeat(x[-1], 4)])
    size = len(knots) - 4
    splines = scipy.interpolate.BSpline(knots, np.eye(size), 3)
    ends: Any = splines.derivative(2)(x[[0, -1]])
    orthogonal: Any = scipy.linalg.qr(ends[:, 1:].T, mode="full")[0]
    return splines(x)[:, 1:] @ orthogonal[:, 2:]
