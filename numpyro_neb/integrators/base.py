"""Langevin dynamics: single steps and walks. Steps and frictions are in units of sigma."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import check_count, kind, require
from numpyro_neb._internal.convolutions import for_compiled_loops

# P(norm(eps) > sqrt(d) + 6) <= exp(-18) for eps ~ N(0, I) in every dimension d.
_BEYOND_A_NORMAL_NORM = 6.0


class Target(NamedTuple):
    """The law of a walk, exp(-potential), and the scale on which it moves.

    Attributes:
        potential: The potential energy of one position, phi for a walk on an energy.
        unit: The unit of length: sigma, or an array that broadcasts against the position. A
            coordinate whose unit is zero does not move.
        max_score: If not None, the force unit * gradient is cut to a norm of
            max_score * (sqrt(d) + 6), d the number of coordinates that move. Sigma times the true
            score is -E[eps given y] with eps ~ N(0, I), so its norm T has E exp(k T) at most that
            of norm(eps), by Jensen's inequality, and P(T > sqrt(d) + t) <= exp(-t^2 / 2): 1 cuts
            at most one true score of a smoothed density in 6 * 10^7, in every dimension, and all
            else that it cuts is a network's error. A number below 1 cuts true scores too. An
            infinite or NaN force is not cut: the walk is marked diverging.
        score: If not None, minus the gradient, in place of that of the potential, which is then
            zero: for a walk without a Metropolis test on a law known by its score alone.

    Reference:
        Boucheron, Lugosi and Massart, Concentration Inequalities (2013), theorem 5.6: the norm of
        a normal vector.
    """

    potential: Callable[[Float[Array, "..."]], Float[Array, ""]]
    unit: Float[Array, "..."] | float = 1.0
    max_score: float | None = None
    score: Callable[[Float[Array, "..."]], Float[Array, "..."]] | None = None

    def __call__(self, y: Float[Array, "..."]) -> tuple[Float[Array, ""], Float[Array, "..."]]:
        """The potential at y and its gradient, never cut."""
        if self.score is not None:
            return jnp.zeros((), y.dtype), -for_compiled_loops(self.score)(y)
        return jax.value_and_grad(for_compiled_loops(self.potential))(y)

    def force(self, gradient: Float[Array, "..."]) -> Float[Array, "..."]:
        """The force that moves the walk: unit * gradient, cut to `max_score`."""
        scaled = self.unit * gradient
        if self.max_score is None:
            return scaled
        moving = jnp.sum(jnp.broadcast_to(self.unit, scaled.shape) > 0)
        limit = self.max_score * (jnp.sqrt(moving) + _BEYOND_A_NORMAL_NORM)
        # Scaled by the largest component, whose square may overflow; an infinite one is left alone.
        largest = jnp.max(jnp.abs(scaled))
        largest = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        norm = largest * jnp.sqrt(jnp.sum((scaled / largest) ** 2))
        return scaled * jnp.minimum(1, (limit / norm).astype(scaled.dtype))

    def noise(self, key: PRNGKeyArray, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Standard normal noise of y's shape; zero where the unit is zero."""
        noise = jax.random.normal(key, y.shape, y.dtype)
        return noise if jnp.ndim(self.unit) == 0 else jnp.where(self.unit > 0, noise, 0)


class WalkState(NamedTuple):
    """The state of a walk.

    Attributes:
        position: y.
        velocity: v, with unit mass, in units of length per time; None for an overdamped walk.
        potential: The potential at y.
        gradient: Its gradient, kept so that the next step and the jump cost no network call.
    """

    position: Float[Array, "..."]
    velocity: Float[Array, "..."] | None
    potential: Float[Array, ""]
    gradient: Float[Array, "..."]

    @property
    def energy(self) -> Float[Array, ""]:
        """The Hamiltonian, potential + norm(v)^2 / 2; the potential for an overdamped walk."""
        if self.velocity is None:
            return self.potential
        return self.potential + kinetic(self.velocity)


class AbstractIntegrator(eqx.Module):
    """One step of a Markov chain whose law is exp(-potential), exactly or nearly.

    The true Hess phi is at most I / sigma^2 in every direction, so that a step in units of sigma
    can be chosen to be stable for every energy.

    Attributes:
        step_size: The step, in units of length (sigma).
        target_accept_prob: The acceptance rate that warm-up tunes a Metropolis integrator's step
            to; None for one without a Metropolis test.
        gradients_to_place: The gradients that it takes to put a walk at another position, by
            `observe`, the target and `resumed`.
        least_coordinates: The number of coordinates that have to move.
        error_allowance: The a for which an unadjusted walk whose energy errors have a variance of
            a b^3 per coordinate widens variances by a fraction b at most: see `Adaptation`.
        max_bias: The b that a tuned walk is given by default.
        tuned_friction: The friction that warm-up sets, in units of the widest deviation.
    """

    step_size: eqx.AbstractVar[float | Float[Array, ""]]
    target_accept_prob: ClassVar[float | None] = None
    gradients_to_place: ClassVar[int] = 1
    least_coordinates: ClassVar[int] = 1
    error_allowance: ClassVar[float] = 4.0
    max_bias: ClassVar[float] = 0.05
    tuned_friction: ClassVar[float] = 0.5

    @abc.abstractmethod
    def init(self, target: Target, position: Float[Array, "..."], key: PRNGKeyArray) -> WalkState:
        """The state of a walk that starts at `position`.

        Args:
            target: The law and the unit of length.
            position: The first y.
            key: A JAX random key.
        """

    @abc.abstractmethod
    def step(
        self, target: Target, state: WalkState, key: PRNGKeyArray
    ) -> tuple[WalkState, Float[Array, ""]]:
        """One step of the walk, one gradient.

        Args:
            target: The law and the unit of length.
            state: Where the walk is.
            key: A JAX random key.

        Returns:
            The next state, and the energy error of the step (of the proposal, if there is
            one): minus the logarithm of its Metropolis ratio, zero for an exact flow. After a step
            whose error is not finite, an integrator without a Metropolis test returns a state of
            NaN (see `stuck_if_not_finite`): a walk that diverged must not come back.
        """

    def observe(self, target: Target, state: WalkState) -> WalkState:
        """The state as it is recorded, with the gradient that the jump needs."""
        del target
        return state

    def resumed(self, target: Target, seen: WalkState) -> WalkState:
        """The state that `observe` shows as `seen`."""
        del target
        return seen

    def turned(self, target: Target, state: WalkState) -> WalkState:
        """The state from which the walk goes back: its velocity has the opposite sign.

        Args:
            target: The law and the unit of length.
            state: The state, as `step` returns it.
        """
        del target
        return state._replace(velocity=None if state.velocity is None else -state.velocity)

    def acceptance_statistic(self, energy_error: Float[Array, ""]) -> Float[Array, ""] | None:
        """The number that warm-up tunes the step by: between 0 and 1, larger for a smaller error.

        For a Metropolis integrator it is the acceptance probability. For an unadjusted one it is
        None by default.

        Args:
            energy_error: The energy error of a step, as `step` returns it.
        """
        return None if self.target_accept_prob is None else accept_prob(energy_error)


