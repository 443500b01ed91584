"""What `fit_mixture` returns: a law of X, and its posterior for each observation."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray
from numpyro.util import find_stack_level

from numpyro_neb._internal.arviz_data import created_by, event_dims, from_groups
from numpyro_neb._internal.checks import (
    Numbers,
    check_count,
    check_key,
    check_positive,
    check_shape,
    require,
)
from numpyro_neb._internal.events import too_coarse
from numpyro_neb.empirical_bayes.distribution import PosteriorDistribution, stacked
from numpyro_neb.empirical_bayes.kernels import AbstractKernel, Parts
from numpyro_neb.empirical_bayes.observations import (
    AbstractObservations,
    NormalObservations,
    Prior,
    observations,
)
from numpyro_neb.empirical_bayes.selection import Ranking, q_values
from numpyro_neb.empirical_bayes.signs import hidden_reach, sign_rates, why_none
from numpyro_neb.energies.mixture import MixtureEnergy
from numpyro_neb.posteriors.components import Components
from numpyro_neb.posteriors.mixture import MixturePosterior

_NUM_CHAINS = 4  # of ArviZ data


@dataclass(frozen=True, eq=False, repr=False)
class MixtureFit:
    """A law of X estimated from noisy observations, and its posterior for each of them.

    `to_arviz(fit)` gives ArviZ draws of each X, `to_dataframe()` a table. Likelihoods, summaries of
    the posterior and draws are computed in float64 on the host, from differences to a point near
    each observation; `energy` and `posterior` are for JAX, in its default float.

    With the nonparametric prior, `posterior_mean` is what the fit is good for. Its point masses say
    where X is likely to be, not that X is discrete, so that the law of X given y is too narrow: 90%
    intervals cover X in 50% to 80% of the cases. For intervals and sign rates use a smooth prior,
    `prior="scale_mixture"`, or `robust_interval`.

    Attributes:
        prior: The law of X.
        observed: The observations and their noise.
        duality_gap: The log-likelihood is at most this far below the best of any weights on the
            same candidates; NaN for a family without this certificate, and for data that the
            mixture was not fitted to.
        num_iterations: Passes over all candidates, each with a few Newton steps after it.
        level: The noise level of `energy`, the median of the sigmas that the mixture was fitted to.
        blur: The second moment that mass near zero can have without being seen in the data that
            the mixture was fitted to: see `lfsr_withheld`. Zero if that does not matter.
    """

    prior: Prior
    observed: AbstractObservations
    duality_gap: float
    num_iterations: int
    level: float
    blur: float

    @property
    def y(self) -> Float[np.ndarray, "n *rest"]:
        """The observations, of shape (n, *event_shape); NaN for a missing one."""
        return self.observed.y

    @property
    def sigma(self) -> Any:
        """The noise of each, of shape (n,); (n, p, p) for covariances, and None for counts."""
        return self.observed.noise

    @cached_property
    def kernel(self) -> AbstractKernel:
        """The likelihood of each observation under each component."""
        return self.observed.kernel(self.prior)

    @property
    def locs(self) -> Float[np.ndarray, "..."]:
        """The means of the components, the locations of point masses; (n, K) with covariates."""
        return self._mixture[0]

    @property
    def weights(self) -> Float[np.ndarray, "*n K"]:
        """The weights of the components; of shape (n, K) with covariates."""
        return self._mixture[1]

    @cached_property
    def _mixture(self):
        return self.kernel.mixture(self.prior.locs, self.prior.weights)

    @property
    def _common(self):  # the weights that all observations share
        return self._mixture[2]

    @cached_property
    def energy(self) -> MixtureEnergy:
        """The fitted law of X smoothed at the median sigma.

        Raises:
            ValueError: If the observations are counts, or JAX's default float can't hold the
                squares of the locations.

        Warns:
            UserWarning: If it can't hold sigma next to numbers of their size.
        """
        shared = self.sigma is not None and self.prior.by_covariates is None
        require(shared, "fit.energy needs normal noise, and one prior for all observations")
        return self.prior.smoothed(self.level)

    @cached_property
    def log_likelihoods(self) -> Float[np.ndarray, " n"]:
        """Log f(y_j), each at its own sigma_j; zero where sigma_j is zero or infinite."""
        logs = self.kernel.log_density(np.arange(len(self._common)), self._common)
        return np.where(self.observed.informative, logs - np.log(self._placed[1]), 0.0)

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
        zero: `lfsr_withheld` says why. Where it is not NaN, that of the nonparametric prior is
        still that of a discrete law of X and too low on average, as the class says.

        Warns:
            UserWarning: If it is NaN.
        """
        if self.lfsr_withheld:
            warnings.warn(f"lfsr is NaN: {self.lfsr_withheld}", stacklevel=find_stack_level())
        return self._signs[0]

    @property
    def lfdr(self) -> Float[np.ndarray, "n *event"]:
        """The local false discovery rate, P(X = 0) given Y=y; zero for a prior without a spike."""
        return self._signs[1]

    @property
    def lfsr_withheld(self) -> str:
        """Why `lfsr` is NaN, in a sentence; empty if it is not.

        Point masses crowd zero if, moved there, they would change the variance of y by less than
        two of its standard errors, sum_i w_i m_i^2 <= 2 (2 / sum_j sigma_j^-4)^(1/2), counted
        from zero on and up to one sigma. It is NaN if it would change by more than .01 with such
        point masses counted on both sides of zero. In several dimensions, by coordinate.
        """
        return self._signs[2]

    @property
    def q_values(self) -> Float[np.ndarray, "n *event"]:
        """The mean `lfsr` of each observation and all with smaller ones, or NaN."""
        return q_values(self.lfsr.ravel()).reshape(self._shape)

    def select(self, fdr: float = 0.1) -> Bool[np.ndarray, "n *event"]:
        """Which observations to report if a share `fdr` of them may have the wrong sign.

        True for a q-value of at most `fdr`: as many as possible, with a mean `lfsr` of at most
        `fdr`. An X of zero has no sign, so that it counts as wrong.

        Raises:
            ValueError: If fdr is not between 0 and 1.

        Reference:
            Stephens, Biostatistics 18 (2017).
        """
        return self.q_values <= check_positive("fdr", fdr, 1.0)

    def rank(self, key: PRNGKeyArray, num_samples: int = 1000) -> Ranking:
        """The posterior ranks of the X_j, from joint draws; 1 is the largest.

        Raises:
            TypeError: If key is not a random key.
            ValueError: If num_samples is not a positive int, or X is not a number.
        """
        require(self._shape == self.y.shape[:1], "rank needs X in one dimension")
        return Ranking.of(self.sample(key, (check_count("num_samples", num_samples),)))

    @cached_property
    def _signs(self):
        locs = self.prior.locs.reshape(len(self.prior.weights), prod(self._shape[1:]))
        reach = hidden_reach(locs, self.prior.weights, self.blur, self.level)
        rate, wide, zero = sign_rates(self._parts(), reach)
        crowded = np.max(wide - rate, axis=0) > 0.01
        why = why_none(locs, self.prior.weights, reach, crowded)
        rate = np.where(crowded, np.nan, rate).reshape(self._shape)
        return rate, zero.reshape(self._shape), why

    @cached_property
    def _moments(self):
        means, deviations = [], []
        for part in self._parts():
            mean = _mean(part)
            squares = (part.offsets - mean[:, None]) ** 2
            if part.deviations is not None:
                squares = squares + part.deviations**2
            means.append(part.centres + mean)
            deviations.append(np.sqrt(np.einsum("jk,jkd->jd", part.weights, squares)))
        mean, deviation = np.concatenate(means), np.concatenate(deviations)
        return mean.reshape(self._shape), deviation.reshape(self._shape)

    def _parts(self) -> Iterator[Parts]:
        """The law of X given each y, a block of observations at a time."""
        shift, stretch = self._placed
        exact = self.observed.exact
        for part in self.kernel.parts(self._common):
            a, b = shift[part.rows, None], stretch[part.rows, None]
            deviations = None if part.deviations is None else b[..., None] * part.deviations
            centres, offsets = a + b * part.centres, b[..., None] * part.offsets
            if exact.any():
                known = exact[part.rows]
                centres = np.where(
                    known[:, None], self.y[part.rows].reshape(centres.shape), centres
                )
                offsets = np.where(known[:, None, None], 0.0, offsets)
                if deviations is not None:
                    deviations = np.where(known[:, None, None], 0.0, deviations)
            yield Parts(part.rows, part.weights, centres, offsets, deviations)

    @cached_property
    def _placed(self):
        if self.prior.location_scale is None:
            return np.zeros(len(self.y)), np.ones(len(self.y))
        return self.prior.placed(np.asarray(self.sigma))

    @property
    def _plain(self):
        """Whether the components given y are those of the prior, updated by y."""
        moved = self.prior.location_scale is not None or self.prior.by_covariates is not None
        return not moved and bool(np.all(self.observed.informative))

    @property
    def _shape(self):
        return (len(self.y), *self.prior.locs.shape[1:])

    @cached_property
    def _padded(self):
        return self.prior.smoothed(self.level, padded=True)

    @property
    def posterior(self) -> PosteriorDistribution:
        """The law of X given Y=y of all observations, with `cdf`, `icdf` and `interval`.

        A NumPyro distribution, in JAX's default float. With the nonparametric prior its intervals
        are too short, as the class says.

        Raises:
            ValueError: As `energy`.

        Warns:
            UserWarning: If that can't hold sigma next to numbers of the data's size.
        """
        dtype = jnp.zeros(()).dtype
        if not self._plain or self.sigma is None or self.sigma.ndim > 1:
            return self._explicit(dtype)
        components = self._padded.components
        y, sigma = jnp.asarray(self.y, dtype), jnp.asarray(self.sigma, dtype)
        limits = {"locs": (self.locs, self.level), "y": (self.y, np.min(self.sigma))}
        text = {k: too_coarse(k, np.abs(v[0]).max(), float(v[1]), dtype) for k, v in limits.items()}
        if text["y"] and not text["locs"]:  # of which `_padded` has warned
            warnings.warn(text["y"], stacklevel=find_stack_level())
        make = eqx.Partial(MixturePosterior, components)
        return PosteriorDistribution(stacked(make, sigma.shape, sigma, y))

    def _explicit(self, dtype):
        """The posterior with the components of each observation spelled out."""
        parts = list(self._parts())
        means = np.concatenate([p.centres[:, None] + p.offsets for p in parts])
        weights = np.concatenate([p.weights for p in parts])
        if text := too_coarse("y", np.abs(means).max(), self.level, dtype):
            warnings.warn(text, stacklevel=find_stack_level())
        # A posterior is a prior that an observation has not changed: one of much noise.
        noise = jnp.full(len(means), 1e5 * (np.ptp(means) + self.level), dtype)
        y = jnp.broadcast_to(jnp.asarray(means.mean(), dtype), self._shape)
        with np.errstate(divide="ignore"):
            log_weights = jnp.asarray(np.log(weights), dtype)
        locs = jnp.asarray(means, dtype).reshape(*weights.shape, *self._shape[1:])
        operands = [noise, y, locs, log_weights]
        deviations = [p.deviations for p in parts if p.deviations is not None]
        if deviations:
            operands.append(jnp.asarray(np.concatenate(deviations) ** 2, dtype))
        return PosteriorDistribution(stacked(_explicit, noise.shape, *operands))

    def predict(
        self,
        y: Numbers,
        sigma: Numbers | None = None,
        *,
        exposure: Numbers | None = None,
        trials: Numbers | None = None,
        projection: Numbers | None = None,
        covariates: Numbers | None = None,
    ) -> "MixtureFit":
        """Applies the fitted law to other observations.

        Args:
            y: New observations, of shape (m, *event_shape).
            sigma: Their noise, as for `fit_mixture`.
            exposure: As for `fit_mixture`, if the family is Poisson.
            trials: As for `fit_mixture`, if the family is binomial.
            projection: As for `fit_mixture`.
            covariates: Of the new observations, if the prior depends on them.

        Returns:
            The same law with the new observations: `posterior_mean` and the rest describe them,
            and `log_likelihood` is that of held-out data.

        Raises:
            TypeError: As `fit_mixture`.
            ValueError: As `fit_mixture`.
        """
        family = self.observed.family
        seen = observations(family, y, sigma, exposure, trials, projection, covariates)
        event = self.prior.locs.shape[1:]
        if isinstance(seen, NormalObservations):
            check_shape("y", seen.y, ("m", *event))
        needed = self.prior.by_covariates is not None
        require(needed == (covariates is not None), "covariates must be given if the fit has them")
        return replace(self, observed=seen, duality_gap=np.nan)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[np.ndarray, "..."]:
        """Draws of X given Y=y for each observation, of shape (*shape, n, *event_shape)."""
        key, key_within = jax.random.split(check_key(key))
        size = (*shape, len(self.y))
        uniform = np.asarray(jax.random.uniform(key, size), float)
        flat = self.prior.locs.reshape(len(self._common), -1)
        normal: Any = None
        draws = []
        for part in self._parts():
            # The observations' distribution functions one after another, from 0, 1, ... on.
            reached = np.cumsum(part.weights, axis=1)
            reached /= reached[:, -1:]
            number = np.arange(len(reached))
            at = uniform[..., part.rows] + number
            index = np.searchsorted((reached + number[:, None]).ravel(), at, side="right")
            index = index - number * reached.shape[1]
            rows = number if len(part.offsets) > 1 else np.zeros_like(number)
            x = part.centres + part.offsets[rows, index]
            if self._plain and part.deviations is None:
                x = flat[index]  # without rounding
            if part.deviations is not None:
                if normal is None:
                    normal = np.asarray(jax.random.normal(key_within, (*size, x.shape[-1])), float)
                x = x + part.deviations[number, index] * normal[..., part.rows, :]
            draws.append(x)
        return np.concatenate(draws, axis=len(shape)).reshape(*shape, *self._shape)

    def to_dataframe(self, probability: float = 0.9) -> Any:
        """A `pandas.DataFrame` with a row for each observation.

        Its columns are y, what goes with it (sigma, exposure or trials), posterior_mean,
        posterior_std, the ends of the credible interval as lower and upper, and, for normal noise,
        lfsr and lfdr.

        Raises:
            ValueError: If X is not a number, or probability is not between 0 and 1.
        """
        import pandas as pd

        require(self._shape == self.y.shape == self.y.shape[:1], "to_dataframe needs numbers X")
        lower, upper = self.posterior.interval(probability)
        columns = {
            "y": self.y,
            **self.observed.known,
            "posterior_mean": self.posterior_mean,
            "posterior_std": self.posterior_std,
            "lower": np.asarray(lower, float),
            "upper": np.asarray(upper, float),
        }
        if self.sigma is not None:
            columns |= {"lfsr": self._signs[0], "lfdr": self.lfdr}
        return pd.DataFrame(columns)

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
        each (the exposure or the trials of counts).

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
        names = ["observation", *event_dims(self._shape[1:])]
        known = self.observed.known
        groups = {
            "posterior": {"x": np.asarray(draws)},
            "observed_data": {"y": self.y},
            "constant_data": known,
        }
        named = {"x": names, "y": names if self.y.shape == self._shape else names[:1]}
        named |= dict.fromkeys(known, names[:1]) | dict(dims or {})
        data = from_groups(groups, coords, named)
        data["posterior"].attrs |= created_by() | {
            "log_likelihood": self.log_likelihood,
            "duality_gap": self.duality_gap,
            "x": f"X given Y=y under the fitted prior, {self.prior.name}",
        }
        return data

    def __repr__(self) -> str:
        title = (
            f"MixtureFit of {len(self.y)} observations: log-likelihood {self.log_likelihood:.4f}"
        )
        if np.isfinite(self.duality_gap):
            title += f", at most {self.duality_gap:.2g} below the best on its candidates"
        spread = self.prior.variances
        kind = "point masses" if not np.any(spread) else "components"
        law = f"{self.prior.name}: {len(self._common)} {kind}"
        if self.prior.by_covariates is not None:
            law = f"covariates: {len(self._common)} components, each a function of covariates"
        elif self.locs.ndim == 1:
            sds = [f" +- {v**0.5:.3g}" if v else "" for v in spread]
            rows = zip(self.weights, self.locs, sds, strict=True)
            terms = [f"{w:.3g} at {m:.4g}{sd}" for w, m, sd in rows]
            law += ": " + ", ".join([*terms[:6], "...", *terms[-6:]] if len(terms) > 12 else terms)
        return "\n".join([title, law, self._third_line()])

    def _third_line(self):
        deviations = self.posterior_std
        if self.sigma is not None and self.sigma.ndim == 1:
            ordinary = self.observed.informative
            flat = deviations.reshape(len(self.y), -1)[ordinary]
            share = flat / np.asarray(self.sigma)[ordinary, None]
            given = f"posterior_std is {share.min():.2g} to {share.max():.2g} of sigma"
        else:
            given = f"posterior_std is {deviations.min():.2g} to {deviations.max():.2g}"
        if self.sigma is None:
            return given
        if self.lfsr_withheld:
            return f"{given}; no lfsr: {self.lfsr_withheld}"
        anywhere = self.blur > 0 or self.prior.location_scale is not None
        if self.prior.name == "npmle" and anywhere:
            return f"{given}; for intervals and sign rates use another prior: these are too short"
        return f"{given}; lfsr < 0.05 for {np.sum(self.lfsr < 0.05)} of {self.lfsr.size}"


def _mean(part):
    """The posterior means, relative to the centres."""
    if len(part.offsets) == 1:
        return part.weights @ part.offsets[0]
    return np.einsum("jk,jkd->jd", part.weights, part.offsets)


def _explicit(noise, y, locs, log_weights, spreads=None):
    count, size = len(log_weights), y.size
    axes = None if spreads is None else jnp.broadcast_to(jnp.eye(size), (count, size, size))
    loc = jax.nn.softmax(log_weights) @ locs.reshape(count, -1)
    components = Components(locs, log_weights, spreads, axes, loc.reshape(y.shape))
    return MixturePosterior(components, noise, y, own=True)
