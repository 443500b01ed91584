"""Tuning a walk in warm-up: its step, its friction, and the scale of each coordinate."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro.infer.hmc_util import (
    HMCAdaptState,
    build_adaptation_schedule,
    warmup_adapter,
    welford_covariance,
)

from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    Target,
    WalkState,
    accept_prob,
)

# Its initial state, its update with a draw, and the final variances.
_WELFORD = welford_covariance(diagonal=True)
# The mean of exp(-e^2 / v) over e ~ N(0, v): see `_effective`.
_STATISTIC_AT_BOUND = 3**-0.5
# The precision of what warm-up measures and sets, in bits: see `to_few_bits`.
_BITS = 10


class Adaptation(eqx.Module):
    r"""What warm-up has learned about a chain; part of the chain's state.

    NumPyro does the tuning: dual averaging for the step, and Welford variances for the standard
    deviation s_i of each coordinate, both in units of length (sigma).

    - The step of a Metropolis integrator is tuned to a target acceptance rate.
    - That of an unadjusted one is tuned to an energy error of variance 4 b^3 d per step, with d the
      number of coordinates. A leapfrog step of h on N(0, s^2) makes an energy error of variance
      (h/s)^6 / 16 per coordinate and widens the variance by a fraction (h/s)^2 / 4 to first order,
      so b bounds the relative bias of the variances of y, averaged over the coordinates; ULA is
      that leapfrog with a fresh velocity each step. BAOAB and ABOBA are exact on Gaussians, and
      stay well below the bound. The bound does not hold for laws with kinks, exponential walls or
      heavy tails: what is tuned is the mean of exp(-error^2 / v), to which an error of a hundred v
      counts no more than one of five. Early in warm-up steps have a Metropolis test, and are tuned
      to its acceptance rate, to come quickly from a distant start.
    - The friction is 1 / (2 max_i s_i): a quarter of critical damping for the widest coordinate.

    During tuning, each draw begins with a fresh velocity, which drains the energy of a start far
    from the mode. If a step of an unadjusted integrator errs by more than ten standard deviations
    of that bound, it is rejected and the velocity reversed, so that too large a step can't make
    the chain infinite. This stays so after warm-up: on a Gaussian such a step hardly occurs, and
    elsewhere it would change the density by more than what the bias allows.

    What warm-up measures and sets is rounded to 10 bits. A batch of chains and a single chain
    round differently in the last bits of a float, and the feedback of the tuning would amplify
    that: so all `chain_method`s find the same step.

    Attributes:
        num_draws: Draws so far.
        state: NumPyro's state of the tuning.
        spread: Welford's mean and sum of squares of y from the second quarter of warm-up on: for
            the friction, if the deviations are not the units, and the centre.
        num_warmup: The number of draws to tune in.
        target_statistic: The mean `AbstractIntegrator.acceptance_statistic` to reach.
        adapt_step_size: Whether the step and the friction are tuned.
        adapt_mass_matrix: Whether each coordinate's unit becomes its standard deviation.
    """

    num_draws: Int[Array, ""]
    state: HMCAdaptState
    spread: tuple[Array, ...]
    num_warmup: int = eqx.field(static=True)
    target_statistic: float = eqx.field(static=True)
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
        target_statistic = _STATISTIC_AT_BOUND if own is None else (target_accept_prob or own)
        flags = (num_warmup, target_statistic, adapt_step_size, adapt_mass_matrix)
        flat = jnp.ravel(position)
        step_size: Any = jnp.asarray(integrator.step_size, flat.dtype)
        init, _ = _adapter(*flags)
        state = init((flat,), jax.random.key(0), step_size, mass_matrix_size=flat.size)
        # Nothing here is random: the key would only be carried along.
        state = state._replace(rng_key=None)
        spread: Any = _WELFORD[0](flat.size)
        return cls(jnp.zeros((), int), state, spread, *flags)

    @property
    def running(self) -> Array:
        """Whether the next draw still belongs to warm-up."""
        return self.num_draws < self.num_warmup

    def integrator(
        self, integrator: AbstractIntegrator, size: Float[Array, ""], max_bias: float
    ) -> AbstractIntegrator:
        """The integrator with its current step and friction, guarded during tuning.

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
        early = self.running & (self.num_draws < self._num_early)
        return _Guarded(tuned, early, 4 * max_bias**3 * size, size)

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
        """The state, with a fresh velocity during warm-up."""
        if state.velocity is None:
            return state
        fresh = target.noise(key, state.position)
        return state._replace(velocity=jnp.where(self.running, fresh, state.velocity))

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
        flags = (
            self.num_warmup,
            self.target_statistic,
            self.adapt_step_size,
            self.adapt_mass_matrix,
        )
        _, update = _adapter(*flags)
        flat = jnp.ravel(position)
        statistic = jnp.zeros((), flat.dtype) if statistic is None else statistic
        statistic = jnp.round(statistic * 2**_BITS) / 2**_BITS
        state, spread = jax.lax.cond(
            self.running,
            lambda: (
                update(self.num_draws, statistic, (flat,), self.state),
                self._spread_with(flat),
            ),
            lambda: (self.state, self.spread),
        )
        changed = (self.num_draws + 1, state, spread)
        where = lambda a: (a.num_draws, a.state, a.spread)  # noqa: E731
        # NumPyro's state holds None in place of a key.
        return eqx.tree_at(where, self, changed, is_leaf=lambda leaf: leaf is None)

    @property
    def _num_early(self):
        """The number of draws before the first window, or the last if each restarts the step."""
        windows = build_adaptation_schedule(self.num_warmup)
        return windows[-1 if self.adapt_mass_matrix else min(1, len(windows) - 1)].start

    def _friction(self, integrator):
        if self.adapt_mass_matrix:
            return 0.5
        variances: Any = _WELFORD[2](self.spread)[0]
        widest = jnp.sqrt(jnp.max(variances))
        known = (self.spread[-1] >= 10) & (widest > 0)
        return jnp.where(known, 0.5 / jnp.where(known, widest, 1), integrator.friction)

    def _spread_with(self, flat):
        early = self.num_draws < self.num_warmup // 4
        new = _WELFORD[1](flat, self.spread)
        return jax.tree.map(lambda new, old: jnp.where(early, old, new), new, self.spread)


