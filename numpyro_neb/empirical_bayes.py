"""Empirical Bayes: what an observation Y = X + N(0, sigma^2 I) says of X."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from numpyro_neb.energies import AbstractEnergy, batch_shape_of, check_energy
from numpyro_neb.normalizer import log_normalizer as log_normalizer


def posterior_mean(
    energy: AbstractEnergy,
    y: Float[Array, "..."] | Float[np.ndarray, "..."],
    *,
    chunk_size: int = 1024,
) -> Float[Array, "..."]:
    r"""E[X given Y=y] = y - sigma^2 grad phi(y), over any batch.

    The estimator that least squares would choose: for the true energy no other has a smaller mean
    squared error. Exact for a `MixtureEnergy`, and as good as its training for a learned one.

    Args:
        energy: The energy phi of the smoothed density at the noise level of `y`.
        y: Observations, of shape (*batch, *event_shape), batch of any rank.
        chunk_size: How many of them are worked on at once: memory beyond `y` and the result is that
            of one chunk.

    Returns:
        The posterior means, of y's shape.

    Raises:
        TypeError: If `energy` is no `AbstractEnergy`, or y holds no floats.
        ValueError: If y does not end in the event shape, or chunk_size is not a positive int.

    Reference:
        Robbins 1956; Miyasawa 1961; NEB equation 3.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> neb.posterior_mean(energy, jnp.array([-0.5, 0.0, 0.5]))
        Array([-0.46211717,  0.        ,  0.46211717], dtype=float32)
    """
    check_energy(energy)
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive int, got {chunk_size!r}")
    if not isinstance(y, jax.Array):
        y = np.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"y must hold floats, got {y.dtype}")
    batch_shape_of(y, energy.event_shape)
    flat = y.reshape(-1, *energy.event_shape)
    if isinstance(y, Tracer) or len(flat) <= chunk_size:
        return _denoise(energy, jnp.asarray(flat)).reshape(y.shape)
    # A loop outside the compiled program: inside one, XLA's convolutions are slow on CPUs.
    out = np.empty(flat.shape, jnp.result_type(flat.dtype, energy.sigma))
    for start in range(0, len(flat), chunk_size):
        # The last chunk reaches back, so that one compiled shape serves all.
        begin = min(start, len(flat) - chunk_size)
        chunk = jnp.asarray(flat[begin : begin + chunk_size])
        out[begin : begin + chunk_size] = _denoise(energy, chunk)
    return jnp.asarray(out.reshape(y.shape))


@eqx.filter_jit
def _denoise(energy, y):
    return jax.vmap(energy.denoise)(y)
