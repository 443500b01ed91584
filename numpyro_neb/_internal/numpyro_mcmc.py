"""Access to private attributes of NumPyro's `MCMC`, and one that it looks for in a kernel."""

from collections.abc import Callable
from typing import Any

from numpyro.infer.mcmc import MCMC, MCMCKernel
from numpyro.util import identity


class ResumableKernel(MCMCKernel):
    """A kernel whose `init` NumPyro calls once, not again when a run resumes from a state.

    NumPyro looks for an attribute `_sample_fn` that is not None. Its draws are constrained.
    """

    _sample_fn = True

    def get_constrain_fn(
        self, model_args: tuple, model_kwargs: dict[str, Any] | None
    ) -> Callable[[dict], dict]:
        """The identity: a draw is already constrained."""
        del model_args, model_kwargs
        return identity


def model_arguments(mcmc: MCMC) -> tuple[tuple, dict[str, Any]]:
    """The positional and the keyword arguments that `mcmc.run` last gave to the model."""
    return mcmc._args, mcmc._kwargs


def collected_fields(mcmc: MCMC) -> Any:
    """The fields that a run has collected, by name, each with chain and draw in front."""
    return mcmc._states


def set_run(
    mcmc: MCMC, fields: dict[str, Any], last_state: Any, args: tuple, kwargs: dict[str, Any]
) -> None:
    """Turns an MCMC into one that has run.

    Args:
        mcmc: The MCMC; it must not have run.
        fields: What it collected, as from `collected_fields`.
        last_state: The kernel's state after the last draw.
        args: The model's positional arguments.
        kwargs: Its keyword arguments.
    """
    mcmc._states, mcmc._last_state = fields, last_state
    mcmc._args, mcmc._kwargs = args, kwargs
