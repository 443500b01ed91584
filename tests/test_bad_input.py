"""Every public name against every wrong kind of argument: the error names the argument.

`ROWS` is the table. What is wrong is found before anything is compiled, so that its many rows are
quick; the few that need a compiled step are of an energy that returns NaN.
"""

import inspect
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import wrong_elsewhere  # noqa: F401 (its rows)
from numpyro.handlers import seed
from wrong_arguments import (
    FAMILY,
    KEY,
    MADE,
    MIXTURE,
    NAN,
    NOT_RUN,
    OWN,
    PAIRS,
    ROWS,
    TRAINED,
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
    numbers_wrong,
)

import numpyro_neb as neb
from numpyro_neb import (
    integrators,
)

OBSERVED = arrays_wrong("y", Y, floats=True)
for name in (
    "posterior_mean",
    "posterior_std",
    "posterior_covariance",
    "empirical_bayes.credible_interval",
    "empirical_bayes.local_false_sign_rate",
    "empirical_bayes.posterior_components",
    "recall",
    "memories.find_memories",
):
    more = {"num_components": 1} if name.endswith("components") else {}
    good = {"energy": MIXTURE, "y": Y, "progress_bar": False} | more
    add(name, good, energies_wrong(), OBSERVED, counts_wrong("chunk_size"))
add("posterior_distribution", {"energy": MIXTURE, "y": Y}, energies_wrong(), OBSERVED)
add("posterior_covariance", {"energy": MIXTURE, "y": Y}, choices_wrong("covariance"))
add(
    "empirical_bayes.credible_interval",
    {"energy": MIXTURE, "y": Y},
    numbers_wrong("probability", share=True),
)
add(
    "empirical_bayes.posterior_components",
    {"energy": MIXTURE, "y": Y, "num_components": 1},
    counts_wrong("num_components", "max_iterations"),
    numbers_wrong("tolerance"),
    [("num_components: 3", {"num_components": 3}, ValueError, "num_components must be at most d")],
)
SETTINGS = counts_wrong("max_steps"), numbers_wrong("tolerance"), choices_wrong("flow")
ALL_NAN = [("energy: NaN", {"energy": NAN}, FloatingPointError, "energy must be finite at the cu")]
add("recall", {"energy": MIXTURE, "y": Y, "progress_bar": False}, *SETTINGS, ALL_NAN)
add(
    "memories.find_memories",
    {"energy": MIXTURE, "y": Y, "progress_bar": False},
    *SETTINGS,
    numbers_wrong("merge_distance"),
    [
        ("y: one", {"y": Y[0]}, ValueError, r"y must have shape \(n, \*event_shape\)"),
        ("y: none", {"y": Y[:0]}, ValueError, "y must have shape .* n at least 1"),
    ],
)
TIMES = np.array([0.0, 1.0])
add(
    "memories.follow",
    {"energy": MIXTURE, "y": Y, "times": TIMES},
    energies_wrong(),
    OBSERVED,
    counts_wrong("max_steps"),
    [
        row
        for row in arrays_wrong("times", TIMES, floats=False, event=False)
        if row[0][-3:] != "ven"
    ],
    [
        (f"times: {times!r}", {"times": times}, ValueError, "times must be finite, rising and not")
        for times in (np.zeros(0), 1.0, [1.0, 0.5], [-1.0, 0.0], [1.0, 1.0], np.ones((1, 1)))
    ],
)
add(
    "empirical_bayes.log_normalizer",
    {"energy": MIXTURE, "key": KEY, "progress_bar": False},
    energies_wrong(),
    keys_wrong(),
    counts_wrong("num_particles", "num_temperatures", least=2),
    counts_wrong("num_steps"),
    [
        (
            "energy: NaN",
            {"energy": NAN, "num_particles": 2, "num_temperatures": 2},
            FloatingPointError,
            "phi is NaN",
        )
    ],
)

# Energies.
add("AbstractEnergy", {}, [("itself", {}, TypeError, "abstract")])
EVENTS = [
    ("y: a batch", {"y": Y}, ValueError, r"y must have the event shape \(2,\), got \(3, 2\).*vmap"),
    ("y: ints", {"y": np.zeros(2, int)}, TypeError, "y must hold floats, got int64"),
    ("y: None", {"y": None}, TypeError, "y must hold floats, got None"),
]
for name in ("AbstractEnergy.score", "AbstractEnergy.denoise"):
    add(name, {"self": OWN}, EVENTS)
