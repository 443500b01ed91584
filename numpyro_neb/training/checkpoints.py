"""Checkpoints of a training run, written atomically by orbax."""

import hashlib
import json
import os
import re
import time
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree
from numpyro.util import find_stack_level

from numpyro_neb._internal.atomic_files import check_plain, check_sums, write_sums
from numpyro_neb._internal.checks import require, short
from numpyro_neb._internal.fingerprints import difference, fingerprint, reservations
from numpyro_neb.training.devices import Devices, digest

_FORMAT = "numpyro_neb training"
# Version 1, of numpyro_neb 0.1.0, identified a training run by sentences. It can still be read.
_VERSION = 2
_KEPT = 2
# The identity of an objective that is a plain function.
FUNCTION = "function"
# The part of an identity that is a fingerprint.
CONTENT = "content"
# Of an array on disk, this many rows are compared.
_ROWS = 64
# Words for messages: the parts of an identity that are not named after an argument.
_IN_WORDS = {"fixed_arrays": "sigma, loc, scale or non-trainable array"}


def in_words(name: str) -> str:
    """The name of one part of an identity, as messages put it."""
    return _IN_WORDS.get(name, name)


def load_orbax() -> Any:
    """The module `orbax.checkpoint`.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says how to install it.
    """
    try:
        import orbax.checkpoint
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "checkpoints are written by orbax: pip install 'numpyro-neb[checkpoints]'", name="orbax"
        ) from error
    return orbax.checkpoint


