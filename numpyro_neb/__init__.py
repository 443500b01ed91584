"""Neural Empirical Bayes for NumPyro: learn a smoothed density, walk on it, jump to clean data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from numpyro_neb import (
    diagnostics,
    empirical_bayes,
    energies,
    geometry,
    integrators,
    memories,
    networks,
    streaming,
)
from numpyro_neb.diagnostics import to_arviz
from numpyro_neb.empirical_bayes import (
    MixtureFit,
    fit_mixture,
    posterior_covariance,
    posterior_distribution,
    posterior_mean,
    posterior_std,
)
from numpyro_neb.energies import (
    AbstractEnergy,
    ConditionalEnergy,
    MixtureEnergy,
    NetworkEnergy,
    ResidualEnergy,
    ScoreField,
)
from numpyro_neb.evaluation import Evaluation, evaluate
from numpyro_neb.files import load, save
from numpyro_neb.geometry import critical_sigma, overlap_regimes, sphere_overlaps
from numpyro_neb.memories import Memories, recall
from numpyro_neb.models import SmoothedDensity, learned_prior
from numpyro_neb.priors import prior_from_draws
from numpyro_neb.sampling import LevelsKernel, WalkJumpKernel
from numpyro_neb.streaming import stream
from numpyro_neb.tables import Standardizer
from numpyro_neb.training import (
    FitResult,
    MaximumLikelihood,
    denoising_loss,
    dual_score_loss,
    fit,
    sure_loss,
)

if TYPE_CHECKING:
    from numpyro_neb import plots

__version__ = "0.3.0"

__all__ = [
    "AbstractEnergy",
    "ConditionalEnergy",
    "Evaluation",
    "FitResult",
    "LevelsKernel",
    "MaximumLikelihood",
    "Memories",
    "MixtureEnergy",
    "MixtureFit",
    "NetworkEnergy",
    "ResidualEnergy",
    "ScoreField",
    "SmoothedDensity",
    "Standardizer",
    "WalkJumpKernel",
    "critical_sigma",
    "denoising_loss",
    "diagnostics",
    "dual_score_loss",
    "empirical_bayes",
    "energies",
    "evaluate",
    "fit",
    "fit_mixture",
    "geometry",
    "integrators",
    "learned_prior",
    "load",
    "memories",
    "networks",
    "overlap_regimes",
    "plots",
    "posterior_covariance",
    "posterior_distribution",
    "posterior_mean",
    "posterior_std",
    "prior_from_draws",
    "recall",
    "save",
    "sphere_overlaps",
    "stream",
    "streaming",
    "sure_loss",
    "to_arviz",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    # So that matplotlib is imported only when plots are used.
    if name == "plots":
        return import_module("numpyro_neb.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
