"""What tells one computation from another: functions and data, by their content.

Two processes that run the same program get the same fingerprint of its functions and data, however
strings are hashed and wherever objects lie in memory. Comments, line numbers and docstrings do not
count. What an installed library defines is known by its name, and the library's version is noted.
"""

import copyreg
import dataclasses
import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_neb._internal.checks import short
from numpyro_neb._internal.compiled_code import code_text, imported_modules, names_read
from numpyro_neb._internal.libraries import library_name, version_of
from numpyro_neb._internal.named_functions import function_name
from numpyro_neb._internal.tables import as_table

# What is only there for a message is limited, since it is written to files.
_MOST_PARTS, _MOST_UNKNOWN, _LONGEST_PATH, _LONGEST_TEXT = 1000, 50, 200, 60
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_CODE = ": code"
# Their wrappers check types, and have names and states that differ between processes.
_CHECKERS = ("beartype", "jaxtyping", "typeguard")
# What a function or a class says about itself.
_ABOUT = {*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "__annotate__", "__annotate_func__"}
_ABOUT |= {"__repr__", "__str__", "_abc_impl"}
_PYTHON = "{}.{}".format(*sys.version_info)


def fingerprint(things: Mapping[str, Any]) -> dict[str, Any]:
    """The SHA-256 of each of some functions or data, and of what they consist of, as JSON.

    A function counts with its code, its defaults, the variables of its closure and the global
    variables that it reads; an object with its class and its attributes; an array with its dtype,
    shape and values.

    Args:
        things: Functions, arrays, tables, modules or any other objects by name.

    Returns:
        "sha256" of each; "parts", for messages: what each consists of, by its place; "versions" of
        Python and of the libraries that were met; "unknown", the places of objects that can't be
        compared, such as open files.
    """
    found: dict[str, Any] = {"sha256": {}, "parts": {}}
    reader = _Reader({}, {"Python": _PYTHON}, [])
    for name, thing in things.items():
        reader.parts = found["parts"][name] = {}
        try:
            found["sha256"][name] = reader.read(thing, name)
        except RecursionError:
            reader.unknown.append(f"{name} (too deep)")
            found["sha256"][name] = "unknown"
    return found | {"versions": reader.versions, "unknown": reader.unknown[:_MOST_UNKNOWN]}


def difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """What differs between two fingerprints, as part of a message; None if nothing does.

    Only things that are in both count.
    """
    for name, digest in ours["sha256"].items():
        if theirs["sha256"].get(name, digest) == digest:
            continue
        other, mine = theirs["parts"].get(name, {}), ours["parts"][name]
        part = next((p for p in [*mine, *other] if mine.get(p) != other.get(p)), name)
        python = theirs["versions"].get("Python")
        if part.endswith(_CODE) and python != _PYTHON:  # which compiles functions differently
            return f"Python version ({short(python)}, now {_PYTHON})"
        place = part.removeprefix(name).lstrip(": .")
        place = place if part in mine else short(place)  # which may be forged
        was = f"{short(other.get(part))}, now {short(mine.get(part))}"
        return f"{name} ({place}{': ' if place else ''}{was})"
    return None


