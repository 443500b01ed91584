"""Converts draws to ArviZ data."""

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpyro.handlers import seed
from numpyro.infer import MCMC
from numpyro.util import find_stack_level

from numpyro_neb._internal.arviz_data import (
    SupportsArviz,
    add_groups,
    check_variable,
    created_by,
    datasets,
    event_dims,
    from_groups,
)
from numpyro_neb._internal.checks import kind, require
from numpyro_neb._internal.numpyro_mcmc import model_arguments
from numpyro_neb.sampling.bias import measure_bias
from numpyro_neb.sampling.kernel import WalkJumpKernel
from numpyro_neb.sampling.levels import LevelsKernel
from numpyro_neb.sampling.targets import ModelDensity, smoothed_density

__all__ = ["refreshed_bfmi", "to_arviz"]

Draws = Mapping[str, Any]


def to_arviz(
    mcmc: MCMC | SupportsArviz,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    *,
    warmup: tuple[Draws, Draws] | None = None,
    prior: Draws | None = None,
    posterior_predictive: Draws | None = None,
    constant_data: Draws | None = None,
    log_likelihood: bool | None = None,
    num_samples: int | None = None,
    key: PRNGKeyArray | None = None,
    latents: bool = False,
) -> Any:
    """The draws of an MCMC of a `WalkJumpKernel` or `LevelsKernel`, or of a fit, as ArviZ data.

    For a walk on an energy, `posterior` holds the walk `y` and the jumps `x`, and `constant_data`
    its `sigma`, `loc` and `scale` (and `frozen`). For a model, `posterior` holds the sites and
    `<site>_jump`; `observed_data` the observed sites and `log_likelihood` theirs at each draw;
    `constant_data` the numbers and arrays among the model's other arguments, and `<site>_sigma`.
    `sample_stats` holds `lp` (-phi(y)), `energy`, `step_size` in the data's units and `diverging`,
    an `acceptance_rate` for Metropolis integrators only, a `stein_ratio` for tuned ones without a
    Metropolis test, and the extra fields given to `MCMC.run`. In the second case its attributes
    `variance_bias` and `variance_bias_mcse` are the measured relative bias of the variances,
    averaged over the coordinates, and its standard error (see `WalkJumpKernel`'s max_bias).
    Groups `warmup_posterior`, `warmup_sample_stats`, `prior`, `prior_predictive` and
    `posterior_predictive` hold what is given for them; `prior` also holds the jumps.

    From a `MixtureFit`, new draws are taken: its `to_arviz` says what the groups hold.

    Args:
        mcmc: An MCMC object that has run, or what `fit_mixture` returned.
        coords: Coordinates for the dimensions of an event, 0, 1, ... by default.
        dims: Names of the dimensions of each variable. For the `y` and `x` of an energy they are
            `height`, `width` by default for events of rank 2, `channel`, `height`, `width` for
            rank 3, and `event_dim_0`, ... otherwise; for the sites of a model those of their
            plates, and for a covariate that of the plate whose length it has, if there is one. A
            fit's dimension of observations is `observation`. ArviZ 1.x keeps `row` and
            `column` for its own plots.
        warmup: The draws and the extra fields of warm-up. `mcmc.run` discards them, so
            take `(mcmc.get_samples(group_by_chain=True),
            mcmc.get_extra_fields(group_by_chain=True))` after
            `mcmc.warmup(key, collect_warmup=True)` and before `mcmc.run`.
        prior: Draws of the prior, one along the first axis, as from
            `Predictive(model, num_samples=500)`.
        posterior_predictive: One draw for each of the posterior's, as from
            `Predictive(model, mcmc.get_samples())`.
        constant_data: More constants.
        log_likelihood: Whether to compute the log likelihood of each observation at each draw; by
            default for every model. It takes chains x draws x observations floats.
        num_samples: The number of draws in each chain of a fit, 1,000 by default.
        key: A JAX random key for the draws of a fit. Without one they are those of
            `jax.random.key(0)`, the same at each call: pass one for draws that are independent of
            other calls'.
        latents: Whether to keep the sites that a `learned_prior("x", ...)` draws x by, `x_y` and
            `x_eps`, and the jump `x_y_jump`; left out, they don't fill summaries and plots.

    Returns:
        An `arviz.InferenceData` under ArviZ 0.x, an `xarray.DataTree` under 1.x.

    Raises:
        TypeError: If `mcmc` is neither an MCMC of one of the kernels nor a `MixtureFit`, or an
            argument is only for the other of the two.
        ValueError: If it has not run, `warmup` does not fit its chains, num_samples is not a
            positive int, or a site has a slash in its name, as `numpyro.handlers.scope` makes
            without `divider="."`.

    Warns:
        UserWarning: If draws are diverging: with the chain and the first such draw. If the measured
            bias of the variances is beyond max_bias by more than two standard errors, on at least
            100 effective draws.

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
    if isinstance(mcmc, SupportsArviz) and not isinstance(mcmc, type):
        given = {"warmup": warmup, "prior": prior, "posterior_predictive": posterior_predictive}
        given |= {"constant_data": constant_data, "log_likelihood": log_likelihood}
        for name, value in given.items():
            what = f"{name} must be None for a {kind(mcmc)}: it is for an MCMC"
            require(value is None, what, TypeError)
        key = jax.random.key(0) if key is None else key
        count = 1000 if num_samples is None else num_samples
        return mcmc.to_arviz(key, coords, dims, num_samples=count)
    without = num_samples is None and key is None
    require(without, "num_samples and key are for a MixtureFit: an MCMC has its draws", TypeError)
    kernel = check_walk(mcmc, ", or a MixtureFit", has_run=True, levels=True)
    mcmc = cast(MCMC, mcmc)
    diverging = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"])
    held, wanted = diverging.shape[1], mcmc.num_samples // mcmc.thinning
    what = f"{held} draws of a warm-up, where num_samples // thinning is {wanted}"
    require(held == wanted, f"mcmc must have run: it holds {what}")
    warn_of_divergence(diverging)
    data = from_walk(
        mcmc,
        coords,
        dims,
        warmup=warmup,
        prior=prior,
        posterior_predictive=posterior_predictive,
        constant_data=constant_data,
        log_likelihood=log_likelihood is not False,
    )
    _widen_jumps(data["posterior"])
    measure_bias(data, kernel.max_bias)
    for name in () if latents else data["posterior"].attrs.get("latents", ()):
        for group in {"posterior", "prior"} & set(datasets(data)):
            for variable in {name, f"{name}_jump"} & set(data[group].data_vars):
                del data[group][variable]
    return data


def refreshed_bfmi(data: Any) -> Float[np.ndarray, " chain"]:
    r"""The E-BFMI of each chain's law, if the momentum were refreshed at every draw.

    The energy's Bayesian fraction of missing information, E (E_n - E_{n-1})^2 / Var E, tells how
    much of the energy's spread a draw can cross. Under NUTS the momentum is refreshed at every draw
    and changes the energy by the difference of two kinetic energies, of variance d/2 each: the
    numerator is d, and the fraction

        d / (d / 2 + Var log f(y)),   d the number of coordinates that move,

    is a property of the law: 1 for a Gaussian, 2 at most, and below 0.3 if the tails are so
    heavy, or the levels of phi so far apart, that momentum crosses them slowly. An underdamped walk
    keeps part of its momentum from draw to draw, so `arviz.bfmi` of its energies measures the
    friction instead. Compare this number with the NUTS threshold once R-hat and the effective
    sample size of `lp` are good: Var log f(y) is the chain's estimate, and a chain that has not
    mixed has seen too little of it, so the fraction comes out too high.

    Args:
        data: What `to_arviz` or `stream` returned for a walk.

    Returns:
        One number for each chain.

    Raises:
        ValueError: If data is anything else.

    Reference:
        Betancourt, arXiv 1604.00695.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 5)), sigma=0.5)
        >>> mcmc = MCMC(neb.WalkJumpKernel(energy, num_steps=10), num_warmup=10,
        ...             num_samples=5000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> neb.diagnostics.refreshed_bfmi(neb.to_arviz(mcmc)).round(1)
        array([1.])
    """
    num_coordinates, lp = log_densities(data)
    return num_coordinates / (num_coordinates / 2 + lp.var(axis=1, ddof=1))


def log_densities(data: Any) -> tuple[int, Float[np.ndarray, "chain draw"]]:
    """The number of coordinates that move, and the log density at each draw.

    Raises:
        ValueError: If data is not of a walk.
    """
    try:
        stats = data["sample_stats"]
        return int(stats.attrs["num_coordinates"]), np.asarray(stats["lp"].values, float)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(
            "data must be what to_arviz or stream returned for a walk,"
            f" got {type(data).__name__} without sample_stats of one"
        ) from None


def check_walk(
    mcmc: Any, alternative: str = "", *, has_run: bool = False, levels: bool = False
) -> Any:
    """The kernel of an `MCMC(WalkJumpKernel(...))`, or of a `LevelsKernel` if `levels`.

    Raises:
        TypeError: If it is anything else.
        ValueError: If it must have run and has not.
    """
    found, kernel = kind(mcmc), getattr(mcmc, "sampler", None)
    if isinstance(mcmc, MCMC):
        found += f" of {type(kernel).__name__}: arviz.from_numpyro takes it"
    kernels = (WalkJumpKernel, LevelsKernel) if levels else WalkJumpKernel
    if not isinstance(mcmc, MCMC) or not isinstance(kernel, kernels):
        raise TypeError(f"mcmc must be an MCMC of a WalkJumpKernel{alternative}, got {found}")
    ran = mcmc.last_state is not None or not has_run
    require(ran, "mcmc must have run: call mcmc.run(key) first")
    return kernel


def from_walk(
    mcmc: MCMC,
    coords: Mapping[str, Sequence] | None,
    dims: Mapping[str, Sequence[str]] | None,
    *,
    warmup: tuple[Draws, Draws] | None = None,
    prior: Draws | None = None,
    posterior_predictive: Draws | None = None,
    constant_data: Draws | None = None,
    log_likelihood: bool = True,
) -> Any:
    """`to_arviz` for an MCMC known to be a walk that has run, without the warning."""
    import arviz as az

    kernel, density, latents = check_walk(mcmc, levels=True), None, []
    last_state: Any = mcmc.last_state
    args, kwargs = model_arguments(mcmc)
    own = {name: list(names) for name, names in (dims or {}).items()}
    if kernel.model is None:
        named, constants = _of_energy(kernel, last_state.levels, own)
    else:
        # As the kernel sees it: random draws inside the model are the same at every call.
        mcmc = copy.copy(mcmc)
        mcmc.sampler = kernel.wrap_model(lambda model: seed(model, jax.random.key(0)))
        density = ModelDensity(kernel.model, args, kwargs, kernel.init_strategy)
        sites = density.sites()
        for name in sites:
            check_variable(name)
        named, constants = _of_model(kernel.model, args, kwargs, sites, own)
        sigmas = density.constant_sigmas(sites).items()
        constants |= {f"{name}_sigma": np.asarray(sigma) for name, sigma in sigmas}
        latents = [name for name, site in sites.items() if "latent_of" in site.get("infer", {})]
    coords = dict(coords or {})
    data = az.from_numpyro(
        mcmc,
        constant_data=constants | dict(constant_data or {}),
        posterior_predictive=None if posterior_predictive is None else dict(posterior_predictive),
        log_likelihood=log_likelihood and kernel.model is not None,
        coords=coords,
        dims=named,
    )
    groups = _warmup_groups(warmup, mcmc.num_chains)
    if prior is not None:
        groups |= _prior_groups(prior, density, set(data["posterior"].data_vars))
    if groups:
        add_groups(data, from_groups(groups, coords, named))
    data["posterior"].attrs |= _attributes(kernel, density)
    if latents:
        data["posterior"].attrs["latents"] = latents
    data["sample_stats"].attrs["num_coordinates"] = _num_coordinates(mcmc)
    return data


def _widen_jumps(posterior):
    """Jumps in one mode differ by a few roundings of float32, too few for bins in that dtype."""
    for name in posterior.data_vars:
        if name == "x" or str(name).endswith("_jump"):
            posterior[name] = posterior[name].astype(float)


def _of_energy(kernel, levels, own):
    """The dimension names and the constants of a walk on an energy."""
    energy, shape = kernel.lowest, kernel.lowest.event_shape
    constants = {name: np.asarray(getattr(energy, name)) for name in ("sigma", "loc", "scale")}
    if kernel.frozen is not None:
        constants["frozen"] = np.asarray(kernel.frozen)
    names = event_dims(shape)
    named = {k: list(names) for k, v in constants.items() if np.shape(v) == shape}
    if levels:
        constants["sigmas"] = np.asarray(levels.sigma)
        named |= {"sigmas": ["chain", "level"][-np.ndim(levels.sigma) :]}
    return named | {"y": list(names), "x": list(names)} | own, constants


def _of_model(model, args, kwargs, sites, own):
    """The dimension names and the constants of a walk on a model."""
    sites = {k: v for k, v in sites.items() if v["type"] in ("sample", "deterministic")}
    sampled = {k: v for k, v in sites.items() if v["type"] == "sample"}
    observed = {name: site["value"] for name, site in sampled.items() if site["is_observed"]}
    constants = _numeric_arguments(model, args, kwargs, observed)
    named = _argument_dims(constants, sites)
    named |= {name: _site_dims(site) for name, site in sites.items()} | own
    for name, site in sampled.items():
        if smoothed_density(site["fn"]) is not None and not site["is_observed"]:
            # A site and its jump have the same dimensions.
            rank = jnp.ndim(site["value"])
            names = named[name] + [f"{name}_dim_{i}" for i in range(rank - len(named[name]))]
            named |= {name: names, f"{name}_jump": own.get(f"{name}_jump", list(names))}
    return named, constants


def _argument_dims(constants, sites):
    """A covariate has an entry for each member of a plate, if just one plate has its length."""
    plates = {f.name: f.size for site in sites.values() for f in site["cond_indep_stack"]}
    named = {}
    for name, value in constants.items():
        fitting = [plate for plate, size in plates.items() if value.shape[:1] == (size,)]
        if len(fitting) == 1:
            named[name] = fitting + [f"{name}_dim_{i}" for i in range(1, value.ndim)]
    return named


def _site_dims(site):
    """A site's named dimensions: those of its plates, and of its event if given."""
    frames, shape = site["cond_indep_stack"], jnp.shape(site["value"])
    if site["type"] == "sample":
        batch = len(shape) - site["fn"].event_dim
    else:  # The rank of its event is not known: the plates come first, if the sizes match.
        batch = max([-frame.dim for frame in frames], default=0)
        if any(batch > len(shape) or shape[batch + f.dim] != f.size for f in frames):
            return []
    names = [f"{site['name']}_dim_{i}" for i in range(batch)] if frames else []
    for frame in frames:
        names[batch + frame.dim] = frame.name
    return names + list(site.get("infer", {}).get("event_dims", []))


def _numeric_arguments(model, args, kwargs, observed):
    """The numbers and arrays among the model's arguments that are not observed, by name."""
    signature = inspect.signature(model)
    arguments = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            arguments |= {f"{name}_{i}": one for i, one in enumerate(value)}
        else:
            arguments[name] = value

    def is_observed(name, value):
        # By name or identity, not by values, which a covariate may share.
        same = name in observed and jnp.shape(observed[name]) == jnp.shape(value)
        return same or any(value is seen for seen in observed.values())

    return {
        name: np.asarray(value)
        for name, value in arguments.items()
        if _is_numeric(value) and not is_observed(name, value)
    }


def _is_numeric(value):
    if not isinstance(value, bool | int | float | np.ndarray | np.generic | Array):
        return False
    dtype = jnp.result_type(value) if isinstance(value, Array) else np.asarray(value).dtype
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)


