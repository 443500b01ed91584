"""What tells one computation from another."""

import enum
import functools
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import pytest
import xarray as xr

import numpyro_neb as neb
from numpyro_neb._internal.fingerprints import difference, fingerprint, reservations

PROGRAM = """
import enum, functools, dataclasses
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
import numpyro_neb as neb

WIDTH = 2.5
WEIGHTS = {"b": np.arange(3.0), "a": {"x", "y", "z", "w"}}

def helper(x):
    return x * WIDTH

class Colour(enum.Enum):
    RED = 1

class Mine(eqx.Module):
    weight: jax.Array
    activation: callable = jax.nn.silu
    rate = 0.1

    def __call__(self, x):
        return self.activation(self.weight * x) + self.rate

@dataclasses.dataclass
class Settings:
    tags: frozenset
    colour: Colour

def made(centre, mine=Mine(jnp.ones(2))):
    energy = neb.MixtureEnergy(np.array([[centre, 0.0]]), 0.5)
    settings = Settings(frozenset({"p", "q", "r", "s"}), Colour.RED)

    def model(table=None, *, scale=1.0):
        y = numpyro.sample("y", neb.SmoothedDensity(energy))
        def inner(x):
            return helper(mine(x)) + 1.25
        if settings.colour in (Colour.RED,) and "p" in {"p", "q", "u"}:
            numpyro.sample("o", dist.Normal(inner(y).sum(), scale), obs=len(WEIGHTS))
    return model

model = made(0.0)
"""


def run(text, name="model"):
    """What a program defines under that name."""
    module = types.ModuleType("__main__")
    module.__dict__["__name__"] = "program"
    exec(compile(textwrap.dedent(text), "program.py", "exec"), module.__dict__)
    return module.__dict__[name]


def of(thing):
    return fingerprint({"thing": thing})


def differ(one, other):
    found = difference(of(one), of(other))
    assert (found is None) == (of(one)["sha256"] == of(other)["sha256"])
    return found


def test_another_process_with_another_hash_seed_finds_the_same():
    code = PROGRAM + (
        "import json\nfrom numpyro_neb._internal.fingerprints import fingerprint\n"
        "print(json.dumps(fingerprint({'model': model}), sort_keys=True))"
    )
    found = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(ran.stdout))
    assert found[0] == found[1]
    assert found[0]["unknown"] == []
    # And here it is another object of another module, in other lines.
    assert found[0]["sha256"] == fingerprint({"model": run("\n\n" + PROGRAM)})["sha256"]


SAME = {
    "a comment": ("        y = ", "        # of the walk\n        y = "),
    "an empty line": ("\nWEIGHTS", "\n\n\nWEIGHTS"),
    "a docstring": ("scale=1.0):\n", 'scale=1.0):\n        "What it models."\n'),
    "the name of a local variable": ("inner", "inside"),
    "the order of a dictionary": (
        '{"b": np.arange(3.0), "a": {"x", "y", "z", "w"}}',
        '{"a": {"w", "x", "y", "z"}, "b": np.arange(3.0)}',
    ),
    "a global variable that the model does not read": ("WIDTH =", "DEPTH = 4\nWIDTH ="),
}


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_matter(change):
    before, after = SAME[change]
    assert before in PROGRAM
    assert differ(run(PROGRAM), run(PROGRAM.replace(before, after))) is None


OTHER = {
    "an array in a closure": ("made(0.0)", "made(1e-3)", r"closure variable 'energy'\.locs?: "),
    "a constant of a nested function": ("+ 1.25", "+ 1.5", r"\(code: "),
    "another operation": ("mine(x)) +", "mine(x)) -", r"\(code: "),
    "another name": ("neb.SmoothedDensity(energy)", "neb.SmoothedDensity(other)", r"\(code: "),
    "a default": ("scale=1.0", "scale=2.0", r"default argument 'scale': '1.0', now '2.0'"),
    "a global variable": ("WIDTH = 2.5", "WIDTH = 2", r"global variable 'WIDTH': '2.5', now '2'"),
    "a function that it calls": ("x * WIDTH", "x / WIDTH", r"global variable 'helper': code"),
    "a method": ("self.weight * x", "self.weight + x", r"__call__: code"),
    "a constant of a class": ("rate = 0.1", "rate = 0.2", r"\.rate: '0.1', now '0.2'"),
    "an attribute": ("jnp.ones(2)", "jnp.array([1.0, 1.5])", r"\.weight: "),
    "an activation": ("jax.nn.silu", "jax.nn.relu", r"jax.nn.silu.*jax.nn.relu"),
    "a member of a set": ('{"p", "q", "r", "s"}', '{"p", "q", "r", "t"}', r"\.tags: "),
    "a member of a constant set": ('{"p", "q", "u"}', '{"p", "q", "v"}', r"\(code: "),
    "an enumeration": ("RED = 1", "RED = 2", r"'1', now '2'"),
    "an item": ("np.arange(3.0)", "np.arange(4.0)", r"global variable 'WEIGHTS'\['b'\]"),
}


