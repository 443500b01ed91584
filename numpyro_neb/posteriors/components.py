"""The components of a mixture, given y: their responsibilities, posterior means and averages."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Components(NamedTuple):
    r"""The law of X as a mixture, sum_i w_i N(m_i, C_i) with C_i = axes_i diag(spreads_i) axes_i'.

    Its functions take one y = x + N(0, sigma^2 I) and sigma. Averages over the components run in
    blocks, so that memory does not grow with their number.

    Attributes:
        locs: The m_i, of shape (K, *event_shape).
        log_weights: log w_i, of shape (K,).
        spreads: The eigenvalues of the C_i, of shape (K, d); None if they are zero.
        axes: Their eigenvectors, of shape (K, d, d), shared by all sigmas; None if C_i = 0.
        loc: The mean of X, of shape `event_shape`; posterior means are relative to it.
    """

    locs: Float[Array, "K *event"]
    log_weights: Float[Array, " K"]
    spreads: Float[Array, "K d"] | None
    axes: Float[Array, "K d d"] | None
    loc: Float[Array, "*event"]

    def log_density(self, y: Float[Array, "*event"], sigma: Float[Array, ""]) -> Float[Array, ""]:
        """Log f(y) = log sum_i w_i N(y; m_i, sigma^2 I + C_i)."""
        total = self._reduce(y, sigma, None)[0]
        if self.spreads is not None:
            return total
        # If C_i = 0, the logits leave out this common term, which is large far from the data.
        variance, distance = sigma**2, jnp.sum((y - self.loc) ** 2)
        return total - distance / (2 * variance) - y.size / 2 * jnp.log(2 * jnp.pi * variance)

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
            values: Maps a block of components to a factor (None for 1) and a value for each.
        """
        return self._reduce(y, sigma, values)[1]

    def log_responsibilities(
        self, y: Float[Array, "*event"], sigma: Float[Array, ""]
    ) -> Float[Array, " K"]:
        """Log r_i = log P(i given Y=y)."""
        return jax.nn.log_softmax(self._logits(y, sigma))

    def means(self, y: Float[Array, "*event"], sigma: Float[Array, ""]) -> Float[Array, "K d"]:
        """E[X given y, i] - loc = m_i - loc + C_i (C_i + sigma^2 I)^-1 (y - m_i)."""
        means = (self.locs - self.loc[None]).reshape(len(self.locs), -1)
        if self.spreads is None or self.axes is None:
            return means
        shrink = self.spreads / (self.spreads + sigma**2)
        return means + contract("kij,kj->ki", self.axes, shrink * self.rotated(y))

    def shrunk(self, sigma: Float[Array, ""]) -> Float[Array, "#K #d"]:
        """The eigenvalues of Cov(X given y, i), those of sigma^2 C_i (C_i + sigma^2 I)^-1."""
        if self.spreads is None:
            return jnp.zeros((1, 1), self.locs.dtype)
        return sigma**2 * self.spreads / (self.spreads + sigma**2)

    def variances(self, sigma: Float[Array, ""]) -> Float[Array, "#K #d"]:
        """Var(X given y, i) of each coordinate."""
        if self.axes is None:
            return self.shrunk(sigma)
        return contract("kij,kj->ki", self.axes**2, self.shrunk(sigma))

    def rotated(self, y: Float[Array, "*event"]) -> Float[Array, "K d"]:
        """The offsets y - m_i along the axes of C_i."""
        centred = (y[None] - self.locs).reshape(len(self.locs), -1)
        return contract("kji,kj->ki", self.axes, centred)

    def _logits(self, y, sigma):
        """Log w_i N(y; m_i, sigma^2 I + C_i); if C_i = 0, without their common term."""
        if self.spreads is None:
            # norm(y - m_i)^2 = norm(u)^2 - 2 u.v_i + norm(v_i)^2 with u = y - loc, v_i = m_i - loc:
            # one matrix product for a batch.
            u = (y - self.loc).reshape(-1)
            v = (self.locs - self.loc[None]).reshape(len(self.locs), -1)
            logits = (contract("kd,d->k", v, u) - jnp.sum(v**2, -1) / 2) / sigma**2
            return self.log_weights + logits
        variances = self.spreads + sigma**2
        distance = jnp.sum(self.rotated(y) ** 2 / variances, -1)
        logits = -(distance + jnp.sum(jnp.log(2 * jnp.pi * variances), -1)) / 2
        return self.log_weights + logits

    def _block(self, start, size):
        """`size` components from `start` on."""
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        return jax.tree.map(cut, self._replace(loc=None))._replace(loc=self.loc)

    def _reduce(self, y, sigma, values) -> tuple[Any, Any]:
        """The log of the sum of exp(logits), or the average of the values if there are any."""
        count = len(self.locs)
        block = _BLOCK if self.spreads is None else max(1, _BLOCK // self.spreads.shape[1])
        if count <= block:
            logits = self._logits(y, sigma)
            if values is None:
                return jax.nn.logsumexp(logits), None
            return None, _weighted(jax.nn.softmax(logits), *values(self))

        # The softmax of one block after another, rescaled to the largest logit so far.
        def step(carry, number):
            # The last block overlaps the one before, and masks what that one covered.
            start = jnp.minimum(number * block, count - block)
            part = self._block(start, block)
            new = start + jnp.arange(block) >= number * block
            logits = jnp.where(new, part._logits(y, sigma), -jnp.inf)
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


# How many components are processed at once; divided by d with covariances.
_BLOCK = 2048

contract = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _weighted(weights, factors, terms):
    return contract("k,k...->...", weights if factors is None else weights * factors, terms)
