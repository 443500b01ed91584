"""One chain of the walk-jump kernel: pure functions from state to state."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int
from numpyro.util import is_prng_key

from numpyro_neb._internal.keys import split_key
from numpyro_neb.integrators.adaptation import Adaptation
from numpyro_neb.integrators.base import AbstractIntegrator, Target, WalkState, walk
from numpyro_neb.sampling.targets import AbstractDensity


class Levels(NamedTuple):
    """What a ladder of noise levels carries from draw to draw.

    Attributes:
        sigma: The noise levels, rising, of shape (num_levels,).
        exchange_rate: The acceptance probability of the last exchange that each pair of neighbours
            tried, of shape (num_levels - 1,), from the lowest pair up; 0 before its first try,
            within 32 steps. Its mean over the draws after that is the rate of exchanges.
        round_trips: How often a walk came to the lowest level from the highest.
        from_top: Whether the walk at each level was at the highest one since the lowest.
        rejections: The sum of each pair's rejection probabilities since the levels were last set.
        num_draws: The number of draws so far.
        last_round: The last round of exchanges after which the levels are set; 0 for never.
    """

    sigma: Float[Array, "... level"]
    exchange_rate: Float[Array, "... pair"]
    round_trips: Int[Array, "..."]
    from_top: Bool[Array, "... level"]
    rejections: Float[Array, "... pair"]
    num_draws: Int[Array, "..."]
    last_round: Int[Array, "..."]


class WalkJumpState(NamedTuple):
    """The state of a walk-jump chain; `vectorized` chains have a leading dimension.

    Attributes:
        draw: {"y": the walk, "x": the jump y - sigma^2 grad phi(y)}; for a model, its sites.
        walk: The integrator's state; with `sigmas`, that of each level, the levels in front.
        unit: The unit of length of each coordinate, sigma / sqrt(inverse_temperature).
        lp: The log density of the walk's law up to a constant, -inverse_temperature * phi(y); NaN
            for a `ScoreField`, and so is `energy`.
        energy: The Hamiltonian -lp + norm(v)^2 / 2; -lp for an overdamped walk.
        acceptance_rate: The mean acceptance probability of the draw's steps; () without a
            Metropolis test.
        step_size: The integrator's step times sigma / sqrt(inverse_temperature): in the data's
            units, before any tuned mass matrix.
        stein_ratio: For a tuned walk without a Metropolis test, the mean over the coordinates of
            (y_i - c_i) times the i-th derivative of the potential, with c the mean of y in warm-up.
            Its mean is 1 under the exact law; () for others.
        diverging: Whether the walk has become NaN or infinite, in this draw or before.
        num_diverging: The number of diverging draws so far.
        adaptation: What warm-up has tuned, with `sigmas` at each level; None if nothing is tuned.
        rng_key: The random key of the next draw.
        levels: What a ladder of noise levels carries along; () for one level. The other fields
            are those of the lowest level, and `diverging` of all.
    """

    draw: dict[str, Float[Array, "..."]]
    walk: WalkState
    unit: Float[Array, "..."]
    lp: Float[Array, "..."]
    energy: Float[Array, "..."]
    acceptance_rate: Float[Array, "..."] | tuple[()]
    step_size: Float[Array, "..."]
    stein_ratio: Float[Array, "..."] | tuple[()]
    diverging: Bool[Array, "..."]
    num_diverging: Int[Array, "..."]
    adaptation: Adaptation | None
    rng_key: Array
    levels: Levels | tuple[()] = ()

    @property
    def exchange_rate(self) -> Float[Array, "... pair"] | tuple[()]:
        """`Levels.exchange_rate`; () for one level."""
        return self.levels.exchange_rate if isinstance(self.levels, Levels) else ()

    @property
    def round_trips(self) -> Int[Array, "..."] | tuple[()]:
        """`Levels.round_trips`; () for one level."""
        return self.levels.round_trips if isinstance(self.levels, Levels) else ()


class Walker(eqx.Module):
    """One chain of a kernel: pure functions from state to state."""

    density: AbstractDensity
    integrator: AbstractIntegrator
    num_steps: int = eqx.field(static=True)
    inverse_temperature: float = eqx.field(static=True)
    max_score: float | None = eqx.field(static=True)
    max_bias: float = eqx.field(static=True)
    target_accept_prob: float | None = eqx.field(static=True)
    adapt_step_size: bool = eqx.field(static=True)
    adapt_mass_matrix: bool = eqx.field(static=True)
    num_warmup: int = eqx.field(static=True)

    def unit(self):
        """The unit of length: a shorter one keeps the step stable, as beta phi bends more."""
        return self.density.unit() / self.inverse_temperature**0.5

    def init(self, rng_key, key, position, unit):
        """The state at `position`."""
        adaptation = self.adaptation(position)
        integrator, target = self.tuned(unit, adaptation, position)
        walked = integrator.init(target, position, key)
        rate = zeros_of(walked.potential)
        state = self.state(integrator, target, walked, unit, rate, adaptation, rng_key)
        return state._replace(num_diverging=state.diverging.astype(int))

    def batch(self, states):
        """The next states of a batch of chains."""
        return jax.vmap(self.sample)(states)

    def sample(self, state):
        """The state after `num_steps` steps."""
        rng_key, key, key_velocity = split_key(state.rng_key, 3)
        walked, unit, adaptation = state.walk, state.unit, state.adaptation
        integrator, target = self.tuned(unit, adaptation, walked.position)
        varied = integrator
        if adaptation is not None:
            walked = adaptation.refreshed(target, walked, key_velocity)
            varied = adaptation.varied(integrator)
        walked, statistic = walk(varied, target, walked, key, self.num_steps)
        if adaptation is not None:
            scaled = walked.position / jnp.where(unit > 0, unit, 1)
            adaptation = adaptation.update(statistic, scaled)
        after = self.state(integrator, target, walked, unit, statistic, adaptation, rng_key)
        diverging = state.diverging | after.diverging
        count = state.num_diverging + diverging.astype(state.num_diverging.dtype)
        return after._replace(diverging=diverging, num_diverging=count)

    def refresh(self, state):
        """The same position under other arguments of the model."""
        unit, adaptation = state.unit, state.adaptation
        integrator, target = self.tuned(unit, adaptation, state.walk.position)
        potential, gradient = target(state.walk.position)
        walked = state.walk._replace(potential=potential, gradient=gradient)
        rate, rng_key = state.acceptance_rate, state.rng_key
        after = self.state(integrator, target, walked, unit, rate, adaptation, rng_key)
        diverging = state.diverging | after.diverging
        return after._replace(diverging=diverging, num_diverging=state.num_diverging)

    def state(self, integrator, target, walked, unit, rate, adaptation, rng_key):
        """The state of a walk; the caller sets its count of divergences."""
        seen = integrator.observe(target, walked)
        hidden = (lambda a: a) if self.density.has_value else (lambda a: a * jnp.nan)
        return WalkJumpState(
            draw=self.density.record(seen.position, seen.gradient / self.inverse_temperature),
            walk=walked,
            unit=unit,
            lp=hidden(-seen.potential),
            energy=hidden(seen.energy),
            acceptance_rate=rate if is_metropolis(integrator) else (),
            step_size=jnp.asarray(integrator.step_size * self.density.reference(unit)),
            stein_ratio=self._stein_ratio(seen, unit, adaptation),
            diverging=~is_finite(seen),
            num_diverging=jnp.zeros((), int),
            adaptation=adaptation,
            rng_key=rng_key,
        )

    def _stein_ratio(self, seen, unit, adaptation):
        """The mean over moving coordinates of (y_i - c_i) d_i phi(y): see `WalkJumpState`."""
        if is_metropolis(self.integrator) or not self.adapt_step_size:
            return ()
        moves = jnp.broadcast_to(unit > 0, seen.position.shape)
        away = seen.position - unit * adaptation.centre.reshape(moves.shape)
        return jnp.mean(away * seen.gradient, where=moves)

    def adaptation(self, position):
        """What warm-up tunes from here on; None for nothing."""
        if not (self.adapt_step_size or self.adapt_mass_matrix):
            return None
        return Adaptation.start(
            self.integrator,
            position,
            num_warmup=self.num_warmup,
            target_accept_prob=self.target_accept_prob,
            adapt_step_size=self.adapt_step_size,
            adapt_mass_matrix=self.adapt_mass_matrix,
        )

    def tuned(self, unit, adaptation, position):
        """The integrator and the target, as tuned so far."""
        integrator, beta = self.integrator, self.inverse_temperature
        if adaptation is not None:
            moving = jnp.broadcast_to(unit > 0, position.shape)
            size = jnp.sum(moving, dtype=position.dtype)
            integrator = adaptation.integrator(integrator, size, self.max_bias)
            unit = unit * adaptation.scale(position.shape)
        potential = self.density.potential
        tempered = potential if beta == 1 else lambda y: beta * potential(y)
        score = self.density.score
        if score is not None:
            score = functools.partial(_tempered, beta, score)
        return integrator, Target(tempered, unit, self.max_score, score)


def _tempered(beta, score, y):
    return score(y) if beta == 1 else beta * score(y)


def is_metropolis(integrator):
    """Whether an integrator has a Metropolis test."""
    return integrator.target_accept_prob is not None


def is_finite(walked):
    """Whether the arrays of a walk's state hold finite numbers only."""
    # Zero times a finite number is zero: one pass over the arrays finds any other.
    return jnp.isfinite(walked.energy + jnp.sum(0 * (walked.position + walked.gradient)))


