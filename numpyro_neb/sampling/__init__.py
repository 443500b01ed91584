"""Walk-jump sampling in NumPyro's MCMC."""

from numpyro_neb.sampling.kernel import WalkJumpKernel, WalkJumpState
from numpyro_neb.sampling.levels import LevelsKernel, LevelsState

__all__ = ["LevelsKernel", "LevelsState", "WalkJumpKernel", "WalkJumpState"]
