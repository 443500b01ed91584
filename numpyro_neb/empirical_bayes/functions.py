"""What an energy says about the clean X behind any batch of observations."""

from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from numpyro_neb._internal.batching import in_chunks
from numpyro_neb._internal.checks import (
    check_choice,
    check_count,
    check_positive,
)
from numpyro_neb._internal.events import as_events, checked_events, in_dtype_of
from numpyro_neb.empirical_bayes.distribution import PosteriorDistribution, stacked
from numpyro_neb.energies.base import AbstractScoreField, check_energy
from numpyro_neb.posteriors.base import at_once, in_parts

Observations = Float[Array, "..."] | Float[np.ndarray, "..."]


def posterior_mean(
    energy: AbstractScoreField,
    y: Observations,
    *,
    chunk_size: int = 1024,
    progress_bar: bool = True,
) -> Float[Array, "..."]:
    r"""E[X given Y=y] = y - sigma^2 grad phi(y), over any batch.

    The least-squares estimator: under the true energy, no other has a smaller mean squared error.
    It is exact for a `MixtureEnergy`, and as accurate as the training for a learned energy.

    Args:
        energy: The energy phi of the smoothed density at the noise level of `y`.
        y: Observations, of shape (*batch, *event_shape), batch of any rank.
        chunk_size: How many observations to process at once: memory besides `y` and the result is
            that of one chunk.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The posterior means, of y's shape.

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If y has the wrong shape or is not finite, or chunk_size is not a positive int.

    Reference:
        Robbins 1956; Miyasawa 1961; NEB equation 3.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> neb.posterior_mean(energy, jnp.array([-0.5, 0.0, 0.5]))
        Array([-0.46211717,  0.        ,  0.46211717], dtype=float32)
    """
    return _over("mean", energy, y, chunk_size, progress_bar)


def posterior_std(
    energy: AbstractScoreField,
    y: Observations,
    *,
    chunk_size: int = 128,
    progress_bar: bool = True,
) -> Float[Array, "..."]:
    r"""The standard deviation of each coordinate of X given Y=y, over any batch.

    The square root of the diagonal of sigma^2 (I - sigma^2 Hess phi(y)). Exact for a
    `MixtureEnergy`; for any other energy, from d Jacobian-vector products of the jump, and a
    negative variance, from a poor fit, counts as zero.

    Args:
        energy: The energy phi, or a `ScoreField`.
        y: Observations, of shape (*batch, *event_shape).
        chunk_size: How many observations to process at once.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        Standard deviations, of y's shape, in y's units.

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If y has the wrong shape or is not finite, or chunk_size is not a positive int.

    Reference:
        Efron, Tweedie's formula and selection bias, JASA 106 (2011).

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), sigma=1.0)
        >>> neb.posterior_std(energy, jnp.array([0.0]))  # -1 or 1, as likely
        Array([1.], dtype=float32)
    """
    return _over("std", energy, y, chunk_size, progress_bar)


def posterior_covariance(
    energy: AbstractScoreField,
    y: Observations,
    covariance: Literal["full", "diagonal", "operator"] = "full",
    *,
    chunk_size: int = 128,
    progress_bar: bool = True,
) -> Any:
    r"""Cov(X given Y=y) = sigma^2 (I - sigma^2 Hess phi(y)) = sigma^2 d x_hat / dy.

    Returned unprojected: a learned energy's may have negative eigenvalues where the fit is poor.
    `posterior_distribution` raises them to zero.

    Args:
        energy: The energy phi, or a `ScoreField`.
        y: Observations, of shape (*batch, *event_shape).
        covariance: How to represent it: "full", a matrix over the flattened event; "diagonal", the
            variances; or "operator", v -> Cov v for large d, one Jacobian-vector product per call
            and no matrix.
        chunk_size: How many observations to process at once; an operator's `mv` takes all.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        An array of shape (*batch, d, d), or of y's shape for "diagonal"; for "operator" a symmetric
        `lineax.FunctionLinearOperator`, whose `mv` takes and returns arrays of y's shape, each
        observation separately.

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If covariance is not one of the three, y does not end in the event shape, or
            chunk_size is not a positive int.

    Reference:
        Efron, Tweedie's formula and selection bias, JASA 106 (2011).

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> locs = jnp.array([[-1.0, -2.0], [1.0, 2.0]])
        >>> energy = neb.MixtureEnergy(locs, sigma=1.0)
        >>> neb.posterior_covariance(energy, jnp.zeros(2))
        Array([[1., 2.],
               [2., 4.]], dtype=float32)
        >>> operator = neb.posterior_covariance(energy, jnp.zeros(2), "operator")
        >>> operator.mv(jnp.array([1.0, 0.0]))
        Array([1., 2.], dtype=float32)
    """
    check_choice("covariance", covariance, ("full", "diagonal", "operator"))
    if covariance != "operator":
        ask = {"full": "covariance", "diagonal": "variance"}[covariance]
        return _over(ask, energy, y, chunk_size, progress_bar)
    import lineax as lx

    check_energy(energy, score=True)
    check_count("chunk_size", chunk_size)
    y = as_events("y", y, energy)
    flat = y.reshape(-1, *energy.event_shape)

    def product(v):
        return _products(energy, flat, v.reshape(flat.shape)).reshape(y.shape)

    shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
    tags = lx.symmetric_tag if energy.has_value else ()
    return lx.FunctionLinearOperator(product, shape, tags)


