"""Objectives that `fit` minimises."""

import abc
from math import prod
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_neb._internal.checks import check_count, check_key, check_number, kind, require
from numpyro_neb._internal.events import as_events
from numpyro_neb.energies.base import (
    AbstractEnergy,
    AbstractEnergyFamily,
    check_energy,
    trainable,
)
from numpyro_neb.training.devices import digest

Batch = Float[Array, "batch *event"] | Float[np.ndarray, "batch *event"]


class AbstractObjective(eqx.Module):
    """An objective that keeps a state from one training step to the next, such as chains.

    `fit` carries the state, and its checkpoints hold it. An objective without a state is a plain
    function of an energy, a batch and a key, such as `denoising_loss`.

    Attributes:
        metrics: The names of the numbers that `__call__` returns with the loss. `fit` records each
            at every step, shows their means in the bar and passes them to `callback`.
    """

    metrics: ClassVar[tuple[str, ...]] = ()

    @property
    def identity(self) -> str:
        """What distinguishes it from other objectives, for checkpoints."""
        return f"{self!r} {digest(eqx.filter(self, eqx.is_array))}"

    @abc.abstractmethod
    def optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """The optimiser that `fit` uses by default.

        Args:
            num_steps: Training steps.
        """

    @abc.abstractmethod
    def init(self, energy: Any, key: PRNGKeyArray) -> PyTree:
        """The state before the first step: a pytree of arrays.

        With `sharding`, arrays whose first axis divides evenly are split along it over the devices.

        Args:
            energy: The energy that training starts from.
            key: A JAX random key.
        """

    @abc.abstractmethod
    def __call__(
        self, energy: Any, x: Batch, key: PRNGKeyArray, state: PyTree
    ) -> tuple[Float[Array, ""], PyTree, dict[str, Float[Array, ""]]]:
        """The loss of one step, the next state, and the metrics.

        Args:
            energy: The energy.
            x: A minibatch of shape (batch, *event_shape).
            key: A JAX random key.
            state: The last step's state; the next must have its structure, shapes and dtypes.
        """

    @abc.abstractmethod
    def validation_loss(
        self, energy: Any, x: Batch, key: PRNGKeyArray, state: PyTree
    ) -> Float[Array, ""]:
        """The loss on held-out data, as a mean over examples; the state does not change.

        `fit` gives the data in batches, and takes the mean over them.
        """

    def validation_constant(
        self, energy: Any, key: PRNGKeyArray, state: PyTree
    ) -> Float[Array, ""] | float:
        """What to add to the validation loss, whatever the data: log Z, say. By default 0.

        It is computed once for all batches.
        """
        del energy, key, state
        return 0.0

    def unit(self, energy: Any, first: Float[Array, ""]) -> Float[Array, ""]:
        """What `fit` divides the loss by before it differentiates it, so that it is of order one.

        Optimisers compare gradients with constants, as Adam does with 1e-8. By default it is
        sigma^2 if the loss per coordinate is nearer to that than to 1 at the first step, otherwise
        1. The losses that `fit` reports are as the objective returns them.

        Args:
            energy: The energy; of a `ConditionalEnergy` the middle of the range counts.
            first: The loss at the first step.
        """
        level = energy.levels(jnp.full((), 0.5, first.dtype)).astype(first.dtype) ** 2
        log_loss, log_level = jnp.log(jnp.abs(first) / prod(energy.event_shape)), jnp.log(level)
        nearer = jnp.abs(log_loss - log_level) < jnp.abs(log_loss)
        return jnp.where(nearer, level, jnp.ones_like(level))

    def noise_loss(self, energy: Any) -> float | None:
        """The loss of an energy that does not denoise at all, if it is known."""
        del energy
        return None

    def warning(self, means: dict[str, float]) -> str | None:
        """A warning for `fit` to give once, or None, given mean metrics over some steps."""
        del means
        return None


def check_step(
    objective: AbstractObjective, before: PyTree, after: PyTree, metrics: dict[str, Any]
) -> None:
    """Raises a ValueError unless a step returns the kind of state and the metrics it promises.

    Args:
        objective: The objective.
        before: The state before the step.
        after: The state after it.
        metrics: Its metrics.
    """
    shape = lambda x: (jnp.shape(x), getattr(x, "dtype", type(x)))  # noqa: E731
    one, other = (jax.tree.map(shape, state) for state in (before, after))
    same = jax.tree.structure(before) == jax.tree.structure(after) and one == other
    what = f"structure, shapes and dtypes that its init returned, {one}, got {other}"
    require(same, f"objective must return a state of the {what}")
    names = sorted(objective.metrics)
    what = f"the metrics that it names, {names}, got {sorted(metrics)}"
    require(sorted(metrics) == names, f"objective must return {what}")


