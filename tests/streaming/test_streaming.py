"""Draws that are written as they come, and the state of a sampler in a file."""

import json
import os
import subprocess
import sys
import threading
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray as xr
import zarr
from numpyro.infer import MCMC, NUTS

import numpyro_neb as neb
from numpyro_neb import streaming
from numpyro_neb.files.energy_file import read_arrays, write_arrays
from numpyro_neb.streaming import store as store_room

KEY = jax.random.key(0)
ENERGY = neb.MixtureEnergy(np.random.default_rng(0).normal(size=(4, 2, 3)), 0.5)
KERNEL = neb.WalkJumpKernel(ENERGY, num_steps=2)


def chains(kernel=KERNEL, num_samples=40, num_chains=2, num_warmup=5, **kwargs):
    settings = {"chain_method": "vectorized", "progress_bar": False} | kwargs
    sizes = {"num_warmup": num_warmup, "num_samples": num_samples, "num_chains": num_chains}
    return MCMC(kernel, **sizes, **settings)


def streamed(store, mcmc=None, key=KEY, draws_per_write=10, **kwargs):
    mcmc = chains() if mcmc is None else mcmc
    settings = {"draws_per_write": draws_per_write, "progress_bar": False}
    return neb.stream(mcmc, key, store, **settings, **kwargs)


def assert_draws(data, mcmc):
    """The store holds the draws and fields of an MCMC that has run, bit for bit."""
    draws = mcmc.get_samples(group_by_chain=True)
    assert set(data["posterior"].data_vars) == set(draws)
    for name, values in draws.items():
        np.testing.assert_array_equal(data["posterior"][name].values, values)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    fields = {k: v for k, v in fields.items() if hasattr(v, "shape")}  # an exact walk has no bias
    assert set(data["sample_stats"].data_vars) == set(fields)
    for name, values in fields.items():
        np.testing.assert_array_equal(data["sample_stats"][name].values, values)


@pytest.fixture(scope="module")
def mcmc():
    run = chains()
    run.run(KEY)
    return run


@pytest.fixture
def killed(monkeypatch):
    """Ends a stream at a chosen call of a function, as an error or a kill does."""

    def at(owner, name, number):
        real, calls = getattr(owner, name), []

        def function(*args, **kwargs):
            calls.append(name)
            if len(calls) == number:
                monkeypatch.setattr(owner, name, real)
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, function)

    return at


def test_a_stream_is_a_run(mcmc, tmp_path):
    data = streamed(tmp_path / "draws.zarr")
    assert type(data) is type(neb.to_arviz(mcmc))
    assert_draws(data, mcmc)
    expected = neb.to_arviz(mcmc)
    assert data["posterior"]["x"].dims == ("chain", "draw", "height", "width")
    np.testing.assert_array_equal(data["posterior"]["draw"].values, np.arange(40))
    np.testing.assert_array_equal(
        data["constant_data"]["sigma"], expected["constant_data"]["sigma"]
    )
    assert data["posterior"].attrs["integrator"] == expected["posterior"].attrs["integrator"]
    assert {"r_hat", "ess_bulk"} <= set(az.summary(data, var_names=["x"]).columns)
    chunks = zarr.open_group(tmp_path / "draws.zarr", mode="r")["posterior/y"].chunks
    assert chunks == (2, 10, 2, 3)
    # It is complete: the same call reads it, and walks no more.
    assert_draws(streamed(tmp_path / "draws.zarr"), mcmc)


@pytest.mark.parametrize("chain_method", ["sequential", "parallel"])
def test_chain_methods_and_thinning(chain_method, tmp_path):
    run = chains(num_samples=35, thinning=3, chain_method=chain_method)
    run.run(KEY, extra_fields=("walk.velocity", "~draw.y"))
    fields = {"extra_fields": ("walk.velocity", "~draw.y")}
    data = streamed(tmp_path / "draws.zarr", run, draws_per_write=4, **fields)
    assert data["posterior"]["x"].shape == (2, 11, 2, 3)
    assert_draws(data, run)


