"""Checks of arguments, before anything is computed: each error names the argument and what it was.

Types, dtypes and shapes are looked at whether or not a value is traced, values only where they are
known, so that nothing here stands in the way of `jax.jit`, `jax.vmap` or a derivative.
"""

import os
import reprlib
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float


@runtime_checkable
class SupportsArray(Protocol):
    """What NumPy makes an array of, such as an `xarray.DataArray`."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The array."""
        ...


Numbers = ArrayLike | Sequence | SupportsArray


def kind(value: Any) -> str:
    """What a value is, for a message: an array's dtype and shape, or the name of a type."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_key(key: Any, num_chains: int | None = None) -> Array:
    """One JAX random key, typed or of uint32.

    Args:
        key: The argument.
        num_chains: Where not None, that many keys will do as well.

    Raises:
        TypeError: If it is no key.
        ValueError: If it is a batch of keys.
    """
    is_array = isinstance(key, jax.Array | np.ndarray)
    typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    size = 4 if "rbg" in jax.config.values["jax_default_prng_impl"] else 2  # of bare numbers
    if not typed and not (is_array and key.dtype == np.uint32 and key.shape[-1:] == (size,)):
        raise TypeError(f"key must be a JAX random key, as jax.random.key(0) is, got {kind(key)}")
    batch = key.shape if typed else key.shape[:-1]
    if batch not in ((), (num_chains,)):
        chains = "" if num_chains is None else f", or one for each of {num_chains} chains"
        raise ValueError(f"key must be one JAX random key{chains}, got keys of shape {batch}")
    return jnp.asarray(key)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """An int of at least `least`, from any type of integers but bool.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        count = None if isinstance(value, bool | np.bool_) else index(value)
    except TypeError:
        count = None
    if count is None or count < least:
        wanted = "a positive int" if least == 1 else f"an int of at least {least}"
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return count


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """A tuple of positive ints, such as an event shape.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        return tuple(check_count(name, size) for size in value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be a tuple of positive ints, as in (64,), got {value!r}"
        ) from None


def check_positive(name: str, value: Any, below: float = np.inf) -> Any:
    """A positive, finite number as a float; a traced one as it is.

    Args:
        name: The argument's name, for the message.
        value: The argument.
        below: What it must be less than, such as 1 for a share.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it has dimensions, or is not between 0 and `below`.
    """
    array = check_number(name, value)
    if isinstance(array, Tracer):
        return value
    if not 0 < array < below:
        wanted = "positive and finite" if np.isinf(below) else f"between 0 and {below:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return float(array)


def check_number(name: str, value: Any) -> Any:
    """A real number, as an array without dimensions.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it has dimensions.
    """
    if value is None or isinstance(value, str | bytes | bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    array = check_reals(name, value)
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}")
    return array


def as_array(name: str, value: Any) -> Array | np.ndarray:
    """The array that a value is, of whatever dtype; JAX's own as they are, traced or not.

    Raises:
        TypeError: If it is none, such as a list of rows of several lengths.
    """
    if isinstance(value, jax.Array):
        return value
    if np.ma.is_masked(value):
        raise TypeError(f"{name} must be a plain array, got a masked one: fill or drop its gaps")
    try:
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            return jnp.asarray(value)
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {kind(value)}: {error}") from None
    # JAX takes no other byte order, as files of FITS have.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def as_jax(array: Array | np.ndarray, dtype: Any = None) -> Array:
    """An array on the device; what is too large for its dtype there is infinite."""
    with np.errstate(over="ignore"):
        return jnp.asarray(array, dtype)


def check_reals(name: str, value: Any) -> Array | np.ndarray:
    """An array of real numbers: floats of any width or ints, from an array or lists of numbers.

    Raises:
        TypeError: If it holds anything else.
    """
    array = as_array(name, value)
    if not _is(array, jnp.floating, jnp.integer):
        raise TypeError(f"{name} must hold real numbers, got {_held(array)}")
    return array


def check_floats(name: str, value: Any) -> Array | np.ndarray:
    """An array of floats of any width.

    Raises:
        TypeError: If it holds anything else: data of ints are often not on the scale that a model
            of continuous data needs, and nothing is cast in silence.
    """
    array = as_array(name, value)
    if not _is(array, jnp.floating):
        advice = ""
        if _is(array, jnp.integer, jnp.bool_):
            advice = ": convert it with .astype(float), and scale it, an image by 1 / 255 say"
        elif _is(array, jnp.complexfloating):
            advice = ": take its real and imaginary parts as coordinates"
        raise TypeError(f"{name} must hold floats, got {_held(array)}{advice}")
    return array


def check_finite(name: str, array: Array | np.ndarray, *, in_jax: bool = False) -> None:
    """Raises a ValueError where a value that is known now is NaN or infinite.

    Args:
        name: The argument's name, for the message.
        array: The argument.
        in_jax: Whether it goes to JAX, so that what is too large for JAX's default float is wrong.
    """
    if isinstance(array, Tracer):
        return
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    default = jnp.result_type(float)
    wider = isinstance(array, np.ndarray) and array.dtype.itemsize > default.itemsize
    if in_jax and wider and np.abs(array).max(initial=0) > jnp.finfo(default).max:
        raise ValueError(f"{name} must be finite in {default}, got {np.abs(array).max()}")


def check_squares(name: str, array: np.ndarray, unit: float = 1.0) -> None:
    """Raises a ValueError where a square, also in that unit, would overflow float64."""
    largest, limit = np.abs(array).max(), 1e150 * min(1.0, unit)
    if largest > limit:
        raise ValueError(f"{name} must be at most {limit:g}, to be squared, got {largest:g}")


def finite(name: str, value: Any) -> Float[Array, "..."]:
    """Real numbers as an array of JAX's default float, finite where they are known now.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If one is NaN or infinite, or too large for that dtype.
    """
    array = as_jax(check_reals(name, value), float)
    check_finite(name, array)
    return array


def positive(name: str, value: Any) -> Float[Array, "..."]:
    """Positive numbers as an array of JAX's default float; traced ones are checked at run time.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If one that is known now is not positive and finite in that dtype.
    """
    array = as_jax(check_reals(name, value), float)
    if isinstance(array, Tracer):
        wrong = ~(jnp.isfinite(array) & (array > 0))
        return eqx.error_if(array, wrong, f"{name} must be positive and finite")
    if not np.all(np.asarray(array) > 0):
        raise ValueError(f"{name} must be positive, got {value}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {value}")
    return array


def positive_scalar(name: str, value: Any) -> Float[Array, ""]:
    """`positive`, for a scalar.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it has dimensions or is not positive and finite.
    """
    return positive(name, check_number(name, value))


def check_events(name: str, y: Array | np.ndarray, event_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading dimensions of a `y` of shape (*batch, *event_shape).

    Raises:
        ValueError: If its trailing dimensions are not `event_shape`.
    """
    rank = y.ndim - len(event_shape)
    if rank < 0 or y.shape[rank:] != event_shape:
        raise ValueError(f"{name} must end in the event shape {event_shape}, got shape {y.shape}")
    return y.shape[:rank]


