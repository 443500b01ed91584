import jax.numpy as jnp
import pytest
from wrong_arguments import MIXTURE, Rows, Wrong, cases, wrong_counts, wrong_keys, wrong_numbers

from numpyro_neb import posteriors

POSTERIOR = MIXTURE.posterior(jnp.zeros(2))
ABSTRACT = [Wrong("itself", {}, TypeError, "abstract")]

ROWS = (
    Rows(posteriors.AbstractPosterior, {}, ABSTRACT),
    Rows(posteriors.AbstractSpread, {}, ABSTRACT),
    Rows(posteriors.Isotropic, {}, wrong_counts("num_probes")),
    Rows(
        posteriors.LevelsPosterior,
        {"at": MIXTURE.at, "sigma": 1.0, "lowest": 0.5, "y": jnp.zeros(2)},
        [
            *wrong_counts("num_levels"),
            *wrong_counts("num_steps", least=0),
            *wrong_numbers("sigma"),
            *wrong_numbers("lowest"),
            Wrong("above", {"lowest": 2.0}, ValueError, "lowest must be at most sigma, 1, got 2"),
        ],
    ),
    Rows(posteriors.MixturePosterior.sample, {"self": POSTERIOR}, wrong_keys()),
    Rows(
        posteriors.MixturePosterior.interval,
        {"self": POSTERIOR},
        wrong_numbers("probability", share=True),
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
