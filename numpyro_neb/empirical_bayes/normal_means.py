"""Normal means, rates and probabilities: the law of X from noisy observations alone."""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, PRNGKeyArray
from numpyro.util import find_stack_level
from tqdm.auto import tqdm

from numpyro_neb._internal.checks import (
    Numbers,
    check_choice,
    check_count,
    check_key,
    check_positive,
    check_shape,
    check_squares,
    finite_on_host,
    require,
)
from numpyro_neb.empirical_bayes import grids, priors
from numpyro_neb.empirical_bayes.covariates import fit_covariates
from numpyro_neb.empirical_bayes.kernels import AbstractKernel, LinearKernel, NormalKernel
from numpyro_neb.empirical_bayes.location_scale import location_scale as fit_location_scale
from numpyro_neb.empirical_bayes.mixture_fit import MixtureFit
from numpyro_neb.empirical_bayes.observations import (
    AbstractObservations,
    LinearObservations,
    NormalObservations,
    PoissonObservations,
    Prior,
    observations,
)
from numpyro_neb.empirical_bayes.solver import MixtureWeights, maximise
from numpyro_neb.empirical_bayes.spline import spline_weights

PriorName = Literal["npmle", "normal", "point_normal", "scale_mixture", "unimodal", "spline"]
_PRIORS = get_args(PriorName)


