"""The densities that kernels walk on: that of an energy, or the joint density of a model."""

import abc
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.distributions import (
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
    biject_to,
)
from numpyro.handlers import seed, substitute, trace
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, subsample_plate_sizes
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import initialize_model, log_density, potential_energy
from numpyro.util import is_prng_key

from numpyro_neb._internal.checks import (
    as_array,
    check_finite,
    finite,
    kind,
    require,
    rounded,
)
from numpyro_neb._internal.convolutions import for_compiled_loops
from numpyro_neb.energies.base import AbstractScoreField, initial_position
from numpyro_neb.models.smoothed_density import SmoothedDensity


class AbstractDensity(eqx.Module):
    """The density exp(-potential) that a kernel walks on.

    A position is one array of floats; `record` gives what users see of it.
    """

    @property
    @abc.abstractmethod
    def scale_is_unknown(self) -> bool:
        """Whether a coordinate's unit of length is a guess, which warm-up tunes by default."""

    @abc.abstractmethod
    def potential(self, position: Float[Array, "..."]) -> Float[Array, ""]:
        """Minus the log density, up to a constant."""

    @property
    def has_value(self) -> bool:
        """Whether the potential's value is known, and not only its gradient."""
        return True

    @property
    def score(self) -> Callable[[Float[Array, "..."]], Float[Array, "..."]] | None:
        """What to walk on in place of the potential, if not None: minus its gradient."""
        return None

    @abc.abstractmethod
    def unit(self) -> Float[Array, "..."]:
        """The unit of length of each coordinate; zero for one that is fixed."""

    @abc.abstractmethod
    def reference(self, unit: Float[Array, "..."]) -> Float[Array, ""]:
        """The coordinate unit in which the step is reported."""

    @abc.abstractmethod
    def record(
        self, position: Float[Array, "..."], gradient: Float[Array, "..."]
    ) -> dict[str, Float[Array, "..."]]:
        """The draw at a position.

        Args:
            position: Where the walk is.
            gradient: The gradient of `potential` there.
        """

    @abc.abstractmethod
    def start(self, key: Array) -> Float[Array, "..."]:
        """Random positions to start from, one for each key; `key` may be a single one.

        Raises:
            ValueError: If `init_params` must give them.
        """

    @abc.abstractmethod
    def position(self, init_params: Any, chains: tuple[int, ...]) -> Float[Array, "..."]:
        """The positions at which the chains start, from `init_params`.

        Args:
            init_params: As given to `MCMC.run`.
            chains: The leading dimensions of each value: (num_chains,), or () for one chain.

        Raises:
            ValueError: If they have the wrong structure or shape, or are not finite.
        """

    def check_at(self, position: Float[Array, "..."]) -> None:
        """Raises a ValueError if the density is not a function of the position alone.

        Args:
            position: Where a walk starts.
        """
        del position


@final
class EnergyDensity(AbstractDensity):
    """exp(-phi(y)) on the coordinates that are not frozen.

    Attributes:
        energy: The energy phi, or a score field.
        frozen: True for each coordinate of y that keeps its first value; None for none.
    """

    energy: AbstractScoreField
    frozen: Array | None = None

    @property
    def scale_is_unknown(self) -> bool:
        """False: the unit is sigma."""
        return False

    def potential(self, position: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y)."""
        energy: Any = self.energy if self.has_value else getattr(self.energy, "source", None)
        return energy(position)

    @property
    def has_value(self) -> bool:
        """That of the energy."""
        return self.energy.has_value

    @property
    def score(self) -> Callable[[Float[Array, "*event"]], Float[Array, "*event"]] | None:
        """That of a field without a value, and without an energy behind it."""
        source = self.energy if self.has_value else getattr(self.energy, "source", None)
        return self.energy.score if source is None else None

    def unit(self) -> Float[Array, "..."]:
        """sigma, and zero on frozen coordinates."""
        sigma = self.energy.sigma
        return sigma if self.frozen is None else jnp.where(self.frozen, 0, sigma)

    def reference(self, unit: Float[Array, "..."]) -> Float[Array, ""]:
        """The unit of the reported step: that of the coordinates that move."""
        return jnp.max(unit)

    def record(
        self, position: Float[Array, "*event"], gradient: Float[Array, "*event"]
    ) -> dict[str, Float[Array, "*event"]]:
        """The walk y and its jump, from phi's gradient at y."""
        return {"y": position, "x": position - self.energy.sigma**2 * gradient}

    def start(self, key: Array) -> Float[Array, "..."]:
        """Draws from N(loc, scale^2 + sigma^2), one for each key."""
        what = "init_params must be given if coordinates are frozen: they keep its values"
        require(self.frozen is None, what)
        draw = partial(initial_position, self.energy)
        return draw(key) if is_prng_key(key) else jax.vmap(draw)(key)

    def position(self, init_params: Any, chains: tuple[int, ...]) -> Float[Array, "..."]:
        """`init_params`, checked.

        Raises:
            ValueError: If it is not a finite float array of shape (*chains, *event_shape).
        """
        shape = (*chains, *self.energy.event_shape)
        array = as_array("init_params", init_params)
        fits = array.shape == shape and jnp.issubdtype(array.dtype, jnp.floating)
        got = f"{array.dtype} of shape {array.shape}"
        require(fits, f"init_params must be a float array of shape {shape}, got {got}")
        check_finite("init_params", array, in_jax=True)
        return jnp.asarray(rounded(array, self.energy.sigma.dtype))


