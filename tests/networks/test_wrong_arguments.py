import numpy as np
import pytest
from wrong_arguments import (
    KEY,
    Rows,
    Wrong,
    cases,
    each,
    network,
    wrong_choices,
    wrong_counts,
    wrong_functions,
    wrong_keys,
    wrong_shapes,
)

from numpyro_neb import networks

PERCEPTRON = {"event_shape": (8, 8), "key": KEY, "width_size": 4, "depth": 1}
CONVOLUTIONAL = {"event_shape": (8, 8), "key": KEY, "channels": (2, 2)}
COMMON = [
    *wrong_keys(),
    *wrong_functions("activation"),
    *wrong_shapes(8, None, (0, 8), (-1, 8), (2.5, 8), "88", (True, 8)),
]
IMAGES = [
    *each("channels", ValueError, "channels must be", [4, None, (), (0,), (2.0,), (True,), "4"]),
    *each("event_shape", ValueError, r"event_shape must be \(h", [(8,)]),
]

ROWS = (
    Rows(
        networks.MLP,
        PERCEPTRON,
        [
            *COMMON,
            *wrong_counts("width_size"),
            *wrong_counts("depth", least=0),
            *wrong_choices("out"),
            *each("skip", TypeError, "skip must", [None, "1", True]),
            *each("skip", ValueError, "skip must", [np.nan, np.inf, [1.0]]),
            Wrong(
                "skip: scalar", {"skip": 0.5, "out": "scalar"}, ValueError, "skip must be 0 with"
            ),
        ],
    ),
    Rows(
        networks.ConvNet,
        CONVOLUTIONAL,
        [*COMMON, *IMAGES, *wrong_counts("bottleneck", "stride")],
    ),
    Rows(
        networks.UNet,
        CONVOLUTIONAL,
        [
            *COMMON,
            *IMAGES,
            *wrong_counts("num_blocks", "patch_size"),
            Wrong(
                "event_shape: odd",
                {"event_shape": (7, 8)},
                ValueError,
                "event_shape must have a height",
            ),
        ],
    ),
    Rows(
        networks.from_nnx,
        {},
        each(
            "module",
            TypeError,
            "module must be an instance of flax.nnx",
            {"an int": 3, "a function": network, "None": None},
        ),
    ),
    Rows(
        networks.from_linen,
        {"variables": {}},
        each("module", TypeError, "module must be an instance of flax.linen.Module, got", [3]),
    ),
)


@pytest.mark.parametrize(("call", "error", "message"), cases(ROWS))
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