def test_one_chain_keys_of_two_kinds_and_a_start(tmp_path):
    start = jnp.ones((2, 3))
    frozen = neb.WalkJumpKernel(ENERGY, frozen=np.eye(2, 3, dtype=bool))
    run = chains(frozen, num_chains=1)
    for key in (jax.random.PRNGKey(1), jax.random.key(1, impl="rbg")):
        run = chains(frozen, num_chains=1)
        run.run(key, init_params=start)
        store = tmp_path / f"{key.dtype}.zarr"
        streamed(store, chains(frozen, num_samples=15, num_chains=1), key, init_params=start)
        fresh = chains(frozen, num_chains=1)
        assert_draws(streamed(store, fresh, key, init_params=start), run)


@pytest.mark.parametrize(
    ("function", "number"),
    [("_append", 1), ("_append", 4), ("write_state", 1), ("write_state", 3), ("_commit", 2)],
)
def test_a_kill_within_a_write(function, number, mcmc, tmp_path, killed, capsys):
    store = tmp_path / "draws.zarr"
    killed(store_room, function, number)
    with pytest.raises(KeyboardInterrupt):
        streamed(store)
    said = capsys.readouterr().err
    if store.exists():
        tree = xr.open_datatree(store, engine="zarr")
        posterior = tree["posterior"]
        assert 0 < posterior.sizes["draw"] < 40
        assert f"after {posterior.sizes['draw']} of 40 draws; the same call resumes" in said
        whole = mcmc.get_samples(group_by_chain=True)["y"][:, : posterior.sizes["draw"]]
        np.testing.assert_array_equal(posterior["y"], whole)
        # A group opened alone is of one piece too.
        assert set(xr.open_zarr(store, group="posterior").sizes) == set(posterior.sizes)
    else:
        assert "after 0 of 40 draws; the same call starts over" in said
    assert_draws(streamed(store), mcmc)
    assert len(list(store.glob(".state-*"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["draws.zarr"]


def test_between_zarrs_own_writes_a_group_is_of_one_piece(mcmc, tmp_path, killed):
    """Killed after the arrays of a group, and their sizes, have been written in part."""
    store = tmp_path / "draws.zarr"
    killed(zarr.Array, "resize", 3)
    with pytest.raises(KeyboardInterrupt):
        streamed(store)
    # Each array's own metadata: what zarr opens is the group's, which is replaced later.
    shapes = [json.loads(path.read_text())["shape"] for path in store.glob("posterior/*/zarr.json")]
    lengths = {shape[1] for shape in shapes if len(shape) > 1}
    assert len(lengths) == 2  # it was in the middle
    for group in ("posterior", "sample_stats"):
        assert xr.open_zarr(store, group=group).sizes["draw"] == min(lengths)
    assert_draws(streamed(store), mcmc)


def test_more_draws_of_a_store_that_is_complete(mcmc, tmp_path):
    store = tmp_path / "draws.zarr"
    streamed(store, chains(num_samples=14))
    assert_draws(streamed(store), mcmc)
    with pytest.raises(ValueError, match="holds 40 draws, more than the 14 asked for"):
        streamed(store, chains(num_samples=14))


def test_no_compilation_after_the_second_piece(tmp_path, monkeypatch):
    compiled, at_piece = [], []
    event = "/jax/core/compile/backend_compile_duration"
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if name == event else None
    )
    commit = store_room._commit
    monkeypatch.setattr(
        store_room, "_commit", lambda path: (at_piece.append(len(compiled)), commit(path))
    )
    streamed(tmp_path / "draws.zarr", chains(num_samples=60), draws_per_write=10)
    assert at_piece[0] > 0  # it listens
    assert at_piece[1:] == [at_piece[1]] * 5


@pytest.mark.slow
def test_a_tuned_walk_on_a_model(tmp_path, killed):
    def model(seen):
        y = numpyro.sample("y", neb.SmoothedDensity(ENERGY))
        numpyro.sample("seen", numpyro.distributions.Normal(y.sum(), 1.0), obs=seen)

    kernel = neb.WalkJumpKernel(model=model, adapt_step_size=True)
    run = chains(kernel, num_warmup=20, num_samples=20)
    run.run(KEY, 1.5)
    arguments = {"model_args": (1.5,), "mcmc": run}
    killed(store_room, "_commit", 2)
    with pytest.raises(KeyboardInterrupt):
        streamed(tmp_path / "draws.zarr", **arguments)
    data = streamed(tmp_path / "draws.zarr", **arguments)
    assert_draws(data, run)
    assert data["observed_data"]["seen"].values.item() == 1.5
    with pytest.raises(ValueError, match="another model arguments"):
        streamed(tmp_path / "draws.zarr", run, model_args=(2.5,))


SCRIPT = """
import sys
import jax, numpy as np, numpyro, pandas as pd
import numpyro.distributions as dist
from numpyro.infer import MCMC
import numpyro_neb as neb

def made(centre):
    energy = neb.MixtureEnergy(np.array([[centre, 0.0]]), 0.5)

    def model(table, scale=1.0):
        y = numpyro.sample("y", neb.SmoothedDensity(energy))
        numpyro.sample("radon", dist.Normal(y.sum(), scale), obs=table["radon"].to_numpy())

    return model

kernel = neb.WalkJumpKernel(model=made(0.0), integrator=neb.integrators.BAOAB())
mcmc = MCMC(kernel, num_warmup=3, num_samples=int(sys.argv[1]), progress_bar=False)
table = pd.DataFrame({"county": ["Cork", "Kerry"], "radon": [0.1, 0.2]})
settings = {"model_args": (table,), "draws_per_write": 5, "progress_bar": False}
data = neb.stream(mcmc, jax.random.key(0), sys.argv[2], **settings)
mcmc.run(jax.random.key(0), table)
np.testing.assert_array_equal(data["posterior"]["y"].values[0], mcmc.get_samples()["y"])
"""


def started(script, number, store, seed="0"):
    command = [sys.executable, "-W", "error::UserWarning", "-c", script, str(number), str(store)]
    environment = os.environ | {"PYTHONHASHSEED": seed}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_same_script_goes_on_and_another_is_refused(tmp_path):
    """In other processes, with other hashes of strings; a data frame has a column of strings."""
    store = tmp_path / "draws.zarr"
    first = started(SCRIPT, 5, store, seed="1")
    assert first.returncode == 0, first.stderr
    last = started(SCRIPT.replace("def made", "# The same.\n\n\ndef made"), 10, store, seed="2")
    assert last.returncode == 0, last.stderr


REFUSED = {
    "made(0.0)": ("made(9.0)", r"another model \(closure variable 'energy'\.locs?: "),
    "scale=1.0": ("scale=2.0", r"another model \(default argument 'scale': '1.0', now '2.0'"),
    "y.sum()": ("y.prod()", r"another model \(code: "),
    '"Kerry"': ('"Clare"', r"another model arguments \(\['table'\] column 'county'"),
    "0.2]": ("0.3]", r"another model arguments \(\['table'\] column 'radon'"),
}


@pytest.fixture(scope="module")
def of_script(tmp_path_factory):
    store = tmp_path_factory.mktemp("script") / "draws.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", "5", str(store)])
        exec(compile(SCRIPT, "script.py", "exec"), {"__name__": "script"})
    return store


