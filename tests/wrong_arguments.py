"""Wrong arguments of every kind, and the errors that they should meet."""

import operator
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import MCMC

import numpyro_neb as neb
from numpyro_neb import networks  # plots loads on first use

KEY = jax.random.key(0)
MIXTURE = neb.MixtureEnergy(np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32), 0.5)
Y = np.array([[0.1, 0.2], [-0.3, 0.4], [0.5, -0.6]], np.float32)
IMAGES = np.random.default_rng(0).random((3, 4, 5))
PAIRS = np.array([[0.0, 1.0], [2.0, 0.5], [1.0, 3.0]])


class Own(neb.AbstractEnergy):
    """A user's energy, phi = value(y)."""

    value: object = eqx.field(static=True)
    sigma: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.5))
    loc: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.0))
    scale: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(1.0))
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))

    def __call__(self, y):
        return self.value(y)


VECTOR, INTS = Own(lambda y: y**2), Own(lambda y: jnp.argmax(y))
NAN = Own(lambda y: jnp.sum(y**2) * jnp.nan)
FAMILY = neb.ConditionalEnergy(
    networks.MLP((2,), width_size=4, depth=1, conditional=True, key=KEY), (2,), (0.1, 1.0)
)


def network(out="event"):
    return networks.MLP((2,), out, width_size=4, depth=1, key=KEY)


OWN = Own(lambda y: jnp.sum(y**2))
MADE = {
    "NetworkEnergy": neb.NetworkEnergy(network("scalar"), 0.5, (2,)),
    "ResidualEnergy": neb.ResidualEnergy(network(), 0.5, (2,)),
    "MixtureEnergy": MIXTURE,
}
TRAINED = {
    "energy": MADE["ResidualEnergy"],
    "data": Y,
    "key": KEY,
    "num_steps": 2,
    "batch_size": 2,
    "progress_bar": False,
}
WALK = MCMC(neb.WalkJumpKernel(MIXTURE), num_warmup=1, num_samples=2, num_chains=4)


# Wrong arguments by their kind: (what is wrong, the argument, the error, what it says).


def energies_wrong(conditional=False):
    rows = [
        ("no energy", 3, TypeError, r"energy must be a numpyro_neb\.AbstractEnergy, got int"),
        ("no energy but None", None, TypeError, "energy must be .*got NoneType"),
        ("a class", neb.MixtureEnergy, TypeError, "energy must be .*got the class MixtureEnergy"),
        ("what has one", neb.SmoothedDensity(MIXTURE), TypeError, "energy must be .*its .energy"),
        ("a network", network("scalar"), TypeError, "energy must be .*got MLP: wrap a network"),
        (
            "not scalar",
            VECTOR,
            ValueError,
            r"energy must return an array of shape \(\), got \(2,\)",
        ),
        ("of ints", INTS, ValueError, "energy must return floats, got int"),
        ("raises", Own(lambda y: y @ 3), ValueError, r"energy must take one array .*\(2,\); it ra"),
    ]
    if not conditional:
        rows.append(("no sigma", FAMILY, TypeError, r"energy must be one .*energy\.at\(sigma\)"))
    return [(f"energy: {what}", {"energy": value}, *rest) for what, value, *rest in rows]


def arrays_wrong(name, good, floats, event=True):
    """Wrong arrays; `floats` where ints are wrong too, `event` where trailing axes are known."""
    good = np.asarray(good)
    spoilt = {what: np.array(good, float) for what in ("NaN", "inf")}
    spoilt["NaN"].flat[0], spoilt["inf"].flat[-1] = np.nan, -np.inf
    held = "floats" if floats else "real numbers"
    rows = [(what, array, ValueError, f"{name} must be finite") for what, array in spoilt.items()]
    rows += [
        ("bools", good > 0, TypeError, f"{name} must hold {held}, got bool"),
        ("complex", good * 1j, TypeError, f"{name} must hold {held}, got complex"),
        ("strings", good.astype(str), TypeError, f"{name} must hold {held}, got <U"),
        ("times", good.astype("m8[s]"), TypeError, f"{name} must hold {held}, got timedelta64"),
        ("None", None, TypeError, f"{name} must hold {held}, got None"),
        ("uneven", [[1.0, 2.0], [3.0]], TypeError, f"{name} must be an array, got list"),
        ("masked", np.ma.array(good, mask=good == good.flat[0]), TypeError, "plain array, got a m"),
        ("a key", jax.random.split(KEY), TypeError, f"{name} must hold {held}, got key<fry>"),
    ]
    if floats:
        text = f"{name} must hold floats, got .*: convert it with"
        rows += [("ints", good.astype(int), TypeError, text)]
        rows += [("pixels", good.astype(np.uint8), TypeError, text)]
    if event:
        rows += [
            ("another event shape", good[..., :1], ValueError, rf"{name} must .*event.*, 1\)"),
            ("too few dimensions", good.flat[0], ValueError, rf"{name} must .*event.*\(\)"),
        ]
    return [(f"{name}: {what}", {name: value}, *rest) for what, value, *rest in rows]