def fit_mixture(
    y: Numbers,
    sigma: Numbers | None = None,
    *,
    prior: PriorName = "npmle",
    mode: float | Literal["estimate"] = 0.0,
    locs: Numbers | None = None,
    location_scale: bool = False,
    covariates: Numbers | None = None,
    key: PRNGKeyArray | None = None,
    family: Literal["normal", "poisson", "binomial"] = "normal",
    exposure: Numbers | None = None,
    trials: Numbers | None = None,
    projection: Numbers | None = None,
    max_gap: float = 1e-3,
    max_iterations: int = 200,
    progress_bar: bool = True,
) -> MixtureFit:
    r"""The law of X by maximum likelihood, from noisy Y alone, and the law of each X given its y.

    Y_j = X_j + N(0, sigma_j^2 I), and the X_j are draws of an unknown law, a mixture of components
    of a family. Their weights w maximise sum_j log sum_i w_i p(y_j | i), a concave function. If you
    have clean X, use `MixtureEnergy(x, sigma)` or `fit` instead.

    What X is under each prior:

    - "npmle": of any law, with point masses anywhere (Kiefer and Wolfowitz 1956).
    - "normal": N(mode, tau^2) (Efron and Morris 1973).
    - "point_normal": the mode, or N(mode, tau^2) (Johnstone and Silverman 2004).
    - "scale_mixture": a mixture of N(mode, tau^2) over tau, zero included (Stephens 2017).
    - "unimodal": of any law with one mode: uniform laws that start or end there (Stephens 2017).
      Both are fitted with three more observations of exactly the mode, so that sign rates hold.
    - "spline": of a smooth log density, a natural spline of dimension 7 (5 for counts; Efron 2016).

    The nonparametric estimate has the least squared error if nothing is known of X, but its
    intervals are too short: for intervals and sign rates take "scale_mixture" if X has a mode that
    you know, such as no effect, and "unimodal" if it is skewed about it. "npmle", "scale_mixture"
    and "unimodal" are convex problems, solved by Newton's method on an active set until the duality
    gap, a bound on how far the log-likelihood is below the best, is at most `max_gap`. All of it
    runs in float64 on the CPU.

    Args:
        y: Observations, of shape (n,), or (n, *event_shape) in several dimensions ("npmle" only).
            NaN where sigma is infinite or, with covariances, for a missing coordinate.
        sigma: The noise's standard deviation, one for all or one for each, of shape (n,): infinite
            for a missing observation, whose posterior is the prior, and zero for an X that is
            known; neither is fitted to. Covariances have shape (n, p, p). None for counts.
        prior: The family of the law of X.
        mode: The mode of "normal", "point_normal", "scale_mixture" and "unimodal", or "estimate".
        locs: Where X may be under "npmle", of shape (K, *event_shape). By default, in one
            dimension, a uniform grid of 300 points over the range of y, finer around observations
            with a sigma below ten spacings, and including zero if that is in the range; in several,
            the observations themselves (if there are few of them or many dimensions, each keeps its
            own location and nothing shrinks), or with covariances a lattice that adapts.
        location_scale: Whether X given sigma is m(sigma) + s(sigma) eta, with m and s estimated by
            local linear regression and the prior that of eta: for precision that predicts X.
        covariates: Columns of shape (n, p) that the law of X may depend on, with sigma: a network
            computes a mixture of ten normal laws from them, trained by Stein's unbiased risk
            estimate through `fit` for 2,000 steps. `prior`, `mode` and `locs` keep their defaults.
        key: A JAX random key for the training; only with covariates.
        family: "normal" noise, or y ~ Poisson(exposure X) or Binomial(trials, X); the priors are
            then "npmle" and "spline".
        exposure: The exposure of Poisson counts, one for all or one for each; by default 1.
        trials: The trials of binomial counts, one for all or one for each.
        projection: R_j of Y_j = R_j X_j + noise, of shape (p, d) or (n, p, d).
        max_gap: The duality gap to reach, in units of the log-likelihood of all data.
        max_iterations: Maximum number of passes over all candidates.
        progress_bar: Whether to show a tqdm bar if it takes longer than a second.

    Returns:
        The fit: `prior`; `energy`, the mixture; `log_likelihood`; `posterior_mean`,
        `posterior_std`, `lfsr`, `lfdr`, `q_values` of each observation; `posterior`, with
        intervals; `select`, `rank`, `to_dataframe`; `predict` for others.

    Raises:
        TypeError: If an argument holds anything but real numbers.
        ValueError: If an argument is out of range, does not fit y, or does not go with the family
            or the prior.

    Warns:
        UserWarning: If max_iterations was too few, with the gap reached; or if the grid had to be
            coarser than a fifth of sigma.

    Reference:
        Koenker and Mizera, JASA 109 (2014), for the dual; Wang, JRSS B 69 (2007), for the
        constrained Newton method; Stephens, Biostatistics 18 (2017); Efron, Biometrika 103 (2016);
        Chen, "Empirical Bayes when estimation precision predicts parameters" (2022); Bovy, Hogg and
        Roweis, Annals of Applied Statistics 5 (2011), for projections.

    Example:
        >>> import numpy as np, numpyro_neb as neb
        >>> rng = np.random.default_rng(0)
        >>> x = np.where(rng.random(1000) < 0.9, 0.0, 5.0)  # nine in ten are zero
        >>> y = x + rng.normal(size=1000)
        >>> fit = neb.fit_mixture(y, 1.0)
        >>> print(f"{np.sum((y - x) ** 2):.0f}, {np.sum((fit.posterior_mean - x) ** 2):.0f}")
        1052, 65
    """
    check_choice("family", family, ("normal", "poisson", "binomial"))
    check_choice("prior", prior, _PRIORS)
    max_gap = check_positive("max_gap", max_gap)
    max_iterations = check_count("max_iterations", max_iterations)
    seen = observations(family, y, sigma, exposure, trials, projection, covariates)
    mode = mode if mode == "estimate" else float(finite_on_host("mode", mode))
    _check_choices(seen, prior, mode, locs, location_scale)
    require(
        (covariates is None) == (key is None), "key must be given with covariates, and only then"
    )
    if key is not None:
        law = _by_covariates(seen, prior, location_scale, check_key(key), progress_bar)
        return MixtureFit(law, seen, np.nan, 0, _level(seen), 0.0)
    with tqdm(total=max_iterations, disable=not progress_bar, delay=1, desc="fit_mixture") as bar:
        solver = {"max_gap": max_gap, "max_iterations": max_iterations, "bar": bar}
        if isinstance(seen, NormalObservations):
            law, found, blur = _normal_noise(seen, prior, mode, locs, location_scale, solver)
        elif isinstance(seen, LinearObservations):
            law, found, blur = *_several(seen, locs, solver), 0.0
        else:
            # The means of large counts hang on atoms of little weight.
            solver["max_gap"] = min(max_gap, 1e-6)
            law, found, blur = *_counts(seen, prior, locs, solver), 0.0
    if found.gap > max_gap:
        warnings.warn(
            f"fit_mixture stopped after max_iterations = {max_iterations} with a duality gap of"
            f" {found.gap:.3g}, above max_gap = {max_gap:.3g}",
            stacklevel=find_stack_level(),
        )
    return MixtureFit(law, seen, found.gap, found.num_iterations, _level(seen), blur)


