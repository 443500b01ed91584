"""Argument checks, before anything is computed: each error names the argument and what it was.

Types, dtypes and shapes are checked whether or not a value is traced; values only if they are
known, so that nothing here prevents `jax.jit`, `jax.vmap` or a derivative.
"""

import reprlib
from collections.abc import Callable, Sequence
from decimal import Decimal
from numbers import Integral, Real
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
    """An object that NumPy converts to an array, such as an `xarray.DataArray`."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The array."""
        ...


Numbers = ArrayLike | Sequence | SupportsArray


def require(ok: Any, message: str, error: type[Exception] = ValueError) -> None:
    """Raises `error(message)` unless `ok`; the message says what must be, and what was given."""
    if not ok:
        raise error(message)


def kind(value: Any) -> str:
    """What a value is, for a message: an array's dtype and shape, or the name of a type."""
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_type(name: str, value: Any, wanted: Any, what: str) -> None:
    """Raises a TypeError unless a value is an instance of `wanted`, in words `what`.

    For functions, `wanted` may be `collections.abc.Callable`.
    """
    require(isinstance(value, wanted), f"{name} must be {what}, got {kind(value)}", TypeError)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises a ValueError unless a value is one of some strings."""
    *others, last = map(repr, choices)
    known = isinstance(value, str) and value in choices
    require(known, f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def check_key(key: Any, num_chains: int | None = None) -> Array:
    """One JAX random key, typed or of uint32.

    Args:
        key: The argument.
        num_chains: If not None, that many keys are accepted as well.

    Raises:
        TypeError: If it is not a key.
        ValueError: If it is a batch of keys.
    """
    is_array = isinstance(key, jax.Array | np.ndarray)
    typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    size = 4 if "rbg" in jax.config.values["jax_default_prng_impl"] else 2  # of bare numbers
    bare = is_array and key.dtype == np.uint32 and key.shape[-1:] == (size,)
    what = f"key must be a JAX random key, as jax.random.key(0) is, got {kind(key)}"
    require(typed or bare, what, TypeError)
    batch = key.shape if typed else key.shape[:-1]
    chains = "" if num_chains is None else f", or one for each of {num_chains} chains"
    what = f"key must be one JAX random key{chains}, got keys of shape {batch}"
    require(batch in ((), (num_chains,)), what)
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


def check_counts(least: int = 1, **counts: Any) -> tuple[int, ...]:
    """`check_count` of several arguments, each given under its own name."""
    return tuple(check_count(name, value, least) for name, value in counts.items())


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """A tuple of positive ints, such as an event shape.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        return tuple(check_count(name, size) for size in value)
    except (TypeError, ValueError):
        wanted = "a tuple of positive ints, as in (64,)"
        raise ValueError(f"{name} must be {wanted}, got {value!r}") from None


def check_number(name: str, value: Any) -> Any:
    """A real number, as an array without dimensions.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it has dimensions.
    """
    number = value is not None and not isinstance(value, str | bytes | bool)
    require(number, f"{name} must be a number, got {value!r}", TypeError)
    array = check_reals(name, value)
    require(array.shape == (), f"{name} must be a scalar, got shape {array.shape}")
    return array


def check_positive(name: str, value: Any, below: float = np.inf, *, scalar: bool = True) -> Any:
    """Positive numbers in JAX's default float; traced ones are checked at run time.

    Args:
        name: The argument's name, for the message.
        value: The argument.
        below: What it must be less than, such as 1 for a share.
        scalar: Whether it must be a single number.

    Returns:
        A float for a scalar that is known now, otherwise an array.

    Raises:
        TypeError: If it does not hold real numbers.
        ValueError: If it has dimensions and must not, or if a number that is known now is not
            positive, or not less than `below`, in that dtype.
    """
    array = check_number(name, value) if scalar else check_reals(name, value)
    if isinstance(array, Tracer):
        wrong = ~((array > 0) & (array < below))
        wanted = "positive and finite" if np.isinf(below) else f"between 0 and {below:g}"
        return eqx.error_if(array, wrong, f"{name} must be {wanted}")
    numbers = rounded(array, jnp.result_type(float))
    low, high = np.all(np.asarray(numbers) > 0), np.all(np.asarray(numbers) < below)
    if not (low and high):
        wanted = "finite" if low else "positive"
        wanted = wanted if np.isinf(below) else f"between 0 and {below:g}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return float(array) if scalar else numbers


