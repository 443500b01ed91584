import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_arguments import (
    FAMILY,
    MADE,
    MIXTURE,
    OWN,
    Rows,
    Wrong,
    Y,
    cases,
    each,
    wrong_arrays,
    wrong_functions,
    wrong_keys,
    wrong_numbers,
    wrong_shapes,
)

import numpyro_neb as neb

EVENTS = [
    Wrong(
        "y: a batch",
        {"y": Y},
        ValueError,
        r"y must have the event shape \(2,\), got \(3, 2\).*vmap",
    ),
    Wrong("y: ints", {"y": np.zeros(2, int)}, TypeError, "y must hold floats, got int64"),
    Wrong("y: None", {"y": None}, TypeError, "y must hold floats, got None"),
]
LOCS = np.asarray(MIXTURE.locs)
FIELD = neb.ScoreField(lambda y: y / 2, 0.5, (2,))
LARGE = np.inf if jax.config.jax_enable_x64 else 1e300


def buffers(shape, name="network"):
    """Networks, event shapes, loc and scale; a right network returns `shape`."""
    networks = {
        "another shape": (lambda y, *t: jnp.zeros(5), r" must return .* got \(5,\)"),
        "no array": (lambda y, *t: "five", " must return an array of shape .* got str"),
        "ints": (lambda y, *t: jnp.zeros(shape, int), " must return floats, got int"),
        "another event": (lambda y, *t: y.reshape(3), r" must take one .*\(2,\); it"),
    }
    return [
        *wrong_functions(name),
        *(
            Wrong(f"{name}: {what}", {name: network}, ValueError, name + message)
            for what, (network, message) in networks.items()
        ),
        *wrong_shapes(2, None, (0,), (-2,), (2.0,), (True,), "2", ((2,),)),
        *wrong_arrays("loc", np.ones(2), floats=False, event=False),
        *wrong_arrays("scale", np.ones(2), floats=False, event=False, finite=False),
        *each("loc", ValueError, "loc must be a", {"another shape": np.ones(3)}),
        *each("scale", ValueError, "scale must be a", {"another shape": np.ones(3)}),
        *each("scale", ValueError, "scale must be positive, go", [0.0, -1.0, np.nan, [1.0, 0.0]]),
        *each("scale", ValueError, "scale must be finite, got inf", [np.inf]),
    ]


ROWS = (
    Rows(neb.AbstractEnergy, {}, [Wrong("itself", {}, TypeError, "abstract")]),
    Rows(neb.energies.AbstractEnergyFamily, {}, [Wrong("itself", {}, TypeError, "abstract")]),
    Rows(
        type(OWN),
        {},
        [
            Wrong(
                "not scalar",
                {"value": lambda y: y**2},
                ValueError,
                r"energy must return an array of shape \(\), got \(2,\)",
            ),
            Wrong("of ints", {"value": jnp.argmax}, ValueError, "energy must return floats, got i"),
            Wrong(
                "raises",
                {"value": lambda y: y @ 3},
                ValueError,
                r"energy must take one array .*\(2,\); it ra",
            ),
        ],
    ),
    Rows(neb.energies.AbstractScoreField, {}, [Wrong("itself", {}, TypeError, "abstract")]),
    Rows(
        neb.ScoreField,
        {"denoiser": lambda y: y / 2, "sigma": 0.5, "event_shape": (2,)},
        [*buffers((2,), "denoiser"), *wrong_numbers("sigma")],
    ),
    *(
        Rows(getattr(neb.ScoreField, name), {"self": FIELD}, EVENTS)
        for name in ("score", "denoise", "posterior")
    ),
    Rows(neb.AbstractEnergy.score, {"self": OWN}, EVENTS),
    Rows(neb.AbstractEnergy.denoise, {"self": OWN}, EVENTS),
    Rows(neb.AbstractEnergy.posterior, {"self": OWN}, EVENTS),
    *(
        Rows(getattr(type(energy), method), {"self": energy}, EVENTS)
        for energy in MADE.values()
        for method in ("__call__", "score", "denoise", "posterior")
    ),
    *(
        Rows(
            type(MADE[name]),
            {"network": MADE[name].network, "sigma": 0.5, "event_shape": (2,)},
            [*buffers(shape), *wrong_numbers("sigma")],
        )
        for name, shape in (("NetworkEnergy", ()), ("ResidualEnergy", (2,)))
    ),
    Rows(
        neb.ConditionalEnergy,
        {"network": FAMILY.network, "event_shape": (2,), "sigma_range": (0.1, 1.0)},
        [
            *buffers((2,)),
            *each(
                "sigma_range",
                ValueError,
                "sigma_range must be two",
                [0.5, (0.0, 1.0), (1.0, 0.5), (0.1, np.inf), (np.nan, 1.0), (0.1, 0.5, 1.0)],
            ),
            *each(
                "sigma_range",
                TypeError,
                "sigma_range must hold rea",
                [None, ("a", "b"), (True, False)],
            ),
        ],
    ),
    Rows(
        neb.ConditionalEnergy.at,
        {"self": FAMILY},
        [
            *wrong_numbers("sigma"),
            *each("sigma", ValueError, r"sigma must be in sigma_range = \(0.1, 1\)", [2.0]),
        ],
    ),
    Rows(neb.MixtureEnergy.at, {"self": MIXTURE}, wrong_numbers("sigma")),
    Rows(neb.MixtureEnergy.sample, {"self": MIXTURE}, wrong_keys()),
    Rows(
        neb.MixtureEnergy,
        {"locs": LOCS, "sigma": 0.5},
        [
            *wrong_arrays("locs", LOCS, floats=False, event=False),
            *wrong_numbers("sigma"),
            Wrong(
                "locs: a number",
                {"locs": 1.0},
                ValueError,
                r"locs must have shape \(K, \*event_shape\)",
            ),
            Wrong(
                "locs: none", {"locs": LOCS[:0]}, ValueError, "locs must have shape .* not be empty"
            ),
            Wrong(
                "locs: too large",
                {"locs": np.full((2, 2), LARGE)},
                ValueError,
                "locs must be finite",
            ),
            Wrong(
                "log_weights: 3",
                {"log_weights": np.zeros(3)},
                ValueError,
                r"log_weights must have sha",
            ),
            Wrong(
                "log_weights: NaN",
                {"log_weights": [np.nan, 0]},
                ValueError,
                "log_weights must hold a f",
            ),
            Wrong(
                "log_weights: str",
                {"log_weights": ["a", "b"]},
                TypeError,
                "log_weights must hold real",
            ),
            Wrong(
                "covariances: one",
                {"covariances": np.eye(2)},
                ValueError,
                r"covariances must have sh",
            ),
            *wrong_arrays(
                "covariances", np.stack([np.eye(2)] * 2), floats=False, event=False, none=False
            ),
            *each(
                "covariances",
                ValueError,
                "covariances must",
                {
                    "negative": np.stack([-np.eye(2)] * 2),
                    "lopsided": np.array([[[1.0, 1.0], [0.0, 1.0]]] * 2),
                },
            ),
        ],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