def _check_choices(seen, prior, mode, locs, location_scale):
    line = isinstance(seen, NormalObservations) and seen.y.ndim == 1
    counts = seen.noise is None
    allowed = ("npmle", "spline") if counts else _PRIORS if line else ("npmle",)
    where = "counts" if counts else "X in several dimensions"
    require(prior in allowed, f"prior must be one of {allowed} for {where}, got {prior!r}")
    fixed = mode == 0 or prior in ("normal", "point_normal", "scale_mixture", "unimodal")
    require(fixed, f"mode must be 0 for prior={prior!r}, which has none")
    require(locs is None or prior == "npmle", f"locs must be None for prior={prior!r}")
    require(line or not location_scale, "location_scale must be False unless y has shape (n,)")
    whole = locs is None or not location_scale
    require(whole, "locs must be None with location_scale, which moves them")


def _level(seen):
    if isinstance(seen, NormalObservations):
        return float(np.median(seen.sigma[seen.informative]))
    if isinstance(seen, LinearObservations):
        each = np.diagonal(seen.covariances, axis1=1, axis2=2)
        return float(np.sqrt(np.median(each)))
    return 1.0


def _normal_noise(seen, prior, mode, locs, location_scale, solver):
    used = seen.informative
    y, sigma = seen.y[used], seen.sigma[used]
    moved = fit_location_scale(y, sigma) if location_scale else None
    if moved is not None:
        shift, stretch = moved(sigma)
        y, sigma = (y - shift) / stretch, sigma / stretch
    if prior == "npmle":
        places = candidates(y, sigma, locs)
        found = _npmle(_kernel(y, sigma, places), solver)
        active = places[found.active]
        law = Prior(prior, active, np.zeros(len(active)), found.weights, moved)
        return law, found, 0.0 if location_scale else _blur(places, sigma)
    data = priors.NormalData(*_compressed(y, sigma))
    if prior == "spline":
        made = priors.spline(data)
    else:
        family = partial(getattr(priors, prior), data, solver=solver)
        one = lambda mode: family(mode=mode)  # noqa: E731
        made = priors.with_best_mode(data, one)[1] if mode == "estimate" else one(mode)
    law = Prior(prior, made.locs, made.variances, made.weights, moved)
    found = MixtureWeights(np.arange(len(made.locs)), made.weights, made.gap, made.num_iterations)
    return law, found, 0.0


def _by_covariates(seen, prior, location_scale, key, progress_bar):
    plain = prior == "npmle" and not location_scale
    require(plain, "prior and location_scale must keep their defaults with covariates")
    used = seen.informative
    law = fit_covariates(
        seen.y[used],
        seen.sigma[used],
        seen.covariates[used],
        key=key,
        num_steps=_TRAINING_STEPS,
        progress_bar=progress_bar,
    )
    empty = np.zeros(0)
    return Prior("covariates", empty, empty, empty, by_covariates=law)


def _compressed(y, sigma):
    """The different pairs of y and sigma, and how often each is there."""
    pairs, counts = np.unique(np.stack([y, sigma], axis=1), axis=0, return_counts=True)
    return counts.astype(float), pairs[:, 0], pairs[:, 1]


def _kernel(y, sigma, locs):
    if y.ndim == 1:
        counts, y, sigma = _compressed(y, sigma)
        return NormalKernel(counts, y[:, None], sigma, locs[:, None], np.zeros(len(locs)))
    flat = y.reshape(len(y), -1), sigma, locs.reshape(len(locs), -1)
    return NormalKernel(np.ones(len(y)), *flat, np.zeros(len(locs)))


