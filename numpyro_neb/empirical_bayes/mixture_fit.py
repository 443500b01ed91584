"""What `fit_mixture` returns: a law of X, and its posterior for each observation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_neb._internal.arviz_data import created_by, event_dims, from_groups
from numpyro_neb._internal.checks import (
    Numbers,
    check_count,
    check_key,
    check_reals,
    check_shape,
    check_squares,
    finite_on_host,
    require,
)
from numpyro_neb.empirical_bayes.distribution import PosteriorDistribution, stacked
from numpyro_neb.empirical_bayes.normal_kernel import NormalKernel
from numpyro_neb.energies.mixture import MixtureEnergy
from numpyro_neb.posteriors.mixture import MixturePosterior

_NUM_CHAINS = 4  # of ArviZ data


@dataclass(frozen=True, eq=False, repr=False)
class MixtureFit:
    """A law of X estimated from noisy observations, and its posterior for each of them.

    `print` shows it as a table; `to_arviz(fit)` gives ArviZ draws of each X. Likelihoods and
    posterior summaries are computed in float64, on the host.

    Attributes:
        energy: The fitted mixture of point masses; at the median of `sigma` if they differ.
        y: The observations, of shape (n, *event_shape).
        sigma: The noise's standard deviation for each, of shape (n,).
        locs: The locations of the point masses, of shape (K, *event_shape).
        weights: Their weights, of shape (K,).
        duality_gap: The log-likelihood is at most this far below the best of any weights on the
            same candidate locations; NaN for data that the mixture was not fitted to.
        num_iterations: Newton steps taken.
    """

    energy: MixtureEnergy
    y: Float[np.ndarray, "n *event"]
    sigma: Float[np.ndarray, " n"]
    locs: Float[np.ndarray, "K *event"]
    weights: Float[np.ndarray, " K"]
    duality_gap: float
    num_iterations: int

    @cached_property
    def log_likelihoods(self) -> Float[np.ndarray, " n"]:
        """Log f(y_j), each at its own sigma_j."""
        return self._kernel.log_density(np.arange(len(self.locs)), self.weights)

    @property
    def log_likelihood(self) -> float:
        """The log-likelihood of all of `y`, each at its own sigma: sum_j log f(y_j)."""
        return float(np.sum(self.log_likelihoods))

    @property
    def posterior_mean(self) -> Float[np.ndarray, "n *event"]:
        """E[X given Y=y] of each observation."""
        return self._moments[0]

    @property
    def posterior_std(self) -> Float[np.ndarray, "n *event"]:
        """The standard deviation of X given Y=y, of each observation and coordinate."""
        return self._moments[1]

    @property
    def posterior_second_moment(self) -> Float[np.ndarray, "n *event"]:
        """E[X^2 given Y=y] of each observation and coordinate."""
        return self.posterior_mean**2 + self.posterior_std**2

    @property
    def lfsr(self) -> Float[np.ndarray, "n *event"]:
        """The local false sign rate, min(P(X <= 0), P(X >= 0)) given Y=y."""
        return self._moments[2]

    @cached_property
    def _moments(self):
        locs = self.locs.reshape(len(self.locs), -1)
        centre = self.weights @ locs
        columns = np.hstack([locs - centre, (locs - centre) ** 2, locs <= 0, locs >= 0])
        averages = self._kernel.averages(self.weights, columns)
        first, second, below, above = np.split(averages, 4, axis=1)
        std = np.sqrt(np.maximum(second - first**2, 0))
        results = (centre + first, std, np.minimum(below, above))
        return tuple(result.reshape(self.y.shape) for result in results)

    @property
    def _kernel(self):
        flat = lambda a: a.reshape(len(a), -1)  # noqa: E731
        return NormalKernel(flat(self.y), self.sigma, flat(self.locs))

    @property
    def posterior(self) -> PosteriorDistribution:
        """The law of X given Y=y of all observations, with `cdf`, `icdf` and `interval`."""
        y, sigma = jnp.asarray(self.y, float), jnp.asarray(self.sigma, float)
        make = eqx.Partial(MixturePosterior, self.energy.components)
        return PosteriorDistribution(stacked(make, sigma.shape, sigma, y))

    def predict(self, y: Numbers, sigma: Numbers) -> "MixtureFit":
        """Applies the fitted law to other observations.

        Args:
            y: New observations, of shape (m, *event_shape).
            sigma: Their noise, a scalar or of shape (m,).

        Returns:
            The same mixture with the new observations: `posterior_mean` and the rest describe them,
            and `log_likelihood` is that of held-out data.

        Raises:
            TypeError: As `fit_mixture`.
            ValueError: As `fit_mixture`.
        """
        y, sigma = check_observations(y, sigma)
        check_shape("y", y, ("m", *self.energy.event_shape))
        return replace(self, y=y, sigma=sigma, duality_gap=np.nan)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draws of X given Y=y for each observation, of shape (*shape, n, *event_shape)."""
        check_key(key)
        return self.posterior.sample(key, shape)

    def to_arviz(
        self,
        key: PRNGKeyArray,
        coords: Mapping[str, Sequence] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        *,
        num_samples: int = 1000,
    ) -> Any:
        """Independent draws of each X given its y as ArviZ data, in four chains.

        `posterior` holds the draws `x`, `observed_data` the `y`, `constant_data` the `sigma` of
        each.

        Args:
            key: A JAX random key for the draws.
            coords: As for `numpyro_neb.to_arviz`.
            dims: As for `numpyro_neb.to_arviz`.
            num_samples: The number of draws in each chain.

        Returns:
            An `arviz.InferenceData` under ArviZ 0.x, an `xarray.DataTree` under 1.x.

        Raises:
            TypeError: If key is not a random key.
            ValueError: If num_samples is not a positive int.
        """
        count = check_count("num_samples", num_samples)
        draws = self.sample(key, (_NUM_CHAINS, count))
        names = ["observation", *event_dims(self.energy.event_shape)]
        groups = {
            "posterior": {"x": np.asarray(draws)},
            "observed_data": {"y": self.y},
            "constant_data": {"sigma": self.sigma},
        }
        named = {"x": names, "y": names, "sigma": names[:1]} | dict(dims or {})
        data = from_groups(groups, coords, named)
        data["posterior"].attrs |= created_by() | {
            "log_likelihood": self.log_likelihood,
            "duality_gap": self.duality_gap,
            "x": "X given Y=y under the nonparametric maximum-likelihood estimate",
        }
        return data

    def __repr__(self) -> str:
        weights, n = self.weights, len(self.y)
        title = f"MixtureFit of {n} observations: log-likelihood {self.log_likelihood:.4f}"
        if np.isfinite(self.duality_gap):
            title += f", at most {self.duality_gap:.2g} below the best on its locations"
        if self.energy.event_shape:
            return f"{title}\n{len(weights)} point masses"
        atoms = [f"{w:.3g} at {m:.4g}" for w, m in zip(weights, self.locs, strict=True)]
        atoms = [*atoms[:6], "...", *atoms[-6:]] if len(atoms) > 12 else atoms
        columns = ("y", "sigma", "posterior_mean", "posterior_std", "lfsr")
        rows = list(range(n)) if n <= 10 else [*range(5), *range(n - 5, n)]
        table = np.stack([getattr(self, c)[rows] for c in columns], 1)
        body = [
            f"{row:8}" + "".join(f"{v:16.4g}" for v in values)
            for row, values in zip(rows, table, strict=True)
        ]
        if n > 10:
            body.insert(5, f"{'...':>8}")
        header = " " * 8 + "".join(f"{c:>16}" for c in columns)
        return "\n".join(
            [title, f"{len(weights)} point masses: " + ", ".join(atoms), header, *body]
        )


def check_observations(
    y: Numbers, sigma: Numbers
) -> tuple[Float[np.ndarray, "n *event"], Float[np.ndarray, " n"]]:
    """Observations and the noise of each, in float64.

    Raises:
        TypeError: If y or sigma holds anything but real numbers.
        ValueError: If y is empty or not finite, or sigma is not positive or has the wrong shape.
    """
    y = finite_on_host("y", y, in_jax=True)
    some = y.ndim > 0 and y.size > 0
    require(some, f"y must have shape (n,) or (n, *event_shape) and not be empty, got {y.shape}")
    sigma = np.asarray(check_reals("sigma", sigma), float)
    fits = sigma.shape in ((), (len(y),))
    require(fits, f"sigma must be a scalar or of shape ({len(y)},), got {sigma.shape}")
    wrong = sigma[~(np.isfinite(sigma) & (sigma > 0))]
    if wrong.size:
        raise ValueError(f"sigma must be positive and finite, got {wrong[0]}")
    check_squares("y", y, sigma.min())
    return y, np.broadcast_to(sigma, (len(y),))