def as_array(name: str, value: Any) -> Array | np.ndarray:
    """A value as an array of any dtype; JAX arrays, traced or not, are returned unchanged.

    All that NumPy converts is accepted: tables of pandas and polars, tensors, lists of rows. Python
    numbers in an array of objects, as tables of several types give, become floats, or ints if all
    are. JAX has no long doubles: they become float64.

    Raises:
        TypeError: If it is not one, such as a list of rows of several lengths, or if an array of
            objects holds anything but real numbers.
    """
    if isinstance(value, jax.Array):
        return value
    leaves = jax.tree.leaves(value) if isinstance(value, list | tuple) else [value]
    masked = f"{name} must be a plain array, got a masked one: fill or drop its gaps"
    require(not any(map(np.ma.is_masked, leaves)), masked, TypeError)
    try:
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            return jnp.asarray(value)
        array = np.asarray(value)
    except Exception as error:  # of whatever kind: tensors with a gradient raise a RuntimeError
        raise TypeError(f"{name} must be an array, got {kind(value)}: {error}") from None
    if array.dtype == object and array.shape != ():
        array = _of_objects(name, array, getattr(value, "columns", None))
    if array.dtype == np.longdouble:
        array = rounded(array, np.float64)
    # JAX takes only the native byte order; FITS files have another.
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _of_objects(name, array, columns):
    """The numbers of an array of objects; the error says where anything else is."""
    types = set(map(type, array.flat))
    wrong = {t for t in types if not issubclass(t, Real | Decimal) or issubclass(t, bool)}
    if not wrong:
        whole = all(issubclass(t, Integral) for t in types) and array.size > 0
        return array.astype(np.int64 if whole and np.abs(array).max() < 2**63 else float)
    place, item = next((i, item) for i, item in np.ndenumerate(array) if type(item) in wrong)
    where = f"at {place}"
    if array.ndim == 2 and columns is not None:
        where = f"in row {place[0]} of column {columns[place[1]]!r}"
    got, advice = f"{kind(item)} {short(item)}", "leave it out, or turn it into numbers"
    if item is None or type(item).__name__ in ("NAType", "NaTType"):
        got, advice = "a missing value", "fill or drop its gaps"
    raise TypeError(f"{name} must hold real numbers, got {got} {where}: {advice}")


def check_reals(name: str, value: Any) -> Array | np.ndarray:
    """An array of real numbers: floats of any width or ints, from an array or lists of numbers.

    Raises:
        TypeError: If it holds anything else.
    """
    array = as_array(name, value)
    message = f"{name} must hold real numbers, got {_held(array)}{_advice(name, array)}"
    require(_is(array, jnp.floating, jnp.integer), message, TypeError)
    return array


def check_floats(name: str, value: Any) -> Array | np.ndarray:
    """An array of floats of any width.

    Raises:
        TypeError: If it holds anything else: data of ints are often not on the scale that a model
            of continuous data needs, and nothing is cast silently.
    """
    array = as_array(name, value)
    message = f"{name} must hold floats, got {_held(array)}{_advice(name, array)}"
    require(_is(array, jnp.floating), message, TypeError)
    return array


def check_finite(name: str, array: Array | np.ndarray, *, in_jax: bool = False) -> None:
    """Raises a ValueError if a value that is known now is NaN or infinite.

    Args:
        name: The argument's name, for the message.
        array: The argument.
        in_jax: Whether it goes to JAX, where values too large for JAX's default float are wrong.
    """
    if not isinstance(array, Tracer):
        dtype = jax.dtypes.canonicalize_dtype(array.dtype) if in_jax else array.dtype
        finite = np.all(np.isfinite(rounded(array, dtype)))
        cast = "" if dtype == array.dtype else f" in {dtype}"
        require(finite, f"{name} must be finite, got NaN or infinity{cast}")


def check_shape(name: str, array: Array | np.ndarray, shape: tuple[int | str, ...]) -> None:
    """Raises a ValueError unless an array has a shape; a name stands for any size but zero."""
    pairs = zip(array.shape, shape, strict=False)
    fits = [a > 0 if isinstance(b, str) else a == b for a, b in pairs]
    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    same = array.ndim == len(shape) and all(fits)
    require(same, f"{name} must have shape {wanted}, got {array.shape}")


