"""Local false sign rates of a mixture's posterior, and where there are none."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from numpyro_neb.empirical_bayes.kernels import Parts


def sign_rates(
    parts: Iterable[Parts], reach: Float[np.ndarray, " d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """min(P(X <= 0), P(X >= 0)) given each y, with those near zero on both sides, and P(X = 0).

    Args:
        parts: The law of X given each y.
        reach: How near zero a point mass counts as zero, for the second result.
    """
    rates, wides, zeros = [], [], []
    for part in parts:
        place = part.centres[:, None] + part.offsets
        if part.deviations is None:
            sides = [place <= 0, place >= 0, place <= reach, place >= -reach, place == 0]
        else:
            wide = part.deviations > 0
            scaled = place / np.where(wide, part.deviations, 1)
            below = np.where(wide, ndtr(-scaled), place <= 0)
            above = np.where(wide, ndtr(scaled), place >= 0)
            sides = [below, above, below, above, ~wide & (place == 0)]
        shares = [np.einsum("jk,jkd->jd", part.weights, np.asarray(s, float)) for s in sides]
        rates.append(np.minimum(*shares[:2]))
        wides.append(np.minimum(*shares[2:4]))
        zeros.append(shares[4])
    return np.concatenate(rates), np.concatenate(wides), np.concatenate(zeros)


def hidden_reach(
    locs: Float[np.ndarray, "K d"],
    weights: Float[np.ndarray, " K"],
    blur: float,
    level: float,
) -> Float[np.ndarray, " d"]:
    """How far from zero the data can't tell point masses from it, in each coordinate.

    Args:
        locs: The point masses.
        weights: Their weights.
        blur: The second moment that mass near zero can have without being seen.
        level: The noise level: point masses further off are told from zero.
    """
    if not blur:
        return np.zeros(locs.shape[1])
    order = np.argsort(np.abs(locs), axis=0)
    sizes = np.take_along_axis(np.abs(locs), order, axis=0)
    hidden = np.cumsum(weights[order] * sizes**2, axis=0) <= blur
    return np.where(hidden & (sizes < level), sizes, 0).max(0)


def why_none(
    locs: Float[np.ndarray, "K d"], weights: Float[np.ndarray, " K"], reach: Any, crowded: Any
) -> str:
    """Why there is no sign rate in the crowded coordinates, in a sentence; empty if there is."""
    if not crowded.any():
        return ""
    first = int(np.argmax(crowded))
    inside = np.abs(locs[:, first]) <= reach[first]
    where = f" in {crowded.sum()} of {len(crowded)} coordinates" if len(crowded) > 1 else ""
    return (
        f"the data can't tell {inside.sum()} point masses within {reach[first]:.2g} of zero,"
        f" {weights[inside].sum():.0%} of the weight, from zero{where}; if effects can be zero, use"
        ' prior="scale_mixture"'
    )
