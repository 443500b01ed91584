"""Checks an energy against held-out data: its walk, its density and its jumps."""

from numpyro_neb.evaluation.baselines import Baseline
from numpyro_neb.evaluation.families import FamilyEvaluation
from numpyro_neb.evaluation.measurement import evaluate
from numpyro_neb.evaluation.two_sample import PairedTest, paired_test
from numpyro_neb.evaluation.verdicts import Evaluation

__all__ = [
    "Baseline",
    "Evaluation",
    "FamilyEvaluation",
    "PairedTest",
    "evaluate",
    "paired_test",
]