@pytest.mark.parametrize("before", REFUSED)
def test_another_model_is_refused(before, of_script, monkeypatch):
    after, message = REFUSED[before]
    assert before in SCRIPT
    monkeypatch.setattr(sys, "argv", ["script.py", "10", str(of_script)])
    script = compile(SCRIPT.replace(before, after), "script.py", "exec")
    with pytest.raises(ValueError, match=message):
        exec(script, {"__name__": "script"})


def test_what_cannot_be_compared_is_told(tmp_path):
    def model(lock):
        numpyro.sample("y", neb.SmoothedDensity(ENERGY))

    kernel = neb.WalkJumpKernel(model=model, integrator=neb.integrators.BAOAB())
    for number in (5, 10):
        run = chains(kernel, num_samples=number, num_chains=1)
        settings = {"model_args": (threading.Lock(),), "draws_per_write": 5}
        if number == 5:
            streamed(tmp_path / "draws.zarr", run, **settings)
        else:
            with pytest.warns(UserWarning, match=r"can't be compared: .*'lock'.* \(lock\)"):
                streamed(tmp_path / "draws.zarr", run, **settings)


@pytest.mark.parametrize(
    "name", ["a/y", "/y", "a\\y", ".", "..", "", "draw", "zarr.json", "y" * 250]
)
def test_names_that_no_store_can_hold(name, tmp_path):
    def model():
        numpyro.sample(name, neb.SmoothedDensity(ENERGY))

    kernel = neb.WalkJumpKernel(model=model, integrator=neb.integrators.BAOAB())
    with pytest.raises(ValueError, match=r"a site must have a name .*, got .*divider='\.'"):
        streamed(tmp_path / "draws.zarr", chains(kernel))
    with pytest.raises(ValueError, match="a dimension must have a name"):
        streamed(tmp_path / "draws.zarr", dims={"y": [name, "b"]})
    assert list(tmp_path.iterdir()) == []


