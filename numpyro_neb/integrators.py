"""Integrators of Langevin dynamics: one step, pure. Steps and frictions are in units of sigma."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

Target = Callable[[Float[Array, "*event"]], tuple[Float[Array, ""], Float[Array, "*event"]]]


class WalkState(NamedTuple):
    """Where a walk is.

    Attributes:
        position: y.
        velocity: v, with unit mass; None for an overdamped walk.
        potential: phi(y).
        gradient: grad phi(y), kept so that the next step and the jump cost no network call.
    """

    position: Float[Array, "*event"]
    velocity: Float[Array, "*event"] | None
    potential: Float[Array, ""]
    gradient: Float[Array, "*event"]

    @property
    def energy(self) -> Float[Array, ""]:
        """The Hamiltonian phi(y) + norm(v)^2 / 2; phi(y) for an overdamped walk."""
        if self.velocity is None:
            return self.potential
        return self.potential + jnp.sum(self.velocity**2) / 2


class AbstractIntegrator(eqx.Module):
    """One step of a Markov chain with exp(-phi) as its law, or near it.

    The true Hess phi is at most I / sigma^2 in every direction, so that a step in units of sigma
    is stable, or not, whatever the energy.

    Attributes:
        step_size: The step, in units of sigma.
    """

    step_size: eqx.AbstractVar[float | Float[Array, ""]]

    @abc.abstractmethod
    def init(
        self, target: Target, position: Float[Array, "*event"], key: PRNGKeyArray
    ) -> WalkState:
        """The state of a walk that begins at `position`.

        Args:
            target: Maps y to phi(y) and grad phi(y).
            position: The first y.
            key: A JAX random key.
        """

    @abc.abstractmethod
    def step(
        self,
        target: Target,
        state: WalkState,
        key: PRNGKeyArray,
        unit: Float[Array, ""] | float,
    ) -> WalkState:
        """One step of the walk, one call of `target`.

        Args:
            target: Maps y to phi(y) and grad phi(y).
            state: Where the walk is.
            key: A JAX random key.
            unit: The unit of length, sigma.
        """


class ULA(AbstractIntegrator):
    r"""Overdamped Langevin, unadjusted: y' = y - eta grad phi(y) + sqrt(2 eta) eps.

    eta = (step_size sigma)^2. On N(0, s^2) the stationary variance is s^2 / (1 - eta / (2 s^2)):
    too wide, and unstable from step_size = sqrt(2) on. `ULA.paper()` is the walk of NEB. Where a
    published code writes the drift as delta^2 / 2 with noise delta, its delta is sqrt(2)
    step_size sigma here.

    Args:
        step_size: sqrt(eta) in units of sigma, positive.

    Raises:
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
        _check_positive("step_size", self.step_size)

    @classmethod
    def paper(cls) -> "ULA":
        """The paper's walk, delta = sigma / 100; it jumps every 10,000 steps."""
        return cls(step_size=0.01)

    def init(self, target, position, key):
        """The state at `position`; the key is not used."""
        del key
        return WalkState(position, None, *target(position))

    def step(self, target, state, key, unit):
        """One step, one gradient."""
        delta = self.step_size * unit
        noise = _normal_like(key, state.position)
        y = state.position - delta**2 * state.gradient + jnp.sqrt(2.0) * delta * noise
        return WalkState(y, None, *target(y))


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

    Raises:
        ValueError: If step_size or friction is not positive and finite.

    Reference:
        Leimkuhler and Matthews, Appl. Math. Res. Express (2013).

    Example:
        >>> import numpyro_neb as neb
        >>> neb.integrators.BAOAB(step_size=0.5)
        BAOAB(step_size=0.5)
    """

    step_size: float | Float[Array, ""] = 1.0
    friction: float | Float[Array, ""] = 0.2

    def __check_init__(self):
        _check_positive("step_size", self.step_size)
        _check_positive("friction", self.friction)

    def init(self, target, position, key):
        """The state at `position`, with a velocity drawn from its stationary law N(0, I)."""
        return WalkState(position, _normal_like(key, position), *target(position))

    def step(self, target, state, key, unit):
        """One step, one gradient."""
        half = self.step_size * unit / 2
        decay = jnp.exp(-self.friction * self.step_size)
        noise = _normal_like(key, state.position)
        v = jnp.asarray(state.velocity) - half * state.gradient
        y = state.position + half * v
        v = decay * v + jnp.sqrt(1 - decay**2) * noise
        y = y + half * v
        potential, gradient = target(y)
        return WalkState(y, v - half * gradient, potential, gradient)


def walk(
    integrator: AbstractIntegrator,
    target: Target,
    state: WalkState,
    key: PRNGKeyArray,
    unit: Float[Array, ""] | float,
    num_steps: int,
) -> WalkState:
    """`num_steps` steps of a walk, compiled as one loop.

    Args:
        integrator: The step.
        target: Maps y to phi(y) and grad phi(y), as `jax.value_and_grad(energy)` does.
        state: Where the walk is, from `integrator.init`.
        key: A JAX random key.
        unit: The unit of length, sigma.
        num_steps: How many steps.

    Returns:
        The last state.
    """
    if num_steps == 1:
        return integrator.step(target, state, key, unit)

    def body(state, key):
        return integrator.step(target, state, key, unit), None

    return jax.lax.scan(body, state, jax.random.split(key, num_steps))[0]


def _normal_like(key, array):
    return jax.random.normal(key, array.shape, array.dtype)


def _check_positive(name, value):
    if not isinstance(value, Tracer) and not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