for name, energy in MADE.items():
    for method in ("__call__", "score", "denoise"):
        add(f"{name}.{method}", {"self": energy}, EVENTS)


def buffers_wrong(shape):
    rows = [*functions_wrong("network")]
    rows += [
        (f"network: {what}", {"network": value}, ValueError, message)
        for what, value, message in (
            ("another shape", lambda y, *t: jnp.zeros(5), r"network must return .* got \(5,\)"),
            ("no array", lambda y, *t: "five", "network must return an array of shape .* got str"),
            ("ints", lambda y, *t: jnp.zeros(shape, int), "network must return floats, got int"),
            ("another event", lambda y, *t: y.reshape(3), r"network must take one .*\(2,\); it"),
        )
    ]
    rows += [
        (f"event_shape: {value!r}", {"event_shape": value}, ValueError, "event_shape must be a tu")
        for value in (2, None, (0,), (-2,), (2.0,), (True,), "2", ((2,),))
    ]
    for name in ("loc", "scale"):
        wrong = arrays_wrong(name, np.ones(2), floats=False, event=False)
        rows += [row for row in wrong if row[0] not in ("scale: NaN", "scale: inf")]
        rows.append((f"{name}: another shape", {name: np.ones(3)}, ValueError, f"{name} must be a"))
    for value in (0.0, -1.0, np.nan, [1.0, 0.0]):
        rows.append((f"scale: {value}", {"scale": value}, ValueError, "scale must be positive, go"))
    return [*rows, ("scale: inf", {"scale": np.inf}, ValueError, "scale must be finite, got inf")]


for name, shape in (("NetworkEnergy", ()), ("ResidualEnergy", (2,))):
    good = {"network": MADE[name].network, "sigma": 0.5, "event_shape": (2,)}
    add(name, good, buffers_wrong(shape), numbers_wrong("sigma"))
add(
    "ConditionalEnergy",
    {"network": FAMILY.network, "event_shape": (2,), "sigma_range": (0.1, 1.0)},
    buffers_wrong((2,)),
    [
        (f"sigma_range: {value!r}", {"sigma_range": value}, ValueError, "sigma_range must be two")
        for value in (0.5, (0.0, 1.0), (1.0, 0.5), (0.1, np.inf), (np.nan, 1.0), (0.1, 0.5, 1.0))
    ],
    [
        (f"sigma_range: {value!r}", {"sigma_range": value}, TypeError, "sigma_range must hold rea")
        for value in (None, ("a", "b"), (True, False))
    ],
)
OUTSIDE = [("sigma: 2", {"sigma": 2.0}, ValueError, r"sigma must be in sigma_range = \(0.1, 1\)")]
add("ConditionalEnergy.at", {"self": FAMILY}, numbers_wrong("sigma"), OUTSIDE)
add("MixtureEnergy.at", {"self": MIXTURE}, numbers_wrong("sigma"))
add("MixtureEnergy.sample", {"self": MIXTURE}, keys_wrong())
LOCS = np.asarray(MIXTURE.locs)
LARGE = np.inf if jax.config.jax_enable_x64 else 1e300
add(
    "MixtureEnergy",
    {"locs": LOCS, "sigma": 0.5},
    arrays_wrong("locs", LOCS, floats=False, event=False),
    numbers_wrong("sigma"),
    [
        ("locs: a number", {"locs": 1.0}, ValueError, r"locs must have shape \(K, \*event_shape\)"),
        ("locs: none", {"locs": LOCS[:0]}, ValueError, "locs must have shape .* none empty"),
        ("locs: too large", {"locs": np.full((2, 2), LARGE)}, ValueError, "locs must be finite"),
        ("log_weights: 3", {"log_weights": np.zeros(3)}, ValueError, r"log_weights must have sha"),
        ("log_weights: NaN", {"log_weights": [np.nan, 0]}, ValueError, "log_weights must hold a f"),
        ("log_weights: str", {"log_weights": ["a", "b"]}, TypeError, "log_weights must hold real"),
        ("covariances: one", {"covariances": np.eye(2)}, ValueError, r"covariances must have sh"),
    ],
    arrays_wrong("covariances", np.stack([np.eye(2)] * 2), floats=False, event=False)[:5],
    [
        (f"covariances: {what}", {"covariances": np.stack([c, c])}, ValueError, "covariances must")
        for what, c in (("negative", -np.eye(2)), ("lopsided", np.array([[1.0, 1.0], [0.0, 1.0]])))
    ],
)

