"""Events, the y and x of an energy: arrays of shape (*batch, *event_shape), as users give them."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.util import find_stack_level

from numpyro_neb._internal.checks import check_finite, check_floats, require, rounded


def check_events(name: str, y: Array | np.ndarray, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading dimensions of a `y` of shape (*batch, *event_shape).

    Raises:
        ValueError: If its trailing dimensions are not `event_shape`.
    """
    rank = y.ndim - len(event_shape)
    fits = rank >= 0 and y.shape[rank:] == event_shape
    require(fits, f"{name} must end in the event shape {event_shape}, got shape {y.shape}")
    return y.shape[:rank]


def check_rows(
    name: str, value: Any, event_shape: tuple[int, ...], count: str = "n"
) -> Array | np.ndarray:
    """Floats of shape (n, *event_shape), with at least one row; an array on disk stays there.

    Args:
        name: The argument's name, for the message.
        value: The argument.
        event_shape: The shape of one row.
        count: What the number of rows is called.

    Raises:
        TypeError: If it does not hold floats.
        ValueError: If it has another shape, or no rows.
    """
    x = check_floats(name, value)
    wanted = f"({count}, *event_shape) with event shape {event_shape} and {count} at least 1"
    fits = x.ndim > 0 and len(x) > 0 and x.shape[1:] == event_shape
    require(fits, f"{name} must have shape {wanted}, got {x.shape}")
    return x


def as_event(y: Any, event_shape: tuple[int, ...]) -> Float[Array, "*event"]:
    """One unbatched event of floats of any width.

    Raises:
        TypeError: If it does not hold floats.
        ValueError: If it has another shape.
    """
    array = check_floats("y", y)
    require(
        array.shape == event_shape,
        f"y must have the event shape {event_shape}, got {array.shape};"
        " an energy takes one y: batch with jax.vmap",
    )
    return jnp.asarray(rounded(array, jax.dtypes.canonicalize_dtype(array.dtype)))


def checked_events(
    name: str, value: Any, energy: Any, rows: str | None = None
) -> Array | np.ndarray:
    """Events over any batch, checked but neither moved nor cast.

    Args:
        name: The argument's name, for the message.
        value: Floats of shape (*batch, *event_shape).
        energy: An energy, or a family of them.
        rows: If given, value must have shape (n, *event_shape), n at least 1, and this is n's name.

    Raises:
        TypeError: If value does not hold floats.
        ValueError: If it has another shape, or if it is known now and not finite.
    """
    if rows is None:
        array = check_floats(name, value)
        check_events(name, array, energy.event_shape)
    else:
        array = check_rows(name, value, energy.event_shape, rows)
    check_finite(name, array, in_jax=True)
    _warn_coarse(name, array, energy)
    return array


def as_events(name: str, value: Any, energy: Any, rows: str | None = None) -> Float[Array, "..."]:
    """`checked_events` on the device, in the dtype of the energy's results."""
    return in_dtype_of(energy, checked_events(name, value, energy, rows))


def in_dtype_of(energy: Any, y: Array | np.ndarray) -> Float[Array, "..."]:
    """Data in the dtype of the energy's results: float16 data are computed in the energy's."""
    return jnp.asarray(rounded(y, _common_dtype(energy, y)))


def check_resolution(name: str, x: Array | np.ndarray, energy: Any) -> None:
    """Raises a ValueError if noise is lost in rounding at the size of the data.

    Args:
        name: The argument's name, for the message.
        x: Data, before they are cast to the energy's dtype.
        energy: An energy, or a family of them, whose smallest sigma counts.
    """
    if isinstance(x, Tracer) or x.size == 0:
        return
    text = too_coarse(name, _largest(x), _smallest_sigma(energy), _common_dtype(energy, x))
    require(not text, text)


