"""Integrators of Langevin dynamics: one step, pure. Steps and frictions are in units of sigma."""

import abc
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb.checks import check_choice, check_count, check_positive
from numpyro_neb.convolutions import for_compiled_loops


class Target(NamedTuple):
    """The law that a walk has, exp(-potential), and the scale on which it moves.

    Attributes:
        potential: The potential energy of one position, phi for a walk on an energy.
        unit: The unit of length: sigma, or an array that broadcasts against the position. A
            coordinate whose unit is zero stays where it is.
        max_score: Where not None, the force unit * gradient is cut to a norm of
            max_score * sqrt(d), d the number of coordinates that move. A true score of sigma has a
            root mean square norm of at most sqrt(d), so that 1 to 3 cuts only what a network gets
            wrong. An infinite or NaN force is not cut: the walk is marked diverging.
    """

    potential: Callable[[Float[Array, "..."]], Float[Array, ""]]
    unit: Float[Array, "..."] | float = 1.0
    max_score: float | None = None

    def __call__(self, y: Float[Array, "..."]) -> tuple[Float[Array, ""], Float[Array, "..."]]:
        """The potential at y and its gradient, never cut."""
        return jax.value_and_grad(for_compiled_loops(self.potential))(y)

    def force(self, gradient: Float[Array, "..."]) -> Float[Array, "..."]:
        """What moves the walk: the gradient per unit of length, cut to `max_score`."""
        scaled = self.unit * gradient
        if self.max_score is None:
            return scaled
        limit = self.max_score * jnp.sqrt(jnp.sum(jnp.broadcast_to(self.unit, scaled.shape) > 0))
        # By the largest component, whose square may overflow; an infinite one stays as it is.
        largest = jnp.max(jnp.abs(scaled))
        largest = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        norm = largest * jnp.sqrt(jnp.sum((scaled / largest) ** 2))
        return scaled * jnp.minimum(1, (limit / norm).astype(scaled.dtype))

    def noise(self, key: PRNGKeyArray, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Standard normal, of y's shape; zero where the unit is."""
        noise = jax.random.normal(key, y.shape, y.dtype)
        return noise if jnp.ndim(self.unit) == 0 else jnp.where(self.unit > 0, noise, 0)


class WalkState(NamedTuple):
    """Where a walk is.

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
        return self.potential + _kinetic(self.velocity)


class AbstractIntegrator(eqx.Module):
    """One step of a Markov chain with exp(-potential) as its law, or near it.

    The true Hess phi is at most I / sigma^2 in every direction, so that a step in units of sigma
    is stable, or not, whatever the energy.

    Attributes:
        step_size: The step, in units of length (sigma).
        target_accept_prob: The acceptance rate that warm-up tunes a Metropolis integrator's step
            to; None for one without a Metropolis test.
    """

    step_size: eqx.AbstractVar[float | Float[Array, ""]]
    target_accept_prob: ClassVar[float | None] = None

    @abc.abstractmethod
    def init(self, target: Target, position: Float[Array, "..."], key: PRNGKeyArray) -> WalkState:
        """The state of a walk that begins at `position`.

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
            The next state, and the energy error of the step (of the proposal, where there is
            one): minus the logarithm of its Metropolis ratio, zero for an exact flow.
        """

    def observe(self, target: Target, state: WalkState) -> WalkState:
        """The state as it is recorded, with the gradient that the jump needs."""
        del target
        return state

    def score(self, energy_error: Float[Array, ""]) -> Float[Array, ""] | None:
        """How good a step was, between 0 and 1; None where nothing says so.

        For a Metropolis integrator it is the acceptance probability.
        """
        return None if self.target_accept_prob is None else accept_prob(energy_error)


class ULA(AbstractIntegrator):
    r"""Overdamped Langevin, unadjusted: y' = y - eta grad phi(y) + sqrt(2 eta) eps.

    eta = (step_size sigma)^2. On N(0, s^2) the stationary variance is s^2 / (1 - eta / (2 s^2)):
    too wide, and unstable from step_size = sqrt(2) on. `ULA.paper()` is the walk of NEB. Where a
    published code writes the drift as delta^2 / 2 with noise delta, its delta is sqrt(2)
    step_size sigma here.

    Args:
        step_size: sqrt(eta) in units of sigma, positive.

    Raises:
        TypeError: If a number is none.
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
        return _overdamped(target, state, key, self.step_size)


class MALA(AbstractIntegrator):
    r"""Overdamped Langevin with a Metropolis test: the step of `ULA`, accepted or not. Unbiased.

    The ratio of a step from y to y' is exp(-phi(y') + phi(y)) q(y | y') / q(y' | y), with q the
    density of the step. The law is exact at every step size; the best one has an acceptance rate
    near 0.574 and falls as d^(-1/6) with the dimension.

    Args:
        step_size: sqrt(eta) in units of sigma, positive, as for `ULA`.

    Raises:
        TypeError: If a number is none.
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


class BAOAB(AbstractIntegrator):
    r"""Underdamped Langevin with unit mass, splitting BAOAB. The default.

    With h = step_size sigma and gamma = friction / sigma, a step is
    v -= h/2 grad phi(y);  y += h/2 v;  v = c v + sqrt(1 - c^2) eps;  y += h/2 v;
    v -= h/2 grad phi(y), with c = exp(-gamma h) = exp(-friction step_size).

    On N(0, s^2) the stationary variance of y is exactly s^2 for every stable step (h < 2 s), and
    that of v is 1 - h^2 / (4 s^2). Elsewhere the bias of y is of order h^2. Where a published code
    multiplies the velocity by exp(-gamma) alone, its gamma is friction * step_size here.

    Args:
        step_size: h in units of sigma, positive. Stable below 2.
        friction: gamma in units of 1/sigma, positive.
        initial_velocity: "gaussian", a draw from the stationary law N(0, I), or "zero".

    Raises:
        TypeError: If a number is none.
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
        v_after = _ornstein_uhlenbeck(self, target, v_before, key)
        y = state.position + h / 2 * target.unit * (v_before + v_after)
        potential, gradient = target(y)
        v_end = v_after - h / 2 * target.force(gradient)
        # The work of the B steps; what the O step exchanges is heat, and no error.
        work = _kinetic(v_before) - _kinetic(v_start) + _kinetic(v_end) - _kinetic(v_after)
        return WalkState(y, v_end, potential, gradient), potential - state.potential + work


class ABOBA(AbstractIntegrator):
    r"""Underdamped Langevin with unit mass, splitting ABOBA: what published walk-jump codes use.

    With h = step_size sigma and gamma = friction / sigma, a step is
    y += h/2 v;  v -= h/2 grad phi(y);  v = c v + sqrt(1 - c^2) eps;  v -= h/2 grad phi(y);
    y += h/2 v, with c = exp(-gamma h) = exp(-friction step_size).

    On N(0, s^2) the stationary variance of y is exactly s^2 for every stable step (h < 2 s), and
    that of v is 1 / (1 - h^2 / (4 s^2)). The gradient is taken in mid-step, so that the jump costs
    one more gradient for every recorded draw; `BAOAB` has it for nothing and is less biased.

    The published codes (Sachs et al. algorithm 1, walk-jump sampling of proteins) take a step
    delta in the data's units, so step_size = delta / sigma; they give each unit of mass an inverse
    mass u (Lipschitz^-1), which is 1 here: their (delta, u) is our h = delta sqrt(u). They
    multiply the velocity by exp(-gamma), without the step: friction = gamma / step_size.

    Args:
        step_size: h in units of sigma, positive. Stable below 2.
        friction: gamma in units of 1/sigma, positive.
        initial_velocity: "gaussian", a draw from N(0, I), or "zero".

    Raises:
        TypeError: If a number is none.
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

    def __check_init__(self):
        _check_underdamped(self)

    def init(self, target, position, key):
        """The first mid-step from `position`: between steps the state is in the middle of one."""
        v = _velocity(self, target, position, key)
        middle = position + self.step_size / 2 * target.unit * v
        return WalkState(middle, v, *target(middle))

    def step(self, target, state, key):
        """From the middle of a step to that of the next, one gradient."""
        h = self.step_size
        half_kick = h / 2 * target.force(state.gradient)
        v_start = jnp.asarray(state.velocity)
        v_after = _ornstein_uhlenbeck(self, target, v_start - half_kick, key)
        v = v_after - half_kick
        y = state.position + h * target.unit * v
        potential, gradient = target(y)
        v_before = v - h / 2 * target.force(gradient)
        work = _kinetic(v_before) - _kinetic(v_after)
        return WalkState(y, v, potential, gradient), potential - state.potential + work

    def observe(self, target, state):
        """The end of the step that led here: half a step back, one gradient."""
        v = jnp.asarray(state.velocity)
        y = state.position - self.step_size / 2 * target.unit * v
        return WalkState(y, v, *target(y))


class GHMC(AbstractIntegrator):
    r"""Underdamped Langevin with a Metropolis test and a flip of rejected velocities. Unbiased.

    With h = step_size sigma and gamma = friction / sigma, a step is
    v = c v + sqrt(1 - c^2) eps, c = exp(-gamma h);  v -= h/2 grad phi(y);  y += h v;
    v -= h/2 grad phi(y); then (y, v) is accepted with probability min(1, exp(-dH)), dH the change
    of phi(y) + norm(v)^2 / 2 since the refreshment, or else y stays and v changes its sign.

    The law is exact at every step size. Every flip turns the walk back, so the acceptance rate
    should be high, 0.9 or so; the step for it falls as d^(-1/6) with the dimension.

    Args:
        step_size: h in units of sigma, positive.
        friction: gamma in units of 1/sigma, positive.
        initial_velocity: "gaussian", a draw from the stationary law N(0, I), or "zero".

    Raises:
        TypeError: If a number is none.
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
        v = _ornstein_uhlenbeck(self, target, jnp.asarray(state.velocity), key)
        state = state._replace(velocity=v)
        v = v - h / 2 * target.force(state.gradient)
        y = state.position + h * target.unit * v
        potential, gradient = target(y)
        proposal = WalkState(y, v - h / 2 * target.force(gradient), potential, gradient)
        energy_error = proposal.energy - state.energy
        return metropolis(key_accept, state, proposal, energy_error), energy_error


def metropolis(
    key: PRNGKeyArray, state: WalkState, proposal: WalkState, energy_error: Float[Array, ""]
) -> WalkState:
    """The proposal with probability min(1, exp(-energy_error)), or else the state, turned back.

    Args:
        key: A JAX random key.
        state: Where the walk is.
        proposal: Where it would go. It is rejected where its energy error is NaN.
        energy_error: Minus the logarithm of the Metropolis ratio.

    Returns:
        The next state; after a rejection its velocity has the opposite sign.
    """
    accepted = jax.random.exponential(key, dtype=energy_error.dtype) > energy_error
    velocity = None if state.velocity is None else -state.velocity
    turned = state._replace(velocity=velocity)
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, turned)


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
        num_steps: How many steps.

    Returns:
        The last state, and the mean over the steps of `integrator.score`.

    Raises:
        ValueError: If num_steps is not a positive int.
    """
    if check_count("num_steps", num_steps) == 1:
        state, energy_error = integrator.step(target, state, key)
        return state, integrator.score(energy_error)

    def body(state, key):
        state, energy_error = integrator.step(target, state, key)
        return state, integrator.score(energy_error)

    state, scores = jax.lax.scan(body, state, jax.random.split(key, num_steps))
    return state, None if scores is None else jnp.mean(scores)


def _overdamped(target, state, key, step_size):
    """The step of ULA, and minus the logarithm of its Metropolis ratio."""
    noise = target.noise(key, state.position)
    root_two = jnp.sqrt(jnp.asarray(2, noise.dtype))
    force = target.force(state.gradient)
    y = state.position + target.unit * step_size * (root_two * noise - step_size * force)
    potential, gradient = target(y)
    # The noise that would lead back, (y - y' + eta grad phi(y')) / sqrt(2 eta).
    back = step_size / root_two * (force + target.force(gradient)) - noise
    energy_error = potential - state.potential + _kinetic(back) - _kinetic(noise)
    return WalkState(y, None, potential, gradient), energy_error


def _ornstein_uhlenbeck(integrator, target, velocity, key):
    """The O step: v = c v + sqrt(1 - c^2) eps, c = exp(-gamma h)."""
    decay = jnp.exp(-jnp.asarray(integrator.friction * integrator.step_size, velocity.dtype))
    return decay * velocity + jnp.sqrt(1 - decay**2) * target.noise(key, velocity)


def _velocity(integrator, target, position, key):
    if integrator.initial_velocity == "zero":
        return jnp.zeros_like(position)
    return target.noise(key, position)


def _kinetic(velocity):
    return jnp.sum(velocity**2) / 2


def _check_underdamped(integrator):
    check_positive("step_size", integrator.step_size)
    check_positive("friction", integrator.friction)
    check_choice("initial_velocity", integrator.initial_velocity, ("gaussian", "zero"))
