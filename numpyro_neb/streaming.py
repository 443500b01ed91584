"""Long runs: draws written to a Zarr store as they come, and a sampler's state in a file.

A store is an ordinary Zarr hierarchy, format 3, with a file of the sampler's state beside the
root's metadata. Three facts make it whole at every moment, also after `kill -9`:

- draws are written beyond the end that readers see, in chunks of their own, and Zarr replaces a
  file by renaming a new one;
- the root's consolidated metadata, one small file, says how many draws there are. It is replaced
  last. (Each group has its own for who opens it alone.)
- the sampler's state is written before that, under a name with the number of draws.

What a killed process wrote beyond the end is written again, with the same bits.
"""

import functools
import json
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, UInt32
from numpyro.infer import MCMC
from tqdm.auto import tqdm

from numpyro_neb.checks import check_count, check_key, check_path, short
from numpyro_neb.devices import digest
from numpyro_neb.diagnostics import check_walk, from_walk, warn_of_divergence
from numpyro_neb.files import check_plain
from numpyro_neb.kernels import WalkJumpKernel
from numpyro_neb.serialization import fingerprint
from numpyro_neb.states import raw, read_state, write_state

_FORMAT = "numpyro_neb stream"
_VERSION = 1
_PER_DRAW = ("posterior", "sample_stats", "log_likelihood")
# What Zarr writes numbers and strings with. Of other codecs, one could run code.
_CODECS = {"bytes", "zstd", "vlen-utf8"}
_FORMAT_2 = {".zarray", ".zgroup", ".zattrs", ".zmetadata"}


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

    Stopped at any moment, by Ctrl-C or `kill -9`, the same call goes on after the last whole write,
    with the draws that an undisturbed run gives, bit for bit: those of `mcmc.run(key)`. The store
    opens at any moment, as `xarray.open_datatree(store, engine="zarr")` or, under ArviZ 1.x,
    `arviz.from_zarr(store)`, and holds whole draws only. Memory holds `draws_per_write` draws, and
    the loop is compiled once; a last, shorter piece is compiled for itself. To go on with a store
    that is complete, call with an MCMC of more `num_samples`.

    The groups are those of `to_arviz`. Warm-up is not written: stopped in it, the call starts anew.
    Two processes must not write to one store at a time, and a store is safe from the end of the
    process, not from that of the machine's power.

    Args:
        mcmc: An `MCMC(WalkJumpKernel(...))`; itself it stays as it is.
        key: What `mcmc.run` takes: a JAX random key, or one for each chain.
        store: The folder to write, `draws.zarr` say.
        draws_per_write: Draws of each chain in a write and in a chunk of the store.
        model_args: The arguments of a kernel's model.
        model_kwargs: Its keyword arguments.
        init_params: What `mcmc.run` takes: where the chains start.
        extra_fields: More fields of the state to record, as for `mcmc.run`.
        coords: As for `to_arviz`.
        dims: As for `to_arviz`.
        log_likelihood: As for `to_arviz`.
        progress_bar: Whether to show a tqdm bar over all draws.

    Returns:
        The store, opened but not read: an `arviz.InferenceData` under ArviZ 0.x, an
        `xarray.DataTree` under 1.x.

    Raises:
        TypeError: If `mcmc` is no MCMC of a `WalkJumpKernel`, key no random key, or store no path.
        ValueError: If `draws_per_write` is no positive int; if `store` is there and no stream,
            holds more draws than are asked for, or another run's, with what differs; or if its
            state is damaged.
        ModuleNotFoundError: Without zarr: `pip install 'numpyro-neb[stream]'`.

    Warns:
        UserWarning: If draws are diverging: with the chain and the first such draw.

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
    check_path("store", store)
    draws_per_write = check_count("draws_per_write", draws_per_write)
    run = _Run(mcmc, tuple(model_args), dict(model_kwargs or {}), tuple(extra_fields))
    settings = run.settings() | {
        "key": digest(raw(key)),
        "init_params": None if init_params is None else digest(init_params),
        "num_samples % thinning": mcmc.num_samples % mcmc.thinning,
        "draws_per_write": draws_per_write,
        "log_likelihood": log_likelihood,
    }
    target = _Store(Path(store), settings)
    total, done = mcmc.num_samples // mcmc.thinning, target.num_draws()
    if done > total:
        raise ValueError(f"store {store} holds {done} draws, more than the {total} asked for")
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
            text = f"stream was stopped after {done:,} of {total:,} draws; the same call goes on"
            kept = f"from those in {store}." if done else "from the start."
            bar.write(f"{text} {kept}", file=sys.stderr)
            raise
    data = target.opened()
    warn_of_divergence(data["sample_stats"]["diverging"].values)
    return data


