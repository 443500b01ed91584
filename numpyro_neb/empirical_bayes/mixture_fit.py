"""What `fit_mixture` returns: a law of X, and its posterior for each observation."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray
from numpyro.util import find_stack_level

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
from numpyro_neb._internal.events import too_coarse
from numpyro_neb.empirical_bayes.distribution import PosteriorDistribution, stacked
from numpyro_neb.empirical_bayes.normal_kernel import NormalKernel
from numpyro_neb.energies.mixture import MixtureEnergy
from numpyro_neb.posteriors.mixture import MixturePosterior

_NUM_CHAINS = 4  # of ArviZ data


@dataclass(frozen=True, eq=False, repr=False)
class MixtureFit:
    """A law of X estimated from noisy observations, and its posterior for each of them.

    `to_arviz(fit)` gives ArviZ draws of each X. Likelihoods, summaries of the posterior and draws
    are computed in float64 on the host, from differences to a location near each observation;
    `energy` and `posterior` are for JAX, in its default float.

    `posterior_mean` is what the fit is good for. The point masses say where X is likely to be, not
    that X is discrete, so that the law of X given y is too narrow: 90% intervals
    (`posterior.interval`) cover X in 50% to 80% of the cases, and among signs that `lfsr` gives at
    most 5% to be wrong, 10% and more are, even if no X is near zero and the data are many.

    Attributes:
        y: The observations, of shape (n, *event_shape).
        sigma: The noise's standard deviation for each, of shape (n,).
        locs: The locations of the point masses, of shape (K, *event_shape).
        weights: Their weights, of shape (K,).
        duality_gap: The log-likelihood is at most this far below the best of any weights on the
            same candidate locations; NaN for data that the mixture was not fitted to.
        num_iterations: Newton steps taken.
        level: The noise level of `energy`, the median of the sigmas that the mixture was fitted to.
        blur: The second moment that mass near zero can have without being seen in the data that
            the mixture was fitted to: see `lfsr_withheld`. Zero if `locs` has a gap around zero.
    """

    y: Float[np.ndarray, "n *event"]
    sigma: Float[np.ndarray, " n"]
    locs: Float[np.ndarray, "K *event"]
    weights: Float[np.ndarray, " K"]
    duality_gap: float
    num_iterations: int
    level: float
    blur: float

    @cached_property
    def energy(self) -> MixtureEnergy:
        """The fitted mixture of point masses, at the median sigma.

        Raises:
            ValueError: If JAX's default float can't hold the squares of the locations.

        Warns:
            UserWarning: If it can't hold sigma next to numbers of their size.
        """
        return MixtureEnergy(self.locs, self.level, np.log(self.weights))

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
        """The local false sign rate, min(P(X <= 0), P(X >= 0)) given Y=y.

        A point mass at zero counts on both sides. NaN where the data can't tell point masses from
        zero: `lfsr_withheld` says why. Where it is not NaN, it is still that of a discrete law of X
        and too low on average, as the class says.

        Warns:
            UserWarning: If it is NaN.
        """
        if self.lfsr_withheld:
            warnings.warn(f"lfsr is NaN: {self.lfsr_withheld}", stacklevel=find_stack_level())
        return self._signs[0]

    @property
    def lfsr_withheld(self) -> str:
        """Why `lfsr` is NaN, in a sentence; empty if it is not.

        Point masses crowd zero if, moved there, they would change the variance of y by less than
        two of its standard errors, sum_i w_i m_i^2 <= 2 (2 / sum_j sigma_j^-4)^(1/2), counted
        from zero on and up to one sigma. It is NaN if it would change by more than .01 with such
        point masses counted on both sides of zero. In several dimensions, by coordinate.
        """
        return self._signs[1]

    @cached_property
    def _signs(self):
        locs = self.locs.reshape(len(self.locs), -1)
        order = np.argsort(np.abs(locs), axis=0)
        sizes = np.take_along_axis(np.abs(locs), order, axis=0)
        hidden = np.cumsum(self.weights[order] * sizes**2, axis=0) <= self.blur
        reach = np.where(hidden & (sizes < self.level), sizes, 0).max(0)
        sides = [locs <= 0, locs >= 0, locs <= reach, locs >= -reach]
        averages = self._averages(np.stack(sides, -1).reshape(len(locs), -1).astype(float))
        below, above, wide_below, wide_above = np.moveaxis(
            averages.reshape(len(self.y), -1, 4), 2, 0
        )
        rate, wide = np.minimum(below, above), np.minimum(wide_below, wide_above)
        crowded = np.max(wide - rate, axis=0) > 0.01
        rate = np.where(crowded, np.nan, rate).reshape(self.y.shape)
        return rate, self._why(locs, reach, crowded)

    def _why(self, locs, reach, crowded):
        if not crowded.any():
            return ""
        first = int(np.argmax(crowded))
        inside = np.abs(locs[:, first]) <= reach[first]
        where = f" in {crowded.sum()} of {len(crowded)} coordinates" if self.y.ndim > 1 else ""
        return (
            f"the data can't tell {inside.sum()} point masses within {reach[first]:.2g} of zero,"
            f" {self.weights[inside].sum():.0%} of the weight, from zero{where}; if effects are"
            " either zero or large enough to matter, leave a gap around zero in locs"
        )

    def _averages(self, columns):
        """The expectations given each y of columns with a value for each location."""
        parts = self._kernel.responsibilities(self.weights)
        return np.concatenate([part.weights @ columns for part in parts])

    @cached_property
    def _moments(self):
        means, deviations = [], []
        for _, weights, centres, offsets in self._kernel.responsibilities(self.weights):
            mean = np.einsum("jk,jkd->jd", weights, offsets)
            squares = (offsets - mean[:, None]) ** 2
            means.append(centres + mean)
            deviations.append(np.sqrt(np.einsum("jk,jkd->jd", weights, squares)))
        shape = self.y.shape
        return np.concatenate(means).reshape(shape), np.concatenate(deviations).reshape(shape)

    @property
    def _kernel(self):
        flat = lambda a: a.reshape(len(a), -1)  # noqa: E731
        return NormalKernel(flat(self.y), self.sigma, flat(self.locs))

    @property
    def posterior(self) -> PosteriorDistribution:
        """The law of X given Y=y of all observations, with `cdf`, `icdf` and `interval`.

        A NumPyro distribution, in JAX's default float.

        Raises:
            ValueError: As `energy`.

        Warns:
            UserWarning: If that can't hold sigma next to numbers of the data's size.
        """
        components = self.energy.components
        y, sigma = jnp.asarray(self.y, float), jnp.asarray(self.sigma, float)
        limits = {"locs": (self.locs, self.level), "y": (self.y, self.sigma.min())}
        text = {
            k: too_coarse(k, np.abs(v[0]).max(), float(v[1]), y.dtype) for k, v in limits.items()
        }
        if text["y"] and not text["locs"]:  # of which `energy` has warned
            warnings.warn(text["y"], stacklevel=find_stack_level())
        make = eqx.Partial(MixturePosterior, components)
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
        check_shape("y", y, ("m", *self.y.shape[1:]))
        return replace(self, y=y, sigma=sigma, duality_gap=np.nan)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[np.ndarray, "..."]:
        """Draws of X given Y=y for each observation, of shape (*shape, n, *event_shape)."""
        uniform = np.asarray(jax.random.uniform(check_key(key), (*shape, len(self.y))), float)
        parts = []
        for rows, weights, *_ in self._kernel.responsibilities(self.weights):
            # The observations' distribution functions one after another, from 0, 1, ... on.
            reached = np.cumsum(weights, axis=1)
            reached /= reached[:, -1:]
            number = np.arange(len(reached))
            at = uniform[..., rows] + number
            index = np.searchsorted((reached + number[:, None]).ravel(), at, side="right")
            parts.append(index - number * len(self.locs))
        return self.locs[np.concatenate(parts, axis=-1)]

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
        names = ["observation", *event_dims(self.y.shape[1:])]
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
        title = (
            f"MixtureFit of {len(self.y)} observations: log-likelihood {self.log_likelihood:.4f}"
        )
        if np.isfinite(self.duality_gap):
            title += f", at most {self.duality_gap:.2g} below the best on its locations"
        law = f"{len(self.weights)} point masses"
        if self.y.ndim == 1:
            atoms = [f"{w:.3g} at {m:.4g}" for w, m in zip(self.weights, self.locs, strict=True)]
            law += ": " + ", ".join([*atoms[:6], "...", *atoms[-6:]] if len(atoms) > 12 else atoms)
        flat = self.posterior_std.reshape(len(self.y), -1) / self.sigma[:, None]
        given = f"posterior_std is {flat.min():.2g} to {flat.max():.2g} of sigma; "
        if self.lfsr_withheld:
            return "\n".join([title, law, f"{given}no lfsr: {self.lfsr_withheld}"])
        small = np.sum(self._signs[0] < 0.05)
        return "\n".join([title, law, f"{given}lfsr < 0.05 for {small} of {self.y.size}"])


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
