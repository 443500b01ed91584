"""Energies learned by a network, at one noise level."""

from collections.abc import Callable
from typing import final

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_neb._internal.checks import Numbers, check_network
from numpyro_neb._internal.configurations import MODULE, SHAPE, Values, configured
from numpyro_neb._internal.events import as_event
from numpyro_neb.energies.base import AbstractEnergy, checked_buffers

_WORDS = {"event_shape": SHAPE, "network": MODULE}
_ARRAYS = {"sigma": Values.POSITIVE, "loc": Values.FINITE, "scale": Values.POSITIVE}


@configured("NetworkEnergy", _WORDS, arrays=_ARRAYS)
@final
class NetworkEnergy(AbstractEnergy):
    r"""DEEN as published: phi(y) = network((y - loc) / scale), the network's scalar output.

    `ResidualEnergy` learns better with the same network and is the default: see there.

    Args:
        network: Maps an array of shape `event_shape` to a scalar of shape ().
        sigma: The noise's standard deviation, positive.
        event_shape: The shape of one y.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.

    Raises:
        ValueError: If sigma or scale is not positive and finite, a shape does not fit, or the
            network's output is not a scalar.

    Reference:
        Saremi et al., Deep Energy Estimator Networks, arXiv 1805.08306 (2018).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((2,), "scalar", width_size=8, depth=2, key=jax.random.key(0))
        >>> energy = neb.NetworkEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> energy(jnp.zeros(2)).shape
        ()
    """

    network: Callable[[Float[Array, "*event"]], Float[Array, ""]]
    sigma: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(
        self,
        network: Callable,
        sigma: ArrayLike,
        event_shape: tuple[int, ...],
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
    ):
        self.network = network
        self.sigma, self.event_shape, self.loc, self.scale = checked_buffers(
            sigma, event_shape, loc, scale
        )

    def __check_init__(self):
        hint = "; eqx.nn.MLP gives a scalar with out_size='scalar'"
        check_network("network", self.network, self.event_shape, (), self.sigma.dtype, hint)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y) = network((y - loc) / scale)."""
        y = as_event(y, self.event_shape)
        return self.network((y - self.loc) / self.scale)


@configured("ResidualEnergy", _WORDS, arrays=_ARRAYS)
@final
class ResidualEnergy(AbstractEnergy):
    r"""phi(y) = norm(y - r(y))^2 / (2 sigma^2), r(y) = loc + scale network((y - loc) / scale).

    The default form: the network learns a denoiser through its d outputs, a scalar one only through
    its gradient. With the same 3 x 256 MLP on scikit-learn's 8 x 8 digits at sigma = 0.3, the
    held-out loss after 4,000 steps at batch size 128 is 0.94 in this form and 1.02 as
    `NetworkEnergy`; the exact kernel density has 1.28 (`python -m benchmarks.energies`).

    With the defaults loc = 0 and scale = 1, r is the network itself. loc and scale are a change of
    units: the same data in other units give the same energy.

    Args:
        network: Maps an array of shape `event_shape` to one of the same shape.
        sigma: The noise's standard deviation, positive.
        event_shape: The shape of one y.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.

    Raises:
        ValueError: If sigma or scale is not positive and finite, a shape does not fit, or the
            network's output is not of shape `event_shape`.

    Reference:
        The DEEN objective of NEB section 3, on a network that reconstructs, as in Alain and
        Bengio, What regularized auto-encoders learn, JMLR 15 (2014).

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = eqx.nn.MLP(2, 2, width_size=8, depth=2, key=jax.random.key(0))
        >>> energy = neb.ResidualEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> energy.denoise(jnp.zeros(2)).shape
        (2,)
    """

    network: Callable[[Float[Array, "*event"]], Float[Array, "*event"]]
    sigma: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(
        self,
        network: Callable,
        sigma: ArrayLike,
        event_shape: tuple[int, ...],
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
    ):
        self.network = network
        self.sigma, self.event_shape, self.loc, self.scale = checked_buffers(
            sigma, event_shape, loc, scale
        )

    def __check_init__(self):
        shape = self.event_shape
        check_network("network", self.network, shape, shape, self.sigma.dtype)

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, ""]:
        """phi(y) = norm(y - r(y))^2 / (2 sigma^2)."""
        y = as_event(y, self.event_shape)
        # In standard units y - r(y) = scale (z - network(z)).
        z = (y - self.loc) / self.scale
        return jnp.sum((self.scale * (z - self.network(z))) ** 2) / (2 * self.sigma**2)
