"""The exact energy of a smoothed mixture: kernel density, nonparametric MLE, Gaussian mixture."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import Numbers, check_key, check_reals, finite, positive_scalar
from numpyro_neb._internal.configurations import Values, configured
from numpyro_neb.energies.base import AbstractEnergy, check_event


@configured(
    "MixtureEnergy",
    arrays={
        "locs": Values.FINITE,
        "sigma": Values.POSITIVE,
        "log_weights": Values.BOUNDED_ABOVE,
        "spreads": Values.NOT_NEGATIVE,
        "axes": Values.FINITE,
        "loc": Values.FINITE,
        "scale": Values.NOT_NEGATIVE,  # a coordinate may have no spread at all
    },
    # Covariances are kept as spreads and axes; the axes have their shape.
    make=lambda locs, sigma, axes=None, **_: MixtureEnergy(locs, sigma, covariances=axes),
)
class MixtureEnergy(AbstractEnergy):
    r"""phi(y) = -log sum_i w_i N(y; m_i, sigma^2 I + C_i), exact and normalised.

    X has the law sum_i w_i N(m_i, C_i). With C_i = 0 and the data as locations, f is Parzen's
    kernel density: `MixtureEnergy(data, sigma)`.

    Args:
        locs: The locations m_i, of shape (K, *event_shape); one-dimensional data of shape (K,) have
            the event shape ().
        sigma: The noise's standard deviation, positive.
        log_weights: log w_i up to a constant, of shape (K,); equal weights by default. -inf leaves
            a component out.
        covariances: The C_i, positive semi-definite, of shape (K, d, d) over the flattened event;
            zero by default.

    Attributes:
        loc: The mean of X, of shape `event_shape`.
        scale: The standard deviation of X in each coordinate, of shape `event_shape`.

    Memory: components are worked on 2,048 at a time (a d-th of that with covariances), so a batch
    of n points needs 2,048 n numbers beside the components and the result, however many they are.

    Rounding: a component's log density has an error of about eps R^2 / sigma^2, where eps is the
    dtype's and R the farthest location's distance from `loc`.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, or a covariance is not
            symmetric and positive semi-definite.

    Reference:
        Parzen 1962; Miyasawa 1961; NEB section 2.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> energy.denoise(jnp.array(0.5))  # tanh(y / sigma^2)
        Array(0.46211717, dtype=float32)
    """

    locs: Float[Array, "K *event"]
    sigma: Float[Array, ""]
    log_weights: Float[Array, " K"]
    # C_i = axes_i diag(spreads_i) axes_i', so that every sigma shares one factorisation.
    spreads: Float[Array, "K d"] | None
    axes: Float[Array, "K d d"] | None
    loc: Float[Array, "*event"]
    scale: Float[Array, "*event"]
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        locs: Numbers,
        sigma: ArrayLike,
        log_weights: Numbers | None = None,
        covariances: Numbers | None = None,
    ):
        locs = finite("locs", locs)
        if locs.ndim == 0 or locs.size == 0:
            raise ValueError(
                f"locs must have shape (K, *event_shape), none empty, got {locs.shape}"
            )
        count, dim = locs.shape[0], locs[0].size
        self.locs, self.event_shape = locs, locs.shape[1:]
        self.sigma = positive_scalar("sigma", sigma)
        self.log_weights = _normalised(log_weights, count)
        self.spreads, self.axes = _factorised(covariances, (count, dim, dim))
        weights = jnp.exp(self.log_weights)
        flat = locs.reshape(count, dim)
        mean = weights @ flat
        variance = weights @ (flat - mean[None]) ** 2
        if self.spreads is not None and self.axes is not None:
            variance += jnp.einsum("k,kij,kj->i", weights, self.axes**2, self.spreads)
        self.loc = mean.reshape(self.event_shape)
        self.scale = jnp.sqrt(variance).reshape(self.event_shape)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y), normalised: exp(-phi) integrates to one."""
        y = check_event(y, self.event_shape)
        return self._offset(y) - self._reduce(y, None)[0]

    def score(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """-grad phi(y), the components' scores averaged by their responsibilities."""
        y = check_event(y, self.event_shape)
        if self.spreads is None:
            return (self.denoise(y) - y) / self.sigma**2

        def scores(part):
            scaled = self._rotated(y, part) / (part.spreads + self.sigma**2)
            return _ones(part), -_product("kij,kj->ki", part.axes, scaled)

        return self.average(y, scores).reshape(self.event_shape)

    def denoise(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The jump: the components' posterior means, averaged by their responsibilities.

        E[X given y, i] = m_i + C_i (C_i + sigma^2 I)^-1 (y - m_i). Equal to y - sigma^2 grad phi,
        without the cancellation of two large numbers that this form meets far from the data.
        """
        centred = self.average(y, lambda part: (_ones(part), self.posterior_means(y, part)))
        return self.loc + centred.reshape(self.event_shape)

    def at(self, sigma: ArrayLike) -> "MixtureEnergy":
        """The same law of X at another noise level.

        Args:
            sigma: The new standard deviation, positive; gradients flow through it.

        Example:
            >>> import jax.numpy as jnp, numpyro_neb as neb
            >>> neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0).at(0.5).sigma
            Array(0.5, dtype=float32)
        """
        return eqx.tree_at(lambda e: e.sigma, self, positive_scalar("sigma", sigma))

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Exact, independent draws of Y.

        Args:
            key: A JAX random key.
            shape: The shape of the batch of draws.

        Returns:
            An array of shape (*shape, *event_shape).
        """
        check_key(key)
        key_component, key_within, key_noise = jax.random.split(key, 3)
        index = jax.random.categorical(key_component, self.log_weights, shape=shape)
        y = self.locs[index]
        y += self.sigma * jax.random.normal(key_noise, y.shape, y.dtype)
        if self.spreads is None or self.axes is None:
            return y
        z = jax.random.normal(key_within, (*shape, self.spreads.shape[1]), y.dtype)
        x = jnp.einsum("...ij,...j->...i", self.axes[index], jnp.sqrt(self.spreads[index]) * z)
        return y + x.reshape(y.shape)

    def average(
        self,
        y: Float[Array, "*event"],
        values: Callable[["Components"], tuple[Float[Array, " k"], Float[Array, "k *out"]]],
    ) -> Float[Array, "*out"]:
        """sum_i r_i factor_i value_i with r_i = P(i given y): an expectation given Y=y.

        Components are worked on `_BLOCK` at a time, so that memory does not grow with their number.

        Args:
            y: One smoothed signal.
            values: Maps some of the components to a factor and a value for each.
        """
        return self._reduce(y, values)[1]

    def _reduce(self, y, values) -> tuple[Any, Any]:
        """The log of the sum of exp(logits), or the average of the values if there are any."""
        y = check_event(y, self.event_shape)
        whole = self.components
        count = len(self.locs)
        block = _BLOCK if self.spreads is None else max(1, _BLOCK // self.spreads.shape[1])
        if count <= block:
            logits = self._logits(y, whole)
            if values is None:
                return jax.nn.logsumexp(logits), None
            factors, terms = values(whole)
            return None, _product("k,k...->...", jax.nn.softmax(logits) * factors, terms)

        # The softmax of one block after another, rescaled to the largest logit so far.
        def step(carry, number):
            # The last block reaches back, and leaves out what the one before has had.
            start = jnp.minimum(number * block, count - block)
            cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=block)
            part = jax.tree.map(cut, whole)
            new = start + jnp.arange(block) >= number * block
            logits = jnp.where(new, self._logits(y, part), -jnp.inf)
            top = jax.lax.stop_gradient(jnp.maximum(carry[0], jnp.max(logits)))
            shrink, weights = jnp.exp(carry[0] - top), jnp.exp(logits - top)
            total = shrink * carry[1] + jnp.sum(weights)
            if values is None:
                return (top, total, None), None
            factors, terms = values(part)
            sums = _product("k,k...->...", weights * factors, terms)
            return (top, total, sums if carry[2] is None else shrink * carry[2] + sums), None

        lowest = jnp.full((), jnp.finfo(self.sigma.dtype).min, self.sigma.dtype)
        carry = (lowest, jnp.zeros_like(lowest), None)
        if values is not None:
            shapes = jax.eval_shape(lambda: step(carry, 0)[0][2])
            carry = (*carry[:2], jnp.zeros(shapes.shape, shapes.dtype))
        # What a gradient needs of a block is computed anew rather than kept.
        step = jax.checkpoint(step, prevent_cse=False)
        (top, total, sums), _ = jax.lax.scan(step, carry, jnp.arange(-(-count // block)))
        return top + jnp.log(total), None if sums is None else sums / total

    @property
    def components(self) -> "Components":
        """All of the components."""
        return Components(self.locs, self.log_weights, self.spreads, self.axes)

    def log_responsibilities(self, y: Float[Array, "*event"]) -> Float[Array, " K"]:
        """Log r_i = log P(i given Y=y)."""
        y = check_event(y, self.event_shape)
        return jax.nn.log_softmax(self._logits(y, self.components))

    def posterior_means(
        self, y: Float[Array, "*event"], part: "Components | None" = None
    ) -> Float[Array, "k d"]:
        """E[X given y, i] - loc of all or some of the components."""
        part = self.components if part is None else part
        means = (part.locs - self.loc[None]).reshape(len(part.locs), -1)
        if part.spreads is None:
            return means
        shrink = part.spreads / (part.spreads + self.sigma**2)
        return means + _product("kij,kj->ki", part.axes, shrink * self._rotated(y, part))

    def _offset(self, y):
        """What all the logits lack where C_i = 0: far away it is large, and it is common."""
        if self.spreads is not None:
            return jnp.zeros_like(self.sigma)
        variance = self.sigma**2
        distance = jnp.sum((y - self.loc) ** 2)
        return distance / (2 * variance) + y.size / 2 * jnp.log(2 * jnp.pi * variance)

    def _logits(self, y, part):
        """Log w_i N(y; m_i, sigma^2 I + C_i) of some of the components, plus `_offset`."""
        if part.spreads is None:
            # norm(y - m_i)^2 = norm(u)^2 - 2 u.v_i + norm(v_i)^2 with u = y - loc, v_i = m_i - loc:
            # one matrix product for a batch.
            u = (y - self.loc).reshape(-1)
            v = (part.locs - self.loc[None]).reshape(len(part.locs), -1)
            logits = (_product("kd,d->k", v, u) - jnp.sum(v**2, -1) / 2) / self.sigma**2
            return part.log_weights + logits
        variances = part.spreads + self.sigma**2
        distance = jnp.sum(self._rotated(y, part) ** 2 / variances, -1)
        logits = -(distance + jnp.sum(jnp.log(2 * jnp.pi * variances), -1)) / 2
        return part.log_weights + logits

    def _rotated(self, y, part):
        """The offsets y - m_i along the axes of C_i, of shape (k, d)."""
        centred = (y[None] - part.locs).reshape(len(part.locs), -1)
        return _product("kji,kj->ki", part.axes, centred)


class Components(NamedTuple):
    """Some of a mixture's components: their locations, log weights and factorised covariances."""

    locs: Float[Array, "k *event"]
    log_weights: Float[Array, " k"]
    spreads: Float[Array, "k d"] | None
    axes: Float[Array, "k d d"] | None


# How many components are worked on at once; with covariances a d-th of it.
_BLOCK = 2048


def _ones(part):
    return jnp.ones_like(part.log_weights)


_product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _normalised(log_weights, count):
    if log_weights is None:
        return jnp.full((count,), -jnp.log(count), dtype=float)
    log_weights = jnp.asarray(check_reals("log_weights", log_weights), dtype=float)
    if log_weights.shape != (count,):
        raise ValueError(f"log_weights must have shape ({count},), got {log_weights.shape}")
    total = jax.nn.logsumexp(log_weights)
    if not isinstance(total, Tracer) and not np.isfinite(total):
        raise ValueError("log_weights must hold a finite value, and no NaN or +infinity")
    return log_weights - total


def _factorised(covariances, shape):
    if covariances is None:
        return None, None
    covariances = finite("covariances", covariances)
    if covariances.shape != shape:
        raise ValueError(f"covariances must have shape {shape}, got {covariances.shape}")
    spreads, axes = jnp.linalg.eigh(covariances)
    if not isinstance(spreads, Tracer):
        host = np.asarray(covariances)
        slack = 1e2 * np.finfo(host.dtype).eps * np.abs(host).max(initial=1e-30)
        if np.abs(host - host.swapaxes(1, 2)).max() > slack or np.min(spreads) < -slack:
            raise ValueError("covariances must be symmetric and positive semi-definite")
    return jnp.maximum(spreads, 0), axes