def reservations(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """What was not compared, as a sentence, or None: other versions, and unknown objects."""
    texts = []
    for name, version in ours["versions"].items():
        before = theirs["versions"].get(name, version)
        if before != version and name != "Python":
            texts.append(f"it began with {name} {before}, and this is {version}")
    if ours["unknown"]:
        texts.append(f"these can't be compared: {', '.join(ours['unknown'])}")
    return "; ".join(texts) or None


class _Module(NamedTuple):
    """A module, and the names that some code may read in it."""

    module: types.ModuleType
    names: frozenset[str]


class _Node(NamedTuple):
    """What an object is, and the objects that it consists of, by their places in it."""

    label: str
    inside: Iterable[tuple[str, Any]] = ()


class _Reader:
    """Computes digests. An object that occurs twice is read once."""

    def __init__(self, parts: dict[str, str], versions: dict[str, str], unknown: list[str]):
        self.parts, self.versions, self.unknown = parts, versions, unknown
        self.noted = 0
        self._done: dict[int, tuple[Any, str, str]] = {}
        self._open: list[int] = []

    def read(self, value: Any, path: str) -> str:
        """The SHA-256 of an object at a path; it and what is inside are noted as parts."""
        if (text := _plain(value, whole=True)) is not None:
            return self._note(path, _plain(value), _sha(text))
        if id(value) in self._open:
            # A circle, such as a function that calls itself: how far back it leads.
            back = len(self._open) - self._open.index(id(value))
            return _sha(f"circle {back}")
        if id(value) in self._done:
            _, label, digest = self._done[id(value)]
            return self._note(path, f"{label} {digest[:16]}", digest)
        self._open.append(id(value))
        try:
            label, inside = self._node(value, path)
            inside = [(place, self.read(one, path + place)) for place, one in inside]
        finally:
            self._open.pop()
        digest = _sha(repr([label, inside]))
        # The object is kept, so that its id is not given to another.
        self._done[id(value)] = value, label, digest
        return digest if inside else self._note(path, label, digest)

    def _note(self, path, text, digest):
        if self.noted < _MOST_PARTS and len(ascii(path)) <= _LONGEST_PATH:
            self.noted += 1
            self.parts[path] = text
        return digest

    def _node(self, value, path) -> _Node:
        kinds = (_array, _table, self._function, self._class, _container, _object)
        try:
            node = next((node for kind in kinds if (node := kind(value)) is not None), None)
        except RecursionError:
            raise
        except Exception:  # whatever the object's class raises
            node = None
        if node is not None:
            return node
        self.unknown.append(f"{path} ({type(value).__qualname__})")
        return _Node(f"unknown {type(value).__qualname__}")

    def _named(self, module: str | None, name: str) -> str | None:
        """The name of what a library defines, or None."""
        if (library := library_name(module)) is None:
            return None
        if library == "numpyro_neb":  # its files have versions of their own
            return f"numpyro_neb {name}"
        if (version := version_of(library)) is not None:
            self.versions[library] = version
        return f"{module} {name}"

    def _function(self, value) -> _Node | None:
        if isinstance(value, types.CodeType):
            return _Node(f"code {_sha(code_text(value))[:16]}")
        if isinstance(value, functools.partial):
            inside = [(".func", value.func), *_numbered(": argument", value.args)]
            return _Node("partial", inside + _keyed(": argument ", value.keywords))
        if isinstance(value, types.MethodType):
            return _Node("method", [("", value.__func__), (": object", value.__self__)])
        if isinstance(value, staticmethod | classmethod):
            return _Node(type(value).__name__, [("", value.__func__)])
        if isinstance(value, property):
            return _Node("property", [("", value.fget)])
        if (name := function_name(value)) is not None:
            return _Node(name)
        if isinstance(value, types.FunctionType):
            return self._python_function(value)
        if callable(value) and not isinstance(value, type):
            return self._compiled_function(value)
        return None

    def _python_function(self, function) -> _Node:
        module = function.__globals__.get("__name__")
        checks = (module or "").partition(".")[0] in _CHECKERS
        checks |= function.__code__.co_filename.startswith("<@beartype(")
        if checks and hasattr(function, "__wrapped__"):
            return self._python_function(function.__wrapped__)  # with checks or without
        closure = list(_closure(function))
        if (name := self._named(module, function.__code__.co_qualname)) is not None:
            return _Node(name, closure + (_defaults(function) if "<locals>" in name else []))
        inside = [(_CODE, function.__code__), *_defaults(function), *closure]
        inside += [(f": global variable '{k}'", v) for k, v in _globals(function)]
        own = {k: v for k, v in vars(function).items() if k not in _ABOUT}
        return _Node("function", inside + _keyed(".", own))

    def _compiled_function(self, value) -> _Node | None:
        """What is called like a function, and is not written in Python."""
        module, name = (getattr(value, k, None) for k in ("__module__", "__qualname__"))
        if isinstance(module, str) and isinstance(name, str):
            found = sys.modules.get(module)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is value and (known := self._named(module, name)) is not None:
                return _Node(known)
        if isinstance(value, types.BuiltinFunctionType | types.MethodWrapperType):
            owner = getattr(value, "__self__", None)
            if owner is None or isinstance(owner, types.ModuleType):
                return _Node(f"{module} {name}")
            return _Node(f"method {value.__name__}", [(": object", owner)])
        # Such as jax.jit's.
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped) and not hasattr(value, "__dict__"):
            return _Node(type(value).__qualname__, [("", wrapped)])
        if type(value).__name__ in ("PjitFunction", "_lru_cache_wrapper") and callable(wrapped):
            return _Node(type(value).__qualname__, [("", wrapped)])
        return None

    def _class(self, value) -> _Node | None:
        if isinstance(value, types.ModuleType):
            value = _Module(value, frozenset())
        if isinstance(value, _Module):
            module, name = value.module, value.module.__name__
            if (known := self._named(name, "module")) is not None:
                return _Node(known)
            used = [k for k in sorted(value.names & vars(module).keys()) if not k.startswith("__")]
            inside = [(f".{k}", _in_module(vars(module)[k], value.names)) for k in used]
            return _Node(f"module {name}", inside)
        if not isinstance(value, type):
            return None
        if (known := self._named(value.__module__, value.__qualname__)) is not None:
            return _Node(known)
        inside = [*_numbered(": base", value.__bases__), *_keyed(".", _defined(value))]
        return _Node(f"class {value.__qualname__}", inside)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any, whole: bool = False) -> str | None:
    if type(value) not in _PLAIN:
        return None
    text = hex(value) if type(value) is int and abs(value) > 1 << 64 else repr(value)
    if whole or len(text) <= _LONGEST_TEXT:
        return text
    return f"{type(value).__name__} {_sha(text)[:16]}"