# In NumPyro.
DENSITY = neb.SmoothedDensity(MIXTURE, validate_args=True)
STACKED = eqx.filter_vmap(lambda s: neb.MixtureEnergy(jnp.zeros((1, 2)), s))(jnp.ones(3))
add("SmoothedDensity", {"energy": MIXTURE}, energies_wrong(), counts_wrong("num_steps"))
add("SmoothedDensity.sample", {"self": DENSITY}, keys_wrong())
add("SmoothedDensity.log_prob", {"self": DENSITY}, arrays_wrong("value", Y, floats=True))
add("SmoothedDensity.denoise", {"self": DENSITY}, arrays_wrong("value", Y, floats=True)[2:])
for name in ("SmoothedDensity.log_prob", "SmoothedDensity.denoise"):
    text = r"value must have leading dimensions that broadcast with \(3,\), got \(2,\)"
    rows = [("value: another batch", {"value": Y[:2]}, ValueError, text)]
    add(name, {"self": neb.SmoothedDensity(STACKED)}, rows)
PRIOR = seed(neb.learned_prior, jax.random.key(0))
add(
    "learned_prior",
    {"name": "x", "energy": MIXTURE},
    energies_wrong(),
    choices_wrong("covariance"),
    [
        (f"name: {value!r}", {"name": value}, TypeError, "name must be a string, got ")
        for value in (3, None, b"x")
    ],
    call=PRIOR,
)
add(
    "WalkJumpKernel",
    {"energy": MIXTURE},
    [row for row in energies_wrong() if "None" not in row[0]],
    counts_wrong("num_steps"),
    numbers_wrong("inverse_temperature"),
    numbers_wrong("max_bias", share=True),
    numbers_wrong("max_score", none=False),
    numbers_wrong("target_accept_prob", share=True, none=False),
    functions_wrong("init_strategy"),
    [
        ("integrator", {"integrator": "BAOAB"}, TypeError, "integrator must be one of numpyro_neb"),
        ("integrator: class", {"integrator": integrators.BAOAB}, TypeError, "integrator must be"),
        ("both", {"model": PRIOR}, ValueError, "one of energy and model must be given"),
        ("neither", {"energy": None}, ValueError, "one of energy and model must be given"),
        ("model", {"energy": None, "model": 3}, TypeError, "model must be callable, got int"),
        ("frozen: 3", {"frozen": np.ones(3, bool)}, ValueError, "frozen must be a boolean array"),
        ("frozen: int", {"frozen": np.ones(2, int)}, ValueError, "frozen must be a boolean array"),
    ],
)
FLOATS = r"init_params must be a float array of shape \(2,\), got "
add(
    "WalkJumpKernel.init",
    {"rng_key": KEY, "num_warmup": 0, "init_params": None},
    [
        (f"init_params: {what}", {"init_params": value}, ValueError, message)
        for what, value, message in (
            ("a batch", Y, FLOATS),
            ("ints", np.zeros(2, int), FLOATS),
            ("bools", np.zeros(2, bool), FLOATS),
            ("complex", np.zeros(2, complex), FLOATS),
            ("another event", np.zeros(3), FLOATS),
            ("NaN", np.array([0.0, np.nan]), "init_params must be finite"),
            ("infinity", np.array([0.0, np.inf]), "init_params must be finite"),
        )
    ],
    call=neb.WalkJumpKernel(MIXTURE).init,
)
add(
    "WalkJumpKernel.init",
    {"rng_key": KEY, "num_warmup": 0, "init_params": None},
    [
        (
            "energy: NaN",
            {},
            FloatingPointError,
            "energy must have a finite value .*got nan in chain 0: look at init_params",
        )
    ],
    call=neb.WalkJumpKernel(NAN).init,
)
FIT = neb.fit_mixture(PAIRS[:, 0], 1.0, progress_bar=False)
add(
    "to_arviz", {"mcmc": WALK}, [(*row[:3], row[3].replace(", .*", ".*")) for row in WALKS], NOT_RUN
)
add("to_arviz", {"mcmc": FIT, "num_samples": 2}, counts_wrong("num_samples", none=False))
SOME_KEY = [row for row in keys_wrong() if "None" not in row[0]]
add("to_arviz", {"mcmc": FIT, "num_samples": 2}, SOME_KEY)
add("to_arviz", {"mcmc": WALK}, [("key", {"key": KEY}, TypeError, "num_samples and key are for")])