def test_the_bias_of_a_tuned_walk_is_written(tmp_path):
    """As `to_arviz` writes it and warns of it."""
    kernel = neb.WalkJumpKernel(
        neb.MixtureEnergy(np.zeros((1, 2)), 0.7),
        integrator=neb.integrators.ULA(),
        num_steps=20,
        adapt_step_size=True,
        max_bias=0.3,
    )
    mcmc = chains(kernel, num_samples=200, num_chains=16, num_warmup=100)
    mcmc.run(KEY)
    with warnings.catch_warnings(record=True, action="always") as of_stream:
        data = streamed(tmp_path / "a.zarr", mcmc, draws_per_write=100)
    with warnings.catch_warnings(record=True, action="always") as of_run:
        expected = neb.to_arviz(mcmc)["sample_stats"].attrs
    assert [str(w.message) for w in of_stream] == [str(w.message) for w in of_run]
    for name in ("variance_bias", "variance_bias_mcse"):
        np.testing.assert_allclose(data["sample_stats"].attrs[name], expected[name], rtol=1e-5)


def test_scoped_sites_with_another_divider(tmp_path):
    def model():
        numpyro.sample("y", neb.SmoothedDensity(ENERGY))

    scoped = numpyro.handlers.scope(model, prefix="a", divider=".")
    kernel = neb.WalkJumpKernel(model=scoped, integrator=neb.integrators.BAOAB())
    streamed(tmp_path / "draws.zarr", chains(kernel, num_samples=10))
    run = chains(kernel, num_samples=20)
    run.run(KEY)
    data = streamed(tmp_path / "draws.zarr", chains(kernel, num_samples=20))
    assert set(data["posterior"].data_vars) == {"a.y", "a.y_jump"}
    assert_draws(data, run)


OTHERS = {
    "key": ({}, {"key": jax.random.key(1)}),
    "energy": ({"kernel": neb.WalkJumpKernel(ENERGY.at(0.6), num_steps=2)}, {}),
    "num_steps": ({"kernel": neb.WalkJumpKernel(ENERGY, num_steps=3)}, {}),
    "integrator": (
        {"kernel": neb.WalkJumpKernel(ENERGY, num_steps=2, integrator=neb.integrators.ULA())},
        {},
    ),
    "num_chains": ({"num_chains": 3}, {}),
    "num_warmup": ({"num_warmup": 6}, {}),
    "thinning": ({"thinning": 2, "num_samples": 80}, {}),
    "chain_method": ({"chain_method": "sequential"}, {}),
    "extra_fields": ({}, {"extra_fields": ("unit",)}),
    "init_params": ({}, {"init_params": jnp.zeros((2, 2, 3))}),
    "draws_per_write": ({}, {"draws_per_write": 20}),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "draws.zarr"
    streamed(path)
    return path


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused(name, store):
    of_chains, of_stream = OTHERS[name]
    with pytest.raises(ValueError, match=f"is from a run with another {name} .*use another path"):
        streamed(store, chains(**of_chains), **of_stream)


def as_in_0_1_0(path, **others):
    """Rewrites the settings of a state file, and others, under their names in version 0.1.0."""
    kind = "numpyro_neb sampler state"
    config, arrays = read_arrays(path, kind)
    old = {"model_args": "model arguments", "num_samples_mod_thinning": "num_samples % thinning"}
    settings = config["settings"] | others
    named = {old.get(name, name): value for name, value in settings.items()}
    del named["identity"]
    write_arrays(path, kind, config | {"settings": named}, arrays)
    return settings.keys() ^ named.keys()


def test_an_integrator_may_gain_fields(mcmc, tmp_path):
    """A state of a release whose integrator had fewer goes on, if their values are the same."""
    path = tmp_path / "state"
    streaming.save_state(path, mcmc)
    content = path.read_bytes()
    as_in_0_1_0(path, integrator="BAOAB {'step_size': 1.0}")
    streaming.load_state(path, chains())
    for other in ("BAOAB {'step_size': 0.5}", "ULA {'step_size': 1.0}", "BAOAB f()", 3):
        path.write_bytes(content)
        as_in_0_1_0(path, integrator=other)
        with pytest.raises(ValueError, match="is from a run with another integrator"):
            streaming.load_state(path, chains())


def test_a_store_and_a_state_of_version_0_1_0(mcmc, tmp_path):
    store = tmp_path / "draws.zarr"
    streamed(store, chains(num_samples=20))
    (state,) = store.glob(".state-*")
    content = state.read_bytes()
    for name, words in (("model_args", "model arguments"), ("num_samples_mod_thinning", "% thin")):
        as_in_0_1_0(state, **{name: 1})
        with pytest.raises(ValueError, match=rf"another .*{words}.* \(1, now"):
            streamed(store)
        state.write_bytes(content)
    assert len(as_in_0_1_0(state)) == 5
    assert_draws(streamed(store), mcmc)
    path, first = tmp_path / "state", chains(num_samples=16)
    first.run(KEY)
    streaming.save_state(path, first)
    assert len(as_in_0_1_0(path)) == 3
    streaming.load_state(path, first)
    first.run(first.post_warmup_state.rng_key)
    expected = mcmc.get_samples(group_by_chain=True)["y"][:, 16:32]
    np.testing.assert_array_equal(first.get_samples(group_by_chain=True)["y"], expected)


def test_bad_arguments(tmp_path, store, untyped):
    nuts = MCMC(NUTS(potential_fn=lambda z: z @ z), num_warmup=1, num_samples=1)
    with pytest.raises(TypeError, match="mcmc must be an MCMC of a WalkJumpKernel, got MCMC"):
        streamed(tmp_path / "draws.zarr", nuts)
    for wrong in (0, -1, 2.5, True, "many"):
        with pytest.raises(
            ValueError, match=f"draws_per_write must be a positive int, got .?{wrong}"
        ):
            streamed(tmp_path / "draws.zarr", draws_per_write=wrong)
    (tmp_path / "file").write_text("mine")
    for foreign in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="store must be a numpyro_neb stream or a new path"):
            streamed(foreign)
    assert (tmp_path / "file").read_text() == "mine"
    (state,) = store.glob(".state-*")
    content = state.read_bytes()
    for damaged in (content[:-5], content[:-1] + bytes([content[-1] ^ 1])):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is truncated|is damaged"):
            streamed(store)
    state.write_bytes(content)


