"""Which modules are installed libraries, and of what version."""

import functools
import importlib.metadata
import sys
from pathlib import Path

_FOLDERS = {"site-packages", "dist-packages"}


@functools.cache
def library_name(module: str | None) -> str | None:
    """The top name of an installed library's module, or None for a module of the user's."""
    top = (module or "").partition(".")[0]
    if top in ("numpyro_neb", "builtins") or top in sys.stdlib_module_names:
        return top
    found = sys.modules.get(top)
    paths = [getattr(found, "__file__", None), *getattr(found, "__path__", [])]
    return top if any(_FOLDERS & set(Path(path).parts) for path in paths if path) else None


@functools.cache
def version_of(library: str) -> str | None:
    """The version of an installed library; None for one of Python's own."""
    if library in sys.stdlib_module_names:
        return None
    version = getattr(sys.modules.get(library), "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
