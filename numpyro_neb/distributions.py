"""An energy as a NumPyro distribution."""

from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, constraints

from numpyro_neb.energies import AbstractEnergy, check_energy, initial_position, over_batch
from numpyro_neb.integrators import BAOAB, Target, walk
from numpyro_neb.mixtures import MixtureEnergy


class SmoothedDensity(Distribution):
    r"""The law of the smoothed signal Y = X + N(0, sigma^2 I): f(y) ∝ exp(-phi(y)).

    `log_prob` is -phi. That is the normalised log density for a `MixtureEnergy`, and lacks an
    unknown constant, log Z, for a learned energy: right for a fixed energy under MCMC and SVI,
    wrong where the energy's own weights are trained or sampled through it.

    `sample` is exact for a `MixtureEnergy`. Otherwise each draw is the end of a walk of its own
    (`BAOAB`, `num_steps` steps from N(loc, scale^2 + sigma^2)): approximate, and only as good as
    that walk is long. `MCMC(WalkJumpKernel(energy))` shows with R-hat and ESS whether it is.

    It is a distribution of the noisy Y, not of X.

    Args:
        energy: The energy phi.
        num_steps: The length of the walk behind a draw from a learned energy.
        validate_args: Whether NumPyro checks the values given to `log_prob`.

    Raises:
        TypeError: If `energy` is no `AbstractEnergy`; the message says how to wrap it.
        ValueError: If num_steps is not a positive int, or a value given to `log_prob` does not end
            in the event shape.

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
        if not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"num_steps must be a positive int, got {num_steps!r}")
        # A module held as one attribute is lost when NumPyro flattens the distribution.
        self._arrays, self._static = eqx.partition(energy, eqx.is_array)
        self.num_steps = num_steps
        super().__init__((), energy.event_shape, validate_args=validate_args)

    @property
    def energy(self) -> AbstractEnergy:
        """The energy phi."""
        return eqx.combine(self._arrays, self._static)

    @constraints.dependent_property(is_discrete=False)  # pyright: ignore[reportArgumentType]
    def support(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        """All of R^d."""
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def has_rsample(self) -> bool:
        """False: no draw is a differentiable function of the energy's parameters."""
        return False

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws of Y, of shape (*sample_shape, *event_shape): see the class for how exact."""
        if key is None:
            raise TypeError("key must be a JAX random key, got None")
        energy = self.energy
        if isinstance(energy, MixtureEnergy):
            return energy.sample(key, sample_shape)
        keys = jax.random.split(key, prod(sample_shape))
        y = jax.vmap(lambda key: _walked(energy, key, self.num_steps))(keys)
        return y.reshape(*sample_shape, *self.event_shape)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Float[Array, "..."]:
        """-phi(value), over any leading dimensions of `value`."""
        del intermediates
        value = jnp.asarray(value)
        log_prob = -over_batch(self.energy, value, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        return log_prob

    @property
    def mean(self) -> Float[Array, "*event"]:
        """E[Y] = E[X] as recorded in the energy's `loc`."""
        return jnp.broadcast_to(self.energy.loc, self.event_shape)

    @property
    def variance(self) -> Float[Array, "*event"]:
        """Var[Y] = Var[X] + sigma^2, with Var[X] as recorded in the energy's `scale`."""
        energy = self.energy
        return jnp.broadcast_to(energy.scale**2 + energy.sigma**2, self.event_shape)


def _walked(energy, key, num_steps):
    key_start, key_init, key_walk = jax.random.split(key, 3)
    integrator, target = BAOAB(), Target(energy, energy.sigma)
    state = integrator.init(target, initial_position(energy, key_start), key_init)
    return walk(integrator, target, state, key_walk, num_steps)[0].position
