"""Sources of minibatches for `fit`: arrays, arrays on disk, or iterables of batches."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from numpyro_neb._internal.checks import check_finite, require
from numpyro_neb._internal.events import check_rows
from numpyro_neb.training.devices import Devices, digest


class Minibatches(NamedTuple):
    """A source of minibatches.

    Attributes:
        feed: Yields the input of step `start` and of each later one, given the training's key.
        pick: The minibatch of one step, from that input and the step's key, in compiled code.
        identity: What it is, for checkpoints: a word, and the shape of an array.
        digest: The SHA-256 of an array in memory, if there are several processes; None otherwise.
    """

    feed: Callable[[int, PRNGKeyArray], Iterator[Any]]
    pick: Callable[[Any, PRNGKeyArray], Array]
    identity: str
    digest: str | None = None


def step_keys(key: PRNGKeyArray, i: Any) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The keys of step i: of its minibatch, and of its noise."""
    key_batch, key_noise = jax.random.split(jax.random.fold_in(key, i))
    return key_batch, key_noise


def minibatches_of(
    data: Any, event_shape: tuple[int, ...], batch_size: int | None, devices: Devices
) -> Minibatches:
    """The source of minibatches for `fit`'s data, after checking them.

    A memory-mapped array stays on disk, and each step reads its rows, the same as from an array in
    memory. With several processes, each reads only the part of its devices; an iterable yields
    this process's part of each batch.
    """
    is_array = hasattr(data, "shape") and hasattr(data, "dtype")
    if not is_array and isinstance(data, Iterable) and not isinstance(data, list | tuple):
        require(batch_size is None, "batch_size must be left out if data are batches, got both")
        feed = lambda start, _: _given(data, event_shape, start, devices)  # noqa: E731
        return Minibatches(feed, lambda batch, _: batch, "iterable")
    if batch_size is None:
        raise ValueError("batch_size must be given if data are an array")
    rows = lambda n, key: jax.random.randint(key, (batch_size,), 0, n)  # noqa: E731
    if isinstance(data, np.ndarray) and _is_on_disk(data):
        check_rows("data", data, event_shape)
        choose = jax.jit(jax.vmap(lambda key, i: rows(len(data), step_keys(key, i)[0]), (None, 0)))
        feed = lambda start, key: _read(data, choose, start, key, devices)  # noqa: E731
        return Minibatches(feed, lambda batch, _: batch, f"array {list(data.shape)}")
    array = checked_array("data", data, event_shape)
    feed = lambda _, __: itertools.repeat(devices.replicated(array))  # noqa: E731
    pick = lambda array, key: devices.split(array[rows(len(array), key)])  # noqa: E731
    sha256 = digest(array) if devices.several_processes else None
    return Minibatches(feed, pick, f"array {list(array.shape)}", sha256)


def checked_array(name: str, data: Any, event_shape: tuple[int, ...]) -> Array:
    """The data as an array on the device, after checking for finite floats of that shape."""
    data = check_rows(name, data, event_shape)
    check_finite(name, data, in_jax=True)
    return jnp.asarray(data)


def _is_on_disk(data):
    while isinstance(data, np.ndarray):
        if isinstance(data, np.memmap):
            return True
        data = data.base
    return False


def _read(data, choose, start, key, devices):
    """Minibatches of an array on disk; one call chooses the rows of many steps."""
    block, native = 256, data.dtype.newbyteorder("=")
    for first in itertools.count(start, block):
        for rows in np.asarray(choose(key, jnp.arange(first, first + block))):
            yield devices.from_rows(lambda rows: np.asarray(data[rows], native), rows)


def _given(batches, event_shape, start, devices):
    """The batches of an iterable, which is restarted when it ends, if it can be."""
    count, once = 0, iter(batches) is batches
    while True:
        before = count
        for batch in batches:
            if count >= start:
                yield devices.from_parts(check_rows("a batch of data", batch, event_shape))
            count += 1
        require(
            count > before and not once,
            f"data ended after {count} batches, before num_steps: an iterator yields its batches"
            " only once; pass an iterable that can restart, such as a DataLoader",
        )