def test_diverging_walks_are_told_of(tmp_path):
    kernel = neb.WalkJumpKernel(ENERGY, integrator=neb.integrators.BAOAB(step_size=1e5))
    run = chains(kernel)
    run.run(KEY)
    with pytest.warns(UserWarning, match="of 80 draws are diverging"):
        data = streamed(tmp_path / "draws.zarr", run)
    assert_draws(data, run)


RESUMED = """
import sys
import jax, numpy as np
from numpyro.infer import MCMC
import numpyro_neb as neb

path, energy, out = sys.argv[1:]
kernel = neb.WalkJumpKernel(neb.load(energy), num_steps=2)
settings = {"chain_method": "vectorized", "progress_bar": False}
mcmc = MCMC(kernel, num_warmup=5, num_samples=24, num_chains=2, **settings)
neb.streaming.load_state(path, mcmc)
mcmc.run(mcmc.post_warmup_state.rng_key)
np.save(out, mcmc.get_samples(group_by_chain=True)["y"])
"""


def test_a_saved_state_goes_on_in_a_new_process(mcmc, tmp_path):
    first = chains(num_samples=16)
    first.run(KEY)
    streaming.save_state(tmp_path / "state", first)
    neb.save(tmp_path / "energy", ENERGY)
    paths = [str(tmp_path / name) for name in ("state", "energy", "y.npy")]
    subprocess.run([sys.executable, "-c", RESUMED, *paths], check=True, env=os.environ)
    expected = mcmc.get_samples(group_by_chain=True)["y"][:, 16:]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


def test_a_state_that_does_not_fit(mcmc, tmp_path, x64, untyped):
    path = tmp_path / "state"
    streaming.save_state(path, mcmc)
    with pytest.raises(ValueError, match="is from a run with another num_chains"):
        streaming.load_state(path, chains(num_chains=3))
    with pytest.raises(ValueError, match="must have run"):
        streaming.save_state(path, chains())
    neb.save(path, ENERGY)
    with pytest.raises(ValueError, match="did not write it as a numpyro_neb sampler state"):
        streaming.load_state(path, chains())