def posterior_distribution(energy: AbstractScoreField, y: Observations) -> PosteriorDistribution:
    r"""The law of X given Y=y, as a NumPyro distribution with y's batch shape.

    For a `MixtureEnergy` it is exact, again a mixture. For any other energy it is the Gaussian with
    the posterior's mean and covariance. These are as accurate as the energy, but the true posterior
    may have several modes or bounds.

    Args:
        energy: The energy phi, or a `ScoreField`.
        y: Observations, of shape (*batch, *event_shape). They are processed all at once: for large
            batches of images use `posterior_mean` and the like, which work in chunks.

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If y does not end in the event shape.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([0.0]), 1.0, covariances=jnp.array([[[1.0]]]))
        >>> posterior = neb.posterior_distribution(energy, jnp.array([2.0]))  # N(1, 1/2)
        >>> posterior.mean, posterior.variance
        (Array([1.], dtype=float32), Array([0.5], dtype=float32))
        >>> posterior.sample(jax.random.key(0), (3,)).shape
        (3, 1)
    """
    check_energy(energy, score=True)
    y = as_events("y", y, energy)
    batch = y.shape[: y.ndim - len(energy.event_shape)]
    return PosteriorDistribution(stacked(energy.posterior, batch, y))


def credible_interval(
    energy: AbstractScoreField,
    y: Observations,
    probability: float = 0.9,
    *,
    chunk_size: int = 128,
    progress_bar: bool = True,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Equal-tailed credible intervals for each coordinate of X given Y=y, over any batch.

    From the exact quantiles for a `MixtureEnergy`, and from a Gaussian's mean and standard
    deviation for any other energy.

    Args:
        energy: The energy phi, or a `ScoreField`.
        y: Observations, of shape (*batch, *event_shape).
        probability: The probability of each interval, between 0 and 1.
        chunk_size: How many observations to process at once.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The lower and the upper ends, each of y's shape.

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If probability is not between 0 and 1, y does not end in the event shape, or
            chunk_size is not a positive int.

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([0.0]), 1.0, covariances=jnp.array([[[1.0]]]))
        >>> lower, upper = neb.empirical_bayes.credible_interval(energy, jnp.array([2.0]))
        >>> print(f"{lower[0]:.2f} to {upper[0]:.2f}")  # 1 -+ 1.645 sqrt(1/2)
        -0.16 to 2.16
    """
    probability = check_positive("probability", probability, 1.0)
    return _over("interval", energy, y, chunk_size, progress_bar, probability)


def local_false_sign_rate(
    energy: AbstractScoreField,
    y: Observations,
    *,
    chunk_size: int = 1024,
    progress_bar: bool = True,
) -> Float[Array, "..."]:
    r"""Lfsr = min(P(X <= 0 given Y=y), P(X >= 0 given Y=y)) of each coordinate, over any batch.

    The probability of being wrong about the sign of X, if you have to name one. A point mass at
    zero counts on both sides. Exact for a `MixtureEnergy`; for any other energy, that of the
    moment-matched Gaussian, which does not have mass at zero.

    Args:
        energy: The energy phi, or a `ScoreField`.
        y: Observations, of shape (*batch, *event_shape).
        chunk_size: How many observations to process at once.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        Probabilities, of y's shape.

    Raises:
        TypeError: If `energy` is neither an `AbstractEnergy` nor a `ScoreField`, or y does not
            hold floats.
        ValueError: If y has the wrong shape or is not finite, or chunk_size is not a positive int.

    Reference:
        Stephens, False discovery rates: a new deal, Biostatistics 18 (2017).

    Example:
        >>> import jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.array([0.0, 2.0]), sigma=1.0)
        >>> neb.empirical_bayes.local_false_sign_rate(energy, jnp.array([1.0]))  # P(X = 0)
        Array([0.5], dtype=float32)
    """
    return _over("lfsr", energy, y, chunk_size, progress_bar)


def _over(name, energy, y, chunk_size, progress_bar, *arguments):
    """`name` of the posterior of each y, over any batch."""
    flat, batch = _flat(energy, y, chunk_size)
    each = lambda y: _asked(name, energy, in_dtype_of(energy, y), arguments)  # noqa: E731
    out = in_chunks(each, (flat,), chunk_size, progress_bar)
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), out)


def _flat(energy, y, chunk_size):
    """The observations along one dimension, still on the host, and the shape of their batch."""
    check_energy(energy, score=True)
    check_count("chunk_size", chunk_size)
    y, shape = checked_events("y", y, energy), energy.event_shape
    return y.reshape(-1, *shape), y.shape[: y.ndim - len(shape)]


@eqx.filter_jit
def _products(energy, y, v):
    return jax.vmap(lambda y, v: energy.posterior(y).product(v))(y, v)


@eqx.filter_jit
def _asked(name, energy, y, arguments):
    if name == "mean":  # the jump, without its derivative
        return jax.vmap(energy.denoise)(y)

    def one(y):
        answer = getattr(energy.posterior(y), name)
        return answer(*arguments) if arguments else answer

    event = jax.ShapeDtypeStruct(energy.event_shape, y.dtype)
    posterior = eqx.filter_eval_shape(lambda y: energy.posterior(y), event)
    return in_parts(one, (y,), at_once(posterior))
