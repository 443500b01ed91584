"""Maximum likelihood by persistent chains of the walk: an objective that `fit` minimises."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import check_counts, check_key, check_number, require
from numpyro_neb._internal.events import as_events
from numpyro_neb.energies.base import AbstractEnergy, AbstractEnergyFamily, check_energy
from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    Target,
    WalkState,
    check_integrator,
    walk,
)
from numpyro_neb.integrators.exchange import check_resumable, exchange
from numpyro_neb.integrators.underdamped import BAOAB
from numpyro_neb.models.normalizer import annealed_log_weights
from numpyro_neb.training.objectives import (
    AbstractObjective,
    Batch,
    dual_score_loss,
    fixed_buffers,
)

# A chain is lost if it leaves the range of the data by more than this many times its width plus
# this many sigma.
_MARGIN = 2.0, 10.0
# The number of levels of a ConditionalEnergy at which the validation loss is computed.
_VALIDATION_LEVELS = 4
# Warn if at least this share of the chains restarts in a step.
_OFTEN = 0.01


class PersistentChains(NamedTuple):
    """The chains of `MaximumLikelihood` between two steps.

    Attributes:
        position: Their positions, of shape (num_chains, *event_shape). `WalkJumpKernel` can start
            there: `init_params=result.objective_state.position[:4]`.
        velocity: Their velocities, of that shape; None for an overdamped walk.
        potential: phi there, with the weights of the last step, of shape (num_chains,).
        gradient: Its gradient, of the shape of `position`.
        sigma: The noise level of each chain, of shape (num_chains,).
        lowest: The smallest value of each coordinate of noisy data so far, of shape `event_shape`.
        highest: The largest one.
    """

    position: Float[Array, "chain *event"]
    velocity: Float[Array, "chain *event"] | None
    potential: Float[Array, " chain"]
    gradient: Float[Array, "chain *event"]
    sigma: Float[Array, " chain"]
    lowest: Float[Array, "*event"]
    highest: Float[Array, "*event"]


class MaximumLikelihood(AbstractObjective):
    r"""Maximum likelihood of noisy data, by persistent contrastive divergence.

    The gradient of -E log f(Y) in the weights is E_data grad phi(Y) - E_f grad phi(Y). The second
    mean is over `num_chains` chains that start at noisy data, keep their position and velocity, and
    take `num_steps` steps of `integrator` between updates, with no gradient through the steps. A
    denoising term anchors the energy. Each training step descends

        mean phi(data) - mean phi(chains) + denoising_weight * denoising_loss / sigma^2,

    for a family of noise levels with `dual_score_loss` in place of the last, so that the constants
    of its levels do not drift.

    Denoising alone does not determine the relative weights of the modes: it teaches the slopes of
    phi, and only near the data. Train with `denoising_loss` first and with this objective second,
    and judge the result with `evaluate`. Without an `optimizer`, `fit` uses Adam here, on a cosine
    schedule from 2e-4 to 0, with gradients clipped to a norm of 5.

    The chains of a `ConditionalEnergy` have one noise level each, spread evenly over the logarithm
    of its range, and the data of a step take the levels of the chains. Make batch_size a multiple
    of num_chains: with a smaller batch, only that many chains count.

    With `num_levels`, these chains are num_chains / num_levels ladders of so many levels, whose
    neighbours exchange their places after the steps, as in `WalkJumpKernel(energy, sigmas=...)`:
    one even and one odd round, which cost two gradients for each chain. Chains then come from mode
    to mode by way of the high levels, and the weights of far modes are learned. The metric
    "exchange_rate" is the mean acceptance probability.

    What can go wrong, and how to see it: the bar, `callback` and `FitResult.metrics` report "gap",
    mean phi(data) - mean phi(chains), which is noise around 0 when all is well.

    - It swings to one side and the other for many steps at a time: the weights change faster than
      the chains can follow. Use a smaller learning rate, more chains or more steps. Some swinging
      is normal while the rate is high, so judge the energy after a schedule that ends at 0.
    - It grows: the learning rate is too large.
    - Chains become NaN or infinite, or leave the range of the data by more than twice its width.
      They restart from the data, and "restarts" is the share of the chains that did so in a step.
      A warning is given if that happens often.
    - The held-out loss rises again: the training is too long. `patience` stops it.
    - Modes many sigma apart, between which the chains do not cross, keep the weights that denoising
      gave them. The gap is still near 0, but `evaluate` reports an R-hat far above 1. Train a
      `ConditionalEnergy` with `num_levels`.

    The loss on `validation_data` is -E log f(Y) + denoising_weight * denoising_loss / sigma^2, in
    nats. log Z is estimated as in `empirical_bayes.log_normalizer`, with the same random numbers
    each time; for a `ConditionalEnergy` at each of four levels. The defaults cost 20,000 gradients
    per level: choose `validate_every` to match. They suffice for tables and small images. On exact
    kernel densities of 8 x 8 digits log Z came out 0.1 nats low at sigma = 0.3 and 0.6 at 0.2; at
    24 x 24 pixels it was 4 nats low, too far off to choose the length of training by.

    Args:
        num_chains: Chains, at least 2; with `sharding` they are split over the devices like the
            minibatch if their number is divisible.
        num_steps: Steps of the walk between two updates, one gradient each.
        denoising_weight: The weight of the denoising term, dimensionless. If it is too small,
            single jumps get worse; 0.05 to 0.2 gave the same results on digits and small tables.
            0 is plain maximum likelihood.
        integrator: The step of the walk.
        num_particles: Particles for log Z in the loss on validation data, at least 2.
        num_temperatures: Temperatures for it, at least 2.
        num_levels: The levels of a ladder of chains on a `ConditionalEnergy`, a divisor of
            num_chains; 1 for chains that do not exchange. 8 or so are enough in a few dimensions;
            add levels if "exchange_rate" is below .3.

    Raises:
        TypeError: If integrator is not an integrator, or denoising_weight is not a number.
        ValueError: If a count is not a positive int, denoising_weight is negative or infinite, or
            num_levels does not divide num_chains or is given for an energy of one noise level.

    Reference:
        Younes, Stochastics and Stochastics Reports 65 (1999); Tieleman, Training restricted
        Boltzmann machines using approximations to the likelihood gradient, ICML 2008.

    Example:
        >>> import jax, numpyro_neb as neb
        >>> data = jax.random.normal(jax.random.key(0), (1000, 2))
        >>> mlp = neb.networks.MLP((2,), width_size=16, depth=2, key=jax.random.key(1))
        >>> energy = neb.ResidualEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> result = neb.fit(energy, data, key=jax.random.key(2), num_steps=100, batch_size=64,
        ...                  objective=neb.MaximumLikelihood(num_chains=64, num_steps=5),
        ...                  progress_bar=False)
        >>> result.metrics["gap"].shape, result.objective_state.position.shape
        ((100,), (64, 2))
    """

    num_chains: int = 128
    num_steps: int = 20
    denoising_weight: float = 0.2
    integrator: AbstractIntegrator = BAOAB()
    num_particles: int = 100
    num_temperatures: int = 200
    num_levels: int = 1

    @property
    def metrics(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The names of what is reported at each step."""
        return ("gap", "restarts", *["exchange_rate"] * (self.num_levels > 1))

    def __check_init__(self):
        check_counts(num_steps=self.num_steps, num_levels=self.num_levels)
        fields = ("num_chains", "num_particles", "num_temperatures")
        check_counts(2, **{name: getattr(self, name) for name in fields})
        divides = self.num_chains % self.num_levels == 0
        got = f"{self.num_levels} for {self.num_chains}"
        require(divides, f"num_levels must be a divisor of num_chains, got {got}")
        weight = self.denoising_weight
        fits = 0 <= check_number("denoising_weight", weight) < jnp.inf
        require(fits, f"denoising_weight must be at least 0 and finite, got {weight}")
        check_integrator(self.integrator)
        if self.num_levels > 1:
            check_resumable(self.integrator)

    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """Adam on a cosine schedule from 2e-4 to 0, with gradients clipped to a norm of 5."""
        schedule = optax.cosine_decay_schedule(2e-4, num_steps)
        return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule))

    def init(
        self, energy: AbstractEnergy | AbstractEnergyFamily, key: PRNGKeyArray
    ) -> PersistentChains:
        """Chains that have yet to start: the first step places them at its noisy data."""
        several = not energy.one_level or self.num_levels == 1
        what = f"num_levels must be 1 for an energy of one noise level, got {self.num_levels}"
        require(several, what)
        shape, dtype = energy.event_shape, energy.loc.dtype
        sigma = _levels(energy, self.num_chains, jax.random.uniform(key))
        # Not inf, over which jax_debug_infs would stumble.
        largest = jnp.finfo(dtype).max
        nowhere = jnp.full((self.num_chains, *shape), largest, dtype)
        start = lambda y: self.integrator.init(Target(jnp.sum), y, key)  # noqa: E731
        moving = jax.eval_shape(start, nowhere[0]).velocity is not None
        return PersistentChains(
            position=nowhere,
            velocity=jnp.zeros_like(nowhere) if moving else None,
            potential=jnp.full(self.num_chains, largest, dtype),
            gradient=nowhere,
            sigma=sigma,
            lowest=jnp.full(shape, largest, dtype),
            highest=jnp.full(shape, -largest, dtype),
        )

    def __call__(
        self,
        energy: AbstractEnergy | AbstractEnergyFamily,
        x: Batch,
        key: PRNGKeyArray,
        state: PersistentChains,
    ) -> tuple[Float[Array, ""], PersistentChains, dict[str, Float[Array, ""]]]:
        """The loss, whose gradient is given above, the chains after the step, and the metrics."""
        check_energy(energy, conditional=True)
        check_key(key)
        energy, x = fixed_buffers(energy), as_events("x", x, energy, "batch")
        key_data, key_walk, key_fresh = jax.random.split(key, 3)
        y, phi, anchor, weights = _at_data(energy, x, key_data, state.sigma)
        if isinstance(energy, AbstractEnergyFamily) and energy.has_constants:
            # In the gap the constants of the levels cancel but for rounding, by which they drift.
            anchor = dual_score_loss(energy, x, key_data)
        lowest = jnp.minimum(state.lowest, jnp.min(y, axis=0))
        highest = jnp.maximum(state.highest, jnp.max(y, axis=0))
        ready = state._replace(lowest=lowest, highest=highest)
        chains, seen, metrics = self._walked(_constant(energy), ready, x, key_walk, key_fresh)
        phi_chains = _over_levels(lambda energy, y: energy(y), energy, state.sigma, seen)
        gap = jnp.mean(phi) - jnp.sum(weights * phi_chains)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), chains, state)
        metrics = metrics | {"gap": gap}
        return gap + self.denoising_weight * anchor, jax.lax.stop_gradient(after), metrics

    def validation_loss(
        self,
        energy: AbstractEnergy | AbstractEnergyFamily,
        x: Batch,
        key: PRNGKeyArray,
        state: PersistentChains,
    ) -> Float[Array, ""]:
        """E phi(Y) + denoising_weight * denoising_loss / sigma^2."""
        energy, x = fixed_buffers(energy), as_events("x", x, energy, "batch")
        del state
        key_data, _ = jax.random.split(key)

        def at(sigma):
            _, phi, anchor, _ = _at_data(energy, x, key_data, sigma[None])
            return jnp.mean(phi) + self.denoising_weight * anchor

        # Not lax.map: convolutions are slow inside a compiled loop on CPUs.
        return jnp.mean(jax.vmap(at)(_validation_levels(energy)))

    def validation_constant(
        self,
        energy: AbstractEnergy | AbstractEnergyFamily,
        key: PRNGKeyArray,
        state: PersistentChains,
    ) -> Float[Array, ""]:
        """Log Z, the mean over the levels."""
        del state
        _, key_normalizer = jax.random.split(key)

        def at(sigma):
            counts = self.num_particles, self.num_temperatures
            one = energy.unchecked_at(sigma)
            log_weights = annealed_log_weights(one, key_normalizer, *counts)
            return logsumexp(log_weights) - jnp.log(len(log_weights))

        return jnp.mean(jax.vmap(at)(_validation_levels(energy)))

    def unit(
        self, energy: AbstractEnergy | AbstractEnergyFamily, first: Float[Array, ""]
    ) -> Float[Array, ""]:
        """1: the loss has no unit."""
        del energy
        return jnp.ones_like(first)

    def warning(self, means: dict[str, float]) -> str | None:
        """A warning, or None, given the means of the metrics over some steps."""
        if means["restarts"] < _OFTEN:
            return None
        return (
            f"{means['restarts']:.1%} of the chains start again at each step: they become NaN or"
            " infinite, or leave the range of the data. Try a smaller learning rate, more steps of"
            " denoising_loss first, or a larger denoising_weight"
        )

    def _walked(self, energy, state, x, key, key_fresh):
        """The chains after num_steps steps, their observed positions, and metrics."""

        def one(energy, start, key):
            target = Target(energy, energy.sigma)
            walked, _ = walk(self.integrator, target, start, key, self.num_steps)
            return walked, self.integrator.observe(target, walked)

        key_rows, key_start = jax.random.split(key_fresh)
        y = _noisy_rows(x, state.sigma, key_rows)
        started = _set(state.position)
        place = jnp.where(_column(started, y), state.position, y)
        start = WalkState(place, state.velocity, state.potential, state.gradient)
        start = self._begun(energy, state.sigma, start, key_start)
        keys = jax.random.split(key, self.num_chains)
        walked, shown = _over_levels(one, energy, state.sigma, start, keys)
        metrics = {}
        if self.num_levels > 1:
            walked, shown, rate = self._exchanged(energy, state.sigma, walked, shown, key_fresh)
            metrics["exchange_rate"] = rate
        seen, finite = shown.position, jax.vmap(_is_finite)(walked)
        lowest, highest = state.lowest[None], state.highest[None]
        margin = _MARGIN[0] * (highest - lowest) + _MARGIN[1] * _column(state.sigma, seen)
        inside = (seen >= lowest - margin) & (seen <= highest + margin)
        lost = ~(finite & jnp.all(inside.reshape(self.num_chains, -1), axis=1))
        # The largest number as its gradient marks a chain that has yet to start.
        lost = _column(lost, y)
        unset = jnp.finfo(walked.gradient.dtype).max
        after = state._replace(
            position=jnp.where(lost, y, walked.position),
            velocity=walked.velocity,
            potential=walked.potential,
            gradient=jnp.where(lost, unset, walked.gradient),
        )
        metrics["restarts"] = jnp.mean(lost.reshape(-1) & started)
        return after, jnp.where(lost, y, seen), metrics

    def _exchanged(self, energy, sigma, walked, shown, key):
        """The chains after an even and an odd round of exchanges, and their mean rate."""
        # Chain i is at level i // number of ladders: each ladder spans the range.
        split = lambda a: a.reshape(self.num_levels, -1, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
        join = lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:])  # noqa: E731

        def one(round_, sigma, walked, shown, key):
            def over(fn):
                at = lambda energy, seen: fn(Target(energy, energy.sigma), seen)  # noqa: E731
                return lambda seen: _over_levels(at, energy, sigma, seen)

            placed = lambda target, seen: WalkState(  # noqa: E731
                seen.position, seen.velocity, *target(seen.position)
            )
            ends = {"evaluated": over(placed), "resumed": over(self.integrator.resumed)}
            after = exchange(key, round_, walked, shown, **ends)
            tried = after.partner != jnp.arange(self.num_levels)
            return after.walked, after.seen, jnp.mean(after.rate, where=tried)

        walked, shown, sigma = jax.tree.map(split, (walked, shown, sigma))
        rates = []
        for round_ in range(min(2, self.num_levels - 1)):
            keys = jax.random.split(jax.random.fold_in(key, 2 + round_), len(sigma))
            one_round = partial(one, round_)
            walked, shown, rate = jax.vmap(one_round)(sigma, walked, shown, keys)
            rates.append(jnp.mean(rate))
        walked, shown = jax.tree.map(join, (walked, shown))
        return walked, shown, jnp.mean(jnp.stack(rates))

    def _begun(self, energy, sigma, start, key):
        """The chains with phi and its gradient; new ones also get a velocity.

        The others keep both from the last step. They belong to the weights before the update, but
        it changes the force by less than the noise does, and one gradient in num_steps + 1 is
        saved. A Metropolis test compares phi before and after, so there both are recomputed.
        """
        new = ~_set(start.gradient)

        def begun(start):
            def one(energy, start, new, key):
                target = Target(energy, energy.sigma)
                first = self.integrator.init(target, start.position, key)
                potential, gradient = target(start.position)
                kept = start._replace(potential=potential, gradient=gradient)
                choose = lambda a, b, like: jnp.where(new, a, b).astype(like.dtype)  # noqa: E731
                return jax.tree.map(choose, first, kept, start)

            keys = jax.random.split(key, self.num_chains)
            return _over_levels(one, energy, sigma, start, new, keys)

        if self.integrator.target_accept_prob is not None:
            return begun(start)
        return jax.lax.cond(jnp.any(new), begun, lambda start: start, start)


