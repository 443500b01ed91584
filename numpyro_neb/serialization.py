"""Save and load an energy: one safetensors file, no pickle, nothing executed on load.

The file's metadata holds the format's version, the configuration of the constructors behind the
energy, and a SHA-256 of all of it and of the arrays.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from numpyro_neb.activations import find_function, function_name
from numpyro_neb.checks import check_path
from numpyro_neb.energies import (
    AbstractEnergy,
    AtLevel,
    ConditionalEnergy,
    Frozen,
    NetworkEnergy,
    ResidualEnergy,
    check_energy,
)
from numpyro_neb.files import write_whole
from numpyro_neb.mixtures import MixtureEnergy
from numpyro_neb.networks import MLP, ConvNet, UNet

_FORMAT = "numpyro_neb energy"
_VERSION = 1
_NETWORK_ENERGIES = {cls.__name__: cls for cls in (ResidualEnergy, NetworkEnergy)}
_NETWORKS: dict[str, Callable] = {f"networks.{cls.__name__}": cls for cls in (MLP, ConvNet, UNet)}
_NETWORKS["eqx.nn.MLP"] = eqx.nn.MLP
_SIZES = {ConvNet: ("bottleneck", "stride"), UNet: ("num_blocks", "patch_size")}


def save(path: str | os.PathLike, energy: AbstractEnergy | ConditionalEnergy) -> None:
    """Writes an energy to one safetensors file, whole or not at all.

    Args:
        path: Where to; an existing file is replaced once the new one is on disk.
        energy: The energy. Any `AbstractEnergy` or `ConditionalEnergy` saves; one that holds
            modules of your own needs `like=` to load.

    Raises:
        TypeError: If `energy` is neither, or path is no path.

    Example:
        >>> import tempfile, jax.numpy as jnp, numpyro_neb as neb
        >>> path = tempfile.mkdtemp() + "/energy.safetensors"
        >>> neb.save(path, neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0))
        >>> neb.load(path).sigma
        Array(1., dtype=float32)
    """
    check_path("path", path)
    check_energy(energy, conditional=True)
    write_arrays(path, _FORMAT, _describe(energy), _named_arrays(energy))


def load(path: str | os.PathLike, like: AbstractEnergy | ConditionalEnergy | None = None) -> Any:
    """Reads an energy that `save` wrote.

    Args:
        path: The file.
        like: An energy of the same structure, whose arrays are replaced; needed only where the
            energy holds modules that are neither the package's own nor an `eqx.nn.MLP` with
            activations from jax.nn or jax.numpy.

    Returns:
        The energy, equal to the saved one bit for bit.

    Raises:
        TypeError: If path is no path, or like no energy.
        ValueError: If the file is truncated, damaged, foreign or of a newer format, holds float64
            where JAX is not set to, does not fit `like`, or needs `like` and none is given.
        FileNotFoundError: If there is no such file.
    """
    config, tensors = read_arrays(path, _FORMAT)
    if like is not None:
        check_energy(like, conditional=True)
        return _filled(like, tensors, path, exact=True)
    try:
        energy = _skeleton(config, tensors)
    except _UnknownModuleError as error:
        raise ValueError(
            f"{path} holds a {error}, which numpyro_neb can't rebuild by itself:"
            " pass like=, an energy of the same structure"
        ) from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a configuration that makes no energy: {error}") from error
    return _filled(energy, tensors, path, exact=False)


class _UnknownModuleError(Exception):
    """A module that no constructor in `_skeleton` makes."""


def _describe(node: Any) -> dict[str, Any]:
    """The constructor and the arguments from which `_skeleton` rebuilds an energy or network."""
    name = type(node).__name__
    if type(node) in (ResidualEnergy, NetworkEnergy):
        return {"class": name, "event_shape": node.event_shape, "network": _describe(node.network)}
    if type(node) is ConditionalEnergy:
        description = {"class": name, "event_shape": node.event_shape}
        return description | {
            "sigma_range": node.sigma_range,
            "network": _describe(node.network),
        }
    if type(node) is AtLevel:
        return {"class": "energies.AtLevel", "network": _describe(node.network)}
    if type(node) is MixtureEnergy:
        return {"class": name}
    if type(node) is MLP and (activation := function_name(node.layers.activation)):
        return {
            "class": "networks.MLP",
            "event_shape": node.event_shape,
            "out": node.out,
            "width_size": node.layers.width_size,
            "depth": node.layers.depth,
            "activation": activation,
            "conditional": node.conditional,
        }
    if isinstance(node, ConvNet | UNet) and (activation := function_name(node.activation)):
        names = ("event_shape", "channels", "conditional", *_SIZES.get(type(node), ()))
        arguments = {argument: getattr(node, argument) for argument in names}
        return {"class": f"networks.{name}", "activation": activation} | arguments
    if type(node) is eqx.nn.MLP:
        functions = {k: function_name(getattr(node, k)) for k in ("activation", "final_activation")}
        if all(functions.values()) and not getattr(node, "scan", False):
            sizes = ("in_size", "out_size", "width_size", "depth", "use_bias", "use_final_bias")
            return {"class": "eqx.nn.MLP"} | {k: getattr(node, k) for k in sizes} | functions
    return {"unknown": name}


def _skeleton(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
    """The energy's structure with shapes for arrays: nothing of the stated size is allocated."""
    if "unknown" in config:
        raise _UnknownModuleError(config["unknown"])
    shapes = {k: jax.ShapeDtypeStruct(v.shape, jnp.result_type(float)) for k, v in tensors.items()}
    if config["class"] == "MixtureEnergy":
        return eqx.filter_eval_shape(MixtureEnergy, shapes["locs"], 1.0, None, shapes.get("axes"))
    if config["class"] in _NETWORK_ENERGIES:
        return eqx.filter_eval_shape(
            lambda loc, scale: _NETWORK_ENERGIES[config["class"]](
                _network(config["network"], len(tensors)),
                1.0,
                tuple(config["event_shape"]),
                loc,
                scale,
            ),
            shapes["loc"],
            shapes["scale"],
        )
    if config["class"] == "ConditionalEnergy":
        return eqx.filter_eval_shape(
            lambda loc, scale: ConditionalEnergy(
                _network(config["network"], len(tensors)),
                tuple(config["event_shape"]),
                tuple(config["sigma_range"]),
                loc,
                scale,
            ),
            shapes["loc"],
            shapes["scale"],
        )
    raise _UnknownModuleError(config["class"])


