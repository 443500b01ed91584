"""Save and load an energy: one safetensors file, no pickle, nothing executed on load.

The file's metadata holds the format's version, the configuration of the constructors behind the
energy, and a SHA-256 of both and of the arrays.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from numpyro_neb._internal.atomic_files import write_whole
from numpyro_neb._internal.checks import check_type, require, short
from numpyro_neb._internal.configurations import (
    UnknownModuleError,
    describe,
    rebuilt,
    wrong_values,
)
from numpyro_neb.energies.base import AbstractScoreField, check_energy
from numpyro_neb.energies.conditional import ConditionalEnergy

_FORMAT = "numpyro_neb energy"
_VERSION = 1
# Far more than any energy has: a hundred thousand arrays, a million characters.
_LARGEST_HEADER, _LARGEST_CONFIG = 1 << 24, 1 << 20


def save(path: str | os.PathLike, energy: AbstractScoreField | ConditionalEnergy) -> None:
    """Writes an energy to one safetensors file, whole or not at all.

    Args:
        path: Where to write; an existing file is replaced once the new one is on disk.
        energy: The energy. Any `AbstractEnergy` or `ConditionalEnergy` saves; one that holds
            modules of your own needs `like=` to load.

    Raises:
        TypeError: If `energy` is neither, or path is not a path.

    Example:
        >>> import tempfile, jax.numpy as jnp, numpyro_neb as neb
        >>> path = tempfile.mkdtemp() + "/energy.safetensors"
        >>> neb.save(path, neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0))
        >>> neb.load(path).sigma
        Array(1., dtype=float32)
    """
    check_type("path", path, str | os.PathLike, "a path")
    check_energy(energy, conditional=True, score=True)
    write_arrays(path, _FORMAT, describe(energy), _named_arrays(energy))


def load(
    path: str | os.PathLike, like: AbstractScoreField | ConditionalEnergy | None = None
) -> Any:
    """Reads an energy that `save` wrote.

    Args:
        path: The file.
        like: An energy of the same structure, whose arrays are replaced; needed only for stacked
            energies, and if the energy holds modules that are neither the package's own nor an
            `eqx.nn.MLP` with activations from jax.nn or jax.numpy.

    Returns:
        The energy, equal to the saved one bit for bit.

    Raises:
        TypeError: If path is not a path, or like is not an energy.
        ValueError: If the file is truncated, damaged, foreign or of another format version, holds
            float64 while jax_enable_x64 is off or values that no energy can have, does not fit
            `like`, or needs `like` and none is given.
        FileNotFoundError: If there is no such file.

    A file from somebody else is safe to load: nothing in it is executed, only classes that the
    package has registered are constructed, and memory is allocated only for arrays that the file
    holds, not for those it claims to hold.
    """
    config, tensors = read_arrays(path, _FORMAT)
    if like is not None:
        check_energy(like, conditional=True, score=True)
        return _filled(like, tensors, path, exact=True)
    single = np.ndim(tensors.get("sigma", 0.0)) == 0
    require(single, f"{path} holds several stacked energies: pass like=, such a stack")
    try:
        energy = rebuilt(config, tensors)
        check_energy(energy, conditional=True, score=True)
    except UnknownModuleError as error:
        raise ValueError(
            f"{path} holds a {error}, which numpyro_neb can't rebuild alone:"
            " pass like=, an energy of the same structure"
        ) from None
    except Exception as error:  # a forged configuration can raise any error
        raise ValueError(f"{path} has a configuration that is not an energy's: {error}") from error
    energy = _filled(energy, tensors, path, exact=False)
    for name, what in wrong_values(config, tensors):
        raise ValueError(f"{path} does not hold an energy: its {name} is {what}")
    return energy


def _filled(energy, tensors, path, exact):
    """`energy` with the file's arrays; their dtypes must be the energy's own if `exact`."""
    expected = _named_arrays(energy)
    odd = short(sorted(expected.keys() ^ tensors.keys()))
    same = expected.keys() == tensors.keys()
    require(same, f"{path} holds another energy: these arrays are in one only: {odd}")
    for name, tensor in tensors.items():
        shape, dtype = expected[name].shape, tensor.dtype
        fits = tensor.shape == shape
        require(fits, f"{path}: {name} has shape {tensor.shape}, expected {shape}")
        fits = dtype == expected[name].dtype if exact else jnp.issubdtype(dtype, jnp.floating)
        wanted = expected[name].dtype if exact else "a floating-point type"
        require(fits, f"{path}: {name} is {dtype}, expected {wanted}")
        kept = jax.dtypes.canonicalize_dtype(dtype) == dtype
        require(kept, f"{path} holds {dtype}: set jax_enable_x64 to load it")
    arrays, rest = eqx.partition(energy, _is_array)
    arrays = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(tensors[_name(path)]), arrays
    )
    return eqx.combine(arrays, rest)


def write_arrays(
    path: str | os.PathLike, format_name: str, config: Any, arrays: dict[str, Any]
) -> None:
    """Writes arrays and their description to one safetensors file, whole or not at all.

    Args:
        path: Where to write.
        format_name: What kind of file it is.
        config: The description, as JSON.
        arrays: The arrays by name.
    """
    tensors = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata = _signed(format_name, config, tensors)
    write_whole(Path(path), safetensors.numpy.save(tensors, metadata))


def read_arrays(path: str | os.PathLike, format_name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The description and the arrays that `write_arrays` wrote.

    Raises:
        ValueError: If the file is truncated, damaged, of another kind, or of another version.
        FileNotFoundError: If there is no such file.
    """
    check_type("path", path, str | os.PathLike, "a path")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    _check_extent(Path(path))
    tensors = {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") == format_name:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors, and NumPy given an unknown shape or dtype
        raise ValueError(f"{path} is damaged: {error}") from None
    foreign = f"{path} is a safetensors file, but numpyro_neb did not write it as a {format_name}"
    require(metadata.get("format") == format_name, foreign)
    intact = metadata.get("sha256") == _digest(metadata, tensors)
    version, hint = metadata.get("version"), "" if intact else ", or it is damaged"
    known, theirs = version == str(_VERSION), short(version).strip("'")
    what = f"format version {theirs}, and this numpyro_neb reads {_VERSION}"
    require(known, f"{path} has {what}: another numpyro_neb wrote it{hint}")
    require(intact, f"{path} is damaged: its contents do not match its SHA-256")
    config = metadata.get("config", "")
    length = len(config)
    require(length <= _LARGEST_CONFIG, f"{path} has a configuration of {length} characters")
    try:
        return json.loads(config), tensors
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a configuration that is not JSON: {error}") from error


def _check_extent(path):
    """Raises a ValueError if a file is shorter or longer than its own header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        foreign = size >= 8 and length > _LARGEST_HEADER
        require(not foreign, f"{path} is not a safetensors file, or its first bytes are damaged")
        whole = size >= 8 + length
        require(whole, f"{path} is truncated: it ends in its header, after {size} bytes")
        header = file.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
    except Exception as error:  # whatever the bytes are
        raise ValueError(
            f"{path} is not a safetensors file, or its header is damaged: {short(str(error))}"
        ) from None
    stated = 8 + length + max(ends, default=0)
    require(size >= stated, f"{path} is truncated: it has {size} bytes of {stated}")
    require(size <= stated, f"{path} is damaged: it has {size} bytes, and should have {stated}")


def sha256_of(energy: AbstractScoreField) -> str:
    """The SHA-256 that `save` writes into an energy's file."""
    tensors = {name: np.asarray(array) for name, array in _named_arrays(energy).items()}
    return _signed(_FORMAT, describe(energy), tensors)["sha256"]


def _signed(format_name, config, tensors) -> dict[str, str]:
    """A file's metadata."""
    # NumPy's scalars too, which eqx.nn.MLP accepts as sizes.
    text = json.dumps(config, default=lambda scalar: scalar.item())
    metadata = {"format": format_name, "version": str(_VERSION), "config": text}
    return metadata | {"sha256": _digest(metadata, tensors)}


def _digest(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("format", "version", "config"):
        digest.update(f"{name}={metadata.get(name)}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _named_arrays(energy) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(energy, _is_array))
    return {_name(path): leaf for path, leaf in leaves}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_array(leaf) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