def check_integrator(integrator: Any) -> None:
    """Raises a TypeError unless `integrator` is an `AbstractIntegrator`."""
    what = "one of numpyro_neb.integrators, as in BAOAB(step_size=1.0)"
    got = kind(integrator) if isinstance(integrator, type) else repr(integrator)
    known = isinstance(integrator, AbstractIntegrator)
    require(known, f"integrator must be {what}, got {got}", TypeError)


def metropolis(
    key: PRNGKeyArray, state: WalkState, proposal: WalkState, energy_error: Float[Array, ""]
) -> WalkState:
    """The proposal with probability min(1, exp(-energy_error)), or else the old state, reversed.

    A proposal whose potential is not finite is rejected, minus infinity included.

    Args:
        key: A JAX random key.
        state: Where the walk is.
        proposal: Where it would go; rejected if its energy error is NaN.
        energy_error: Minus the logarithm of the Metropolis ratio.

    Returns:
        The next state; after a rejection its velocity has the opposite sign.
    """
    accepted = jax.random.exponential(key, dtype=energy_error.dtype) > energy_error
    # A density that overflows is an error of rounding: the walk would never leave it.
    accepted &= jnp.isfinite(proposal.potential)
    velocity = None if state.velocity is None else -state.velocity
    turned = state._replace(velocity=velocity)
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, turned)


def stuck_if_not_finite(state: WalkState, energy_error: Float[Array, ""]) -> WalkState:
    """The state, with a position and a potential of NaN if the step's error is not finite.

    An unadjusted step through a place where the potential or its gradient is not finite may lead
    back to finite numbers, and what follows is no draw from the law.

    Args:
        state: The state after a step.
        energy_error: The step's energy error.
    """
    mark = jnp.where(jnp.isfinite(energy_error), 0, jnp.nan).astype(energy_error.dtype)
    return state._replace(position=state.position + mark, potential=state.potential + mark)


def accept_prob(energy_error: Float[Array, ""]) -> Float[Array, ""]:
    """The acceptance probability min(1, exp(-energy_error)); zero for NaN."""
    return jnp.where(jnp.isnan(energy_error), 0, jnp.exp(-jnp.maximum(energy_error, 0)))


def walk(
    integrator: AbstractIntegrator,
    target: Target,
    state: WalkState,
    key: PRNGKeyArray,
    num_steps: int,
) -> tuple[WalkState, Float[Array, ""] | None]:
    """`num_steps` steps of a walk, compiled as one loop.

    Args:
        integrator: The step.
        target: The law and the unit of length.
        state: Where the walk is, from `integrator.init`.
        key: A JAX random key.
        num_steps: Steps of the walk, one gradient each.

    Returns:
        The last state, and the mean over the steps of `integrator.acceptance_statistic`.

    Raises:
        ValueError: If num_steps is not a positive int.
    """
    if check_count("num_steps", num_steps) == 1:
        state, energy_error = integrator.step(target, state, key)
        return state, integrator.acceptance_statistic(energy_error)

    def body(state, key):
        state, energy_error = integrator.step(target, state, key)
        return state, integrator.acceptance_statistic(energy_error)

    state, statistics = jax.lax.scan(body, state, jax.random.split(key, num_steps))
    return state, None if statistics is None else jnp.mean(statistics)


def ornstein_uhlenbeck(
    integrator: Any, target: Target, velocity: Float[Array, "..."], key: PRNGKeyArray
) -> Float[Array, "..."]:
    """The O step: v = c v + sqrt(1 - c^2) eps, c = exp(-gamma h).

    Args:
        integrator: One with a friction.
        target: The law and the unit of length.
        velocity: v.
        key: A JAX random key.
    """
    decay = jnp.exp(-jnp.asarray(integrator.friction * integrator.step_size, velocity.dtype))
    return decay * velocity + jnp.sqrt(1 - decay**2) * target.noise(key, velocity)


def kinetic(velocity: Float[Array, "..."]) -> Float[Array, ""]:
    """The kinetic energy of a unit mass, norm(v)^2 / 2."""
    return jnp.sum(velocity**2) / 2