def zeros_of(array):
    """Zeros that are a batch where the array is one, under `jax.vmap`, as they will be later."""
    return jnp.where(array == 0, array, jnp.zeros_like(array))


def first_state(walker, rng_key, position):
    """The state of a chain, or of a batch of them; random where no position is given."""
    batched = not is_prng_key(rng_key)
    split = functools.partial(jax.random.split, num=3)
    keys = jax.vmap(split, out_axes=1)(rng_key) if batched else split(rng_key)
    density = walker.density
    if position is None:
        # For a model, NumPyro searches for a position of finite density, or raises an error.
        position = density.start(keys[1])
    one = functools.partial(walker.init, unit=walker.unit())
    return (jax.vmap(one) if batched else one)(keys[0], keys[2], position)


def check_start(name, state, position, *checks):
    """Raises an error if the walk starts where the density is zero: it would stay there.

    Each of `checks` then sees the position of one chain. What is traced, or in part on another
    machine, is not checked.
    """
    if isinstance(state.diverging, Tracer) or not state.diverging.is_fully_addressable:
        return
    if np.any(state.diverging):
        chain = int(np.argmax(state.diverging))
        raise FloatingPointError(
            f"{name} must have a finite value and gradient where the walk starts, got"
            f" {-np.ravel(state.lp)[chain]} in chain {chain}: look at init_params, or at the {name}"
        )
    for check in checks:
        check(position[0] if state.diverging.ndim else position)


def progress(state, *parts):
    """What the progress bar shows: some parts, the acceptance rate and the divergences."""
    rate, count = state.acceptance_rate, int(state.num_diverging)
    parts += () if isinstance(rate, tuple) else (f"acc. prob={float(rate):.2f}",)
    return ", ".join(parts + (f"{count} diverging",) * (count > 0))


compiled_first_state = eqx.filter_jit(first_state)
