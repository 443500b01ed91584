"""One network for a range of noise levels."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_neb._internal.checks import (
    Numbers,
    check_network,
    check_positive,
    check_reals,
    check_type,
    require,
)
from numpyro_neb._internal.configurations import MODULE, NUMBERS, SHAPE, Values, configured
from numpyro_neb.energies.base import AbstractEnergyFamily, NonTrainable, checked_buffers
from numpyro_neb.energies.network import ResidualEnergy


@configured(
    "ConditionalEnergy",
    {"event_shape": SHAPE, "sigma_range": NUMBERS, "network": MODULE},
    arrays={"loc": Values.FINITE, "scale": Values.POSITIVE},
)
@final
class ConditionalEnergy(AbstractEnergyFamily):
    r"""One network for a range of noise levels: `at(sigma)` is the energy at one of them.

    phi(y; sigma) = norm(y - r(y, t))^2 / (2 sigma^2), r(y, t) = loc + scale network((y - loc) /
    scale, t), where t goes from -1 to 1 as log sigma goes through the range. One prior then serves
    data at several noise levels. `fit` trains it on clean data: `denoising_loss` draws a
    log-uniform sigma for each example and measures its squared error in units of sigma^2.

    Args:
        network: Maps an array of shape `event_shape` and the scalar t to an array of that shape, as
            `networks.MLP(..., conditional=True)` does.
        event_shape: The shape of one y.
        sigma_range: The smallest and the largest sigma.
        loc: The mean of X, a scalar or of shape `event_shape`.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.

    Raises:
        ValueError: If sigma_range is not two rising, positive numbers, scale is not positive, a
            shape does not fit, or the network's output is not of shape `event_shape`.

    Reference:
        Song and Ermon, Generative modeling by estimating gradients of the data distribution,
        NeurIPS 2019, for one network and many noise levels.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> mlp = neb.networks.MLP((2,), width_size=8, depth=2, conditional=True,
        ...                        key=jax.random.key(0))
        >>> energies = neb.ConditionalEnergy(mlp, (2,), sigma_range=(0.1, 1.0))
        >>> energies.at(0.5).denoise(jnp.zeros(2)).shape
        (2,)
    """

    network: Callable[[Float[Array, "*event"], Float[Array, ""]], Float[Array, "*event"]]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    sigma_range: tuple[float, float] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]

    def __init__(
        self,
        network: Callable,
        event_shape: tuple[int, ...],
        sigma_range: tuple[float, float],
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
    ):
        ends = np.asarray(check_reals("sigma_range", sigma_range))
        rising = ends.shape == (2,) and 0 < ends[0] < ends[1] < np.inf
        require(rising, f"sigma_range must be two rising, positive numbers, got {sigma_range}")
        low, high = map(float, ends)
        self.network, self.sigma_range = network, (low, high)
        _, self.event_shape, self.loc, self.scale = checked_buffers(low, event_shape, loc, scale)

    def __check_init__(self):
        check_type("network", self.network, Callable, "callable")
        shape, t = self.event_shape, jnp.zeros((), self.loc.dtype)
        check_network("network", lambda y: self.network(y, t), shape, shape, t.dtype)

    def at(self, sigma: ArrayLike) -> ResidualEnergy:
        """The energy at one noise level.

        Args:
            sigma: The noise's standard deviation, in `sigma_range`.

        Raises:
            ValueError: If sigma is outside `sigma_range`: the network is not trained there.
        """
        low, high = self.sigma_range
        level: Any = jnp.asarray(check_positive("sigma", sigma), float)
        slack = 1e-6  # lets the range's ends in when rounded to float32
        outside = (level < low * (1 - slack)) | (level > high * (1 + slack))
        message = f"sigma must be in sigma_range = ({low:g}, {high:g})"
        if not isinstance(level, Tracer):
            require(not outside, f"{message}, got {level:g}")
        return self.unchecked_at(eqx.error_if(level, outside, message))

    def unchecked_at(self, sigma: Float[Array, ""]) -> ResidualEnergy:
        """`at`, for a sigma that is known to be in the range."""
        # In the energy's own precision: a float32 network, say from a file, may reject float64.
        low, high, sigma = *self.sigma_range, sigma.astype(self.loc.dtype)
        t = 2 * (jnp.log(sigma) - jnp.log(low)) / (jnp.log(high) - jnp.log(low)) - 1
        network = AtLevel(self.network, NonTrainable(t))
        return ResidualEnergy(network, sigma, self.event_shape, self.loc, self.scale)

    def levels(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """The noise level for each u in [0, 1), log-uniform over `sigma_range`."""
        low, high = np.log(self.sigma_range)
        return jnp.exp(low + (high - low) * u)


def _at_some_level(network: Callable, **_: Any) -> "AtLevel":
    return AtLevel(network, NonTrainable(jnp.zeros(())))


@configured(
    "energies.AtLevel",
    {"network": MODULE},
    arrays={"level.value": Values.FINITE},
    make=_at_some_level,
)
class AtLevel(eqx.Module):
    """A conditional network at one noise level t, used by the energy of `ConditionalEnergy.at`.

    Attributes:
        network: The network of y and t.
        level: t, from -1 at the smallest sigma to 1 at the largest. It is never trained.
    """

    network: Callable
    level: NonTrainable

    def __call__(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """network(y, t)."""
        return self.network(y, self.level.value)
