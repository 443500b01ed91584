import jax
import numpy as np
import pytest
from wrong_arguments import (
    MADE,
    MIXTURE,
    PAIRS,
    Rows,
    Wrong,
    Y,
    cases,
    each,
    wrong_arrays,
    wrong_choices,
    wrong_counts,
    wrong_energies,
    wrong_keys,
    wrong_numbers,
)

import numpyro_neb as neb
from numpyro_neb import empirical_bayes

GOOD = {"energy": MIXTURE, "y": Y}
COMPONENTS = GOOD | {"num_components": 1}
OBSERVED = [*wrong_energies(), *wrong_arrays("y", Y, floats=True)]
IN_CHUNKS = [*OBSERVED, *wrong_counts("chunk_size")]
PROBABILITY = wrong_numbers("probability", share=True)
FIT = neb.fit_mixture(PAIRS[:, 0], 1.0, progress_bar=False)
LAW = neb.posterior_distribution(MADE["ResidualEnergy"], Y)
NOT_POSITIVE = [0.0, -1.0, np.nan, np.inf, [1.0, 1.0, -1.0]]
SIGMAS = each("sigma", ValueError, "sigma must be positive and finite", NOT_POSITIVE)

ROWS = (
    Rows(neb.posterior_mean, GOOD, IN_CHUNKS),
    Rows(neb.posterior_std, GOOD, IN_CHUNKS),
    Rows(neb.posterior_covariance, GOOD, [*IN_CHUNKS, *wrong_choices("covariance")]),
    Rows(neb.posterior_distribution, GOOD, OBSERVED),
    Rows(empirical_bayes.credible_interval, GOOD, [*IN_CHUNKS, *PROBABILITY]),
    Rows(empirical_bayes.local_false_sign_rate, GOOD, IN_CHUNKS),
    Rows(
        empirical_bayes.posterior_components,
        COMPONENTS,
        [
            *IN_CHUNKS,
            *wrong_counts("num_components", "max_iterations"),
            *wrong_numbers("tolerance"),
            *each("num_components", ValueError, "num_components must be at most d", [3]),
        ],
    ),
    Rows(
        neb.fit_mixture,
        {"y": PAIRS, "sigma": 1.0},
        [
            *wrong_arrays("y", PAIRS, floats=False, event=False),
            *wrong_arrays("locs", PAIRS, floats=False, event=False, none=False),
            *wrong_numbers("max_gap"),
            *wrong_counts("max_iterations"),
            *each(
                "y",
                ValueError,
                r"y must have shape \(n,\) or \(n, \*event_shape\)",
                {"none": [], "a number": 1.0},
            ),
            *each(
                "locs",
                ValueError,
                r"locs must have shape \(K, 2\)",
                {"another event": PAIRS[:, 0], "none": PAIRS[:0]},
            ),
            Wrong(
                "sigma: two",
                {"sigma": [1.0, 1.0]},
                ValueError,
                r"sigma must be a scalar or of shape",
            ),
            Wrong(
                "sigma: bool", {"sigma": True}, TypeError, "sigma must hold real numbers, got bool"
            ),
            *SIGMAS,
        ],
    ),
    Rows(neb.MixtureFit.predict, {"self": FIT, "y": PAIRS[:, 0]}, SIGMAS),
    Rows(
        neb.MixtureFit.predict,
        {"self": FIT, "sigma": 1.0},
        each("y", ValueError, r"y must have shape \(m,\), got \(3, 2\)", {"another event": PAIRS}),
    ),
    Rows(neb.MixtureFit.sample, {"self": FIT}, wrong_keys()),
    Rows(
        neb.MixtureFit.rank,
        {"self": FIT, "key": jax.random.key(0)},
        [*wrong_keys(), *wrong_counts("num_samples")],
    ),
    Rows(neb.MixtureFit.select, {"self": FIT}, wrong_numbers("fdr", share=True)),
    Rows(
        empirical_bayes.robust_interval,
        {"fit": FIT},
        [
            *PROBABILITY,
            *each("kurtosis", ValueError, "kurtosis must be at least 1", [0.5, np.nan]),
            *wrong_arrays("covariates", PAIRS, floats=False, event=False, none=False),
            *wrong_arrays("weights", PAIRS[:, 0], floats=False, event=False, none=False),
            *each("weights", ValueError, "weights must not be negative", [[1.0, -1.0, 1.0]]),
        ],
    ),
    Rows(
        empirical_bayes.prior_moments,
        {"y": PAIRS[:, 0], "sigma": 1.0},
        [*wrong_arrays("y", PAIRS[:, 0], floats=False, event=False), *SIGMAS],
    ),
    Rows(
        empirical_bayes.cva,
        {"second_moment": 1.0},
        [
            *each("second_moment", ValueError, "second_moment must be finite", [-1.0, np.inf]),
            *each("kurtosis", ValueError, "kurtosis must be at least 1", [0.5, np.nan]),
            *wrong_numbers("alpha", share=True),
        ],
    ),
    Rows(type(FIT.posterior).sample, {"self": FIT.posterior}, wrong_keys()),
    Rows(type(FIT.posterior).interval, {"self": FIT.posterior}, PROBABILITY),
    Rows(type(LAW).sample, {"self": LAW}, wrong_keys()),
    Rows(type(LAW).interval, {"self": LAW}, PROBABILITY),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
