"""Objectives that `fit` minimises."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb.energies import AbstractEnergy, trainable


def denoising_loss(
    energy: AbstractEnergy, x: Float[Array, "batch *event"], key: PRNGKeyArray
) -> Float[Array, ""]:
    r"""The DEEN objective, E norm(x - x_hat(y))^2 with y = x + sigma eps.

    Its floor is L* = sigma^2 d - sigma^4 E norm(grad log f)^2, reached where phi = -log f up to a
    constant; what it lies above is sigma^4 E norm(grad phi + grad log f)^2. So it learns the score
    of the smoothed density without ever seeing it. sigma, loc and scale get no gradient.

    Args:
        energy: The energy phi; x_hat(y) = y - sigma^2 grad phi(y).
        x: A batch of clean data, of shape (batch, *event_shape).
        key: A JAX random key, for the noise.

    Returns:
        The squared error, summed over coordinates and averaged over the batch, in the data's units
        squared.

    Reference:
        NEB equation 8; Vincent 2011; Hyvarinen 2005.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> x = jnp.array([[-1.0], [1.0]])
        >>> loss = neb.denoising_loss(neb.MixtureEnergy(x, sigma=0.1), x, jax.random.key(0))
        >>> bool(loss < 1e-6)  # the noise is far too small to mistake one point for the other
        True
    """
    if jnp.shape(x)[1:] != energy.event_shape or jnp.ndim(x) == 0:
        raise ValueError(
            f"x must have shape (batch, *event_shape) with event shape {energy.event_shape},"
            f" got {jnp.shape(x)}"
        )
    params, buffers = eqx.partition(energy, trainable(energy))
    energy = eqx.combine(params, jax.lax.stop_gradient(eqx.filter(buffers, eqx.is_array)), buffers)
    y = x + energy.sigma * jax.random.normal(key, x.shape, energy.sigma.dtype)
    errors = x - jax.vmap(energy.denoise)(y)
    return jnp.mean(jnp.sum(errors.reshape(len(x), -1) ** 2, axis=1))
