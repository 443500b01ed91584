"""Shares of draws near a few prototypes of the data, and how much a chain remembers."""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

_NUM_RESAMPLES = 200


def prototypes_of(
    examples: Float[np.ndarray, "n *event"], k: int, rng: np.random.Generator
) -> Float[np.ndarray, "k *event"]:
    """At most k k-means centres of the examples, or of 5,000 of them."""
    from scipy.cluster import vq

    kmeans2: Any = vq.kmeans2  # its stubs lack seed, which newer releases take as well as rng
    some = examples[rng.permutation(len(examples))[:5000]]
    flat = some.reshape(len(some), -1).astype(float)
    k = min(k, len(np.unique(flat[:1000], axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster has a share of zero
        centres, _ = kmeans2(flat, k, minit="++", seed=rng)
    return centres.reshape(k, *examples.shape[1:])


def shares(
    start: Float[np.ndarray, "n *event"],
    end: Float[np.ndarray, "n *event"],
    prototypes: Float[np.ndarray, "k *event"],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """The shares of the data's and of the walk's jumps that lie nearest to each prototype.

    Args:
        start: The data's jumps.
        end: The jumps of the chains that began there.
        prototypes: The prototypes.
        rng: For the bootstrap and the swaps within pairs.

    Returns:
        The share fields of `Evaluation`, and its `memory`.
    """
    k, n = len(prototypes), len(start)
    centres = prototypes.reshape(k, -1)

    def nearest(points):
        flat = points.reshape(n, -1).astype(float)
        return np.eye(k)[np.argmax(flat @ centres.T - np.sum(centres**2, 1) / 2, axis=1)]

    before, after = nearest(start), nearest(end)
    moved = after - before  # by pair
    signs = rng.choice([-1.0, 1.0], (_NUM_RESAMPLES, n))
    weights = rng.multinomial(n, np.full(n, 1 / n), _NUM_RESAMPLES)
    variation = lambda difference: np.abs(difference).sum(-1) / 2  # noqa: E731
    # The largest correlation between a function of where a chain began and one of where it ended.
    table = before.T @ after / n
    margins = np.sqrt(np.outer(table.sum(1), table.sum(0)))
    table = np.divide(table, margins, out=np.zeros_like(table), where=margins > 0)
    return {
        # The first singular value, 1, belongs to constants; with one prototype it is the only one.
        "memory": float(np.append(np.linalg.svd(table, compute_uv=False), 0)[1]),
        "data_shares": before.mean(0),
        "walk_shares": after.mean(0),
        "share_errors": moved.std(0, ddof=1) / np.sqrt(n),
        "total_variation": float(variation(moved.mean(0))),
        "total_variation_error": float(np.std(variation(weights @ moved / n), ddof=1)),
        "total_variation_by_chance": float(np.mean(variation(signs @ moved / n))),
    }
