"""Noisy observations, and the prior of what they are observations of."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from numpyro_neb._internal.checks import (
    Numbers,
    check_reals,
    check_shape,
    check_squares,
    finite_on_host,
    require,
)
from numpyro_neb.empirical_bayes.covariates import CovariatePrior
from numpyro_neb.empirical_bayes.kernels import (
    AbstractKernel,
    BinomialKernel,
    LinearKernel,
    NormalKernel,
    PoissonKernel,
    RowKernel,
)
from numpyro_neb.empirical_bayes.location_scale import LocationScale
from numpyro_neb.energies.mixture import MixtureEnergy


@dataclass(frozen=True, eq=False)
class Prior:
    """A law of X as a mixture of point masses and isotropic normal laws.

    Attributes:
        name: The family, as `fit_mixture` names it.
        locs: The means, of shape (K, *event_shape).
        variances: The variance of each coordinate, of shape (K,); zero for a point mass.
        weights: The weights, of shape (K,).
        location_scale: If not None, the mixture is the law of (X - m(sigma)) / s(sigma).
        by_covariates: If not None, the law of X given covariates and sigma; the fields above are
            then empty.
    """

    name: str
    locs: Float[np.ndarray, "K *event"]
    variances: Float[np.ndarray, " K"]
    weights: Float[np.ndarray, " K"]
    location_scale: LocationScale | None = None
    by_covariates: CovariatePrior | None = None

    def placed(
        self, sigma: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """m(sigma) and s(sigma); zeros and ones without them."""
        if self.location_scale is None:
            return np.zeros(len(sigma)), np.ones(len(sigma))
        return self.location_scale(sigma)

    def smoothed(self, sigma: float, *, padded: bool = False) -> MixtureEnergy:
        """The law of X with noise of standard deviation sigma.

        Padded, it has components of weight zero up to a power of two of them, so that laws of
        nearly as many components share what is compiled for them.
        """
        shift, stretch = (float(a[0]) for a in self.placed(np.array([sigma])))
        count = len(self.weights)
        total = 2 ** (count - 1).bit_length() if padded else count
        chosen = np.minimum(np.arange(total), count - 1)
        locs, covariances = (shift + stretch * self.locs)[chosen], None
        if np.any(self.variances):
            variances = stretch**2 * self.variances[chosen]
            covariances = variances[:, None, None] * np.eye(locs[0].size)
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.where(np.arange(total) < count, self.weights[chosen], 0.0))
        return MixtureEnergy(locs, sigma, log_weights, covariances)


@dataclass(frozen=True, eq=False)
class AbstractObservations(abc.ABC):
    """Observations and their noise.

    Attributes:
        y: The observations.
    """

    y: Float[np.ndarray, "n *rest"]
    family: ClassVar[str]

    @abc.abstractmethod
    def kernel(self, prior: Prior) -> AbstractKernel:
        """The likelihood of each observation under each component of the prior."""

    @property
    def noise(self) -> Any:
        """The standard deviations of normal noise, or their covariances; None for counts."""
        return None

    @property
    def known(self) -> dict[str, Float[np.ndarray, " n"]]:
        """What is known of each observation, by name."""
        return {}

    @property
    def exact(self) -> Bool[np.ndarray, " n"]:
        """Which observations are X itself."""
        return np.zeros(len(self.y), bool)

    @property
    def informative(self) -> Bool[np.ndarray, " n"]:
        """Which observations the prior is fitted to."""
        return np.ones(len(self.y), bool)


@dataclass(frozen=True, eq=False)
class NormalObservations(AbstractObservations):
    """y_j = x_j + N(0, sigma_j^2 I); sigma_j = 0 for x_j itself, infinity for a missing one.

    Attributes:
        y: The observations, of shape (n, *event_shape).
        sigma: The noise of each, of shape (n,).
        covariates: Of each, of shape (n, p); None if the prior is the same for all.
    """

    sigma: Float[np.ndarray, " n"]
    covariates: Float[np.ndarray, "n p"] | None = None
    family: ClassVar[str] = "normal"

    @classmethod
    def of(
        cls, y: Numbers, sigma: Numbers, covariates: Numbers | None = None
    ) -> "NormalObservations":
        """Observations, checked.

        Raises:
            TypeError: If y or sigma holds anything but real numbers.
            ValueError: If y is empty or infinite, or sigma is negative, NaN or of the wrong shape.
        """
        y = np.asarray(check_reals("y", y), float)
        some = y.ndim > 0 and y.size > 0
        require(
            some, f"y must have shape (n,) or (n, *event_shape) and not be empty, got {y.shape}"
        )
        sigma = np.asarray(check_reals("sigma", sigma), float)
        fits = sigma.shape in ((), (len(y),))
        require(fits, f"sigma must be a scalar or of shape ({len(y)},), got {sigma.shape}")
        wrong, rest = sigma[~(sigma >= 0)], "zero for an X that is known, infinite for a missing y"
        if wrong.size:
            raise ValueError(f"sigma must be positive and finite, got {wrong[0]}; or {rest}")
        missing = np.isinf(np.broadcast_to(sigma, (len(y),)))
        fill = np.where(np.isnan(y) & missing.reshape(-1, *[1] * (y.ndim - 1)), 0.0, y)
        finite_on_host("y", fill, in_jax=True)
        sigma = np.where(missing, np.inf, sigma)
        usual = sigma[(sigma > 0) & ~missing]
        got = f"got {np.ravel(sigma)[0]} for all"
        require(bool(usual.size), f"sigma must be positive and finite, {got}")
        check_squares("y", fill, usual.min())
        if covariates is not None:
            check_shape("y", y, ("n",))
            covariates = finite_on_host("covariates", covariates)
            covariates = covariates[:, None] if covariates.ndim == 1 else covariates
            fits = covariates.ndim == 2 and len(covariates) == len(y)
            wanted = f"covariates must have shape ({len(y)}, p)"
            require(fits, f"{wanted}, got {covariates.shape}")
        return cls(y, sigma, covariates)

    @property
    def noise(self) -> Float[np.ndarray, " n"]:
        """The standard deviation of each."""
        return self.sigma

    @property
    def known(self) -> dict[str, Float[np.ndarray, " n"]]:
        """The standard deviation of each."""
        return {"sigma": self.sigma}

    @property
    def exact(self) -> Bool[np.ndarray, " n"]:
        """Which observations are X itself."""
        return self.sigma == 0

    @property
    def informative(self) -> Bool[np.ndarray, " n"]:
        """Those whose sigma is neither zero nor infinite."""
        return (self.sigma > 0) & np.isfinite(self.sigma)

    def kernel(self, prior: Prior) -> NormalKernel | RowKernel:
        """The likelihood of each observation under each component of the prior."""
        if prior.by_covariates is not None:
            return self._with_covariates(prior.by_covariates)
        shift, stretch = prior.placed(self.sigma)
        flat = self.y.reshape(len(self.y), -1)
        locs = prior.locs.reshape(len(prior.locs), -1)
        # A missing observation may be anywhere; an exact one is put in its place afterwards.
        y = np.where(self.informative[:, None], flat, locs[:1])
        y = np.where(self.informative[:, None], (y - shift[:, None]) / stretch[:, None], y)
        sigma = np.where(self.informative, self.sigma / stretch, _NO_INFORMATION)
        return NormalKernel(np.ones(len(y)), y, sigma, locs, prior.variances)

    def _with_covariates(self, law):
        used = self.informative
        # Of a missing observation the sigma is not known: it is taken to be the usual one.
        known = np.where(np.isfinite(self.sigma), self.sigma, np.median(self.sigma[used]))
        components = law(self.covariates, known)
        sigma = np.where(used, self.sigma, _NO_INFORMATION)
        y = np.where(used, self.y, 0.0)
        return RowKernel(np.ones(len(y)), y, sigma, *components)


@dataclass(frozen=True, eq=False)
class LinearObservations(AbstractObservations):
    """y_j = R_j x_j + N(0, S_j) in several dimensions; NaN for a coordinate that is missing.

    Attributes:
        y: The observations, of shape (n, p).
        covariances: The S_j, of shape (n, p, p).
        projection: The R_j, of shape (n, p, d), or (1, p, d) for one that all share.
    """

    covariances: Float[np.ndarray, "n p p"]
    projection: Float[np.ndarray, "#n p d"]
    family: ClassVar[str] = "normal"

    @classmethod
    def of(cls, y: Numbers, sigma: Numbers, projection: Numbers | None) -> "LinearObservations":
        """Observations, checked.

        Raises:
            TypeError: If an argument holds anything but real numbers.
            ValueError: If shapes do not fit, a covariance is not symmetric and positive definite,
                or no coordinate is seen at all.
        """
        y = np.asarray(check_reals("y", y), float)
        check_shape("y", y, ("n", "p"))
        n, p = y.shape
        covariances = finite_on_host("sigma", sigma)
        if covariances.ndim < 2:
            each = np.broadcast_to(covariances, (n,))[:, None, None]
            covariances = each**2 * np.eye(p)
        check_shape("sigma", covariances, (n, p, p))
        symmetric = np.allclose(covariances, covariances.swapaxes(1, 2), rtol=1e-8, atol=0)
        least = np.linalg.eigvalsh(covariances).min() if symmetric else -1.0
        what = "sigma must hold symmetric, positive definite covariances of shape (n, p, p)"
        require(symmetric and least > 0, what)
        maps = np.eye(p)[None] if projection is None else finite_on_host("projection", projection)
        maps = maps[None] if maps.ndim == 2 else maps
        fits = maps.ndim == 3 and maps.shape[:2] in ((n, p), (1, p))
        wanted = f"projection must have shape ({p}, d) or ({n}, {p}, d)"
        require(fits, f"{wanted}, got {maps.shape}")
        require(not np.isinf(y).any(), "y must be finite, or NaN where a coordinate is missing")
        require(not np.isnan(y).all(), "y must hold a coordinate that is not missing")
        return cls(y, covariances, maps)

    @property
    def noise(self) -> Float[np.ndarray, "n p p"]:
        """The covariance of each."""
        return self.covariances

    def kernel(self, prior: Prior) -> LinearKernel:
        """The likelihood of each observation under each component of the prior."""
        return LinearKernel.of(self.y, self.covariances, self.projection, prior.locs)


@dataclass(frozen=True, eq=False)
class PoissonObservations(AbstractObservations):
    """y_j ~ Poisson(exposure_j x_j).

    Attributes:
        y: The counts, of shape (n,).
        exposure: The exposure of each, of shape (n,).
    """

    exposure: Float[np.ndarray, " n"]
    family: ClassVar[str] = "poisson"

    @classmethod
    def of(cls, y: Numbers, exposure: Numbers | None) -> "PoissonObservations":
        """Counts, checked.

        Raises:
            TypeError: If an argument holds anything but real numbers.
            ValueError: If y are not whole numbers of at least zero, or exposure is not positive.
        """
        y = _counts(y)
        exposure = _for_each("exposure", 1.0 if exposure is None else exposure, y)
        require(bool(np.all(exposure > 0)), f"exposure must be positive, got {exposure.min()}")
        return cls(y, exposure)

    @property
    def known(self) -> dict[str, Float[np.ndarray, " n"]]:
        """The exposure of each."""
        return {"exposure": self.exposure}

    def kernel(self, prior: Prior) -> PoissonKernel:
        """The likelihood of each observation under each component of the prior."""
        return PoissonKernel(np.ones(len(self.y)), prior.locs[:, None], self.y, self.exposure)


@dataclass(frozen=True, eq=False)
class BinomialObservations(AbstractObservations):
    """y_j ~ Binomial(trials_j, x_j).

    Attributes:
        y: The successes, of shape (n,).
        trials: The trials of each, of shape (n,).
    """

    trials: Float[np.ndarray, " n"]
    family: ClassVar[str] = "binomial"

    @classmethod
    def of(cls, y: Numbers, trials: Numbers | None) -> "BinomialObservations":
        """Counts, checked.

        Raises:
            TypeError: If an argument holds anything but real numbers.
            ValueError: If trials are missing, or an argument is not whole numbers in range.
        """
        y = _counts(y)
        require(trials is not None, 'trials must be given for family="binomial"')
        trials = _for_each("trials", trials, y)
        whole = np.all((trials == np.round(trials)) & (trials > 0) & (y <= trials))
        require(bool(whole), "trials must be positive whole numbers, at least y")
        return cls(y, trials)

    @property
    def known(self) -> dict[str, Float[np.ndarray, " n"]]:
        """The trials of each."""
        return {"trials": self.trials}

    def kernel(self, prior: Prior) -> BinomialKernel:
        """The likelihood of each observation under each component of the prior."""
        return BinomialKernel(np.ones(len(self.y)), prior.locs[:, None], self.y, self.trials)


def _counts(y):
    y = finite_on_host("y", y)
    check_shape("y", y, ("n",))
    require(y.size > 0, "y must not be empty")
    whole = np.all((y == np.round(y)) & (y >= 0))
    require(bool(whole), "y must be counts: whole numbers of at least zero")
    return y


def _for_each(name, value, y):
    """A finite number for each observation, or one for all."""
    value = finite_on_host(name, value)
    fits = value.shape in ((), y.shape)
    require(fits, f"{name} must be a scalar or of shape {y.shape}, got {value.shape}")
    return np.broadcast_to(value, y.shape)


def observations(
    family: str,
    y: Numbers,
    sigma: Numbers | None = None,
    exposure: Numbers | None = None,
    trials: Numbers | None = None,
    projection: Numbers | None = None,
    covariates: Numbers | None = None,
) -> AbstractObservations:
    """The observations of a family.

    Raises:
        TypeError: As each family.
        ValueError: As each family, or if what belongs to another family is given.
    """
    normal = ("sigma", "projection", "covariates")
    takes = {"normal": normal, "poisson": ("exposure",), "binomial": ("trials",)}
    given = {"sigma": sigma, "exposure": exposure, "trials": trials}
    given |= {"projection": projection, "covariates": covariates}
    for name, value in given.items():
        fits = value is None or name in takes[family]
        require(fits, f'{name} must be None for family="{family}", which takes {takes[family]}')
    if family == "poisson":
        return PoissonObservations.of(y, exposure)
    if family == "binomial":
        return BinomialObservations.of(y, trials)
    if sigma is None:
        raise ValueError('sigma must be given for family="normal"')
    if projection is not None or np.ndim(check_reals("sigma", sigma)) == 3:
        return LinearObservations.of(y, sigma, projection)
    return NormalObservations.of(y, sigma, covariates)


# The sigma of an observation that says nothing: its square is still a number.
_NO_INFORMATION = 1e150