@pytest.mark.parametrize("change", OTHER)
def test_what_matters_is_named(change):
    before, after, message = OTHER[change]
    assert before in PROGRAM
    found = differ(run(PROGRAM), run(PROGRAM.replace(before, after)))
    assert re.search(message, str(found))


def table(**changes):
    columns = {
        "county": ["Cork", "Kerry"],
        "radon": [0.1, 0.2],
        "kind": pd.Categorical(["a", "b"], ["a", "b", "c"]),
        "day": pd.to_datetime(["2020-01-01", "2021-01-01"]),
        "count": pd.array([1, None], dtype="Int64"),
    }
    index = changes.pop("index", ["u", "v"])
    return pd.DataFrame(columns | changes, index=index)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"county": ["Cork", "Clare"]}, "column 'county'"),
        ({"radon": [0.1, 0.3]}, "column 'radon'"),
        ({"kind": pd.Categorical(["a", "c"], ["a", "b", "c"])}, "column 'kind'"),
        ({"kind": pd.Categorical(["a", "b"], ["a", "b", "d"])}, "column 'kind'"),
        ({"day": pd.to_datetime(["2020-01-01", "2021-01-02"])}, "column 'day'"),
        ({"count": pd.array([1, 2], dtype="Int64")}, "column 'count'"),
        ({"index": ["u", "w"]}, "index"),
        ({"more": [1, 2]}, "columns"),
    ],
)
def test_tables(changes, place):
    assert differ(table(), table()) is None
    assert place in str(differ(table(), table(**changes)))


def test_labelled_arrays():
    array = lambda last, name="t": xr.DataArray(  # noqa: E731
        np.ones(2), dims=name, coords={name: ["a", last]}
    )
    assert differ(array("b"), array("b")) is None
    assert "variable 't'" in str(differ(array("b"), array("c")))
    assert differ(xr.Dataset({"v": array("b")}), xr.Dataset({"v": array("c")})) is not None


class Shade(enum.Enum):
    LIGHT, DARK = 1, 2


def made(x):
    return x