def save_state(path: str | os.PathLike, mcmc: MCMC) -> None:
    """Writes `mcmc.last_state` to a safetensors file: `load_state` goes on from it.

    Args:
        path: Where to; an existing file is replaced once the new one is on disk.
        mcmc: An `MCMC(WalkJumpKernel(...))` that has run.

    Raises:
        TypeError: If `mcmc` is no MCMC of a `WalkJumpKernel`.
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
    check_path("path", path)
    check_walk(mcmc)
    if mcmc.last_state is None:
        raise ValueError("mcmc must have run: call mcmc.run(key) first")
    # What NumPyro itself keeps of a run's arguments.
    run = _Run(mcmc, mcmc._args, mcmc._kwargs, ())
    write_state(Path(path), mcmc.last_state, run.settings())


def load_state(
    path: str | os.PathLike,
    mcmc: MCMC,
    *,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Sets `mcmc.post_warmup_state` to what `save_state` wrote, so that the run goes on.

    `mcmc.run(mcmc.post_warmup_state.rng_key)` then gives the draws that the saved run would have
    given next, bit for bit.

    Args:
        path: The file.
        mcmc: An MCMC like the saved one; `num_samples` may differ.
        model_args: The arguments of a kernel's model.
        model_kwargs: Its keyword arguments.

    Raises:
        TypeError: If `mcmc` is no MCMC of a `WalkJumpKernel`.
        ValueError: If the file is truncated, damaged, foreign or of a newer format, or the state of
            another run, with what differs.
        FileNotFoundError: If there is no such file.
    """
    check_path("path", path)
    check_walk(mcmc)
    run = _Run(mcmc, tuple(model_args), dict(model_kwargs or {}), ())
    mcmc.post_warmup_state = read_state(Path(path), run.template(), run.settings())


class _Run:
    """An MCMC taken in pieces."""

    def __init__(
        self, mcmc: MCMC, model_args: tuple, model_kwargs: dict[str, Any], extra_fields: tuple
    ):
        self.mcmc, self.kernel = mcmc, check_walk(mcmc)
        self.args, self.kwargs, self.extra_fields = model_args, model_kwargs, extra_fields
        # NumPyro compiles its loop anew at each run; traced as a whole it is compiled once.
        self._advance = jax.jit(self._run, static_argnums=1)

    def settings(self) -> dict[str, Any]:
        """What the draws depend on, as JSON."""
        mcmc, arguments = self.mcmc, (self.args, self.kwargs)
        method = mcmc.chain_method
        return _describe_kernel(self.kernel) | {
            "model arguments": digest(arguments) if jax.tree.leaves(arguments) else None,
            "num_warmup": mcmc.num_warmup,
            "num_chains": mcmc.num_chains,
            "thinning": mcmc.thinning,
            "chain_method": method if isinstance(method, str) else getattr(method, "__name__", "?"),
            "extra_fields": list(self.extra_fields),
        }

    def template(self) -> PyTree:
        """The structure and the dtypes of a state; the shapes of some arrays may be others."""
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
        """An MCMC that has run for so many draws, and the state after them.

        NumPyro leaves out the first `num_samples % thinning` states, which is why the first piece
        is told from the others.
        """
        thinning = self.mcmc.thinning
        left_out = self.mcmc.num_samples % thinning if first else 0
        piece = self._like(num_draws * thinning + left_out)
        draws, after = jax.device_get(self._advance(state, piece.num_samples))
        # ArviZ reads them from here; `run` leaves tracers behind in an MCMC that is traced.
        piece._states, piece._args, piece._kwargs = draws, self.args, self.kwargs
        piece._last_state = after
        return piece, after

    def _run(self, state, num_samples):
        traced = self._like(num_samples)
        traced.post_warmup_state = state
        traced.run(state.rng_key, *self.args, extra_fields=self.extra_fields, **self.kwargs)
        return traced._states, traced.last_state

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


