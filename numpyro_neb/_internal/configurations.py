"""Configurations: how a file describes an energy or a network, and how it is rebuilt from that.

A class states its own with `configured`, where it is defined. A configuration may come from
anybody: only classes stated in this way are constructed, not their subclasses, with shapes in
place of arrays, once each word is what it must be and no size is larger than the file.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto
from math import prod
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_neb._internal.checks import require, short
from numpyro_neb._internal.named_functions import find_function, function_name

_Class = TypeVar("_Class", bound=type)


class UnknownModuleError(Exception):
    """A module whose class is not stated."""


class Word(NamedTuple):
    """What a word of a configuration must be, and what it stands for.

    Attributes:
        what: What it must be, for messages.
        fits: Whether a value from a file is valid.
        read: Maps that value to the constructor's argument.
        write: Maps the module's field to that value, or to None if no file can hold it.
    """

    what: str
    fits: Callable[[Any], bool]
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value


class Values(Enum):
    """What the numbers of an array must be."""

    FINITE = auto()
    POSITIVE = auto()
    NOT_NEGATIVE = auto()
    BOUNDED_ABOVE = auto()  # -inf may be among them, but the largest is finite


class _Stated(NamedTuple):
    """What `configured` was told about a class."""

    cls: type
    words: Mapping[str, Word]
    arrays: Mapping[str, Values]
    make: Callable[..., Any]
    fields: Callable[[Any], Mapping[str, Any]]
    extent: Callable[[Mapping[str, Any]], tuple[int, dict[str, int]]] | None


_STATED: dict[str, _Stated] = {}


def configured(
    name: str,
    words: Mapping[str, Word] | None = None,
    *,
    arrays: Mapping[str, Values] | None = None,
    make: Callable[..., Any] | None = None,
    fields: Callable[[Any], Mapping[str, Any]] = vars,
    extent: Callable[[Mapping[str, Any]], tuple[int, dict[str, int]]] | None = None,
) -> Callable[[_Class], _Class]:
    """States how files describe the instances of a class, and how to build one again.

    A subclass must state its own. Words missing from a file take the constructor's defaults, so
    words can be added later.

    Args:
        name: The class's name in files. It must not change once files contain it.
        words: The constructor's arguments that files hold, in their order there.
        arrays: For the arrays whose values a constructor checks, by their paths in the module,
            what these must be.
        make: What to call with the words and those of `arrays` that the file has, as shapes: by
            default the class. If it has an argument `key`, it is given one.
        fields: The values of the words in an instance; a missing word means that files can't
            describe this instance.
        extent: From the arguments of `make`: a number of layers, each of which has an array, and
            sizes by word, none larger than the count of numbers in all arrays. Needed if
            the constructor loops, or makes anything that is not an array.

    Returns:
        A decorator that returns the class as it is.
    """

    def state(cls: _Class) -> _Class:
        _STATED[name] = _Stated(cls, words or {}, arrays or {}, make or cls, fields, extent)
        return cls

    return state


def describe(module: Any) -> dict[str, Any]:
    """The configuration from which `rebuilt` builds an energy or network, as JSON."""
    for name, stated in _STATED.items():
        if stated.cls is type(module):
            fields = stated.fields(module)
            config = {word: kind.write(fields.get(word)) for word, kind in stated.words.items()}
            if None not in config.values():
                return {"class": name} | config
    return {"unknown": type(module).__name__}


def rebuilt(config: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The module with shapes in place of arrays: nothing of the stated size is allocated.

    Args:
        config: What `describe` returned, or a forgery of it.
        tensors: The arrays of the file that it is in.

    Raises:
        UnknownModuleError: If it names a class that is not stated.
        Exception: Of any kind, if nothing can be built from it.
    """
    shapes = {k: jax.ShapeDtypeStruct(v.shape, jnp.result_type(float)) for k, v in tensors.items()}
    return eqx.filter_eval_shape(lambda shapes: _built(config, shapes), shapes)


