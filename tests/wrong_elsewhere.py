"""Rows of `test_bad_input`: geometry, networks, integrators, pictures and files."""

import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from wrong_arguments import (
    IMAGES,
    KEY,
    MIXTURE,
    NAN,
    NOT_RUN,
    PAIRS,
    ROWS,
    WALK,
    WALKS,
    Y,
    add,
    arrays_wrong,
    choices_wrong,
    counts_wrong,
    energies_wrong,
    functions_wrong,
    keys_wrong,
    network,
    numbers_wrong,
    paths_wrong,
)

import numpyro_neb as neb
from numpyro_neb import memories
from numpyro_neb.training import devices

# Geometry, networks, integrators.
for name in ("sphere_overlaps", "critical_sigma", "overlap_regimes"):
    more = {"sigma": 1.0} if name == "overlap_regimes" else {}
    points = [
        (f"x: {what}", {"x": x}, ValueError, "x must hold at least two points, got shape")
        for what, x in (
            ("one", PAIRS[:1]),
            ("none", PAIRS[:0]),
            ("number", 1.0),
            ("flat", [[], []]),
        )
    ]
    add(name, {"x": PAIRS} | more, arrays_wrong("x", PAIRS, floats=False, event=False), points)
add("overlap_regimes", {"x": PAIRS}, numbers_wrong("sigma"))
add("geometry.sphere_shell", {"dim": 3, "sigma": 1.0}, counts_wrong("dim"), numbers_wrong("sigma"))
SHAPES = (8, None, (0, 8), (-1, 8), (2.5, 8), "88", (True, 8))
for name, sizes in (
    ("networks.MLP", ("width_size",)),
    ("networks.ConvNet", ("bottleneck", "stride")),
    ("networks.UNet", ("num_blocks", "patch_size")),
):
    more = {"width_size": 4, "depth": 1} if name == "networks.MLP" else {"channels": (2, 2)}
    good = {"event_shape": (8, 8), "key": KEY} | more
    shapes = [
        (f"event_shape: {value!r}", {"event_shape": value}, ValueError, "event_shape must be a tu")
        for value in SHAPES
    ]
    add(name, good, keys_wrong(), counts_wrong(*sizes), functions_wrong("activation"), shapes)
    if name != "networks.MLP":
        channels = [
            (f"channels: {value!r}", {"channels": value}, ValueError, "channels must be")
            for value in (4, None, (), (0,), (2.0,), (True,), "4")
        ]
        flat = [
            ("event_shape: (8,)", {"event_shape": (8,)}, ValueError, r"event_shape must be \(h")
        ]
        add(name, good, channels, flat)
add(
    "networks.MLP",
    {"event_shape": (2,), "width_size": 4, "depth": 1, "key": KEY},
    choices_wrong("out"),
    counts_wrong("depth", least=0),
)
ODD = [("event_shape: odd", {"event_shape": (7, 8)}, ValueError, "event_shape must have a height")]
add("networks.UNet", {"event_shape": (8, 8), "channels": (2, 2), "key": KEY}, ODD)
add(
    "networks.from_nnx",
    {},
    [
        (f"module: {what}", {"module": value}, TypeError, "module must be an instance of flax.nnx")
        for what, value in (("an int", 3), ("a function", network), ("None", None))
    ],
)
add(
    "networks.from_linen",
    {"variables": {}},
    [("module", {"module": 3}, TypeError, "module must be an instance of flax.linen.Module, got")],
)
for name in ("ULA", "MALA", "BAOAB", "ABOBA", "GHMC"):
    add(f"integrators.{name}", {}, numbers_wrong("step_size"))
    if name not in ("ULA", "MALA"):
        more = numbers_wrong("friction"), choices_wrong("initial_velocity")
        add(f"integrators.{name}", {}, *more)
add("integrators.AbstractIntegrator", {}, [("itself", {}, TypeError, "abstract")])
add(
    "integrators.walk",
    dict.fromkeys(("integrator", "target", "state", "key")),
    counts_wrong("num_steps"),
)

# Pictures.
for argument in ("clean", "noisy", "jump"):
    rows = arrays_wrong(argument, IMAGES, floats=False, event=False)
    rows.append(("flat", {argument: IMAGES[0]}, ValueError, rf"{argument} must have shape \(n, h"))
    rows.append(("none", {argument: IMAGES[:0]}, ValueError, f"{argument} must hold at least one"))
    add("plots.denoising", dict.fromkeys(("clean", "noisy", "jump"), IMAGES), rows)
ONE_LESS = [("noisy: one less", {"noisy": IMAGES[:2]}, ValueError, "noisy must have the shape of")]
add("plots.denoising", dict.fromkeys(("clean", "noisy", "jump"), IMAGES), ONE_LESS)
for name, argument in (("walk_jump", "x"), ("recall_paths", "paths")):
    rows = arrays_wrong(argument, IMAGES[None], floats=False, event=False)
    rows.append(("flat", {argument: IMAGES}, ValueError, f"{argument} must have shape"))
    rows.append(("none", {argument: IMAGES[None, :0]}, ValueError, f"{argument} must hold at leas"))
    add(f"plots.{name}", {}, rows)