class _Store:
    """The Zarr store of a stream, in a folder."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings

    def num_draws(self) -> int:
        """The number of draws in the store; zero where there is none.

        Raises:
            ValueError: If something else is there.
        """
        zarr = _zarr()
        if not self.path.exists():
            return 0
        check_plain(self.path)
        foreign = f"store must be a stream of numpyro_neb or not there, got {self.path}"
        try:
            root = zarr.open_consolidated(str(self.path), mode="r", zarr_format=3)
            found, version = root.attrs.get("format"), root.attrs.get("version")
            _, num_draws = root["sample_stats/diverging"].shape
        except Exception:  # zarr raises of every kind, whatever is there
            raise ValueError(foreign) from None
        if found != _FORMAT:
            raise ValueError(foreign)
        if version != _VERSION:
            raise ValueError(
                f"store {self.path} has format version {short(version)}, and this numpyro_neb"
                f" reads {_VERSION}: another numpyro_neb wrote it"
            )
        return num_draws

    def state(self, num_draws: int, template: PyTree) -> PyTree:
        """The sampler's state after so many draws, if they are those of the same run."""
        path = _state_path(self.path, num_draws)
        if not path.exists():
            raise ValueError(f"store {self.path} is damaged: {path.name} is missing")
        state = read_state(path, template, self.settings)
        try:
            self._check_arrays()
        except Exception as error:  # zarr raises of every kind
            raise ValueError(f"store {self.path} is damaged: {error}") from error
        return state

    def write(self, data: Any, start: int, stop: int, state: PyTree) -> None:
        """Writes the draws from `start` to `stop`, and the state after them."""
        # The first draws go to another folder, which is renamed: a store is never there in part.
        path = self.path if start else self.path.with_name(f".{self.path.name}.tmp")
        if start:
            for group in _groups(path):
                _append(path / group, data[group], start, stop)
        else:
            if path.is_symlink():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
            self._create(path, data)
        write_state(_state_path(path, stop), state, self.settings)
        _commit(path)
        if not start:
            path.rename(self.path)
        for old in set(self.path.glob(".state-*")) - {_state_path(self.path, stop)}:
            old.unlink()

    def opened(self) -> Any:
        """The store as ArviZ data, to be read where it is looked at."""
        import arviz as az
        import xarray as xr

        tree: Any = xr.open_datatree(str(self.path), engine="zarr", chunks=None, zarr_format=3)
        if az.__version__.startswith("0."):
            return az.from_datatree(tree)
        return tree

    def _check_arrays(self):
        """Raises an error where an array is none that `write` makes.

        A store may be somebody else's. No codec may run code, and no chunk be larger than its
        array, or the draws of one write: it would be held in memory. Zarr reads an array's metadata
        now from its own file, now from its group's or the root's: all of them are looked at.
        """
        for path in self.path.rglob("*"):
            if path.name in _FORMAT_2:
                raise ValueError(f"{path} is of Zarr's format 2")
            if path.name == "zarr.json":
                self._check_node(path.parent, json.loads(path.read_bytes()))

    def _check_node(self, path, node):
        inner = (node.get("consolidated_metadata") or {}).get("metadata", {})
        for name, child in inner.items():
            self._check_node(path / name, child)
        if node["zarr_format"] != 3 or node.get("storage_transformers"):
            raise ValueError(f"{path} is not plain Zarr of format 3")
        if node["node_type"] != "array":
            return
        codecs = {codec["name"] for codec in node["codecs"]}
        if not codecs <= _CODECS:
            raise ValueError(f"{path} is encoded by {short(sorted(codecs - _CODECS))}")
        shape, chunk = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
        dims = node.get("dimension_names") or [None] * len(shape)
        if not len(dims) == len(shape) == len(chunk):
            raise ValueError(f"{path} of shape {short(shape)} has chunks of {short(chunk)}")
        for dim, size, length in zip(dims, shape, chunk, strict=True):
            if dim == "chain" and size != self.settings["num_chains"]:
                raise ValueError(f"{path} is of {size} chains")
            if length > (self.settings["draws_per_write"] if dim == "draw" else max(size, 1)):
                raise ValueError(f"{path} of shape {short(shape)} has chunks of {short(chunk)}")

    def _create(self, path, data):
        attributes = {"format": _FORMAT, "version": _VERSION}
        _zarr().create_group(str(path), zarr_format=3, attributes=attributes)
        groups: Any = data.groups() if callable(data.groups) else data.groups
        for group in (name.strip("/") for name in groups):
            if not group:
                continue
            content = data[group]
            # A Dataset under ArviZ 0.x, a DataTree under 1.x.
            content = content.to_dataset() if hasattr(content, "to_dataset") else content
            chunks = {
                name: {"chunks": self._chunk(variable)}
                for name, variable in content.variables.items()
                if "draw" in variable.dims
            }
            content.to_zarr(
                str(path), group=group, encoding=chunks, zarr_format=3, consolidated=False
            )

    def _chunk(self, variable):
        every = self.settings["draws_per_write"]
        sizes = zip(variable.dims, variable.shape, strict=True)
        return tuple(every if dim == "draw" else size for dim, size in sizes)