def check_rows(
    name: str, x: Array | np.ndarray, event_shape: tuple[int, ...], count: str = "n"
) -> None:
    """Raises a ValueError unless x has the shape (n, *event_shape), and at least one row."""
    if x.ndim == 0 or len(x) == 0 or x.shape[1:] != event_shape:
        raise ValueError(
            f"{name} must have shape ({count}, *event_shape) with event shape {event_shape}"
            f" and {count} at least 1, got {x.shape}"
        )


def check_function(name: str, value: Any) -> None:
    """Raises a TypeError where `value` can't be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {kind(value)}")


def check_result(name: str, out: Any, shape: tuple[int, ...], hint: str = "") -> None:
    """Raises a ValueError unless what a function returned, or would return, are floats of a shape.

    Args:
        name: The function's name among the arguments.
        out: An array, traced or not, or its `jax.ShapeDtypeStruct`.
        shape: The shape that it must have.
        hint: More to say.
    """
    got = getattr(out, "shape", None)
    if got != shape:
        raise ValueError(
            f"{name} must return an array of shape {shape},"
            f" got {type(out).__name__ if got is None else got}{hint}"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"{name} must return floats, got {out.dtype}")


def check_network(
    name: str,
    fn: Callable,
    event_shape: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: Any,
    hint: str = "",
) -> None:
    """Raises a ValueError unless `fn` maps one event to floats of a shape; nothing is computed.

    Args:
        name: The function's name among the arguments.
        fn: The function; where it is a module, shapes will do for its arrays.
        event_shape: The shape of one event.
        shape: The shape of what it must return.
        dtype: That of the event.
        hint: What to say besides where the shape is another one.
    """
    y = jax.ShapeDtypeStruct(event_shape, dtype)
    try:
        out = eqx.filter_eval_shape(lambda fn, y: fn(y), fn, y)
    except Exception as error:
        raise ValueError(
            f"{name} must take one array of the event shape {event_shape}; it raised: {error}"
        ) from error
    check_result(name, out, shape, hint)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def short(value: Any) -> str:
    """What a file says, fit for an error: neither long nor able to steer a terminal."""
    return _REPR.repr(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises a ValueError where `value` is none of some strings."""
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def check_path(name: str, value: Any) -> None:
    """Raises a TypeError where `value` is no path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {kind(value)}")


def _is(array, *kinds):
    # NumPy counts a time difference among the integers.
    time = getattr(array.dtype, "kind", None) == "m"  # a key's dtype has none
    return not time and any(jnp.issubdtype(array.dtype, kind) for kind in kinds)


def _held(array):
    if array.dtype != object or array.shape != ():
        return array.dtype
    return "None" if array.item() is None else kind(array.item())