def _at_data(energy, x, key, sigma):
    """Noisy data y, phi(y), the mean of norm(x - x_hat(y))^2 / sigma^2, and the chains' weights."""
    key_noise, key_level = jax.random.split(key)
    # Each chain's level, as often as the chain counts: then what phi adds at a level cancels.
    order = jax.random.permutation(key_level, len(sigma))[jnp.arange(len(x)) % len(sigma)]
    weights = jnp.full(len(sigma), 1 / len(sigma), sigma.dtype)
    if not energy.one_level:
        weights = jnp.bincount(order, length=len(sigma)).astype(sigma.dtype) / len(x)
    levels = _column(sigma[order], x)
    y = x + levels * jax.random.normal(key_noise, x.shape, x.dtype)
    both = lambda energy, y: (energy(y), energy.denoise(y))  # noqa: E731
    phi, jump = _over_levels(both, energy, sigma[order], y)
    errors = jnp.sum((((x - jump) / levels) ** 2).reshape(len(x), -1), axis=1)
    return y, phi, jnp.mean(errors), weights


def _over_levels(fn, energy, sigma, *operands):
    """fn(energy, *operands) for each item of a batch, at its own sigma."""
    at = lambda sigma, *operands: fn(energy.unchecked_at(sigma), *operands)  # noqa: E731
    return jax.vmap(at)(sigma, *operands)


