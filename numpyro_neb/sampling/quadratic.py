"""Draws from a mixture of Gaussians given data, by quadratic approximations of the likelihood."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb.energies.mixture import MixtureEnergy
from numpyro_neb.integrators.base import accept_prob
from numpyro_neb.posteriors.components import contract

# Approximations: the first about the prior's mean, each other about the last one's.
_NUM_STEPS = 3


class _Mixture(NamedTuple):
    """sum_i w_i N(m_i, B_i B_i')."""

    log_weights: Float[Array, " K"]
    means: Float[Array, "K d"]
    roots: Float[Array, "K d d"]

    @property
    def mean(self):
        return contract("k,kd->d", jax.nn.softmax(self.log_weights), self.means)

    def sample(self, key):
        key_component, key_within = jax.random.split(key)
        index = jax.random.categorical(key_component, self.log_weights)
        eps = jax.random.normal(key_within, self.means.shape[1:], self.means.dtype)
        return self.means[index] + contract("ij,j->i", self.roots[index], eps)


class _Quadratic(NamedTuple):
    """q(x) = slope.(x - c) - norm(root (x - c) - aim)^2 / 2."""

    centre: Float[Array, " d"]
    slope: Float[Array, " d"]
    root: Float[Array, "d d"]
    aim: Float[Array, " d"]

    def __call__(self, x):
        away = x - self.centre
        misfit = contract("ij,...j->...i", self.root, away) - self.aim
        return contract("...i,i->...", away, self.slope) - jnp.sum(misfit**2, -1) / 2

    def times(self, law):
        """The mixture with the density of `law` times exp(q)."""
        # x = m + B z with z ~ N(0, I): exp(q) makes it a least-squares problem for z, solved by QR.
        # With data far more precise than the prior, the normal equations would lose the prior.
        away = law.means - self.centre
        a = contract("ij,kjl->kil", self.root, law.roots)
        aim = self.aim - contract("ij,kj->ki", self.root, away)
        pull = contract("kij,i->kj", law.roots, self.slope)
        eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
        orthogonal, upper = jnp.linalg.qr(jnp.concatenate([eye, a], axis=1))
        transposed = jax.vmap(partial(solve_triangular, trans=1))
        along = contract("kij,ki->kj", orthogonal[:, a.shape[-1] :], aim)
        z = jax.vmap(solve_triangular)(upper, along + transposed(upper, pull))
        misfit = contract("kij,kj->ki", a, z) - aim
        logs = contract("ki,i->k", away, self.slope) + jnp.sum(pull * z, 1)
        logs -= (jnp.sum(z**2, 1) + jnp.sum(misfit**2, 1)) / 2
        logs -= jnp.sum(jnp.log(jnp.abs(jnp.diagonal(upper, axis1=1, axis2=2))), 1)
        means = law.means + contract("kij,kj->ki", law.roots, z)
        roots = jnp.swapaxes(transposed(upper, jnp.swapaxes(law.roots, 1, 2)), 1, 2)
        return _Mixture(law.log_weights + logs, means, roots)


def mixture_step(
    energy: MixtureEnergy,
    log_likelihood: Callable[[Float[Array, " d"]], Float[Array, ""]],
    noise: Float[Array, ""],
    x: Float[Array, " d"],
    y: Float[Array, " d"],
    key: PRNGKeyArray,
) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    """One draw of x given y = x + noise eps and data, for x ~ f, the density of `energy`.

    Args:
        energy: The energy of x's law.
        log_likelihood: The log likelihood of a flat x.
        noise: The standard deviation of y given x.
        x: The x before.
        y: x with noise.
        key: A JAX random key.

    Returns:
        The next x, and the probability with which its proposal was accepted: one, up to rounding,
        if the log likelihood is quadratic.
    """
    key_draw, key_accept = jax.random.split(key)
    law = _given(energy, noise, y)
    likelihood = _expanded(log_likelihood, law.mean)
    for _ in range(_NUM_STEPS - 1):
        likelihood = _expanded(log_likelihood, likelihood.times(law).mean)
    posterior = likelihood.times(law)
    new = posterior.sample(key_draw)
    excess = lambda x: log_likelihood(x) - likelihood(x)  # noqa: E731
    loss = excess(x) - excess(new)
    accepted = (jax.random.exponential(key_accept, dtype=x.dtype) > loss) & jnp.all(
        jnp.isfinite(new)
    )
    return jnp.where(accepted, new, x), accept_prob(loss)


def _given(energy, noise, y):
    """The law of x given y."""
    part = energy.components
    if part.spreads is None or part.axes is None:
        shape = part.locs.reshape(len(part.locs), -1).shape
        part = part._replace(
            spreads=jnp.zeros(shape, y.dtype),
            axes=jnp.broadcast_to(jnp.eye(shape[1], dtype=y.dtype), (*shape, shape[1])),
        )
    part = part._replace(spreads=part.spreads + energy.sigma**2)
    y = y.reshape(energy.event_shape)
    roots = part.axes * jnp.sqrt(part.shrunk(noise))[:, None, :]
    means = part.loc.reshape(1, -1) + part.means(y, noise)
    return _Mixture(part.log_responsibilities(y, noise), means, roots)


def _expanded(log_likelihood, centre):
    """The second-order expansion, without its constant; directions that curve up count as flat."""
    slope = jax.grad(log_likelihood)(centre)
    values, vectors = jnp.linalg.eigh(-jax.hessian(log_likelihood)(centre))
    # Below the rounding error of the others a curvature is not known.
    least = 8 * centre.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    roots = jnp.sqrt(jnp.where(values > least, values, 0))
    along = contract("ij,i->j", vectors, slope)
    aim = jnp.where(roots > 0, along / jnp.where(roots > 0, roots, 1), 0)
    flat = contract("ij,j->i", vectors, jnp.where(roots > 0, 0, along))
    return _Quadratic(centre, flat, roots[:, None] * vectors.T, aim)
