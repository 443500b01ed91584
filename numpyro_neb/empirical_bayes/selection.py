"""Which effects to report, and who is at the top: false discovery rates and posterior ranks."""

from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int

from numpyro_neb._internal.checks import check_count, check_positive, require


def q_values(rates: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The mean of the local rates of an observation and all with smaller ones; NaN for NaN.

    If all up to a q-value are reported, it is the share of them that is expected to be wrong.

    Args:
        rates: The local false discovery or false sign rate of each observation.

    Reference:
        Storey, Annals of Statistics 31 (2003); Stephens, Biostatistics 18 (2017).
    """
    known = np.flatnonzero(~np.isnan(rates))
    order = known[np.argsort(rates[known], kind="stable")]
    values = np.full(len(rates), np.nan)
    values[order] = np.cumsum(rates[order]) / np.arange(1, len(order) + 1)
    # Equal rates have equal q-values: the largest of theirs.
    _, inverse = np.unique(rates[order], return_inverse=True)
    last = np.searchsorted(inverse, np.arange(inverse.max(initial=-1) + 1), side="right") - 1
    values[order] = values[order][last[inverse]] if len(order) else values[order]
    return values


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ranks of observations under their joint posterior; 1 is the largest X.

    Attributes:
        ranks: The rank of each observation in each draw, of shape (num_samples, n); equal ones
            share the mean of their ranks.
    """

    ranks: Float[np.ndarray, "num_samples n"]

    @classmethod
    def of(cls, draws: Float[np.ndarray, "num_samples n"]) -> "Ranking":
        """The ranks within each draw of all X."""
        return cls(scipy.stats.rankdata(-draws, axis=1))

    @property
    def mean(self) -> Float[np.ndarray, " n"]:
        """The posterior mean of each rank."""
        return self.ranks.mean(0)

    def interval(
        self, probability: float = 0.9
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Equal-tailed credible intervals of the ranks.

        Raises:
            ValueError: If probability is not between 0 and 1.
        """
        tail = (1 - check_positive("probability", probability, 1.0)) / 2
        lower, upper = np.quantile(
            self.ranks, [tail, 1 - tail], axis=0, method="closest_observation"
        )
        return lower, upper

    def probability_in_top(self, k: int) -> Float[np.ndarray, " n"]:
        """The posterior probability of each to be among the k largest.

        Raises:
            ValueError: If k is not an int from 1 to n.
        """
        k = check_count("k", k)
        n = self.ranks.shape[1]
        require(k <= n, f"k must be at most the number of observations, {n}, got {k}")
        return np.mean(self.ranks <= k, axis=0)

    def top(self, k: int) -> Int[np.ndarray, " k"]:
        """The k observations most likely to be among the k largest, the likeliest first.

        Of all sets of k, it is the one that shares most members with the true top k on average.

        Raises:
            ValueError: If k is not an int from 1 to n.
        """
        probability = self.probability_in_top(k)
        return np.lexsort((self.mean, -probability))[:k]

    @property
    def probabilities(self) -> Float[np.ndarray, "n n"]:
        """The posterior probability that observation i has rank r + 1, in row i and column r."""
        n = self.ranks.shape[1]
        whole = np.floor(self.ranks).astype(int) - 1
        table = np.zeros((n, n))
        np.add.at(table, (np.broadcast_to(np.arange(n), whole.shape), whole), 1 / len(whole))
        return table
