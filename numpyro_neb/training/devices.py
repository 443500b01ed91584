"""Where a training runs: one device, or the devices of a mesh, in one process or several."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from numpyro_neb._internal.checks import require


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a training run: they split the minibatch, and each has a copy of the rest.

    Nothing here moves bytes between devices: shardings say where arrays live, and XLA adds the
    communication.

    Attributes:
        sharding: The minibatch's, along its first axis; None for the default device.
    """

    sharding: NamedSharding | None = None

    @property
    def several_processes(self) -> bool:
        """Whether other processes take part in each step."""
        return self.sharding is not None and jax.process_count() > 1

    @property
    def speaks(self) -> bool:
        """Whether this process is the one that prints and writes for all."""
        return not self.several_processes or jax.process_index() == 0

    @property
    def everywhere(self) -> NamedSharding | None:
        """The sharding of arrays that have a copy on each device."""
        return self.sharding and NamedSharding(self.sharding.mesh, PartitionSpec())

    @property
    def num_parts(self) -> int:
        """The number of parts of a minibatch."""
        if self.sharding is None:
            return 1
        return self.sharding.mesh.size

    def replicated(self, tree: PyTree) -> PyTree:
        """The arrays of a pytree, the same in each process, on every device."""
        if (everywhere := self.everywhere) is None:
            return tree
        return jax.tree.map(lambda x: self._copied(x, everywhere), tree)

    def split(self, batch: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """In compiled code: gives each device its part of the batch, if the parts are equal."""
        if self.sharding is None or batch.ndim == 0 or len(batch) % self.num_parts:
            return batch
        return jax.lax.with_sharding_constraint(batch, self.sharding)

    def on_default_device(self, tree: PyTree) -> PyTree:
        """A replicated pytree as arrays of this process only."""
        if self.sharding is None:
            return tree
        return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)), tree)

    def from_rows(self, read: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> Array:
        """The batch read(rows); each process reads only its own devices' part."""
        if self.sharding is None:
            return jax.numpy.asarray(read(rows))
        shape = (len(rows), *read(rows[:0]).shape[1:])
        part = lambda index: read(rows[index[0]])  # noqa: E731
        return jax.make_array_from_callback(shape, self.sharding, part)

    def from_parts(self, part: Array | np.ndarray) -> Array:
        """The batch made of each process's part, in the order of the processes.

        Raises:
            ValueError: If the part is not divisible by the number of this process's devices.
        """
        if self.sharding is None:
            return jax.numpy.asarray(part)
        parts = self.num_parts // jax.process_count()
        what = f"divisible by the {parts} devices of this process, got {len(part)} examples"
        require(len(part) % parts == 0, f"a batch of data must be {what}")
        return jax.make_array_from_process_local_data(self.sharding, np.asarray(part))

    def check_batch_size(self, batch_size: int | None) -> None:
        """Raises a ValueError unless the devices share a minibatch equally."""
        shared = batch_size is None or batch_size % self.num_parts == 0
        what = f"divisible by the {self.num_parts} devices of sharding, got {batch_size}"
        require(shared, f"batch_size must be {what}")

    def decided(self, choice: bool) -> bool:
        """The first process's choice, broadcast to all."""
        if not self.several_processes:
            return choice
        from jax.experimental import multihost_utils

        return bool(multihost_utils.broadcast_one_to_all(np.asarray(choice)))

    def check_agreement(self, arguments: dict[str, Any]) -> None:
        """Raises a ValueError, in every process, that names an argument on which they differ."""
        if not self.several_processes:
            return
        from jax.experimental import multihost_utils

        digests = [hashlib.sha256(json.dumps(v).encode()).digest() for v in arguments.values()]
        mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(arguments), -1)
        everyones = np.asarray(multihost_utils.process_allgather(mine))
        differ = np.any(everyones != everyones[:1], axis=(0, 2))
        for name, other in zip(arguments, differ, strict=True):
            some = f"got another {name} in some of the {len(everyones)} processes"
            require(not other, f"every process must give fit the same, {some}")

    def _copied(self, x, everywhere):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            # JAX can't put a key on the devices of other processes, but it can put its bits.
            bits = self._copied(jax.random.key_data(x), everywhere)
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, everywhere, lambda i: host[i])

    def explained(self, error: Exception, checkpoint_dir: Any) -> Exception:
        """A step's error, explained if another process has most likely ended."""
        if not self.several_processes:
            return error
        # The text is repeated for each step that waited for the one that failed.
        cause = str(error).rpartition("Error dispatching computation: ")[2]
        how = (
            f"the same call in all of them resumes from the newest checkpoint in {checkpoint_dir}"
            if checkpoint_dir is not None
            else "the run starts over; checkpoint_dir= keeps checkpoints to resume from"
        )
        return RuntimeError(
            f"a step over {jax.process_count()} processes failed in process {jax.process_index()}:"
            f" most likely another process ended, and its log says why. Start all of them again:"
            f" {how}. What JAX said: {cause[:500]}"
        )


def devices_of(sharding: Any) -> Devices:
    """The devices of a minibatch's sharding, after checking it.

    Raises:
        TypeError: If it is neither None nor a `jax.sharding.NamedSharding` of a mesh of devices.
        ValueError: If it does not split just the first axis over the whole mesh, or if a process
            does not have a device in the mesh, or has fewer than another.
    """
    if sharding is None:
        return Devices()
    require(
        isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh),
        "sharding must be a jax.sharding.NamedSharding of a mesh of devices, as in"
        ' NamedSharding(Mesh(jax.devices(), ("batch",)), PartitionSpec("batch")),'
        f" got {type(sharding).__name__}",
        TypeError,
    )
    mesh: Any = sharding.mesh
    spec = tuple(sharding.spec)
    first = spec[0] if spec and isinstance(spec[0], tuple) else spec[:1]
    require(
        set(first) == set(mesh.axis_names) and not any(spec[1:]),
        "sharding must split the first axis, and no other, over all axes of its mesh,"
        f" {mesh.axis_names}, got {sharding.spec}",
    )
    counts = np.bincount(
        [d.process_index for d in mesh.devices.flat], minlength=jax.process_count()
    )
    require(
        len(set(counts)) == 1,
        "the mesh of sharding must have the same number of devices from each process, got"
        f" {counts.tolist()} from {len(counts)} processes: jax.devices() lists all devices",
    )
    # Explicit axes, jax.make_mesh's default, would make shardings part of array types.
    automatic = Mesh(mesh.devices, mesh.axis_names)
    return Devices(NamedSharding(automatic, PartitionSpec(spec[0])))


def digest(tree: PyTree) -> str:
    """The SHA-256 of the arrays of a pytree."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        sha256.update(np.asarray(leaf).tobytes())
    return sha256.hexdigest()
