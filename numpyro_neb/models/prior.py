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
from numpyro_neb.energies.base import AbstractEnergy, AbstractEnergyFamily, check_energy
from numpyro_neb.models.smoothed_density import SmoothedDensity
from numpyro_neb.posteriors.levels import NUM_LEVELS, flowed, geometric
from numpyro_neb.posteriors.spreads import AbstractSpread, Diagonal, Full, Isotropic


def learned_prior(
    name: str,
    energy: AbstractEnergy | AbstractEnergyFamily,
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

    For a family of noise levels, such as a `ConditionalEnergy`, no Gaussian law stands between the
    noise and the modes of X: y ~ N(loc, scale^2 + sigma^2) at the largest sigma flows down to the
    smallest one,

        dy / dsigma = sigma grad phi(y; sigma),

    which keeps the law of Y right at each level on the way, and x is drawn given the y that it
    ends at, as above. x is a smooth function of Gaussian noise, and so all modes of X are within
    reach of NUTS. It costs 48 gradients of phi in place of one. Use it where the law of X given y
    is not Gaussian at the noise level that the walk needs: where
    `posterior_distribution(energy.at(sigma), y)` and draws of `energy.posterior(y, sigma)` differ.
    The largest sigma should be several times the spread of X, the smallest a third of the widths
    that matter.

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
            Or a family of them.
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
        TypeError: If `energy` is neither an `AbstractEnergy` nor a family of them, or name is not
            a string.
        ValueError: If covariance is not one of the three.
        RuntimeError: If it is called outside of a model.

    Reference:
        Robbins 1956; Miyasawa 1961; the second-order formula is in Efron, Tweedie's formula and
        selection bias, JASA 106 (2011). Rosenblatt, Remarks on a multivariate transformation,
        Annals of Mathematical Statistics 23 (1952). Song et al., Score-based generative modeling
        through stochastic differential equations, ICLR 2021, for the flow.

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
    check_energy(energy, conditional=True)
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
    zero = jnp.zeros(energy.event_shape, energy.loc.dtype)
    noise = dist.Normal(zero, jnp.ones_like(zero)).to_event(zero.ndim)
    # Means to draw x, which `to_arviz` leaves out.
    infer = {"latent_of": name}
    if isinstance(energy, AbstractEnergyFamily):
        highest = energy.unchecked_at(energy.levels(jnp.ones((), zero.dtype)))
        spread_of_y = zero + jnp.sqrt(energy.scale**2 + highest.sigma**2)
        law = dist.Normal(zero + energy.loc, spread_of_y).to_event(zero.ndim)
        given = eqx.Partial(_given_noise, spread, energy)
    else:
        law, given, highest = SmoothedDensity(energy), eqx.Partial(_given, spread), energy
    y = jnp.asarray(numpyro.sample(f"{name}_y", law, infer=infer))
    eps = jnp.asarray(numpyro.sample(f"{name}_eps", noise, infer=infer))
    x, projected = over_batch(given, highest, y, eps)
    numpyro.deterministic(f"{name}_projected", projected)
    return jnp.asarray(numpyro.deterministic(name, x))


def _given_noise(spread, family, highest, y, eps):
    """One x from y at the highest level and eps, and the share that was projected."""
    lowest = family.levels(jnp.zeros_like(highest.sigma))
    y = flowed(family.unchecked_at, y, geometric(highest.sigma, lowest, NUM_LEVELS))
    return _given(spread, family.unchecked_at(lowest), y, eps)


def _given(spread, energy, y, eps):
    """One x from y and eps, and the share of directions that were projected."""
    posterior = energy.posterior(y)
    around, projected = spread.root(posterior, eps)
    return posterior.mean + around, projected


_SPREADS = {"full": Full(), "diagonal": Diagonal(), "isotropic": Isotropic()}
