"""Baselines for an energy: a Gaussian with its linear denoiser, and the kernel density."""

from math import prod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from numpyro_neb._internal.batching import in_chunks
from numpyro_neb._internal.events import in_dtype_of
from numpyro_neb.energies.base import AbstractEnergy
from numpyro_neb.energies.mixture import MixtureEnergy


class Baseline(NamedTuple):
    """A baseline density of the same data, evaluated at the same noisy points.

    Attributes:
        denoising_loss: E norm(x - x_hat(y))^2 of its posterior mean.
        denoising_gain: Its denoising loss minus the energy's: positive if the energy denoises
            better.
        denoising_gain_error: Its standard error over the examples.
        log_likelihood: Its mean log f(y), in nats.
        log_likelihood_gain: The energy's log-likelihood minus this one: positive if the energy is
            the better density.
        log_likelihood_gain_error: Its standard error, from the examples and from log Z.
    """

    denoising_loss: float
    denoising_gain: float
    denoising_gain_error: float
    log_likelihood: float
    log_likelihood_gain: float
    log_likelihood_gain_error: float


class Seen(NamedTuple):
    """phi, of shape (*batch,), and the jump, of shape (*batch, *event_shape)."""

    phi: np.ndarray
    jump: np.ndarray


class Look(NamedTuple):
    """Evaluates phi and the jump at points of any batch shape, in chunks."""

    chunk_size: int
    progress_bar: bool

    def __call__(self, energy: AbstractEnergy, y: np.ndarray) -> Seen:
        """Both at y, of shape (*batch, *event_shape)."""
        flat = y.reshape(-1, *energy.event_shape)
        each = lambda y: _phi_and_jump(energy, in_dtype_of(energy, y))  # noqa: E731
        phi, jump = in_chunks(each, (flat,), self.chunk_size, self.progress_bar)
        batch = y.shape[: y.ndim - len(energy.event_shape)]
        return Seen(np.asarray(phi, float).reshape(batch), np.asarray(jump).reshape(y.shape))


class Judged(NamedTuple):
    """An energy's results at noisy examples, at which the baselines are evaluated too.

    Attributes:
        x: The examples, of shape (n, *event_shape).
        noisy: Noisy copies of them, of shape (copies, n, *event_shape).
        log_density: log f at the noisy copies, of shape (copies, n).
        squares: norm(x - x_hat(y))^2, of shape (copies, n).
        log_z_error: The standard error of log Z.
    """

    x: np.ndarray
    noisy: np.ndarray
    log_density: np.ndarray
    squares: np.ndarray
    log_z_error: float


def squares(x: np.ndarray, jump: np.ndarray) -> np.ndarray:
    """norm(x - jump)^2, of shape (copies, n)."""
    error = np.asarray(x, float) - jump
    return np.sum(error**2, axis=tuple(range(2, jump.ndim)))


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of independent values."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def baselines(
    judged: Judged, sigma: Any, train: np.ndarray | None, look: Look, notes: list[str]
) -> dict[str, Baseline | None]:
    """The Gaussian N(mean, C + sigma^2 I), and the kernel density of `train` if given.

    Mean and covariance are those of `train`. Without it, each half of the examples is judged with
    those of the other half. `notes` records what is left out.
    """
    n, d = len(judged.x), prod(judged.x.shape[1:])
    found: dict[str, Baseline | None] = {"gaussian": None, "kernel_density": None}
    if d > _MOST_COORDINATES:
        notes.append(f"no Gaussian: its covariance would have {d:,}^2 numbers")
    elif train is None:
        halves = np.arange(n) % 2
        seen = [look(_gaussian(judged.x[halves != h], sigma), judged.noisy) for h in (0, 1)]
        phi, jump = (np.empty_like(values) for values in seen[0])
        for h in (0, 1):
            phi[:, halves == h] = seen[h].phi[:, halves == h]
            jump[:, halves == h] = seen[h].jump[:, halves == h]
        found["gaussian"] = _baseline(judged, Seen(phi, jump))
    else:
        found["gaussian"] = _baseline(judged, look(_gaussian(train, sigma), judged.noisy))
    if train is not None:
        count = _MOST_PRODUCTS // (train.size * len(judged.noisy))
        few = min(n, max(20, count))
        if few < n:
            notes.append(f"the kernel density was judged at {few} of the {n} examples")
        part = judged._replace(
            x=judged.x[:few],
            noisy=judged.noisy[:, :few],
            log_density=judged.log_density[:, :few],
            squares=judged.squares[:, :few],
        )
        kernel_density = MixtureEnergy(train, sigma)
        found["kernel_density"] = _baseline(part, look(kernel_density, part.noisy))
    return found


_MOST_COORDINATES = 4096
_MOST_PRODUCTS = 50_000_000_000


def _gaussian(x, sigma):
    """X ~ N(mean, C) as a mixture of one component."""
    flat = x[:20_000].reshape(len(x[:20_000]), -1).astype(float)
    mean = flat.mean(0)
    # The added term keeps float32 rounding from turning a zero eigenvalue negative.
    covariance = np.atleast_2d(np.cov(flat, rowvar=False)) + 1e-4 * float(sigma) ** 2 * np.eye(
        len(mean)
    )
    return MixtureEnergy(mean.reshape(1, *x.shape[1:]), sigma, covariances=covariance[None])


def _baseline(judged, seen):
    loss, density = squares(judged.x, seen.jump), -seen.phi
    less, more = (loss - judged.squares).mean(0), (judged.log_density - density).mean(0)
    return Baseline(
        float(loss.mean()),
        float(less.mean()),
        standard_error(less),
        float(density.mean()),
        float(more.mean()),
        float(np.hypot(standard_error(more), judged.log_z_error)),
    )


@eqx.filter_jit
def _phi_and_jump(energy, y):
    return jax.vmap(lambda y: (energy(y), energy.denoise(y)))(y)
