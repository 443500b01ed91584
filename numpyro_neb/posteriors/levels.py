"""The law of X given Y=y under energies at many noise levels: draws, from level to level."""

from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import check_count, check_key, check_positive, require
from numpyro_neb._internal.convolutions import for_compiled_loops
from numpyro_neb.integrators.base import Target, walk
from numpyro_neb.integrators.underdamped import GHMC
from numpyro_neb.posteriors.base import AbstractPosterior
from numpyro_neb.posteriors.linearised import LinearisedPosterior
from numpyro_neb.posteriors.spreads import AbstractSpread, Full

# On 600 digits, exact, from sigma = 3 to 0.1, draws have all of the variance of X within 0.5%.
NUM_LEVELS, NUM_STEPS = 24, 4


@final
class LevelsPosterior(AbstractPosterior):
    r"""The law of X given Y=y by draws down the noise levels, without a Gaussian approximation.

    Y at sigma_k is Y at sigma_(k-1) < sigma_k with more noise, so that given the one the other has
    the density

        f(y_(k-1) given y_k) ∝ exp(-phi(y_(k-1); sigma_(k-1)) - norm(y_k - y_(k-1))^2 / (2 c)),
        c = sigma_k^2 - sigma_(k-1)^2.

    A draw goes from y at `sigma` down to `lowest` by draws from these, and ends with one of X given
    Y at `lowest`, as the energy there gives it. The density between two close levels is nearly
    N(y_k - c grad phi(y_k; sigma_k), c sigma_(k-1) / sigma_k): each draw begins there, and
    `num_steps` steps of `GHMC` give it the exact law, up to what they leave of their start. No
    walk has to cross from mode to mode: they part on the way down.

    Measurements of X that accumulate, y_1, ..., y_m at one sigma, of mean ybar at
    sigma / sqrt(m), are the same chain at the levels sigma / sqrt(m): ybar of m + 1 given that of m
    has the density above. Levels of equal ratios need fewer steps for the same range.

    `mean`, `product`, `covariance` and `variance` are those of the energy at `sigma`, exact moments
    if the energy is right. Densities and quantiles are not known: take them from draws.

    Args:
        at: The energy at a noise level, such as `MixtureEnergy.at`.
        sigma: The noise's standard deviation in y.
        lowest: The noise level where the way down ends, positive and at most `sigma`.
        y: One observation.
        covariance: The spread of X given Y at `lowest`.
        num_levels: Steps from one level to the next, of equal ratios.
        num_steps: Steps of `GHMC` at each level, one gradient each; 0 for none.

    Raises:
        ValueError: If a level is not positive, `lowest` is above `sigma`, or a count is not an int
            of at least 1, or 0 for num_steps.

    Reference:
        Saremi, Park and Bach, Chain of log-concave Markov chains, ICLR 2024; Ho, Jain and Abbeel,
        Denoising diffusion probabilistic models, NeurIPS 2020, for the first approximation.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro_neb.posteriors import LevelsPosterior
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> posterior = LevelsPosterior(energy.at, 1.0, 0.1, jnp.array(0.5), num_levels=10)
        >>> x = posterior.sample(jax.random.key(0), (1000,))
        >>> bool(abs(x.mean() - jnp.tanh(0.5)) < 0.1)
        True
    """

    at: Callable[[Any], Any]
    moments: LinearisedPosterior
    sigma: Float[Array, ""]
    lowest: Float[Array, ""]
    y: Float[Array, "*event"]
    covariance_of_last: AbstractSpread
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_levels: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    reparametrised: ClassVar[bool] = False

    def __init__(
        self,
        at: Callable,
        sigma: ArrayLike,
        lowest: ArrayLike,
        y: Float[Array, "*event"],
        covariance: AbstractSpread = Full(),  # noqa: B008 (frozen)
        *,
        num_levels: int = NUM_LEVELS,
        num_steps: int = NUM_STEPS,
    ):
        self.at, self.y, self.event_shape = at, y, y.shape
        level, low = check_positive("sigma", sigma), check_positive("lowest", lowest)
        if not isinstance(level, Tracer) and not isinstance(low, Tracer):
            require(low <= level, f"lowest must be at most sigma, {level:g}, got {low:g}")
        self.sigma, self.lowest = jnp.asarray(sigma, y.dtype), jnp.asarray(lowest, y.dtype)
        self.covariance_of_last = covariance
        self.num_levels = check_count("num_levels", num_levels)
        self.num_steps = check_count("num_steps", num_steps, 0)
        self.moments = LinearisedPosterior(at(self.sigma).denoise, self.sigma, y)

    @property
    def mean(self) -> Float[Array, "*event"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """E[X given Y=y], the jump at `sigma`."""
        return self.moments.mean

    def product(self, v: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """Cov(X given Y=y) v, a Jacobian-vector product of the jump at `sigma`."""
        return self.moments.product(v)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Independent draws of X, of shape (*shape, *event_shape)."""
        # Without the moments, which are another program for each y, draws are compiled once.
        without = eqx.tree_at(lambda law: law.moments, self, None)
        return drawn(LevelsPosterior._draw, without, check_key(key), shape)

    def _draw(self, key):
        key_down, key_last = jax.random.split(key)
        levels = geometric(self.sigma, self.lowest, self.num_levels)
        y = down(self.at, self.y, levels, key_down, self.num_steps)
        return last_draw(self.at(self.lowest), y, key_last, self.covariance_of_last)

    def cdf(self, x: ArrayLike) -> Float[Array, "*event"]:
        """Raises a NotImplementedError, like `upper_tail`, `icdf` and `log_prob`."""
        raise NotImplementedError(_DRAWS)

    def upper_tail(self, x: ArrayLike) -> Float[Array, "*event"]:
        """Raises a NotImplementedError."""
        raise NotImplementedError(_DRAWS)

    def icdf(self, q: ArrayLike) -> Float[Array, "*event"]:
        """Raises a NotImplementedError."""
        raise NotImplementedError(_DRAWS)

    def log_prob(self, x: Float[Array, "*event"]) -> Float[Array, ""]:
        """Raises a NotImplementedError."""
        raise NotImplementedError(_DRAWS)


@eqx.filter_jit
def drawn(
    draw: Callable, operands: Any, key: PRNGKeyArray, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """A batch of draw(operands, key), of shape (*shape, *event_shape), compiled once."""
    x = jax.vmap(lambda key: draw(operands, key))(jax.random.split(key, prod(shape)))
    return x.reshape(*shape, *x.shape[1:])


_DRAWS = "the law of X given y over many noise levels is known by draws alone: use sample"


def geometric(
    highest: Float[Array, ""], lowest: Float[Array, ""], number: int
) -> Float[Array, " n"]:
    """Noise levels from the highest down to the lowest, of equal ratios."""
    t = jnp.linspace(0, 1, number + 1, dtype=lowest.dtype)
    inside = highest * (lowest / highest) ** t
    return inside.at[-1].set(lowest)


def down(
    at: Callable,
    y: Float[Array, "*event"],
    levels: Float[Array, " n"],
    key: PRNGKeyArray,
    num_steps: int,
) -> Float[Array, "*event"]:
    """A draw of Y at the last of falling levels, given y at the first: see `LevelsPosterior`.

    Args:
        at: The energy at a noise level.
        y: Y at the first level.
        levels: The noise levels.
        key: A JAX random key.
        num_steps: Steps of `GHMC` at each level.
    """
    # A quarter of a period of a Gaussian whose sd is the unit: its end forgets its start.
    integrator = GHMC(step_size=jnp.pi / 2 / max(1, num_steps), friction=0.02)

    def step(above, operands):
        high, low, key = operands
        key_first, key_init, key_walk = jax.random.split(key, 3)
        # The difference of squares without cancellation.
        between = (high - low) * (high + low)
        same, between = between <= 0, jnp.where(between > 0, between, 1)
        unit = low * jnp.sqrt(between) / high
        gradient = jax.grad(for_compiled_loops(at(high)))(above)
        noise = jax.random.normal(key_first, y.shape, y.dtype)
        # Between unit, the sd if X is a point, and sqrt(between), if X is wide.
        first = above - between * gradient + jnp.sqrt(between * low / high) * noise
        if num_steps == 0:
            return jnp.where(same, above, first), None

        def potential(below):
            return at(low)(below) + jnp.sum((below - above) ** 2) / (2 * between)

        target = Target(potential, unit)
        state = integrator.init(target, first, key_init)
        below = walk(integrator, target, state, key_walk, num_steps)[0].position
        return jnp.where(same, above, below), None

    keys = jax.random.split(key, len(levels) - 1)
    return jax.lax.scan(step, y, (levels[:-1], levels[1:], keys))[0]


def flowed(
    at: Callable, y: Float[Array, "*event"], levels: Float[Array, " n"]
) -> Float[Array, "*event"]:
    """Y at the last of falling levels as a smooth function of Y at the first, without noise.

        dy / dsigma = sigma grad phi(y; sigma)

    takes the law of Y at one level to that at any other: for a prior, since it does not give the
    law of one given the other. Heun's method, two gradients a level.

    Args:
        at: The energy at a noise level.
        y: Y at the first level.
        levels: The noise levels.

    Reference:
        Song et al., Score-based generative modeling through stochastic differential equations,
        ICLR 2021; Karras et al., NeurIPS 2022, algorithm 1.
    """

    def step(y, ends):
        high, low = ends
        slope = high * jax.grad(for_compiled_loops(at(high)))(y)
        end = low * jax.grad(for_compiled_loops(at(low)))(y + (low - high) * slope)
        return y + (low - high) * (slope + end) / 2, None

    return jax.lax.scan(step, y, (levels[:-1], levels[1:]))[0]


def last_draw(
    energy: Any, y: Float[Array, "*event"], key: PRNGKeyArray, covariance: AbstractSpread
) -> Float[Array, "*event"]:
    """A draw of X given Y=y at the lowest level.

    Args:
        energy: The energy there.
        y: One observation.
        key: A JAX random key.
        covariance: The spread of the draw: with `Full`, the energy's own law of X given y.
    """
    posterior = energy.posterior(y)
    if isinstance(covariance, Full):
        return posterior.sample(key)
    return posterior.mean + covariance.root(posterior, jax.random.normal(key, y.shape, y.dtype))[0]