def _warmup_groups(warmup, num_chains):
    if warmup is None:
        return {}
    form = "(mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True))"
    text = f"warmup must be {form}, as after mcmc.warmup(key, collect_warmup=True)"
    two = isinstance(warmup, tuple) and len(warmup) == 2
    require(two, f"{text}, got {type(warmup).__name__}")
    groups: dict[str, Any] = dict(
        zip(("warmup_posterior", "warmup_sample_stats"), warmup, strict=True)
    )
    for name, group in groups.items():
        require(isinstance(group, Mapping), f"{text}, got a {type(group).__name__} in it")
        # Extra fields may be trees, which ArviZ cannot hold.
        groups[name] = {k: np.asarray(v) for k, v in group.items() if hasattr(v, "shape")}
        for variable, values in groups[name].items():
            got = f"of {num_chains} chains, got {variable!r} of shape {values.shape}"
            require(values.shape[:1] == (num_chains,), f"{text}: {got}")
    return groups


def _prior_groups(prior, density, posterior):
    """The posterior's variables and their jumps in one group, all others in another."""
    prior = {name: jnp.asarray(values) for name, values in prior.items()}
    if density is not None:
        prior |= jax.lax.map(density.jumps, prior)
    draws = {name: np.asarray(values)[None] for name, values in prior.items()}
    groups = {"prior": {k: v for k, v in draws.items() if k in posterior}}
    groups["prior_predictive"] = {k: v for k, v in draws.items() if k not in posterior}
    return {name: group for name, group in groups.items() if group}


