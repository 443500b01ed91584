"""Checkpoints of a training, written by orbax: each whole or not at all."""

import hashlib
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from numpyro_neb._internal.atomic_files import check_plain, check_sums, write_sums
from numpyro_neb._internal.checks import short
from numpyro_neb.training.devices import Devices, digest

_FORMAT = "numpyro_neb training"
_VERSION = 1
_KEPT = 2
# What stands for a plain function as objective; version 0.1.0, which knew no others, left it out.
FUNCTION = "a function"


class Checkpoints:
    """The checkpoints of one training, in one folder.

    Args:
        folder: Where to; it is made if it is not there.
        every: Steps, or time, between two of them.
        arguments: What the training was called with, as JSON: another training's checkpoints are
            refused.
        devices: Where the training runs. Several processes write one checkpoint together, and
            call the methods together.

    Raises:
        TypeError: If `every` is neither an int nor a `datetime.timedelta`.
        ValueError: If `every` is not positive, or the folder is a file or holds anything but
            files and folders.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        every: int | timedelta,
        arguments: dict[str, Any],
        devices: Devices,
    ):
        import orbax.checkpoint as ocp

        if isinstance(every, bool) or not isinstance(every, int | timedelta):
            raise TypeError(f"checkpoint_every must be an int or a timedelta, got {every!r}")
        if (every if isinstance(every, int) else every.total_seconds()) <= 0:
            raise ValueError(f"checkpoint_every must be positive, got {every!r}")
        self.folder, self.every = Path(folder).absolute(), every
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"checkpoint_dir must be a folder, got the file {folder}")
        check_plain(self.folder)
        self.arguments, self.devices = arguments, devices
        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._last_time = time.monotonic()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, if there is one."""
        return self._manager.latest_step()

    def due(self, done: int) -> bool:
        """Whether a checkpoint is to be written after so many steps."""
        if isinstance(self.every, int):
            return done % self.every == 0
        over = time.monotonic() - self._last_time >= self.every.total_seconds()
        if self.devices.several_processes:
            # Clocks differ, and to ask each other at every step would cost one.
            return done % 100 == 0 and self.devices.decided(over)
        return over

    def save(self, done: int, state: PyTree, progress: dict[str, Any]) -> None:
        """Writes the state after `done` steps, unless that is there already."""
        self._last_time = time.monotonic()
        if self._manager.latest_step() == done:
            return
        args, leaves = self._ocp.args, jax.tree.leaves(state)
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "arguments": self.arguments,
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
            state: One of the same structure.

        Raises:
            ValueError: If it is damaged, of another training, or of another format version.
        """
        done = self._manager.latest_step()
        shared = "newest checkpoint in checkpoint_dir (a folder that all of them see)"
        self.devices.check_agreement({shared: done})
        if done is None:
            return None
        args, path = self._ocp.args, self.folder / str(done)
        try:
            # orbax given a damaged file leaves tasks behind that fail later and say so.
            check_sums(path)
            found = self._manager.restore(done, args=args.Composite(header=args.JsonRestore()))
            header = found["header"]
            if header.pop("sha256") != _digest_of_header(header):
                raise _damaged(path, "the checksum of its header does not fit")
            self._check_header(header, path)
            # Where the arrays are to lie: the devices that wrote them may be gone.
            abstract = [
                jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                for x in jax.tree.leaves(state)
            ]
            restore = args.Composite(state=args.StandardRestore(abstract))
            leaves = self._manager.restore(done, args=restore)["state"]
            if digest(leaves) != header["arrays"]:
                raise _damaged(path, "the checksum of its arrays does not fit")
            validation = [(int(step), float(x)) for step, x in header["progress"]["validation"]]
            progress = {"stopped": bool(header["progress"]["stopped"]), "validation": validation}
        except _RefusedError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # orbax and tensorstore raise of every kind
            raise ValueError(str(_damaged(path, error))) from error
        return done, jax.tree.unflatten(jax.tree.structure(state), leaves), progress

    def close(self) -> None:
        """Lets go of the folder."""
        self._manager.close()

    def _check_header(self, header, path):
        if header["format"] != _FORMAT:
            raise _RefusedError(f"{path} is no checkpoint of numpyro_neb")
        if header["version"] != _VERSION:
            raise _RefusedError(
                f"{path} has format version {short(header['version'])}, and this numpyro_neb reads"
                f" {_VERSION}: another numpyro_neb wrote it"
            )
        theirs = {"objective": FUNCTION} | header["arguments"]
        for name, value in self.arguments.items():
            if theirs.get(name) != value:
                raise _RefusedError(
                    f"checkpoint_dir {self.folder} holds a training with another {name}"
                    f" ({short(theirs.get(name))}, now {short(value)}): give the same to go on"
                    " with it, or another folder"
                )


class _RefusedError(Exception):
    """A checkpoint that is there, and can't be taken up."""


def _damaged(path, why):
    return _RefusedError(
        f"the checkpoint {path} is damaged ({why}): delete it to go on from the one before"
    )


def describe(tree: PyTree) -> list[str]:
    """The path, dtype and shape of each array of a pytree, as JSON."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [f"{jax.tree_util.keystr(path)} {x.dtype} {list(x.shape)}" for path, x in leaves]


def _digest_of_header(header):
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