class _Guarded(AbstractIntegrator):
    """An unadjusted integrator that rejects wild steps, and early in warm-up any that MH would."""

    integrator: AbstractIntegrator
    early: Array
    bound: Float[Array, ""]
    size: Float[Array, ""]
    step_size: float | Float[Array, ""]
    target_accept_prob: ClassVar[float | None] = None

    def __init__(self, integrator, early, bound, size):
        self.integrator, self.early, self.bound, self.size = integrator, early, bound, size
        self.step_size = integrator.step_size

    def init(self, target: Target, position, key) -> WalkState:
        """As for the inner integrator."""
        return self.integrator.init(target, position, key)

    def step(self, target, state, key):
        """The inner integrator's step, or the old state with its velocity reversed.

        Returns with it not the energy error but what `acceptance_statistic` needs of it.
        """
        key_accept = jax.random.fold_in(key, 1)
        proposal, energy_error = self.integrator.step(target, state, key)
        # Rounding alone makes an error of some eps times the potential.
        noise = 8 * jnp.finfo(energy_error.dtype).eps * jnp.abs(state.potential)
        relative = energy_error**2 / jnp.maximum(self.bound, noise**2)
        draw = jax.random.exponential(key_accept, dtype=energy_error.dtype)
        accepted = jnp.where(self.early, draw > energy_error, relative < 100)
        accepted &= jnp.isfinite(proposal.potential)
        turned = self.integrator.turned(target, state)
        chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, turned)
        statistic = jnp.where(
            self.early,
            accept_prob(energy_error),
            jnp.where(jnp.isnan(relative), 0, jnp.exp(-relative / _effective(1, self.size))),
        )
        return chosen, statistic

    def observe(self, target, state):
        """As for the inner integrator."""
        return self.integrator.observe(target, state)

    def resumed(self, target, seen):
        """As for the inner integrator."""
        return self.integrator.resumed(target, seen)

    def acceptance_statistic(self, energy_error):
        """What `step` returned: early, the acceptance probability, whose target is then 0.577.

        Later exp(-energy_error^2 / variance): 1 / sqrt(3) on average at the bound.
        """
        return energy_error


def _effective(variance, size):
    """The v at which exp(-e^2 / v) is 1 / sqrt(3) on average, for an error e of that variance.

    On a Gaussian, e is a sum over coordinates of products of two normal numbers. Its tails are
    heavier than normal, so v is smaller for small d. This is a fit to E (1 + 2 q / (k d))^-1/2
    = 1 / sqrt(3), q ~ chi^2_d, k = v / variance, accurate to 0.2%.
    """
    return variance / (1 + 1 / size + 0.55 / size**2 + 0.08 / size**4)


def to_few_bits(value):
    """To 10 bits: a batch of chains and one chain round differently in the last bits of a float.

    Warm-up is a feedback that would amplify them.
    """
    mantissa, exponent = jnp.frexp(value)
    return jnp.ldexp(jnp.round(mantissa * 2**_BITS) / 2**_BITS, exponent)


def _adapter(num_warmup, target_statistic, adapt_step_size, adapt_mass_matrix):
    return warmup_adapter(
        num_warmup,
        adapt_step_size=adapt_step_size,
        adapt_mass_matrix=adapt_mass_matrix,
        target_accept_prob=target_statistic,
    )