def _network(config, num_tensors):
    if config.get("class") == "energies.AtLevel":
        return AtLevel(_network(config["network"], num_tensors), Frozen(jnp.zeros(())))
    arguments = {k: v for k, v in config.items() if k not in ("class", "unknown")}
    if config.get("class") not in _NETWORKS:
        raise _UnknownModuleError(config.get("unknown", config.get("class")))
    # The constructors loop over the layers: refuse more than the file has arrays.
    layers = config.get("depth", 0) + len(config.get("channels", ())) + config.get("num_blocks", 0)
    if layers > num_tensors:
        raise ValueError(f"{layers} layers with {num_tensors} arrays")
    for name in arguments.keys() & {"activation", "final_activation"}:
        arguments[name] = find_function(arguments[name])
    for name in arguments.keys() & {"event_shape", "channels"}:
        arguments[name] = tuple(arguments[name])
    return _NETWORKS[config["class"]](**arguments, key=jax.random.key(0))


def _filled(energy, tensors, path, exact):
    """`energy` with the file's arrays; their dtypes must be the energy's own where `exact`."""
    expected = _named_arrays(energy)
    if expected.keys() != tensors.keys():
        odd = sorted(expected.keys() ^ tensors.keys())
        raise ValueError(f"{path} holds another energy: these arrays are in one only: {odd}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tensor.shape}, expected {expected[name].shape}"
            )
        if exact and tensor.dtype != expected[name].dtype:
            raise ValueError(f"{path}: {name} is {tensor.dtype}, expected {expected[name].dtype}")
        if jnp.asarray(tensor[:0] if tensor.ndim else tensor).dtype != tensor.dtype:
            raise ValueError(f"{path} holds {tensor.dtype}: set jax_enable_x64 to load it")
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
        path: Where to.
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
        ValueError: If the file is truncated, damaged, of another kind, or of a newer format.
        FileNotFoundError: If there is no such file.
    """
    check_path("path", path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, or no safetensors file: {error}") from None
    if metadata.get("format") != format_name:
        raise ValueError(
            f"{path} is a safetensors file, but numpyro_neb did not write it as a {format_name}"
        )
    if metadata.get("version") != str(_VERSION):
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, and this numpyro_neb reads"
            f" {_VERSION}: a newer numpyro_neb wrote it"
        )
    if metadata.get("sha256") != _digest(metadata, tensors):
        raise ValueError(f"{path} is damaged: its contents do not match its SHA-256")
    try:
        return json.loads(metadata.get("config", "")), tensors
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a configuration that is no JSON: {error}") from error


def fingerprint(energy: AbstractEnergy) -> str:
    """The SHA-256 that `save` writes into an energy's file."""
    tensors = {name: np.asarray(array) for name, array in _named_arrays(energy).items()}
    return _signed(_FORMAT, _describe(energy), tensors)["sha256"]


def _signed(format_name, config, tensors) -> dict[str, str]:
    """A file's metadata."""
    metadata = {"format": format_name, "version": str(_VERSION), "config": json.dumps(config)}
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