class Checkpoints:
    """The checkpoints of one training run, in one folder.

    Args:
        folder: Where to write them; created if it does not exist.
        every: Steps, or time, between checkpoints.
        identity: What identifies this training run, as JSON by name: checkpoints of another run
            are refused. Names and values are identifiers and stay the same across releases.
        devices: Where the training runs. Several processes write one checkpoint together, and
            call the methods together.

    Raises:
        ModuleNotFoundError: If orbax is not installed.
        TypeError: If `every` is neither an int nor a `datetime.timedelta`.
        ValueError: If `every` is not positive, or the folder is a file or holds anything but
            files and folders.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        every: int | timedelta,
        identity: dict[str, Any],
        devices: Devices,
    ):
        fits = isinstance(every, int | timedelta) and not isinstance(every, bool)
        require(fits, f"checkpoint_every must be an int or a timedelta, got {every!r}", TypeError)
        some = (every if isinstance(every, int) else every.total_seconds()) > 0
        require(some, f"checkpoint_every must be positive, got {every!r}")
        self.folder, self.every = Path(folder).absolute(), every
        is_file = self.folder.exists() and not self.folder.is_dir()
        require(not is_file, f"checkpoint_dir must be a folder, got the file {folder}")
        check_plain(self.folder)
        self.identity, self.devices = identity, devices
        self._ocp = ocp = load_orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._last_time, self._doubt = time.monotonic(), None

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, if there is one."""
        return self._manager.latest_step()

    def due(self, done: int) -> bool:
        """Whether to write a checkpoint after `done` steps."""
        if isinstance(self.every, int):
            return done % self.every == 0
        over = time.monotonic() - self._last_time >= self.every.total_seconds()
        if self.devices.several_processes:
            # Clocks differ, so one process decides; asking it at every step would be slow.
            return done % 100 == 0 and self.devices.decided(over)
        return over

    def save(self, done: int, state: PyTree, progress: dict[str, Any]) -> None:
        """Writes the state after `done` steps, unless it is already saved."""
        self._last_time = time.monotonic()
        if self._manager.latest_step() == done:
            return
        args, leaves = self._ocp.args, jax.tree.leaves(state)
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": self.identity,
            "progress": progress,
            "arrays": digest(leaves),
        }
        header["sha256"] = _digest_of_header(header)
        saved = {"header": args.JsonSave(header), "state": args.StandardSave(leaves)}
        self._manager.save(done, args=args.Composite(**saved))
        if jax.process_index() == 0:
            write_sums(self.folder / str(done))

    def newest(self, state: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """The steps done, the state and the progress of the newest checkpoint, if there is one.

        Args:
            state: A state of the same structure.

        Raises:
            ValueError: If it is damaged, or from another training run or format version.
        """
        done = self._manager.latest_step()
        shared = "newest checkpoint in checkpoint_dir (a folder that all of them see)"
        self.devices.check_agreement({shared: done})
        if done is None:
            return None
        args, path = self._ocp.args, self.folder / str(done)
        try:
            # Check first: given a damaged file, orbax leaves tasks behind that fail and log later.
            check_sums(path)
            found = self._manager.restore(done, args=args.Composite(header=args.JsonRestore()))
            header = found["header"]
            intact = header.pop("sha256") == _digest_of_header(header)
            _require(intact, _damaged(path, "the checksum of its header does not match"))
            if not self._check_header(header, path):
                self._check_arrays(path, state)
            # Where to place the arrays: the devices that wrote them may be gone.
            abstract = [
                jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                for x in jax.tree.leaves(state)
            ]
            restore = args.Composite(state=args.StandardRestore(abstract))
            leaves = self._manager.restore(done, args=restore)["state"]
            intact = digest(leaves) == header["arrays"]
            _require(intact, _damaged(path, "the checksum of its arrays does not match"))
            validation = [(int(step), float(x)) for step, x in header["progress"]["validation"]]
            progress = {"stopped": bool(header["progress"]["stopped"]), "validation": validation}
            # 0.1.0 gave optimisers the loss in the data's units squared.
            progress["in_units"] = bool(header["progress"].get("in_units", False))
        except _RefusedError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # orbax and tensorstore raise errors of any kind
            raise ValueError(_damaged(path, error)) from error
        if self._doubt is not None:
            text = f"{path} is resumed, but {self._doubt}"
            warnings.warn(text, stacklevel=find_stack_level())
        return done, jax.tree.unflatten(jax.tree.structure(state), leaves), progress

    def close(self) -> None:
        """Releases the folder."""
        self._manager.close()

    def _check_header(self, header, path):
        """Refuses another training; returns whether the objects that it had could be compared."""
        ours = header["format"] == _FORMAT
        _require(ours, f"{path} is not a numpyro_neb checkpoint")
        version = header["version"]
        what = f"format version {short(version)}, and this numpyro_neb reads {_VERSION}"
        known = version in (1, _VERSION)
        _require(known, f"{path} has {what}: another numpyro_neb wrote it")
        theirs = header["identity"] if version == _VERSION else identity_of_version_1(header)
        told = CONTENT in theirs and CONTENT in self.identity
        left = {CONTENT, "objective"} if told else {CONTENT}
        for name in [name for name in self.identity if name not in left]:
            before, now = theirs.get(name), self.identity[name]
            both = f"{in_words(name)} ({short(before)}, now {short(now)})"
            self._refuse(None if before == now else both)
        if told:
            ours = self.identity[CONTENT]
            self._refuse(difference(theirs[CONTENT], ours))
            self._doubt = reservations(theirs[CONTENT], ours)
        return told

    def _check_arrays(self, path, state):
        """Refuses arrays of other shapes: version 0.1.0 did not write which optimiser there was."""
        stored = json.loads((path / "state" / "_METADATA").read_text())["tree_metadata"].values()
        before = sorted(tuple(one["value_metadata"]["write_shape"]) for one in stored)
        same = before == sorted(x.shape for x in jax.tree.leaves(state))
        self._refuse(None if same else "optimizer, or another state of its objective")

    def _refuse(self, other):
        what = f"checkpoint_dir {self.folder} holds a training run with another {other}"
        _require(other is None, f"{what}: pass the same to resume it, or use another folder")


def content_of(
    energy: Any, data: Any, validation_data: Any, objective: Any, optimizer: Any, opt_state: PyTree
) -> dict[str, Any]:
    """What a training depends on besides numbers, as a fingerprint.

    The trained arrays are not in it, since the checkpoint has its own. Of a memory-mapped array,
    rows at even distances count; the batches of an iterable don't.

    Args:
        energy: The energy, or a family of energies.
        data: The training data, as given to `fit`.
        validation_data: The held-out data, as given to `fit`.
        objective: The objective.
        optimizer: The optimiser.
        opt_state: Its first state.
    """
    things = {"energy": eqx.filter(energy, eqx.is_array, inverse=True), "data": _content(data)}
    things |= {"validation_data": _content(validation_data), "objective": objective}
    return fingerprint(things | {"optimizer": [optimizer, describe(opt_state)]})


def _content(data):
    """The array to compare, or None for batches of an iterable."""
    if not hasattr(data, "__array__") and not isinstance(data, list | tuple):
        return None
    array = base = np.asarray(data)
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    if isinstance(base, np.memmap):
        rows = np.linspace(0, len(array) - 1, min(len(array), _ROWS)).astype(int)
        return [list(array.shape), np.asarray(array[np.unique(rows)])]
    return array


def identity_of_version_1(header: dict[str, Any]) -> dict[str, Any]:
    """The identity of a training run, from a header of version 1, which had sentences.

    In 0.1.0 the objective was always a plain function, and was not named.
    """
    identity = {"objective": "a function"} | header["arguments"]
    identity["fixed_arrays"] = identity.pop("sigma, loc, scale or frozen array")
    if identity["objective"] == "a function":
        identity["objective"] = FUNCTION
    sizes = [int(size) for size in re.findall(r"\d+", identity["data"])]
    of_array = identity["data"].startswith("an array of shape")
    identity["data"] = f"array {sizes}" if of_array else "iterable"
    return identity


class _RefusedError(Exception):
    """A checkpoint that exists but can't be resumed from."""


_require = partial(require, error=_RefusedError)


def _damaged(path, why):
    return f"the checkpoint {path} is damaged ({why}): delete it to resume from the one before"


def describe(tree: PyTree) -> list[str]:
    """The path, dtype and shape of each array of a pytree, as JSON."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {x.dtype} {list(x.shape)}" for path, x in leaves]


def _digest_of_header(header):
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
