"""Overdamped Langevin dynamics: ULA and MALA."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_neb._internal.checks import check_positive
from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    WalkState,
    kinetic,
    metropolis,
    stuck_if_not_finite,
)


class ULA(AbstractIntegrator):
    r"""Overdamped Langevin, unadjusted: y' = y - eta grad phi(y) + sqrt(2 eta) eps.

    eta = (step_size sigma)^2. On N(0, s^2) the stationary variance is s^2 / (1 - eta / (2 s^2)):
    too wide, and unstable from step_size = sqrt(2) on. `ULA.paper()` is the walk of NEB. If
    published code writes the drift as delta^2 / 2 with noise delta, its delta is sqrt(2)
    step_size sigma here.

    Args:
        step_size: sqrt(eta) in units of sigma, positive.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If step_size is not positive and finite.

    Reference:
        Parisi 1981; Roberts and Tweedie, Bernoulli 2 (1996); NEB equation 12.

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.ULA.paper()
        ULA(step_size=0.01)
    """

    step_size: float | Float[Array, ""] = 0.1

    def __check_init__(self):
        check_positive("step_size", self.step_size)

    @classmethod
    def paper(cls) -> "ULA":
        """The paper's walk, delta = sigma / 100; it jumps every 10,000 steps."""
        return cls(step_size=0.01)

    def init(self, target, position, key):
        """The state at `position`; the key is not used."""
        del key
        return WalkState(position, None, *target(position))

    def step(self, target, state, key):
        """One step, one gradient."""
        after, energy_error = _overdamped(target, state, key, self.step_size)
        return stuck_if_not_finite(after, energy_error), energy_error


class MALA(AbstractIntegrator):
    r"""Overdamped Langevin with a Metropolis test: a step of `ULA`, accepted or not. Unbiased.

    The ratio of a step from y to y' is exp(-phi(y') + phi(y)) q(y | y') / q(y' | y), with q the
    density of the step. The law is exact at every step size; the best one gives an acceptance
    rate near 0.574 and falls as d^(-1/6) with the dimension.

    Args:
        step_size: sqrt(eta) in units of sigma, positive, as for `ULA`.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If step_size is not positive and finite.

    Reference:
        Besag 1994; Roberts and Tweedie, Bernoulli 2 (1996); Roberts and Rosenthal, J. R. Stat.
        Soc. B 60 (1998).

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.MALA(step_size=0.3)
        MALA(step_size=0.3)
    """

    step_size: float | Float[Array, ""] = 0.5
    target_accept_prob: ClassVar[float | None] = 0.574

    def __check_init__(self):
        check_positive("step_size", self.step_size)

    def init(self, target, position, key):
        """The state at `position`; the key is not used."""
        del key
        return WalkState(position, None, *target(position))

    def step(self, target, state, key):
        """One step, one gradient."""
        key, key_accept = jax.random.split(key)
        proposal, energy_error = _overdamped(target, state, key, self.step_size)
        return metropolis(key_accept, state, proposal, energy_error), energy_error


def _overdamped(target, state, key, step_size):
    """The step of ULA, and minus the logarithm of its Metropolis ratio."""
    noise = target.noise(key, state.position)
    root_two = jnp.sqrt(jnp.asarray(2, noise.dtype))
    force = target.force(state.gradient)
    y = state.position + target.unit * step_size * (root_two * noise - step_size * force)
    potential, gradient = target(y)
    # The noise that would lead back, (y - y' + eta grad phi(y')) / sqrt(2 eta).
    back = step_size / root_two * (force + target.force(gradient)) - noise
    energy_error = potential - state.potential + kinetic(back) - kinetic(noise)
    return WalkState(y, None, potential, gradient), energy_error
