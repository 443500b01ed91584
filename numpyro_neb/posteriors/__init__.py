"""The law of X given Y=y: exact under a mixture, a moment-matched Gaussian otherwise."""

from numpyro_neb.posteriors.base import AbstractPosterior
from numpyro_neb.posteriors.levels import LevelsPosterior
from numpyro_neb.posteriors.linearised import LinearisedPosterior
from numpyro_neb.posteriors.mixture import MixturePosterior
from numpyro_neb.posteriors.spreads import AbstractSpread, Diagonal, Full, Isotropic

__all__ = [
    "AbstractPosterior",
    "AbstractSpread",
    "Diagonal",
    "Full",
    "Isotropic",
    "LevelsPosterior",
    "LinearisedPosterior",
    "MixturePosterior",
]
