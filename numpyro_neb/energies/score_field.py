"""A denoiser in place of an energy."""

from collections.abc import Callable
from typing import Any, final

import equinox as eqx
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from numpyro_neb._internal.checks import Numbers, check_network, check_type
from numpyro_neb._internal.configurations import MODULE, SHAPE, Values, configured
from numpyro_neb._internal.events import as_event
from numpyro_neb.energies.base import AbstractEnergy, AbstractScoreField, checked_buffers
from numpyro_neb.energies.mixture import MixtureEnergy


@configured(
    "ScoreField",
    {"event_shape": SHAPE, "denoiser": MODULE},
    arrays={"sigma": Values.POSITIVE, "loc": Values.FINITE, "scale": Values.POSITIVE},
)
@final
class ScoreField(AbstractScoreField):
    r"""Any denoiser x_hat(y) = E[X given Y=y], with the score (x_hat(y) - y) / sigma^2.

    For a denoiser that was trained elsewhere. It need not be the gradient of anything, so there is
    no phi(y). `WalkJumpKernel` walks on it with `BAOAB`, `ABOBA`, `ULA` or `Microcanonical`, and
    without tuning; the posterior's functions, `recall`, `memories.follow` and `save` take it. What
    needs phi refuses it: a Metropolis test, `SmoothedDensity` and so NUTS, `log_normalizer`,
    `evaluate`.

    A denoiser in PyTorch is called by `jax.pure_callback`, as the page *Your own denoiser* shows.
    It has no derivative there, which the posterior's covariance needs and a walk does not. If
    `denoiser` is an energy's own method `denoise`, for the same sigma, the score is that energy's,
    to the last bit; make another field for another sigma.

    Args:
        denoiser: Maps an array of shape `event_shape` to one of the same shape: an Equinox or Flax
            module, or a JAX function.
        sigma: The noise's standard deviation that the denoiser is for, positive.
        event_shape: The shape of one y.
        loc: The mean of X, a scalar or of shape `event_shape`: chains start about it.
        scale: The standard deviation of X, a positive scalar or of shape `event_shape`.

    Raises:
        TypeError: If the denoiser is not callable.
        ValueError: If sigma or scale is not positive and finite, a shape does not fit, or the
            denoiser's output is not of shape `event_shape`.

    Reference:
        Miyasawa 1961; Alain and Bengio, What regularized auto-encoders learn, JMLR 15 (2014).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro.infer import MCMC
        >>> field = neb.ScoreField(lambda y: y / 2, sigma=1.0, event_shape=(3,))  # X ~ N(0, I)
        >>> field.score(jnp.ones(3))
        Array([-0.5, -0.5, -0.5], dtype=float32)
        >>> mcmc = MCMC(neb.WalkJumpKernel(field), num_warmup=100, num_samples=1000,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["x"].shape
        (1000, 3)
    """

    denoiser: Callable[[Float[Array, "*event"]], Float[Array, "*event"]]
    sigma: Float[Array, ""]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    loc: Float[Array, "..."]
    scale: Float[Array, "..."]
    of_energy: bool = eqx.field(static=True)

    def __init__(
        self,
        denoiser: Callable,
        sigma: ArrayLike,
        event_shape: tuple[int, ...],
        loc: Numbers = 0.0,
        scale: Numbers = 1.0,
    ):
        check_type("denoiser", denoiser, Callable, "callable")
        self.denoiser = denoiser
        self.sigma, self.event_shape, self.loc, self.scale = checked_buffers(
            sigma, event_shape, loc, scale
        )
        method: Any = denoiser
        energy: Any = getattr(method, "__self__", None)
        plain = AbstractScoreField.denoise, MixtureEnergy.denoise
        own = isinstance(energy, AbstractEnergy) and method.__func__ in plain
        known = own and not isinstance(energy.sigma, Tracer) and not isinstance(self.sigma, Tracer)
        self.of_energy = bool(known and energy.sigma == self.sigma)

    def __check_init__(self):
        shape = self.event_shape
        check_network("denoiser", self.denoiser, shape, shape, self.sigma.dtype)

    def score(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """(x_hat(y) - y) / sigma^2."""
        y = as_event(y, self.event_shape)
        if self.source is not None:
            return self.source.score(y)
        return (self.denoiser(y) - y) / self.sigma**2

    @property
    def source(self) -> AbstractEnergy | None:
        """The energy whose method `denoise` the denoiser is, if it has the same sigma, or None."""
        return getattr(self.denoiser, "__self__", None) if self.of_energy else None

    def denoise(self, y: Float[Array, "*event"]) -> Float[Array, "*event"]:
        """The denoiser's x_hat(y)."""
        return self.denoiser(as_event(y, self.event_shape))
