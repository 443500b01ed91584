"""What Python's compiled code does, without where it stands in a file."""

import dis
import hashlib
import importlib
import sys
import types
from collections.abc import Iterator

_NAMES = {"LOAD_GLOBAL", "LOAD_NAME"}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"}
# They are about where things lie.
_LEFT_OUT = {"EXTENDED_ARG", "NOP", "CACHE", "RESUME", "PRECALL"}
_ABOUT_A_CLASS = {"__doc__", "__firstlineno__"}


def code_text(code: types.CodeType) -> str:
    """The instructions of a function and of those inside it, as text.

    Line numbers, comments, docstrings and the names of local variables are not in it. It differs
    between versions of Python.
    """
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    arguments = code.co_varnames[: sum(counts[::2])]
    # The flag 1 << 26 says that there is a docstring.
    lines = [f"{counts} {arguments} {code.co_flags & ~(1 << 26)} {code.co_exceptiontable.hex()}"]
    for one in dis.get_instructions(code):
        if one.opname in _LEFT_OUT:
            continue
        if one.opname == "STORE_NAME" and one.argval in _ABOUT_A_CLASS:
            lines.pop()
            continue
        if one.opcode in dis.hasconst:
            value = _constant(one.argval)
        else:
            value = one.argval if one.opcode in _BY_VALUE else one.arg
        lines.append(f"{one.opname} {value}")
    return "\n".join(lines)


_BY_VALUE = {*dis.hasname, *dis.hasjrel, *dis.hasjabs, *dis.hascompare}


def _constant(value):
    if isinstance(value, types.CodeType):
        return hashlib.sha256(code_text(value).encode("utf-8", "surrogatepass")).hexdigest()
    if isinstance(value, frozenset):
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(one) for one in value]}"
    large = type(value) is int and abs(value) > 1 << 64
    return hex(value) if large else f"{type(value).__name__} {value!r}"


def _all_codes(code) -> Iterator[types.CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _all_codes(one)


def names_read(code: types.CodeType) -> tuple[set[str], frozenset[str]]:
    """The global names, and the attributes of anything, that a function may read."""
    names, attributes = set(), set()
    for inner in _all_codes(code):
        for one in dis.get_instructions(inner):
            names |= {one.argval} if one.opname in _NAMES else set()
            attributes |= {one.argval} if one.opname in _ATTRIBUTES else set()
    return names, frozenset(attributes)


def imported_modules(function: types.FunctionType) -> list[types.ModuleType]:
    """The modules that a function imports when it is called."""
    found = {}
    for inner in _all_codes(function.__code__):
        for one in dis.get_instructions(inner):
            if one.opname == "IMPORT_NAME" and (module := _imported(one.argval, function)):
                found[module.__name__] = module
    return [found[name] for name in sorted(found)]


def _imported(name, function):
    if name in sys.modules:
        return sys.modules[name]
    package = function.__globals__.get("__package__")
    for full in (name, f"{package}.{name}" if package else name):
        try:
            return importlib.import_module(full)
        except Exception:  # the function may never come there, or may expect it
            continue
    return None