def keys_wrong(name="key"):
    rows = [
        ("an int", 0, TypeError, "key must be a JAX random key, .* got int"),
        ("None", None, TypeError, "key must be a JAX random key"),
        ("floats", jnp.zeros(2), TypeError, r"key must be a JAX .* got float\d\d of shape \(2,\)"),
        ("three ints", np.zeros(3, np.uint32), TypeError, "key must be a JAX random key"),
        ("a generator", np.random.default_rng(0), TypeError, "key must be .* got Generator"),
        ("several", jax.random.split(KEY, 5), ValueError, r"key must be one .* of shape \(5,\)"),
        (
            "several, old",
            np.zeros((5, 2), np.uint32),
            ValueError,
            r"key must be one .*shape \(5,\)",
        ),
    ]
    return [(f"key: {what}", {name: value}, *rest) for what, value, *rest in rows]


def counts_wrong(*names, least=1, none=True):
    wanted = "a positive int" if least == 1 else f"an int of at least {least}"
    values = [least - 1, -1, 1.5, 2.0, True, "2", np.nan, np.array([1, 2])]
    values += [None] if none else []
    return [
        (f"{name}: {value!r}", {name: value}, ValueError, f"{name} must be {wanted}, got ")
        for name in names
        for value in values
    ]


def numbers_wrong(*names, share=False, none=True):
    """Wrong where a positive number is wanted, or with `share` one between 0 and 1."""
    rows = []
    for name in names:
        values = [0.0, -0.3, np.nan, np.inf, -np.inf, *([1.0] if share else [])]
        rows += [(name, v, ValueError, rf"{name} must be .*, got ") for v in values]
        rows += [(name, np.ones(2), ValueError, rf"{name} must be a scalar, got shape \(2,\)")]
        rows += [(name, True, TypeError, f"{name} must be a number, got True")]
        rows += [(name, "0.3", TypeError, f"{name} must be a number, got '0.3'")]
        rows += [(name, 1j, TypeError, f"{name} must hold real numbers, got complex")]
        rows += [(name, None, TypeError, f"{name} must be a number, got None")] if none else []
    return [(f"{n}: {value!r}", {n: value}, *rest) for n, value, *rest in rows]


def paths_wrong(name):
    rows = [(value, TypeError, f"{name} must be a path, got ") for value in (3, None, b"x")]
    return [(f"{name}: {value!r}", {name: value}, *rest) for value, *rest in rows]


def choices_wrong(name, none=True):
    values = ["else", 3, ["full"], *([None] if none else [])]
    return [
        (f"{name}: {value!r}", {name: value}, ValueError, f"{name} must be '.*' or '.*', got ")
        for value in values
    ]


def functions_wrong(*names, none=True):
    values = [3, "f", *([None] if none else [])]
    return [
        (f"{name}: {value!r}", {name: value}, TypeError, f"{name} must be callable, got ")
        for name in names
        for value in values
    ]


ROWS = []


def add(name, good, *groups, call=None):
    """Rows of one name: `good` arguments with one of them replaced by a wrong one at a time."""
    for what, wrong, error, message in (row for group in groups for row in group):
        fn = call or operator.attrgetter(name)(neb)
        ROWS.append((name, what, partial(fn, **good | wrong), error, message))


WALKS = [
    (f"mcmc: {what}", {"mcmc": value}, TypeError, "mcmc must be an MCMC of a WalkJumpKernel, .*got")
    for what, value in (("no MCMC", 3), ("None", None), ("a class", MCMC), ("a draw", Y))
]
NOT_RUN = [("mcmc: not run", {"mcmc": WALK}, ValueError, r"mcmc must have run: call mcmc\.run")]