def _num_coordinates(mcmc):
    """The number of coordinates of a chain that move."""
    state = mcmc.last_state
    if isinstance(mcmc.sampler, LevelsKernel):
        return state.position.shape[-1]
    position, unit = state.walk.position, state.unit
    if mcmc.num_chains > 1:
        position, unit = position[0], unit[0]
    if state.levels:
        position = position[0]
    return int(np.sum(np.broadcast_to(np.asarray(unit) > 0, np.shape(position))))


def _attributes(kernel, density):
    integrator = kernel.integrator or kernel.integrator_on(density)
    settings = ", ".join(f"{name}={value!r}" for name, value in vars(integrator).items())
    attributes = created_by() | {
        "integrator": f"{type(integrator).__name__}({settings})",
        "steps_per_draw": kernel.num_steps,
        "inverse_temperature": kernel.inverse_temperature,
    }
    if kernel.energy is None:
        jump = "<site>_jump is E[X given Y=y] of the SmoothedDensity <site>: narrower than X's law"
        return attributes | {"jumps": jump}
    jump = "the jump E[X given Y=y] from each y of the walk: narrower than the law of X"
    return attributes | {"energy": type(kernel.energy).__name__, "x": jump}


def warn_of_divergence(diverging: Bool[np.ndarray, "chain draw"]) -> None:
    """Warns with the chain and the draw at which a walk first became NaN or infinite."""
    if not diverging.any():
        return
    chain = int(np.argmax(diverging.any(axis=1)))
    draw = int(np.argmax(diverging[chain]))
    warnings.warn(
        f"{int(diverging.sum())} of {diverging.size} draws are diverging: the walk became NaN"
        f" or infinite, first in chain {chain} at draw {draw}. Take a smaller step_size.",
        stacklevel=find_stack_level(),
    )