def _append(path, dataset, start, stop):
    """Writes the draws of a group, in chunks beyond the end that readers see."""
    group = _zarr().open_group(str(path), mode="r+", zarr_format=3, use_consolidated=False)
    for name, variable in sorted(dataset.variables.items()):
        if "draw" not in variable.dims:
            continue
        axis = variable.dims.index("draw")
        values = np.arange(start, stop) if name == "draw" else variable.values
        shape = (*values.shape[:axis], stop, *values.shape[axis + 1 :])
        array = group.get(name)
        others = None if array is None else (*array.shape[:axis], stop, *array.shape[axis + 1 :])
        # Some xarrays store truth values as bytes, and say so in an attribute.
        stored = {values.dtype, np.dtype("i1") if values.dtype == bool else values.dtype}
        if array is None or others != shape or array.dtype not in stored:
            raise ValueError(f"store {path.parent} is damaged: {path.name}/{name} has changed")
        if array.shape != shape:
            array.resize(shape)
        array[(slice(None),) * axis + (slice(start, stop),)] = values


def _groups(path):
    """Those that have draws; an energy's walk has no likelihood."""
    return [group for group in _PER_DRAW if (path / group).is_dir()]


def _commit(path):
    """Lets readers see what is there: one small file, replaced whole."""
    zarr = _zarr()
    with warnings.catch_warnings():
        # The state's file is none of Zarr's, and what is consolidated is for xarray.
        warnings.simplefilter("ignore", UserWarning)
        for group in (*_groups(path), None):
            zarr.consolidate_metadata(str(path), path=group, zarr_format=3)


def _state_path(store, num_draws):
    return store / f".state-{num_draws}.safetensors"


def _describe_kernel(kernel):
    """The settings of a kernel, as JSON."""
    energy, frozen, model = kernel.energy, kernel.frozen, kernel.model
    settings = {
        "energy": None if energy is None else f"{type(energy).__name__} {fingerprint(energy)[:16]}",
        "model": None if model is None else getattr(model, "__qualname__", type(model).__name__),
        "frozen": None if frozen is None else digest(np.asarray(frozen)),
        "integrator": f"{type(kernel.integrator).__name__} {vars(kernel.integrator)}",
    }
    names = ("num_steps", "inverse_temperature", "max_score", "adapt_step_size")
    names += ("adapt_mass_matrix", "target_accept_prob", "max_bias")
    return settings | {name: getattr(kernel, name) for name in names}


def _zarr() -> Any:
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a stream is written by zarr: pip install 'numpyro-neb[stream]'", name="zarr"
        ) from error
    return zarr
