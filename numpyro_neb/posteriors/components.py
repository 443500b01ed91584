"""The components of a mixture, given y: their responsibilities, posterior means and averages."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float


class Components(NamedTuple):
    r"""The law of X as a mixture, sum_i w_i N(m_i, C_i) with C_i = axes_i diag(spreads_i) axes_i'.

    Its functions take one y = x + N(0, sigma^2 I) and sigma. Averages over the components run in
    blocks, so that memory does not grow with their number.

    Rounding: everything is computed from differences to one point, near y unless C_i = 0 and all
    locations are so close to their mean (in units of sigma) that the mean serves all y as well: a
    batch then takes one matrix product.

    Attributes:
        locs: The m_i, of shape (K, *event_shape).
        log_weights: log w_i, of shape (K,).
        spreads: The eigenvalues of the C_i, of shape (K, d); None if they are zero.
        axes: Their eigenvectors, of shape (K, d, d), shared by all sigmas; None if C_i = 0.
        loc: The point of reference, the mean of X at first, of shape `event_shape`.
    """

    locs: Float[Array, "K *event"]
    log_weights: Float[Array, " K"]
    spreads: Float[Array, "K d"] | None
    axes: Float[Array, "K d d"] | None
    loc: Float[Array, "*event"]

    def log_density(self, y: Float[Array, "*event"], sigma: Float[Array, ""]) -> Float[Array, ""]:
        """Log f(y) = log sum_i w_i N(y; m_i, sigma^2 I + C_i)."""

        def total(local, block):
            total = local._reduce(y, sigma, None, block)[0]
            if self.spreads is not None:
                return total
            # If C_i = 0, the logits leave out this common term, which is large far from the data.
            distance = jnp.sum(((y - local.loc) / sigma) ** 2)
            return total - distance / 2 - y.size * (jnp.log(sigma) + jnp.log(2 * jnp.pi) / 2)

        return self._either(y, sigma, total)

    def average(
        self,
        y: Float[Array, "*event"],
        sigma: Float[Array, ""],
        values: Callable[["Components"], tuple[Float[Array, " k"] | None, Float[Array, "k *out"]]],
    ) -> Float[Array, "*out"]:
        """sum_i r_i factor_i value_i with r_i = P(i given y): an expectation given Y=y.

        Args:
            y: One smoothed signal.
            sigma: The noise's standard deviation.
            values: Maps a block of components, as `local`, to a factor (None for 1) and a value
                for each.
        """
        return self._either(
            y, sigma, lambda local, block: local._reduce(y, sigma, values, block)[1]
        )

    def log_responsibilities(
        self, y: Float[Array, "*event"], sigma: Float[Array, ""]
    ) -> Float[Array, " K"]:
        """Log r_i = log P(i given Y=y)."""
        return self._either(y, sigma, lambda local, _: jax.nn.log_softmax(local._logits(y, sigma)))

    def local(self, y: Float[Array, "*event"], sigma: Float[Array, ""]) -> "Components":
        """The same components with the `loc` that averages given y are computed about."""
        return self._replace(loc=self._either(y, sigma, lambda local, _: local.loc))

    def means(self, y: Float[Array, "*event"], sigma: Float[Array, ""]) -> Float[Array, "K d"]:
        """E[X given y, i] - loc = m_i - loc + C_i (C_i + sigma^2 I)^-1 (y - m_i)."""
        means = self._offsets
        if self.spreads is None or self.axes is None:
            return means
        shrink = self.spreads / (self.spreads + sigma**2)
        return means + contract("kij,kj->ki", self.axes, shrink * self.rotated(y))

    def shrunk(self, sigma: Float[Array, ""]) -> Float[Array, "#K #d"]:
        """The eigenvalues of Cov(X given y, i), those of sigma^2 C_i (C_i + sigma^2 I)^-1."""
        if self.spreads is None:
            return jnp.zeros((1, 1), self.locs.dtype)
        # Not the product of two variances, which may be too small or too large for the dtype.
        return sigma**2 * (self.spreads / (self.spreads + sigma**2))

    def variances(self, sigma: Float[Array, ""]) -> Float[Array, "#K #d"]:
        """Var(X given y, i) of each coordinate."""
        if self.axes is None:
            return self.shrunk(sigma)
        return contract("kij,kj->ki", self.axes**2, self.shrunk(sigma))

    def rotated(self, y: Float[Array, "*event"]) -> Float[Array, "K d"]:
        """The offsets y - m_i along the axes of C_i."""
        centred = (y[None] - self.locs).reshape(len(self.locs), -1)
        return contract("kji,kj->ki", self.axes, centred)

    def _logits(self, y, sigma, densities=False):
        """Log w_i N(y; m_i, sigma^2 I + C_i); if C_i = 0, without their common term.

        Only densities are right at any distance: a walk that goes off must see them overflow.
        """
        # At such a distance the nearest component has all the weight: further out, it still does.
        far = jnp.max(jnp.abs(y - self.loc)) / sigma
        shrink = jax.lax.stop_gradient(jnp.minimum(1, _FAR / jnp.maximum(far, 1)))
        u = y - self.loc if densities and self.spreads is not None else (y - self.loc) * shrink
        if self.spreads is None:
            # norm(y - m_i)^2 = norm(u)^2 - 2 u.v_i + norm(v_i)^2 with u = y - loc, v_i = m_i - loc.
            v = self._offsets / sigma
            logits = contract("kd,d->k", v, u.reshape(-1) / sigma) - jnp.sum(v**2, -1) / 2
            return self.log_weights + logits
        variances = self.spreads + sigma**2
        distance = jnp.sum(self.rotated(u + self.loc) ** 2 / variances, -1)
        logits = -(distance + jnp.sum(jnp.log(2 * jnp.pi * variances), -1)) / 2
        return self.log_weights + logits

    @property
    def _offsets(self):
        """The m_i - loc, of shape (K, d)."""
        return (self.locs - self.loc[None]).reshape(len(self.locs), -1)

    def _either(self, y, sigma, fn):
        """fn(components, how many at once) about their mean if rounding allows, else about y."""
        block = max(min(_BLOCK, _LEAST), _BLOCK // max(1, y.size))

        def near():
            return fn(self._replace(loc=self._nearest(y, block)), block)

        if self.spreads is not None:
            return near()
        # Products of the offsets have errors of eps times their square.
        reach = jnp.max(jnp.sum((self._offsets / sigma) ** 2, -1))
        compact = jnp.finfo(reach.dtype).eps * reach < _ERROR
        if not isinstance(compact, Tracer):  # a `cond` would be compiled at each call
            return fn(self, _BLOCK) if compact else near()
        # Derivatives recompute a branch from its inputs: what both would store for them, `cond`
        # makes one array of, as large as the larger of the two.
        return jax.lax.cond(compact, jax.checkpoint(lambda: fn(self, _BLOCK)), jax.checkpoint(near))

    def _nearest(self, y, block):
        """The location nearest to y; a point of reference, so a constant for derivatives."""
        y, locs = jax.lax.stop_gradient((y, self.locs))

        def step(best, start):
            part = jax.lax.dynamic_slice_in_dim(locs, start, size)
            squares = jnp.sum((part - y[None]).reshape(size, -1) ** 2, -1)
            index = jnp.argmin(squares)
            closer = squares[index] < best[0]
            return (
                jnp.minimum(squares[index], best[0]),
                jnp.where(closer, part[index], best[1]),
            ), None

        size = min(block, len(locs))
        lowest = jnp.full((), jnp.inf, jnp.result_type(y, locs))
        first = jax.lax.stop_gradient(self.loc)  # used in both branches of `_either`
        # The last block overlaps the one before.
        starts = jnp.minimum(jnp.arange(0, len(locs), size), len(locs) - size)
        if len(locs) == size:
            return step((lowest, first), 0)[0][1]
        return jax.lax.scan(step, (lowest, first), starts)[0][1]

    def _block(self, start, size):
        """`size` components from `start` on."""
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        return jax.tree.map(cut, self._replace(loc=None))._replace(loc=self.loc)

    def _reduce(self, y, sigma, values, block) -> tuple[Any, Any]:
        """The log of the sum of exp(logits), or the average of the values if there are any."""
        count = len(self.locs)
        if count <= block:
            logits = self._logits(y, sigma, values is None)
            if values is None:
                return jax.nn.logsumexp(logits), None
            return None, _weighted(jax.nn.softmax(logits), *values(self))

        # The softmax of one block after another, rescaled to the largest logit so far.
        def step(carry, number):
            # The last block overlaps the one before, and masks what that one covered.
            start = jnp.minimum(number * block, count - block)
            part = self._block(start, block)
            new = start + jnp.arange(block) >= number * block
            logits = jnp.where(new, part._logits(y, sigma, values is None), -jnp.inf)
            top = jax.lax.stop_gradient(jnp.maximum(carry[0], jnp.max(logits)))
            shrink, weights = jnp.exp(carry[0] - top), jnp.exp(logits - top)
            total = shrink * carry[1] + jnp.sum(weights)
            if values is None:
                return (top, total, None), None
            sums = _weighted(weights, *values(part))
            return (top, total, sums if carry[2] is None else shrink * carry[2] + sums), None

        dtype = jnp.promote_types(y.dtype, sigma.dtype)
        lowest = jnp.full((), jnp.finfo(dtype).min, dtype)
        carry = (lowest, jnp.zeros_like(lowest), None)
        if values is not None:
            shapes = jax.eval_shape(lambda: step(carry, 0)[0][2])
            carry = (*carry[:2], jnp.zeros(shapes.shape, shapes.dtype))
        # A block's intermediates are recomputed for the gradient rather than stored.
        step = jax.checkpoint(step, prevent_cse=False)
        (top, total, sums), _ = jax.lax.scan(step, carry, jnp.arange(-(-count // block)))
        return top + jnp.log(total), None if sums is None else sums / total


# How many components are processed at once; divided by d, but not below the least, about a y.
_BLOCK = 2048
_LEAST = 16
# The error of log densities, in nats, up to which they are computed about the mean.
_ERROR = 1e-2
# A distance, in sigma, whose products do not overflow.
_FAR = 1e15

contract = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _weighted(weights, factors, terms):
    return contract("k,k...->...", weights if factors is None else weights * factors, terms)