def check_squares(name: str, array: np.ndarray, unit: float = 1.0) -> None:
    """Raises a ValueError if a square, also in that unit, would overflow float64."""
    largest, limit = np.abs(array).max(), 1e150 * min(1.0, unit)
    require(largest <= limit, f"{name} must be at most {limit:g}, to be squared, got {largest:g}")


def rounded(array: Array | np.ndarray, dtype: Any) -> Array | np.ndarray:
    """An array in another dtype, in which values that are too large become infinite."""
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def finite(name: str, value: Any) -> Float[Array, "..."]:
    """Real numbers as an array of JAX's default float, finite if they are known now.

    Raises:
        TypeError: If they are not real numbers.
        ValueError: If one is NaN or infinite, or too large for that dtype.
    """
    array = rounded(check_reals(name, value), jnp.result_type(float))
    check_finite(name, array)
    return jnp.asarray(array)


def finite_on_host(name: str, value: Any, *, in_jax: bool = False) -> Float[np.ndarray, "..."]:
    """Finite real numbers as a NumPy array of float64; see `check_finite` for `in_jax`.

    Raises:
        TypeError: If they are not real numbers.
        ValueError: If one is NaN or infinite.
    """
    array = np.asarray(check_reals(name, value), float)
    check_finite(name, array, in_jax=in_jax)
    return array


def check_result(name: str, out: Any, shape: tuple[int, ...], hint: str = "") -> None:
    """Raises a ValueError unless a function's result, computed or abstract, is floats of a shape.

    Args:
        name: The function's name among the arguments.
        out: An array, traced or not, or its `jax.ShapeDtypeStruct`.
        shape: The shape that it must have.
        hint: More text for the message.
    """
    got = getattr(out, "shape", type(out).__name__)
    require(got == shape, f"{name} must return an array of shape {shape}, got {got}{hint}")
    is_float = jnp.issubdtype(out.dtype, jnp.floating)
    require(is_float, f"{name} must return floats, got {out.dtype}")


def check_network(
    name: str,
    fn: Callable,
    event_shape: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: Any,
    hint: str = "",
) -> None:
    """Raises an error unless `fn` maps one event to floats of a shape; nothing is computed.

    Args:
        name: The function's name among the arguments.
        fn: The function; if it is a module, its arrays may be shapes.
        event_shape: The shape of one event.
        shape: The shape of what it must return.
        dtype: That of the event.
        hint: What to add to the message if the shape differs.

    Raises:
        TypeError: If `fn` is not callable.
        ValueError: If it raises an error, or returns anything else.
    """
    check_type(name, fn, Callable, "callable")
    y = jax.ShapeDtypeStruct(event_shape, dtype)
    try:
        out = eqx.filter_eval_shape(lambda fn, y: fn(y), fn, y)
    except Exception as error:
        wanted = f"must take one array of the event shape {event_shape}"
        raise ValueError(f"{name} {wanted}; it raised: {error}") from error
    check_result(name, out, shape, hint)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def short(value: Any) -> str:
    """Text from a file, safe to show in an error: short, and unable to control a terminal."""
    return _REPR.repr(value)


def _is(array, *kinds):
    # NumPy counts a time difference among the integers.
    time = getattr(array.dtype, "kind", None) == "m"  # a key's dtype has none
    return not time and any(jnp.issubdtype(array.dtype, kind) for kind in kinds)


def _held(array):
    if array.dtype != object or array.shape != ():
        return array.dtype
    return "None" if array.item() is None else kind(array.item())


def _advice(name, array):
    """How to make floats of an array that holds something else, for the end of a message."""
    if _is(array, jnp.integer):
        return f": convert it with np.asarray({name}, float), and scale it, an image by 1 / 255 say"
    if array.dtype == object and isinstance(array.item(), dict):
        return f": make it a table with pandas.DataFrame({name})"
    if array.dtype == object and hasattr(array.item(), "toarray"):
        return ": make it dense with .toarray()"
    advice = {
        "b": f"convert it with np.asarray({name}, float)",
        "c": "take its real and imaginary parts as coordinates",
        "m": "divide it by a unit, such as np.timedelta64(1, 's')",
        "M": "subtract one time from all, and divide by a unit, such as np.timedelta64(1, 's')",
        "U": f"if it is the text of numbers, convert it with np.asarray({name}, float)",
        "V": "make it plain with numpy.lib.recfunctions.structured_to_unstructured",
    }.get(getattr(array.dtype, "kind", ""))
    return "" if advice is None else f": {advice}"
