"""From draws to ArviZ."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpyro.infer import MCMC
from numpyro.util import find_stack_level

from numpyro_neb.kernels import WalkJumpKernel

_EVENT_DIMS = {2: ("row", "column"), 3: ("channel", "row", "column")}


def to_arviz(
    mcmc: MCMC,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """The draws of an `MCMC(WalkJumpKernel(...))` as ArviZ data.

    Group `posterior` holds the walk `y` and the jumps `x`, or the sites and jumps of a model, with
    its data in `observed_data`; `sample_stats` holds `lp` (-phi(y)), `energy`, `step_size` in the
    data's units and `diverging`, and an `acceptance_rate` for Metropolis integrators only;
    `constant_data` holds an energy's `sigma`. Any extra fields given to `MCMC.run` are in
    `sample_stats` too.

    Args:
        mcmc: An MCMC object that has run.
        coords: Coordinates for the dimensions of an event, 0, 1, ... by default.
        dims: Names of the dimensions of each variable. For the `y` and `x` of an energy they are
            `row`, `column` by default for events of rank 2, `channel`, `row`, `column` for rank 3,
            and `event_dim_0`, ... otherwise.

    Returns:
        An `arviz.InferenceData` under ArviZ 0.x, an `xarray.DataTree` under 1.x.

    Raises:
        TypeError: If `mcmc` is no MCMC of a `WalkJumpKernel`.
        ValueError: If it has not run.

    Warns:
        UserWarning: If draws are diverging: with the chain and the first such draw.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=10, num_samples=100,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> data = neb.to_arviz(mcmc)
        >>> data.posterior["x"].dims
        ('chain', 'draw', 'event_dim_0')
    """
    import arviz as az

    kernel = getattr(mcmc, "sampler", None)
    if not isinstance(mcmc, MCMC) or not isinstance(kernel, WalkJumpKernel):
        raise TypeError(f"mcmc must be an MCMC of a WalkJumpKernel, got {type(mcmc).__name__}")
    if mcmc.last_state is None:
        raise ValueError("mcmc must have run: call mcmc.run(key) first")
    _warn_of_divergence(np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"]))
    sizes, named, constants = {}, dict(dims or {}), None
    if kernel.energy is not None:
        shape = kernel.energy.event_shape
        names = _EVENT_DIMS.get(len(shape), [f"event_dim_{i}" for i in range(len(shape))])
        named = {"y": list(names), "x": list(names)} | {k: list(v) for k, v in named.items()}
        for name in ("y", "x"):
            sizes |= {dim: np.arange(n) for dim, n in zip(named[name], shape, strict=False)}
        constants = {"sigma": np.asarray(kernel.energy.sigma)}
    data = az.from_numpyro(
        mcmc, coords=sizes | dict(coords or {}), dims=named, constant_data=constants
    )
    posterior: Any = data["posterior"]
    posterior.attrs |= _attributes(kernel)
    return data


def _attributes(kernel):
    from numpyro_neb import __version__

    settings = ", ".join(f"{name}={value!r}" for name, value in vars(kernel.integrator).items())
    attributes = {
        "created_by": f"numpyro_neb {__version__}",
        "integrator": f"{type(kernel.integrator).__name__}({settings})",
        "steps_per_draw": kernel.num_steps,
        "inverse_temperature": kernel.inverse_temperature,
    }
    if kernel.energy is None:
        jump = "<site>_jump is E[X given Y=y] of the SmoothedDensity <site>: narrower than X's law"
        return attributes | {"jumps": jump}
    jump = "the jump E[X given Y=y] from each y of the walk: narrower than the law of X"
    return attributes | {"energy": type(kernel.energy).__name__, "x": jump}


def _warn_of_divergence(diverging):
    if not diverging.any():
        return
    chain = int(np.argmax(diverging.any(axis=1)))
    draw = int(np.argmax(diverging[chain]))
    warnings.warn(
        f"{int(diverging.sum())} of {diverging.size} draws are diverging: the walk left the finite"
        f" numbers, first in chain {chain} at draw {draw}. Take a smaller step_size.",
        stacklevel=find_stack_level(),
    )