def _levels(energy, number, offset):
    """`number` noise levels, spread evenly over those of the energy."""
    places = (jnp.arange(number, dtype=offset.dtype) + offset) / number
    return energy.levels(places).astype(energy.loc.dtype)


def _validation_levels(energy):
    return _levels(energy, 1 if energy.one_level else _VALIDATION_LEVELS, jnp.asarray(0.5))


def _noisy_rows(x, sigma, key):
    """Noisy data to start chains from, one for each sigma."""
    key_row, key_noise = jax.random.split(key)
    rows = x[jax.random.randint(key_row, (len(sigma),), 0, len(x))]
    return rows + _column(sigma, rows) * jax.random.normal(key_noise, rows.shape, rows.dtype)


def _is_finite(walked):
    arrays = walked.potential, walked.position, walked.gradient
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays]))


def _set(rows):
    """Whether each row has been set, and is finite."""
    known = jnp.abs(rows) < jnp.finfo(rows.dtype).max
    return jnp.all(known.reshape(len(rows), -1), axis=1)


def _column(values, batch):
    """One value for each row of a batch, with dimensions to broadcast over the rows."""
    return values.reshape(-1, *[1] * (batch.ndim - 1))


def _constant(energy):
    """The energy, with no gradient to its weights."""
    arrays, static = eqx.partition(energy, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), static)
