"""Configurations: the constructors behind an energy and their arguments, as JSON, and back.

A configuration may be somebody else's. Only the classes in a fixed table are constructed, with
shapes in place of arrays, once each word is of its type and no size is larger than the file.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_neb._internal.checks import short
from numpyro_neb._internal.named_functions import find_function, function_name
from numpyro_neb.energies.base import Frozen
from numpyro_neb.energies.conditional import AtLevel, ConditionalEnergy
from numpyro_neb.energies.mixture import MixtureEnergy
from numpyro_neb.energies.network import NetworkEnergy, ResidualEnergy
from numpyro_neb.networks.convolutional import ConvNet, UNet
from numpyro_neb.networks.mlp import MLP

_NETWORK_ENERGIES = {cls.__name__: cls for cls in (ResidualEnergy, NetworkEnergy)}
_NETWORKS: dict[str, Callable] = {f"networks.{cls.__name__}": cls for cls in (MLP, ConvNet, UNet)}
_NETWORKS["eqx.nn.MLP"] = eqx.nn.MLP
_SIZES = {ConvNet: ("bottleneck", "stride"), UNet: ("num_blocks", "patch_size")}


class UnknownModuleError(Exception):
    """A module that no constructor in `rebuilt` makes."""


def describe(node: Any) -> dict[str, Any]:
    """The constructor and the arguments from which `rebuilt` rebuilds an energy or network."""
    name = type(node).__name__
    if type(node) in (ResidualEnergy, NetworkEnergy):
        return {"class": name, "event_shape": node.event_shape, "network": describe(node.network)}
    if type(node) is ConditionalEnergy:
        description = {"class": name, "event_shape": node.event_shape}
        return description | {
            "sigma_range": node.sigma_range,
            "network": describe(node.network),
        }
    if type(node) is AtLevel:
        return {"class": "energies.AtLevel", "network": describe(node.network)}
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


def rebuilt(config: Any, tensors: dict[str, np.ndarray]) -> Any:
    """The energy's structure with shapes for arrays: nothing of the stated size is allocated.

    Args:
        config: What `describe` gave, or somebody's forgery of it.
        tensors: The arrays of the file that it is in.

    Raises:
        UnknownModuleError: If it names a class that is not in the table.
        Exception: Of any kind, where the configuration makes no energy.
    """
    name = _checked_class(config)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, jnp.result_type(float)) for k, v in tensors.items()}
    if name == "MixtureEnergy":
        return eqx.filter_eval_shape(MixtureEnergy, shapes["locs"], 1.0, None, shapes.get("axes"))
    if name in _NETWORK_ENERGIES:
        return eqx.filter_eval_shape(
            lambda loc, scale: _NETWORK_ENERGIES[name](
                _network(config["network"], tensors),
                1.0,
                tuple(config["event_shape"]),
                loc,
                scale,
            ),
            shapes["loc"],
            shapes["scale"],
        )
    if name == "ConditionalEnergy":
        return eqx.filter_eval_shape(
            lambda loc, scale: ConditionalEnergy(
                _network(config["network"], tensors),
                tuple(config["event_shape"]),
                tuple(config["sigma_range"]),
                loc,
                scale,
            ),
            shapes["loc"],
            shapes["scale"],
        )
    raise UnknownModuleError(short(name).strip("'"))


def _network(config, tensors):
    name = _checked_class(config)
    if name == "energies.AtLevel":
        if config["network"].get("class") == name:
            raise ValueError("a network is at one level")
        return AtLevel(_network(config["network"], tensors), Frozen(jnp.zeros(())))
    if name not in _NETWORKS:
        raise UnknownModuleError(short(name).strip("'"))
    _check_sizes_in_file(config, tensors)
    arguments = {k: v for k, v in config.items() if k != "class"}
    for argument in arguments.keys() & {"activation", "final_activation"}:
        arguments[argument] = _activation(arguments[argument])
    for argument in arguments.keys() & {"event_shape", "channels"}:
        arguments[argument] = tuple(arguments[argument])
    return _NETWORKS[name](**arguments, key=jax.random.key(0))


def _activation(name):
    function = find_function(name)
    out = jax.eval_shape(function, jax.ShapeDtypeStruct((3,), jnp.result_type(float)))
    if getattr(out, "shape", None) != (3,):
        raise ValueError(f"{short(name)} is no activation")
    return function


# An array's indices are 32-bit numbers, and NumPy's arrays have at most 32 dimensions or 64.
_LARGEST_SIZE, _LARGEST_RANK = 2**31 - 1, 32


def _is_size(value):
    return type(value) is int and 0 <= value <= _LARGEST_SIZE


def _is_shape(value):
    if not isinstance(value, list) or len(value) > _LARGEST_RANK or not all(map(_is_size, value)):
        return False
    return prod(value) <= _LARGEST_SIZE


def _are_sizes(value):
    return isinstance(value, list) and all(map(_is_size, value))


def _is_size_or_scalar(value):
    return value == "scalar" or _is_size(value)


def _are_numbers(value):
    return isinstance(value, list) and all(type(x) in (int, float) for x in value)


def _is_bool(value):
    return isinstance(value, bool)


def _is_str(value):
    return isinstance(value, str)


def _is_dict(value):
    return isinstance(value, dict)


# What each word of a configuration must be; a constructor checks more.
_WORDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "class": (_is_str, "a name"),
    "network": (_is_dict, "a configuration"),
    "event_shape": (_is_shape, "a shape"),
    "channels": (_are_sizes, "a list of sizes"),
    "sigma_range": (_are_numbers, "a list of numbers"),
    "out": (_is_str, "a name"),
    "activation": (_is_str, "a name"),
    "final_activation": (_is_str, "a name"),
    "in_size": (_is_size_or_scalar, "a size"),
    "out_size": (_is_size_or_scalar, "a size"),
}
_WORDS |= dict.fromkeys(("width_size", "depth", "bottleneck"), (_is_size, "a size"))
_WORDS |= dict.fromkeys(("stride", "num_blocks", "patch_size"), (_is_size, "a size"))
_WORDS |= dict.fromkeys(("conditional", "use_bias", "use_final_bias"), (_is_bool, "true or false"))


def _checked_class(config) -> str:
    """The class that a configuration names, once each of its words is what it must be."""
    if not isinstance(config, dict):
        raise ValueError(f"{short(config)} is no configuration")
    if "unknown" in config:
        raise UnknownModuleError(short(config["unknown"]).strip("'"))
    for word, value in config.items():
        if word not in _WORDS:
            raise ValueError(f"the unknown word {short(word)}")
        fits, what = _WORDS[word]
        if not fits(value):
            raise ValueError(f"{word} must be {what}, got {short(value)}")
    return config["class"]


def _check_sizes_in_file(config, tensors):
    """Refuses a network larger than the file before any of it is built.

    The constructors loop over the layers, of which each has an array, and each of these sizes is
    one of an array's.
    """
    layers = config.get("depth", 0)
    layers += max(1, config.get("num_blocks", 1)) * len(config.get("channels", ()))
    if layers > len(tensors):
        raise ValueError(f"{layers} layers with {len(tensors)} arrays")
    numbers = sum(tensor.size for tensor in tensors.values())
    sizes = {word: config.get(word, 0) for word in ("in_size", "out_size", "bottleneck")}
    sizes |= {"channels": max(config.get("channels", ()), default=0)}
    if config.get("depth", 0) > 0:
        sizes |= {"width_size": config.get("width_size", 0)}
    if config["class"] == "networks.MLP":
        sizes |= {"event_shape": prod(config["event_shape"])}
    for word, size in sizes.items():
        if size != "scalar" and size > numbers:
            raise ValueError(f"{word} of {size} with {numbers} numbers")
