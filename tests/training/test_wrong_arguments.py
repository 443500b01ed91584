import jax
import numpy as np
import optax
import pytest
from wrong_arguments import (
    FAMILY,
    KEY,
    MIXTURE,
    NAN,
    TRAINED,
    Rows,
    Wrong,
    Y,
    cases,
    each,
    wrong_arrays,
    wrong_counts,
    wrong_energies,
    wrong_functions,
    wrong_keys,
    wrong_numbers,
)

import numpyro_neb as neb
from numpyro_neb.training import devices

BATCH = {"energy": MIXTURE, "key": KEY}
CLEAN = [
    *wrong_arrays("x", Y, floats=True),
    *each("x", ValueError, "x must have sh", {"none": Y[:0]}),
]
NOISY = [
    *wrong_arrays("y", Y, floats=True),
    *each("y", ValueError, "y must have sh", {"none": Y[:0]}),
]
LIKELIHOOD = neb.MaximumLikelihood(num_chains=2, num_steps=1)
CHAINS = LIKELIHOOD.init(TRAINED["energy"], KEY)
WEIGHT = "denoising_weight must be "

ROWS = (
    Rows(
        neb.denoising_loss,
        BATCH | {"x": Y},
        [*wrong_energies(family=False), *wrong_keys(), *CLEAN],
    ),
    Rows(
        neb.dual_score_loss,
        {"energy": FAMILY, "x": Y, "key": KEY},
        [
            *wrong_energies(family=False),
            *wrong_keys(),
            *CLEAN,
            *each("energy", TypeError, "energy must be a family of noise levels", [MIXTURE]),
            Wrong(
                "energy: of release 0.1",
                {
                    "energy": neb.ConditionalEnergy(
                        FAMILY.network, (2,), (0.1, 1.0), preconditioned=False
                    )
                },
                ValueError,
                "energy must have constants for its levels",
            ),
            *each("weight", ValueError, "weight must be at least 0", [-0.1, np.inf, np.nan]),
            *each("weight", TypeError, "weight must be a number", ["1", None]),
        ],
    ),
    Rows(
        neb.sure_loss,
        BATCH | {"y": Y},
        [*wrong_energies(), *wrong_keys(), *NOISY, *wrong_counts("num_probes", none=False)],
    ),
    Rows(
        neb.MaximumLikelihood,
        {},
        [
            *wrong_counts("num_steps"),
            *wrong_counts("num_chains", least=2),
            *each(
                "denoising_weight", ValueError, f"{WEIGHT}at least 0 and finite, got -0.1", [-0.1]
            ),
            *each(
                "denoising_weight", ValueError, f"{WEIGHT}at least 0 and finite, got nan", [np.nan]
            ),
            *each(
                "denoising_weight", ValueError, f"{WEIGHT}at least 0 and finite, got inf", [np.inf]
            ),
            *each("denoising_weight", ValueError, f"{WEIGHT}a scalar", [[0.1, 0.2]]),
            *each("denoising_weight", TypeError, f"{WEIGHT}a number, got None", [None]),
            Wrong(
                "integrator",
                {"integrator": "BAOAB"},
                TypeError,
                "integrator must be one of numpyro_neb",
            ),
        ],
    ),
    Rows(
        neb.MaximumLikelihood.__call__,
        {"self": LIKELIHOOD, "energy": TRAINED["energy"], "x": Y, "key": KEY, "state": CHAINS},
        [*wrong_energies(family=False), *wrong_keys(), *CLEAN],
    ),
    Rows(
        neb.fit,
        TRAINED,
        [
            *wrong_energies(family=False),
            *wrong_arrays("data", Y, floats=True),
            *wrong_keys(),
            *wrong_counts("num_steps"),
            *wrong_counts("batch_size", "validate_every", none=False),
            *wrong_numbers("ema_decay", share=True, none=False),
            *wrong_functions("objective"),
            *wrong_functions("callback", none=False),
            Wrong(
                "data: none", {"data": Y[:0]}, ValueError, "data must have shape .* n at least 1"
            ),
            Wrong("no batch_size", {"batch_size": None}, ValueError, "batch_size must be given if"),
            Wrong(
                "optimizer: 1e-3",
                {"optimizer": 1e-3},
                TypeError,
                "optimizer must be an optax.Gradient",
            ),
            Wrong(
                "optimizer: fn",
                {"optimizer": optax.adam},
                TypeError,
                "optimizer must be an optax.Grad",
            ),
            Wrong(
                "checkpoint_dir",
                {"checkpoint_dir": 3},
                TypeError,
                "checkpoint_dir must be a path, got",
            ),
            Wrong(
                "objective: a class",
                {"objective": neb.MaximumLikelihood},
                TypeError,
                r"objective must be an object, as in MaximumLikelihood\(\), got the class",
            ),
            Wrong(
                "sharding",
                {"sharding": 3},
                TypeError,
                "sharding must be a jax.sharding.NamedSharding",
            ),
            Wrong(
                "objective: a vector",
                {"objective": lambda energy, x, key: x[:, 0]},
                ValueError,
                r"objective must return an array of shape \(\), got \(2,\)",
            ),
            Wrong("energy: NaN", {"energy": NAN}, FloatingPointError, "the loss is nan at step 0"),
        ],
    ),
    Rows(
        neb.fit,
        TRAINED | {"validation_data": Y},
        [
            *wrong_arrays("validation_data", Y, floats=True, none=False),
            *wrong_counts("patience", none=False),
        ],
    ),
    Rows(
        devices.devices_of,
        {},
        each(
            "sharding",
            TypeError,
            "sharding must be a jax.sharding.NamedSharding of a mesh",
            [3, jax.devices()[0], "batch"],
        ),
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