def too_coarse(name: str, largest: float, sigma: float | None, dtype: Any) -> str:
    """Why a dtype can't hold sigma next to numbers of a size, or nothing if it can.

    Args:
        name: What has that size, for the message.
        largest: The size.
        sigma: The noise's standard deviation; None if it is not known now.
        dtype: The dtype of the computation.
    """
    spacing = float(jnp.finfo(dtype).eps) * largest
    if sigma is None or not spacing > sigma / _LEVELS:  # NaN is for others to report
        return ""
    narrow = not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    wider = ', or jax.config.update("jax_enable_x64", True)' if narrow else ""
    return (
        f"{name} has values up to {largest:.7g}, where numbers of {jnp.dtype(dtype)} are"
        f" {spacing:.2g} apart: noise of sigma = {sigma:.2g} is lost in rounding. Subtract the"
        f" offset, such as the mean, from all data in float64 first{wider}"
    )


# Numbers must be at most sigma over this apart: rounding then adds 1 / (12 * 16^2), or .03%, to
# the noise's variance.
_LEVELS = 16


def _warn_coarse(name, y, energy):
    """Warns if sigma is lost in rounding at most of the y; a few far away do no harm."""
    if isinstance(y, Tracer) or y.size == 0:
        return
    sigma, dtype = _smallest_sigma(energy), _common_dtype(energy, y)
    if too_coarse(name, _largest(y), sigma, dtype):
        rows = y.reshape(-1, *energy.event_shape)
        some = np.abs(np.asarray(rows[:: -(-len(rows) // 1000)]))
        if text := too_coarse(name, float(np.max(np.median(some, axis=0))), sigma, dtype):
            warnings.warn(text, stacklevel=find_stack_level())


def _common_dtype(energy, y):
    sigma = getattr(energy, "sigma", energy.loc)
    # Not result_type of both: sigma = jnp.asarray(0.5) is weakly typed, and would give way.
    return jnp.promote_types(jax.dtypes.canonicalize_dtype(y.dtype), jnp.result_type(sigma))


def _largest(x):
    # Not in JAX: inside of jax.jit, what it computes from known values is traced too.
    x = np.asarray(x)
    return max(float(x.max()), -float(x.min()))


def _smallest_sigma(energy):
    sigma = energy.sigma if hasattr(energy, "sigma") else energy.levels(jnp.zeros(()))
    return None if isinstance(sigma, Tracer) else float(np.min(np.asarray(sigma)))


# Columns whose scales differ by more than this need standardising, for noise with one sigma.
_UNLIKE = 30.0


def warn_unlike_scales(name: str, x: Array | np.ndarray) -> None:
    """Warns if the columns of a table differ in scale more than thirtyfold.

    Noise of one sigma then hides the narrow columns, or is too small to smooth the wide ones. A
    column's scale is the root mean square distance from its median, over the rows off the median:
    pixels that are mostly black have the scale of the others. Up to 1,000 rows are looked at.

    Args:
        name: The argument's name, for the message.
        x: Data of shape (n, d); data of other shapes are not tables, and are left alone.
    """
    if x.ndim != 2 or x.shape[1] < 2:
        return
    some = np.asarray(x[:: -(-len(x) // 1000)])
    # float16 overflows when squared, and a large offset would be rounded.
    off = some.astype(float) - np.median(some, axis=0).astype(float)
    unit = max(float(np.abs(off).max()), np.finfo(float).tiny)
    counts = np.count_nonzero(off, axis=0)
    scales = unit * np.sqrt(np.sum((off / unit) ** 2, axis=0) / np.maximum(counts, 1))
    columns = np.flatnonzero(counts > len(some) / 100)
    if not len(columns):
        return
    low, high = (columns[pick(scales[columns])] for pick in (np.argmin, np.argmax))
    if scales[high] > _UNLIKE * scales[low]:
        warnings.warn(
            f"the columns of {name} differ in scale by a factor of"
            f" {scales[high] / scales[low]:,.0f}: {scales[low]:.2g} in column {low} and"
            f" {scales[high]:.2g} in column {high}. The noise has one sigma for all of them:"
            " standardise the columns first, by their standard deviations",
            stacklevel=find_stack_level(),
        )