def wrong_values(config: Any, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """The arrays that no constructor would have made, and what is wrong with each.

    Args:
        config: A configuration that `rebuilt` has built.
        tensors: The arrays of the file that it is in.
    """
    stated = _STATED[config["class"]]
    for name, values in stated.arrays.items():
        if name in tensors and (what := _wrong(tensors[name], values)) is not None:
            yield name, what
    for word in (word for word, kind in stated.words.items() if kind is MODULE):
        for name, what in wrong_values(config[word], _inside(word, tensors)):
            yield f"{word}.{name}", what


def _wrong(array, values):
    if not np.all(np.isfinite(np.max(array) if values is Values.BOUNDED_ABOVE else array)):
        return "not finite"
    if values is Values.POSITIVE and not np.all(array > 0):
        return "not positive"
    if values is Values.NOT_NEGATIVE and not np.all(array >= 0):
        return "negative"
    return None


def _built(config, arrays, depth=0):
    require(depth <= _DEEPEST, f"{depth} modules inside each other")
    stated, arguments = _STATED[_checked_name(config)], {}
    for word, value in config.items():
        if word == "class":
            continue
        require(word in stated.words, f"the unknown word {short(word)}")
        kind = stated.words[word]
        require(kind.fits(value), f"{word} must be {kind.what}, got {short(value)}")
        if kind is MODULE:
            arguments[word] = _built(value, _inside(word, arrays), depth + 1)
        else:
            arguments[word] = kind.read(value)
    arguments |= {path: arrays[path] for path in stated.arrays if path in arrays}
    signature = inspect.signature(stated.make)
    if "key" in signature.parameters:
        arguments["key"] = jax.random.key(0)
    if stated.extent is not None:
        bound = signature.bind(**arguments)
        bound.apply_defaults()
        _check_in_file(*stated.extent(bound.arguments), arrays)
    return stated.make(**arguments)


def _checked_name(config):
    require(isinstance(config, dict), f"{short(config)} is not a configuration")
    name = config.get("unknown", config.get("class"))
    require(isinstance(name, str), f"class must be a name, got {short(name)}")
    known = "unknown" not in config and name in _STATED
    require(known, short(name).strip("'"), UnknownModuleError)
    return name


def _check_in_file(layers, sizes, arrays):
    """Refuses a module larger than the file before any of it is built."""
    require(layers <= len(arrays), f"{layers} layers with {len(arrays)} arrays")
    numbers = sum(array.size for array in arrays.values())
    for word, size in sizes.items():
        require(size <= numbers, f"{word} of {size} with {numbers} numbers")


def _inside(word, arrays):
    """The arrays inside the field of that name, by their paths in it."""
    start = f"{word}."
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}


# Limits nested modules, so that a file of few bytes cannot ask for thousands.
_DEEPEST = 8
# An array's indices are 32-bit numbers, and NumPy's arrays have at most 32 or 64 dimensions.
_LARGEST_SIZE, _LARGEST_RANK = 2**31 - 1, 32


def _is_size(value):
    return type(value) is int and 0 <= value <= _LARGEST_SIZE


def _are_sizes(value):
    return isinstance(value, list) and all(map(_is_size, value))


def _is_shape(value):
    return _are_sizes(value) and len(value) <= _LARGEST_RANK and prod(value) <= _LARGEST_SIZE


def _are_numbers(value):
    return isinstance(value, list) and all(type(x) in (int, float) for x in value)


def _is_text(value):
    return isinstance(value, str)


def _activation(name):
    function = find_function(name)
    out = jax.eval_shape(function, jax.ShapeDtypeStruct((3,), jnp.result_type(float)))
    require(getattr(out, "shape", None) == (3,), f"{short(name)} is not an activation")
    return function


NAME = Word("a name", _is_text)
TRUTH = Word("true or false", lambda value: isinstance(value, bool))
SIZE = Word("a size", _is_size)
SIZE_OR_SCALAR = Word("a size", lambda value: value == "scalar" or _is_size(value))
SIZES = Word("a list of sizes", _are_sizes, tuple)
SHAPE = Word("a shape", _is_shape, tuple)
NUMBER = Word("a number", lambda value: _are_numbers([value]))
NUMBERS = Word("a list of numbers", _are_numbers, tuple)
ACTIVATION = Word("a name", _is_text, _activation, function_name)
MODULE = Word("a configuration", lambda value: isinstance(value, dict), write=describe)
