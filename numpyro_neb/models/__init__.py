"""Parts for a NumPyro model: the smoothed density, a learned prior and log Z."""

from numpyro_neb.models.normalized import normalized
from numpyro_neb.models.normalizer import LogNormalizer, log_normalizer
from numpyro_neb.models.prior import learned_prior
from numpyro_neb.models.smoothed_density import SmoothedDensity

__all__ = ["LogNormalizer", "SmoothedDensity", "learned_prior", "log_normalizer", "normalized"]
