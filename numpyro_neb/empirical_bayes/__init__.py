"""Empirical Bayes: what an observation Y = X + N(0, sigma^2 I) says about X.

There are two cases. If you have clean X, train an energy on them with `fit`, or use their kernel
density, `MixtureEnergy(x, sigma)`. If you have only noisy Y, `fit_mixture(y, sigma)` estimates the
law of X from them, and `fit(..., objective=sure_loss)` trains an energy on them. An energy trained
on noisy data as if they were clean takes X to be as noisy as Y, and shrinks too little.
"""

from numpyro_neb.empirical_bayes.components import PosteriorComponents, posterior_components
from numpyro_neb.empirical_bayes.distribution import PosteriorDistribution
from numpyro_neb.empirical_bayes.functions import (
    credible_interval,
    local_false_sign_rate,
    posterior_covariance,
    posterior_distribution,
    posterior_mean,
    posterior_std,
)
from numpyro_neb.empirical_bayes.mixture_fit import MixtureFit
from numpyro_neb.empirical_bayes.normal_means import fit_mixture
from numpyro_neb.empirical_bayes.robust import cva, prior_moments, robust_interval
from numpyro_neb.empirical_bayes.selection import Ranking
from numpyro_neb.models.normalized import normalized
from numpyro_neb.models.normalizer import log_normalizer
from numpyro_neb.posteriors import (
    AbstractPosterior,
    Diagonal,
    Full,
    Isotropic,
    LinearisedPosterior,
    MixturePosterior,
)

__all__ = [
    "AbstractPosterior",
    "Diagonal",
    "Full",
    "Isotropic",
    "LinearisedPosterior",
    "MixtureFit",
    "MixturePosterior",
    "PosteriorComponents",
    "PosteriorDistribution",
    "Ranking",
    "credible_interval",
    "cva",
    "fit_mixture",
    "local_false_sign_rate",
    "log_normalizer",
    "normalized",
    "posterior_components",
    "posterior_covariance",
    "posterior_distribution",
    "posterior_mean",
    "posterior_std",
    "prior_moments",
    "robust_interval",
]