# Training.
BATCH = {"energy": MIXTURE, "key": KEY}
CLEAN = arrays_wrong("x", Y, floats=True), [("x: none", {"x": Y[:0]}, ValueError, "x must have sh")]
NOISY = arrays_wrong("y", Y, floats=True), [("y: none", {"y": Y[:0]}, ValueError, "y must have sh")]
add("denoising_loss", BATCH | {"x": Y}, energies_wrong(True), keys_wrong(), *CLEAN)
add("sure_loss", BATCH | {"y": Y}, energies_wrong(), keys_wrong(), *NOISY)
add("sure_loss", BATCH | {"y": Y}, counts_wrong("num_probes", none=False))
add(
    "MaximumLikelihood",
    {},
    counts_wrong("num_steps"),
    counts_wrong("num_chains", least=2),
    [
        (f"denoising_weight: {value!r}", {"denoising_weight": value}, error, message)
        for value, error, message in (
            (-0.1, ValueError, "denoising_weight must be at least 0 and finite, got -0.1"),
            (np.nan, ValueError, "denoising_weight must be at least 0 and finite, got nan"),
            (np.inf, ValueError, "denoising_weight must be at least 0 and finite, got inf"),
            ([0.1, 0.2], ValueError, "denoising_weight must be a scalar"),
            (None, TypeError, "denoising_weight must be a number, got None"),
        )
    ],
    [("integrator", {"integrator": "BAOAB"}, TypeError, "integrator must be one of numpyro_neb")],
)
LIKELIHOOD = neb.MaximumLikelihood(num_chains=2, num_steps=1)
CHAINS = LIKELIHOOD.init(TRAINED["energy"], KEY)
add(
    "MaximumLikelihood.__call__",
    {"energy": TRAINED["energy"], "x": Y, "key": KEY, "state": CHAINS},
    energies_wrong(True),
    keys_wrong(),
    *CLEAN,
    call=LIKELIHOOD,
)
add(
    "fit",
    TRAINED,
    energies_wrong(True),
    arrays_wrong("data", Y, floats=True),
    keys_wrong(),
    counts_wrong("num_steps"),
    counts_wrong("batch_size", "validate_every", none=False),
    numbers_wrong("ema_decay", share=True, none=False),
    functions_wrong("objective"),
    functions_wrong("callback", none=False),
    [
        ("data: none", {"data": Y[:0]}, ValueError, "data must have shape .* n at least 1"),
        ("no batch_size", {"batch_size": None}, ValueError, "batch_size must be given where"),
        ("optimizer: 1e-3", {"optimizer": 1e-3}, TypeError, "optimizer must be an optax.Gradient"),
        ("optimizer: fn", {"optimizer": optax.adam}, TypeError, "optimizer must be an optax.Grad"),
        ("checkpoint_dir", {"checkpoint_dir": 3}, TypeError, "checkpoint_dir must be a path, got"),
        (
            "objective: a class",
            {"objective": neb.MaximumLikelihood},
            TypeError,
            r"objective must be an object, as in MaximumLikelihood\(\), got the class",
        ),
        ("sharding", {"sharding": 3}, TypeError, "sharding must be a jax.sharding.NamedSharding"),
        (
            "objective: a vector",
            {"objective": lambda energy, x, key: x[:, 0]},
            ValueError,
            r"objective must return an array of shape \(\), got \(2,\)",
        ),
        ("energy: NaN", {"energy": NAN}, FloatingPointError, "the loss is nan at step 0"),
    ],
)
add(
    "fit",
    TRAINED | {"validation_data": Y},
    arrays_wrong("validation_data", Y, floats=True)[:3],
    counts_wrong("patience", none=False),
)
add(
    "fit_mixture",
    {"y": PAIRS, "sigma": 1.0},
    arrays_wrong("y", PAIRS, floats=False, event=False),
    arrays_wrong("locs", PAIRS, floats=False, event=False)[:5],
    numbers_wrong("max_gap"),
    counts_wrong("max_iterations"),
    [
        ("y: none", {"y": []}, ValueError, r"y must have shape \(n,\) or \(n, \*event_shape\)"),
        (
            "y: a number",
            {"y": 1.0},
            ValueError,
            r"y must have shape \(n,\) or \(n, \*event_shape\)",
        ),
        (
            "locs: another event",
            {"locs": PAIRS[:, 0]},
            ValueError,
            r"locs must have shape \(K, 2\)",
        ),
        ("locs: none", {"locs": PAIRS[:0]}, ValueError, r"locs must have shape \(K, 2\)"),
        ("sigma: two", {"sigma": [1.0, 1.0]}, ValueError, r"sigma must be a scalar or of shape"),
        ("sigma: bool", {"sigma": True}, TypeError, "sigma must hold real numbers, got bool"),
    ],
)
for value in (0.0, -1.0, np.nan, np.inf, [1.0, 1.0, 0.0]):
    rows = [(f"sigma: {value}", {"sigma": value}, ValueError, "sigma must be positive and finite")]
    add("fit_mixture", {"y": PAIRS}, rows)
    add("MixtureFit.predict", {"self": FIT, "y": PAIRS[:, 0]}, rows)
