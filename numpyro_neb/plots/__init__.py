"""Pictures: matplotlib axes in, axes out."""

from numpyro_neb.plots.effects import fdr, prior, shrinkage
from numpyro_neb.plots.evaluations import evaluation
from numpyro_neb.plots.histograms import energy_transitions, overlaps
from numpyro_neb.plots.images import denoising, memories, recall_paths, walk_jump
from numpyro_neb.plots.landscapes import landscape
from numpyro_neb.plots.tables import marginals

__all__ = [
    "denoising",
    "energy_transitions",
    "evaluation",
    "fdr",
    "landscape",
    "marginals",
    "memories",
    "overlaps",
    "prior",
    "recall_paths",
    "shrinkage",
    "walk_jump",
]