def denoising_loss(
    energy: AbstractEnergy | AbstractEnergyFamily, x: Batch, key: PRNGKeyArray
) -> Float[Array, ""]:
    r"""The DEEN objective, E norm(x - x_hat(y))^2 with y = x + sigma eps.

    Its minimum is L* = sigma^2 d - sigma^4 E norm(grad log f)^2, reached when phi = -log f up to a
    constant; the excess over it is sigma^4 E norm(grad phi + grad log f)^2. So phi learns the score
    of the smoothed density without ever seeing it. sigma, loc and scale get no gradient.

    For a `ConditionalEnergy`, each example has its own sigma, log-uniform over the range, and its
    error is in units of sigma^2: E norm(x - x_hat(y; sigma))^2 / sigma^2.

    Args:
        energy: The energy phi; x_hat(y) = y - sigma^2 grad phi(y).
        x: A batch of clean data, of shape (batch, *event_shape).
        key: A JAX random key, for the noise.

    Returns:
        The squared error, summed over coordinates and averaged over the batch, in the data's units
        squared; for a `ConditionalEnergy` in units of sigma^2.

    Raises:
        TypeError: If `energy` is not an energy, x does not hold floats, or key is not a random key.
        ValueError: If x does not have that shape, or is not traced and not finite.

    Reference:
        NEB equation 8; Vincent 2011; Hyvarinen 2005.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> x = jnp.array([[-1.0], [1.0]])
        >>> loss = neb.denoising_loss(neb.MixtureEnergy(x, sigma=0.1), x, jax.random.key(0))
        >>> bool(loss < 1e-6)  # the noise is far too small to mistake one point for the other
        True
    """
    check_energy(energy, conditional=True)
    check_key(key)
    energy, x = fixed_buffers(energy), as_events("x", x, energy, "batch")
    # With one level all of the key is for the noise, so that runs of 0.1.0 resume with the same.
    key_noise, key_level = (key, key) if energy.one_level else jax.random.split(key)
    sigma = energy.levels(jax.random.uniform(key_level, (len(x),), x.dtype))
    noise = jax.random.normal(key_noise, x.shape, x.dtype)

    def error(x, sigma, noise):
        difference = x - energy.unchecked_at(sigma).denoise(x + sigma * noise)
        return jnp.sum((difference if energy.one_level else difference / sigma) ** 2)

    return jnp.mean(jax.vmap(error)(x, sigma, noise))


def dual_score_loss(
    energy: AbstractEnergyFamily, x: Batch, key: PRNGKeyArray, *, weight: float = 1.0
) -> Float[Array, ""]:
    r"""Dual score matching: the slopes of phi in y, as `denoising_loss`, and in log sigma.

        E norm(sigma grad phi(y; sigma) - eps)^2 + weight E s^2 / (4 d) + c^2,    y = x + sigma eps

    with s the error of the derivative of phi by log sigma, whose target is d - norm(eps)^2, and c
    the mean of phi - phi_0 at the largest sigma, phi_0 the -log density of
    N(loc, scale^2 + sigma^2);
    one sigma per example, log-uniform over the range. The first term is `denoising_loss`. The
    second is least if the derivative is that of -log f, d - E[norm(eps)^2 given y]: it ties the
    constants of phi at all levels to each other. The third gives them their value: at a sigma of
    several times the spread of X, Y has nearly the density of phi_0. At the minimum phi is -log f
    at each level.

    Args:
        energy: Energies of a range of noise levels, such as a `ConditionalEnergy`.
        x: A batch of clean data, of shape (batch, *event_shape).
        key: A JAX random key, for the noise and the levels.
        weight: The weight of the second term; 1 is the paper's.

    Returns:
        The loss, averaged over the batch; dimensionless.

    Raises:
        TypeError: If `energy` is for one noise level or none, x does not hold floats, key is not a
            random key, or weight is not a number.
        ValueError: If x does not have that shape, or is not traced and not finite, or weight is
            negative or infinite.

    Reference:
        Guth, Kadkhodaie and Simoncelli, Learning normalized image densities via dual score
        matching, arXiv 2506.05310 (2025).

    Example:
        >>> from functools import partial
        >>> import jax, numpyro_neb as neb
        >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
        >>> mlp = neb.networks.MLP((2,), width_size=16, depth=2, conditional=True,
        ...                        key=jax.random.key(1))
        >>> family = neb.ConditionalEnergy(mlp, (2,), sigma_range=(0.2, 4.0))
        >>> result = neb.fit(family, x, objective=partial(neb.dual_score_loss, weight=0.3),
        ...                  key=jax.random.key(2), num_steps=10, batch_size=64,
        ...                  progress_bar=False)
        >>> result.losses.shape
        (10,)
    """
    check_energy(energy, conditional=True)
    many = isinstance(energy, AbstractEnergyFamily)
    what = "energy must be a family of noise levels, such as a ConditionalEnergy"
    require(many, f"{what}, got {kind(energy)}", TypeError)
    bare = "energy must have constants for its levels: one with preconditioned=False has none"
    require(energy.has_constants, f"{bare}, take denoising_loss")
    check_key(key)
    fits = 0 <= check_number("weight", weight) < np.inf
    require(fits, f"weight must be at least 0 and finite, got {weight}")
    energy, x = fixed_buffers(energy), as_events("x", x, energy, "batch")
    key_noise, key_level = jax.random.split(key)
    sigma = energy.levels(jax.random.uniform(key_level, (len(x),), x.dtype))
    noise = jax.random.normal(key_noise, x.shape, x.dtype)

    highest = energy.unchecked_at(energy.levels(jnp.ones((), x.dtype)))
    variance = jnp.broadcast_to(energy.scale**2 + highest.sigma**2, energy.event_shape)

    def lift(x, noise):
        y = x + highest.sigma * noise
        gaussian = jnp.sum((y - energy.loc) ** 2 / variance + jnp.log(2 * jnp.pi * variance)) / 2
        return highest(y) - gaussian

    def error(x, sigma, noise):
        phi = lambda y, log: energy.unchecked_at(jnp.exp(log))(y)  # noqa: E731
        y, log = x + sigma * noise, jnp.log(sigma)
        slope, slope_of_log = jax.grad(phi, (0, 1))(y, log)
        square = jnp.sum((slope_of_log - (noise.size - jnp.sum(noise**2))) ** 2)
        return jnp.sum((sigma * slope - noise) ** 2) + weight * square / (4 * noise.size)

    constant = jnp.mean(jax.vmap(lift)(x, noise))
    return jnp.mean(jax.vmap(error)(x, sigma, noise)) + constant**2


