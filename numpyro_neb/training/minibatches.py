"""Sources of minibatches for `fit`: arrays, arrays on disk, or iterables of batches."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from numpyro_neb._internal.checks import as_array, check_finite, require
from numpyro_neb._internal.events import check_resolution, check_rows, warn_unlike_scales
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


def minibatches_of(data: Any, energy: Any, batch_size: int | None, devices: Devices) -> Minibatches:
    """The source of minibatches for `fit`'s data, after checking them.

    A memory-mapped array stays on disk, and each step reads its rows, the same as from an array in
    memory. With several processes, each reads only the part of its devices; an iterable yields
    this process's part of each batch.

    Raises:
        TypeError: If the data do not hold floats.
        ValueError: If they have another shape, are not finite, or are so large that noise of
            sigma is lost in rounding; of data on disk and batches only when they are read.

    Warns:
        UserWarning: If the columns of a table differ in scale more than thirtyfold.
    """
    event_shape = energy.event_shape
    is_array = hasattr(data, "__array__")  # tables of pandas have it too
    if not is_array and isinstance(data, Iterable) and not isinstance(data, list | tuple):
        require(batch_size is None, "batch_size must be left out if data are batches, got both")
        feed = lambda start, _: _given(data, energy, start, devices)  # noqa: E731
        return Minibatches(feed, lambda batch, _: batch, "iterable")
    if batch_size is None:
        raise ValueError("batch_size must be given if data are an array")
    rows = lambda n, key: jax.random.randint(key, (batch_size,), 0, n)  # noqa: E731
    if isinstance(data, np.ndarray) and _is_on_disk(data):
        check_rows("data", data, event_shape)
        _warn(data, devices)
        choose = jax.jit(jax.vmap(lambda key, i: rows(len(data), step_keys(key, i)[0]), (None, 0)))
        feed = lambda start, key: _read(data, energy, choose, start, key, devices)  # noqa: E731
        return Minibatches(feed, lambda batch, _: batch, f"array {list(data.shape)}")
    array = checked_array("data", data, energy)
    _warn(array, devices)
    feed = lambda _, __: itertools.repeat(devices.replicated(array))  # noqa: E731
    pick = lambda array, key: devices.split(array[rows(len(array), key)])  # noqa: E731
    sha256 = digest(array) if devices.several_processes else None
    return Minibatches(feed, pick, f"array {list(array.shape)}", sha256)


def held_out_batches(
    data: Any, energy: Any, batch_size: int | None, devices: Devices
) -> Callable[[], Iterable[tuple[float, Array]]] | None:
    """Batches of the validation data, each with its share of them; None if there are none.

    They are as large as the minibatches, or as 2^18 numbers if that is more, so that a validation
    takes about as much memory as a training step. A memory-mapped array stays on disk.

    Args:
        data: The argument of `fit`.
        energy: The energy.
        batch_size: Examples in a minibatch, if it is known.
        devices: Where the training runs.

    Raises:
        TypeError: If the data do not hold floats.
        ValueError: As for `minibatches_of`.
    """
    if data is None:
        return None
    on_disk = isinstance(data, np.ndarray) and _is_on_disk(data)
    if on_disk:
        check_rows("validation_data", data, energy.event_shape)
        array, native = data, as_array("validation_data", data[:0]).dtype
    else:
        array, native = checked_array("validation_data", data, energy), None
    n = len(array)
    number = -(-n // max(batch_size or 1, _HELD_OUT // prod(energy.event_shape), 1))
    size = -(-n // number)  # all the same but the last: each size is compiled

    def batches():
        for start in range(0, n, size):
            part = array[start : start + size]
            if on_disk:
                part = np.asarray(part, native)
                check_resolution("validation_data", part, energy)
            yield len(part) / n, devices.replicated(jnp.asarray(part))

    if on_disk:
        return batches
    placed = list(batches())
    return lambda: placed


# Numbers in a batch of validation data.
_HELD_OUT = 2**18


def checked_array(name: str, data: Any, energy: Any) -> Array:
    """The data as an array on the device, after checking for finite floats of that shape."""
    data = check_rows(name, data, energy.event_shape)
    check_finite(name, data, in_jax=True)
    check_resolution(name, data, energy)
    return jnp.asarray(data)


def _warn(data, devices):
    if devices.speaks:
        warn_unlike_scales("data", data)


def _is_on_disk(data):
    while isinstance(data, np.ndarray):
        if isinstance(data, np.memmap):
            return True
        data = data.base
    return False


def _read(data, energy, choose, start, key, devices):
    """Minibatches of an array on disk; one call chooses the rows of many steps."""
    block, native = 256, as_array("data", data[:0]).dtype

    def batch(rows):
        read = np.asarray(data[rows], native)
        check_resolution("data", read, energy)
        return read

    for first in itertools.count(start, block):
        for rows in np.asarray(choose(key, jnp.arange(first, first + block))):
            yield devices.from_rows(batch, rows)


def _given(batches, energy, start, devices):
    """The batches of an iterable, which is restarted when it ends, if it can be."""
    count, once = 0, iter(batches) is batches
    while True:
        before = count
        for batch in batches:
            if count >= start:
                part = check_rows("a batch of data", batch, energy.event_shape)
                if count == start or isinstance(part, np.ndarray):  # others are on a device
                    check_resolution("a batch of data", part, energy)
                if count == start:
                    _warn(part, devices)
                yield devices.from_parts(part)
            count += 1
        require(
            count > before and not once,
            f"data ended after {count} batches, before num_steps: an iterator yields its batches"
            " only once; pass an iterable that can restart, such as a DataLoader",
        )