def _array(value: Any) -> _Node | None:
    if np.ma.isMaskedArray(value):
        parts = [("", np.ma.getdata(value)), (" mask", np.ma.getmaskarray(value))]
        return _Node("masked array", parts)
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        return None
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        key: Any = value
        numbers = array_digest(np.asarray(jax.random.key_data(key)))
        return _Node(f"key of {value.dtype} {numbers[:16]}")
    array = np.asarray(value)
    what = f"{array.dtype} of shape {list(array.shape)}"
    if array.dtype.hasobject or array.dtype.names or array.dtype.kind == "T":
        return _Node(what, [(" values", array.tolist())])
    if array.ndim == 0 and array.dtype.kind in "biufc":
        return _Node(f"{what} {array.item()!r}")
    return _Node(f"{what} {array_digest(array)[:16]}")


def _table(value) -> _Node | None:
    table = as_table(value)
    return None if table is None else _Node(*table)


def array_digest(array: np.ndarray) -> str:
    """The SHA-256 of an array's numbers, read piece by piece: an array on disk stays there."""
    sha256, pieces = hashlib.sha256(), [array.reshape(-1) if array.ndim == 0 else array]
    if array.ndim and array.size:
        rows = max(1, (1 << 24) // max(1, array[0].nbytes))
        pieces = (array[i : i + rows] for i in range(0, len(array), rows))
    for piece in pieces:
        sha256.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def _container(value) -> _Node | None:
    if isinstance(value, dict | types.MappingProxyType):
        return _Node(type(value).__name__, _keyed("", value, "[{!r}]"))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names = value._fields  # pyright: ignore[reportAttributeAccessIssue]
        return _Node(type(value).__name__, [(f".{k}", getattr(value, k)) for k in names])
    if isinstance(value, list | tuple):
        what = f"{type(value).__name__} of {len(value)}"
        if len(value) > 20 and all(type(one) in _PLAIN for one in value):
            return _Node(f"{what} {_sha(repr([_plain(x, whole=True) for x in value]))[:16]}")
        return _Node(what, _numbered("", value))
    if isinstance(value, set | frozenset):
        members = sorted(_digest(one) for one in value)
        return _Node(f"{type(value).__name__} of {len(value)} {_sha(repr(members))[:16]}")
    return None


def _digest(value) -> str:
    return _Reader({}, {}, []).read(value, "")


def _numbered(word, values) -> list[tuple[str, Any]]:
    return [(f"{word}[{i}]", one) for i, one in enumerate(values)]


def _keyed(word, values: Mapping, form: str = "{}") -> list[tuple[str, Any]]:
    """The values of a mapping by their keys, in an order that does not depend on theirs."""
    text = lambda key: key if type(key) in _PLAIN else f"key {_digest(key)[:16]}"  # noqa: E731
    pairs = [(f"{word}{form.format(text(key))}", value) for key, value in values.items()]
    return sorted(pairs, key=lambda pair: pair[0])


def _closure(function) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # it has yet to be assigned
            continue
        yield f": closure variable '{name}'", value


def _defaults(function) -> list[tuple[str, Any]]:
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    named = dict(zip(names, values, strict=True)) | (function.__kwdefaults__ or {})
    return [(f": default argument '{name}'", value) for name, value in named.items()]


def _globals(function) -> Iterator[tuple[str, Any]]:
    """The global variables that a function reads, those of nested functions included."""
    names, attributes = names_read(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        yield name, _in_module(function.__globals__[name], attributes)
    for module in imported_modules(function):
        yield module.__name__, _Module(module, attributes)


def _in_module(value, names):
    return _Module(value, names) if isinstance(value, types.ModuleType) else value


def _defined(cls) -> dict[str, Any]:
    """What a class defines: its methods and its constants."""
    return {
        name: value
        for name, value in vars(cls).items()
        if not isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType)
        and name not in _ABOUT
        and (not name.startswith("__") or isinstance(value, types.FunctionType))
    }


def _object(value) -> _Node | None:
    """Any other object: its class, and its attributes or what pickle would keep of it."""
    cls = type(value)
    label, inside = f"a {cls.__qualname__}", list[tuple[str, Any]]([("", cls)])
    if isinstance(value, enum.Enum):
        return _Node(f"{cls.__qualname__}.{value.name}", [("", value.value)])
    if hasattr(cls, "__array__") and library_name(cls.__module__) is not None:
        detached = getattr(value, "detach", lambda: value)()  # a torch.Tensor, from its gradient
        return _Node(label, [("", np.asarray(detached))])
    own = getattr(value, "__dict__", {})
    how: Any
    try:
        how = copyreg.dispatch_table.get(cls, lambda value: value.__reduce_ex__(4))(value)
    except Exception:  # whatever a class raises: it does not pickle
        is_own = own and library_name(cls.__module__) is None
        return _Node(label, inside + _attributes(cls, own)) if is_own else None
    if isinstance(how, str):
        return _Node(f"{label} {how}")
    made, arguments, state, items, pairs = [*how, None, None, None][:5]
    if made is not vars(copyreg)["__newobj__"]:
        inside.append((": constructor", made))
    inside += _numbered(": content", arguments)
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        state = (state[0] or {}) | state[1]  # a __dict__ and slots
    if isinstance(state, dict):
        inside += _attributes(cls, state)
    elif state is not None:
        inside.append((": state", state))
    inside += [] if items is None else [(": items", list(items))]
    inside += [] if pairs is None else [(": items", dict(pairs))]
    return _Node(label, inside)


def _attributes(cls, values: Mapping) -> list[tuple[str, Any]]:
    """Attributes by name, but not those that a property of the class once computed.

    In the package's own classes defaults are left out: a later release may add more of them.
    """
    kept = {k: v for k, v in values.items() if k not in _ABOUT and not _is_cache(cls, k)}
    if library_name(cls.__module__) == "numpyro_neb" and dataclasses.is_dataclass(cls):
        defaults = {field.name: _plain(field.default) for field in dataclasses.fields(cls)}
        kept = {k: v for k, v in kept.items() if _plain(v) is None or _plain(v) != defaults.get(k)}
    wrapped = values.get("__wrapped__")
    return _keyed(".", kept) + ([] if wrapped is None else [("", wrapped)])


def _is_cache(cls, name) -> bool:
    found: Any = next((vars(one)[name] for one in cls.__mro__ if name in vars(one)), None)
    lazy = hasattr(type(found), "__get__") and not hasattr(type(found), "__set__")
    return lazy and not callable(found)