def sure_loss(
    energy: AbstractEnergy,
    y: Batch,
    key: PRNGKeyArray,
    *,
    num_probes: int | None = None,
) -> Float[Array, ""]:
    r"""Stein's unbiased risk estimate: `denoising_loss` without the clean data.

        norm(x_hat(y) - y)^2 + 2 sigma^2 div x_hat(y) - sigma^2 d

    with x_hat(y) = y - sigma^2 grad phi(y). Its expectation over Y = X + N(0, sigma^2 I) is
    E norm(X - x_hat(Y))^2, so `fit(energy, y, objective=sure_loss)` trains on noisy data alone.
    It is unbiased for a fixed energy, but far too low on the data that the energy was trained on:
    give `fit` held-out noisy `validation_data`, and `patience` to stop by it.

    Args:
        energy: The energy phi, at the noise level of the data.
        y: A batch of noisy data, of shape (batch, *event_shape).
        key: A JAX random key, for the probes.
        num_probes: The number of Hutchinson's random probes v for the divergence, the mean of
            v' (d x_hat / dy) v. By default it is exact up to d = 16, by d Jacobian-vector
            products, and uses one probe above that.

    Returns:
        The estimate, averaged over the batch, in the data's units squared. It may be negative.

    Raises:
        TypeError: If `energy` is not an `AbstractEnergy`, y not of floats, or key not a random key.
        ValueError: If y does not have that shape, y is not traced and not finite, or num_probes is
            not a positive int.

    Reference:
        Stein, Estimation of the mean of a multivariate normal distribution, Annals of Statistics 9
        (1981); Ramani, Blu and Unser, Monte-Carlo SURE, IEEE TIP 17 (2008), for the probes.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro_neb as neb
        >>> energy = neb.MixtureEnergy(jnp.zeros((1, 2)), 1.0, covariances=jnp.eye(2)[None])
        >>> y = energy.sample(jax.random.key(0), (10_000,))
        >>> loss = neb.sure_loss(energy, y, jax.random.key(1))
        >>> print(f"{loss:.1f}")  # sigma^2 s^2 / (sigma^2 + s^2) in each of two dimensions
        1.0
    """
    if num_probes is not None:
        check_count("num_probes", num_probes)
    check_energy(energy)
    check_key(key)
    energy, y = fixed_buffers(energy), as_events("y", y, energy, "batch")
    size = y[0].size
    if num_probes is None and size <= _EXACT:
        probes = jnp.broadcast_to(jnp.eye(size, dtype=y.dtype) * size**0.5, (len(y), size, size))
    else:
        shape = (len(y), num_probes or 1, size)
        probes = jax.random.rademacher(key, shape, y.dtype)

    def risk(y, probes):
        # Not by way of energy.posterior(y): its convolutions are matrix products, for compiled
        # loops, and a training step is outside of any.
        jump, jacobian = jax.linearize(energy.denoise, y)
        along = lambda v: jnp.vdot(v, jacobian(v))  # noqa: E731
        divergence = jnp.mean(jax.vmap(along)(probes.reshape(-1, *y.shape)))
        return jnp.sum((jump - y) ** 2) + energy.sigma**2 * (2 * divergence - size)

    return jnp.mean(jax.vmap(risk)(y, probes))


# Up to this many dimensions the divergence is exact unless num_probes is given.
_EXACT = 16


def fixed_buffers(energy: Any) -> Any:
    """The energy, with no gradient to what is not trained."""
    params, buffers = eqx.partition(energy, trainable(energy))
    return eqx.combine(params, jax.lax.stop_gradient(eqx.filter(buffers, eqx.is_array)), buffers)