OTHER = [("y: another event", {"y": PAIRS}, ValueError, r"y must have shape \(m,\), got \(3, 2\)")]
add("MixtureFit.predict", {"self": FIT, "sigma": 1.0}, OTHER)
add("MixtureFit.sample", {"self": FIT}, keys_wrong())
for law in (FIT.posterior, neb.posterior_distribution(MADE["ResidualEnergy"], Y)):
    kind = type(law).__name__
    add(f"empirical_bayes.posteriors.{kind}.sample", {"self": law}, keys_wrong())
    wrong = numbers_wrong("probability", share=True)
    add(f"empirical_bayes.posteriors.{kind}.interval", {"self": law}, wrong)

IDS = [f"{name}-{what}"[:60] for name, what, *_ in ROWS]


@pytest.mark.parametrize(("call", "error", "message"), [row[2:] for row in ROWS], ids=IDS)
def test_the_error_names_the_argument(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()


REASONS = {
    "a result, which the package makes": {
        "Evaluation",
        "FitResult",
        "Memories",
        "MixtureFit",
        "empirical_bayes.PosteriorComponents",
        "geometry.OverlapRegimes",
        "networks.LinenNetwork",
        "networks.NNXNetwork",
        "geometry.SphereOverlaps",
        "geometry.SphereShell",
        "memories.FoundMemories",
    },
    "a room: its own names have rows": {
        "diagnostics",
        "empirical_bayes",
        "energies",
        "geometry",
        "integrators",
        "memories",
        "networks",
        "plots",
        "streaming",
    },
    "inside a compiled loop, for who writes an integrator": {
        "integrators.Target",
        "integrators.WalkState",
        "integrators.accept_prob",
        "integrators.metropolis",
    },
    "inside the package, behind the checks of what has rows": {
        "diagnostics.check_walk",
        "diagnostics.from_walk",
        "diagnostics.log_densities",
        "diagnostics.warn_of_divergence",
        "energies.initial_position",
    },
    "takes any pytree": {"energies.Frozen", "energies.trainable"},
}


def test_every_public_name_has_a_row():
    public = {name: getattr(neb, name) for name in neb.__all__}
    for short, room in list(public.items()):
        if not inspect.ismodule(room):
            continue
        for name, value in vars(room).items():
            ours = name in getattr(room, "__all__", ())
            ours |= getattr(value, "__module__", "") == room.__name__
            if ours and not name.startswith("_") and callable(value) and not _alias(value):
                public.setdefault(f"{short}.{name}", value)
    tabled = [operator.attrgetter(_resolved(row[0]))(neb) for row in ROWS]
    reasons = set().union(*REASONS.values())
    known = [operator.attrgetter(name)(neb) for name in reasons]
    missing = {n for n, v in public.items() if not any(v is t for t in [*tabled, *known])}
    assert not missing
    assert reasons <= public.keys()  # none that is gone


def _alias(value):
    """A type alias, such as a union of array types."""
    return not (inspect.isfunction(value) or inspect.isclass(value))


def _resolved(name):
    """Of a method's row its class has one."""
    parts = name.split(".")
    return ".".join(parts[:-1]) if parts[0][0].isupper() and len(parts) > 1 else name
