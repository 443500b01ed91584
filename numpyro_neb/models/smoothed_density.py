"""An energy as a NumPyro distribution."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, ExpandedDistribution, constraints
from numpyro.distributions.batch_util import promote_batch_shape

from numpyro_neb._internal.batching import over_batch
from numpyro_neb._internal.checks import (
    check_count,
    check_finite,
    check_floats,
    check_key,
    require,
    rounded,
)
from numpyro_neb._internal.events import check_events
from numpyro_neb.energies.base import AbstractEnergy, check_energy, initial_position
from numpyro_neb.integrators.base import Target, walk
from numpyro_neb.integrators.underdamped import BAOAB


class SmoothedDensity(Distribution):
    r"""The law of the smoothed signal Y = X + N(0, sigma^2 I): f(y) ∝ exp(-phi(y)).

    `log_prob` is -phi. That is the normalised log density for a `MixtureEnergy`, and lacks an
    unknown constant, log Z, for a learned energy: right for a fixed energy under MCMC and SVI,
    wrong if the energy's weights are trained or sampled through it. For `family.at(sigma)` of a
    `ConditionalEnergy` trained by `dual_score_loss` it is normalised as well as the training went:
    `empirical_bayes.log_normalizer` says how well, and should be zero.

    `sample` is exact if the energy's `sample` is, as for a `MixtureEnergy`. For `family.at(sigma)`
    the draws come down from noise at the largest sigma and are independent. Otherwise each draw is
    the end of a separate walk (`BAOAB`, `num_steps` steps from N(loc, scale^2 + sigma^2)):
    approximate, and good only if that walk is long enough. `MCMC(WalkJumpKernel(energy))` shows
    with R-hat and ESS whether it is.

    It is a distribution of the noisy Y, not of X: for X use `learned_prior`.

    Energies stacked along leading dimensions of their arrays form a batch: the distribution that
    `jax.vmap` or NumPyro's `scan` makes from them has the batch shape of their `sigma`.

    Args:
        energy: The energy phi, or several of one structure, stacked.
        num_steps: Steps of the walk behind a draw from a learned energy.
        validate_args: Whether NumPyro checks the values given to `log_prob`.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`; the message says how to wrap it.
        ValueError: If num_steps is not a positive int, a value given to `log_prob` does not end in
            the event shape or, if arguments are validated, is not finite.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> def model(data=None):
        ...     y = numpyro.sample("y", neb.SmoothedDensity(energy))
        ...     numpyro.sample("data", numpyro.distributions.Normal(y, 1.0).to_event(1), obs=data)
        >>> neb.SmoothedDensity(energy).log_prob(jnp.zeros((3, 2))).shape
        (3,)
    """

    arg_constraints: dict = {}  # noqa: RUF012 (NumPyro declares it so)
    pytree_data_fields = ("_arrays",)
    pytree_aux_fields = ("_static", "num_steps")

    def __init__(
        self,
        energy: AbstractEnergy,
        *,
        num_steps: int = 1000,
        validate_args: bool | None = None,
    ):
        check_energy(energy)
        # A module held as one attribute is lost when NumPyro flattens the distribution.
        self._arrays, self._static = eqx.partition(energy, eqx.is_array)
        self.num_steps = check_count("num_steps", num_steps)
        super().__init__(jnp.shape(energy.sigma), energy.event_shape, validate_args=validate_args)

    @property
    def energy(self) -> AbstractEnergy:
        """The energy phi; stacked ones have `batch_shape` in front of their arrays."""
        return eqx.combine(self._arrays, self._static)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of sigma: () for one energy, (k,) for k energies stacked by `vmap`."""
        return jnp.shape(self._arrays.sigma)

    @classmethod
    def infer_shapes(cls, energy: AbstractEnergy) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The batch shape and the event shape of `SmoothedDensity(energy)`.

        Args:
            energy: The energy, or its shapes as `equinox.filter_eval_shape` gives them.
        """
        return energy.sigma.shape, energy.event_shape

    def expand(self, batch_shape: Sequence[int]) -> Distribution:
        """Independent draws of Y over `batch_shape`, as in a plate."""
        batch_shape = tuple(batch_shape)
        return self if batch_shape == self.batch_shape else _Expanded(self, batch_shape)

    @constraints.dependent_property(is_discrete=False)  # pyright: ignore[reportArgumentType]
    def support(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """All of R^d."""
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def has_rsample(self) -> bool:
        """False: no draw is a differentiable function of the energy's parameters."""
        return False

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws of Y, of shape (*sample_shape, *batch_shape, *event_shape): see the class."""
        key = check_key(key)
        draw = partial(_draw, shape=sample_shape, num_steps=self.num_steps)
        stack = self.batch_shape
        if not stack:
            return draw(self.energy, key)
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(stack) :]), self._arrays)
        each = lambda arrays, key: draw(eqx.combine(arrays, self._static), key)  # noqa: E731
        draws = jax.vmap(each)(flat, jax.random.split(key, prod(stack)))
        draws = jnp.moveaxis(draws, 0, len(sample_shape))
        return draws.reshape(*sample_shape, *stack, *self.event_shape)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Float[Array, "..."]:
        """-phi(value), over any leading dimensions of `value`."""
        del intermediates
        value = self._checked(value)
        if self._validate_args:
            self._validate_sample(value)
        return -over_batch(_phi, self.energy, value)

    @property
    def sigma(self) -> Float[Array, "..."]:
        """The noise's standard deviation, shaped to broadcast with a draw."""
        return jnp.reshape(self._arrays.sigma, (*self.batch_shape, *(1,) * self.event_dim))

    def denoise(self, value: ArrayLike) -> Float[Array, "..."]:
        """The jump y - sigma^2 grad phi(y), over any leading dimensions of `value`."""
        return over_batch(_jump, self.energy, self._checked(value))

    @property
    def mean(self) -> Float[Array, "..."]:
        """E[Y] = E[X] as recorded in the energy's `loc`."""
        zero = jnp.zeros(self.event_shape)
        return over_batch(_mean, self.energy, zero)

    @property
    def variance(self) -> Float[Array, "..."]:
        """Var[Y] = Var[X] + sigma^2, with Var[X] as recorded in the energy's `scale`."""
        zero = jnp.zeros(self.event_shape)
        return over_batch(_variance, self.energy, zero)

    def _validate_sample(self, value: Any) -> Any:
        """Raises a ValueError if a concrete (untraced) value is not finite."""
        check_finite("value", value)

    def _checked(self, value) -> Array:
        """Checks that the value holds floats of a fitting shape, and returns it as an array."""
        array = check_floats("value", value)
        batch, stack = check_events("value", array, self.event_shape), self.batch_shape
        pairs = zip(reversed(batch), reversed(stack), strict=False)
        fits = all(a == b or 1 in (a, b) for a, b in pairs)
        what = f"leading dimensions that broadcast with {stack}, got {batch}"
        require(fits, f"value must have {what}")
        return jnp.asarray(rounded(array, jax.dtypes.canonicalize_dtype(array.dtype)))


class _Expanded(ExpandedDistribution):
    """A `SmoothedDensity` over more batch dimensions that knows which are its energies'.

    NumPyro's `scan` stacks a distribution's arrays and asks `promote_batch_shape` for the new batch
    shape; a `SmoothedDensity` reads its batch shape from its arrays, so only the count recorded at
    expansion tells which dimensions are new.
    """

    pytree_aux_fields = ("_base_ndim",)

    def __init__(self, base_dist: Distribution, batch_shape: tuple[int, ...]):
        super().__init__(base_dist, batch_shape)
        self._base_ndim = len(self.base_dist.batch_shape)

    def expand(self, batch_shape: Sequence[int]) -> Distribution:
        batch_shape = tuple(batch_shape)
        return self if batch_shape == self.batch_shape else _Expanded(self, batch_shape)


# NumPyro's function of this name only raises, and is typed accordingly.
_register: Any = promote_batch_shape.register


@_register
def _(density: SmoothedDensity) -> SmoothedDensity:
    return density


@_register
def _(density: _Expanded) -> Distribution:
    base, ndim = density.base_dist, density._base_ndim
    num_new = len(base.batch_shape) - ndim
    between = tuple(range(num_new, num_new + len(density.batch_shape) - ndim))
    base = jax.tree.map(partial(jnp.expand_dims, axis=between), base)
    return _Expanded(base, (*base.batch_shape[:num_new], *density.batch_shape))


def _draw(energy, key, shape, num_steps):
    if type(energy).sample is not AbstractEnergy.sample:  # it has an exact sampler
        return energy.sample(key, shape)
    keys = jax.random.split(key, prod(shape))
    y = jax.vmap(lambda key: _walked(energy, key, num_steps))(keys)
    return y.reshape(*shape, *energy.event_shape)


def _walked(energy, key, num_steps):
    key_start, key_init, key_walk = jax.random.split(key, 3)
    integrator, target = BAOAB(), Target(energy, energy.sigma)
    state = integrator.init(target, initial_position(energy, key_start), key_init)
    return walk(integrator, target, state, key_walk, num_steps)[0].position


# Of one energy and one event, for `over_batch`.
def _phi(energy, y):
    return energy(y)


def _jump(energy, y):
    return energy.denoise(y)


def _mean(energy, zero):
    return zero + energy.loc


def _variance(energy, zero):
    return zero + energy.scale**2 + energy.sigma**2
