"""log p(y_j | component i) for many observations and components, in float64 on the host."""

import abc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from scipy.special import gammaln, logsumexp, softmax, xlog1py, xlogy


class Parts(NamedTuple):
    """The law of X given y as a mixture, for a block of observations.

    Attributes:
        rows: Which observations.
        weights: P(component i given y_j).
        centres: A point near each observation's X.
        offsets: E[X given y_j, i] relative to it.
        deviations: The standard deviation of X given y_j and i; None for point masses.
    """

    rows: slice
    weights: Float[np.ndarray, "j K"]
    centres: Float[np.ndarray, "j d"]
    offsets: Float[np.ndarray, "#j K d"]
    deviations: Float[np.ndarray, "j K d"] | None


def in_threads(fn: Callable[[slice], Any], blocks: list[slice]) -> Iterator[Any]:
    """The values of fn at each block, in their order, on all cores: NumPy frees the interpreter."""
    if len(blocks) < _SOME:
        yield from map(fn, blocks)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(fn, blocks)


@dataclass(frozen=True)
class AbstractKernel(abc.ABC):
    """log p(y_j | component i), a block of rows (observations) at a time.

    Attributes:
        counts: How many observations each row stands for.
    """

    counts: Float[np.ndarray, " n"]
    per_row: ClassVar[tuple[str, ...]] = ("counts",)

    @property
    @abc.abstractmethod
    def num_columns(self) -> int:
        """The number of components."""

    @abc.abstractmethod
    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (components)."""

    @abc.abstractmethod
    def parts(self, weights: Float[np.ndarray, " K"]) -> Iterator[Parts]:
        """The law of X given each y, a block of observations at a time."""

    def mixture(self, locs: Any, weights: Any) -> tuple[Any, Any, Any]:
        """The prior's locations and weights, and the weights that this kernel's methods take."""
        return locs, weights, weights

    def take(self, rows: Any) -> Any:
        """The kernel of some of the rows."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self.per_row})

    def peaks(
        self, gradient: Float[np.ndarray, " K"], active: Int[np.ndarray, " k"]
    ) -> Int[np.ndarray, " p"]:
        """Columns to add to the active ones: the gradient's local maxima in their order."""
        del active
        padded = np.concatenate([[-np.inf], gradient, [-np.inf]])
        return np.flatnonzero((gradient >= padded[:-2]) & (gradient >= padded[2:]))

    def blocks(self, width: int) -> list[slice]:
        """Slices of the rows, each small enough for a core's cache at `width` columns."""
        size = max(1, _BLOCK // width)
        return [slice(i, i + size) for i in range(0, len(self.counts), size)]

    def log_density(
        self, active: Int[np.ndarray, " k"], weights: Float[np.ndarray, " k"]
    ) -> Float[np.ndarray, " n"]:
        """Log f(y_j) of the mixture with these weights on the active components."""
        one = lambda rows: logsumexp(self.logs(rows, active), axis=1, b=weights)  # noqa: E731
        return np.concatenate(list(in_threads(one, self.blocks(len(active)))))

    def ratios(
        self, active: Int[np.ndarray, " k"], log_f: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n k"]:
        """p(y_j | i) / f(y_j) of the active components."""
        one = lambda rows: self._ratio(rows, active, log_f)  # noqa: E731
        return np.concatenate(list(in_threads(one, self.blocks(len(active)))))

    def gradient(self, log_f: Float[np.ndarray, " n"]) -> Float[np.ndarray, " K"]:
        """g_i, the mean over the observations of the ratio, for all components."""
        every = slice(None)
        one = lambda rows: self.counts[rows] @ self._ratio(rows, every, log_f)  # noqa: E731
        total = sum(in_threads(one, self.blocks(self.num_columns)))
        return np.asarray(total) / self.counts.sum()

    def _ratio(self, rows, columns, log_f):
        logs = self.logs(rows, columns)
        logs -= log_f[rows, None]
        return np.exp(np.minimum(logs, _HIGHEST, out=logs), out=logs)


@dataclass(frozen=True)
class NormalKernel(AbstractKernel):
    """log N(y_j; m_i, (sigma_j^2 + v_i) I): normal noise and normal components.

    Attributes:
        counts: How many observations each row stands for.
        y: The observations y_j.
        sigma: The noise's standard deviation for each.
        locs: The means m_i.
        variances: The variances v_i of each coordinate; zero for a point mass.
    """

    y: Float[np.ndarray, "n d"]
    sigma: Float[np.ndarray, " n"]
    locs: Float[np.ndarray, "K d"]
    variances: Float[np.ndarray, " K"]
    per_row: ClassVar[tuple[str, ...]] = ("counts", "y", "sigma")

    @property
    def num_columns(self) -> int:
        """The number of components."""
        return len(self.locs)

    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (components)."""
        y, sigma, locs = self.y[rows], self.sigma[rows, None], self.locs[columns]
        if self._smooth:
            sigma = np.sqrt(sigma**2 + self.variances[columns])
        if y.shape[1] == 1:
            # In place: this is most of the time of a fit.
            logs = y - locs.T
            logs /= sigma * np.sqrt(2)
            logs *= logs
            return np.subtract(-np.log(sigma) - np.log(2 * np.pi) / 2, logs, out=logs)
        if self._compact:
            u, v = y - self.locs.mean(0), locs - self.locs.mean(0)
            squares = ((u**2).sum(1)[:, None] + (v**2).sum(1) - 2 * u @ v.T) / sigma**2
        else:
            squares = (cdist(y, locs) / sigma) ** 2
        return -squares / 2 - y.shape[1] * (np.log(sigma) + np.log(2 * np.pi) / 2)

    @cached_property
    def _smooth(self):
        return bool(np.any(self.variances))

    @cached_property
    def _compact(self):
        """Whether a matrix product is exact enough, with its error of eps times these squares."""
        centre = self.locs.mean(0)
        reach = max(np.abs(a - centre).max() for a in (self.y, self.locs)) / self.sigma.min()
        return np.finfo(float).eps * self.locs.shape[1] * reach**2 < 1e-7

    def peaks(
        self, gradient: Float[np.ndarray, " K"], active: Int[np.ndarray, " k"]
    ) -> Int[np.ndarray, " p"]:
        """Columns to add to the active ones: the gradient's local maxima."""
        if self.locs.shape[1] == 1:
            return super().peaks(gradient, active)
        return highest_near(self.locs, active, gradient)

    def parts(self, weights: Float[np.ndarray, " K"]) -> Iterator[Parts]:
        """The law of X given each y, a block of observations at a time."""
        everything = slice(None)
        for rows in self.blocks(self.locs.size):
            logs = self.logs(rows, everything)
            centres = self.locs[np.argmax(logs, axis=1)]
            offsets = self.locs - centres[:, None]
            if not self._smooth:
                # norm(y - m)^2 without what all m have in common, which would drown the rest far
                # out.
                sigma = self.sigma[rows, None, None]
                u, v = (self.y[rows] - centres)[:, None] / sigma, offsets / sigma
                logits = np.log(weights) + (v * (u - v / 2)).sum(-1)
                yield Parts(rows, softmax(logits, axis=1), centres, offsets, None)
                continue
            noise = self.sigma[rows, None, None] ** 2
            spread = self.variances[:, None]
            share = spread / (spread + noise)
            offsets = offsets + share * (self.y[rows, None] - self.locs)
            deviations = np.broadcast_to(np.sqrt(share * noise), offsets.shape)
            posterior = softmax(logs + np.log(weights), axis=1)
            yield Parts(rows, posterior, centres, offsets, deviations)


@dataclass(frozen=True)
class RowKernel(AbstractKernel):
    """log N(y_j; m_ji, sigma_j^2 + v_ji), with a prior of its own for each observation.

    Weights that its methods are given multiply those of the rows.

    Attributes:
        counts: How many observations each row stands for.
        y: The observations y_j.
        sigma: The noise's standard deviation for each.
        locs: The means m_ji.
        variances: The variances v_ji.
        weights: The weights of the components in each row.
    """

    y: Float[np.ndarray, " n"]
    sigma: Float[np.ndarray, " n"]
    locs: Float[np.ndarray, "n K"]
    variances: Float[np.ndarray, "n K"]
    weights: Float[np.ndarray, "n K"]
    per_row: ClassVar[tuple[str, ...]] = ("counts", "y", "sigma", "locs", "variances", "weights")

    @property
    def num_columns(self) -> int:
        """The number of components."""
        return self.locs.shape[1]

    def mixture(self, locs: Any, weights: Any) -> tuple[Any, Any, Any]:
        """Those of each row, which `logs` has already."""
        del locs, weights
        return self.locs, self.weights, np.ones(self.num_columns)

    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (components), with weights."""
        own = self.take(rows)
        total = (own.sigma[:, None] ** 2 + own.variances)[:, columns]
        squares = (own.y[:, None] - own.locs[:, columns]) ** 2 / total
        return np.log(own.weights[:, columns]) - (squares + np.log(2 * np.pi * total)) / 2

    def parts(self, weights: Float[np.ndarray, " K"]) -> Iterator[Parts]:
        """The law of X given each y, a block of observations at a time."""
        for rows in self.blocks(self.num_columns):
            own = self.take(rows)
            noise = own.sigma[:, None] ** 2
            share = own.variances / (own.variances + noise)
            posterior = softmax(self.logs(rows, slice(None)) + np.log(weights), axis=1)
            means = share * (own.y[:, None] - own.locs) + own.locs - own.y[:, None]
            deviations = np.sqrt(share * noise)[..., None]
            yield Parts(rows, posterior, own.y[:, None], means[..., None], deviations)


@dataclass(frozen=True)
class _AtomicKernel(AbstractKernel):
    """Components that are point masses m_i, with a likelihood of another kind."""

    locs: Float[np.ndarray, "K d"]

    @property
    def num_columns(self) -> int:
        """The number of components."""
        return len(self.locs)

    def parts(self, weights: Float[np.ndarray, " K"]) -> Iterator[Parts]:
        """The law of X given each y, a block of observations at a time."""
        for rows in self.blocks(self.locs.size):
            logs = self.logs(rows, slice(None))
            centres = np.zeros((len(logs), self.locs.shape[1]))
            posterior = softmax(logs + np.log(weights), axis=1)
            yield Parts(rows, posterior, centres, self.locs[None], None)


@dataclass(frozen=True)
class PoissonKernel(_AtomicKernel):
    """log Poisson(y_j; e_j m_i), with the constant.

    Attributes:
        counts: How many observations each row stands for.
        locs: The rates m_i.
        y: The counts y_j.
        exposure: The exposure e_j of each.
    """

    y: Float[np.ndarray, " n"]
    exposure: Float[np.ndarray, " n"]
    per_row: ClassVar[tuple[str, ...]] = ("counts", "y", "exposure")

    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (components)."""
        y, mean = self.y[rows, None], self.exposure[rows, None] * self.locs[columns, 0]
        return xlogy(y, mean) - mean - gammaln(y + 1)


@dataclass(frozen=True)
class BinomialKernel(_AtomicKernel):
    """log Binomial(y_j; n_j, m_i), with the constant.

    Attributes:
        counts: How many observations each row stands for.
        locs: The probabilities m_i.
        y: The successes y_j.
        trials: The trials n_j of each.
    """

    y: Float[np.ndarray, " n"]
    trials: Float[np.ndarray, " n"]
    per_row: ClassVar[tuple[str, ...]] = ("counts", "y", "trials")

    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (components)."""
        y, trials, locs = self.y[rows, None], self.trials[rows, None], self.locs[columns, 0]
        choices = gammaln(trials + 1) - gammaln(y + 1) - gammaln(trials - y + 1)
        return choices + xlogy(y, locs) + xlog1py(trials - y, -locs)


@dataclass(frozen=True)
class LinearKernel(_AtomicKernel):
    """log N(y_j; R_j m_i, S_j) in several dimensions.

    Attributes:
        counts: How many observations each row stands for.
        locs: The locations m_i.
        centre: A point near them, that the rest is relative to.
        pull: R_j' S_j^-1 (y_j - R_j centre) of each observation.
        precision: R_j' S_j^-1 R_j of each.
        constant: log N(y_j; R_j centre, S_j) of each.
    """

    centre: Float[np.ndarray, " d"]
    pull: Float[np.ndarray, "n d"]
    precision: Float[np.ndarray, "n d d"]
    constant: Float[np.ndarray, " n"]
    per_row: ClassVar[tuple[str, ...]] = ("counts", "pull", "precision", "constant")

    @classmethod
    def of(
        cls,
        y: Float[np.ndarray, "n p"],
        covariances: Float[np.ndarray, "n p p"],
        projection: Float[np.ndarray, "#n p d"],
        locs: Float[np.ndarray, "K d"],
    ) -> "LinearKernel":
        """The kernel of observations y_j = R_j x + N(0, S_j); NaN in y is a missing coordinate."""
        centre, missing = locs.mean(0), np.isnan(y)
        shifted = np.where(missing, 0, y - projection @ centre)
        # A missing coordinate has no projection, and noise that does not depend on the others'.
        either = missing[:, :, None] | missing[:, None]
        seen = np.where(either, np.eye(y.shape[1]), covariances)
        maps = np.where(missing[:, :, None], 0, projection)
        roots = np.linalg.cholesky(seen)
        whitened = np.linalg.solve(roots, shifted[..., None])[..., 0]
        maps = np.linalg.solve(roots, maps)
        volumes = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
        present = (~missing).sum(1)
        constant = -((whitened**2).sum(1) + present * np.log(2 * np.pi)) / 2 - volumes
        pull = np.einsum("npd,np->nd", maps, whitened)
        precision = np.einsum("npd,npe->nde", maps, maps)
        return cls(np.ones(len(y)), locs, centre, pull, precision, constant)

    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (components)."""
        locs, precision = self.locs[columns] - self.centre, self.precision[rows]
        one, two = np.triu_indices(locs.shape[1])
        # A square is linear in the products of the coordinates.
        by_row = np.hstack(
            [self.pull[rows], precision[:, one, two] * np.where(one == two, -0.5, -1.0)]
        )
        by_column = np.hstack([locs, locs[:, one] * locs[:, two]])
        return by_row @ by_column.T + self.constant[rows, None]

    def peaks(
        self, gradient: Float[np.ndarray, " K"], active: Int[np.ndarray, " k"]
    ) -> Int[np.ndarray, " p"]:
        """Columns to add to the active ones: the highest of those nearest to each."""
        return highest_near(self.locs, active, gradient)

    def moved(
        self, active: Int[np.ndarray, " k"], weights: Float[np.ndarray, " k"]
    ) -> Float[np.ndarray, "k d"]:
        """Each active location after a step of EM, towards what the observations near it want."""
        d = self.locs.shape[1]
        pull, precision = np.zeros((len(active), d)), np.zeros((len(active), d, d))
        for rows in self.blocks(len(active)):
            share = softmax(self.logs(rows, active) + np.log(weights), axis=1)
            share *= self.counts[rows, None]
            pull += share.T @ self.pull[rows]
            precision += np.tensordot(share, self.precision[rows], axes=(0, 0))
        best = np.linalg.pinv(precision, hermitian=True) @ pull[..., None]
        return self.centre + best[..., 0]


@dataclass(frozen=True)
class BlendKernel(AbstractKernel):
    """Components that are themselves mixtures of a kernel's components.

    Attributes:
        counts: How many observations each row stands for.
        pieces: The kernel of the pieces.
        shares: The weight of each piece in each component.
    """

    pieces: AbstractKernel
    shares: Float[np.ndarray, "K pieces"]

    @property
    def num_columns(self) -> int:
        """The number of components."""
        return len(self.shares)

    def logs(self, rows: Any, columns: Any) -> Float[np.ndarray, "j i"]:
        """The logarithms for some rows (observations) and columns (components)."""
        logs = self.pieces.logs(rows, slice(None))
        largest = logs.max(1, keepdims=True)
        with np.errstate(divide="ignore"):
            return np.log(np.exp(logs - largest) @ self.shares[columns].T) + largest

    def blocks(self, width: int) -> list[slice]:
        """Slices of the rows, each small enough for a core's cache at all the pieces."""
        return super().blocks(max(width, self.pieces.num_columns))

    def parts(self, weights: Float[np.ndarray, " K"]) -> Iterator[Parts]:
        """The law of X given each y, a block of observations at a time."""
        return self.pieces.parts(weights @ self.shares)


def highest_near(
    locs: Float[np.ndarray, "K d"],
    active: Int[np.ndarray, " k"],
    gradient: Float[np.ndarray, " K"],
) -> Int[np.ndarray, " p"]:
    """The column of the highest gradient among those nearest to each active one."""
    own = locs[active]
    nearest = np.argmin((locs**2).sum(1)[:, None] + (own**2).sum(1) - 2 * locs @ own.T, axis=1)
    order = np.lexsort((-gradient, nearest))
    return order[np.unique(nearest[order], return_index=True)[1]]


# The numbers in a block, which fits in a core's cache.
_BLOCK = 2**18
# The blocks from which threads pay.
_SOME = 8
# exp() of this, squared and summed over the data, is still finite.
_HIGHEST = 300.0
