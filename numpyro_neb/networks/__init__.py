"""Networks to build energies from."""

from numpyro_neb.networks.convolutional import ConvNet, UNet
from numpyro_neb.networks.flax import LinenNetwork, NNXNetwork, from_linen, from_nnx
from numpyro_neb.networks.mlp import MLP

__all__ = ["MLP", "ConvNet", "LinenNetwork", "NNXNetwork", "UNet", "from_linen", "from_nnx"]
