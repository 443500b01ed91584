"""Draws of one site of a model given data, down the noise levels of its prior."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from numpyro.infer.initialization import init_to_uniform
from numpyro.primitives import Messenger
from numpyro.util import is_prng_key

from numpyro_neb._internal.checks import check_count, check_positive, check_type, kind, require
from numpyro_neb._internal.numpyro_mcmc import ResumableKernel
from numpyro_neb.energies.conditional import LevelEnergy
from numpyro_neb.energies.mixture import MixtureEnergy
from numpyro_neb.integrators.base import AbstractIntegrator, Target, check_integrator, walk
from numpyro_neb.integrators.underdamped import GHMC
from numpyro_neb.models.smoothed_density import SmoothedDensity
from numpyro_neb.posteriors.levels import geometric
from numpyro_neb.sampling.quadratic import mixture_step
from numpyro_neb.sampling.targets import ModelDensity, smoothed_density
from numpyro_neb.sampling.walker import check_start, progress

__all__ = ["LevelsKernel", "LevelsState"]

# Levels on the way down, and as many more walks of the same length at the lowest one.
_NUM_LEVELS, _AT_LOWEST = 24, 8
# The least curvature of a site other than x, so that its unit of length is at most 3.
_FLAT = 0.1


class LevelsState(NamedTuple):
    """The state of a chain; `vectorized` chains have a leading dimension.

    Attributes:
        draw: The model's sites, deterministic ones included, and `<site>_jump`, the denoised site.
        position: The site's value, flat.
        lp: The log density of the latent sites given the data, up to a constant.
        acceptance_rate: The mean acceptance probability of the draw's steps.
        diverging: Whether the way down ended where the density is zero or not finite, such as
            outside the support of the data's law. The draw is then the one before.
        num_diverging: The number of diverging draws so far.
        rng_key: The random key of the next draw.
        reference: Where the last walk's unit of length is computed: the position after warm-up.
        num_warmup: The draws of warm-up that are left.
    """

    draw: dict[str, Float[Array, "..."]]
    position: Float[Array, "... d"]
    lp: Float[Array, "..."]
    acceptance_rate: Float[Array, "..."]
    diverging: Bool[Array, "..."]
    num_diverging: Int[Array, "..."]
    rng_key: Array
    reference: Float[Array, "... d"]
    num_warmup: Int[Array, "..."]


@dataclasses.dataclass(frozen=True, eq=False)
class LevelsKernel(ResumableKernel):
    r"""Draws a model's `SmoothedDensity` site given the data: for inverse problems of images.

    The model has one latent site x ~ SmoothedDensity(energy), whose energy is one noise level,
    sigma, of a `ConditionalEnergy`, `family.at(sigma)`, or a `MixtureEnergy`, and any likelihood
    that is a smooth function of x. Other latent sites go to another kernel of
    `numpyro.infer.Gibbs`. A draw adds noise to x and takes it off again, given the data:

        y = x + (max_sigma^2 - sigma^2)^(1/2) eps,    then x, from y and the data.

    - **A mixture.** p(x given y) is a mixture of Gaussians, and with a quadratic approximation q of
      the log likelihood, at a point that depends on y alone, still one. A draw from it is accepted
      with probability min(1, exp(l(x') - q(x') - l(x) + q(x))), l the log likelihood. This is exact
      for every likelihood, and for a Gaussian one each draw is accepted. It costs K d^3 operations.
    - **A family.** From y the walk goes down the noise levels, with the law
      exp(-phi(x; sigma_l)) times the likelihood at each, and ends with a walk at sigma, which
      leaves the exact posterior as it is. Chains that walk at sigma alone stay in the mode that
      they are in: here they change modes on the way. Within a mode the draws are right. But how
      often they end in each mode is decided at the level where the modes part, and if one of them
      is much narrower than another, these weights are wrong at any affordable `num_steps`: in six
      dimensions, for sds of .1 and 1, .46 of the draws for an exact .23. No diagnostic shows it.

    x has the law of Y at sigma, not that of the clean X. In units of the noise's sd tau, sigma adds
    (sigma / tau)^2 to what the data say of the noise's variance: take sigma at most a third of tau.
    `<site>_jump` is E[X given Y = x], with the noise taken off.

    Any `chain_method` works on its own; in `Gibbs` "sequential", "parallel" or `jax.vmap`.

    Args:
        model: The NumPyro model.
        num_steps: Steps of the walk for a draw, one gradient each; not used for a mixture.
        max_sigma: The noise's sd in y. By default, for a mixture, four times the norm of its scale,
            so that draws are nearly independent: take less if few are accepted. For a family, twice
            the root mean square of the scale, where modes merge, or its largest sigma if that is
            less.
        integrator: The step of the walk, with a Metropolis test; a `GHMC` by default. Its unit of
            length at level s is (1 / s^2 + c)^(-1/2), with c the largest curvature of the log
            likelihood: where the walk at that level starts, and for the last walk, where warm-up
            ended.

    Raises:
        TypeError: If the model is not callable, the integrator not an integrator, or the energy is
            neither a `MixtureEnergy` nor one level of a `ConditionalEnergy`.
        ValueError: If a number is out of range, the integrator has no Metropolis test, the model
            has not exactly one latent site that is a `SmoothedDensity`, its energy depends on
            another site, it is scaled or masked, a mixture's site is in a plate, max_sigma is not
            above sigma, or a value in the model depends on the random key.
        FloatingPointError: If the density is zero or not finite where a chain starts.

    Reference:
        Wu et al., Principled probabilistic imaging using diffusion models as plug-and-play priors,
        NeurIPS 2024, for noise that comes and goes; Neal, Annealed importance sampling, Statistics
        and Computing 11 (2001), for the walk down; Tierney, Annals of Statistics 22 (1994), for
        the independence sampler.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, numpyro_neb as neb
        >>> from numpyro.infer import MCMC, NUTS, Gibbs
        >>> energy = neb.MixtureEnergy(jnp.array([[-2.0, 0.0], [2.0, 0.0]]), 0.5)
        >>> def model(data):
        ...     x = numpyro.sample("x", neb.SmoothedDensity(energy))
        ...     tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        ...     numpyro.sample("data", dist.Normal(x[1], tau), obs=data)
        >>> kernel = Gibbs([(neb.LevelsKernel(model), ["x"]), (NUTS(model), None)])
        >>> mcmc = MCMC(kernel, num_warmup=100, num_samples=500, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.array([0.5, 0.4, 0.6]))
        >>> mcmc.get_samples()["x"].shape
        (500, 2)
    """

    model: Callable
    _: dataclasses.KW_ONLY
    num_steps: int = 320
    max_sigma: float | None = None
    integrator: AbstractIntegrator = dataclasses.field(default_factory=lambda: GHMC())

    # What `to_arviz` asks of a kernel.
    energy: ClassVar[None] = None
    inverse_temperature: ClassVar[float] = 1.0
    max_bias: ClassVar[float] = 0.05
    init_strategy: ClassVar[Callable] = staticmethod(init_to_uniform)

    def __post_init__(self):
        check_type("model", self.model, Callable, "callable")
        check_integrator(self.integrator)
        tested = self.integrator.target_accept_prob is not None
        require(tested, "integrator must have a Metropolis test, such as GHMC()")
        least = _NUM_LEVELS + _AT_LOWEST
        object.__setattr__(self, "num_steps", check_count("num_steps", self.num_steps, least))
        if self.max_sigma is not None:
            object.__setattr__(self, "max_sigma", check_positive("max_sigma", self.max_sigma))

    @property
    def sample_field(self) -> str:
        """The field of the state that `MCMC.get_samples` returns."""
        return "draw"

    @property
    def default_fields(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The fields of the state that `MCMC` always records."""
        return ("draw", "diverging", "lp", "acceptance_rate")

    def init(
        self,
        rng_key: Array,
        num_warmup: int,
        init_params: Any,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> LevelsState:
        """The first state, from `init_params` or a random position."""
        problem = self._problem(model_args, model_kwargs)
        batched = not is_prng_key(rng_key)
        chains = rng_key.shape[:1] if batched else ()
        split = jax.vmap(jax.random.split, out_axes=1) if batched else jax.random.split
        rng_key, key = split(rng_key)
        if init_params is None:
            position = problem.density.start(key)
        else:
            position = problem.density.position(init_params, chains)
        one = functools.partial(problem.first, num_warmup)
        state = (jax.vmap(one) if batched else one)(position, rng_key)
        check_start("model", state, position, problem.density.check_at, problem.check_at)
        return state

    def sample(
        self,
        state: LevelsState,
        model_args: tuple = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> LevelsState:
        """The next state: noise, and the way down."""
        problem = self._problem(model_args, model_kwargs)
        if is_prng_key(state.rng_key):
            return problem.sample(state)
        return jax.vmap(problem.sample)(state)

    def refresh(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: LevelsState, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> LevelsState:
        """The state, with the draw's other sites recomputed, for `Gibbs`."""
        problem = self._problem(model_args, model_kwargs)
        draw, lp = problem.at(state.position)
        return state._replace(draw=draw, lp=lp)

    def wrap_model(self, wrapper: Callable) -> "LevelsKernel":
        """This kernel on `wrapper(model)`."""
        return dataclasses.replace(self, model=wrapper(self.model))

    def get_diagnostics_str(self, state: LevelsState) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What the progress bar shows."""
        return progress(state)

    def _problem(self, model_args, model_kwargs):
        density = ModelDensity(self.model, model_args, model_kwargs)
        sites = density.sites()
        latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
        laws = {name: smoothed_density(sites[name]["fn"]) for name in latent}
        smooth = [name for name in latent if laws[name] is not None]
        what = "model must have one latent SmoothedDensity site for LevelsKernel"
        require(len(smooth) == 1, f"{what}, got {smooth} of {latent}")
        law: Any = laws[smooth[0]]
        require(law.batch_shape == (), f"{what}, with one energy, not a stack of them")
        site = sites[smooth[0]]
        plain = site["scale"] is None and not _is_masked(site["fn"])
        require(plain, f"model must not scale or mask {smooth[0]!r}, for LevelsKernel")
        shape = jnp.shape(site["value"])
        if mixture := isinstance(law.energy, MixtureEnergy):
            what = "model must have no latent site but that of the MixtureEnergy, for LevelsKernel"
            hint = "give the others to another block of Gibbs"
            require(len(latent) == 1, f"{what}, got {latent}: {hint}")
            what = "model must not have the site of a MixtureEnergy in a plate, for LevelsKernel"
            require(shape == law.energy.event_shape, what)
        rest = ModelDensity(_Without(self.model, smooth[0]), model_args, model_kwargs)
        chosen = density.coordinates(smooth[0])
        what = "integrator must be one for as few coordinates as the model has"
        require(len(chosen) >= self.integrator.least_coordinates, f"{what}, {len(chosen)}")
        high = self._highest(law.energy, mixture)
        return _Problem(self, density, rest, smooth[0], law.energy, shape, chosen, high)

    def _highest(self, energy, mixture):
        high, scale = self.max_sigma, jnp.broadcast_to(energy.scale, energy.event_shape)
        if high is None:
            # Noise that hides the site altogether, or that merges its modes.
            high = (4 if mixture else 2 / jnp.sqrt(scale.size)) * jnp.linalg.norm(scale.reshape(-1))
        high = jnp.asarray(high, energy.sigma.dtype)
        if not mixture:
            _levels(energy)
            high = jnp.minimum(high, energy.family.sigma_range[1])
        if not isinstance(high, Tracer) and not isinstance(energy.sigma, Tracer):
            wanted = f"max_sigma must be above the site's sigma, {energy.sigma:g}, got {high:g}"
            if self.max_sigma is None:
                wanted = f"the site's sigma must be below {high:g}, where its modes merge, got"
                wanted = f"{wanted} {energy.sigma:g}: take a lower level"
            require(high > energy.sigma, wanted)
        return high


class _Problem(NamedTuple):
    """The law of the latent sites given the data.

    Attributes:
        kernel: Its settings.
        density: The model.
        rest: The model without the density of the site x, whose value it has all the same.
        name: The name of x.
        energy: The energy of x.
        shape: The shape of x.
        chosen: True for the coordinates of x in a position.
        high: The highest noise level.
    """

    kernel: LevelsKernel
    density: ModelDensity
    rest: ModelDensity
    name: str
    energy: Any
    shape: tuple[int, ...]
    chosen: Bool[np.ndarray, " d"]
    high: Float[Array, ""]

    def first(self, num_warmup, position, rng_key):
        """The first state, at a position."""
        draw, lp = self.at(position)
        diverging, left = ~jnp.isfinite(lp), jnp.asarray(num_warmup, int)
        rate, count = jnp.ones(()), diverging.astype(int)
        return LevelsState(
            draw,
            position,
            lp,
            rate,
            diverging,
            count,
            rng_key,
            position,
            left + jnp.zeros_like(count),
        )

    def at(self, position):
        """The draw at a position, and the log density."""
        draw = self.density.record(position, jnp.zeros_like(position))
        return draw, -self._potential(self.energy.sigma, position)

    def check_at(self, position):
        """Raises an error if the energy of x depends on where the other sites are."""

        def arrays(position):
            law: Any = smoothed_density(self.density.law(self.name, position))
            return eqx.filter(law.energy, eqx.is_inexact_array)

        direction = jax.random.normal(jax.random.key(0), position.shape, position.dtype)
        moved = jax.tree.leaves(jax.jvp(arrays, (position,), (direction,))[1])
        what = f"model must give {self.name!r} an energy that depends on no other latent site"
        require(not any(np.any(leaf) for leaf in moved), f"{what}, for LevelsKernel")

    def sample(self, state):
        """The next state."""
        rng_key, key_noise, key = jax.random.split(state.rng_key, 3)
        x = state.position
        more = jnp.sqrt(self.high**2 - self.energy.sigma**2)
        y = x + more * jnp.where(self.chosen, jax.random.normal(key_noise, x.shape, x.dtype), 0)
        if isinstance(self.energy, MixtureEnergy):
            log_likelihood = lambda x: -self.rest.potential(x)  # noqa: E731
            new, rate = mixture_step(self.energy, log_likelihood, more, x, y, key)
        else:
            new, rate = self._down(y, state.reference, key)
        found, lp = self.at(new)
        diverging = ~jnp.isfinite(lp)
        new, found, lp = jax.tree.map(
            functools.partial(jnp.where, diverging),
            (x, state.draw, state.lp),
            (new, found, lp),
        )
        return LevelsState(
            draw=found,
            position=new,
            lp=lp,
            acceptance_rate=rate,
            diverging=diverging,
            num_diverging=state.num_diverging + diverging.astype(int),
            rng_key=rng_key,
            reference=jnp.where(state.num_warmup > 0, new, state.reference),
            num_warmup=jnp.maximum(state.num_warmup - 1, 0),
        )

    def _down(self, position, reference, key):
        """From a position down the levels, and the acceptance rate on the way."""
        integrator = self.kernel.integrator
        block = self.kernel.num_steps // (_NUM_LEVELS + _AT_LOWEST)
        last = self.kernel.num_steps - block * _NUM_LEVELS
        key_init, key_top, key_down, key_last = jax.random.split(key, 4)

        def on(walked, unit, sigma, key, num_steps) -> tuple[Any, Any]:
            target = Target(functools.partial(self._potential, sigma), unit)
            potential, gradient = target(walked.position)
            walked = walked._replace(potential=potential, gradient=gradient)
            return walk(integrator, target, walked, key, num_steps)

        def level(carry, operands):
            (walked, direction), (sigma, key) = carry, operands
            direction, unit = self._unit(walked.position, direction, sigma)
            walked, rate = on(walked, unit, sigma, key, block)
            return (walked, direction), rate

        direction = jax.random.normal(key_init, position.shape, position.dtype)
        direction, unit = self._unit(position, direction, self.high, 10)
        target = Target(functools.partial(self._potential, self.high), unit)
        walked = integrator.init(target, position, key_top)
        sigmas = geometric(self.high, self.energy.sigma, _NUM_LEVELS)[:-1]
        keys = jax.random.split(key_down, _NUM_LEVELS)
        (walked, _), rates = jax.lax.scan(level, (walked, direction), (sigmas, keys))
        # A unit that does not depend on where the walk is: it leaves the posterior as it is.
        fixed = jax.random.normal(jax.random.key(0), position.shape, position.dtype)
        _, unit = self._unit(reference, fixed, self.energy.sigma, 10)
        walked, rate = on(walked, unit, self.energy.sigma, key_last, last)
        total = jnp.sum(rates) * block + rate * last
        return walked.position, total / self.kernel.num_steps

    def _potential(self, sigma, position):
        """Minus the log density, with x at the noise level sigma."""
        prior = SmoothedDensity(_levels(self.energy)(sigma))
        x = position[np.flatnonzero(self.chosen)].reshape(self.shape)
        return self.rest.potential(position) - jnp.sum(prior.log_prob(x))

    def _unit(self, position, direction, sigma, iterations=3):
        """The unit of length of each coordinate, and the direction of the largest curvature.

        By power iterations for x, and from the second derivative for each of the others.
        """
        gradient = jax.grad(self.rest.potential)
        product = lambda v: jax.jvp(gradient, (position,), (v,))[1]  # noqa: E731

        def iterate(_, carry):
            direction, _ = carry
            size = jnp.linalg.norm(direction)
            direction = direction / jnp.where(size > 0, size, 1)
            after = jnp.where(self.chosen, product(direction), 0)
            return after, jnp.abs(jnp.vdot(direction, after))

        direction = jnp.where(self.chosen, direction, 0)
        start = direction, jnp.zeros((), position.dtype)
        direction, curvature = jax.lax.fori_loop(0, iterations, iterate, start)
        known = jnp.isfinite(curvature) & jnp.all(jnp.isfinite(direction))
        direction = jnp.where(known, direction, 1)
        unit = (1 / sigma**2 + jnp.where(known, curvature, 0)) ** -0.5
        unit = jnp.full(position.shape, unit)
        others = np.flatnonzero(~self.chosen)
        if others.size == 0:
            return direction, unit
        basis = jnp.asarray(np.eye(position.size)[others], position.dtype)
        curvatures = jnp.abs(jnp.sum(jax.vmap(product)(basis) * basis, 1))
        flat = ~jnp.isfinite(curvatures) | (curvatures < _FLAT)
        return direction, unit.at[others].set(jnp.where(flat, _FLAT, curvatures) ** -0.5)


class _Without(Messenger):
    """The model with log density zero for one site, whatever its value."""

    def __init__(self, model, name):
        super().__init__(model)
        self.name = name

    def process_message(self, msg):
        """Masks the site's distribution."""
        if msg["type"] == "sample" and msg["name"] == self.name:
            msg["fn"] = msg["fn"].mask(False)


def _is_masked(fn):
    """Whether a distribution is a masked one, in plates or not."""
    while isinstance(fn, (ExpandedDistribution, Independent)):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


def _levels(energy):
    """The energies of other noise levels than one energy's."""
    if isinstance(energy, LevelEnergy):
        return energy.family.unchecked_at
    what = "a MixtureEnergy or one level of a preconditioned ConditionalEnergy, family.at(sigma)"
    known = isinstance(energy, MixtureEnergy)
    require(known, f"the site's energy must be {what}, got a {kind(energy)}", TypeError)
    return energy.unchecked_at
