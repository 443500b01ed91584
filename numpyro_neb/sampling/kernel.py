"""Walk-jump sampling as a NumPyro MCMC kernel."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int
from numpyro.infer.initialization import init_to_uniform
from numpyro.util import identity, is_prng_key

from numpyro_neb._internal.checks import check_count, check_positive, check_type, kind, require
from numpyro_neb._internal.numpyro_mcmc import ResumableKernel
from numpyro_neb.energies.base import AbstractEnergy, check_energy
from numpyro_neb.integrators.adaptation import Adaptation
from numpyro_neb.integrators.base import (
    AbstractIntegrator,
    Target,
    WalkState,
    check_integrator,
    walk,
)
from numpyro_neb.integrators.underdamped import BAOAB, GHMC
from numpyro_neb.sampling.targets import AbstractDensity, EnergyDensity, ModelDensity


class WalkJumpState(NamedTuple):
    """The state of a walk-jump chain; `vectorized` chains have a leading dimension.

    Attributes:
        draw: {"y": the walk, "x": the jump y - sigma^2 grad phi(y)}; for a model, its sites.
        walk: The integrator's state.
        unit: The unit of length of each coordinate, sigma / sqrt(inverse_temperature).
        lp: The log density of the walk's law up to a constant, -inverse_temperature * phi(y).
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
        adaptation: What warm-up has tuned; None if nothing is tuned.
        rng_key: The random key of the next draw.
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


