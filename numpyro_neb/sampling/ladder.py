"""Replica exchange: one chain that walks on several noise levels at once."""

import dataclasses
import warnings
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.util import find_stack_level

from numpyro_neb._internal.checks import Numbers, check_reals, kind, require
from numpyro_neb.energies.base import AbstractEnergy, AbstractEnergyFamily
from numpyro_neb.integrators.adaptation import to_few_bits
from numpyro_neb.integrators.base import AbstractIntegrator, WalkState, walk
from numpyro_neb.integrators.exchange import exchange
from numpyro_neb.sampling.targets import AbstractDensity
from numpyro_neb.sampling.walker import Levels, Walker, is_finite, zeros_of

# Steps of the walk between exchanges for each gradient that these cost: 6% of the time.
_STEPS_BETWEEN = 16
# Rounds of exchanges before the levels are set for the first time.
_FIRST_ROUNDS = 16


class Ladder(eqx.Module):
    r"""One chain on several noise levels, neighbours of which exchange their walks.

    The law is the product of exp(-beta phi_l(y_l)) over the levels, and `exchange` leaves it as it
    is.

    Attributes:
        walker: The walk at the lowest level.
        family: What has the energies, with a method `at`.
        sigmas: The levels to begin with, rising.
        evened: Whether warm-up sets the levels between the ends so that all pairs exchange equally
            often: the sum of rejection probabilities up to a level is nearly the same function of
            sigma wherever the levels are.
    """

    walker: Walker
    family: Any
    sigmas: Float[Array, " level"]
    evened: bool = eqx.field(static=True)

    @property
    def density(self) -> AbstractDensity:
        """The density of the lowest level."""
        return self.walker.density

    def unit(self):
        """The unit of length of the lowest level."""
        return self.walker.unit()

    def init(self, rng_key, key, position, unit):
        """The state where the lowest level's walk is at `position`.

        The others begin with as much more noise as they have, where coordinates move.
        """
        more = jnp.sqrt(self.sigmas**2 - self.sigmas[0] ** 2)
        key, key_noise = jax.random.split(key)
        noise = jax.random.normal(key_noise, (len(more), *position.shape), position.dtype)
        noise = jnp.where(jnp.broadcast_to(unit > 0, noise.shape), noise, 0)
        more = more.reshape(-1, *[1] * position.ndim)
        position = position[None] + more * noise

        def begun(walker, position, key):
            adaptation = walker.adaptation(position)
            integrator, target = walker.tuned(walker.unit(), adaptation, position)
            return integrator.init(target, position, key), adaptation

        keys = jax.random.split(key, len(self.sigmas))
        walked, adaptation = self._over(begun, self.sigmas, position, keys)
        rate = zeros_of(walked.potential)
        every, blocks = self._schedule()
        rounds = self.walker.num_warmup // every * blocks
        if self.evened and 0 < rounds < _FIRST_ROUNDS:
            need = -(-_FIRST_ROUNDS // blocks) * every
            warnings.warn(
                f"num_warmup = {self.walker.num_warmup} is too few to set the noise levels, which"
                f" stay evenly spread: it takes {need} draws of {self.walker.num_steps} steps",
                stacklevel=find_stack_level(),
            )
        levels = Levels(
            sigma=self.sigmas,
            exchange_rate=rate[1:],
            round_trips=rate[0].astype(int),
            from_top=jnp.zeros(len(self.sigmas), bool).at[-1].set(True),
            rejections=jnp.zeros_like(self.sigmas[1:]),
            num_draws=jnp.zeros((), int),
            # The largest power of two.
            last_round=jnp.asarray(1 << rounds.bit_length() - 1 if rounds else 0, int),
        )
        state = self._state(walked, unit, rate, adaptation, rng_key, levels)
        return state._replace(num_diverging=state.diverging.astype(int))

    def batch(self, states):
        """The next states of a batch of chains, which are all at the same round of exchanges."""
        clock = (states.levels.num_draws[0], states.levels.last_round[0])
        return jax.vmap(self.sample, in_axes=(0, None))(states, clock)

    def sample(self, state, clock=None):
        """The state after `num_steps` steps at each level, with exchanges in or after them.

        Args:
            state: The state of one chain.
            clock: Its number of draws and last round, which `batch` takes out of the batch so that
                a conditional stays one.
        """
        rng_key, key, key_velocity = jax.random.split(state.rng_key, 3)
        walked, levels, adaptation = state.walk, state.levels, state.adaptation
        num_draws, last_round = clock or (levels.num_draws, levels.last_round)
        if adaptation is not None:
            keys = jax.random.split(key_velocity, len(self.sigmas))
            walked = self._over(_refreshed, levels.sigma, walked, adaptation, keys)
        every, blocks = self._schedule()

        def block(carry, x):
            (walked, levels), (round_, key) = carry, x
            keys = jax.random.split(key, len(self.sigmas) + 1)
            steps = self.walker.num_steps // blocks
            walk_on = partial(_walked, num_steps=steps)
            walked, statistic = self._over(walk_on, levels.sigma, walked, adaptation, keys[1:])

            def exchanged(carry):
                walked, levels = carry
                walked, levels = self.exchanged(walked, levels, adaptation, keys[0], round_)
                return self._evened(walked, levels, adaptation, round_, last_round)

            if every == 1:
                return exchanged((walked, levels)), statistic
            due = (num_draws + 1) % every == 0
            return jax.lax.cond(due, exchanged, lambda c: c, (walked, levels)), statistic

        rounds = num_draws // every * blocks + jnp.arange(blocks)
        keys = jax.random.split(key, blocks)
        (walked, levels), statistics = jax.lax.scan(block, (walked, levels), (rounds, keys))
        statistic = None if statistics is None else jnp.mean(statistics, axis=0)
        if adaptation is not None:
            adaptation = self._over(_updated, levels.sigma, walked, adaptation, statistic)
        levels = levels._replace(num_draws=levels.num_draws + 1)
        after = self._state(walked, state.unit, statistic, adaptation, rng_key, levels)
        diverging = state.diverging | after.diverging
        count = state.num_diverging + diverging.astype(state.num_diverging.dtype)
        return after._replace(diverging=diverging, num_diverging=count)

    def _state(self, walked, unit, rate, adaptation, rng_key, levels):
        """What is seen: the lowest level, and whether any of them diverges."""
        lowest, tuning, rate = jax.tree.map(lambda a: a[0], (walked, adaptation, rate))
        integrator, target = self.walker.tuned(unit, tuning, lowest.position)
        state = self.walker.state(integrator, target, lowest, unit, rate, tuning, rng_key)
        diverging = state.diverging | ~jnp.all(jax.vmap(is_finite)(walked))
        return state._replace(
            walk=walked, adaptation=adaptation, levels=levels, diverging=diverging
        )

    def exchanged(self, walked, levels, adaptation, key, round_):
        """The walks after one round of exchanges."""
        seen = self._over(_observed, levels.sigma, walked, adaptation)
        after = exchange(
            key,
            round_,
            walked,
            seen,
            evaluated=lambda seen: self._over(_evaluated, levels.sigma, seen, adaptation),
            resumed=lambda seen: self._over(_resumed, levels.sigma, seen, adaptation),
        )
        from_top = jnp.where(after.accepted, levels.from_top[after.partner], levels.from_top)
        from_top = from_top.at[-1].set(True)
        tried, rate = (after.partner > jnp.arange(len(from_top)))[:-1], after.rate[:-1]
        levels = levels._replace(
            exchange_rate=jnp.where(tried, rate, levels.exchange_rate),
            round_trips=levels.round_trips + from_top[0].astype(levels.round_trips.dtype),
            from_top=from_top.at[0].set(False),
            rejections=levels.rejections + jnp.where(tried, 1 - rate, 0),
        )
        return after.walked, levels

    def _evened(self, walked, levels, adaptation, round_, last_round):
        """In warm-up, after 16, 32, 64, ... rounds, levels between which equally much is rejected.

        Reference:
            Syed et al. 2022, algorithm 3, with the barrier as a function of log sigma.
        """
        if not self.evened:
            return walked, levels

        def set_levels(carry):
            walked, levels = carry
            # A pair that never rejects is left some room.
            zero = jnp.zeros_like(levels.rejections[:1])
            steps = jnp.concatenate([zero, levels.rejections + 0.01])
            barrier = jnp.cumsum(steps.astype(levels.sigma.dtype))
            wanted = jnp.linspace(0, barrier[-1], len(barrier), dtype=barrier.dtype)
            evened = jnp.exp(jnp.interp(wanted, barrier, jnp.log(levels.sigma)))
            between = to_few_bits(evened[1:-1])
            between = jnp.clip(between, levels.sigma[0], levels.sigma[-1])
            sigma = levels.sigma.at[1:-1].set(between)
            seen = self._over(_observed, levels.sigma, walked, adaptation)
            seen = self._over(_evaluated, sigma, seen, adaptation)
            walked = self._over(_resumed, sigma, seen, adaptation)
            rejections = jnp.zeros_like(levels.rejections)
            return walked, levels._replace(sigma=sigma, rejections=rejections)

        count = round_ + 1
        due = (count & round_ == 0) & (count >= _FIRST_ROUNDS) & (count <= last_round)
        return jax.lax.cond(due, set_levels, lambda carry: carry, (walked, levels))

    def _schedule(self):
        """The draws from one round of exchanges to the next, and the rounds in a draw."""
        num_steps, between = self.walker.num_steps, num_between(self.walker.integrator)
        if num_steps < between:
            return -(-between // num_steps), 1
        return 1, _blocks(num_steps, between)

    def _over(self, fn, sigma, *operands):
        """fn(walker, *operands) at each level."""

        def at(sigma, *operands):
            density = dataclasses.replace(self.density, energy=at_level(self.family, sigma))
            return fn(dataclasses.replace(self.walker, density=density), *operands)

        return jax.vmap(at)(sigma, *operands)


def _tuned(walker, walked, adaptation):
    return walker.tuned(walker.unit(), adaptation, walked.position)


def _refreshed(walker, walked, adaptation, key):
    return adaptation.refreshed(_tuned(walker, walked, adaptation)[1], walked, key)


def _walked(walker, walked, adaptation, key, num_steps):
    integrator, target = _tuned(walker, walked, adaptation)
    integrator = integrator if adaptation is None else adaptation.varied(integrator)
    return walk(integrator, target, walked, key, num_steps)


def _updated(walker, walked, adaptation, statistic):
    unit = walker.unit()
    return adaptation.update(statistic, walked.position / jnp.where(unit > 0, unit, 1))


def _observed(walker, walked, adaptation):
    integrator, target = _tuned(walker, walked, adaptation)
    return integrator.observe(target, walked)


def _evaluated(walker, seen, adaptation):
    """The same position and velocity at the walker's level."""
    _, target = _tuned(walker, seen, adaptation)
    return WalkState(seen.position, seen.velocity, *target(seen.position))


def _resumed(walker, seen, adaptation):
    integrator, target = _tuned(walker, seen, adaptation)
    return integrator.resumed(target, seen)


def num_between(integrator: AbstractIntegrator) -> int:
    """The steps of the walk between two rounds of exchanges."""
    return _STEPS_BETWEEN * integrator.gradients_to_place


def at_level(family: Any, sigma: Float[Array, ""]) -> AbstractEnergy:
    """The energy at a noise level that is known to be one of the family's."""
    # That of AbstractEnergy is for an energy without other levels.
    own = getattr(type(family), "unchecked_at", AbstractEnergy.unchecked_at)
    return family.at(sigma) if own is AbstractEnergy.unchecked_at else own(family, sigma)


def spread_levels(sigma: float, max_sigma: float, num_levels: int) -> tuple[float, ...]:
    """Noise levels from sigma to max_sigma, evenly spread over their logarithm."""
    between = np.geomspace(sigma, max_sigma, num_levels)[1:-1]
    return (sigma, *map(float, between), max_sigma)


def rising_levels(sigmas: Numbers) -> tuple[float, ...]:
    """At least two rising, positive noise levels.

    Raises:
        TypeError: If they are not real numbers.
        ValueError: If they are not such levels.
    """
    array = np.asarray(check_reals("sigmas", sigmas), float)
    some = array.ndim == 1 and array.size >= 2
    rising = some and array[0] > 0 and np.all(np.diff(array) > 0) and array[-1] < np.inf
    require(rising, f"sigmas must be two or more rising, positive numbers, got {sigmas}")
    return tuple(map(float, array))


def largest_spread(energy: Any, sigma: float) -> float:
    """The norm of the standard deviations, or the largest of a family's levels if that is less.

    No direction has a larger standard deviation: two modes of equal weights overlap there.

    Args:
        energy: What has the energies.
        sigma: The lowest level.
    """
    lowest = energy.at(sigma)
    shape = jnp.shape(lowest.scale) or lowest.event_shape
    top = float(np.linalg.norm(np.broadcast_to(np.asarray(lowest.scale, float), shape)))
    if not isinstance(energy, AbstractEnergyFamily):
        return top
    with jax.ensure_compile_time_eval():
        return min(top, float(energy.levels(jnp.asarray(1.0))))


def check_at(energy: Any) -> None:
    """Raises a TypeError if `energy` has no method `at`."""
    wanted = "energy must have .at(sigma) to walk on several noise levels, as ConditionalEnergy"
    known = callable(getattr(energy, "at", None)) and not isinstance(energy, type)
    require(known, f"{wanted} and MixtureEnergy have, got {kind(energy)}", TypeError)


def check_rounds(num_steps: int, integrator: AbstractIntegrator) -> None:
    """Raises a ValueError if num_steps can't be parted into blocks of nearly the wanted length."""
    between = num_between(integrator)
    most = num_steps // max(1, _blocks(num_steps, between))
    require(
        most <= 2 * between,
        f"num_steps must be a multiple of {between} for several levels, or nearly, got"
        f" {num_steps}: walks would be exchanged every {most} steps only",
    )


def _blocks(num_steps, between):
    """The number of equal blocks of at least `between` steps that a draw's steps make."""
    return max((n for n in range(1, num_steps // between + 1) if num_steps % n == 0), default=1)


def check_levels(energy: Any, sigmas: tuple[float, ...]) -> None:
    """Checks that an energy exists at the ends of some levels, of one event shape.

    Raises:
        TypeError: If `energy` has no method `at` that gives an energy.
        ValueError: If a level is out of its range, or the ends do not have one event shape.
    """
    check_at(energy)
    try:
        ends = [energy.at(sigma) for sigma in (sigmas[0], sigmas[-1])]
    except ValueError as error:
        raise ValueError(f"sigmas must be noise levels of the energy: {error}") from error
    for end in ends:
        what = f"energy.at(sigma) must give an AbstractEnergy, got {kind(end)}"
        require(isinstance(end, AbstractEnergy), what, TypeError)
    shapes = [end.event_shape for end in ends]
    one = f"energy.at(sigma) must have one event shape at all levels, got {shapes}"
    require(shapes[0] == shapes[1], one)
