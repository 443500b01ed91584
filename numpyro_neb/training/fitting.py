"""`fit`: minimises an objective over an energy's parameters."""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.checks import (
    check_count,
    check_key,
    check_positive,
    check_result,
    check_type,
    require,
)
from numpyro_neb.energies.base import (
    AbstractEnergy,
    AbstractEnergyFamily,
    check_energy,
    trainable,
)
from numpyro_neb.training.checkpoints import (
    CONTENT,
    FUNCTION,
    Checkpoints,
    content_of,
    describe,
    in_words,
    load_orbax,
)
from numpyro_neb.training.devices import devices_of, digest
from numpyro_neb.training.loop import FitResult, State, Training, first_state
from numpyro_neb.training.minibatches import held_out_batches, minibatches_of, step_keys
from numpyro_neb.training.objectives import (
    AbstractObjective,
    check_step,
    denoising_loss,
    dual_score_loss,
    sure_loss,
)
from numpyro_neb.training.optimizers import checked_optimizer, result_of

Energy = AbstractEnergy | AbstractEnergyFamily
Objective = (
    AbstractObjective
    | Callable[[Any, Float[Array, "batch *event"], PRNGKeyArray], Float[Array, ""]]
)


def fit(
    energy: Energy,
    data: Float[Array, "n *event"] | Float[np.ndarray, "n *event"] | Iterable[Any],
    *,
    key: PRNGKeyArray,
    num_steps: int,
    batch_size: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    objective: Objective = denoising_loss,
    validation_data: Float[Array, "m *event"] | Float[np.ndarray, "m *event"] | None = None,
    validate_every: int | None = None,
    patience: int | None = None,
    ema_decay: float | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=5),
    sharding: NamedSharding | None = None,
    callback: Callable[[int, dict[str, float]], Any] | None = None,
    progress_bar: bool = True,
) -> FitResult:
    r"""Trains an energy by stochastic gradient descent.

    Each step draws a minibatch with replacement and fresh noise, so that its loss is an unbiased
    estimate of the objective. `sigma`, `loc` and `scale` are not trained. The steps are dispatched
    without waiting for their results; each is a separate compiled call, since XLA's convolutions
    are slow inside a compiled loop on CPUs.

    With `checkpoint_dir`, a run that was killed at any moment resumes from its newest checkpoint
    when the same call is made again. Its losses and energy are those of an uninterrupted run, bit
    for bit on the same machine.

    With `sharding`, each device takes its part of the minibatch, and XLA sums the gradients over
    the devices. Minibatch and noise are the same as on one device, and so is the result, within
    float tolerance. Under `jax.distributed` every process makes the same call, with the same
    arguments, and gets the same result: see docs/devices.md.

    Args:
        energy: The energy to start from, or a `ConditionalEnergy`.
        data: Training data, floats of shape (n, *event_shape). A memory-mapped array stays on disk,
            and each step reads its minibatch. Or an iterable of batches of shape
            (batch, *event_shape), restarted when it ends; an iterator, which can't restart, must
            yield enough.
        key: A JAX random key; the same key gives the same result.
        num_steps: Training steps, one update of the weights each.
        batch_size: Examples in a minibatch; omit it if data is an iterable of batches.
        optimizer: An optax optimiser; by default Adam on a cosine schedule from 1e-3 to 0, or the
            objective's own default (from 2e-4 for `MaximumLikelihood`). With few
            examples, `optax.adamw` with a weight decay of 0.1 to 1 generalises better.
            `optax.chain(optax.clip_by_global_norm(1.0), ...)` clips gradients. It is given the
            loss in units of sigma^2, so that the same data in other units take the same steps, and
            also its value and the loss as a function, for optimisers such as `optax.lbfgs` and
            `optax.contrib.reduce_on_plateau`. Schedule-free ones return their evaluation
            parameters.
        objective: Maps an energy, a batch and a key to a loss, in the data's units squared or
            without units: `training.AbstractObjective.unit` says how the two are told apart. Or an
            objective that keeps a state, such as `MaximumLikelihood()`, which is for a second
            call, after `denoising_loss`.
        validation_data: Held-out data, of shape (m, *event_shape), seen in batches, each with
            noise of its own. A memory-mapped array stays on disk.
        validate_every: Steps between validations, num_steps / 20 by default. The last step is
            always validated.
        patience: Stop after this many validations in a row without a new lowest loss, and return
            the energy with the lowest; by default all steps run and the last energy is returned.
        ema_decay: Validate and return the exponential moving average of the parameters over the
            steps, with this decay, say 0.999; at step t it is at most (1 + t) / (10 + t), so that
            the average forgets where it began.
        checkpoint_dir: A folder for checkpoints, written by orbax, which comes with
            `pip install 'numpyro-neb[checkpoints]'`. The same call resumes from the newest; if
            the call differs, a ValueError says how: functions, such as the objective and the
            optimiser's schedule, count by their code and what it reads, data by their values. Of a
            memory-mapped array a few rows count, of an iterable nothing; the weights to start from
            are not compared.
        checkpoint_every: Steps, or a `datetime.timedelta`, between checkpoints; 5 minutes by
            default. The last two are kept, and one is written at the end, and after Ctrl-C.
        sharding: The minibatch's sharding, along its first axis, as in
            `NamedSharding(Mesh(jax.devices(), ("batch",)), PartitionSpec("batch"))`; parameters,
            optimiser and data in memory are copied to each device. By default everything is on the
            default device. With several processes, each reads its own rows of a memory-mapped
            array; an iterable yields this process's part of each batch, all parts of equal size;
            only the first process shows the bar and calls `callback`; and all must see the folder
            checkpoint_dir. A checkpoint resumes on any number of devices.
        callback: Called every 100 steps and at each validation, with the number of steps done and
            a dict of "loss" and the objective's metrics, as means since the last call, and
            "validation_loss" if there is one.
        progress_bar: Whether to show a tqdm bar with the time left and the latest losses, for
            `denoising_loss` and `sure_loss` also as a share of the noise's, sigma^2 d.

    Returns:
        The trained energy and the losses.

    Raises:
        TypeError: If `energy` is not an energy, data does not hold floats, key is not a random key,
            optimizer is not an optax one, objective or callback is not callable, or
            checkpoint_every is neither an int nor a timedelta.
        ValueError: If data is empty, not finite or of another event shape, a count is not a
            positive int, the energy or the objective does not return a scalar, ema_decay is not
            between 0 and 1, patience is given without validation data, data ends before num_steps,
            checkpoint_dir holds another training run or is damaged, sharding splits anything but
            the first axis, batch_size is not divisible by the number of devices, the processes
            were given different arguments, optimizer asks for something that `fit` does not have,
            or the data are so large that noise of sigma is lost in rounding.
        ModuleNotFoundError: If checkpoint_dir is given and orbax is not installed.
        RuntimeError: If a step fails in one of several processes, as it does if another one
            ends; the message says how to resume.
        FloatingPointError: If the loss becomes NaN or infinite; the message names the step. The
            newest checkpoint is then from before that step.

    Warns:
        UserWarning: If the objective reports a problem, such as chains that often restart, or if
            the columns of a table differ in scale more than thirtyfold.

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
    check_energy(energy, conditional=True)
    check_key(key)
    num_steps = check_count("num_steps", num_steps)
    counts = {"validate_every": validate_every, "patience": patience, "batch_size": batch_size}
    counts = {k: None if v is None else check_count(k, v) for k, v in counts.items()}
    _check_options(patience, validation_data, ema_decay, checkpoint_dir)
    devices = devices_of(sharding)
    devices.check_batch_size(batch_size)
    params, rest = eqx.partition(energy, trainable(energy))
    objective = _checked_functions(objective, callback)
    source = minibatches_of(data, energy, batch_size, devices)
    batches = held_out_batches(validation_data, energy, batch_size, devices)
    key_steps, key_validation, key_objective = jax.random.split(key, 3)

    arrays, static = eqx.partition(rest, eqx.is_array)
    kept = jax.tree.map(jnp.copy, objective.init(energy, key_objective))
    chosen = objective.optimizer(num_steps) if optimizer is None else optimizer
    ready = checked_optimizer(chosen, params, stateful=bool(jax.tree.leaves(kept)))
    step, validate = _compiled(ready, objective, static, source.pick, ema_decay, devices)
    wanted = ema_decay is not None, patience is not None
    state = first_state(params, ready, num_steps, wanted, kept, objective.metrics)
    # Checkpoints store these names; messages may use other words for them.
    identity = {"num_steps": num_steps, "data": source.identity, "ema_decay": ema_decay}
    identity |= counts | {"key": _key_bits(key), "energy": describe(params)}
    identity |= {"fixed_arrays": digest(arrays), "objective": objective.identity}
    _check_agreement(devices, identity, params, source)
    words = {"warning": objective.warning, "noise_loss": objective.noise_loss(energy)}
    training = Training(devices.replicated(state), devices, callback, patience, **words)
    if checkpoint_dir is not None:
        compared = energy, data, validation_data, objective, chosen, state.opt_state
        identity[CONTENT] = content_of(*compared)
        training.go_on_from(Checkpoints(checkpoint_dir, checkpoint_every, identity, devices))
    if batches is not None:
        fixed = devices.replicated((arrays, key_validation))
        training.validate = partial(validate, batches, *fixed)
        training.validate_every = validate_every or max(1, num_steps // 20)
    placed, key_placed = devices.replicated(((arrays, jnp.asarray(training.in_units)), key_steps))
    feed = source.feed(training.done, key_steps)
    advance = lambda state, i: step(state, placed, next(feed), key_placed, i)  # noqa: E731
    training.run(advance, num_steps, progress_bar)
    return training.finished(arrays, static)


def _check_agreement(devices, identity, params, source):
    """Raises a ValueError unless all processes were given the same."""
    agreed = {in_words(name): value for name, value in identity.items()}
    agreed |= {"parameters": digest(params), "values in data": source.digest}
    devices.check_agreement(agreed)


class _Function(AbstractObjective):
    """A plain function as a stateless objective."""

    function: Callable

    @property
    def identity(self):
        return FUNCTION

    def unit(self, energy, first):
        if not self._ours:
            return super().unit(energy, first)
        # A family's losses are in units of sigma^2.
        return (
            jnp.astype(energy.sigma**2, first.dtype) if energy.one_level else jnp.ones_like(first)
        )

    def noise_loss(self, energy):
        if not self._ours:
            return None
        return float(energy.sigma**2 if energy.one_level else 1.0) * prod(energy.event_shape)

    @property
    def _ours(self):
        function = self.function
        while isinstance(function, partial):
            function = function.func
        return function in (denoising_loss, dual_score_loss, sure_loss)

    def optimizer(self, num_steps):
        return optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))

    def init(self, energy, key):
        del energy, key

    def __call__(self, energy, x, key, state):
        return self.function(energy, x, key), state, {}

    def validation_loss(self, energy, x, key, state):
        del state
        return self.function(energy, x, key)


def _check_options(patience, validation_data, ema_decay, checkpoint_dir):
    validated = patience is None or validation_data is not None
    require(validated, "patience needs validation_data: it counts validations")
    if ema_decay is not None:
        check_positive("ema_decay", ema_decay, 1.0)
    if checkpoint_dir is not None:
        check_type("checkpoint_dir", checkpoint_dir, str | os.PathLike, "a path")
        load_orbax()


def _checked_functions(objective, callback):
    """The objective as an `AbstractObjective`."""
    check_type("objective", objective, Callable, "callable")
    if isinstance(objective, type) and issubclass(objective, AbstractObjective):
        raise TypeError(f"objective must be an object, as in {objective.__name__}(), got the class")
    if callback is not None:
        check_type("callback", callback, Callable, "callable")
    return objective if isinstance(objective, AbstractObjective) else _Function(objective)


def _key_bits(key):
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key).tolist()


def _compiled(optimizer, objective, static, pick, ema_decay, devices):
    """The training step and the evaluation, compiled."""

    def loss_of(params, placed, batch, key, state, i):
        arrays, in_units = placed
        energy, kept = eqx.combine(params, arrays, static), jax.tree.map(devices.split, state.kept)
        loss, new, metrics = objective(energy, batch, key, kept)
        check_result("objective", loss, ())
        check_step(objective, kept, new, metrics)
        first = jnp.where(i == 0, loss, state.losses[0].astype(loss.dtype))
        unit = jax.lax.stop_gradient(objective.unit(energy, jax.lax.stop_gradient(first)))
        unit = jnp.where(in_units, unit, jnp.ones_like(unit))
        return loss / unit, (loss, new, jax.tree.map(jnp.asarray, metrics))

    def step(state, placed, batch, key, i):
        key_batch, key_noise = step_keys(key, i)
        batch = pick(batch, key_batch)
        loss_at = lambda params: loss_of(params, placed, batch, key_noise, state, i)  # noqa: E731
        gradient = jax.value_and_grad(loss_at, has_aux=True)
        (value, (loss, kept, new)), grads = gradient(state.params)
        value_fn = lambda params: loss_at(params)[0]  # noqa: E731
        old = state.opt_state, state.params
        updates, opt_state = optimizer.update(grads, *old, value=value, value_fn=value_fn)
        params, average = optax.apply_updates(state.params, updates), state.average
        if ema_decay is not None:
            rate = 1 - jnp.minimum(ema_decay, (1 + i) / (10 + i))
            average = optax.incremental_update(result_of(opt_state, params), average, rate)
        put = lambda values, value: values.at[i].set(value.astype(values.dtype))  # noqa: E731
        losses, metrics = put(state.losses, loss), jax.tree.map(put, state.metrics, new)
        return State(params, opt_state, losses, average, state.best, kept, metrics)

    def evaluate(params, kept, arrays, x, key):
        energy = eqx.combine(params, arrays, static)
        loss = objective.validation_loss(energy, devices.split(x), key, kept)
        check_result("objective", loss, ())
        return loss

    def constant(params, kept, arrays, key):
        return objective.validation_constant(eqx.combine(params, arrays, static), key, kept)

    lies = {"out_shardings": devices.everywhere}
    evaluate, constant = jax.jit(evaluate, **lies), jax.jit(constant, **lies)

    def validate(batches, arrays, key, params, kept):
        total = float(constant(params, kept, arrays, key))
        for i, (share, x) in enumerate(batches()):
            # The first has the key itself, as the whole had in 0.1.0.
            total += share * float(evaluate(params, kept, arrays, x, keys(key, i)))
        return total

    def keys(key, i):
        return jax.random.fold_in(key, i) if i else key

    return jax.jit(step, donate_argnums=0, **lies), validate
