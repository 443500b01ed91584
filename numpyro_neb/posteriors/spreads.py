"""Representations of the spread of X given y: a covariance's root, its eigenvalues floored."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_neb._internal.checks import check_count
from numpyro_neb.posteriors.base import AbstractPosterior
from numpyro_neb.posteriors.components import contract


class AbstractSpread(eqx.Module):
    """A representation of Cov(X given Y=y), whose root R gives the draws mean + R eps."""

    @abc.abstractmethod
    def root(
        self, posterior: AbstractPosterior, eps: Float[Array, "*event"]
    ) -> tuple[Float[Array, "*event"], Float[Array, ""]]:
        """R eps, and the share of the directions whose variance was negative and is set to zero.

        Args:
            posterior: The law of X given y.
            eps: Standard normal noise, of shape `event_shape`.
        """


class Full(AbstractSpread):
    """The full covariance: d products with it and an eigendecomposition of order d^3.

    If the posterior knows its law as a function of the noise, as a mixture with a density does,
    the draws have that law instead of a Gaussian's.
    """

    def root(
        self, posterior: AbstractPosterior, eps: Float[Array, "*event"]
    ) -> tuple[Float[Array, "*event"], Float[Array, ""]]:
        """R eps with R the symmetric root of the covariance, or the posterior's `around_mean`."""
        around = posterior.around_mean(eps)
        if around is not None:
            return around, jnp.zeros_like(posterior.sigma)
        root, projected = projected_root(posterior.covariance / posterior.sigma**2)
        return posterior.sigma * contract("ij,j->i", root, eps.reshape(-1)).reshape(
            eps.shape
        ), projected


class Diagonal(AbstractSpread):
    """The variance of each coordinate: d products."""

    def root(
        self, posterior: AbstractPosterior, eps: Float[Array, "*event"]
    ) -> tuple[Float[Array, "*event"], Float[Array, ""]]:
        """Each coordinate's standard deviation times eps."""
        return _scaled(posterior, posterior.variance / posterior.sigma**2, eps)


class Isotropic(AbstractSpread):
    """The mean of the variances: at most num_probes products, for large d.

    Besides the products it costs about 2 d num_probes^2 operations, and no array of d x d.

    Args:
        num_probes: Maximum number of products. They go along orthogonal directions, the same at
            every y, so that the variance is a smooth function of y; with d of them it is exact.

    Raises:
        ValueError: If num_probes is not a positive int.
    """

    num_probes: int = eqx.field(static=True)

    def __init__(self, num_probes: int = 16):
        self.num_probes = check_count("num_probes", num_probes)

    def root(
        self, posterior: AbstractPosterior, eps: Float[Array, "*event"]
    ) -> tuple[Float[Array, "*event"], Float[Array, ""]]:
        """The root mean variance times eps."""
        # Unit probes p: the mean of p' Cov p over d orthogonal ones is the trace / d.
        # Only as many columns as probes are made orthogonal: O(d num_probes^2).
        shape = eps.size, min(eps.size, self.num_probes)
        probes = jnp.linalg.qr(jax.random.normal(jax.random.key(0), shape, eps.dtype))[0].T
        along = lambda p: jnp.vdot(p, posterior.product(p.reshape(eps.shape)))  # noqa: E731
        variances = jax.vmap(along)(probes) / posterior.sigma**2
        return _scaled(posterior, jnp.mean(variances), eps)


def _scaled(posterior, variance, eps):
    # Each variance is computed by itself, and has only its own rounding error.
    least = jax.vmap(lambda one: floor(one[None]))(variance.reshape(-1)).reshape(variance.shape)
    projected = jnp.mean(variance < -least, dtype=eps.dtype)
    return posterior.sigma * jnp.sqrt(jnp.maximum(variance, least)) * eps, projected


def floor(variances: Float[Array, "..."]) -> Float[Array, ""]:
    """The value, in units of sigma^2, below which a variance counts as zero.

    Cov / sigma^2 is the Jacobian of the jump. Where it is zero, it is computed as a difference of
    numbers near 1, with a rounding error of a few eps: 64 eps, 8e-6 in float32, is safely above
    that, and keeps the root's derivative, up to 1 / (2 sqrt(floor)), from amplifying it. An
    eigenvalue far above 1 adds more rounding to the others: d eps times its value.
    """
    eps, largest = jnp.finfo(variances.dtype).eps, jnp.max(jnp.abs(variances))
    return jax.lax.stop_gradient(eps * jnp.maximum(64, variances.size * largest))


@jax.custom_jvp
def projected_root(
    matrix: Float[Array, "d d"],
) -> tuple[Float[Array, "d d"], Float[Array, ""]]:
    """The symmetric root of a symmetric matrix in units of sigma^2, its eigenvalues kept above 0.

    Returns:
        The root, with its eigenvalues raised to at least `floor`, and the share of them that were
        negative.
    """
    values, vectors, kept = _eigen(matrix)
    return contract("ik,jk->ij", vectors * jnp.sqrt(kept)[None], vectors), _negative(values)


@projected_root.defjvp
def _projected_root_jvp(primals, tangents):
    # Daleckii and Krein: in the eigenbasis, the divided differences of f(t) = sqrt(max(t, floor))
    # times the tangent. Unlike eigh's derivative, it is finite if eigenvalues coincide.
    (matrix,), (tangent,) = primals, tangents
    values, vectors, kept = _eigen(matrix)
    roots = jnp.sqrt(kept)
    gap = values[:, None] - values[None, :]
    apart = gap != 0
    slope = (kept[:, None] - kept[None, :]) / jnp.where(apart, gap, 1)
    slope = jnp.where(apart, slope, (kept == values)[:, None])
    weights = slope / (roots[:, None] + roots[None, :])
    inner = contract("ki,kl,lj->ij", vectors, tangent, vectors)
    negative = _negative(values)
    out = contract("ik,jk->ij", vectors * roots[None], vectors), negative
    slopes = contract("ik,kl,jl->ij", vectors, weights * inner, vectors)
    return out, (slopes, jnp.zeros_like(negative))


def _eigen(matrix):
    """Eigenvalues, eigenvectors, and the eigenvalues raised to the floor."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors, jnp.maximum(values, floor(values))


def _negative(values):
    return jnp.mean(values < -floor(values), dtype=values.dtype)
