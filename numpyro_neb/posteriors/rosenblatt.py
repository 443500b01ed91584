"""A mixture of Gaussians as a smooth function of standard normal noise."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from numpyro_neb.posteriors.components import contract


@jax.custom_jvp
def rosenblatt(
    log_weights: Float[Array, " K"],
    means: Float[Array, "K d"],
    factors: Float[Array, "K d d"],
    eps: Float[Array, " d"],
) -> Float[Array, " d"]:
    r"""Maps eps ~ N(0, I) to x ~ sum_i w_i N(m_i, L_i L_i'), one coordinate after the other.

        x_j = F_j^-1(Phi(eps_j)),    F_j(x) = P(X_j <= x given X_1 = x_1, ..., X_(j-1) = x_(j-1))

    For one component it is m + L eps. Between components that are far apart it is steep, but
    smooth, so that a gradient-based sampler can cross there. Its cost is d quantiles of a mixture
    in one dimension, by bisection.

    Args:
        log_weights: log w_i, summing to one.
        means: The m_i.
        factors: The L_i, lower triangular with a positive diagonal.
        eps: Standard normal noise.

    Reference:
        Rosenblatt, Remarks on a multivariate transformation, Annals of Mathematical Statistics 23
        (1952).
    """

    def next_coordinate(carry, inputs):
        log_weights, z = carry  # z_i = L_i^-1 (x - m_i), as far as x is known
        means, rows, unit, eps = inputs
        centres = means + contract("kd,kd->k", rows, z)
        deviations = contract("kd,d->k", rows, unit)
        x = _quantile(log_weights, centres, deviations, eps)
        new = (x - centres) / deviations
        log_weights = jax.nn.log_softmax(log_weights - new**2 / 2 - jnp.log(deviations))
        return (log_weights, z + new[:, None] * unit[None]), x

    inputs = means.T, jnp.swapaxes(factors, 0, 1), jnp.eye(len(eps), dtype=eps.dtype), eps
    return jax.lax.scan(next_coordinate, (log_weights, jnp.zeros_like(means)), inputs)[1]


@rosenblatt.defjvp
def _rosenblatt_jvp(primals, tangents):
    # The implicit function theorem: `_excess` is zero, and its Jacobian in x is triangular.
    x = rosenblatt(*primals)
    change = jax.jvp(lambda *args: _excess(x, *args), primals, tangents)[1]
    slopes = jax.jacfwd(_excess)(x, *primals)
    flat = jnp.diagonal(slopes) == 0  # where the density underflows
    slopes += jnp.diag(flat.astype(x.dtype))
    return x, -solve_triangular(slopes, change, lower=True)


def _excess(x, log_weights, means, factors, eps):
    """Log F_j(x_j) - log Phi(eps_j) for each j, of the upper tails where eps_j > 0."""
    z = solve_triangular(factors, (x[None] - means)[:, :, None], lower=True)[:, :, 0]
    logs = -(z**2) / 2 - jnp.log(jnp.diagonal(factors, axis1=1, axis2=2))
    before = jnp.cumsum(jnp.pad(logs, ((0, 0), (1, 0)))[:, :-1], axis=1)
    log_weights = jax.nn.log_softmax(log_weights[:, None] + before, axis=0)
    sign = jnp.where(eps > 0, -1, 1).astype(eps.dtype)
    logs = log_weights + log_ndtr(sign[None] * z)
    return jax.nn.logsumexp(logs, axis=0) - log_ndtr(sign * eps)


def _quantile(log_weights, means, deviations, eps):
    """The quantile at Phi(eps) of a mixture in one dimension, by bisection."""
    # In the lower tail, of x or of -x, the logarithm of a probability keeps its digits.
    sign = jnp.where(eps > 0, -1, 1).astype(eps.dtype)
    means, eps = sign * means, sign * eps
    log_q = log_ndtr(eps)
    # It lies between the components' own quantiles; one of no weight must not widen the range.
    ends = means + deviations * eps
    some = log_weights > log_q - _NEGLIGIBLE
    low = jnp.min(jnp.where(some, ends, jnp.inf))
    high = jnp.max(jnp.where(some, ends, -jnp.inf))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        logs = log_weights + log_ndtr((middle - means) / deviations)
        reached = jax.nn.logsumexp(logs) >= log_q
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    # The dtype's mantissa bits, plus some for the width of the range.
    steps = jnp.finfo(eps.dtype).nmant + 20
    return sign * jax.lax.fori_loop(0, steps, halve, (low, high))[1]


# How many nats below a probability a component's weight does not matter.
_NEGLIGIBLE = 30
