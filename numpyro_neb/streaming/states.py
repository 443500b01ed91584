"""A sampler's state in a file, with the settings of its run."""

import ast
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.util import find_stack_level

from numpyro_neb._internal.checks import require, short
from numpyro_neb._internal.fingerprints import difference, reservations
from numpyro_neb.files.energy_file import read_arrays, write_arrays

_FORMAT = "numpyro_neb sampler state"
# The names of some settings in error messages. Version 0.1.0 also wrote them to files.
_WORDS = {"model_args": "model arguments", "num_samples_mod_thinning": "num_samples % thinning"}
_IMPLEMENTATIONS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def write_state(path: Path, state: PyTree, settings: dict[str, Any]) -> None:
    """Writes a state to a safetensors file, atomically.

    Args:
        path: The file to write.
        state: A pytree of arrays, which may include random keys of any kind.
        settings: What the draws depend on, as JSON.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(at): np.asarray(raw(leaf)) for at, leaf in leaves}
    dtypes = {jax.tree_util.keystr(at): str(leaf.dtype) for at, leaf in leaves}
    write_arrays(path, _FORMAT, {"settings": settings, "dtypes": dtypes}, arrays)


def read_state(path: Path, template: PyTree, settings: dict[str, Any]) -> PyTree:
    """What `write_state` wrote.

    Args:
        path: The file.
        template: The state of one chain, or its shapes and dtypes.
        settings: Those that the file must have, including the number of chains.

    Raises:
        ValueError: If the file is truncated, damaged, foreign or of another format version, or is
            from another run (the message says what differs).
        FileNotFoundError: If there is no such file.
    """
    config, arrays = read_arrays(path, _FORMAT)
    try:
        theirs, dtypes = dict(config["settings"]), dict(config["dtypes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a state: {error}") from error
    other = _other(theirs, settings, path)
    hint = "pass the same to resume it, or use another path"
    require(other is None, f"{path} is from a run with another {other}: {hint}")
    leaves, treedef = jax.tree_util.tree_flatten_with_path(template)
    expected = {jax.tree_util.keystr(at): leaf for at, leaf in leaves}
    odd = (expected.keys() ^ dtypes.keys()) | (expected.keys() ^ arrays.keys())
    require(not odd, f"{path} holds another state: only one of the two has {short(sorted(odd))}")
    num_chains = settings["num_chains"]
    chains = ((num_chains,),) if num_chains > 1 else ((), (1,))
    # A scalar, such as the unit of length, may be an array with one value per coordinate.
    shapes = {leaf.shape for leaf in expected.values()}
    values = []
    for name, leaf in expected.items():
        array, dtype = arrays[name], dtypes[name]
        try:
            if "rng_key" in name:
                values.append(_key(array, dtype))
                fits = array.shape[:-1] in chains
            else:
                values.append(array)
                fits = str(array.dtype) == dtype == str(leaf.dtype)
                of_one = {leaf.shape} if leaf.shape else shapes
                fits &= array.shape in [(*n, *shape) for n in chains for shape in of_one]
        except (KeyError, TypeError, ValueError):
            fits = False
        got = f"{short(dtype)} of shape {array.shape}"
        wanted = f"{leaf.dtype} of shape {leaf.shape} for each chain"
        require(fits, f"{path} holds another state: {name} is {got}, expected {wanted}")
    return jax.tree.unflatten(treedef, values)


def _other(theirs, settings, path):
    """What differs between the settings of two runs, in words, or None."""
    identity, compared = theirs.get("identity"), set()
    if identity is not None:
        try:
            other = difference(identity, settings["identity"])
            doubt = reservations(identity, settings["identity"])
            compared = {*identity["sha256"], "model_args"}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not hold a state: {error}") from error
        if other is not None:
            return other
        if doubt is not None:
            text = f"{path} is resumed, but {doubt}"
            warnings.warn(text, stacklevel=find_stack_level())
    for name in [name for name in settings if name not in {*compared, "identity"}]:
        words = _WORDS.get(name, name)
        found, value = theirs.get(name, theirs.get(words)), settings[name]
        if found != value and not (name == "integrator" and _same_fields(found, value)):
            return f"{words} ({short(found)}, now {short(value)})"
    return None


def _same_fields(found, value):
    """Whether an integrator differs only in fields that a release did not have yet."""
    try:
        kinds, texts = zip(*(str(one).split(" ", 1) for one in (found, value)), strict=True)
        theirs, ours = map(ast.literal_eval, texts)
        return kinds[0] == kinds[1] and theirs.items() <= ours.items()
    except (AttributeError, SyntaxError, TypeError, ValueError):
        return False


def raw(leaf: Any) -> Any:
    """An array's numbers; for a typed random key, its bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _key(array, dtype):
    """The inverse of `raw` for a random key: typed, or bare numbers."""
    if dtype == "uint32" and array.dtype == dtype and array.shape[-1:] in ((2,), (4,)):
        return array
    return jax.random.wrap_key_data(array, impl=_IMPLEMENTATIONS[dtype])
