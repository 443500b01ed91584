"""Training: `fit`, and the objectives that it minimises."""

from numpyro_neb.training.fitting import fit
from numpyro_neb.training.likelihood import MaximumLikelihood, PersistentChains
from numpyro_neb.training.loop import FitResult
from numpyro_neb.training.objectives import (
    AbstractObjective,
    denoising_loss,
    dual_score_loss,
    sure_loss,
)

__all__ = [
    "AbstractObjective",
    "FitResult",
    "MaximumLikelihood",
    "PersistentChains",
    "denoising_loss",
    "dual_score_loss",
    "fit",
    "sure_loss",
]
