"""Tuning a walk in warm-up: its step, its friction, and the scale of each coordinate."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro.infer.hmc_util import dual_averaging, welford_covariance

from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    Target,
    WalkState,
    accept_prob,
    kinetic,
)

# Its initial state, its update with a draw, and the final variances.
_WELFORD = welford_covariance(diagonal=True)
# Its state for a first log step, and its update with an error of the statistic.
_AVERAGING = dual_averaging()
# The shares of warm-up after which windows end.
_WINDOWS = (0.1, 0.25, 0.6)
# A warm-up of fewer draws is one window.
_SHORT = 20
# A step is wild if the square of its energy error is this multiple of the variance aimed at.
_WILD = 100.0
# The least mean of these squares that counts: in one draw, a step grows twofold at most.
_LEAST = 2.0**-6
# A velocity is hot if its norm is beyond that of a standard normal by this: see `Target.force`.
_HOT = 6.0
# The precision of what warm-up measures and sets, in bits: see `to_few_bits`.
_BITS = 10
_BITS_OF_SQUARES = 4


class Tuned(NamedTuple):
    """What is tuned so far.

    Attributes:
        step_size: The step.
        inverse_mass_matrix: The variance of each coordinate, in units of length.
        averaging: The state of NumPyro's dual averaging; () for an unadjusted integrator.
        moments: Welford's sums over the current window.
    """

    step_size: Float[Array, ""]
    inverse_mass_matrix: Float[Array, " d"]
    averaging: tuple[Array, ...]
    moments: tuple[Array, ...]


class Adaptation(eqx.Module):
    r"""What warm-up has learned about a chain; part of the chain's state.

    In units of length (sigma), warm-up finds the standard deviation s_i of each coordinate by
    Welford's sums, the step, and the friction.

    - The step of a Metropolis integrator is tuned to a target acceptance rate by NumPyro's dual
      averaging, restarted in each window.
    - That of an unadjusted one is tuned to an energy error of mean square v = a b^3 d per step, d
      the number of coordinates and a the integrator's `error_allowance`. A leapfrog step of h on
      N(0, s^2) makes an energy error of variance (h/s)^6 / 16 per coordinate and widens the
      variance by a fraction (h/s)^2 / 4 to first order, so with a = 4, b bounds the relative bias
      of the variances of y, averaged over the coordinates; ULA is that leapfrog with a fresh
      velocity each step. BAOAB and ABOBA are exact on Gaussians, and stay well below the bound;
      for `Microcanonical` a is 7, as measured on Gaussians. The bound does not hold for laws with
      kinks, exponential walls or heavy tails.
      The mean is over the current window, later draws weigh more, and a square counts as 100 v at
      most: rare large errors do count, but a single one can't undo the tuning. As the square grows
      as h^6, each draw gives the step at which the mean would be v.
    - The friction is `tuned_friction` / max_i s_i: 1/2, a quarter of critical damping for the
      widest coordinate, and 1/4 for the microcanonical walks, which keep their speed.

    Windows end after a tenth, a quarter and six tenths of warm-up; the last two set the deviations.
    In the first, an unadjusted step has a Metropolis test, and follows its acceptance rate, to come
    quickly from a distant start. In all of warm-up a velocity that such a start has made faster
    than any normal one is replaced before the next draw. From the second window on, if the square
    of an unadjusted step's error is more than 100 v, the step is rejected and the velocity
    reversed, so that too large a step can't make the chain infinite. This stays so after warm-up:
    on a Gaussian such a step hardly occurs, and elsewhere it would change the density by more than
    what the bias allows.

    What warm-up measures and sets is rounded to 10 bits, and squares of energy errors to 4. A batch
    of chains and a single chain round differently in the last bits of a float, and the feedback of
    the tuning would amplify that: so all `chain_method`s find the same step, unless the potential
    is so large, hundreds in float32, that its rounding shows in the energy error.

    Attributes:
        num_draws: Draws so far.
        state: What is tuned so far.
        spread: Welford's mean and sum of squares of y from the second quarter of warm-up on: for
            the friction, if the deviations are not the units, and the centre.
        num_warmup: The number of draws to tune in.
        target_statistic: The mean `AbstractIntegrator.acceptance_statistic` to reach; None for an
            unadjusted integrator.
        adapt_step_size: Whether the step and the friction are tuned.
        adapt_mass_matrix: Whether each coordinate's unit becomes its standard deviation.
    """

    num_draws: Int[Array, ""]
    state: Tuned
    spread: tuple[Array, ...]
    num_warmup: int = eqx.field(static=True)
    target_statistic: float | None = eqx.field(static=True)
    adapt_step_size: bool = eqx.field(static=True)
    adapt_mass_matrix: bool = eqx.field(static=True)

    @classmethod
    def start(
        cls,
        integrator: AbstractIntegrator,
        position: Float[Array, "..."],
        *,
        num_warmup: int,
        target_accept_prob: float | None,
        adapt_step_size: bool,
        adapt_mass_matrix: bool,
    ) -> "Adaptation":
        """The adaptation before the first draw.

        Args:
            integrator: The integrator; tuning starts from its step.
            position: The first position, for its size and dtype.
            num_warmup: The number of draws to tune in.
            target_accept_prob: A Metropolis integrator's acceptance rate; None for its default.
            adapt_step_size: Whether the step and the friction are tuned.
            adapt_mass_matrix: Whether each coordinate's unit becomes its standard deviation.
        """
        own = integrator.target_accept_prob
        target_statistic = None if own is None else (target_accept_prob or own)
        flags = (num_warmup, target_statistic, adapt_step_size, adapt_mass_matrix)
        flat = jnp.ravel(position)
        step_size = jnp.asarray(integrator.step_size, flat.dtype)
        averaging = () if own is None else _averaging(step_size)
        moments: Any = _WELFORD[0](flat.size)
        state = Tuned(step_size, jnp.ones_like(flat), averaging, moments)
        return cls(jnp.zeros((), int), state, moments, *flags)

    @property
    def running(self) -> Array:
        """Whether the next draw still belongs to warm-up."""
        return self.num_draws < self.num_warmup

    def integrator(
        self, integrator: AbstractIntegrator, size: Float[Array, ""], max_bias: float
    ) -> AbstractIntegrator:
        """The integrator with its current step and friction; an unadjusted one is guarded.

        Args:
            integrator: The kernel's integrator.
            size: The number d of coordinates that move.
            max_bias: The relative bias b of a variance.
        """
        if not self.adapt_step_size:
            return integrator
        step_size = to_few_bits(self.state.step_size)
        tuned = eqx.tree_at(lambda i: i.step_size, integrator, step_size)
        if hasattr(integrator, "friction"):
            friction = jnp.asarray(self._friction(integrator), step_size.dtype)
            tuned = eqx.tree_at(lambda i: i.friction, tuned, to_few_bits(friction))
        if integrator.target_accept_prob is not None:
            return tuned
        bound = integrator.error_allowance * max_bias**3 * size
        return _Guarded(tuned, self.running & self._settling, bound)

    def varied(self, tuned: AbstractIntegrator) -> AbstractIntegrator:
        """The integrator of the next draw: after warm-up, a Metropolis one's step is cut at times.

        It is a fourth at each fourth draw, a sixteenth at each 16th, to 4^-5 at each 1024th. A step
        that is right for most of the law is rejected again and again where the law is much
        narrower, in the neck of a funnel or at a steep wall; shorter ones lead out of there. Each
        leaves the law invariant, and the draw's number does not depend on where the walk is.

        Args:
            tuned: What `integrator` returned.
        """
        if not self.adapt_step_size or tuned.target_accept_prob is None:
            return tuned
        cuts = jnp.sum((self.num_draws + 1) % 4 ** jnp.arange(1, 6) == 0)
        share = jnp.where(self.running, 1, 0.25**cuts).astype(self.state.step_size.dtype)
        return eqx.tree_at(lambda i: i.step_size, tuned, tuned.step_size * share)

    def refreshed(self, target: Target, state: WalkState, key: PRNGKeyArray) -> WalkState:
        """The state, with a fresh velocity if it is hot in warm-up."""
        if state.velocity is None:
            return state
        fresh = target.noise(key, state.position)
        moving = jnp.sum(jnp.broadcast_to(target.unit, fresh.shape) > 0)
        hot = 2 * kinetic(state.velocity) > (jnp.sqrt(moving) + _HOT) ** 2
        return state._replace(velocity=jnp.where(self.running & hot, fresh, state.velocity))

    def scale(self, shape: tuple[int, ...]) -> Float[Array, "..."] | float:
        """The factor that multiplies the unit of each coordinate."""
        if not self.adapt_mass_matrix:
            return 1.0
        return to_few_bits(jnp.sqrt(self.state.inverse_mass_matrix)).reshape(shape)

    @property
    def centre(self) -> Float[Array, " d"]:
        """The mean of the positions, in their unit, from the second quarter of warm-up on."""
        return self.spread[0]

    def update(
        self, statistic: Float[Array, ""] | None, position: Float[Array, "..."]
    ) -> "Adaptation":
        """The adaptation after one more draw.

        Args:
            statistic: The mean of `AbstractIntegrator.acceptance_statistic` over the draw's steps.
            position: Where the walk is, in its unit.
        """
        flat = jnp.ravel(position)
        statistic = jnp.zeros((), flat.dtype) if statistic is None else statistic
        statistic = jnp.round(statistic * 2**_BITS) / 2**_BITS
        state, spread = jax.lax.cond(
            self.running,
            lambda: (self._tuned(statistic, flat), self._spread_with(flat)),
            lambda: (self.state, self.spread),
        )
        changed = (self.num_draws + 1, state, spread)
        where = lambda a: (a.num_draws, a.state, a.spread)  # noqa: E731
        return eqx.tree_at(where, self, changed)

    @property
    def _settling(self):
        return self.num_draws < self._ends[0]

    @property
    def _ends(self):
        """The numbers of draws after which windows end; zeros for a warm-up of one window."""
        shares = _WINDOWS if self.num_warmup >= _SHORT else (0.0,)
        return np.array([int(self.num_warmup * share) for share in shares])

    def _tuned(self, statistic, flat):
        """The state after one more draw."""
        count = self.num_draws + 1
        ends = jnp.any(count == self._ends)
        state = self.state
        if self.adapt_step_size:
            state = self._with_step(statistic, ends | (count == self.num_warmup))
        if not self.adapt_mass_matrix:
            return state
        seen: Any = _WELFORD[1](flat, state.moments)
        number, before = seen[-1], state.inverse_mass_matrix
        # Stan's shrinkage, towards the last variances: a coordinate that is stuck goes on moving.
        unbiased = seen[1] / jnp.maximum(number - 1, 1)
        variances = (number * unbiased + 0.005 * before) / (number + 5)
        known = ends & (count > self._ends[0]) & (number >= 10)
        variances = jnp.where(known, variances, before).astype(before.dtype)
        # In the new units, the step that keeps its length where that was the longest.
        longer = jnp.where(seen[1] > 0, jnp.sqrt(before / variances), 0)
        longest = jnp.max(longer, initial=0)
        step_size = state.step_size * jnp.where(known & (longest > 0), longest, 1)
        averaging = state.averaging
        if averaging:
            restarted = _averaging(step_size)
            averaging = jax.tree.map(
                lambda new, old: jnp.where(known, new, old), restarted, averaging
            )
        return state._replace(
            step_size=step_size,
            averaging=averaging,
            inverse_mass_matrix=variances,
            moments=jax.tree.map(lambda a: jnp.where(ends, jnp.zeros_like(a), a), seen),
        )

    def _with_step(self, statistic, ends):
        state = self.state
        if self.target_statistic is None:
            start = jnp.max(jnp.where(self.num_draws >= self._ends, self._ends, 0))
            gain = 2 / (self.num_draws - start + 2)
            # Squares of small differences of potentials are known less well than other statistics.
            statistic = to_few_bits(statistic, _BITS_OF_SQUARES)
            # A square of x times the bound at h stands for one of x (h'/h)^6 at h': h' is where
            # their mean is one. Their weights rise linearly from the start of the window.
            mean = 1 + gain * (jnp.maximum(statistic, _LEAST) - 1)
            settled = state.step_size * mean ** (-1 / 6)
            # From far away: two steps in three accepted, and no memory.
            settling = state.step_size * (0.5 + statistic / 2) ** -0.5
            step_size = jnp.where(self._settling, settling, settled)
            return state._replace(step_size=step_size.astype(state.step_size.dtype))
        averaging: Any = _AVERAGING[1](self.target_statistic - statistic, state.averaging)
        step_size = jnp.exp(jnp.where(ends, averaging[1], averaging[0]))
        smallest = jnp.finfo(state.step_size.dtype).tiny
        step_size = jnp.maximum(step_size, smallest).astype(state.step_size.dtype)
        keep = lambda new, old: jnp.where(ends, new, old)  # noqa: E731
        averaging = jax.tree.map(keep, _averaging(step_size), averaging)
        return state._replace(step_size=step_size, averaging=averaging)

    def _friction(self, integrator):
        if self.adapt_mass_matrix:
            return integrator.tuned_friction
        variances: Any = _WELFORD[2](self.spread)[0]
        widest = jnp.sqrt(jnp.max(variances))
        known = (self.spread[-1] >= 10) & (widest > 0)
        return jnp.where(
            known, integrator.tuned_friction / jnp.where(known, widest, 1), integrator.friction
        )

    def _spread_with(self, flat):
        early = self.num_draws < self.num_warmup // 4
        new = _WELFORD[1](flat, self.spread)
        return jax.tree.map(lambda new, old: jnp.where(early, old, new), new, self.spread)


class _Guarded(AbstractIntegrator):
    """An unadjusted integrator that rejects wild steps, and returns what they are tuned by."""

    integrator: AbstractIntegrator
    settling: Array
    bound: Float[Array, ""]
    step_size: float | Float[Array, ""]
    target_accept_prob: ClassVar[float | None] = None

    def __init__(self, integrator, settling, bound):
        self.integrator, self.settling, self.bound = integrator, settling, bound
        self.step_size = integrator.step_size

    def init(self, target: Target, position, key) -> WalkState:
        """As for the inner integrator."""
        return self.integrator.init(target, position, key)

    def step(self, target, state, key):
        """The inner integrator's step, or the old state with its velocity reversed.

        Returns with it the square of its energy error over the bound, 100 at most; while the walk
        settles, three times its probability of rejection.
        """
        proposal, energy_error = self.integrator.step(target, state, key)
        # Rounding alone makes an error of some eps times the potential.
        noise = 8 * jnp.finfo(energy_error.dtype).eps * jnp.abs(state.potential)
        relative = energy_error**2 / jnp.maximum(self.bound, noise**2)
        draw = jax.random.exponential(jax.random.fold_in(key, 1), dtype=energy_error.dtype)
        accepted = jnp.where(self.settling, draw > energy_error, relative < _WILD)
        accepted &= jnp.isfinite(proposal.potential)
        turned = self.integrator.turned(target, state)
        chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, turned)
        square = jnp.where(relative < _WILD, relative, _WILD)  # also for NaN
        return chosen, jnp.where(self.settling, 3 - 3 * accept_prob(energy_error), square)

    def observe(self, target, state):
        """As for the inner integrator."""
        return self.integrator.observe(target, state)

    def resumed(self, target, seen):
        """As for the inner integrator."""
        return self.integrator.resumed(target, seen)

    def acceptance_statistic(self, energy_error):
        """What `step` returned."""
        return energy_error


def to_few_bits(value, bits=_BITS):
    """To 10 bits, or as many as given.

    A batch of chains and one chain round differently in the last bits of a float, and warm-up is a
    feedback that would amplify them.
    """
    mantissa, exponent = jnp.frexp(value)
    return jnp.ldexp(jnp.round(mantissa * 2**bits) / 2**bits, exponent)


def _averaging(step_size):
    """Dual averaging from a step on, with its centre at ten times that."""
    init: Any = _AVERAGING[0]
    return init(jnp.log(10) + jnp.log(step_size))
