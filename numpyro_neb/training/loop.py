"""The training loop, its reports and its result."""

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from numpyro.util import find_stack_level
from tqdm.auto import tqdm

from numpyro_neb.training.checkpoints import Checkpoints
from numpyro_neb.training.devices import Devices
from numpyro_neb.training.interrupts import held_interrupts
from numpyro_neb.training.optimizers import Optimizer, result_of, returns_the_last

_REPORT_EVERY = 100
# Seconds after which the bar is updated if that takes longer.
_SHOW_EVERY = 1.0


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        energy: The trained energy: the last one, or with `patience` the one with the lowest
            validation loss. A `ConditionalEnergy` if `fit` was given one.
        losses: The objective on each step's minibatch, of shape (num_steps,), or shorter if
            `patience` ran out.
        validation_steps: The steps after which the validation loss was computed, of shape (v,).
        validation_losses: The objective on the validation data at those steps, with the same noise
            each time, of shape (v,); empty without validation data.
        metrics: Other values the objective reports, such as the "gap" of `MaximumLikelihood`: an
            array of the shape of `losses` for each name. Empty for a plain function.
        objective_state: The state of an objective that has one, such as the chains of
            `MaximumLikelihood`, after the last step; None for a plain function.
        noise_loss: The loss of an energy that does not denoise at all, sigma^2 d for
            `denoising_loss` and `sure_loss`; None for objectives whose scale is not known.
    """

    energy: Any
    losses: np.ndarray
    validation_steps: np.ndarray
    validation_losses: np.ndarray
    metrics: dict[str, np.ndarray]
    objective_state: Any
    noise_loss: float | None = None

    def __repr__(self) -> str:
        last = slice(-max(1, len(self.losses) // 10), None)
        parts = [f"loss {self.losses[0]:.4g} -> {self._of_noise(self.losses[last].mean())}"]
        parts += [f"{name} {values[last].mean():.4g}" for name, values in self.metrics.items()]
        if len(self.validation_losses):
            parts.append(f"validation loss {self._of_noise(self.validation_losses[-1])}")
        shown = f"{type(self.energy).__name__}, {len(self.losses):,} steps: {', '.join(parts)}"
        return f"FitResult({shown}; means of the last tenth)"

    def __str__(self) -> str:
        last = slice(-max(1, len(self.losses) // 10), None)
        first, end = self._of_noise(self.losses[0]), self._of_noise(self.losses[last].mean())
        lines = [
            f"{type(self.energy).__name__} after {len(self.losses):,} training steps",
            f"loss: {first} at first, {end} as the mean of the last {len(self.losses[last]):,}",
        ]
        means = [f"{name} {values[last].mean():.4g}" for name, values in self.metrics.items()]
        lines[-1] += "".join(f", {text}" for text in means)
        if len(held_out := self.validation_losses):
            best = int(np.argmin(np.nan_to_num(held_out, nan=np.inf)))
            lines.append(
                f"held-out loss: {self._of_noise(held_out[-1])} at the end, lowest"
                f" {held_out[best]:.4g} after step {self.validation_steps[best]:,}"
            )
        else:
            lines.append("no held-out loss: give fit validation_data to see whether it generalises")
        return "\n".join(lines)

    def _of_noise(self, loss):
        return of_noise(float(loss), self.noise_loss)


def of_noise(loss: float, noise_loss: float | None) -> str:
    """A loss, with its share of that of no denoising at all."""
    share = "" if noise_loss is None else f" ({loss / noise_loss:.1%} of the noise)"
    return f"{loss:.4g}{share}"


class State(NamedTuple):
    """What a step updates and a checkpoint stores.

    `average` and `best` may be None; `kept` is the objective's own state.
    """

    params: PyTree
    opt_state: PyTree
    losses: Float[Array, " num_steps"]
    average: PyTree
    best: PyTree
    kept: PyTree
    metrics: dict[str, Float[Array, " num_steps"]]


def first_state(
    params: PyTree,
    optimizer: Optimizer,
    num_steps: int,
    wanted: tuple[bool, bool],
    kept: PyTree,
    metrics: tuple[str, ...],
) -> State:
    """The state before the first step; `wanted` says whether there are `average` and `best`."""
    # The step donates its inputs, but the caller's energy must survive.
    copied = lambda wanted=True: jax.tree.map(jnp.copy, params) if wanted else None  # noqa: E731
    per_step = lambda: jnp.zeros(num_steps)  # noqa: E731
    numbers = {name: per_step() for name in metrics}
    average, best = map(copied, wanted)
    # Some optimisers keep the first parameters in their state, and one array must not be donated
    # twice.
    opt_state = jax.tree.map(jnp.copy, optimizer.init(params))
    return State(copied(), opt_state, per_step(), average, best, kept, numbers)


@dataclasses.dataclass
class Training:
    """The training loop and its progress so far.

    Attributes:
        state: The latest state.
        devices: Where it runs.
        callback: As for `fit`.
        patience: As for `fit`.
        warning: Maps the metrics, as means over a hundred steps, to a warning or None.
        noise_loss: The loss of no denoising at all, if it is known.
        validate: Maps the parameters and the objective's state to the validation loss.
        validate_every: Steps between validations.
        checkpoints: Where the state is saved.
        done: Steps so far.
        reported: Steps at the last report.
        stopped: Whether patience ran out.
        validation: The steps and losses of the validations so far.
        in_units: Whether the optimiser sees losses in the objective's unit: not in runs that
            0.1.0 began.
        shown: When the bar was last updated, in seconds.
    """

    state: State
    devices: Devices
    callback: Callable[[int, dict[str, float]], Any] | None = None
    patience: int | None = None
    warning: Callable[[dict[str, float]], str | None] | None = None
    noise_loss: float | None = None
    validate: Callable[[PyTree, PyTree], float] | None = None
    validate_every: int = 1
    checkpoints: Checkpoints | None = None
    done: int = 0
    reported: int = 0
    stopped: bool = False
    validation: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    in_units: bool = True
    shown: float = 0.0

    @property
    def newest(self) -> PyTree:
        """The parameters to validate: the average if there is one."""
        state = self.state
        if state.average is not None:
            return state.average
        if returns_the_last(state.opt_state):
            return state.params
        chosen = jax.jit(result_of, out_shardings=self.devices.everywhere)
        return chosen(state.opt_state, state.params)

    @property
    def result(self) -> PyTree:
        """The parameters to return."""
        return self.newest if self.state.best is None else self.state.best

    def go_on_from(self, checkpoints: Checkpoints) -> None:
        """Resumes from the newest checkpoint, if there is one."""
        self.checkpoints = checkpoints
        if (found := checkpoints.newest(self.state)) is not None:
            self.done, self.state, progress = found
            self.reported, self.stopped = self.done, progress["stopped"]
            self.in_units = progress["in_units"]
            self.validation = [(step, loss) for step, loss in progress["validation"]]

    def run(self, advance: Callable, num_steps: int, progress_bar: bool) -> None:
        """Runs the remaining steps, or as many as patience allows."""
        hidden = not (progress_bar and self.devices.speaks)
        settings = {"total": num_steps, "initial": self.done, "disable": hidden}
        with tqdm(desc="fit", unit="step", **settings) as bar, held_interrupts() as check_interrupt:
            start = self.done
            try:
                while self.done < num_steps and not self.stopped:
                    self.state = advance(self.state, self.done)
                    self.done += 1
                    if not hidden and self.done == start + 1:
                        self._start_clock(bar)
                    self._after_step(bar, self.done == num_steps)
                    check_interrupt()
            except KeyboardInterrupt:
                text = self._interrupted(num_steps)
                if self.devices.speaks:
                    bar.write(text, file=sys.stderr)
                raise
            except jax.errors.JaxRuntimeError as error:
                if not self.devices.several_processes:
                    raise
                folder = self.checkpoints and self.checkpoints.folder
                raise self.devices.explained(error, folder) from None
            finally:
                if self.checkpoints is not None:
                    self.checkpoints.close()

    def finished(self, arrays: PyTree, static: PyTree) -> FitResult:
        """What `fit` returns."""
        steps, held_out = zip(*self.validation, strict=True) if self.validation else ((), ())
        return FitResult(
            energy=eqx.combine(self.devices.on_default_device(self.result), arrays, static),
            losses=np.asarray(self.state.losses)[: self.done],
            validation_steps=np.asarray(steps, int),
            validation_losses=np.asarray(held_out, float),
            metrics={k: np.asarray(v)[: self.done] for k, v in self.state.metrics.items()},
            objective_state=self.devices.on_default_device(self.state.kept),
            noise_loss=self.noise_loss,
        )

    def _start_clock(self, bar):
        """Waits for the first step, whose compilation says nothing about the time to come."""
        jax.block_until_ready(self.state.losses)
        bar.unpause()
        self.shown = time.monotonic()

    def _after_step(self, bar, last):
        validate, validated = self.validate, False
        if validate is not None and (last or self.done % self.validate_every == 0):
            validated = True
            self._validated(validate(self.newest, self.state.kept))
        if validated or last or self.done % _REPORT_EVERY == 0:
            self._report(bar, validated)
        elif not bar.disable and time.monotonic() - self.shown > _SHOW_EVERY:
            # Where a step takes long, the bar and its estimate of the time do not wait for 100.
            self._show(bar, self._means(self.reported))
        end = last or self.stopped
        if self.checkpoints is not None and (end or self.checkpoints.due(self.done)):
            self._report(bar, False)
            self._save(self.checkpoints)

    def _validated(self, loss):
        self.validation.append((self.done, loss))
        if self.patience is None:
            return
        losses = np.nan_to_num([loss for _, loss in self.validation], nan=np.inf)
        since = len(losses) - 1 - int(np.argmin(losses))
        if since == 0:
            # The next step donates the parameters.
            self.state = self.state._replace(best=jax.tree.map(jnp.copy, self.newest))
        self.stopped = since >= self.patience

    def _report(self, bar, validated):
        """Waits for the steps so far, which keeps the queue short and catches a NaN."""
        recent = np.asarray(self.state.losses)[self.reported : self.done]
        if not np.all(np.isfinite(recent)):
            first = int(np.argmin(np.isfinite(recent)))
            step = self.reported + first
            advice = (
                "try a smaller learning rate, optax.clip_by_global_norm, or look at the data"
                if step
                else f"no step has changed the energy yet, so look at the data. Squares of values"
                f" far from loc and scale may be too large for {recent.dtype}"
            )
            raise FloatingPointError(f"the loss is {recent[first]} at step {step}: {advice}")
        since, self.reported = self.reported, self.done
        if not len(recent):
            return
        means = self._means(since)
        self._warn()
        self._show(bar, means)
        if self.callback is not None and self.devices.speaks:
            validation = {"validation_loss": self.validation[-1][1]} if validated else {}
            self.callback(self.done, means | validation)

    def _means(self, since):
        """The means of the loss and the metrics since some step; waits for the steps so far."""
        values = {"loss": self.state.losses} | self.state.metrics
        return {k: float(np.mean(np.asarray(v)[since : self.done])) for k, v in values.items()}

    def _show(self, bar, means):
        """Means in the bar, with losses as shares of the noise where that is known."""
        texts = {name: f"{value:.4g}" for name, value in means.items()}
        texts["loss"] = of_noise(means["loss"], self.noise_loss)
        if self.validation:
            texts["held-out"] = of_noise(self.validation[-1][1], self.noise_loss)
        bar.set_postfix(texts, refresh=False)
        bar.update(self.done - bar.n)
        self.shown = time.monotonic()

    def _warn(self):
        """Gives the objective's warning about the last hundred steps, once."""
        if self.warning is None or self.done < min(_REPORT_EVERY, len(self.state.losses)):
            return
        text = self.warning(self._means(max(0, self.done - _REPORT_EVERY)))
        if text is not None:
            self.warning = None
            if self.devices.speaks:
                warnings.warn(text, stacklevel=find_stack_level())

    def _save(self, checkpoints):
        if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(self.state.params)):
            raise FloatingPointError(
                f"a parameter is not finite after step {self.done - 1}: try a smaller learning rate"
                " or optax.clip_by_global_norm"
            )
        progress = {"validation": self.validation, "stopped": self.stopped}
        progress["in_units"] = self.in_units
        checkpoints.save(self.done, self.state, progress)

    def _interrupted(self, num_steps):
        """Saves what it can, and says how to resume."""
        text = f"fit was stopped after {self.done:,} of {num_steps:,} steps"
        if self.checkpoints is None:
            return f"{text}; nothing was kept: checkpoint_dir= keeps checkpoints."
        # An interrupted step has donated the state; other processes may not be able to write.
        alone = not self.devices.several_processes
        if alone and not any(x.is_deleted() for x in jax.tree.leaves(self.state)):
            self._save(self.checkpoints)
        if (latest := self.checkpoints.latest) is None:
            return f"{text}; no checkpoint was written yet: the same call starts over."
        return f"{text}; the same call resumes from the newest checkpoint in" + (
            f" {self.checkpoints.folder}, of step {latest:,}."
        )
