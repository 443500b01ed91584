"""Long runs: draws written to a Zarr store as they come, and a sampler's state in a file.

A store is an ordinary Zarr hierarchy, format 3, with a file of the sampler's state next to the
root's metadata. Three facts keep it consistent at every moment, even after `kill -9`:

- draws are written beyond the end that readers see, in separate chunks, and Zarr replaces a file
  by renaming a new one;
- the root's consolidated metadata, one small file, says how many draws there are. It is replaced
  last. (Each group has its own, for readers that open only that group.)
- the sampler's state is written before that, under a name with the number of draws.

What a killed process wrote beyond the end is written again, with the same bits.
"""

import json
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from numpyro_neb._internal.arviz_data import check_variable, datasets, from_tree
from numpyro_neb._internal.atomic_files import check_plain
from numpyro_neb._internal.checks import require, short
from numpyro_neb.streaming.states import read_state, write_state

_FORMAT = "numpyro_neb stream"
_VERSION = 1
_PER_DRAW = ("posterior", "sample_stats", "log_likelihood")
# The codecs that Zarr uses for numbers and strings. Another codec could run code.
_CODECS = {"bytes", "zstd", "vlen-utf8"}
# A site's name is a folder's, and so is its jump's, which is longer.
_LONGEST_NAME, _APART, _OWN = 200, set("/\\\0"), {"", ".", "..", "zarr.json", "chain", "draw"}
_FORMAT_2 = {".zarray", ".zgroup", ".zattrs", ".zmetadata"}


def check_names(sites: Iterable[str], dims: Mapping[str, Sequence[str]] | None) -> None:
    """Raises a ValueError unless each name can be that of an array, which is a folder.

    Args:
        sites: The names of a model's sites and plates.
        dims: The names of dimensions, by variable.
    """
    others = [name for names in (dims or {}).values() for name in names]
    hint = "rename it, or in numpyro.handlers.scope pass divider='.'"
    sites = list(sites)
    for name in sites:
        check_variable(name)
    for name in [*sites, *others]:
        kind = "a dimension" if name in others else "a site"
        is_part = len(name.encode("utf-8", "replace")) <= _LONGEST_NAME and not _APART & set(name)
        wanted = f"{kind} must have a name that can be a file's, and not be one of a store's own"
        require(is_part and name not in _OWN, f"{wanted}, got {short(name)}: {hint}")


class Store:
    """The Zarr store of a stream, in a folder."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, settings

    def num_draws(self) -> int:
        """The number of draws in the store; zero if there is no store.

        Raises:
            ValueError: If something else is there.
        """
        zarr = _zarr()
        if not self.path.exists():
            return 0
        check_plain(self.path)
        foreign = f"store must be a numpyro_neb stream or a new path, got {self.path}"
        try:
            root = zarr.open_consolidated(str(self.path), mode="r", zarr_format=3)
            found, version = root.attrs.get("format"), root.attrs.get("version")
            _, num_draws = root["sample_stats/diverging"].shape
        except Exception:  # zarr raises errors of any kind, depending on what is there
            raise ValueError(foreign) from None
        require(found == _FORMAT, foreign)
        what = f"format version {short(version)}, and this numpyro_neb reads {_VERSION}"
        known = version == _VERSION
        require(known, f"store {self.path} has {what}: another numpyro_neb wrote it")
        return num_draws

    def state(self, num_draws: int, template: PyTree) -> PyTree:
        """The sampler's state after `num_draws` draws, if they are from the same run."""
        path = _state_path(self.path, num_draws)
        require(path.exists(), f"store {self.path} is damaged: {path.name} is missing")
        state = read_state(path, template, self.settings)
        try:
            self._check_arrays()
        except Exception as error:  # zarr raises errors of any kind
            raise ValueError(f"store {self.path} is damaged: {error}") from error
        return state

    def write(self, data: Any, start: int, stop: int, state: PyTree) -> None:
        """Writes the draws from `start` to `stop`, and the state after them."""
        # The first draws go to another folder, which is renamed: a store never exists in part.
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
        """The store as ArviZ data, read on access."""
        import xarray as xr

        tree: Any = xr.open_datatree(str(self.path), engine="zarr", chunks=None, zarr_format=3)
        return from_tree(tree)

    def _check_arrays(self):
        """Raises an error if an array is not one that `write` makes.

        A store may come from someone else. No codec may run code, and no chunk may be larger than
        its array, or the draws of one write: it would be held in memory. Zarr reads an array's
        metadata from its own file, its group's or the root's: all of them are checked.
        """
        for path in self.path.rglob("*"):
            require(path.name not in _FORMAT_2, f"{path} is of Zarr's format 2")
            if path.name == "zarr.json":
                self._check_node(path.parent, json.loads(path.read_bytes()))

    def _check_node(self, path, node):
        inner = (node.get("consolidated_metadata") or {}).get("metadata", {})
        for name, child in inner.items():
            self._check_node(path / name, child)
        plain = node["zarr_format"] == 3 and not node.get("storage_transformers")
        require(plain, f"{path} is not plain Zarr of format 3")
        if node["node_type"] != "array":
            return
        unknown = {codec["name"] for codec in node["codecs"]} - _CODECS
        require(not unknown, f"{path} is encoded by {short(sorted(unknown))}")
        shape, chunk = node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"]
        dims = node.get("dimension_names") or [None] * len(shape)
        odd = f"{path} of shape {short(shape)} has chunks of {short(chunk)}"
        require(len(dims) == len(shape) == len(chunk), odd)
        for dim, size, length in zip(dims, shape, chunk, strict=True):
            same = dim != "chain" or size == self.settings["num_chains"]
            require(same, f"{path} has {size} chains")
            most = self.settings["draws_per_write"] if dim == "draw" else max(size, 1)
            require(length <= most, odd)

    def _create(self, path, data):
        attributes = {"format": _FORMAT, "version": _VERSION}
        _zarr().create_group(str(path), zarr_format=3, attributes=attributes)
        for group, content in datasets(data).items():
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
        # Some xarray versions store booleans as bytes, and say so in an attribute.
        stored = {values.dtype, np.dtype("i1") if values.dtype == bool else values.dtype}
        if array is None or others != shape or array.dtype not in stored:
            raise ValueError(f"store {path.parent} is damaged: {path.name}/{name} has changed")
        if array.shape != shape:
            array.resize(shape)
        array[(slice(None),) * axis + (slice(start, stop),)] = values


def _groups(path):
    """The groups that have draws; a walk on an energy has no likelihood."""
    return [group for group in _PER_DRAW if (path / group).is_dir()]


def _commit(path):
    """Lets readers see what is there: one small file, replaced atomically."""
    zarr = _zarr()
    with warnings.catch_warnings():
        # Zarr warns of the state's file, and of consolidated metadata, which is for xarray.
        warnings.simplefilter("ignore", UserWarning)
        for group in (*_groups(path), None):
            zarr.consolidate_metadata(str(path), path=group, zarr_format=3)


def _state_path(store, num_draws):
    return store / f".state-{num_draws}.safetensors"


def _zarr() -> Any:
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a stream is written by zarr: pip install 'numpyro-neb[stream]'", name="zarr"
        ) from error
    return zarr
