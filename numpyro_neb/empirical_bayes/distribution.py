"""The law of X given Y=y over a batch of observations, as a NumPyro distribution."""

from collections.abc import Callable
from math import prod
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, constraints

from numpyro_neb._internal.checks import check_key, check_positive
from numpyro_neb._internal.events import check_events
from numpyro_neb.posteriors.base import AbstractPosterior, at_once, in_parts


@final
class PosteriorDistribution(Distribution):
    r"""The law of X given Y=y for a batch of observations: what `posterior_distribution` returns.

    It has the methods of a NumPyro distribution (`mean`, `variance`, `sample`, `log_prob`) and of
    an energy's posterior: `covariance_matrix` over the flattened event and, for each coordinate
    separately, `cdf`, `icdf`, `interval(probability)` and `lfsr`, the local false sign rate.

    Args:
        posteriors: `AbstractPosterior`s stacked along leading dimensions of their arrays (those of
            their `sigma`), except for the fields that they share.

    Raises:
        ValueError: If a concrete (untraced) sigma is not positive.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> posterior = neb.posterior_distribution(energy, jnp.array([-0.5, 0.0]))
        >>> posterior.mean  # tanh(y / sigma^2)
        Array([-0.46211717,  0.        ], dtype=float32)
        >>> jnp.allclose(posterior.lfsr, 1 / (1 + jnp.exp(jnp.array([1.0, 0.0]))))  # P(X = 1)
        Array(True, dtype=bool)
    """

    arg_constraints: dict = {}  # noqa: RUF012 (NumPyro declares it so)
    # Each observation's fields and those they share: a module's arrays are leaves.
    pytree_data_fields = ("_each", "_shared")

    def __init__(self, posteriors: AbstractPosterior, *, validate_args: bool | None = None):
        if not isinstance(posteriors.sigma, Tracer):
            check_positive("sigma", posteriors.sigma, scalar=False)
        self._each, self._shared = _apart(posteriors)
        batch, event = jnp.shape(posteriors.sigma), posteriors.event_shape
        super().__init__(batch, event, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)  # pyright: ignore[reportArgumentType]
    def support(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """All of R^d."""
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def posteriors(self) -> AbstractPosterior:
        """The stacked posteriors."""
        return eqx.combine(self._each, self._shared)

    @property
    def has_rsample(self) -> bool:
        """Whether a draw is differentiable: a Gaussian's is, a mixture's is not."""
        return self._each.reparametrised

    @property
    def mean(self) -> Float[Array, "..."]:
        """E[X given Y=y]."""
        return self._ask("mean")

    @property
    def variance(self) -> Float[Array, "..."]:
        """Var(X given Y=y) of each coordinate."""
        return self._ask("variance")

    @property
    def stddev(self) -> Float[Array, "..."]:
        """The standard deviation of each coordinate."""
        return self._ask("std")

    @property
    def covariance_matrix(self) -> Float[Array, "*batch d d"]:
        """Cov(X given Y=y), over the flattened event."""
        return self._ask("covariance")

    @property
    def lfsr(self) -> Float[Array, "..."]:
        """The local false sign rate of each coordinate, min(P(X <= 0), P(X >= 0)) given Y=y."""
        return self._ask("lfsr")

    @property
    def projected(self) -> Float[Array, "*batch"]:
        """The share of the directions in which a learned energy's covariance was negative.

        Negative values count as zero: see `LinearisedPosterior`.
        """
        return self._ask("projected")

    def cdf(self, value: ArrayLike) -> Float[Array, "..."]:
        """P(X <= value given Y=y) of each coordinate, over any leading dimensions of `value`."""
        return self._ask("cdf", value)

    def icdf(self, q: ArrayLike) -> Float[Array, "..."]:
        """The quantile at q of each coordinate: the least value whose `cdf` reaches q.

        NaN if q is not between 0 and 1.
        """
        return self._ask("icdf", q)

    def interval(self, probability: float = 0.9) -> tuple[Array, Array]:
        """Equal-tailed credible intervals, one for each coordinate: the lower and upper ends.

        Raises:
            ValueError: If probability is not between 0 and 1.
        """
        tail = (1 - check_positive("probability", probability, 1.0)) / 2
        return self.icdf(tail), self.icdf(1 - tail)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Float[Array, "..."]:  # noqa: ARG002
        """The log density at `value`, or its log probability if X given y is discrete."""
        self.posteriors.check_density()
        value = jnp.asarray(value)
        check_events("value", value, self.event_shape)
        return self._ask("log_prob", value)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of X, of shape (*sample_shape, *batch_shape, *event_shape)."""
        batch, shape, most = self.batch_shape, tuple(sample_shape), at_once(self.posteriors)
        keys = jax.random.split(check_key(key), prod(batch))
        draws = _draws(_flat(self._each, batch, batch), self._shared, keys, shape, most)
        return jnp.moveaxis(draws, 0, len(shape)).reshape(*shape, *batch, *self.event_shape)

    def _ask(self, name: str, *values: ArrayLike) -> Array:
        """`name` of each posterior, at values if any, whose leading dimensions are draws."""
        own = self.batch_shape + self.event_shape
        whole = jnp.broadcast_shapes(own, *map(jnp.shape, values))
        draws, batch = whole[: len(whole) - len(own)], whole[len(whole) - len(own) :]
        batch = batch[: len(self.batch_shape)]

        def rows(value):
            dtype = jnp.result_type(value, self._each.sigma)
            value = jnp.broadcast_to(jnp.asarray(value, dtype), whole)
            return value.reshape(prod(draws), prod(batch), *self.event_shape).swapaxes(0, 1)

        each = _flat(self._each, self.batch_shape, batch)
        most = at_once(self.posteriors)
        out = _answers(name, each, self._shared, tuple(map(rows, values)), most)
        out = out.swapaxes(0, 1) if values else out
        return out.reshape(*draws, *batch, *out.shape[1 + len(values) :])


def stacked(make: Callable, batch: tuple[int, ...], *operands: Float[Array, "..."]) -> Any:
    """The posteriors of a batch of observations, as `PosteriorDistribution` takes them.

    Args:
        make: Makes an `AbstractPosterior` from one of each operand; must be a pytree, as
            `energy.posterior` is.
        batch: The leading dimensions of the operands.
        operands: The batched inputs of `make`, such as observations.
    """
    flat = tuple(_flat(operand, batch, batch) for operand in operands)
    each, shared = _stacked(make, flat)
    each = jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), each)
    return eqx.combine(each, shared)


@eqx.filter_jit
def _stacked(make, operands):
    one = lambda *operands: _apart(make(*operands).prepared())  # noqa: E731
    return jax.vmap(one, out_axes=(0, None))(*operands)


def _apart(posterior):
    """The posterior with only the fields of one observation, and with only the shared ones."""
    own = lambda path, _: path[0].name not in posterior.shared  # noqa: E731
    return eqx.partition(posterior, jax.tree_util.tree_map_with_path(own, posterior))


def _flat(each, old, new):
    """Arrays with one leading dimension, broadcast from one batch to another."""

    def flatten(leaf):
        rest = leaf.shape[len(old) :]
        return jnp.broadcast_to(leaf, new + rest).reshape(prod(new), *rest)

    return jax.tree.map(flatten, each)


@eqx.filter_jit
def _answers(name: str, each: Any, shared: Any, values: tuple[Array, ...], most: int) -> Array:
    """`name` of each of n posteriors, at values of shape (n, draws, *event_shape) if any."""

    def one(each, *values):
        answer = getattr(eqx.combine(each, shared), name)
        return in_parts(answer, values, most) if values else answer

    draws = max(1, values[0].shape[1]) if values else 1
    return in_parts(one, (each, *values), max(1, most // draws))


@eqx.filter_jit
def _draws(each: Any, shared: Any, keys: Array, shape: tuple[int, ...], most: int) -> Array:
    one = lambda each, key: eqx.combine(each, shared).sample(key, shape)  # noqa: E731
    return in_parts(one, (each, keys), most)
