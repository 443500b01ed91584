"""Microcanonical dynamics: a walk of constant speed, with a Metropolis test or without one."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_neb._internal.checks import check_positive, require
from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    WalkState,
    metropolis,
    ornstein_uhlenbeck,
    stuck_if_not_finite,
)


class Microcanonical(AbstractIntegrator):
    r"""Isokinetic Langevin: the force turns the velocity and never changes its length, sqrt(d).

    The flow dy = v dt, dv = -P(v) grad phi(y) d / (d - 1) dt, with P(v) the projection orthogonal
    to v, has the law exp(-phi) for y, and a force however steep can't accelerate it. With
    h = step_size sigma and gamma = friction / sigma, a step is the BAOAB splitting of it: turn for
    h/2;  y += h/2 v;  v = c v + sqrt(1 - c^2) eps, scaled to the length sqrt(d), with
    c = exp(-gamma h);  y += h/2 v;  turn for h/2.

    The turn is exact: with e = -grad phi / norm(grad phi), u = v / sqrt(d) and
    a = h sqrt(d) norm(grad phi) / (2 (d - 1)), u becomes (u + e (sinh a + e'u (cosh a - 1))) /
    (cosh a + e'u sinh a), and the logarithm of the denominator, times d - 1, is the kinetic part
    of the energy error. Published codes have a speed of one and refresh v at the ends of a step:
    their step is h sqrt(d), their decoherence length sqrt(d) / gamma. With v refreshed in the
    middle, the bias of y is about a tenth of theirs at the same step.

    It needs at least two coordinates that move, and is meant for many.

    Args:
        step_size: h in units of sigma, positive.
        friction: gamma in units of 1/sigma, positive.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If step_size or friction is not positive and finite; on a walk, if there is
            one coordinate only.

    Reference:
        Robnik, De Luca, Silverstein and Seljak, Microcanonical Hamiltonian Monte Carlo, JMLR 24
        (2023); Robnik and Seljak, Fluctuation without dissipation: microcanonical Langevin Monte
        Carlo (2024). Leimkuhler and Matthews, Appl. Math. Res. Express (2013), for the splitting.

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.Microcanonical(step_size=0.5)
        Microcanonical(step_size=0.5)
    """

    step_size: float | Float[Array, ""] = 1.0
    friction: float | Float[Array, ""] = 0.2
    least_coordinates: ClassVar[int] = 2
    error_allowance: ClassVar[float] = 7.0
    max_bias: ClassVar[float] = 0.09
    tuned_friction: ClassVar[float] = 0.25

    def __check_init__(self):
        _check(self)

    def init(self, target, position, key):
        """The state at `position`, with a velocity of random direction."""
        return _start(target, position, key)

    def step(self, target, state, key):
        """One step, one gradient."""
        h = self.step_size
        v = _of_full_speed(target, state.velocity)
        v, first = _turned(target, v, state.gradient, h / 2)
        refreshed = _refreshed(self, target, v, key)
        y = state.position + h / 2 * target.unit * (v + refreshed)
        potential, gradient = target(y)
        v, second = _turned(target, refreshed, gradient, h / 2)
        energy_error = potential - state.potential + first + second
        return stuck_if_not_finite(WalkState(y, v, potential, gradient), energy_error), energy_error


class MAMS(AbstractIntegrator):
    r"""Metropolis-adjusted microcanonical dynamics, with partial refreshment. Unbiased.

    With h = step_size sigma and gamma = friction / sigma, a step refreshes the velocity,
    v = c v + sqrt(1 - c^2) eps scaled to the length sqrt(d), c = exp(-gamma h); turns it for h/2 as
    `Microcanonical` does; y += h v; turns it for h/2; then (y, v) is accepted with probability
    min(1, exp(-dE)), dE the change of phi and of the kinetic part, or else y stays and v changes
    sign. The law is exact at every step size. Every flip reverses the walk, so the acceptance rate
    should be high, around 0.9.

    Args:
        step_size: h in units of sigma, positive.
        friction: gamma in units of 1/sigma, positive.

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If step_size or friction is not positive and finite; on a walk, if there is
            one coordinate only.

    Reference:
        Robnik, Cohn-Gordon and Seljak, Metropolis adjusted microcanonical Hamiltonian Monte Carlo
        (2025).

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.MAMS(step_size=0.3)
        MAMS(step_size=0.3)
    """

    step_size: float | Float[Array, ""] = 0.5
    friction: float | Float[Array, ""] = 0.2
    target_accept_prob: ClassVar[float | None] = 0.9
    least_coordinates: ClassVar[int] = 2
    tuned_friction: ClassVar[float] = 0.25

    def __check_init__(self):
        _check(self)

    def init(self, target, position, key):
        """The state at `position`, with a velocity of random direction."""
        return _start(target, position, key)

    def step(self, target, state, key):
        """One step, one gradient."""
        h = self.step_size
        key, key_accept = jax.random.split(key)
        v = _refreshed(self, target, _of_full_speed(target, state.velocity), key)
        state = state._replace(velocity=v)
        v, first = _turned(target, v, state.gradient, h / 2)
        y = state.position + h * target.unit * v
        potential, gradient = target(y)
        v, second = _turned(target, v, gradient, h / 2)
        energy_error = potential - state.potential + first + second
        proposal = WalkState(y, v, potential, gradient)
        return metropolis(key_accept, state, proposal, energy_error), energy_error


def _turned(target, velocity, gradient, time):
    """The velocity turned towards the force for a time, and (d - 1) log of its would-be growth."""
    d = _moving(target, velocity)
    force = -target.force(gradient)
    norm = jnp.linalg.norm(force.reshape(-1))
    e = force / jnp.where(norm > 0, norm, 1)
    # Against the force, v is known to a rounding: exactly so, it would never turn.
    least = jnp.finfo(velocity.dtype).eps - 1
    along = jnp.clip(jnp.sum(e * velocity) / jnp.sqrt(d), least, 1)
    a = time * jnp.sqrt(d) * norm / (d - 1)
    # In terms of z = exp(-a), which does not overflow.
    z = jnp.exp(-a)
    turned = jnp.sqrt(d) * e * (1 - z) * (1 + z + along * (1 - z)) + 2 * z * velocity
    growth = a - jnp.log(2) + jnp.log(1 + along + (1 - along) * z**2)
    return _of_full_speed(target, turned), (d - 1) * growth


def _refreshed(integrator, target, velocity, key):
    """The O step, at full speed."""
    return _of_full_speed(target, ornstein_uhlenbeck(integrator, target, velocity, key))


def _of_full_speed(target, velocity):
    norm = jnp.linalg.norm(velocity.reshape(-1))
    return velocity * (jnp.sqrt(_moving(target, velocity)) / norm)


def _moving(target, y):
    """The number of coordinates that move, in y's dtype."""
    return jnp.sum(jnp.broadcast_to(target.unit, y.shape) > 0).astype(y.dtype)


def _start(target, position, key):
    many = "a microcanonical walk must have at least two coordinates: take BAOAB or GHMC for one"
    require(position.size > 1, many)
    velocity = _of_full_speed(target, target.noise(key, position))
    return WalkState(position, velocity, *target(position))


def _check(integrator):
    check_positive("step_size", integrator.step_size)
    check_positive("friction", integrator.friction)
