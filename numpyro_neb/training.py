"""Training: `fit` minimises an objective over an energy's parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm.auto import tqdm

from numpyro_neb.energies import AbstractEnergy, ConditionalEnergy, check_energy, trainable
from numpyro_neb.objectives import denoising_loss

Energy = AbstractEnergy | ConditionalEnergy
Objective = Callable[[Any, Float[Array, "batch *event"], PRNGKeyArray], Float[Array, ""]]


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        energy: The trained energy: the last one, or with `patience` that of the lowest validation
            loss. A `ConditionalEnergy` where `fit` was given one.
        losses: The objective on each step's minibatch, of shape (num_steps,), or as many steps as
            there were before `patience` ran out.
        validation_steps: The steps after which the validation loss was taken, of shape (v,).
        validation_losses: The objective on the validation data at those steps, with the same noise
            each time, of shape (v,); empty without validation data.
    """

    energy: Any
    losses: np.ndarray
    validation_steps: np.ndarray
    validation_losses: np.ndarray


def fit(
    energy: Energy,
    data: Float[Array, "n *event"] | Float[np.ndarray, "n *event"],
    *,
    key: PRNGKeyArray,
    num_steps: int,
    batch_size: int,
    optimizer: optax.GradientTransformation | None = None,
    objective: Objective = denoising_loss,
    validation_data: Float[Array, "m *event"] | Float[np.ndarray, "m *event"] | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    progress_bar: bool = True,
) -> FitResult:
    r"""Trains an energy by stochastic gradient descent.

    Each step draws a minibatch with replacement and fresh noise, so that its loss is an unbiased
    estimate of the objective. `sigma`, `loc` and `scale` do not train. The steps are dispatched
    without waiting for their results; each is a compiled call of its own, since XLA's convolutions
    are slow inside a compiled loop on CPUs.

    Args:
        energy: The energy to begin from, or a `ConditionalEnergy`.
        data: Training data, floats of shape (n, *event_shape).
        key: A JAX random key; the same key gives the same result.
        num_steps: How many steps.
        batch_size: Examples in a minibatch.
        optimizer: An optax optimiser; by default Adam on a cosine schedule from 1e-3 to 0. On few
            examples `optax.adamw` with a weight decay of 0.1 to 1 generalises better.
        objective: Maps an energy, a batch and a key to a loss.
        validation_data: Held-out data, of shape (m, *event_shape).
        validate_every: Steps between two validation losses, num_steps / 20 by default. The last
            step is always validated.
        patience: Stop after this many validations in a row without a new lowest loss, and return
            the energy of the lowest; by default all steps are taken and the last energy returned.
        progress_bar: Whether to show a tqdm bar with the newest losses.

    Returns:
        The trained energy and the losses.

    Raises:
        TypeError: If `energy` is no energy, or data holds no floats.
        ValueError: If data is empty, not finite or of another event shape, a count is not a
            positive int, or patience comes without validation data.
        FloatingPointError: If the loss becomes NaN or infinite; the message names the step.

    Example:
        >>> import jax, numpyro_neb as neb
        >>> data = jax.random.normal(jax.random.key(0), (1000, 2))
        >>> mlp = neb.networks.MLP((2,), width_size=16, depth=2, key=jax.random.key(1))
        >>> energy = neb.ResidualEnergy(mlp, sigma=0.5, event_shape=(2,))
        >>> result = neb.fit(energy, data, key=jax.random.key(2), num_steps=500, batch_size=64,
        ...                  progress_bar=False)
        >>> bool(result.losses[-50:].mean() < 2 * 0.5**2)  # better than raw noise, sigma^2 d
        True
    """
    if not isinstance(energy, ConditionalEnergy):
        check_energy(energy)
    _check_counts(num_steps, batch_size, validate_every, patience)
    if patience is not None and validation_data is None:
        raise ValueError("patience needs validation_data: it counts validations")
    data = _checked("data", data, energy)
    if validation_data is not None:
        validation_data = _checked("validation_data", validation_data, energy)
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
    validate_every = validate_every or max(1, num_steps // 20)
    key_steps, key_validation = jax.random.split(key)

    params, rest = eqx.partition(energy, trainable(energy))
    arrays, static = eqx.partition(rest, eqx.is_array)
    step, evaluate = _compiled(optimizer, objective, static, batch_size)
    # The step donates its inputs, and the caller's energy has to survive.
    state = (jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.full(num_steps, jnp.nan))
    validation: list[tuple[int, Array]] = []
    kept, stop = state[0], False
    done = 0
    with tqdm(total=num_steps, disable=not progress_bar, desc="fit", unit="step") as bar:
        for i in range(num_steps):
            state = step(state, arrays, data, key_steps, i)
            done = i + 1
            if validation_data is not None and (done % validate_every == 0 or done == num_steps):
                loss = evaluate(state[0], arrays, validation_data, key_validation)
                validation.append((done, loss))
                if patience is not None:
                    since = _since_lowest(validation)
                    # The next step donates the parameters.
                    kept = jax.tree.map(jnp.copy, state[0]) if since == 0 else kept
                    stop = since >= patience
            if done % _REPORT_EVERY == 0 or done == num_steps or stop:
                _report(bar, state[2], done, validation)
            if stop:
                break
    params, losses = state[0] if patience is None else kept, state[2][:done]
    steps, held_out = zip(*validation, strict=True) if validation else ((), ())
    return FitResult(
        energy=eqx.combine(params, arrays, static),
        losses=np.asarray(losses),
        validation_steps=np.asarray(steps, int),
        validation_losses=np.asarray(held_out, float),
    )


_REPORT_EVERY = 100


def _check_counts(num_steps, batch_size, validate_every, patience):
    counts = {"num_steps": num_steps, "batch_size": batch_size}
    optional = {"validate_every": validate_every, "patience": patience}
    counts |= {name: count for name, count in optional.items() if count is not None}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a positive int, got {count!r}")


def _since_lowest(validation):
    """How many validations ago the loss was lowest."""
    losses = np.nan_to_num([float(loss) for _, loss in validation], nan=np.inf)
    return len(losses) - 1 - int(np.argmin(losses))


def _compiled(optimizer, objective, static, batch_size):
    """The training step and the evaluation, compiled."""

    def loss_of(params, arrays, batch, key):
        return objective(eqx.combine(params, arrays, static), batch, key)

    def step(state, arrays, data, key, i):
        params, opt_state, losses = state
        key_batch, key_noise = jax.random.split(jax.random.fold_in(key, i))
        batch = data[jax.random.randint(key_batch, (batch_size,), 0, len(data))]
        loss, grads = jax.value_and_grad(loss_of)(params, arrays, batch, key_noise)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        losses = losses.at[i].set(loss.astype(losses.dtype))
        return optax.apply_updates(params, updates), opt_state, losses

    return jax.jit(step, donate_argnums=0), jax.jit(loss_of)


def _report(bar, losses, done, validation):
    """Moves the bar, and waits for the steps so far: the queue stays short and a NaN is seen."""
    recent = np.asarray(losses)[max(0, done - _REPORT_EVERY) : done]
    if not np.all(np.isfinite(recent)):
        first = done - len(recent) + int(np.argmin(np.isfinite(recent)))
        raise FloatingPointError(
            f"the loss is {losses[first]} at step {first}: try a smaller learning rate,"
            " optax.clip_by_global_norm, or look at the data"
        )
    shown = {"loss": f"{recent.mean():.4g}"}
    if validation:
        shown["held-out"] = f"{float(validation[-1][1]):.4g}"
    bar.set_postfix(shown, refresh=False)
    bar.update(done - bar.n)


def _checked(name, data, energy):
    data = np.asarray(data) if not isinstance(data, jax.Array) else data
    if not jnp.issubdtype(data.dtype, jnp.floating):
        raise TypeError(f"{name} must hold floats, got {data.dtype}: scale it first")
    if data.ndim == 0 or len(data) == 0 or data.shape[1:] != energy.event_shape:
        raise ValueError(
            f"{name} must have shape (n, *event_shape) with event shape {energy.event_shape}"
            f" and n at least 1, got {data.shape}"
        )
    if not np.all(np.isfinite(data)):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return jnp.asarray(data)