def _npmle(kernel: NormalKernel, solver: dict[str, Any]) -> MixtureWeights:
    if kernel.locs.shape[1] > 1:
        return maximise(kernel, *grids.by_em(kernel), **solver)
    start = grids.near_each(kernel.locs[:, 0], kernel.y[:, 0], kernel.sigma)
    weights = None
    rows, size = len(kernel.counts), _FEW
    while 2 * size < rows:
        few = kernel.take(slice(None, None, rows // size))
        share = few.counts.sum() / kernel.counts.sum()
        first = maximise(few, start, weights, **solver | {"max_gap": solver["max_gap"] * share})
        start, weights, size = first.active, first.weights, 8 * size
    return maximise(kernel, start, weights, **solver)


def candidates(
    y: Float[np.ndarray, "n *event"], sigma: Float[np.ndarray, " n"], locs: Numbers | None
) -> Float[np.ndarray, "K *event"]:
    """Where X may be under "npmle": `locs`, checked, or the default."""
    if locs is not None:
        locs = finite_on_host("locs", locs, in_jax=True)
        check_shape("locs", locs, ("K", *y.shape[1:]))
        check_squares("locs", locs, sigma.min())
        return np.unique(locs, axis=0)
    return np.unique(y, axis=0) if y.ndim > 1 else grids.line(y, sigma)


def _blur(candidates, sigma):
    """Two standard errors of a second moment near zero; zero if the candidates leave a gap."""
    sizes = np.abs(candidates[candidates != 0])
    if sizes.min(initial=np.inf) >= np.median(sigma) / 4:
        return 0.0
    # Var(y^2) = 2 sigma^4 of noise; each observation weighs by its inverse.
    least = sigma.min()
    return 2 * float(np.sqrt(2 / np.sum((least / sigma) ** 4))) * least**2


def _several(
    seen: LinearObservations, locs: Any, solver: dict[str, Any]
) -> tuple[Prior, MixtureWeights]:
    dim = seen.projection.shape[2]
    if locs is not None:
        given = finite_on_host("locs", locs)
        check_shape("locs", given, ("K", dim))
        candidates = np.unique(given, axis=0)
    else:
        candidates = _box(seen)
    kernel = LinearKernel.of(seen.y, seen.covariances, seen.projection, candidates)
    rounds = 0 if locs is not None else 10
    kernel, found = grids.several(kernel, solver, rounds)
    active = kernel.locs[found.active]
    return Prior("npmle", active, np.zeros(len(active)), found.weights), found


def _box(seen):
    """A lattice over the range of least-squares estimates of the coordinates of X."""
    d = seen.projection.shape[2]
    kernel = LinearKernel.of(seen.y, seen.covariances, seen.projection, np.zeros((1, d)))
    # Each X where its own observation puts it, pulled slightly to the one that suits all.
    whole = np.linalg.pinv(kernel.precision.sum(0), hermitian=True) @ kernel.pull.sum(0)
    ridge = 1e-6 * np.trace(kernel.precision, axis1=1, axis2=2)[:, None, None] * np.eye(d)
    own = (
        np.linalg.solve(
            kernel.precision + ridge + 1e-300 * np.eye(d),
            (kernel.pull - kernel.precision @ whole)[..., None],
        )[..., 0]
        + whole
    )
    lattice = grids.lattice(own.min(0), own.max(0), _LATTICE)
    return np.unique(np.vstack([lattice, own[:: max(1, len(own) // 500)]]), axis=0)


def _counts(
    seen: AbstractObservations, prior: str, locs: Any, solver: dict[str, Any]
) -> tuple[Prior, MixtureWeights]:
    rows, counts = np.unique(
        np.stack([seen.y, *seen.known.values()], axis=1), axis=0, return_counts=True
    )
    few = type(seen)(*rows.T)
    poisson = isinstance(seen, PoissonObservations)
    size = rows[:, 1]
    scale = (np.sqrt, np.square) if poisson else (_to_angle, _from_angle)

    def kernel_at(locs: Any) -> AbstractKernel:
        shape = Prior(prior, locs, np.zeros(len(locs)), np.ones(len(locs)))
        return replace(few.kernel(shape), counts=counts.astype(float))

    rates = rows[:, 0] / size
    # A tenth of the standard deviation of an observation's square root, or arc sine.
    spacing = 0.05 / np.sqrt(size.max())
    if prior == "spline":
        low, high = scale[0](rates.min()), scale[0](rates.max())
        places = scale[1](np.linspace(low, high, 200)) if high > low else rates[:1]
        places = np.unique(np.clip(places, 1e-12, None if poisson else 1 - 1e-12))
        weights = spline_weights(kernel_at(places), places, 5, 1.0)
        found = MixtureWeights(np.arange(len(places)), weights, np.nan, 0)
    elif locs is None:
        places, found = grids.refined(kernel_at, scale, (rates.min(), rates.max()), spacing, solver)
    else:
        places = np.unique(finite_on_host("locs", locs))
        found = maximise(kernel_at(places), np.arange(len(places)), **solver)
    active = places[found.active]
    return Prior(prior, active, np.zeros(len(active)), found.weights), found


def _to_angle(probability):
    return np.arcsin(np.sqrt(probability))


def _from_angle(angle):
    return np.sin(np.clip(angle, 0, np.pi / 2)) ** 2


# Of more observations, the estimate starts from that on so many of them.
_FEW = 20_000
# Of the network for covariates.
_TRAINING_STEPS = 2000
# The points of the first lattice in several dimensions.
_LATTICE = 2500
