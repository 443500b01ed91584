"""Underdamped Langevin dynamics: BAOAB, ABOBA and GHMC."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_neb._internal.checks import check_choice, check_positive
from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    WalkState,
    kinetic,
    metropolis,
    ornstein_uhlenbeck,
    stuck_if_not_finite,
)


class BAOAB(AbstractIntegrator):
    r"""Underdamped Langevin with unit mass and the BAOAB splitting. The default.

    With h = step_size sigma and gamma = friction / sigma, a step is
    v -= h/2 grad phi(y);  y += h/2 v;  v = c v + sqrt(1 - c^2) eps;  y += h/2 v;
    v -= h/2 grad phi(y), with c = exp(-gamma h) = exp(-friction step_size).

    On N(0, s^2) the stationary variance of y is exactly s^2 for every stable step (h < 2 s), and
    that of v is 1 - h^2 / (4 s^2). Elsewhere the bias of y is of order h^2. If published code
    multiplies the velocity by exp(-gamma) alone, its gamma is friction * step_size here.

    Args:
        step_size: h in units of sigma, positive. Stable below 2.
        friction: gamma in units of 1/sigma, positive.
        initial_velocity: "gaussian", a draw from the stationary law N(0, I), or "zero".

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If step_size or friction is not positive and finite, or initial_velocity is
            neither of the two.

    Reference:
        Leimkuhler and Matthews, Appl. Math. Res. Express (2013).

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.BAOAB(step_size=0.5)
        BAOAB(step_size=0.5)
    """

    step_size: float | Float[Array, ""] = 1.0
    friction: float | Float[Array, ""] = 0.2
    initial_velocity: Literal["gaussian", "zero"] = eqx.field(static=True, default="gaussian")

    def __check_init__(self):
        _check_underdamped(self)

    def init(self, target, position, key):
        """The state at `position`, with its initial velocity."""
        return WalkState(position, _velocity(self, target, position, key), *target(position))

    def step(self, target, state, key):
        """One step, one gradient."""
        h = self.step_size
        v_start = jnp.asarray(state.velocity)
        v_before = v_start - h / 2 * target.force(state.gradient)
        v_after = ornstein_uhlenbeck(self, target, v_before, key)
        y = state.position + h / 2 * target.unit * (v_before + v_after)
        potential, gradient = target(y)
        v_end = v_after - h / 2 * target.force(gradient)
        # The work of the B steps; the O step exchanges heat, which is not an error.
        work = kinetic(v_before) - kinetic(v_start) + kinetic(v_end) - kinetic(v_after)
        energy_error = potential - state.potential + work
        after = WalkState(y, v_end, potential, gradient)
        return stuck_if_not_finite(after, energy_error), energy_error


class ABOBA(AbstractIntegrator):
    r"""Underdamped Langevin with unit mass and the ABOBA splitting of published walk-jump codes.

    With h = step_size sigma and gamma = friction / sigma, a step is
    y += h/2 v;  v -= h/2 grad phi(y);  v = c v + sqrt(1 - c^2) eps;  v -= h/2 grad phi(y);
    y += h/2 v, with c = exp(-gamma h) = exp(-friction step_size).

    On N(0, s^2) the stationary variance of y is exactly s^2 for every stable step (h < 2 s), and
    that of v is 1 / (1 - h^2 / (4 s^2)). The gradient is evaluated in mid-step, so the jump costs
    one more gradient for every recorded draw; with `BAOAB` it is free and the bias is smaller.

    The published codes (Sachs et al. algorithm 1, walk-jump sampling of proteins) take a step
    delta in the data's units, so step_size = delta / sigma. They have an inverse mass u
    (Lipschitz^-1), which is 1 here: their (delta, u) is our h = delta sqrt(u). They multiply the
    velocity by exp(-gamma), without the step: friction = gamma / step_size.

    Args:
        step_size: h in units of sigma, positive. Stable below 2.
        friction: gamma in units of 1/sigma, positive.
        initial_velocity: "gaussian", a draw from N(0, I), or "zero".

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If step_size or friction is not positive and finite, or initial_velocity is
            neither of the two.

    Reference:
        Sachs, Leimkuhler and Danos, Entropy 19 (2017); Leimkuhler and Matthews, Appl. Math. Res.
        Express (2013).

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.ABOBA(step_size=0.5)
        ABOBA(step_size=0.5)
    """

    step_size: float | Float[Array, ""] = 1.0
    friction: float | Float[Array, ""] = 0.2
    initial_velocity: Literal["gaussian", "zero"] = eqx.field(static=True, default="gaussian")
    gradients_to_place: ClassVar[int] = 3

    def __check_init__(self):
        _check_underdamped(self)

    def init(self, target, position, key):
        """The middle of the first step from `position`: the state is always kept in mid-step."""
        v = _velocity(self, target, position, key)
        middle = position + self.step_size / 2 * target.unit * v
        return WalkState(middle, v, *target(middle))

    def step(self, target, state, key):
        """From the middle of a step to that of the next, one gradient."""
        h = self.step_size
        half_kick = h / 2 * target.force(state.gradient)
        v_start = jnp.asarray(state.velocity)
        v_after = ornstein_uhlenbeck(self, target, v_start - half_kick, key)
        v = v_after - half_kick
        y = state.position + h * target.unit * v
        potential, gradient = target(y)
        v_before = v - h / 2 * target.force(gradient)
        work = kinetic(v_before) - kinetic(v_after)
        energy_error = potential - state.potential + work
        after = WalkState(y, v, potential, gradient)
        return stuck_if_not_finite(after, energy_error), energy_error

    def observe(self, target, state):
        """The end of the step that led here: half a step back, one gradient."""
        v = jnp.asarray(state.velocity)
        y = state.position - self.step_size / 2 * target.unit * v
        return WalkState(y, v, *target(y))

    def resumed(self, target, seen):
        """Half a step on, in the middle of the next step; one gradient."""
        v = jnp.asarray(seen.velocity)
        y = seen.position + self.step_size / 2 * target.unit * v
        return WalkState(y, v, *target(y))

    def turned(self, target, state):
        """The state from which the walk goes back: v changes sign in the middle of the kick."""
        kick = self.step_size * target.force(state.gradient)
        return state._replace(velocity=kick - jnp.asarray(state.velocity))


class GHMC(AbstractIntegrator):
    r"""Underdamped Langevin with a Metropolis test and a flip of rejected velocities. Unbiased.

    With h = step_size sigma and gamma = friction / sigma, a step is
    v = c v + sqrt(1 - c^2) eps, c = exp(-gamma h);  v -= h/2 grad phi(y);  y += h v;
    v -= h/2 grad phi(y); then (y, v) is accepted with probability min(1, exp(-dH)), dH the change
    of phi(y) + norm(v)^2 / 2 since the refreshment, or else y stays and v changes sign.

    The law is exact at every step size. Every flip reverses the walk, so the acceptance rate
    should be high, around 0.9; the step for that falls as d^(-1/6) with the dimension.

    Args:
        step_size: h in units of sigma, positive.
        friction: gamma in units of 1/sigma, positive.
        initial_velocity: "gaussian", a draw from the stationary law N(0, I), or "zero".

    Raises:
        TypeError: If a setting is not a number.
        ValueError: If step_size or friction is not positive and finite, or initial_velocity is
            neither of the two.

    Reference:
        Horowitz, Phys. Lett. B 268 (1991).

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.GHMC(step_size=0.3)
        GHMC(step_size=0.3)
    """

    step_size: float | Float[Array, ""] = 0.5
    friction: float | Float[Array, ""] = 0.2
    initial_velocity: Literal["gaussian", "zero"] = eqx.field(static=True, default="gaussian")
    target_accept_prob: ClassVar[float | None] = 0.9

    def __check_init__(self):
        _check_underdamped(self)

    def init(self, target, position, key):
        """The state at `position`, with its initial velocity."""
        return WalkState(position, _velocity(self, target, position, key), *target(position))

    def step(self, target, state, key):
        """One step, one gradient."""
        h = self.step_size
        key, key_accept = jax.random.split(key)
        v = ornstein_uhlenbeck(self, target, jnp.asarray(state.velocity), key)
        state = state._replace(velocity=v)
        v = v - h / 2 * target.force(state.gradient)
        y = state.position + h * target.unit * v
        potential, gradient = target(y)
        proposal = WalkState(y, v - h / 2 * target.force(gradient), potential, gradient)
        energy_error = proposal.energy - state.energy
        return metropolis(key_accept, state, proposal, energy_error), energy_error


def _velocity(integrator, target, position, key):
    if integrator.initial_velocity == "zero":
        return jnp.zeros_like(position)
    return target.noise(key, position)


def _check_underdamped(integrator):
    check_positive("step_size", integrator.step_size)
    check_positive("friction", integrator.friction)
    check_choice("initial_velocity", integrator.initial_velocity, ("gaussian", "zero"))