MANY = [("x: many", {"x": np.zeros((1, 201, 4, 5))}, ValueError, "x must hold at most 200 draws")]
MANY += [("x: data", {"x": SimpleNamespace(posterior={})}, TypeError, "give its posterior")]
add("plots.walk_jump", {}, MANY)
SOME = memories.FoundMemories(IMAGES, *(np.ones(3, int),) * 3, np.arange(3))
NONE = memories.FoundMemories(IMAGES[:0], *(np.zeros(0, int),) * 4)
add(
    "plots.memories",
    {"found": SOME},
    counts_wrong("columns"),
    [
        ("found: an int", {"found": 3}, TypeError, "found must be a FoundMemories, got int"),
        ("found: an array", {"found": Y}, TypeError, "found must be a FoundMemories, got float32"),
        ("found: none", {"found": NONE}, ValueError, "found must hold at least one memory"),
        (
            "found: no images",
            {"found": SOME._replace(attractors=Y)},
            ValueError,
            r"found.attractors must have shape \(n, height, width\), got \(3, 2\)",
        ),
    ],
)
SUMMARY = [("summary", {"summary": 3}, TypeError, "summary must be a SphereOverlaps, got int")]
add("plots.overlaps", {}, SUMMARY)
OVERLAPS = neb.sphere_overlaps(PAIRS, progress_bar=False)
add("plots.overlaps", {"summary": OVERLAPS}, numbers_wrong("sigma", none=False))
for name in ("plots.energy_transitions", "diagnostics.refreshed_bfmi"):
    data = [
        (f"data: {what}", {"data": value}, ValueError, "data must be what to_arviz or stream ret")
        for what, value in (("an array", Y), ("none", None), ("an MCMC", WALK), ("a dict", {}))
    ]
    add(name, {}, data)
LIMITS = ((-1.0, 1.0), (-1.0, 1.0))
IN_THREE = neb.MixtureEnergy(np.eye(3), 0.5)
add(
    "plots.landscape",
    {"energy": MIXTURE, "limits": LIMITS},
    energies_wrong(),
    [("energy: 3 d", {"energy": IN_THREE}, ValueError, r"energy must have the event shape \(2,\)")],
    arrays_wrong("limits", LIMITS, floats=False, event=False)[:5],
    arrays_wrong("walk", Y, floats=False, event=False)[:5],
    [
        (f"limits: {value!r}", {"limits": value}, ValueError, "limits must be .* rising")
        for value in (1.0, (0.0, 1.0), ((1.0, 0.0), (0.0, 1.0)))
    ],
    [("walk: one", {"walk": Y[0]}, ValueError, r"walk must have shape \(draws, 2\), got \(2,\)")],
)

# The evaluation and its picture.
HELD_OUT = np.tile(Y, (10, 1))
add(
    "evaluate",
    {"energy": MIXTURE, "held_out": HELD_OUT, "key": KEY, "progress_bar": False},
    energies_wrong(),
    arrays_wrong("held_out", HELD_OUT, floats=True),
    arrays_wrong("train", HELD_OUT, floats=True)[:5],
    keys_wrong(),
    counts_wrong("num_steps", "num_swaps", "chunk_size"),
    counts_wrong("num_pairs", least=20),
    counts_wrong("num_particles", "num_temperatures", least=2),
    [
        ("held_out: few", {"held_out": Y}, ValueError, "held_out must hold at least 20 examples"),
        ("energy: NaN", {"energy": NAN}, FloatingPointError, "energy must be finite at noisy held"),
        ("integrator: 3", {"integrator": 3}, TypeError, "integrator must be one of numpyro_neb.in"),
        (
            "integrator: a class",
            {"integrator": neb.integrators.BAOAB},
            TypeError,
            "integrator must be one of .* got the class BAOAB",
        ),
        (
            "integrator: at rest",
            {"integrator": neb.integrators.BAOAB(initial_velocity="zero")},
            ValueError,
            "integrator must start with velocities of its own law, .* got 'zero'",
        ),
    ],
)
add(
    "plots.evaluation",
    {},
    [
        ("an int", {"evaluation": 3}, TypeError, "evaluation must be a Evaluation, got int"),
        ("an array", {"evaluation": Y}, TypeError, "evaluation must be a Evaluation, got float32"),
    ],
)

# Files, devices, and the command line. TMP is a folder that is never written to.
TMP = Path(tempfile.gettempdir(), "never-written-by-test_bad_input")
add("save", {"path": TMP, "energy": MIXTURE}, paths_wrong("path"), energies_wrong(True))
add("load", {"path": TMP}, paths_wrong("path"))
MISSING = [("path: no file", {"path": TMP}, FileNotFoundError, "no file .*never-written")]
add("load", {}, MISSING)
good = {"mcmc": WALK, "path": TMP}
add("streaming.save_state", good, WALKS, paths_wrong("path"), NOT_RUN)
add("streaming.load_state", good, WALKS, paths_wrong("path"), MISSING)
add(
    "stream",
    {"mcmc": WALK, "key": KEY, "store": TMP, "progress_bar": False},
    WALKS,
    keys_wrong(),
    paths_wrong("store"),
    counts_wrong("draws_per_write"),
)
add("files.energy_file.read_arrays", {"format_name": "x"}, paths_wrong("path"), MISSING)
ROWS += [
    (
        "training.devices.devices_of",
        f"sharding: {value!r}",
        partial(devices.devices_of, value),
        TypeError,
        m,
    )
    for value in (3, jax.devices()[0], "batch")
    for m in ["sharding must be a jax.sharding.NamedSharding of a mesh"]
]
