"""Long runs: an MCMC run in pieces, its draws written as they come, its state in a file."""

import functools
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, UInt32
from numpyro.infer import MCMC
from tqdm.auto import tqdm

from numpyro_neb._internal.checks import check_count, check_key, check_type, require
from numpyro_neb._internal.fingerprints import fingerprint
from numpyro_neb._internal.numpyro_mcmc import collected_fields, model_arguments, set_run
from numpyro_neb.diagnostics import check_walk, from_walk, warn_of_divergence
from numpyro_neb.files.energy_file import sha256_of
from numpyro_neb.sampling.bias import measure_bias
from numpyro_neb.sampling.kernel import WalkJumpKernel
from numpyro_neb.sampling.targets import ModelDensity
from numpyro_neb.streaming.states import raw, read_state, write_state
from numpyro_neb.streaming.store import Store, check_names
from numpyro_neb.training.devices import digest


def stream(
    mcmc: MCMC,
    key: PRNGKeyArray | UInt32[Array, "..."],
    store: str | os.PathLike,
    *,
    draws_per_write: int = 100,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
    init_params: Any = None,
    extra_fields: Sequence[str] = (),
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    log_likelihood: bool = True,
    progress_bar: bool = True,
) -> Any:
    """Runs an MCMC and writes its draws to a Zarr store as they come.

    After a stop at any moment, by Ctrl-C or `kill -9`, the same call resumes after the last
    complete write, with the draws of an uninterrupted `mcmc.run(key)`, bit for bit. The store can
    be opened at any moment, as `xarray.open_datatree(store, engine="zarr")` or, under ArviZ 1.x,
    `arviz.from_zarr(store)`, and holds only whole draws. Memory holds `draws_per_write` draws, and
    the loop is compiled once; a last, shorter piece is compiled separately. To extend a complete
    store, call with an MCMC of more `num_samples`.

    The groups are those of `to_arviz`. Warm-up is not written: after a stop during it, the call
    starts from the beginning. Two processes must not write to one store at a time. A store
    survives the end of the process, but maybe not a power failure.

    Args:
        mcmc: An `MCMC(WalkJumpKernel(...))`; it is not modified.
        key: As for `mcmc.run`: a JAX random key, or one for each chain.
        store: The folder to write, say `draws.zarr`.
        draws_per_write: Draws of each chain in a write and in a chunk of the store.
        model_args: The arguments of a kernel's model.
        model_kwargs: Its keyword arguments.
        init_params: As for `mcmc.run`: where the chains start.
        extra_fields: More fields of the state to record, as for `mcmc.run`.
        coords: As for `to_arviz`.
        dims: As for `to_arviz`.
        log_likelihood: As for `to_arviz`.
        progress_bar: Whether to show a tqdm bar over all draws.

    Returns:
        The store, opened but not read: an `arviz.InferenceData` under ArviZ 0.x, an
        `xarray.DataTree` under 1.x.

    Raises:
        TypeError: If `mcmc` is not an MCMC of a `WalkJumpKernel`, key not a random key, or store
            not a path.
        ValueError: If `draws_per_write` is not a positive int; if a site or a dimension has a name
            that no store can hold, such as the "a/y" of `numpyro.handlers.scope` without
            `divider="."`; if `store` exists and is not a
            stream, holds more draws than are asked for, or is from another run (the message says
            what differs); or if its state is damaged.
        ModuleNotFoundError: Without zarr: `pip install 'numpyro-neb[stream]'`.

    Warns:
        UserWarning: If draws are diverging; it names the chain and the first such draw. If the
            measured bias of the variances is beyond max_bias, as for `to_arviz`.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), sigma=0.5)
        >>> mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=10, num_samples=200)
        >>> store = tempfile.mkdtemp() + "/draws.zarr"
        >>> data = neb.stream(mcmc, jax.random.key(0), store, progress_bar=False)
        >>> data.posterior["x"].shape
        (1, 200, 2)
    """
    check_walk(mcmc)
    check_key(key, mcmc.num_chains)
    check_type("store", store, str | os.PathLike, "a path")
    draws_per_write = check_count("draws_per_write", draws_per_write)
    run = _Run(mcmc, tuple(model_args), dict(model_kwargs or {}), tuple(extra_fields))
    settings = run.settings(init_params=init_params) | {
        "key": digest(raw(key)),
        "init_params": _digest(init_params),
        "num_samples_mod_thinning": mcmc.num_samples % mcmc.thinning,
        "draws_per_write": draws_per_write,
        "log_likelihood": log_likelihood,
    }
    target = Store(Path(store), settings)
    total, done = mcmc.num_samples // mcmc.thinning, target.num_draws()
    require(done <= total, f"store {store} holds {done} draws, more than the {total} asked for")
    if done == 0:
        check_names(run.names(), dims)
    state = target.state(done, run.template()) if done else None
    bar = tqdm(total=total, initial=done, desc="stream", unit="draw", disable=not progress_bar)
    with bar:
        try:
            if state is None:
                state = run.warmed_up(key, init_params)
            while done < total:
                # A piece ends where a chunk does.
                stop = min(total, (done // draws_per_write + 1) * draws_per_write)
                piece, state = run.piece(state, stop - done, first=done == 0)
                data = from_walk(piece, coords, dims, log_likelihood=log_likelihood)
                target.write(data, done, stop, state)
                bar.update(stop - done)
                bar.set_postfix(diverging=int(np.sum(state.num_diverging)))
                done = stop
        except KeyboardInterrupt:
            text = f"stream was stopped after {done:,} of {total:,} draws; the same call"
            kept = f"resumes from those in {store}." if done else "starts over."
            bar.write(f"{text} {kept}", file=sys.stderr)
            raise
    data = target.opened()
    warn_of_divergence(data["sample_stats"]["diverging"].values)
    measure_bias(data, run.kernel.max_bias)
    return data


def save_state(path: str | os.PathLike, mcmc: MCMC) -> None:
    """Writes `mcmc.last_state` to a safetensors file: `load_state` resumes from it.

    Args:
        path: The file to write; an existing one is replaced once the new one is on disk.
        mcmc: An `MCMC(WalkJumpKernel(...))` that has run.

    Raises:
        TypeError: If `mcmc` is not an MCMC of a `WalkJumpKernel`.
        ValueError: If it has not run.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> kernel = neb.WalkJumpKernel(neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0))
        >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> path = tempfile.mkdtemp() + "/state.safetensors"
        >>> neb.streaming.save_state(path, mcmc)
        >>> neb.streaming.load_state(path, mcmc)  # in another process, say
        >>> mcmc.run(mcmc.post_warmup_state.rng_key)  # the next 100 draws
    """
    check_type("path", path, str | os.PathLike, "a path")
    check_walk(mcmc, has_run=True)
    run = _Run(mcmc, *model_arguments(mcmc), ())
    write_state(Path(path), mcmc.last_state, run.settings())


def load_state(
    path: str | os.PathLike,
    mcmc: MCMC,
    *,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Sets `mcmc.post_warmup_state` to what `save_state` wrote, so that the run resumes.

    `mcmc.run(mcmc.post_warmup_state.rng_key)` then gives the draws that the saved run would have
    given next, bit for bit.

    Args:
        path: The file.
        mcmc: An MCMC like the saved one; `num_samples` may differ.
        model_args: The arguments of a kernel's model.
        model_kwargs: Its keyword arguments.

    Raises:
        TypeError: If `mcmc` is not an MCMC of a `WalkJumpKernel`.
        ValueError: If the file is truncated, damaged, foreign or of a newer format, or is from
            another run (the message says what differs).
        FileNotFoundError: If there is no such file.
    """
    check_type("path", path, str | os.PathLike, "a path")
    check_walk(mcmc)
    run = _Run(mcmc, tuple(model_args), dict(model_kwargs or {}), ())
    mcmc.post_warmup_state = read_state(Path(path), run.template(), run.settings())


class _Run:
    """An MCMC run in pieces."""

    def __init__(
        self, mcmc: MCMC, model_args: tuple, model_kwargs: dict[str, Any], extra_fields: tuple
    ):
        self.mcmc, self.kernel = mcmc, check_walk(mcmc)
        self.args, self.kwargs, self.extra_fields = model_args, model_kwargs, extra_fields
        # NumPyro recompiles its loop at each run; traced as a whole it is compiled once.
        self._advance = jax.jit(self._run, static_argnums=1)

    def settings(self, **more: Any) -> dict[str, Any]:
        """What the draws depend on, as JSON."""
        mcmc, arguments = self.mcmc, (self.args, self.kwargs)
        method = mcmc.chain_method
        things = vars(self.kernel) | {"postprocess_fn": mcmc.postprocess_fn}
        things |= {"model arguments": self._named_arguments()} | more
        return self._kernel_settings() | {
            "identity": fingerprint(things),
            "model_args": _digest(arguments),
            "num_warmup": mcmc.num_warmup,
            "num_chains": mcmc.num_chains,
            "thinning": mcmc.thinning,
            "chain_method": method if isinstance(method, str) else getattr(method, "__name__", "?"),
            "extra_fields": list(self.extra_fields),
        }

    def names(self) -> list[str]:
        """The names of the model's sites and plates."""
        if self.kernel.model is None:
            return []
        density = ModelDensity(self.kernel.model, self.args, self.kwargs, self.kernel.init_strategy)
        return list(density.sites())

    def template(self) -> PyTree:
        """The structure and the dtypes of a state; the shapes of some arrays may differ."""
        kernel = WalkJumpKernel(
            **{name: value for name, value in vars(self.kernel).items() if name != "frozen"}
        )
        init = functools.partial(
            kernel.init,
            num_warmup=self.mcmc.num_warmup,
            init_params=None,
            model_args=self.args,
            model_kwargs=self.kwargs,
        )
        return jax.eval_shape(init, jax.random.key(0))

    def warmed_up(self, key: Array, init_params: Any) -> PyTree:
        """The state after warm-up."""
        warm = self._like(self.mcmc.thinning)
        warm.warmup(key, *self.args, init_params=init_params, **self.kwargs)
        return jax.device_get(warm.last_state)

    def piece(self, state: PyTree, num_draws: int, first: bool) -> tuple[MCMC, PyTree]:
        """An MCMC that has run for `num_draws` draws, and the state after them.

        NumPyro drops the first `num_samples % thinning` states, so the first piece takes that many
        more.
        """
        thinning = self.mcmc.thinning
        left_out = self.mcmc.num_samples % thinning if first else 0
        piece = self._like(num_draws * thinning + left_out)
        draws, after = jax.device_get(self._advance(state, piece.num_samples))
        # Not the MCMC that ran: when traced, `run` leaves tracers behind in it.
        set_run(piece, draws, after, self.args, self.kwargs)
        return piece, after

    def _run(self, state, num_samples):
        traced = self._like(num_samples)
        traced.post_warmup_state = state
        traced.run(state.rng_key, *self.args, extra_fields=self.extra_fields, **self.kwargs)
        return collected_fields(traced), traced.last_state

    def _kernel_settings(self):
        kernel = self.kernel
        model: Any = kernel.model
        energy, frozen = kernel.energy, kernel.frozen
        integrator = kernel.integrator
        if integrator is None:  # the default depends on the model
            density = ModelDensity(model, self.args, self.kwargs, kernel.init_strategy)
            integrator = kernel.integrator_on(density)
        name = lambda value: type(value).__name__  # noqa: E731
        settings = {
            "energy": None if energy is None else f"{name(energy)} {sha256_of(energy)[:16]}",
            "model": None if model is None else getattr(model, "__qualname__", name(model)),
            "frozen": None if frozen is None else digest(np.asarray(frozen)),
            "integrator": f"{name(integrator)} {vars(integrator)}",
        }
        names = ("num_steps", "inverse_temperature", "max_score", "adapt_step_size")
        names += ("adapt_mass_matrix", "target_accept_prob", "max_bias")
        names += ("sigmas", "num_levels", "sigma", "max_sigma")
        return settings | {name: getattr(kernel, name) for name in names}

    def _named_arguments(self):
        """The model's arguments by name, where its signature tells the names."""
        model: Any = self.kernel.model
        try:
            bound = inspect.signature(model).bind(*self.args, **self.kwargs)
        except (TypeError, ValueError):
            return dict(enumerate(self.args)) | self.kwargs
        return dict(bound.arguments)

    def _like(self, num_samples):
        mcmc = self.mcmc
        return MCMC(
            mcmc.sampler,
            num_warmup=mcmc.num_warmup,
            num_samples=num_samples,
            num_chains=mcmc.num_chains,
            thinning=mcmc.thinning,
            postprocess_fn=mcmc.postprocess_fn,
            chain_method=mcmc.chain_method,
            progress_bar=False,
        )


def _digest(tree):
    """The SHA-256 of arrays, as version 0.1.0 wrote it; None for objects and for no array."""
    try:
        leaves = jax.tree.leaves(tree)
        told = leaves and not any(np.asarray(leaf).dtype.hasobject for leaf in leaves)
        return digest(tree) if told else None
    except Exception:  # whatever an object's class raises
        return None
