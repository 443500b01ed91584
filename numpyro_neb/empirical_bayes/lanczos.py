"""Lanczos' method for the largest eigenvalue, with a bound on one that it may have missed."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from scipy.special import betaincinv

dot = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)

# What products in floating point leave open, in units of eps times the largest eigenvalue.
ROUNDING = 2.0
# Of a start whose share of the leading eigenvector is smaller than the bound assumes.
_PROBABILITY = 1e-4


class Top(NamedTuple):
    """The largest eigenvalue of a symmetric operator A, as far as it is known.

    Attributes:
        value: The largest Ritz value: no larger than the eigenvalue.
        vector: Its unit Ritz vector.
        missed: By how much the eigenvalue may be larger, with probability 1 - 1e-4.
        residual: norm(A v - value v).
        size: The largest absolute eigenvalue seen, in this call or before.
    """

    value: Float[Array, ""]
    vector: Float[Array, " d"]
    missed: Float[Array, ""]
    residual: Float[Array, ""]
    size: Float[Array, ""]


class _Basis(NamedTuple):
    """Lanczos' basis after a number of steps, and the tridiagonal matrix."""

    steps: Array
    vectors: Float[Array, "k+1 d"]
    diagonal: Float[Array, " k"]
    beside: Float[Array, " k"]


def leading(
    times: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    found: Float[Array, "m d"],
    number: Array | int,
    largest: Float[Array, ""],
    size: Float[Array, ""],
    max_steps: int,
    tolerance: Array | float,
) -> Top:
    """The largest eigenvalue of a symmetric operator in the complement of vectors found before.

    It stops when the residual is below half the tolerance and `missed` below the half's square,
    relative to the largest eigenvalue of all; or after `max_steps` products. Call it under a `vmap`
    with the axis name "y": all operators take as many products.

    Args:
        times: The operator.
        found: Orthonormal vectors; from `number` on, zeros.
        number: How many were found.
        largest: The absolute value of the largest eigenvalue of all; unused if `number` is 0.
        size: The largest absolute eigenvalue seen before.
        max_steps: Maximum number of products, at most d.
        tolerance: The relative tolerance.
    """
    d, dtype = found.shape[1], found.dtype
    # The start, and vectors that continue a basis whose span is complete.
    key = jax.random.fold_in(jax.random.key(0), number)
    random = jax.random.normal(key, (max_steps + 1, d), dtype)
    limit = jnp.minimum(max_steps, d - number)
    vectors = jnp.zeros_like(random).at[0].set(_unit(_orthogonal(random[0], found)))
    diagonal = jnp.zeros(max_steps, dtype)

    def further(state):
        basis, top = state
        # A third more products between two looks at the eigenvalues.
        end = jnp.minimum(limit, basis.steps + jnp.maximum(8, basis.steps // 3))
        step = lambda i, basis: _step(times, found, random[i + 1], i, basis)  # noqa: E731
        basis = jax.lax.fori_loop(basis.steps, end, step, basis)
        return basis, _top(basis, basis.steps == d - number, top)

    def unfinished(state):
        basis, top = state
        scale = jnp.where(number == 0, jnp.abs(top.value), largest)
        # Half of the tolerance, so that rounding does not reach the whole one.
        within = tolerance / 2 * jnp.maximum(scale, jnp.finfo(dtype).tiny)
        unsure = (top.missed > tolerance / 2 * within) | (top.residual > within)
        return (basis.steps < limit) & (jax.lax.pmax(unsure.astype(int), "y") > 0)

    zero = jnp.zeros((), dtype)
    basis = _Basis(jnp.zeros((), int), vectors, diagonal, diagonal)
    start = basis, Top(zero, vectors[0], zero, zero, size)
    return jax.lax.while_loop(unfinished, further, further(start))[1]


def _step(times, found, other, i, basis):
    """One product and one more vector, orthogonal to all before; `other` if nothing is left."""
    v = basis.vectors[i]
    image = times(v)
    rest = _orthogonal(image, found, basis.vectors)
    beta = jnp.linalg.norm(rest)
    rest = _orthogonal(_unit(rest), found, basis.vectors)
    other = _unit(_orthogonal(other, found, basis.vectors))
    other = _orthogonal(other, found, basis.vectors)
    # A remainder of rounding errors is not orthogonal even after it was made so.
    rest = jnp.where(jnp.linalg.norm(rest) > 0.5, rest, other)
    return _Basis(
        basis.steps + 1,
        basis.vectors.at[i + 1].set(_unit(rest)),
        basis.diagonal.at[i].set(jnp.sum(v * image)),
        basis.beside.at[i].set(beta),
    )


def _top(basis, complete, before):
    """The largest Ritz value, and the largest eigenvalue that is plausible given the basis."""
    (k,), d = basis.diagonal.shape, basis.vectors.shape[1]
    index = jnp.arange(k)
    known = index < basis.steps
    # What is not known yet lies below every Ritz value.
    below = -3 * (jnp.max(jnp.abs(basis.diagonal)) + jnp.max(basis.beside)) - 1
    beside = jnp.where(index < basis.steps - 1, basis.beside, 0)[: k - 1]
    above = jnp.zeros((k, k), below.dtype).at[index[:-1], index[1:]].set(beside)
    matrix = jnp.diag(jnp.where(known, basis.diagonal, below)) + above + above.T
    values, entries = jnp.linalg.eigh(matrix)
    ritz = jnp.where(index >= k - basis.steps, values, jnp.nan)
    size = jnp.maximum(before.size, jnp.nanmax(jnp.abs(ritz)))
    # Whether a smaller remainder is zero, products in floating point can't tell.
    floor = jnp.finfo(values.dtype).eps * size
    logs = jnp.sum(jnp.where(known, jnp.log(jnp.maximum(basis.beside, floor)), 0))
    missed = jnp.where(complete, 0, _excess(values[-1] - ritz, logs, basis.steps, d))
    vector = _unit(dot(entries[:, -1], basis.vectors[:-1]))
    residual = basis.beside[basis.steps - 1] * jnp.abs(entries[basis.steps - 1, -1])
    return Top(values[-1], vector, missed, residual, size)


def _excess(gaps, logs, steps, d):
    """The x, from above, at which p(top + x) = prod (x + gap_i) / prod beta_i reaches 1 / c.

    The start's share c of any one direction is exceeded with probability 1 - 1e-4: c^2 is a
    quantile of a Beta(1/2, (d - 1)/2) variable.
    """
    share = betaincinv(0.5, (d - 1) / 2, _PROBABILITY) ** 0.5 if d > 1 else 1.0
    goal = logs - jnp.log(jnp.asarray(share, logs.dtype))

    def halve(_, ends):
        low, high = ends
        middle = low + (high - low) / 2
        reached = jnp.nansum(jnp.log(middle + gaps)) >= goal
        return jnp.where(reached, low, middle), jnp.where(reached, middle, high)

    high = jnp.exp(goal / steps.astype(goal.dtype))
    return jax.lax.fori_loop(0, 50, halve, (jnp.zeros_like(high), high))[1]


def _orthogonal(v, *bases):
    """The part of v outside the bases' spans."""
    for basis in bases:
        v = v - dot(dot(basis, v), basis)
    return v


def _unit(v):
    norm = jnp.linalg.norm(v)
    return v / jnp.where(norm > 0, norm, 1)