@dataclasses.dataclass(frozen=True, eq=False)
class WalkJumpKernel(ResumableKernel):
    r"""Walks on the smoothed density f(y) ∝ exp(-phi(y)), and jumps to x = E[X given Y=y].

    A draw is `{"y": y, "x": x_hat(y)}`: y is the state of the Langevin walk and x the jump from it,
    y - sigma^2 grad phi(y), which reuses the gradient of the last step and costs nothing.
    The law of the jumps is narrower than that of X: Var(x) = Var(X) - E Cov(X given Y).

    Chains start from N(loc, scale^2 + sigma^2), or from the `init_params` given to `MCMC.run`: an
    array of shape (num_chains, *event_shape), without the first axis for one chain. Any
    `chain_method` works; "vectorized" is the fastest on one device. Extra fields are those of
    `WalkJumpState`; "lp", "energy", "step_size" and "diverging" are always recorded,
    "acceptance_rate" for Metropolis integrators and "stein_ratio" for other tuned ones. With a
    model and no integrator both are recorded, and the one that does not apply is an empty tuple.
    `extra_fields=("~draw.y",)` keeps only the jumps.

    With `model`, the walk is on the joint density of a model's latent sites, unconstrained. A draw
    holds the constrained sites under their names, the deterministic ones, and `<site>_jump` for
    each latent `SmoothedDensity` site: y - sigma^2 grad phi(y) of that site's energy, which costs
    one more gradient for each recorded draw. It equals E[X given y, data] if the data depend only
    on y. Steps are in units of that site's sigma. `init_params` is a dict of unconstrained
    values, as for NUTS. The kernel can be a block of `numpyro.infer.Gibbs`, with `chain_method`
    "sequential", "parallel" or `jax.vmap`: `Gibbs` does not take "vectorized".

    On an energy, nothing is tuned by default: the default step is near the best on any smoothed
    density. If any latent site of a model is not a `SmoothedDensity`, the default walk is an exact
    one, `GHMC()`, and it is tuned: such sites may have heavy tails, kinks and steep walls, where no
    step of an unadjusted walk is right. Switch `adapt_step_size` on as well if the data constrain y
    more tightly than sigma.

    A model's density must be a function of its latent sites and its arguments. A plate that takes a
    random subset of its rows is rejected, and so is any value that depends on the random key, such
    as `numpyro.prng_key` or a `param` with a random start: it would be the same at each draw.

    A walk that becomes NaN or infinite stays so, even if it does within a draw. Its draws are
    marked `diverging`, and counted in the progress bar and by `print_summary`: use a smaller step,
    or a Metropolis integrator.

    With `progress_bar=False` NumPyro recompiles its loop at every `run`. With the bar on it does
    not, but each recorded draw costs about 0.1 ms; with `num_steps` of 10 or more that is
    negligible.

    Args:
        energy: The energy phi; give either this or `model`.
        model: A NumPyro model; give either this or `energy`.
        integrator: The step of the walk. The default is `BAOAB()` (step sigma, friction 0.2/sigma),
            which needs no tuning on a smoothed density, for an energy and for a model whose latent
            sites are all `SmoothedDensity`; for other models it is `GHMC()`.
        num_steps: Steps of the walk between two draws, one gradient each.
        inverse_temperature: beta of the walk's law exp(-beta phi); the jump is still that of phi.
            The unit of steps becomes sigma / sqrt(beta), so that the stable step is the same.
        frozen: A boolean array of the event shape: True where y keeps the value of `init_params`
            while the rest is drawn from f(rest given frozen): in-painting. Only with an energy.
        max_score: If not None, the force of a step, norm(grad phi) times the unit of length, is
            cut to max_score * (sqrt(d) + 6), with d coordinates that move. With 1 and more no true
            score of a smoothed density is ever cut in practice: see `integrators.Target`.
        adapt_step_size: Whether warm-up tunes the step and the friction: see
            `adaptation.Adaptation`. By default only for a model with sites of unknown scale.
        adapt_mass_matrix: Whether warm-up makes each coordinate's standard deviation its unit. By
            default only for such a model, if the step is tuned.
        target_accept_prob: The acceptance rate that a Metropolis integrator's step is tuned to;
            by default 0.574 for MALA, 0.9 for GHMC.
        max_bias: The relative bias of the variances of y, averaged over the coordinates, that a
            tuned step of an unadjusted integrator may have. On Gaussians and laws of mild shape it
            is a bound. At kinks (Laplace), exponential walls (the logarithm of a scale) and in
            heavy tails it is not: rare large errors count for too little in the tuning.
            Whatever the law, `to_arviz` measures the bias, and warns if it is larger.
        init_strategy: A NumPyro init strategy, for the sites of a model that are not a
            `SmoothedDensity`.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy` (the message says how to wrap it), `model`
            is not callable, or `integrator` is not an integrator.
        ValueError: If both or neither of energy and model are given, a number is out of range,
            frozen does not have the event shape, or init_params does not have the shape above or is
            not finite; if the model takes a random subset of a plate's rows, or a value in it
            depends on the random key.
        FloatingPointError: If phi or its gradient is not finite where a walk starts.

    Reference:
        NEB algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> kernel = neb.WalkJumpKernel(energy, num_steps=5)
        >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> {name: draws.shape for name, draws in mcmc.get_samples().items()}
        {'x': (100, 2), 'y': (100, 2)}
    """

    energy: AbstractEnergy | None = None
    _: dataclasses.KW_ONLY
    model: Callable | None = None
    integrator: AbstractIntegrator | None = None
    num_steps: int = 1
    inverse_temperature: float = 1.0
    frozen: Bool[Array, "*event"] | Bool[np.ndarray, "*event"] | None = None
    max_score: float | None = None
    adapt_step_size: bool | None = None
    adapt_mass_matrix: bool | None = None
    target_accept_prob: float | None = None
    max_bias: float = 0.05
    init_strategy: Callable = init_to_uniform

    def __post_init__(self):
        one = (self.energy is None) != (self.model is None)
        require(one, "one of energy and model must be given, and not both")
        if self.model is None:
            check_energy(self.energy, hint="; a NumPyro model goes to WalkJumpKernel(model=...)")
        else:
            check_type("model", self.model, Callable, "callable")
        check_type("init_strategy", self.init_strategy, Callable, "callable")
        if self.integrator is None and self.model is None:
            object.__setattr__(self, "integrator", BAOAB())
        if self.integrator is not None:
            check_integrator(self.integrator)
        # Stored as plain numbers, which can be compared, hashed and written to files.
        object.__setattr__(self, "num_steps", check_count("num_steps", self.num_steps))
        self._check_numbers()
        self._check_frozen()

    def __str__(self) -> str:
        return "\n  ".join(self._lines())

    def _lines(self):
        if self.energy is None:
            where = f"the model {getattr(self.model, '__name__', type(self.model).__name__)}"
        else:
            where = f"{type(self.energy).__name__} of sigma {float(self.energy.sigma):.3g}"
            where += f", event shape {self.energy.event_shape}"
        step: Any = "BAOAB(), or GHMC() with sites that are no SmoothedDensity"
        step = step if self.integrator is None else self.integrator
        tuned = self.adapt_step_size
        if tuned is None:
            tuned = "if sites are no SmoothedDensity" if self.energy is None else False
        draws = "y, x" if self.model is None else "the model's sites"
        when = tuned if isinstance(tuned, str) else ("yes" if tuned else "no")
        return (
            f"WalkJumpKernel on {where}",
            f"steps between draws: {self.num_steps}, of {step}",
            f"tuned in warm-up: {when}; draws: {draws}",
        )

    @property
    def sample_field(self) -> str:
        """The field of the state that `MCMC.get_samples` returns."""
        return "draw"

    @property
    def default_fields(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The fields of the state that `MCMC` always records."""
        fields = ("draw", "diverging", "lp", "energy", "step_size")
        # Before it sees the model's arguments, a kernel that chooses an integrator knows neither.
        chooses = self.integrator is None
        metropolis = chooses or _is_metropolis(self.integrator)
        biased = chooses or not _is_metropolis(self.integrator)
        tuned = self.model is not None if self.adapt_step_size is None else self.adapt_step_size
        names = {"acceptance_rate": metropolis, "stein_ratio": biased and tuned}
        return (*fields, *(name for name, recorded in names.items() if recorded))

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: Any,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> WalkJumpState:
        """The first state, from `init_params` or a random position."""
        walker = self._walker(model_args, model_kwargs, num_warmup)
        batched = not is_prng_key(rng_key)
        if init_params is not None:
            chains = rng_key.shape[:1] if batched else ()
            init_params = walker.density.position(init_params, chains)
        # A model's arguments would be constants of a compiled function, recompiled each time.
        first = _first_state if self.model is not None else _compiled_first_state
        state = first(walker, rng_key, init_params)
        if not isinstance(state.diverging, Tracer) and state.diverging.is_fully_addressable:
            _check_start("energy" if self.model is None else "model", state)
            walker.density.check_at(state.walk.position[0] if batched else state.walk.position)
        return state

    def sample(
        self,
        state: WalkJumpState,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> WalkJumpState:
        """The next state: `num_steps` steps of the walk, and the jump."""
        walker = self._walker(model_args, model_kwargs)
        if is_prng_key(state.rng_key):
            return walker.sample(state)
        return jax.vmap(walker.sample)(state)

    def refresh(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: WalkJumpState, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> WalkJumpState:
        """The state, with all that depends on the model's arguments recomputed, for `Gibbs`."""
        return self._walker(model_args, model_kwargs).refresh(state)

    def wrap_model(self, wrapper: Callable) -> "WalkJumpKernel":
        """This kernel on `wrapper(model)`; without a model, the kernel itself."""
        if self.model is None:
            return self
        return dataclasses.replace(self, model=wrapper(self.model))

    def get_constrain_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable[[dict], dict]:
        """The identity: a draw is already constrained."""
        del model_args, model_kwargs
        return identity

    def get_diagnostics_str(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: WalkJumpState
    ) -> str:
        """What the progress bar shows."""
        parts = [f"step size {float(state.step_size):.2e}"]
        rate = state.acceptance_rate
        if not isinstance(rate, tuple):
            parts.append(f"acc. prob={float(rate):.2f}")
        count = int(state.num_diverging)
        return ", ".join(parts + [f"{count} diverging"] * (count > 0))

    def integrator_on(self, density: AbstractDensity) -> AbstractIntegrator:
        """The step of the walk on a density: `integrator`, or the default for it.

        Raises:
            ValueError: If the default has no Metropolis test, and target_accept_prob is given.
        """
        if self.integrator is not None:
            return self.integrator
        integrator = GHMC() if density.scale_is_unknown else BAOAB()
        self._check_target(integrator)
        return integrator

    def _walker(self, model_args, model_kwargs, num_warmup=0):
        if self.model is not None:
            strategy = self.init_strategy
            density = ModelDensity(self.model, model_args, model_kwargs, strategy)
        elif self.energy is None or model_args or model_kwargs:
            raise TypeError("WalkJumpKernel(energy) walks on the energy: run takes no model args")
        else:
            frozen = None if self.frozen is None else jnp.asarray(self.frozen)
            density = EnergyDensity(self.energy, frozen)
        integrator = self.integrator_on(density)
        unknown, step_size = density.scale_is_unknown, self.adapt_step_size
        step_size = unknown if step_size is None else step_size
        mass_matrix = self.adapt_mass_matrix
        mass_matrix = unknown and step_size if mass_matrix is None else mass_matrix
        return _Walker(
            density=density,
            integrator=integrator,
            num_steps=self.num_steps,
            inverse_temperature=self.inverse_temperature,
            max_score=self.max_score,
            max_bias=self.max_bias,
            target_accept_prob=self.target_accept_prob,
            adapt_step_size=step_size,
            adapt_mass_matrix=mass_matrix,
            num_warmup=num_warmup,
        )

    def _check_numbers(self):
        shares = ("max_bias", "target_accept_prob")
        for name in ("inverse_temperature", "max_score", "max_bias", "target_accept_prob"):
            value, below = getattr(self, name), 1.0 if name in shares else np.inf
            if value is not None or name not in ("max_score", "target_accept_prob"):
                object.__setattr__(self, name, check_positive(name, value, below))
        if self.integrator is not None:
            self._check_target(self.integrator)

    def _check_target(self, integrator):
        require(
            self.target_accept_prob is None or _is_metropolis(integrator),
            "target_accept_prob must be None for an integrator without a Metropolis test:"
            " its step is tuned to max_bias",
        )

    def _check_frozen(self):
        if self.frozen is None:
            return
        if self.energy is None:
            raise ValueError("frozen must be None with a model: condition the model instead")
        mask = np.asarray(self.frozen)
        fits = mask.shape == self.energy.event_shape and np.issubdtype(mask.dtype, np.bool_)
        wanted = f"a boolean array of the event shape {self.energy.event_shape}"
        require(fits, f"frozen must be {wanted}, got {kind(mask)}")


class _Walker(eqx.Module):
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

    def init(self, rng_key, key, position, unit):
        """The state at `position`."""
        adaptation = self._adaptation(position)
        integrator, target = self._tuned(unit, adaptation, position)
        walked = integrator.init(target, position, key)
        rate = jnp.zeros_like(walked.potential)
        state = self._state(integrator, target, walked, unit, rate, adaptation, rng_key)
        return state._replace(num_diverging=state.diverging.astype(int))

    def sample(self, state):
        """The state after `num_steps` steps."""
        rng_key, key, key_velocity = jax.random.split(state.rng_key, 3)
        walked, unit, adaptation = state.walk, state.unit, state.adaptation
        integrator, target = self._tuned(unit, adaptation, walked.position)
        varied = integrator
        if adaptation is not None:
            walked = adaptation.refreshed(target, walked, key_velocity)
            varied = adaptation.varied(integrator)
        walked, statistic = walk(varied, target, walked, key, self.num_steps)
        if adaptation is not None:
            scaled = walked.position / jnp.where(unit > 0, unit, 1)
            adaptation = adaptation.update(statistic, scaled)
        after = self._state(integrator, target, walked, unit, statistic, adaptation, rng_key)
        diverging = state.diverging | after.diverging
        count = state.num_diverging + diverging.astype(state.num_diverging.dtype)
        return after._replace(diverging=diverging, num_diverging=count)

    def refresh(self, state):
        """The same position under other arguments of the model."""
        unit, adaptation = state.unit, state.adaptation
        integrator, target = self._tuned(unit, adaptation, state.walk.position)
        potential, gradient = target(state.walk.position)
        walked = state.walk._replace(potential=potential, gradient=gradient)
        rate, rng_key = state.acceptance_rate, state.rng_key
        after = self._state(integrator, target, walked, unit, rate, adaptation, rng_key)
        diverging = state.diverging | after.diverging
        return after._replace(diverging=diverging, num_diverging=state.num_diverging)

    def _state(self, integrator, target, walked, unit, rate, adaptation, rng_key):
        """The state of a walk; the caller sets its count of divergences."""
        seen = integrator.observe(target, walked)
        # Zero times a finite number is zero: one pass over the arrays finds any other.
        finite = jnp.isfinite(seen.energy + jnp.sum(0 * (seen.position + seen.gradient)))
        return WalkJumpState(
            draw=self.density.record(seen.position, seen.gradient / self.inverse_temperature),
            walk=walked,
            unit=unit,
            lp=-seen.potential,
            energy=seen.energy,
            acceptance_rate=rate if _is_metropolis(integrator) else (),
            step_size=jnp.asarray(integrator.step_size * self.density.reference(unit)),
            stein_ratio=self._stein_ratio(seen, unit, adaptation),
            diverging=~finite,
            num_diverging=jnp.zeros((), int),
            adaptation=adaptation,
            rng_key=rng_key,
        )

    def _stein_ratio(self, seen, unit, adaptation):
        """The mean over moving coordinates of (y_i - c_i) d_i phi(y): see `WalkJumpState`."""
        if _is_metropolis(self.integrator) or not self.adapt_step_size:
            return ()
        moves = jnp.broadcast_to(unit > 0, seen.position.shape)
        away = seen.position - unit * adaptation.centre.reshape(moves.shape)
        return jnp.mean(away * seen.gradient, where=moves)

    def _adaptation(self, position):
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

    def _tuned(self, unit, adaptation, position):
        """The integrator and the target, as tuned so far."""
        integrator, beta = self.integrator, self.inverse_temperature
        if adaptation is not None:
            moving = jnp.broadcast_to(unit > 0, position.shape)
            size = jnp.sum(moving, dtype=position.dtype)
            integrator = adaptation.integrator(integrator, size, self.max_bias)
            unit = unit * adaptation.scale(position.shape)
        potential = self.density.potential
        tempered = potential if beta == 1 else lambda y: beta * potential(y)
        return integrator, Target(tempered, unit, self.max_score)


def _is_metropolis(integrator):
    return integrator.target_accept_prob is not None


def _first_state(walker, rng_key, position):
    batched = not is_prng_key(rng_key)
    split = functools.partial(jax.random.split, num=3)
    keys = jax.vmap(split, out_axes=1)(rng_key) if batched else split(rng_key)
    density = walker.density
    if position is None:
        # For a model, NumPyro searches for a position of finite density, or raises an error.
        position = density.start(keys[1])
    # The Hessian of beta phi is at most beta / sigma^2: a shorter unit keeps the step stable.
    unit = density.unit() / walker.inverse_temperature**0.5
    one = functools.partial(walker.init, unit=unit)
    return (jax.vmap(one) if batched else one)(keys[0], keys[2], position)


def _check_start(name, state):
    """Raises an error if the walk starts where the density is zero: it would stay there."""
    if np.any(state.diverging):
        chain = int(np.argmax(state.diverging))
        raise FloatingPointError(
            f"{name} must have a finite value and gradient where the walk starts, got"
            f" {-np.ravel(state.lp)[chain]} in chain {chain}: look at init_params, or at the {name}"
        )


_compiled_first_state = eqx.filter_jit(_first_state)
