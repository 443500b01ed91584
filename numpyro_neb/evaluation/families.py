"""Evaluations of a family of energies, one for each of several noise levels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_neb._internal.checks import check_key, check_reals, require
from numpyro_neb.energies.base import AbstractEnergyFamily
from numpyro_neb.evaluation.verdicts import Evaluation

# How many noise levels are evaluated by default.
_NUMBER = 4


@dataclass(frozen=True, eq=False, repr=False)
class FamilyEvaluation:
    """The results of `evaluate` for a family; printed, a table with a row for each noise level.

    log Z is that of the family's own phi: zero within a few standard errors if it is normalised.

    Attributes:
        levels: The evaluations, from the smallest sigma to the largest.
    """

    levels: tuple[Evaluation, ...]

    def __str__(self) -> str:
        names = ("sigma", "verdict", "p", "AUC", "denoising loss", "-log f", "log Z")
        rows = [names, *map(_row, self.levels)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{a:>{w}}" for a, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(lines)

    __repr__ = __str__


def _row(e):
    return (
        f"{e.sigma:.3g}",
        e.outcome,
        f"{e.p_value:.2g}",
        f"{e.auc:.2f}",
        f"{e.denoising_loss:.4g} +- {e.denoising_loss_error:.2g}",
        f"{-e.log_likelihood:.5g} +- {e.log_likelihood_error:.2g}",
        f"{e.log_normalizer:.3g} +- {e.log_likelihood_error:.2g}",
    )


def at_levels(
    family: AbstractEnergyFamily,
    sigmas: Sequence[float] | None,
    key: PRNGKeyArray,
    evaluate: Callable[..., Any],
    held_out: Any,
    rest: tuple[Any, ...],
) -> FamilyEvaluation:
    """Evaluates a family level by level.

    Args:
        family: The energies.
        sigmas: The noise levels; four of the range if None.
        key: A JAX random key.
        evaluate: The evaluation of one energy.
        held_out: The held-out examples.
        rest: Its other arguments.
    """
    check_key(key)
    chosen: Any = sigmas
    if sigmas is None:
        chosen = family.levels((jnp.arange(_NUMBER) + 0.5) / _NUMBER)
    levels = np.atleast_1d(check_reals("sigmas", chosen))
    some = levels.ndim == 1 and levels.size > 0
    require(some, f"sigmas must be one or more noise levels, got {sigmas}")
    energies = [family.at(sigma) for sigma in sorted(levels.tolist())]
    keys = jax.random.split(key, len(energies))
    settings = dict(zip(_REST, rest, strict=True))
    pairs = zip(energies, keys, strict=True)
    return FamilyEvaluation(tuple(evaluate(e, held_out, key=k, **settings) for e, k in pairs))


_REST = ("train", "integrator", "num_steps", "num_pairs", "num_swaps", "num_particles")
_REST += ("num_temperatures", "chunk_size", "progress_bar")