class _Site(NamedTuple):
    name: str
    shape: tuple[int, ...]
    smoothed: bool


@final
class ModelDensity(AbstractDensity):
    """The joint density of a NumPyro model over its latent sites, in unconstrained space.

    A position is the sites' unconstrained values in one flat array.

    Args:
        model: The model.
        model_args: Its positional arguments.
        model_kwargs: Its keyword arguments.
        init_strategy: A NumPyro init strategy, for sites that are not a `SmoothedDensity`; one that
            is starts from N(loc, scale^2 + sigma^2), or where `init_to_value` puts it.

    Raises:
        ValueError: If the model has no latent site, a discrete one, or a plate that takes a random
            subset of its rows.
    """

    _model: Callable
    _unseeded: Callable
    _args: tuple
    _kwargs: dict[str, Any]
    _init_strategy: Callable
    _sites: tuple[_Site, ...] = eqx.field(static=True)

    def __init__(
        self,
        model: Callable,
        model_args: tuple,
        model_kwargs: dict[str, Any] | None,
        init_strategy: Callable = init_to_uniform,
    ):
        # With a fixed seed, sites without a given value are the same at every call.
        self._model = seed(model, jax.random.key(0))
        self._unseeded = model
        self._args, self._kwargs = model_args, model_kwargs or {}
        self._init_strategy = partial(_start_of_site, strategy=init_strategy)
        self._sites = self._latent_sites()

    @property
    def scale_is_unknown(self) -> bool:
        """Whether a latent site is not a `SmoothedDensity`."""
        return not all(site.smoothed for site in self._sites)

    def potential(self, position: Float[Array, " d"]) -> Float[Array, ""]:
        """Minus the log joint density, with the transforms' log Jacobians."""
        values = self._unravel(position)
        return jnp.asarray(potential_energy(self._model, self._args, self._kwargs, values))

    def sites(self) -> dict[str, dict[str, Any]]:
        """NumPyro's trace of the model at a first position."""
        return self._trace(substitute_fn=self._init_strategy)

    def jumps(self, values: dict[str, Float[Array, "..."]]) -> dict[str, Float[Array, "..."]]:
        """The jump from each `SmoothedDensity` site, under the name `<site>_jump`.

        Args:
            values: The constrained values of all latent sites; other sites are ignored. If a latent
                one is missing, no jumps are returned: they may depend on it.
        """
        if any(site.name not in values for site in self._sites):
            return {}
        sites = self._trace(data={site.name: values[site.name] for site in self._sites})
        found = {}
        for name in (site.name for site in self._sites if site.smoothed):
            density: Any = smoothed_density(sites[name]["fn"])
            found[f"{name}_jump"] = for_compiled_loops(density.denoise)(values[name])
        return found

    def coordinates(self, name: str) -> np.ndarray:
        """True for the coordinates of a position that belong to a site.

        Args:
            name: The site's name.
        """
        parts = [np.full(prod(site.shape), site.name == name) for site in self._sites]
        return np.concatenate(parts)

    def law(self, name: str, position: Float[Array, " d"]) -> Any:
        """The distribution of a site, where the latent sites are at a position."""
        return self._trace(substitute_fn=self._constrain(position))[name]["fn"]

    def constant_sigmas(self, first: dict[str, dict[str, Any]]) -> dict[str, Float[Array, "..."]]:
        """Each `SmoothedDensity` site's sigma, observed or not, if no latent site changes it.

        Args:
            first: The trace at a position, as from `sites`.
        """

        def sigmas(values):
            sites = self._trace(data=values).items()
            samples = {k: smoothed_density(v["fn"]) for k, v in sites if v["type"] == "sample"}
            return {k: v.energy.sigma for k, v in samples.items() if v is not None}

        values = {site.name: jnp.asarray(first[site.name]["value"]) for site in self._sites}
        found, moved = jax.jvp(sigmas, (values,), (jax.tree.map(jnp.ones_like, values),))
        return {name: sigma for name, sigma in found.items() if not jnp.any(moved[name])}

    def unit(self) -> Float[Array, " d"]:
        """Sigma for the coordinates of a `SmoothedDensity`, one for others."""
        sites = self.sites()
        units = {}
        for site in self._sites:
            density = smoothed_density(sites[site.name]["fn"])
            one = jnp.ones(site.shape)
            units[site.name] = one if density is None else density.sigma * one
        return ravel_pytree(units)[0]

    def reference(self, unit: Float[Array, " d"]) -> Float[Array, ""]:
        """The unit of the reported step: the first `SmoothedDensity`'s sigma, or one."""
        names = [site.name for site in self._sites if site.smoothed]
        values = self._unravel(unit)
        return jnp.ravel(values[names[0]])[0] if names else jnp.ones((), unit.dtype)

    def record(
        self, position: Float[Array, " d"], gradient: Float[Array, " d"]
    ) -> dict[str, Float[Array, "..."]]:
        """The constrained sites, deterministic ones, and the jump of each `SmoothedDensity`."""
        del gradient
        sites = self._trace(substitute_fn=self._constrain(position))
        draw = {site.name: sites[site.name]["value"] for site in self._sites}
        for site in self._sites:
            density = smoothed_density(sites[site.name]["fn"])
            if density is not None:
                jump = for_compiled_loops(density.denoise)  # NumPyro's
                draw[f"{site.name}_jump"] = jump(draw[site.name])
        return draw | {k: v["value"] for k, v in sites.items() if v["type"] == "deterministic"}

    def start(self, key: Array) -> Float[Array, "..."]:
        """Positions of finite density, one for each key."""
        info = initialize_model(
            key,
            self._unseeded,
            init_strategy=self._init_strategy,
            model_args=self._args,
            model_kwargs=self._kwargs,
        )
        return self._flat(info.param_info.z, not is_prng_key(key))

    def position(self, init_params: Any, chains: tuple[int, ...]) -> Float[Array, "..."]:
        """`init_params`, a dict of every latent site's value, as positions.

        Args:
            init_params: Unconstrained values, as NumPyro's kernels take them; constrained ones in
                a block of `Gibbs`, which passes those.
            chains: The leading dimensions of each value.

        Raises:
            ValueError: If a site is missing, has the wrong shape or is not finite.
        """
        names = [site.name for site in self._sites]
        got = list(init_params) if isinstance(init_params, dict) else kind(init_params)
        fits = isinstance(init_params, dict) and set(got) == set(names)
        require(fits, f"init_params must be a dict with a value for each of {names}, got {got}")
        values = {name: finite(f"init_params[{name!r}]", init_params[name]) for name in names}
        if GIBBS_SITES_KWARG in self._kwargs:
            sites = self._trace(substitute_fn=lambda site: values.get(site["name"]))
            values = {k: biject_to(sites[k]["fn"].support).inv(v) for k, v in values.items()}
        for site in self._sites:
            shape, got = (*chains, *site.shape), values[site.name].shape
            wanted = f"init_params[{site.name!r}] must have the unconstrained shape {shape}"
            require(got == shape, f"{wanted}, got {got}")
        return self._flat(values, bool(chains))

    def check_at(self, position: Float[Array, " d"]) -> None:
        """Raises a ValueError if a value in the model, or its density, depends on a random key.

        Such a value would be the same at each draw, as if it were known. The model is computed
        twice, with two keys.
        """
        model = substitute(self._unseeded, substitute_fn=self._constrain(position))
        first, second = (
            {k: v["value"] for k, v in sites.items() if v["type"] != "plate"} | {None: density}
            for density, sites in (
                log_density(seed(model, jax.random.key(i)), self._args, self._kwargs, {})
                for i in range(2)
            )
        )
        for name, value in first.items():
            differs = not jax.tree.all(jax.tree.map(_same, value, second[name]))
            what = "density" if name is None else f"site {name!r}"
            require(
                not differs,
                f"model must have no random value that is not a latent site, got a {what} that"
                " depends on the random key: make it a sample site, or pass it as an argument",
            )

    def _unravel(self, position):
        zeros = {site.name: jnp.zeros(site.shape) for site in self._sites}
        return ravel_pytree(zeros)[1](position)

    def _constrain(self, position):
        """Gives each latent site its constrained value."""
        values = self._unravel(position)

        def constrain(site):
            if site["type"] == "sample" and site["name"] in values:
                return biject_to(site["fn"].support)(values[site["name"]])
            return None

        return constrain

    def _flat(self, values, batched):
        values = {site.name: values[site.name] for site in self._sites}
        flatten = lambda values: ravel_pytree(values)[0]  # noqa: E731
        return jax.vmap(flatten)(values) if batched else flatten(values)

    def _trace(self, **kwargs):
        return trace(substitute(self._model, **kwargs)).get_trace(*self._args, **self._kwargs)

    def _latent_sites(self):
        sites, names = [], set()

        def look():
            found = self._trace(substitute_fn=self._init_strategy)
            for name, (size, subset) in subsample_plate_sizes(found).items():
                raise ValueError(
                    f"model must have no plate with subsample_size below its size, got"
                    f" {name!r} with {subset} of {size}: give the model all rows, or take HMCECS"
                )
            for name, site in found.items():
                names.add(name)
                if site["type"] != "sample" or site["is_observed"]:
                    continue
                require(
                    not site["fn"].support.is_discrete,
                    f"model must have no discrete latent site, got {name!r}: give it to"
                    " DiscreteGibbs in numpyro.infer.Gibbs, next to this kernel",
                )
                shape = biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
                sites.append(_Site(name, shape, smoothed_density(site["fn"]) is not None))

        # Only shapes: nothing in the model is computed.
        jax.eval_shape(look)
        for name in {f"{site.name}_jump" for site in sites if site.smoothed} & names:
            raise ValueError(f"model must have no site {name!r}: that is the jump's name")
        require(sites, "model must have a latent sample site, got none")
        return tuple(sorted(sites))


def smoothed_density(fn: Any) -> SmoothedDensity | None:
    """The SmoothedDensity inside the wrappers of plates, `to_event` and `mask`, or None."""
    while isinstance(fn, (ExpandedDistribution, Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn if isinstance(fn, SmoothedDensity) else None


def _same(first, second):
    """Whether two values are the same, NaN included."""
    return jnp.array_equal(first, second, equal_nan=jnp.issubdtype(jnp.result_type(first), float))


def _start_of_site(site=None, strategy=init_to_uniform):
    """A NumPyro init strategy: a SmoothedDensity from its Gaussian, the rest by `strategy`."""
    if site is None:
        return partial(_start_of_site, strategy=strategy)
    if site["type"] != "sample" or site["is_observed"]:
        return strategy(site)
    density = smoothed_density(site["fn"])
    given = isinstance(strategy, partial) and site["name"] in strategy.keywords.get("values", {})
    if density is None or given:
        return strategy(site)
    kwargs = site["kwargs"]
    shape = kwargs.get("sample_shape", ()) + site["fn"].shape()
    noise = jax.random.normal(kwargs["rng_key"], shape, density.energy.sigma.dtype)
    return density.mean + jnp.sqrt(density.variance) * noise
