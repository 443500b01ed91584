"""Networks for images: the convolutional network of NEB and a U-Net."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import (
    check_counts,
    check_key,
    check_sizes,
    check_type,
    require,
)
from numpyro_neb._internal.configurations import ACTIVATION, SHAPE, SIZE, SIZES, TRUTH, configured

_IMAGES = {"activation": ACTIVATION, "event_shape": SHAPE, "channels": SIZES, "conditional": TRUTH}


def _extent_of_convnet(arguments):
    channels = arguments["channels"]
    sizes = {"channels": max(channels, default=0), "bottleneck": arguments["bottleneck"]}
    return len(channels), sizes


def _extent_of_unet(arguments):
    channels = arguments["channels"]
    return arguments["num_blocks"] * len(channels), {"channels": max(channels, default=0)}


@configured(
    "networks.ConvNet",
    _IMAGES | {"bottleneck": SIZE, "stride": SIZE},
    extent=_extent_of_convnet,
)
class ConvNet(eqx.Module):
    """The convolutional network of NEB: growing channels, no pooling, a bottleneck, a scalar.

    3 x 3 convolutions with the smooth ReLU u / (1 + exp(-u)) between them, a layer of ten units,
    and a scalar, for `NetworkEnergy`. The defaults are the paper's, sized for a GPU. On a CPU, use
    fewer channels and a stride of 2: `channels=(32, 64, 128), stride=2`.

    Args:
        event_shape: The shape of one image, (height, width) or (channels, height, width).
        channels: The channels of each convolution.
        bottleneck: The units of the layer before the scalar.
        stride: The stride of each convolution: 1 keeps every pixel, 2 halves height and width.
        activation: A smooth function: with `jax.nn.relu`, phi has no Hessian.
        conditional: Whether it also takes a scalar t, like the network of a `ConditionalEnergy`:
            as one more channel, constant over the image.
        key: A JAX random key, for the initial weights.

    Raises:
        TypeError: If activation is not callable, or key is not a random key.
        ValueError: If the event is not an image, a size is not a positive int, or t is missing or
            not expected.

    Reference:
        NEB section 6; Saremi et al., Deep energy estimator networks, arXiv 1805.08306.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> network = neb.networks.ConvNet((8, 8), (4, 8), stride=2, key=jax.random.key(0))
        >>> neb.NetworkEnergy(network, 0.3, (8, 8)).denoise(jnp.zeros((8, 8))).shape
        (8, 8)
    """

    convolutions: tuple[eqx.nn.Conv2d, ...]
    hidden: eqx.nn.Linear
    readout: eqx.nn.Linear
    activation: Callable
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    bottleneck: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    conditional: bool = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        channels: tuple[int, ...] = (256, 512, 1024),
        *,
        bottleneck: int = 10,
        stride: int = 1,
        activation: Callable = jax.nn.silu,
        conditional: bool = False,
        key: PRNGKeyArray,
    ):
        planes, height, width = _image_shape(event_shape)
        self.event_shape, self.channels = tuple(event_shape), _channels(channels)
        self.bottleneck, self.stride = check_counts(bottleneck=bottleneck, stride=stride)
        check_type("activation", activation, Callable, "callable")
        check_key(key)
        self.activation, self.conditional = activation, conditional
        keys = jax.random.split(key, len(self.channels) + 2)
        sizes = (planes + conditional, *self.channels)
        self.convolutions = tuple(
            eqx.nn.Conv2d(before, after, 3, stride, padding=1, key=k)
            for before, after, k in zip(sizes[:-1], sizes[1:], keys[2:], strict=True)
        )
        for _ in self.channels:
            height, width = -(-height // stride), -(-width // stride)
        self.hidden = eqx.nn.Linear(self.channels[-1] * height * width, bottleneck, key=keys[0])
        self.readout = eqx.nn.Linear(bottleneck, "scalar", key=keys[1])

    def __call__(
        self, y: Float[Array, "*event"], t: Float[Array, ""] | None = None
    ) -> Float[Array, ""]:
        """The scalar for one image y, and one t if it is conditional."""
        x = _planes(self, y, t)
        for convolution in self.convolutions:
            x = self.activation(convolution(x))
        return self.readout(self.activation(self.hidden(x.reshape(-1))))


_Blocks = tuple[tuple[eqx.nn.Conv2d, eqx.nn.Conv2d], ...]


@configured(
    "networks.UNet", _IMAGES | {"num_blocks": SIZE, "patch_size": SIZE}, extent=_extent_of_unet
)
class UNet(eqx.Module):
    """A U-Net from images to images, for `ResidualEnergy`.

    On the way down, each level has residual blocks of two 3 x 3 convolutions, and halves the image;
    on the way up, it doubles the image and adds its output from the way down. Without
    normalisation each image has its own energy, and the smooth ReLU keeps the energy smooth.

    Args:
        event_shape: The shape of one image, (height, width) or (channels, height, width); height
            and width must be multiples of patch_size 2^(len(channels) - 1).
        channels: The channels of each level, from the finest to the coarsest.
        num_blocks: Residual blocks per level, each way.
        patch_size: The finest level sees a patch of patch_size x patch_size pixels as one: 2 costs
            about a quarter as much as 1.
        activation: A smooth function: with `jax.nn.relu`, phi has no Hessian.
        conditional: Whether it also takes a scalar t, like the network of a `ConditionalEnergy`:
            as one more channel, constant over the image.
        key: A JAX random key, for the initial weights.

    Raises:
        TypeError: If activation is not callable, or key is not a random key.
        ValueError: If the event is not an image or its size is not divisible as above, a size is
            not a positive int, or t is missing or not expected.

    Reference:
        Ronneberger et al., U-Net, MICCAI 2015; its form for denoising is that of Zhang et al.,
        Plug-and-play image restoration with deep denoiser prior, IEEE TPAMI 44 (2022).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> network = neb.networks.UNet((8, 8), (8, 16), key=jax.random.key(0))
        >>> neb.ResidualEnergy(network, 0.3, (8, 8)).denoise(jnp.zeros((8, 8))).shape
        (8, 8)
    """

    stem: eqx.nn.Conv2d
    down: tuple[_Blocks, ...]
    halve: tuple[eqx.nn.Conv2d, ...]
    double: tuple[eqx.nn.Conv2d, ...]
    up: tuple[_Blocks, ...]
    head: eqx.nn.Conv2d
    activation: Callable
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    num_blocks: int = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)
    conditional: bool = eqx.field(static=True)

    def __init__(
        self,
        event_shape: tuple[int, ...],
        channels: tuple[int, ...] = (24, 48, 96),
        *,
        num_blocks: int = 1,
        patch_size: int = 1,
        activation: Callable = jax.nn.silu,
        conditional: bool = False,
        key: PRNGKeyArray,
    ):
        planes, height, width = _image_shape(event_shape)
        self.event_shape, self.channels = tuple(event_shape), _channels(channels)
        self.num_blocks, self.patch_size = check_counts(
            num_blocks=num_blocks, patch_size=patch_size
        )
        check_type("activation", activation, Callable, "callable")
        check_key(key)
        self.activation, self.conditional = activation, conditional
        multiple = patch_size * 2 ** (len(self.channels) - 1)
        require(
            height % multiple == 0 and width % multiple == 0,
            "event_shape must have a height and width that are multiples of"
            f" patch_size 2^(levels - 1) = {multiple}, got {self.event_shape}",
        )
        keys = iter(jax.random.split(key, 2 + 6 * num_blocks * len(self.channels)))
        conv = lambda before, after, size, silent=False: (  # noqa: E731
            _convolution(before, after, size, next(keys), silent)
        )
        # Blocks start as the identity and the output as zero: the energy is that of a Gaussian.
        blocks = lambda size: tuple(  # noqa: E731
            (conv(size, size, 3), conv(size, size, 3, silent=True)) for _ in range(num_blocks)
        )
        finest, area = self.channels[0], patch_size**2
        steps = list(zip(self.channels[:-1], self.channels[1:], strict=True))
        self.stem = conv((planes + conditional) * area, finest, 3)
        self.down = tuple(blocks(size) for size in self.channels)
        self.halve = tuple(conv(4 * fine, coarse, 1) for fine, coarse in steps)
        self.double = tuple(conv(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.up = tuple(blocks(size) for size in self.channels[:-1])
        self.head = conv(finest, planes * area, 3, silent=True)

    def __call__(
        self, y: Float[Array, "*event"], t: Float[Array, ""] | None = None
    ) -> Float[Array, "*event"]:
        """The output image for one image y, and one t if it is conditional."""
        x = self.stem(_gather(_planes(self, y, t), self.patch_size))
        kept = []
        for blocks, halve in zip(self.down, (*self.halve, None), strict=True):
            x = self._residual(blocks, x)
            if halve is not None:
                kept.append(x)
                x = halve(_gather(x, 2))
        for blocks, double, fine in reversed([*zip(self.up, self.double, kept, strict=True)]):
            x = self._residual(blocks, _scatter(double(x), 2) + fine)
        return _scatter(self.head(x), self.patch_size).reshape(self.event_shape)

    def _residual(self, blocks, x):
        for first, second in blocks:
            x = x + second(self.activation(first(x)))
        return x


def _convolution(before, after, size, key, silent):
    """Zero biases, and weights that keep the variance (LeCun), or zero weights if silent."""
    convolution = eqx.nn.Conv2d(before, after, size, padding=size // 2, key=key)
    shape, dtype = convolution.weight.shape, convolution.weight.dtype
    initial = jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0)
    weight = jnp.zeros(shape, dtype) if silent else initial(key, shape, dtype)
    bias = jnp.zeros((after, 1, 1), dtype)
    return eqx.tree_at(lambda c: (c.weight, c.bias), convolution, (weight, bias))


def _gather(x, size):
    """Patches of size x size pixels as channels: (c, h, w) to (c size^2, h / size, w / size)."""
    c, h, w = x.shape
    x = x.reshape(c, h // size, size, w // size, size).transpose(0, 2, 4, 1, 3)
    return x.reshape(c * size**2, h // size, w // size)


def _scatter(x, size):
    """The inverse of `_gather`."""
    c, h, w = x.shape
    x = x.reshape(c // size**2, size, size, h, w).transpose(0, 3, 1, 4, 2)
    return x.reshape(c // size**2, h * size, w * size)


def _planes(network, y, t):
    """The image as (channels, height, width), with t as a channel if there is one."""
    given, wanted = t is not None, network.conditional
    require(given == wanted, f"t must be given if and only if conditional={wanted}")
    x = y.reshape(_image_shape(network.event_shape))
    if t is None:
        return x
    return jnp.concatenate([x, jnp.broadcast_to(t, (1, *x.shape[1:]))])


def _image_shape(event_shape):
    shape = check_sizes("event_shape", event_shape)
    wanted = "(height, width) or (channels, height, width)"
    require(len(shape) in (2, 3), f"event_shape must be {wanted}, got {shape}")
    return (1, *shape)[-3:]


def _channels(channels):
    sizes = check_sizes("channels", channels)
    require(sizes, "channels must be a tuple with at least one entry, got ()")
    return sizes
