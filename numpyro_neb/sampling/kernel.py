"""Walk-jump sampling as a NumPyro MCMC kernel."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from numpyro.infer.initialization import init_to_uniform
from numpyro.util import is_prng_key

from numpyro_neb._internal.checks import (
    Numbers,
    check_count,
    check_positive,
    check_type,
    kind,
    require,
)
from numpyro_neb._internal.numpyro_mcmc import ResumableKernel
from numpyro_neb.energies.base import AbstractEnergyFamily, AbstractScoreField, check_energy
from numpyro_neb.integrators.base import AbstractIntegrator, check_integrator
from numpyro_neb.integrators.exchange import check_resumable
from numpyro_neb.integrators.underdamped import BAOAB, GHMC
from numpyro_neb.sampling.ladder import (
    Ladder,
    at_level,
    check_at,
    check_levels,
    check_rounds,
    largest_spread,
    rising_levels,
    spread_levels,
)
from numpyro_neb.sampling.targets import AbstractDensity, EnergyDensity, ModelDensity
from numpyro_neb.sampling.walker import (
    Walker,
    WalkJumpState,
    check_start,
    compiled_first_state,
    first_state,
    is_metropolis,
    progress,
)


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

    With `sigmas`, a chain walks on several noise levels at once: replica exchange. Draws are those
    of the lowest level, with its jump. High levels cross between modes that are far apart, and
    neighbours exchange their walks in a way that leaves the law of each level as it is, whatever
    the energies:

        exchange y_l and y_m with probability min(1, r),
        log r = phi_l(y_l) + phi_m(y_m) - phi_l(y_m) - phi_m(y_l).

    Each level takes `num_steps` steps, in units of its own sigma, between two draws, and there is a
    round of exchanges about every 16 steps: it costs a gradient for each level. The extra fields
    "exchange_rate", of the last try of each pair, and "round_trips", of walks from the highest
    level to the lowest, are recorded. Rates of .2 to .8 are good: add levels if one is lower. With
    `sigma` and `num_levels`, warm-up sets the levels so that all pairs exchange equally often.
    The default walk is the exact `GHMC()`: weights of far modes come down through all the levels,
    where the bias of an unadjusted walk adds up (of two modes 10 sigma apart, BAOAB() gave the
    smaller .087 for .1). Beyond some hundred dimensions, where GHMC rejects more often,
    BAOAB(0.5) gets further.

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
        energy: The energy phi, or a `ScoreField`; give either this or `model`. With several levels,
            a `ConditionalEnergy`, a `MixtureEnergy` or anything else with a method `at`.
        model: A NumPyro model; give either this or `energy`.
        integrator: The step of the walk. The default is `BAOAB()` (step sigma, friction 0.2/sigma),
            which needs no tuning on a smoothed density, for an energy and for a model whose latent
            sites are all `SmoothedDensity`; for other models, and on several levels, it is
            `GHMC()`.
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
            tuned step of an unadjusted integrator may have; by default .05, and .09 for
            `Microcanonical`. On Gaussians and laws of mild shape it
            is a bound; in funnels and heavy tails it is not. Whatever the law, `to_arviz` measures
            the bias, and warns if it is larger or if R-hat is large.
        init_strategy: A NumPyro init strategy, for the sites of a model that are not a
            `SmoothedDensity`.
        sigmas: Rising noise levels to walk on at once, the first of them that of the draws. All
            start from N(loc, scale^2 + sigma_l^2), or with noise added to `init_params`.
        num_levels: In place of `sigmas`, the number of levels, to be set in warm-up.
        sigma: The lowest of them; by default that of an energy that has one.
        max_sigma: The highest of them; by default the norm of the energy's scale, beyond which
            modes do not stay apart, or the largest sigma of a family if that is less.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy` (the message says how to wrap it) or has
            no method `at` for several levels, `model` is not callable, or `integrator` is not an
            integrator.
        ValueError: If both or neither of energy and model are given, a number is out of range,
            frozen does not have the event shape, or init_params does not have the shape above or is
            not finite; if levels do not rise, are beyond the energy's or are given with a model;
            if the model takes a random subset of a plate's rows, or a value in it
            depends on the random key.
        FloatingPointError: If phi or its gradient is not finite where a walk starts.

    Reference:
        NEB algorithm 1. Swendsen and Wang, Phys. Rev. Lett. 57 (1986), and Geyer, Computing
        Science and Statistics (1991), for replica exchange; Syed, Bouchard-Cote, Deligiannidis and
        Doucet, J. R. Stat. Soc. B 84 (2022), for alternating pairs and levels of even rates.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> kernel = neb.WalkJumpKernel(energy, num_steps=5)
        >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> {name: draws.shape for name, draws in mcmc.get_samples().items()}
        {'x': (100, 2), 'y': (100, 2)}

        Several noise levels of the same mixture:

        >>> kernel = neb.WalkJumpKernel(energy, sigmas=(0.5, 0.8, 1.3), num_steps=16)
        >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_extra_fields()["exchange_rate"].shape
        (100, 2)
    """

    energy: Any = None
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
    max_bias: float | None = None
    init_strategy: Callable = init_to_uniform
    sigmas: Numbers | None = None
    num_levels: int | None = None
    sigma: float | None = None
    max_sigma: float | None = None

    def __post_init__(self):
        one = (self.energy is None) != (self.model is None)
        require(one, "one of energy and model must be given, and not both")
        self._check_levels()
        if self.model is None and self.levels is None:
            hint = "; a NumPyro model goes to WalkJumpKernel(model=...)"
            check_energy(self.energy, score=True, hint=hint)
        elif self.model is not None:
            check_type("model", self.model, Callable, "callable")
        check_type("init_strategy", self.init_strategy, Callable, "callable")
        if self.integrator is None and self.model is None:
            object.__setattr__(self, "integrator", BAOAB() if self.levels is None else GHMC())
        if self.integrator is not None:
            check_integrator(self.integrator)
            if self.levels is not None:
                check_resumable(self.integrator)
        if self.max_bias is None:
            bias = (
                AbstractIntegrator.max_bias if self.integrator is None else self.integrator.max_bias
            )
            object.__setattr__(self, "max_bias", bias)
        # Stored as plain numbers, which can be compared, hashed and written to files.
        object.__setattr__(self, "num_steps", check_count("num_steps", self.num_steps))
        self._check_numbers()
        self._check_frozen()
        self._check_score()

    def __str__(self) -> str:
        return "\n  ".join(self._lines())

    def _lines(self):
        if self.energy is None:
            where = f"the model {getattr(self.model, '__name__', type(self.model).__name__)}"
        else:
            sigmas = self.levels or (float(self.energy.sigma),)
            where = f"{type(self.energy).__name__} of sigma {', '.join(f'{s:.3g}' for s in sigmas)}"
            where += f", event shape {self.lowest.event_shape}"
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
    def levels(self) -> tuple[float, ...] | None:
        """The noise levels that chains begin with; None for one level."""
        sigmas: Any = self.sigmas
        if self.num_levels is None:
            return sigmas
        low: Any = self.sigma
        high: Any = self.max_sigma
        return spread_levels(low, high, self.num_levels)

    @property
    def lowest(self) -> AbstractScoreField:
        """The energy of the draws: at the lowest of several levels."""
        levels = self.levels
        return (
            self.energy if levels is None else at_level(self.energy, jnp.asarray(levels[0], float))
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
        metropolis = chooses or is_metropolis(self.integrator)
        biased = chooses or not is_metropolis(self.integrator)
        tuned = self.model is not None if self.adapt_step_size is None else self.adapt_step_size
        names = {"acceptance_rate": metropolis, "stein_ratio": biased and tuned}
        if not getattr(self.energy, "has_value", True):
            fields = ("draw", "diverging", "step_size")
        names |= dict.fromkeys(("exchange_rate", "round_trips"), self.levels is not None)
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
        if init_params is not None:
            chains = () if is_prng_key(rng_key) else rng_key.shape[:1]
            init_params = walker.density.position(init_params, chains)
        # A model's arguments would be constants of a compiled function, recompiled each time.
        first = first_state if self.model is not None else compiled_first_state
        state = first(walker, rng_key, init_params)
        name = "energy" if self.model is None else "model"
        check_start(name, state, state.walk.position, walker.density.check_at)
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
        return walker.batch(state)

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

    def get_diagnostics_str(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: WalkJumpState
    ) -> str:
        """What the progress bar shows."""
        return progress(state, f"step size {float(state.step_size):.2e}")

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

    def _walker(self, model_args, model_kwargs, num_warmup=0) -> Any:
        if self.model is not None:
            strategy = self.init_strategy
            density = ModelDensity(self.model, model_args, model_kwargs, strategy)
        elif self.energy is None or model_args or model_kwargs:
            raise TypeError("WalkJumpKernel(energy) walks on the energy: run takes no model args")
        else:
            frozen = None if self.frozen is None else jnp.asarray(self.frozen)
            density = EnergyDensity(self.lowest, frozen)
        integrator = self.integrator_on(density)
        unknown, step_size = density.scale_is_unknown, self.adapt_step_size
        step_size = unknown if step_size is None else step_size
        mass_matrix = self.adapt_mass_matrix
        mass_matrix = unknown and step_size if mass_matrix is None else mass_matrix
        walker = Walker(
            density=density,
            integrator=integrator,
            num_steps=self.num_steps,
            inverse_temperature=self.inverse_temperature,
            max_score=self.max_score,
            max_bias=self.max_bias or integrator.max_bias,
            target_accept_prob=self.target_accept_prob,
            adapt_step_size=step_size,
            adapt_mass_matrix=mass_matrix,
            num_warmup=num_warmup,
        )
        if (levels := self.levels) is None:
            return walker
        sigmas = jnp.asarray(levels, self.lowest.sigma.dtype)
        return Ladder(walker, self.energy, sigmas, evened=self.num_levels is not None)

    def _check_levels(self):
        """Checks the noise levels, and sets those that have a default."""
        settings = {n: getattr(self, n) for n in ("sigmas", "num_levels", "sigma", "max_sigma")}
        given = [name for name, value in settings.items() if value is not None]
        if not given:
            family = isinstance(self.energy, AbstractEnergyFamily)
            what = f"energy must be for one noise level, got a {kind(self.energy)}"
            require(not family, f"{what}: use energy.at(sigma), or give sigmas", TypeError)
            return
        require(self.model is None, f"{given[0]} must be None with a model")
        if self.sigmas is not None:
            alone = f"{given[-1]} must be None with sigmas, which are all of the levels"
            require(given == ["sigmas"], alone)
            settings["sigmas"] = rising_levels(self.sigmas)
        else:
            require(self.num_levels is not None, f"num_levels must be given with {given[0]}")
            settings["num_levels"] = check_count("num_levels", self.num_levels, 2)
            check_at(self.energy)
            lowest = getattr(self.energy, "sigma", None) if self.sigma is None else self.sigma
            require(lowest is not None, "sigma must be given: the lowest noise level")
            settings["sigma"] = check_positive("sigma", lowest)
            top = self.max_sigma
            top = largest_spread(self.energy, settings["sigma"]) if top is None else top
            settings["max_sigma"] = top = check_positive("max_sigma", top)
            what = f"max_sigma must be above sigma, {settings['sigma']:g}, got {top:g}"
            require(top > settings["sigma"], what)
        for name, value in settings.items():
            object.__setattr__(self, name, value)
        levels: Any = self.levels
        check_levels(self.energy, levels)
        check_rounds(self.num_steps, GHMC() if self.integrator is None else self.integrator)

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
            self.target_accept_prob is None or is_metropolis(integrator),
            "target_accept_prob must be None for an integrator without a Metropolis test:"
            " its step is tuned to max_bias",
        )

    def _check_score(self):
        """Refuses what needs phi(y) where only a score is given."""
        if getattr(self.energy, "has_value", True):
            return
        what = f"a {kind(self.energy)}, which has no phi(y)"
        bare = not is_metropolis(self.integrator)
        need = f"integrator must have no Metropolis test on {what}: BAOAB, ABOBA, ULA or"
        require(bare, f"{need} Microcanonical, got {self.integrator}", TypeError)
        tuned = self.adapt_step_size or self.adapt_mass_matrix
        errors = "steps are tuned by their energy error"
        require(not tuned, f"adapt_step_size must be False on {what}: {errors}", TypeError)

    def _check_frozen(self):
        if self.frozen is None:
            return
        if self.energy is None:
            raise ValueError("frozen must be None with a model: condition the model instead")
        mask = np.asarray(self.frozen)
        shape = self.lowest.event_shape
        fits = mask.shape == shape and np.issubdtype(mask.dtype, np.bool_)
        wanted = f"a boolean array of the event shape {shape}"
        require(fits, f"frozen must be {wanted}, got {kind(mask)}")
        integrator: Any = self.integrator
        least, name = integrator.least_coordinates, type(integrator).__name__
        moving = int(np.sum(~mask))
        some = moving >= least or moving == 0
        require(some, f"frozen must leave {least} coordinates to move for {name}, got {moving}")