PAIRS = {
    "dtype": (np.zeros(2, np.float32), np.zeros(2)),
    "shape": (np.zeros((2, 1)), np.zeros((1, 2))),
    "one number": (np.zeros(3), np.array([0.0, 0.0, 5e-324])),
    "strided": (np.arange(6.0)[::2], np.arange(6.0)[1::2]),
    "strings": (np.array(["a", "b"]), np.array(["a", "c"])),
    "objects": (np.array(["a", None], object), np.array(["a", 1.0], object)),
    "records": (np.zeros(2, "f4,i8"), np.ones(2, "f4,i8")),
    "dates": (np.array(["2020"], "M8[D]"), np.array(["2021"], "M8[D]")),
    "masks": (np.ma.array([1.0, 2.0], mask=[0, 1]), np.ma.array([1.0, 2.0], mask=[0, 0])),
    "empty": (np.zeros((0, 2)), np.zeros((0, 3))),
    "keys": (jax.random.key(0), jax.random.key(1)),
    "kinds of keys": (jax.random.key(0), jax.random.key(0, impl="rbg")),
    "partial": (functools.partial(made, 1), functools.partial(made, 2)),
    "compiled": (jax.jit(lambda x: x), jax.jit(lambda x: x + 1)),
    "mapped": (jax.vmap(made, 0), jax.vmap(made, 1)),
    "methods": (neb.MixtureEnergy([0.0], 1.0).denoise, neb.MixtureEnergy([0.0], 2.0).denoise),
    "distributions": (dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0)),
    "handlers": (
        numpyro.handlers.condition(made, {"y": 1.0}),
        numpyro.handlers.condition(made, {"y": 2.0}),
    ),
    "optimisers": (optax.adam(1e-3), optax.adam(2e-3)),
    "schedules": (
        optax.adam(optax.cosine_decay_schedule(1e-3, 10)),
        optax.adam(optax.cosine_decay_schedule(1e-3, 20)),
    ),
    "chains": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(1e-3)),
    ),
    "members": (Shade.LIGHT, Shade.DARK),
    "large integers": (10**5000, 10**5000 + 1),
    "long lists": (["a"] * 100, ["a"] * 99 + ["b"]),
    "nested": ([{"a": (1, 2)}], [{"a": (1, 3)}]),
    "kinds of numbers": (1, True),
    "generators of numbers": (np.random.default_rng(0), np.random.default_rng(1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    one, other = PAIRS[name]
    assert differ(one, one) is None
    assert differ(one, other) is not None


def test_equal_copies_and_one_object_twice_are_the_same():
    x = np.arange(3.0)
    assert differ([x, x], [x, x.copy()]) is None
    assert differ([x, x], [x, x + 1]) is not None


def test_circles_end():
    def circle(constant):
        def even(n):
            return n == constant or odd(n - 1)

        def odd(n):
            return n != 0 and even(n - 1)

        return even

    assert differ(circle(0), circle(0)) is None
    assert differ(circle(0), circle(2)) is not None
    own = []
    own.append(own)
    assert of(own)["unknown"] == []
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert of(deep)["unknown"] == ["thing (too deep)"]


def test_what_a_property_computed_is_not_state():
    class Lazy:
        def __init__(self, n):
            self.n = n

        @functools.cached_property
        def double(self):
            return 2 * self.n

    fresh, used = Lazy(1), Lazy(1)
    assert used.double == 2
    assert differ(fresh, used) is None
    assert differ(fresh, Lazy(2)) is not None


def test_what_cannot_be_told_is_listed_by_its_place():
    with open(os.devnull) as file:
        found = of({"file": file, "items": (i for i in range(3)), "lock": threading.Lock()})
    assert found["unknown"] == [
        "thing['file'] (TextIOWrapper)",
        "thing['items'] (generator)",
        "thing['lock'] (lock)",
    ]
    assert "these can't be compared: thing['file'] (TextIOWrapper)" in reservations(found, found)

    class Stubborn:
        def __reduce_ex__(self, protocol):
            raise RuntimeError

    assert of(Stubborn())["unknown"] == [f"thing ({Stubborn.__qualname__})"]


def test_versions():
    ours = of(PAIRS["optimisers"][0])
    assert ours["versions"].keys() == {"Python", "optax"}
    assert ours["versions"]["optax"] == optax.__version__
    theirs = ours | {"versions": ours["versions"] | {"optax": "0.0.1"}}
    assert difference(theirs, ours) is None
    assert "began with optax 0.0.1" in reservations(theirs, ours)
    assert reservations(ours, ours) is None


def test_another_python():
    """It compiles the same text differently: that is not another model."""
    ours, other = of(lambda x: x + 1), of(lambda x: x + 2)
    theirs = other | {"versions": other["versions"] | {"Python": "3.10"}}
    assert difference(theirs, ours).startswith("Python version ('3.10', now ")
    assert difference(other, ours).startswith("thing (code: ")


def test_a_users_module_counts_where_it_is_read():
    module = types.ModuleType("mine")
    module.rate, module.unused = 1.0, 2.0
    scope = {"mine": module}
    exec("def model(x): return mine.rate * x", scope)
    before = of(scope["model"])
    module.unused = 3.0
    assert difference(before, of(scope["model"])) is None
    module.rate = 4.0
    assert "global variable 'mine'.rate" in difference_in_parts(before, of(scope["model"]))


def difference_in_parts(one, other):
    return str([p for p, v in one["parts"]["thing"].items() if other["parts"]["thing"].get(p) != v])


def test_messages_are_limited():
    many = {f"{i} {'long ' * 20}": float(i) for i in range(3000)}
    found = of(many)
    assert len(json.dumps(found)) < 1 << 19
    assert differ(many, many | {f"2999 {'long ' * 20}": 0.0}) is not None


def test_memory_mapped_arrays_stay_on_disk(tmp_path):
    values = np.arange(1000.0).reshape(100, 10)
    np.save(tmp_path / "x.npy", values)
    assert differ(np.load(tmp_path / "x.npy", mmap_mode="r"), values) is None


def test_the_source_is_not_needed():
    scope = {}
    exec(compile("def model(x): return x + 1", "<nowhere>", "exec"), scope)
    with pytest.raises(OSError, match="source"):
        inspect.getsource(scope["model"])
    assert of(scope["model"])["unknown"] == []


def test_jax_arrays_by_value():
    assert differ(jnp.arange(3.0), jnp.arange(3.0)) is None
    assert differ(jnp.arange(3.0), np.arange(3.0, dtype=np.float32)) is None
