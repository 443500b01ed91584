"""Walk-jump sampling in NumPyro's MCMC."""

from numpyro_neb.sampling.kernel import WalkJumpKernel, WalkJumpState

__all__ = ["WalkJumpKernel", "WalkJumpState"]
