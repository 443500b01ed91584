from types import SimpleNamespace

import numpy as np
import pytest
from wrong_arguments import (
    IMAGES,
    MIXTURE,
    PAIRS,
    WALK,
    Rows,
    Wrong,
    Y,
    cases,
    each,
    wrong_arrays,
    wrong_counts,
    wrong_energies,
    wrong_numbers,
)

import numpyro_neb as neb
from numpyro_neb import memories, plots

TRIPLE = dict.fromkeys(("clean", "noisy", "jump"), IMAGES)
FOUND = memories.FoundMemories(IMAGES, *(np.ones(3, int),) * 3, np.arange(3), np.ones(3))
EMPTY = memories.FoundMemories(IMAGES[:0], *(np.zeros(0, int),) * 5)
OVERLAPS = neb.sphere_overlaps(PAIRS, progress_bar=False)
LIMITS = ((-1.0, 1.0), (-1.0, 1.0))
IN_THREE = neb.MixtureEnergy(np.eye(3), 0.5)


def pictures(name, images, shape):
    """Wrong images, of that many dimensions, or none along the axis before the last two."""
    return [
        *wrong_arrays(name, images, floats=False, event=False),
        Wrong("flat", {name: images[0]}, ValueError, f"{name} must have shape{shape}"),
        Wrong("none", {name: images[..., :0, :, :]}, ValueError, f"{name} must hold at least one"),
    ]


FIT = neb.fit_mixture(PAIRS[:, 0], 1.0, prior="scale_mixture", progress_bar=False)
IMAGES_FIT = neb.fit_mixture(PAIRS, 1.0, progress_bar=False)
FITS = [
    Wrong("fit: an array", {"fit": PAIRS}, TypeError, "fit must be a MixtureFit, got "),
    Wrong("fit: pairs", {"fit": IMAGES_FIT}, ValueError, r"fit must be of observations of shape"),
]

ROWS = (
    Rows(
        plots.denoising,
        TRIPLE,
        [
            *pictures("clean", IMAGES, r" \(n, h"),
            *pictures("noisy", IMAGES, r" \(n, h"),
            *pictures("jump", IMAGES, r" \(n, h"),
            *each("noisy", ValueError, "noisy must have the shape of", {"one less": IMAGES[:2]}),
        ],
    ),
    Rows(
        plots.walk_jump,
        {},
        [
            *pictures("x", IMAGES[None], ""),
            Wrong(
                "x: many",
                {"x": np.zeros((1, 201, 4, 5))},
                ValueError,
                "x must hold at most 200 draws",
            ),
            Wrong("x: data", {"x": SimpleNamespace(posterior={})}, TypeError, "give its posterior"),
        ],
    ),
    Rows(plots.recall_paths, {}, pictures("paths", IMAGES[None], "")),
    Rows(
        plots.memories,
        {"found": FOUND},
        [
            *wrong_counts("columns"),
            Wrong(
                "found: an int", {"found": 3}, TypeError, "found must be a FoundMemories, got int"
            ),
            Wrong(
                "found: an array",
                {"found": Y},
                TypeError,
                "found must be a FoundMemories, got float32",
            ),
            Wrong(
                "found: none", {"found": EMPTY}, ValueError, "found must hold at least one memory"
            ),
            Wrong(
                "found: no images",
                {"found": FOUND._replace(attractors=Y)},
                ValueError,
                r"found.attractors must have shape \(n, height, width\), got \(3, 2\)",
            ),
        ],
    ),
    Rows(
        plots.overlaps,
        {"summary": OVERLAPS},
        [
            Wrong(
                "summary", {"summary": 3}, TypeError, "summary must be a SphereOverlaps, got int"
            ),
            *wrong_numbers("sigma", none=False),
        ],
    ),
    Rows(
        plots.energy_transitions,
        {},
        each(
            "data",
            ValueError,
            "data must be what to_arviz or stream ret",
            {"an array": Y, "none": None, "an MCMC": WALK, "a dict": {}},
        ),
    ),
    Rows(
        plots.landscape,
        {"energy": MIXTURE, "limits": LIMITS},
        [
            *wrong_energies(),
            Wrong(
                "energy: 3 d",
                {"energy": IN_THREE},
                ValueError,
                r"energy must have the event shape \(2,\)",
            ),
            *wrong_arrays("limits", LIMITS, floats=False, event=False, none=False),
            *each("limits", ValueError, "limits must be given if there are no data", [None]),
            *wrong_arrays("data", Y, floats=False, event=False, none=False),
            *each("data", ValueError, r"data must have shape \(n, 2\), got \(2,\)", {"one": Y[0]}),
            *wrong_arrays("walk", Y, floats=False, event=False, none=False),
            *each(
                "limits",
                ValueError,
                "limits must be .* rising",
                [1.0, (0.0, 1.0), ((1.0, 0.0), (0.0, 1.0))],
            ),
            *each(
                "walk", ValueError, r"walk must have shape \(draws, 2\), got \(2,\)", {"one": Y[0]}
            ),
        ],
    ),
    Rows(
        plots.marginals,
        {"data": PAIRS, "draws": PAIRS},
        [
            *wrong_arrays("data", PAIRS, floats=False, event=False),
            *wrong_arrays("draws", PAIRS, floats=False, event=False),
            *each("data", ValueError, "data must hold at least one row", {"none": PAIRS[:0]}),
            *each(
                "draws", ValueError, "draws must have the 2 columns of data", {"one": PAIRS[:, :1]}
            ),
            *each("axes", ValueError, "axes must hold at least 2 matplotlib axes", [[3, 4]]),
        ],
    ),
    Rows(plots.shrinkage, {"fit": FIT}, [*FITS, *wrong_numbers("probability", share=True)]),
    Rows(plots.prior, {"fit": FIT}, FITS),
    Rows(plots.fdr, {"fit": FIT}, [*FITS, *wrong_numbers("level", share=True)]),
    Rows(
        plots.evaluation,
        {},
        [
            Wrong(
                "an int", {"evaluation": 3}, TypeError, "evaluation must be an Evaluation, got int"
            ),
            Wrong(
                "an array",
                {"evaluation": Y},
                TypeError,
                "evaluation must be an Evaluation, got float32",
            ),
        ],
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
