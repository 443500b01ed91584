"""The leading principal components of X given y, by Lanczos' method and within bounds."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from numpyro_neb._internal.batching import in_chunks
from numpyro_neb._internal.checks import check_counts, check_positive, require
from numpyro_neb._internal.events import checked_events, in_dtype_of
from numpyro_neb.empirical_bayes.lanczos import ROUNDING, dot, leading
from numpyro_neb.energies.base import AbstractScoreField, check_energy

Observations = Float[Array, "..."] | Float[np.ndarray, "..."]


class PosteriorComponents(NamedTuple):
    """The leading principal components of X given Y=y.

    Attributes:
        variances: The largest eigenvalues of Cov(X given Y=y), decreasing, of shape
            (*batch, num_components).
        components: Their unit eigenvectors, of shape (*batch, num_components, *event_shape).
        residuals: The larger of norm(Cov v - variance v) / the largest variance, how far a
            component still is from an eigenvector, and sqrt((upper - variance) / the largest
            variance): the relative error in a variance is at most its square wherever `upper`
            holds. Of the shape of `variances`.
        upper: Upper bounds, of the shape of `variances`. The i-th largest eigenvalue lies between
            the i-th variance and the i-th bound, up to rounding, with a probability of at least
            1 - 1e-4 over the random vector that the iteration starts from.
        converged: Whether every residual is within the tolerance, of shape (*batch).

    The covariance is meant as the energy's derivatives give it: their own rounding, about eps
    sigma^2, is not part of the bounds.
    """

    variances: Float[Array, "*batch num_components"]
    components: Float[Array, "..."]
    residuals: Float[Array, "*batch num_components"]
    upper: Float[Array, "*batch num_components"]
    converged: Bool[Array, "*batch"]


def posterior_components(
    energy: AbstractScoreField,
    y: Observations,
    num_components: int,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    chunk_size: int = 16,
    progress_bar: bool = True,
) -> PosteriorComponents:
    r"""The leading principal components of the posterior, by Lanczos' method.

    The directions in which an observation leaves X most uncertain. Each component is found in the
    complement of those before it, from a random vector v: the best ones in the span of
    v, Cov v, ..., Cov^k v, from Jacobian-vector products of the jump. No d x d array is formed.

    A small residual does not show that no larger eigenvalue was missed: v may have almost no share
    of its eigenvector. So the iteration also bounds the largest eigenvalue. The next vector of the
    basis is p_k(Cov) v, where the polynomial p_k grows fast beyond the eigenvalues found. It has
    norm 1, and v's share of the missed eigenvector is at least c with probability 1 - 1e-4, where c
    follows from d: so p_k is at most 1 / c at the missed eigenvalue. After d steps nothing is
    missed.

    Args:
        energy: The energy phi.
        y: Observations, of shape (*batch, *event_shape).
        num_components: How many, at most d.
        tolerance: The iteration stops when every residual is below it: the relative error in a
            variance is then at most its square, in the sense of `PosteriorComponents.upper`. At
            least 4 sqrt(eps) of the dtype, 1.4e-3 in float32: rounding leaves no less.
        max_iterations: Maximum number of products for each component; that many vectors are held
            for each observation of a chunk. `converged` says whether they were enough.
        chunk_size: How many observations to process at once.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        Variances, components, residuals, upper bounds, and whether they converged. A component's
        sign is arbitrary.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, or y does not hold floats.
        ValueError: If num_components is not between 1 and d, y does not end in the event shape, or
            another count is not a positive int.

    Reference:
        Manor and Michaeli, On the posterior distribution in denoising, ICLR 2024; van Dorsselaer,
        Hochstenbach and van der Vorst, Computing probabilistic bounds for extreme eigenvalues of
        symmetric matrices with the Lanczos method, SIAM J. Matrix Anal. Appl. 22 (2000).

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> spread = jnp.diag(jnp.array([3.0, 1.0, 0.0]))[None]
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 3)), 1.0, covariances=spread)
        >>> found = neb.empirical_bayes.posterior_components(energy, jnp.zeros(3), 2)
        >>> jnp.allclose(found.variances, jnp.array([3 / 4, 1 / 2]))  # c / (c + sigma^2)
        Array(True, dtype=bool)
    """
    check_energy(energy, score=True)
    y, shape = checked_events("y", y, energy), energy.event_shape
    num_components, max_iterations, chunk_size = check_counts(
        num_components=num_components, max_iterations=max_iterations, chunk_size=chunk_size
    )
    d = int(np.prod(shape))
    require(num_components <= d, f"num_components must be at most d = {d}, got {num_components}")
    tolerance = check_positive("tolerance", tolerance)
    find = partial(_components, num_components=num_components, max_iterations=max_iterations)

    def chunk(y):
        return find(energy, in_dtype_of(energy, y), tolerance)

    found = in_chunks(chunk, (y.reshape(-1, *shape),), chunk_size, progress_bar)
    batch = y.shape[: y.ndim - len(shape)]
    return PosteriorComponents(*(a.reshape(*batch, *a.shape[1:]) for a in found))


@eqx.filter_jit
def _components(energy, y, tolerance, num_components, max_iterations):
    d, limits = int(np.prod(energy.event_shape)), jnp.finfo(y.dtype)
    tolerance = jnp.maximum(tolerance, 4 * limits.eps**0.5)

    def one(y):
        product = energy.posterior(y).product
        times = lambda v: product(v.reshape(y.shape)).reshape(-1)  # noqa: E731
        run = partial(leading, times, max_steps=min(max_iterations, d), tolerance=tolerance)

        def component(number, state):
            found, upper, largest, size = state
            top = run(found, number, largest, size)
            largest = jnp.where(number == 0, jnp.abs(top.value), largest)
            found = found.at[number].set(top.vector)
            return found, upper.at[number].set(top.value + top.missed), largest, top.size

        found, zero = jnp.zeros((num_components, d), y.dtype), jnp.zeros((), y.dtype)
        state = (found, jnp.zeros(num_components, y.dtype), zero, zero)
        found, upper, _, size = jax.lax.fori_loop(0, num_components, component, state)
        # The best basis of their span (Rayleigh-Ritz).
        image = jax.vmap(times)(found)
        turn = jnp.linalg.eigh(dot(found, image.T))[1][:, ::-1].T
        found, image = dot(turn, found), dot(turn, image)
        values = jnp.sum(found * image, axis=1) / jnp.sum(found**2, axis=1)
        # The j-th largest eigenvalue is at most the largest in the complement of any j - 1 vectors.
        upper = jnp.maximum(jax.lax.cummin(upper) + ROUNDING * limits.eps * size, values)
        # Every vector is an eigenvector of a zero covariance.
        largest = jnp.maximum(jnp.abs(values[0]), limits.tiny)
        residuals = jnp.linalg.norm(image - values[:, None] * found, axis=1) / largest
        residuals = jnp.maximum(residuals, jnp.sqrt((upper - values) / largest))
        components = found.reshape(num_components, *y.shape)
        return values, components, residuals, upper, jnp.all(residuals <= tolerance)

    return jax.vmap(one, axis_name="y")(y)
