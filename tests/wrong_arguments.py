"""Wrong arguments of every kind, and the errors that they should meet.

Each room's table of wrong arguments is in its own test file: `Rows` of a public name, its good
arguments, and the wrong ones that take the place of one of them. What is wrong is found before
anything is compiled, so that the many rows are quick; the few that need a compiled step are of an
energy that returns NaN.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


class Wrong(NamedTuple):
    """Arguments that are wrong, in words, with the error that they meet and what it says."""

    what: str
    arguments: dict[str, Any]
    error: type[Exception]
    message: str


class Rows(NamedTuple):
    """Good arguments of one public name, and the wrong ones that take the place of one of them."""

    of: Callable
    good: dict[str, Any]
    wrong: Sequence[Wrong]
    call: Callable | None = None  # in place of the name itself, such as a handler around it


def cases(table: Iterable[Rows]) -> list:
    """The parameters call, error and message of a test, one case for each wrong argument."""
    return [
        pytest.param(
            partial(rows.call or rows.of, **rows.good | wrong.arguments),
            wrong.error,
            wrong.message,
            id=f"{rows.of.__qualname__}-{wrong.what}"[:60],
        )
        for rows in table
        for wrong in rows.wrong
    ]


def each(name, error, message, values):
    """`Wrong` values of one argument that meet one error: a dict by what is wrong, or a list."""
    named = values.items() if isinstance(values, dict) else ((repr(v), v) for v in values)
    return [Wrong(f"{name}: {what}", {name: value}, error, message) for what, value in named]


# The kinds of wrong arguments. `none` says whether None is one of them.


def wrong_energies(*, family=True, none=True):
    """No energies; `family` where an energy must have one sigma."""
    wanted = "energy must be .*"
    rows = [
        ("no energy", 3, TypeError, r"energy must be a numpyro_neb\.AbstractEnergy, got int"),
        ("a class", neb.MixtureEnergy, TypeError, f"{wanted}got the class MixtureEnergy"),
        ("what has one", neb.SmoothedDensity(MIXTURE), TypeError, f"{wanted}its .energy"),
        ("a network", network("scalar"), TypeError, f"{wanted}got MLP: wrap a network"),
    ]
    if none:
        rows.append(("no energy but None", None, TypeError, f"{wanted}got NoneType"))
    if family:
        text = r"energy must be for one .*energy\.at\(sigma\)"
        rows.append(("no sigma", FAMILY, TypeError, text))
    return [Wrong(f"energy: {what}", {"energy": value}, *rest) for what, value, *rest in rows]


def wrong_arrays(name, good, *, floats, event=True, finite=True, none=True):
    """No arrays of real numbers.

    Args:
        name: The argument.
        good: A right one, to be spoilt.
        floats: Whether ints are wrong too.
        event: Whether the trailing axes must be an event.
        finite: Whether NaN and infinity are wrong.
        none: Whether None is.
    """
    good = np.asarray(good)
    held = f"{name} must hold {'floats' if floats else 'real numbers'}, got "
    types = {
        "bools": (good > 0, "bool"),
        "complex": (good * 1j, "complex"),
        "strings": (good.astype(str), "<U"),
        "times": (good.astype("m8[s]"), "timedelta64"),
        "a key": (jax.random.split(KEY), "key<fry>"),
    } | ({"None": (None, "None")} if none else {})
    rows = [(what, value, TypeError, held + got) for what, (value, got) in types.items()]
    rows += [
        ("uneven", [[1.0, 2.0], [3.0]], TypeError, f"{name} must be an array, got list"),
        ("masked", np.ma.array(good, mask=good == good.flat[0]), TypeError, "plain array, got a m"),
    ]
    if finite:
        for what, place, value in (("NaN", 0, np.nan), ("inf", -1, -np.inf)):
            spoilt = np.array(good, float)
            spoilt.flat[place] = value
            rows.append((what, spoilt, ValueError, f"{name} must be finite"))
    if floats:
        text = f"{held}.*: convert it with"
        rows += [("ints", good.astype(int), TypeError, text)]
        rows += [("pixels", good.astype(np.uint8), TypeError, text)]
    if event:
        rows += [
            ("another event shape", good[..., :1], ValueError, rf"{name} must .*event.*, 1\)"),
            ("too few dimensions", good.flat[0], ValueError, rf"{name} must .*event.*\(\)"),
        ]
    return [Wrong(f"{name}: {what}", {name: value}, *rest) for what, value, *rest in rows]


def wrong_keys(*, none=True):
    text = "key must be a JAX random key"
    rows = [
        ("an int", 0, TypeError, f"{text}, .* got int"),
        ("floats", jnp.zeros(2), TypeError, r"key must be a JAX .* got float\d\d of shape \(2,\)"),
        ("three ints", np.zeros(3, np.uint32), TypeError, text),
        ("a generator", np.random.default_rng(0), TypeError, "key must be .* got Generator"),
        ("several", jax.random.split(KEY, 5), ValueError, r"key must be one .* of shape \(5,\)"),
        (
            "several, old",
            np.zeros((5, 2), np.uint32),
            ValueError,
            r"key must be one .*shape \(5,\)",
        ),
        *([("None", None, TypeError, text)] if none else []),
    ]
    return [Wrong(f"key: {what}", {"key": value}, *rest) for what, value, *rest in rows]


def wrong_counts(*names, least=1, none=True):
    wanted = "a positive int" if least == 1 else f"an int of at least {least}"
    values = [least - 1, -1, 1.5, 2.0, True, "2", np.nan, np.array([1, 2]), *[None] * none]
    return [
        wrong
        for name in names
        for wrong in each(name, ValueError, f"{name} must be {wanted}, got ", values)
    ]


def wrong_numbers(name, *, share=False, none=True):
    """Wrong where a positive number is wanted, or with `share` one between 0 and 1."""
    beyond = [0.0, -0.3, np.nan, np.inf, -np.inf, *[1.0] * share]
    return [
        *each(name, ValueError, f"{name} must be .*, got ", beyond),
        *each(name, ValueError, rf"{name} must be a scalar, got shape \(2,\)", [np.ones(2)]),
        *each(name, TypeError, f"{name} must be a number, got True", [True]),
        *each(name, TypeError, f"{name} must be a number, got '0.3'", ["0.3"]),
        *each(name, TypeError, f"{name} must hold real numbers, got complex", [1j]),
        *each(name, TypeError, f"{name} must be a number, got None", [None] * none),
    ]


def wrong_paths(name):
    return each(name, TypeError, f"{name} must be a path, got ", [3, None, b"x"])


def wrong_choices(name):
    values = ["else", 3, ["full"], None]
    return each(name, ValueError, f"{name} must be '.*' or '.*', got ", values)


def wrong_functions(name, *, none=True):
    return each(name, TypeError, f"{name} must be callable, got ", [3, "f", *[None] * none])


def wrong_shapes(*values):
    return each("event_shape", ValueError, "event_shape must be a tu", values)


def wrong_integrators():
    return [
        Wrong(
            "integrator",
            {"integrator": "BAOAB"},
            TypeError,
            "integrator must be one of numpyro_neb",
        )
    ]


def wrong_walks(alternative="", *, unrun=True):
    """No MCMC of a WalkJumpKernel; `alternative` would do as well, `unrun` must have run."""
    text = f"mcmc must be an MCMC of a WalkJumpKernel{alternative}, got "
    values = {"no MCMC": 3, "None": None, "a class": MCMC, "a draw": Y}
    rows = each("mcmc", TypeError, text, values)
    if unrun:
        rows += each("mcmc", ValueError, r"mcmc must have run: call mcmc\.run", {"not run": WALK})
    return rows
