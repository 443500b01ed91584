"""A learned density of clean data as a prior inside a NumPyro model."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import primitives

from numpyro_neb._internal.batching import over_batch
from numpyro_neb._internal.checks import check_choice, check_type, require
from numpyro_neb.energies.base import AbstractEnergy, check_energy
from numpyro_neb.models.smoothed_density import SmoothedDensity
from numpyro_neb.posteriors.spreads import AbstractSpread, Diagonal, Full, Isotropic


def learned_prior(
    name: str,
    energy: AbstractEnergy,
    covariance: AbstractSpread | Literal["full", "diagonal", "isotropic"] = "full",
) -> Float[Array, "..."]:
    r"""A site for the clean X of an energy, for use inside a NumPyro model.

    y ~ f(y), the smoothed density, and x given y from the empirical-Bayes posterior,

        x = x_hat(y) + Cov(X given y)^(1/2) eps,    eps ~ N(0, I),
        x_hat(y) = y - sigma^2 grad phi(y),    Cov(X given y) = sigma^2 (I - sigma^2 Hess phi(y)),

    so that x has the mean and covariance of X: the jump x_hat(Y) alone lacks E Cov(X given Y).
    The law of X given y is taken to be Gaussian. That is right if X's density changes little over
    one sigma, as in a mixture of Gaussians about three times wider than sigma, and wrong if the
    noise mixes modes of X: then choose a smaller sigma. For an exact `MixtureEnergy` whose
    components have covariances, covariance="full" takes the exact law of X given y instead, by
    Rosenblatt's map of eps, so that x has the law of X at every sigma.

    The sites are `<name>`, the deterministic x; `<name>_y` and `<name>_eps`, the latent ones, which
    are independent a priori and which `to_arviz` keeps out of `posterior` unless asked for; and
    `<name>_projected`, the share of the directions in which the covariance was not positive and was
    set to zero. An exact energy has none; a learned one may where it fits badly.
    `(samples["x_projected"] > 0).mean()` says how often that happened.

    Use it under NUTS (with `init_strategy=init_to_mean` on images), SVI with an autoguide,
    `Predictive` (with `SmoothedDensity`'s own walk behind a draw of y), in plates, where each
    element has its own x, or in `numpyro.infer.Gibbs` with a `WalkJumpKernel` on `<name>_y`.

    Args:
        name: The site's name.
        energy: The energy phi of the smoothed density, its weights fixed: see `SmoothedDensity`.
        covariance: `empirical_bayes.Full()`, or "full"; `Diagonal()` or "diagonal", which keeps
            each coordinate's variance; or `Isotropic(num_probes=16)` or "isotropic", which keeps
            their mean. At each gradient the first two cost d Hessian-vector products, plus an
            eigendecomposition of order d^3 for the full one; the last at most `num_probes`
            products, along orthogonal directions that are the same at every y, and nothing else
            that grows faster than d: exact up to that d, and the choice for large d. But noise
            that is equal in all directions can absorb some of the data's own noise.

    Returns:
        x, of shape (*batch, *event_shape), where batch is that of the enclosing plates.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, or name is not a string.
        ValueError: If covariance is not one of the three.
        RuntimeError: If it is called outside of a model.

    Reference:
        Robbins 1956; Miyasawa 1961; the second-order formula is in Efron, Tweedie's formula and
        selection bias, JASA 106 (2011). Rosenblatt, Remarks on a multivariate transformation,
        Annals of Mathematical Statistics 23 (1952).

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
    check_type("name", name, str, "a string")
    check_energy(energy)
    spread = covariance
    if not isinstance(spread, AbstractSpread):
        check_choice("covariance", spread, tuple(_SPREADS))
        spread = _SPREADS[spread]
    inside = bool(primitives._PYRO_STACK)
    require(
        inside,
        "learned_prior must be called inside a NumPyro model, under MCMC, SVI or a"
        " handler: for draws outside of one, use Predictive or handlers.seed",
        RuntimeError,
    )
    zero = jnp.zeros(energy.event_shape, energy.sigma.dtype)
    noise = dist.Normal(zero, jnp.ones_like(zero)).to_event(zero.ndim)
    # Means to draw x, which `to_arviz` leaves out.
    infer = {"latent_of": name}
    y = jnp.asarray(numpyro.sample(f"{name}_y", SmoothedDensity(energy), infer=infer))
    eps = jnp.asarray(numpyro.sample(f"{name}_eps", noise, infer=infer))
    x, projected = over_batch(eqx.Partial(_given, spread), energy, y, eps)
    numpyro.deterministic(f"{name}_projected", projected)
    return jnp.asarray(numpyro.deterministic(name, x))


def _given(spread, energy, y, eps):
    """One x from y and eps, and the share of directions that were projected."""
    posterior = energy.posterior(y)
    around, projected = spread.root(posterior, eps)
    return posterior.mean + around, projected


_SPREADS = {"full": Full(), "diagonal": Diagonal(), "isotropic": Isotropic()}
