import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from numpyro.handlers import seed
from wrong_arguments import (
    KEY,
    MIXTURE,
    NAN,
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
)

import numpyro_neb as neb
from numpyro_neb import empirical_bayes

DENSITY = neb.SmoothedDensity(MIXTURE, validate_args=True)
STACKED = neb.SmoothedDensity(
    eqx.filter_vmap(lambda s: neb.MixtureEnergy(jnp.zeros((1, 2)), s))(jnp.ones(3))
)
FAMILY = neb.ConditionalEnergy(lambda z, t: t * z, (2,), (0.1, 2.0))
BARE = neb.ConditionalEnergy(lambda z, t: t * z, (2,), (0.1, 2.0), preconditioned=False)
FAMILY_OF_NAN = neb.ConditionalEnergy(lambda z, t: jnp.nan * z, (2,), (0.1, 2.0))
ANOTHER_BATCH = each(
    "value",
    ValueError,
    r"value must have leading dimensions that broadcast with \(3,\), got \(2,\)",
    {"another batch": Y[:2]},
)

ROWS = (
    Rows(
        empirical_bayes.log_normalizer,
        {"energy": MIXTURE, "key": KEY, "progress_bar": False},
        [
            *wrong_energies(),
            *wrong_keys(),
            *wrong_counts("num_particles", "num_temperatures", least=2),
            *wrong_counts("num_steps"),
            Wrong(
                "energy: NaN",
                {"energy": NAN, "num_particles": 2, "num_temperatures": 2},
                FloatingPointError,
                "phi is NaN",
            ),
        ],
    ),
    Rows(
        empirical_bayes.normalized,
        {"family": FAMILY, "key": KEY, "num_levels": 6, "num_particles": 2, "progress_bar": False},
        [
            *each("family", TypeError, "family must be a ConditionalEnergy", {"one": MIXTURE}),
            *each("family", ValueError, "family must have constants", {"of 0.1": BARE}),
            *wrong_keys(),
            *wrong_counts("num_particles", least=2),
            *wrong_counts("num_levels", least=6),
            *wrong_counts("num_steps"),
            *each("family", FloatingPointError, "phi is NaN", {"NaN": FAMILY_OF_NAN}),
        ],
    ),
    Rows(
        neb.SmoothedDensity,
        {"energy": MIXTURE},
        [*wrong_energies(), *wrong_counts("num_steps")],
    ),
    Rows(neb.SmoothedDensity.sample, {"self": DENSITY}, wrong_keys()),
    Rows(
        neb.SmoothedDensity.log_prob,
        {"self": DENSITY},
        wrong_arrays("value", Y, floats=True),
    ),
    Rows(
        neb.SmoothedDensity.denoise,
        {"self": DENSITY},
        wrong_arrays("value", Y, floats=True, finite=False),
    ),
    Rows(neb.SmoothedDensity.log_prob, {"self": STACKED}, ANOTHER_BATCH),
    Rows(neb.SmoothedDensity.denoise, {"self": STACKED}, ANOTHER_BATCH),
    Rows(
        neb.learned_prior,
        {"name": "x", "energy": MIXTURE},
        [
            *wrong_energies(family=False),
            *wrong_choices("covariance"),
            *each("name", TypeError, "name must be a string, got ", [3, None, b"x"]),
        ],
        call=seed(neb.learned_prior, jax.random.key(0)),
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
