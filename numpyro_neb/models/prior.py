"""A learned density of clean data as a prior inside a NumPyro model."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from numpyro_neb._internal.batching import over_batch
from numpyro_neb._internal.checks import check_choice, kind
from numpyro_neb.energies.base import AbstractEnergy, check_energy
from numpyro_neb.models.smoothed_density import SmoothedDensity


def learned_prior(
    name: str,
    energy: AbstractEnergy,
    covariance: Literal["full", "diagonal", "isotropic"] = "full",
) -> Float[Array, "..."]:
    r"""A site for the clean X of an energy, to be called inside a NumPyro model.

    y ~ f(y), the smoothed density, and x given y from the empirical-Bayes posterior,

        x = x_hat(y) + Cov(X given y)^(1/2) eps,    eps ~ N(0, I),
        x_hat(y) = y - sigma^2 grad phi(y),    Cov(X given y) = sigma^2 (I - sigma^2 Hess phi(y)),

    so that x has the mean and the covariance of X: the bare jump x_hat(Y) lacks E Cov(X given Y).
    The law of X given y is taken to be Gaussian. It is where X's density changes little over a
    sigma, as in a mixture of Gaussians some three times wider than sigma, and it is not where the
    noise mixes up modes of X: choose a smaller sigma then.

    The sites are `<name>`, the deterministic x; `<name>_y` and `<name>_eps`, the latent ones, which
    are independent a priori; and `<name>_projected`, the share of the directions in which the
    covariance was not positive and was set to zero. An exact energy has none: a learned one where
    it fits badly. `(samples["x_projected"] > 0).mean()` says how often that happened.

    Use it under NUTS (with `init_strategy=init_to_mean` on images), SVI with an autoguide,
    `Predictive` (with `SmoothedDensity`'s own walk behind a draw of y), in plates, where each
    element has its own x, or in `numpyro.infer.Gibbs` with a `WalkJumpKernel` on `<name>_y`.

    Args:
        name: The site's name.
        energy: The energy phi of the smoothed density, its weights fixed: see `SmoothedDensity`.
        covariance: "full"; "diagonal", which keeps each coordinate's variance; or "isotropic",
            which keeps their mean. The first two cost d Hessian-vector products, the full one an
            eigendecomposition besides; the last one 16 at most, from orthogonal probes that are
            the same at every y: exact up to d = 16, and the one for large d. But noise that is
            alike in all directions can take up some of the data's own.

    Returns:
        x, of shape (*batch, *event_shape), batch that of the enclosing plates.

    Raises:
        TypeError: If `energy` is no `AbstractEnergy`, or name no string.
        ValueError: If covariance is none of the three.

    Reference:
        Robbins 1956; Miyasawa 1961; the second-order formula is in Efron, Tweedie's formula and
        selection bias, JASA 106 (2011).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro_neb as neb
        >>> from numpyro.infer import MCMC, NUTS
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 2)), 0.3, covariances=jnp.eye(2)[None])
        >>> def model(data):  # x ~ N(0, I), seen through noise of variance 1
        ...     x = neb.learned_prior("x", energy)
        ...     numpyro.sample("data", numpyro.distributions.Normal(x, 1.0).to_event(1), obs=data)
        >>> mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=3000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0), jnp.array([2.0, 0.0]))
        >>> x = mcmc.get_samples()["x"]  # the posterior is N(data / 2, I / 2)
        >>> bool(jnp.all(jnp.abs(x.mean(0) - jnp.array([1.0, 0.0])) < 0.1))
        True
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {kind(name)}")
    check_energy(energy)
    check_choice("covariance", covariance, tuple(_SPREADS))
    zero = jnp.zeros(energy.event_shape, energy.sigma.dtype)
    noise = dist.Normal(zero, jnp.ones_like(zero)).to_event(zero.ndim)
    y = jnp.asarray(numpyro.sample(f"{name}_y", SmoothedDensity(energy)))
    eps = jnp.asarray(numpyro.sample(f"{name}_eps", noise))
    x, projected = over_batch(_SPREADS[covariance], energy, y, eps)
    numpyro.deterministic(f"{name}_projected", projected)
    return jnp.asarray(numpyro.deterministic(name, x))


def _full(energy, y, eps):
    x_hat, jacobian = _jump_and_jacobian(energy, y)
    root, projected = _projected_root((jacobian + jacobian.T) / 2)
    return x_hat + energy.sigma * (root @ eps.reshape(-1)).reshape(y.shape), projected


def _diagonal(energy, y, eps):
    x_hat, jacobian = _jump_and_jacobian(energy, y)
    return _scaled(energy, x_hat, jnp.diagonal(jacobian).reshape(y.shape), eps)


def _isotropic(energy, y, eps):
    # Orthogonal probes p of length sqrt(d): the mean of p' J p over all d of them is the trace, and
    # fewer, the same at every y, leave the variance a smooth function of y.
    num_probes = min(y.size, _NUM_PROBES)
    probes = jax.random.orthogonal(jax.random.key(0), y.size)[:num_probes].astype(y.dtype)
    x_hat, product = jax.linearize(energy.denoise, y)
    along = jax.vmap(lambda p: p @ product(p.reshape(y.shape)).reshape(-1))(probes)
    return _scaled(energy, x_hat, jnp.mean(along), eps)


_SPREADS = {"full": _full, "diagonal": _diagonal, "isotropic": _isotropic}

_NUM_PROBES = 16
# Below this share of sigma^2 a variance counts as zero: what rounding leaves of one that is.
_FLOOR = 1e-5


def _jump_and_jacobian(energy, y):
    """x_hat(y) and its Jacobian, Cov(X given y) / sigma^2, of shape (d, d)."""

    def jump(flat):
        x_hat = energy.denoise(flat.reshape(y.shape)).reshape(-1)
        return x_hat, x_hat

    jacobian, x_hat = jax.jacfwd(jump, has_aux=True)(y.reshape(-1))
    return x_hat.reshape(y.shape), jacobian


def _scaled(energy, x_hat, variance, eps):
    projected = jnp.mean(variance < -_FLOOR, dtype=x_hat.dtype)
    return x_hat + energy.sigma * jnp.sqrt(jnp.maximum(variance, _FLOOR)) * eps, projected


@jax.custom_jvp
def _projected_root(matrix):
    """The symmetric root of a symmetric matrix, its eigenvalues raised to `_FLOOR` at least.

    Also the share of the eigenvalues that were negative.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    roots = jnp.sqrt(jnp.maximum(values, _FLOOR))
    return (vectors * roots) @ vectors.T, jnp.mean(values < -_FLOOR, dtype=matrix.dtype)


@_projected_root.defjvp
def _projected_root_jvp(primals, tangents):
    # Daleckii and Krein: in the eigenbasis, the divided differences of f(t) = sqrt(max(t, floor))
    # times the tangent. Unlike the derivative of eigh, finite where eigenvalues coincide.
    (matrix,), (tangent,) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    kept = jnp.maximum(values, _FLOOR)
    roots = jnp.sqrt(kept)
    gap = values[:, None] - values[None, :]
    apart = gap != 0
    slope = (kept[:, None] - kept[None, :]) / jnp.where(apart, gap, 1)
    slope = jnp.where(apart, slope, (values > _FLOOR)[:, None])
    weights = slope / (roots[:, None] + roots[None, :])
    inner = vectors.T @ tangent @ vectors
    out = (vectors * roots) @ vectors.T, jnp.mean(values < -_FLOOR, dtype=matrix.dtype)
    return out, (vectors @ (weights * inner) @ vectors.T, jnp.zeros_like(out[1]))
