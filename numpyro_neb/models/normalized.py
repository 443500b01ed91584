"""The constants of a family of energies, by annealed importance sampling down its noise levels."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm.auto import tqdm

from numpyro_neb._internal.checks import check_count, check_key, kind, require
from numpyro_neb.energies.conditional import ConditionalEnergy
from numpyro_neb.integrators.base import Target, WalkState, walk
from numpyro_neb.models.normalizer import PARTS, annealing_step, check_weights, estimate

# As many as there are constants.
_FEWEST_LEVELS = 6
# The least standard error of log Z at a level, in nats: the polynomials do not fit it better.
_LEAST_ERROR = 0.01


def normalized(
    family: ConditionalEnergy,
    key: PRNGKeyArray,
    *,
    num_particles: int = 1000,
    num_levels: int = 1000,
    num_steps: int = 1,
    progress_bar: bool = True,
) -> ConditionalEnergy:
    r"""The family with phi = -log f at each of its noise levels, as nearly as its constants can.

    Training leaves the constants of phi open, or nearly right. Here log Z(sigma), the log of the
    integral of exp(-phi(y; sigma)), is estimated at all levels in one go, and added to phi: then
    `SmoothedDensity(family.at(sigma)).log_prob` is a log density at every sigma, which models and
    noise levels can be compared by, at no further cost. `dual_score_loss` does this in training
    alone, with the errors that it leaves; the more accurate the energies, the less there is to do.

    The method is annealed importance sampling along the noise levels. Particles come from
    N(loc, scale^2 + sigma^2) at the largest sigma and go down: between neighbours,
    z = (y - loc) / sqrt(scale^2 + sigma^2) stays as it is, and a particle's log weight grows by the
    change of -phi plus that of log abs(dy / dz); then steps of `GHMC`, which leave the new law
    exactly invariant, move the particle. So Z(sigma) is the mean of the weights at each level,
    whatever the settings. Of log Z(sigma) / d, a polynomial of degree 5 in log sigma is kept, by
    least squares with weights from the standard errors, so that noise in single levels averages
    out.

    The cost is num_particles * num_levels * (num_steps + 1) gradients. The loop runs in Python, so
    it cannot be called inside `jax.jit`.

    Args:
        family: A trained `ConditionalEnergy`; with `preconditioned=False` it has no constants.
        key: A JAX random key; the same key gives the same result.
        num_particles: The number of particles, at least 2.
        num_levels: The number of noise levels, at least 6, of equal ratios.
        num_steps: Steps of `GHMC` at each level.
        progress_bar: Whether to show a tqdm bar over the levels.

    Returns:
        The family with other constants: its scores, jumps and draws are the same.

    Raises:
        TypeError: If `family` is not a `ConditionalEnergy`, or key is not a random key.
        ValueError: If the family has no constants, or a count is not an int or is too small.
        FloatingPointError: If phi is NaN or -infinity at a particle, or +infinity at all of them.

    Warns:
        UserWarning: If fewer than ten weights make up the standard error at the smallest sigma.

    Reference:
        Neal, Annealed importance sampling, Statistics and Computing 11 (2001).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((1,), width_size=8, depth=2, conditional=True,
        ...                        key=jax.random.key(0))
        >>> family = neb.ConditionalEnergy(mlp, (1,), sigma_range=(0.2, 4.0))
        >>> family = neb.empirical_bayes.normalized(
        ...     family, jax.random.key(1), num_levels=100, progress_bar=False)
        >>> y = jnp.linspace(-10, 10, 1001)[:, None]
        >>> density = jnp.exp(neb.SmoothedDensity(family.at(0.5)).log_prob(y))
        >>> print(f"{jnp.trapezoid(density, y[:, 0]):.1f}")
        1.0
    """
    known = isinstance(family, ConditionalEnergy)
    require(known, f"family must be a ConditionalEnergy, got {kind(family)}", TypeError)
    bare = "family must have constants for its levels: one with preconditioned=False has none"
    require(family.has_constants, bare)
    check_key(key)
    num_particles = check_count("num_particles", num_particles, 2)
    num_levels = check_count("num_levels", num_levels, _FEWEST_LEVELS)
    num_steps = check_count("num_steps", num_steps)
    part = -(-num_levels // PARTS)
    # One compiled length fits all: the last part repeats the smallest sigma.
    u = jnp.linspace(1, 0, num_levels, dtype=family.loc.dtype)
    sigmas = family.levels(jnp.append(u, jnp.zeros(-num_levels % part, u.dtype)))
    key_start, key_walk = jax.random.split(key)
    particles: Any = _start(family, sigmas[0], jax.random.split(key_start, num_particles))
    found = []
    with tqdm(total=num_levels, disable=not progress_bar, desc="normalized") as bar:
        for begin in range(0, num_levels, part):
            key_part = jax.random.fold_in(key_walk, begin)
            inside = sigmas[begin : begin + part]
            particles, log_weights = _down(family, particles, inside, key_part, num_steps)
            log_weights = np.asarray(log_weights, float)[: num_levels - begin]
            for weights in log_weights:
                check_weights(weights, "N(loc, scale^2 + sigma^2), at the largest sigma,")
                last = len(found) == num_levels - 1
                found.append(estimate(weights, "num_levels" if last else None))
            bar.update(len(log_weights))
    log_z, errors = map(np.array, zip(*found, strict=True))
    return family.shifted(sigmas[:num_levels], log_z, np.hypot(errors, _LEAST_ERROR))


class _Particles(NamedTuple):
    """Walks in z, one for each particle, whose potentials are those of the last level."""

    states: WalkState
    log_weights: Float[Array, " particle"]


@eqx.filter_jit
def _start(family, sigma, keys):
    """Independent draws of z from N(0, I), weighted as such."""
    target, integrator = _target(family, sigma), annealing_step(family)

    def start(key):
        key_position, key_velocity = jax.random.split(key)
        z = jax.random.normal(key_position, family.event_shape, family.loc.dtype)
        state = integrator.init(target, z, key_velocity)
        return state._replace(potential=jnp.sum(z**2 + jnp.log(2 * jnp.pi)) / 2)

    return _Particles(jax.vmap(start)(keys), jnp.zeros(len(keys), family.loc.dtype))


@eqx.filter_jit
def _down(family, particles, sigmas, key, num_steps):
    """Takes the particles down the levels; also returns their log weights at each of them."""
    integrator: Any = annealing_step(family)

    def to_next(particles, operands):
        sigma, key = operands
        target = _target(family, sigma)

        def step(state, log_weight, key):
            potential, gradient = target(state.position)
            # A particle where phi was infinite has no weight, and never has one again.
            grown = log_weight + state.potential - potential
            log_weight = jnp.where(jnp.isneginf(log_weight), log_weight, grown)
            state = state._replace(potential=potential, gradient=gradient)
            return walk(integrator, target, state, key, num_steps)[0], log_weight

        keys = jax.random.split(key, len(particles.log_weights))
        after = _Particles(*jax.vmap(step)(particles.states, particles.log_weights, keys))
        return after, after.log_weights

    operands = sigmas, jax.random.split(key, len(sigmas))
    return jax.lax.scan(to_next, particles, operands)


def _target(family, sigma):
    """The law of z at a level: minus the log density of y there, and of dz / dy."""
    root = jnp.broadcast_to(jnp.sqrt(family.scale**2 + sigma**2), family.event_shape)
    energy = family.unchecked_at(sigma)
    potential = lambda z: energy(family.loc + root * z) - jnp.sum(jnp.log(root))  # noqa: E731
    return Target(potential, sigma / root)
