"""From draws to ArviZ."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, PRNGKeyArray
from numpyro.infer import MCMC
from numpyro.util import find_stack_level

from numpyro_neb.checks import check_count, check_key, kind
from numpyro_neb.kernels import WalkJumpKernel
from numpyro_neb.normal_means import MixtureFit

_EVENT_DIMS = {2: ("row", "column"), 3: ("channel", "row", "column")}


def to_arviz(
    mcmc: MCMC | MixtureFit,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    *,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Any:
    """The draws of an `MCMC(WalkJumpKernel(...))`, or of a `MixtureFit`, as ArviZ data.

    Group `posterior` holds the walk `y` and the jumps `x`, or the sites and jumps of a model, with
    its data in `observed_data`; `sample_stats` holds `lp` (-phi(y)), `energy`, `step_size` in the
    data's units and `diverging`, and an `acceptance_rate` for Metropolis integrators only;
    `constant_data` holds an energy's `sigma`. Any extra fields given to `MCMC.run` are in
    `sample_stats` too.

    Of a `MixtureFit`, group `posterior` holds independent draws of each `x` given its y, in four
    chains; `observed_data` the `y`, `constant_data` the `sigma` of each.

    Args:
        mcmc: An MCMC object that has run, or what `fit_mixture` returned.
        coords: Coordinates for the dimensions of an event, 0, 1, ... by default.
        dims: Names of the dimensions of each variable. For the `y` and `x` of an energy they are
            `row`, `column` by default for events of rank 2, `channel`, `row`, `column` for rank 3,
            and `event_dim_0`, ... otherwise. The observations of a fit are `observation`.
        num_samples: The number of draws in each chain of a fit, 1,000 by default.
        key: A JAX random key for them, `jax.random.key(0)` by default.

    Returns:
        An `arviz.InferenceData` under ArviZ 0.x, an `xarray.DataTree` under 1.x.

    Raises:
        TypeError: If `mcmc` is neither an MCMC of a `WalkJumpKernel` nor a `MixtureFit`.
        ValueError: If it has not run, or num_samples is not a positive int.

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
    if isinstance(mcmc, MixtureFit):
        key = jax.random.key(0) if key is None else key
        check_key(key)
        count = 1000 if num_samples is None else check_count("num_samples", num_samples)
        return _from_fit(mcmc, coords, dims, mcmc.sample(key, (4, count)))
    if num_samples is not None or key is not None:
        raise TypeError("num_samples and key are for a MixtureFit: an MCMC has its draws")
    check_walk(mcmc, ", or a MixtureFit")
    if mcmc.last_state is None:
        raise ValueError("mcmc must have run: call mcmc.run(key) first")
    warn_of_divergence(np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"]))
    return from_walk(mcmc, coords, dims)


def check_walk(mcmc: MCMC, alternative: str = "") -> WalkJumpKernel:
    """The kernel of an `MCMC(WalkJumpKernel(...))`.

    Raises:
        TypeError: If it is anything else.
    """
    kernel = getattr(mcmc, "sampler", None)
    if not isinstance(mcmc, MCMC) or not isinstance(kernel, WalkJumpKernel):
        raise TypeError(f"mcmc must be an MCMC of a WalkJumpKernel{alternative}, got {kind(mcmc)}")
    return kernel


def from_walk(
    mcmc: MCMC, coords: Mapping[str, Sequence] | None, dims: Mapping[str, Sequence[str]] | None
) -> Any:
    """`to_arviz` of an MCMC that is known to be a walk and to have run, without the warning."""
    import arviz as az

    kernel = check_walk(mcmc)
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


def _from_fit(fit, coords, dims, draws):
    import arviz as az

    shape = fit.energy.event_shape
    names = [
        "observation",
        *_EVENT_DIMS.get(len(shape), [f"event_dim_{i}" for i in range(len(shape))]),
    ]
    named = {"x": names, "y": names, "sigma": names[:1]}
    named |= {k: list(v) for k, v in (dims or {}).items()}
    sizes = {dim: np.arange(n) for dim, n in zip(named["y"], fit.y.shape, strict=True)}
    groups = {
        "posterior": {"x": np.asarray(draws)},
        "observed_data": {"y": fit.y},
        "constant_data": {"sigma": fit.sigma},
    }
    settings = {"coords": sizes | dict(coords or {}), "dims": named}
    # ArviZ 0.x takes the groups by name, 1.x in one mapping.
    from_dict: Any = az.from_dict
    if az.__version__.startswith("0."):
        data = from_dict(**groups, **settings)
    else:
        data = from_dict(groups, **settings)
    data["posterior"].attrs |= _created_by() | {
        "log_likelihood": fit.log_likelihood,
        "duality_gap": fit.duality_gap,
        "x": "X given Y=y under the nonparametric maximum-likelihood estimate",
    }
    return data


def _created_by():
    from numpyro_neb import __version__

    return {"created_by": f"numpyro_neb {__version__}"}


def _attributes(kernel):
    settings = ", ".join(f"{name}={value!r}" for name, value in vars(kernel.integrator).items())
    attributes = _created_by() | {
        "integrator": f"{type(kernel.integrator).__name__}({settings})",
        "steps_per_draw": kernel.num_steps,
        "inverse_temperature": kernel.inverse_temperature,
    }
    if kernel.energy is None:
        jump = "<site>_jump is E[X given Y=y] of the SmoothedDensity <site>: narrower than X's law"
        return attributes | {"jumps": jump}
    jump = "the jump E[X given Y=y] from each y of the walk: narrower than the law of X"
    return attributes | {"energy": type(kernel.energy).__name__, "x": jump}


def warn_of_divergence(diverging: Bool[np.ndarray, "chain draw"]) -> None:
    """Warns with the chain and the draw at which a walk first left the finite numbers."""
    if not diverging.any():
        return
    chain = int(np.argmax(diverging.any(axis=1)))
    draw = int(np.argmax(diverging[chain]))
    warnings.warn(
        f"{int(diverging.sum())} of {diverging.size} draws are diverging: the walk left the finite"
        f" numbers, first in chain {chain} at draw {draw}. Take a smaller step_size.",
        stacklevel=find_stack_level(),
    )
