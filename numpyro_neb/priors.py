"""Yesterday's posterior as today's prior: a density learned from draws, as a site in a model."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import biject_to, constraints

from numpyro_neb._internal.checks import (
    check_count,
    check_key,
    check_positive,
    check_type,
    finite,
    require,
)
from numpyro_neb.energies.base import AbstractEnergy
from numpyro_neb.energies.network import ResidualEnergy
from numpyro_neb.evaluation.measurement import evaluate
from numpyro_neb.evaluation.verdicts import Evaluation
from numpyro_neb.geometry import sphere_overlaps
from numpyro_neb.models.prior import learned_prior
from numpyro_neb.networks.mlp import MLP
from numpyro_neb.training.fitting import fit
from numpyro_neb.training.likelihood import MaximumLikelihood

# The share of the draws that the energy does not see, and how many of them at most.
_HELD_OUT, _MOST = 0.1, 500


@dataclasses.dataclass(frozen=True, eq=False)
class PriorFromDraws:
    """What `prior_from_draws` returns. Called inside a model, it is a site.

    Attributes:
        name: The site's name.
        energy: The learned energy, of the whitened draws on the real line.
        loc: Their mean before whitening, of shape (d,).
        root: The Cholesky factor of their covariance, of shape (d, d).
        shape: The shape of one draw on the real line.
        constraint: The support of a draw.
        evaluation: `evaluate` on draws that the energy has not seen.
    """

    name: str
    energy: AbstractEnergy
    loc: Float[Array, " d"]
    root: Float[Array, "d d"]
    shape: tuple[int, ...]
    constraint: Any
    evaluation: Evaluation | None

    def __call__(self) -> Float[Array, "..."]:
        """The site, of shape (*batch, *event), where batch is that of the enclosing plates.

        The latent sites are those of `learned_prior` under the name `<name>_whitened`.
        """
        z = learned_prior(f"{self.name}_whitened", self.energy)
        flat = self.loc + jnp.einsum("ij,...j->...i", self.root, z)
        real = flat.reshape(*z.shape[:-1], *self.shape)
        value = biject_to(self.constraint)(real)
        return jnp.asarray(numpyro.deterministic(self.name, value))

    def __str__(self) -> str:
        sigma = float(self.energy.sigma)
        first = f"prior {self.name!r} from draws: {len(self.loc)} numbers, sigma = {sigma:.2g} of"
        return f"{first} their whitened spread\n{self.evaluation}"


def prior_from_draws(
    name: str,
    samples: Array | np.ndarray,
    constraint: Any = constraints.real,
    *,
    key: PRNGKeyArray,
    sigma: float | None = None,
    num_steps: int = 2000,
    progress_bar: bool = True,
) -> PriorFromDraws:
    r"""Learns the law of draws, such as a posterior's, and makes it a prior for the next model.

    The draws go to the real line by NumPyro's transform for the constraint, and are whitened:
    z = L^-1 (u - mean), with L L' the covariance of u. An energy learns z at the noise level sigma,
    from a Gaussian on, by denoising and then by maximum likelihood with the walk's own chains, and
    `learned_prior` gives z in a model. One draw in ten, 500 at most, is held out, and `evaluate`
    compares the energy with them: print the result, and read the verdict before you rely on the
    prior.

    It takes about a minute on two cores. The draws should be nearly independent: thin them.
    In the tails beyond the draws the prior is as good as a Gaussian guess. A law with a neck, such
    as that of a hierarchical scale and its effects, is learned worst there.

    Args:
        name: The site's name.
        samples: Draws of shape (n, *shape), at least 100, and more than the numbers in one draw.
        constraint: The support of a draw, from `numpyro.distributions.constraints`. A constraint of
            single numbers holds for each of them.
        key: A JAX random key.
        sigma: The noise level, in standard deviations of z; by default
            `sphere_overlaps(z).prior_sigma`, at which the law of z given y is nearly Gaussian.
        num_steps: Steps of denoising, half as many of maximum likelihood.
        progress_bar: Whether to show progress bars.

    Returns:
        The prior. Call it inside a model: `theta = prior()`.

    Raises:
        TypeError: If name is not a string, samples does not hold real numbers, or key is not a
            random key.
        ValueError: If there are too few draws, they are not inside the constraint's support, or
            they do not vary in every direction; if sigma or num_steps is not positive.

    Reference:
        NEB section 2, and Younes, Stochastics 65 (1999), for the two stages.

    Example:
        >>> import jax, numpy as np, numpyro_neb as neb
        >>> from numpyro.distributions import constraints
        >>> draws = np.random.default_rng(0).gamma(4.0, size=1000)  # of a rate, say
        >>> prior = neb.prior_from_draws("rate", draws, constraints.positive,
        ...                              key=jax.random.key(0), num_steps=20, progress_bar=False)
        >>> def model():
        ...     rate = prior()
    """
    check_type("name", name, str, "a string")
    what = "one of numpyro.distributions.constraints"
    check_type("constraint", constraint, constraints.Constraint, what)
    key = check_key(key)
    num_steps = check_count("num_steps", num_steps, 2)
    if sigma is not None:
        sigma = check_positive("sigma", sigma)
    flat, shape = _on_the_real_line(finite("samples", samples), constraint)
    loc = flat.mean(0)
    root = _root(flat)
    z = np.linalg.solve(root, (flat - loc).T).T.astype(jnp.result_type(float))
    keys = jax.random.split(key, 5)
    order = np.asarray(jax.random.permutation(keys[0], len(z)))
    held = min(_MOST, int(_HELD_OUT * len(z)))
    held_out, train = z[order[:held]], z[order[held:]]
    if sigma is None:
        advised = sphere_overlaps(train[:2000]).prior_sigma
        sigma = float(advised) if np.isfinite(advised) else 0.3
    energy = _trained(train, sigma, keys[1:4], num_steps, progress_bar)
    found = evaluate(energy, held_out, key=keys[4], train=train, progress_bar=progress_bar)
    loc, root = (jnp.asarray(array, energy.loc.dtype) for array in (loc, root))
    return PriorFromDraws(name, energy, loc, root, shape, constraint, found)


def _on_the_real_line(samples, constraint):
    """The draws without their constraint, of shape (n, d) in float64, and the shape of one."""
    require(samples.ndim > 0, "samples must be at least 100 draws, got a number")
    inside = bool(np.all(np.asarray(constraint(jnp.asarray(samples)))))
    require(inside, f"samples must lie in the support of {constraint}")
    real = np.asarray(biject_to(constraint).inv(jnp.asarray(samples)), float)
    require(np.all(np.isfinite(real)), f"samples must lie inside the support of {constraint}")
    flat = real.reshape(len(real), -1)
    least = max(100, flat.shape[1] + 1)
    require(len(flat) >= least, f"samples must be at least {least} draws, got {len(flat)}")
    return flat, real.shape[1:]


def _root(flat):
    """The Cholesky factor of the covariance."""
    covariance = np.atleast_2d(np.cov(flat, rowvar=False))
    scales = np.sqrt(np.diag(covariance))
    vary = "samples must vary in every direction: leave out what is constant or follows from others"
    require(np.all(scales > 0), vary)
    values = np.linalg.eigvalsh(covariance / np.outer(scales, scales))
    require(values[0] > 1e-8, vary)
    return np.linalg.cholesky(covariance)


def _trained(train, sigma, keys, num_steps, progress_bar):
    """An energy of the whitened draws, by denoising and then by maximum likelihood.

    It begins as the Gaussian of the draws, N(0, I): the last layer is zero. Weights decay, so that
    it stays one where a few thousand draws do not say otherwise.
    """
    key, *stages = keys
    shape, skip = (train.shape[1],), 1 - sigma / (1 + sigma**2) ** 0.5
    network = MLP(shape, width_size=128, depth=3, skip=skip, key=key)
    last = lambda mlp: (mlp.layers.layers[-1].weight, mlp.layers.layers[-1].bias)  # noqa: E731
    network = eqx.tree_at(last, network, replace_fn=jnp.zeros_like)
    energy: Any = ResidualEnergy(network, sigma, shape)
    settings: Any = {"batch_size": min(128, len(train)), "progress_bar": progress_bar}
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, num_steps), weight_decay=1.0)
    denoising: Any = {"num_steps": num_steps, "optimizer": optimizer}
    energy = fit(energy, train, key=stages[0], **denoising, **settings).energy
    settings |= {"num_steps": num_steps // 2, "objective": MaximumLikelihood()}
    return fit(energy, train, key=stages[1], **settings).energy
