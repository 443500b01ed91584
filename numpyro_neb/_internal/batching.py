"""Applies functions of one event over any batch: all at once, or in chunks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree
from tqdm.auto import tqdm

from numpyro_neb._internal.events import check_events


def over_batch(
    fn: Callable, energy: Any, *values: Float[Array, "..."]
) -> PyTree[Float[Array, "..."]]:
    """Applies `fn(energy, *events)`, written for one energy and one event, over any batch.

    Outside of other compiled code it is compiled once for each `fn`, structure and shapes.

    Args:
        fn: A function of an energy and of arrays of shape `event_shape`; the same object at each
            call, such as one of a module or an `eqx.Partial` of it.
        energy: One energy, or several stacked along leading dimensions of their arrays, which are
            the shape of `sigma`.
        values: Arrays of shape (*batch, *event_shape), whose batches broadcast with one another and
            with the energies' leading dimensions.

    Returns:
        fn's outputs, with the broadcast batch in front.

    Raises:
        ValueError: If a value's trailing dimensions are not `event_shape`.
    """
    known = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((energy, values)))
    return (_compiled if known else _mapped)(fn, energy, values)


def _mapped(fn, energy, values):
    stack = jnp.shape(energy.sigma)
    batch = jnp.broadcast_shapes(stack, *(check_events("y", v, energy.event_shape) for v in values))
    events = [jnp.broadcast_to(v, (*batch, *energy.event_shape)) for v in values]
    # The draws' own dimensions are flattened into one; the energies' dimensions stay behind it.
    own = batch[: len(batch) - len(stack)]
    events = [e.reshape(-1, *e.shape[len(own) :]) for e in events]
    arrays, static = eqx.partition(energy, eqx.is_array)
    kept = tuple(n for n in stack if n != 1)
    arrays = jax.tree.map(lambda a: a.reshape(*kept, *a.shape[len(stack) :]), arrays)
    each = lambda arrays, *events: fn(eqx.combine(arrays, static), *events)  # noqa: E731
    for size in reversed(stack):
        each = jax.vmap(each, (None if size == 1 else 0, *[0] * len(events)))
    out = jax.vmap(each, (None, *[0] * len(events)))(arrays, *events)
    return jax.tree.map(lambda leaf: leaf.reshape(*own, *leaf.shape[1:]), out)


_compiled = eqx.filter_jit(_mapped)


def in_chunks(
    fn: Callable, operands: tuple[Array | np.ndarray, ...], chunk_size: int, progress_bar: bool
) -> Any:
    """fn(*operands), on `chunk_size` of their rows at a time.

    It loops between compiled calls, since a loop inside one is slow with convolutions on CPUs. A
    bar appears if it takes longer than a second.

    Args:
        fn: Maps arrays with a common first dimension to a pytree of arrays with that dimension.
        operands: The arrays.
        chunk_size: Rows at a time.
        progress_bar: Whether to show a tqdm bar.
    """
    count = len(operands[0])
    if any(isinstance(a, Tracer) for a in operands) or count <= chunk_size:
        return fn(*map(jnp.asarray, operands))
    outs: list[Any] = []
    with tqdm(total=count, disable=not progress_bar, delay=1, unit="y") as bar:
        for start in range(0, count, chunk_size):
            # The last chunk reaches back, so that one compiled shape serves all.
            begin = min(start, count - chunk_size)
            out = fn(*(jnp.asarray(a[begin : begin + chunk_size]) for a in operands))
            outs.append(jax.tree.map(lambda a, n=start - begin: _held(a)[n:], out))
            bar.update(begin + chunk_size - start)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outs)


def _held(array):
    """Moved to the host, so that a device keeps no more than the result, unless traced."""
    return array if isinstance(array, Tracer) else np.asarray(array)
