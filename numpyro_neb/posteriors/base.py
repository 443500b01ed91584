"""The law of X given Y=y: the interface of every posterior."""

import abc
from collections.abc import Callable
from math import prod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_neb._internal.checks import check_positive
from numpyro_neb._internal.final import AbstractOrFinal


class AbstractPosterior(AbstractOrFinal):
    r"""The law of X given one observation Y=y, as `energy.posterior(y)` gives it.

    Unbatched, as an energy is: `jax.vmap(lambda y: energy.posterior(y).mean)(ys)`, or
    `posterior_distribution` for a NumPyro distribution over a batch. `cdf`, `icdf`, `lfsr` and
    `interval` apply to each coordinate separately.

    Attributes:
        sigma: The noise's standard deviation, which scales the posterior's rounding floor.
        event_shape: The shape of one x.
        mean: E[X given Y=y] = y - sigma^2 grad phi(y), of shape `event_shape`.
        reparametrised: Whether a draw is a differentiable function of y and of the energy.

    Reference:
        Robbins 1956; Miyasawa 1961; Efron, Tweedie's formula and selection bias, JASA 106 (2011).

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> posterior = energy.posterior(jnp.array(0.0))  # -1 or 1, as likely
        >>> posterior.mean, posterior.variance, posterior.lfsr
        (Array(0., dtype=float32), Array(1., dtype=float32), Array(0.5, dtype=float32))
    """

    sigma: eqx.AbstractVar[Float[Array, ""]]
    event_shape: eqx.AbstractVar[tuple[int, ...]]
    mean: eqx.AbstractVar[Float[Array, "*event"]]

    reparametrised: ClassVar[bool] = False

    @property
    def shared(self) -> tuple[str, ...]:
        """The names of the fields that do not depend on y."""
        return ()

    @abc.abstractmethod
    def product(self, v: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Cov(X given Y=y) v = sigma^2 (d x_hat / dy) v, without the matrix.

        Args:
            v: A direction, of shape `event_shape`.
        """

    @property
    def covariance(self) -> Float[Array, "d d"]:
        """Cov(X given Y=y) over the flattened event, from d products.

        A learned energy's covariance may have negative eigenvalues where the fit is poor.
        """
        matrix = self._along(lambda _, image: image)
        return (matrix + matrix.T) / 2

    @property
    def variance(self) -> Float[Array, "*event"]:
        """Var(X given Y=y) of each coordinate, the diagonal of `covariance`."""
        return self._along(jnp.vdot).reshape(self.event_shape)

    @property
    def std(self) -> Float[Array, "*event"]:
        """The standard deviation of each coordinate: zero where the variance is not positive."""
        return root_of(self.variance)

    @property
    def projected(self) -> Float[Array, ""]:
        """The share of directions whose variance is negative; draws treat it as zero."""
        return jnp.zeros_like(self.sigma)

    @abc.abstractmethod
    def cdf(self, x: ArrayLike) -> Float[Array, "*event"]:
        """P(X <= x given Y=y) of each coordinate.

        Args:
            x: Values, of shape `event_shape` or a scalar.
        """

    @abc.abstractmethod
    def upper_tail(self, x: ArrayLike) -> Float[Array, "*event"]:
        """P(X >= x given Y=y) of each coordinate, accurate even when it is small.

        Args:
            x: Values, of shape `event_shape` or a scalar.
        """

    @abc.abstractmethod
    def icdf(self, q: ArrayLike) -> Float[Array, "*event"]:
        """The quantile at q of each coordinate: the least value whose `cdf` reaches q.

        Args:
            q: Probabilities, of shape `event_shape` or a scalar. NaN outside [0, 1].
        """

    @property
    def lfsr(self) -> Float[Array, "*event"]:
        """The local false sign rate, min(P(X <= 0), P(X >= 0)) given Y=y, of each coordinate.

        A point mass at zero counts on both sides.
        """
        # Each tail is summed separately: one minus the other would lose a small tail's digits.
        return jnp.minimum(self.cdf(0.0), self.upper_tail(0.0))

    def interval(self, probability: float = 0.9) -> tuple[Array, Array]:
        """Equal-tailed credible intervals of each coordinate: the lower and the upper ends.

        Args:
            probability: The probability of each interval, between 0 and 1.

        Raises:
            ValueError: If probability is not between 0 and 1.
        """
        tail = (1 - check_positive("probability", probability, 1.0)) / 2
        return self.icdf(tail), self.icdf(1 - tail)

    @abc.abstractmethod
    def log_prob(self, x: Float[Array, "*event"]) -> Float[Array, ""]:
        """The log density at x, or the log probability if X given y is discrete."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of X, of shape (*shape, *event_shape)."""

    def check_density(self) -> None:
        """Raises a ValueError if the law does not have a density for `log_prob`."""

    def around_mean(self, eps: Float[Array, "*event"]) -> Float[Array, "*event"] | None:
        """X - mean as a smooth function of N(0, I) noise, exact in law; None if not known.

        Args:
            eps: Standard normal noise, of shape `event_shape`.
        """
        del eps
        return None

    def prepared(self) -> "AbstractPosterior":
        """The same law, with the work that its draws and densities share done once."""
        return self

    @property
    def size(self) -> int:
        """About how many numbers an answer takes in memory; it bounds the batch size."""
        return max(1, prod(self.event_shape))

    def _along(self, fn):
        """fn(v, Cov v) for each unit vector v, flat."""

        def one(v):
            return fn(v, self.product(v.reshape(self.event_shape)).reshape(-1))

        units = jnp.eye(self.mean.size, dtype=self.mean.dtype)
        # Some products at once: one by one is slower, and all of an image's need too much memory.
        return in_parts(one, (units,), max(16, 4096 // len(units)))


# Observations processed at once hold at most this many numbers in their posteriors.
_NUMBERS = 2**22


def at_once(posterior: AbstractPosterior) -> int:
    """How many observations with such posteriors to work on at once."""
    return max(1, _NUMBERS // posterior.size)


def in_parts(fn: Callable, operands: PyTree[Array], count: int) -> Any:
    """`jax.vmap(fn)(*operands)`, on `count` rows at a time."""
    if len(jax.tree.leaves(operands)[0]) <= count:
        return jax.vmap(fn)(*operands)
    return jax.lax.map(lambda row: fn(*row), operands, batch_size=count)


def normal_cdf(
    x: Float[Array, "..."], mean: Float[Array, "..."], deviation: Float[Array, "..."]
) -> Float[Array, "..."]:
    """P(N(mean, deviation^2) <= x); a deviation of zero is a step."""
    spread = deviation > 0
    return jnp.where(spread, ndtr((x - mean) / jnp.where(spread, deviation, 1)), x >= mean)


def root_of(variance: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root; zero, with a derivative of zero, if the variance is not positive."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
