"""The training loop, its reports and its result."""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from numpyro.util import find_stack_level
from tqdm.auto import tqdm

from numpyro_neb.training.checkpoints import Checkpoints
from numpyro_neb.training.devices import Devices
from numpyro_neb.training.interrupts import held_interrupts

_REPORT_EVERY = 100


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
    """

    energy: Any
    losses: np.ndarray
    validation_steps: np.ndarray
    validation_losses: np.ndarray
    metrics: dict[str, np.ndarray]
    objective_state: Any

    def __repr__(self) -> str:
        last = slice(-max(1, len(self.losses) // 10), None)
        parts = [f"loss {self.losses[0]:.4g} -> {self.losses[last].mean():.4g}"]
        parts += [f"{name} {values[last].mean():.4g}" for name, values in self.metrics.items()]
        if len(self.validation_losses):
            parts.append(f"validation loss {self.validation_losses[-1]:.4g}")
        shown = f"{type(self.energy).__name__}, {len(self.losses):,} steps: {', '.join(parts)}"
        return f"FitResult({shown}; means of the last tenth)"


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
    optimizer: optax.GradientTransformation,
    num_steps: int,
    wanted: tuple[bool, bool],
    kept: PyTree,
    metrics: tuple[str, ...],
) -> State:
    """The state before the first step; `wanted` says whether there are `average` and `best`."""
    # The step donates its inputs, but the caller's energy must survive.
    copied = lambda wanted=True: jax.tree.map(jnp.copy, params) if wanted else None  # noqa: E731
    per_step = lambda: jnp.full(num_steps, jnp.nan)  # noqa: E731
    numbers = {name: per_step() for name in metrics}
    average, best = map(copied, wanted)
    return State(copied(), optimizer.init(params), per_step(), average, best, kept, numbers)


@dataclasses.dataclass
class Training:
    """The training loop and its progress so far.

    Attributes:
        state: The latest state.
        devices: Where it runs.
        callback: As for `fit`.
        patience: As for `fit`.
        warning: Maps the metrics, as means over a hundred steps, to a warning or None.
        validate: Maps the parameters and the objective's state to the validation loss.
        validate_every: Steps between validations.
        checkpoints: Where the state is saved.
        done: Steps so far.
        reported: Steps at the last report.
        stopped: Whether patience ran out.
        validation: The steps and losses of the validations so far.
    """

    state: State
    devices: Devices
    callback: Callable[[int, dict[str, float]], Any] | None = None
    patience: int | None = None
    warning: Callable[[dict[str, float]], str | None] | None = None
    validate: Callable[[PyTree, PyTree], float] | None = None
    validate_every: int = 1
    checkpoints: Checkpoints | None = None
    done: int = 0
    reported: int = 0
    stopped: bool = False
    validation: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    @property
    def newest(self) -> PyTree:
        """The parameters to validate: the average if there is one."""
        return self.state.params if self.state.average is None else self.state.average

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
            self.validation = [(step, loss) for step, loss in progress["validation"]]

    def run(self, advance: Callable, num_steps: int, progress_bar: bool) -> None:
        """Runs the remaining steps, or as many as patience allows."""
        hidden = not (progress_bar and self.devices.speaks)
        settings = {"total": num_steps, "initial": self.done, "disable": hidden}
        with tqdm(desc="fit", unit="step", **settings) as bar, held_interrupts() as check_interrupt:
            try:
                while self.done < num_steps and not self.stopped:
                    self.state = advance(self.state, self.done)
                    self.done += 1
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
        )

    def _after_step(self, bar, last):
        validate, validated = self.validate, False
        if validate is not None and (last or self.done % self.validate_every == 0):
            validated = True
            self._validated(validate(self.newest, self.state.kept))
        if validated or last or self.done % _REPORT_EVERY == 0:
            self._report(bar, validated)
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
            raise FloatingPointError(
                f"the loss is {recent[first]} at step {self.reported + first}: try a smaller"
                " learning rate, optax.clip_by_global_norm, or look at the data"
            )
        since, self.reported = self.reported, self.done
        if not len(recent):
            return
        metrics = self.state.metrics.items()
        means = {k: float(np.mean(np.asarray(v)[since : self.done])) for k, v in metrics}
        self._warn()
        shown = {"loss": float(recent.mean())} | means
        held_out = {"held-out": self.validation[-1][1]} if self.validation else {}
        texts = {name: f"{value:.4g}" for name, value in (shown | held_out).items()}
        bar.set_postfix(texts, refresh=False)
        bar.update(self.done - bar.n)
        if self.callback is not None and self.devices.speaks:
            validation = {"validation_loss": self.validation[-1][1]} if validated else {}
            self.callback(self.done, shown | validation)

    def _warn(self):
        """Gives the objective's warning about the last hundred steps, once."""
        if self.warning is None or self.done < min(_REPORT_EVERY, len(self.state.losses)):
            return
        recent = slice(max(0, self.done - _REPORT_EVERY), self.done)
        metrics = self.state.metrics.items()
        text = self.warning({k: float(np.mean(np.asarray(v)[recent])) for k, v in metrics})
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
