"""Whether observations are as noisy as an energy expects."""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.util import find_stack_level

from numpyro_neb._internal.batching import in_chunks
from numpyro_neb._internal.events import checked_events, in_dtype_of
from numpyro_neb.energies.base import AbstractEnergy, check_energy


class ApparentNoise(NamedTuple):
    """A noise level estimated from observations, and its standard error, in y's units."""

    sigma: float
    error: float


def apparent_noise(energy: AbstractEnergy, y: jax.Array | np.ndarray) -> ApparentNoise:
    r"""The noise level of observations as an energy sees it.

        s^2 = sigma^2 mean norm(sigma grad phi(y))^2 / mean sigma^2 (Laplacian of phi)(y)

    For y ~ exp(-phi) both means are the same (Fisher's information), so that s is sigma. In
    directions in which X does not vary, where an image differs from noise, s is the noise that y
    has; along those in which X varies by much more than sigma, nothing can be told, and they don't
    count. The Laplacian is estimated along one random direction for each y, the same at each call.

    Args:
        energy: The energy.
        y: Observations, of shape (*batch, *event_shape).

    Returns:
        s, infinite if the mean Laplacian is not positive, and its standard error.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, or y does not hold floats.
        ValueError: If y has the wrong shape, is empty or not finite.

    Reference:
        Hyvarinen, Estimation of non-normalized statistical models by score matching, JMLR 6 (2005).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> from numpyro_neb.empirical_bayes.noise import apparent_noise
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 10)), sigma=0.3)  # X is zero
        >>> y = jax.random.normal(jax.random.key(0), (1000, 10))
        >>> print(f"{apparent_noise(energy, 0.6 * y).sigma:.2f}")
        0.61
    """
    check_energy(energy, single=True)
    y = checked_events("y", y, energy)
    flat = np.asarray(y).reshape(-1, *energy.event_shape)
    if not len(flat):
        raise ValueError(f"y must not be empty, got shape {y.shape}")
    squares, traces = (
        np.asarray(a, float)
        for a in in_chunks(
            lambda y: _terms(energy, in_dtype_of(energy, y)), (flat,), 256, progress_bar=False
        )
    )
    sigma, count, expected = float(energy.sigma), len(flat), traces.mean()
    if expected <= 0:
        return ApparentNoise(np.inf, 0.0)
    ratio = squares.mean() / expected
    # Of the ratio, by the delta method; not below that of as many independent squares.
    spread = np.std(squares - ratio * traces) / np.sqrt(count) / expected
    error = max(spread, ratio * np.sqrt(2 / (count * expected)))
    return ApparentNoise(sigma * np.sqrt(ratio), sigma * error / (2 * np.sqrt(max(ratio, 1e-12))))


def warn_of_other_noise(energy: AbstractEnergy, y: jax.Array | np.ndarray) -> None:
    """Warns if the noise of y differs from sigma by a quarter and by five standard errors.

    Args:
        energy: The energy that is to denoise y.
        y: Observations, of shape (*batch, *event_shape); the first 1,000 are looked at.
    """
    shape = energy.event_shape
    found = apparent_noise(energy, np.asarray(y).reshape(-1, *shape)[:1000])
    sigma = float(energy.sigma)
    off = abs(found.sigma - sigma)
    if off > sigma / 4 and off > 5 * found.error:
        warnings.warn(
            f"the noise of y looks like {found.sigma:.2g}, not like the energy's sigma ="
            f" {sigma:.2g}: it must be the one that y has, neither less nor more",
            stacklevel=find_stack_level(),
        )


@eqx.filter_jit
def _terms(energy, y):
    """norm(sigma grad phi)^2 and v' (sigma^2 Hess phi) v for each y."""
    signs = jax.random.rademacher(jax.random.key(0), y.shape, y.dtype)

    def one(y, v):
        jump, along = jax.jvp(energy.denoise, (y,), (v,))
        square = jnp.sum(((y - jump) / energy.sigma) ** 2)
        return square, jnp.sum(v * (v - along))

    return jax.vmap(one)(y, signs)
