"""Checkpoints and stores that somebody else made: refused, with the cause, and nothing done."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numcodecs
import numpy as np
import pytest
from numpyro.infer import MCMC
from trainings import fit, same

import numpyro_neb as neb
from numpyro_neb._internal import atomic_files
from numpyro_neb._internal.atomic_files import write_sums
from numpyro_neb.files.energy_file import read_arrays, write_arrays

ENERGY = neb.MixtureEnergy(np.eye(3), 0.5)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, fit(checkpoint_dir=folder, checkpoint_every=25)


@pytest.fixture
def checkpoint(whole, tmp_path, monkeypatch):
    """The newest checkpoint in a copy of a whole training."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run" / "50"


def refused(checkpoint, cause):
    with pytest.raises(ValueError, match=cause):
        fit(checkpoint_dir=checkpoint.parent)
    assert os.listdir() == ["run"]


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "state/../../../x", "\x00", ""])
def test_names_that_lead_out_of_the_folder(checkpoint, name):
    sums = checkpoint / "SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  {name}\n")
    refused(checkpoint, "is damaged .*is missing")


def test_pickles_dropped_in(checkpoint, whole):
    for place in ("state/aggregate.pkl", "checkpoint", "header/extra.pickle"):
        (checkpoint / place).write_bytes(pickle.dumps(Evil()))
        refused(checkpoint, "is not among its SHA256SUMS")
        (checkpoint / place).unlink()
    for place in ("header/metadata", "state/_METADATA", "_CHECKPOINT_METADATA"):
        before = (checkpoint / place).read_bytes()
        (checkpoint / place).write_bytes(pickle.dumps(Evil()))
        refused(checkpoint, "the checksum of .* does not match")
        # Where the checksums are forged too, nothing unpickles it all the same.
        write_sums(checkpoint)
        try:
            same(fit(checkpoint_dir=checkpoint.parent), whole[1])
        except ValueError as error:
            cause = str(error)
            assert "is damaged" in cause
        assert os.listdir() == ["run"]
        (checkpoint / place).write_bytes(before)
        write_sums(checkpoint)


def test_a_pipe_is_no_file(checkpoint):
    os.mkfifo(checkpoint / "state" / "pipe")
    refused(checkpoint, "pipe is neither a file nor a folder")


HEADERS = {
    "no progress": ({"progress": {}}, "is damaged"),
    "another progress": ({"progress": {"stopped": 1, "validation": [1, 2]}}, "is damaged"),
    "no identity": ({"identity": []}, "is damaged"),
    "another training": ({"identity": {}}, "holds a training run with another"),
    "the past": ({"version": 0}, "has format version 0, and this numpyro_neb reads 2"),
    "version 1 of nothing": ({"version": 1}, "is damaged"),
    "version 1 of no training": ({"version": 1, "arguments": {}}, "is damaged"),
    "version 1 in a list": ({"version": 1, "arguments": []}, "is damaged"),
    "the future": ({"version": 10**9}, "has format version 1000000000, and this"),
    "a version in words": ({"version": "1"}, "has format version '1', and this"),
    "no version": ({"version": None}, "has format version None, and this"),
    "other arrays": ({"arrays": "0" * 64}, "the checksum of its arrays does not match"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_forged_header(checkpoint, name):
    changes, cause = HEADERS[name]
    path = checkpoint / "header" / "metadata"
    header = json.loads(path.read_text()) | changes
    del header["sha256"]
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(header | {"sha256": digest}))
    write_sums(checkpoint)
    refused(checkpoint, cause)


LYING = """
import json, resource, sys
import tensorstore as ts
from numpyro_neb._internal.atomic_files import write_sums
from trainings import fit
from pathlib import Path

folder = Path(sys.argv[1])
store = {"driver": "ocdbt", "base": f"file://{folder / '50' / 'state'}/"}
long = [10**12]
for lie in ({"chunks": [10**6]}, {"shape": long, "chunks": long}, {"dtype": "|V1000000000"}):
    kept = ts.KvStore.open(store).result()
    name = min(key for key in kept.list().result() if key.endswith(b".zarray"))
    array = json.loads(kept.read(name).result().value)
    lie = {k: v * len(array["shape"]) if isinstance(v, list) else v for k, v in lie.items()}
    kept.write(name, json.dumps(array | lie).encode()).result()
    write_sums(folder / "50")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        fit(checkpoint_dir=folder)
    except ValueError as error:
        print("refused" if "is damaged" in str(error) else error)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print("little" if more < 300e3 else more)
    kept.write(name, json.dumps(array).encode()).result()
"""


@pytest.mark.slow
def test_arrays_that_claim_terabytes(checkpoint):
    """In a process of its own: orbax leaves tasks behind that fail later and say so."""
    paths = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    command = [sys.executable, "-c", LYING, str(checkpoint.parent)]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["refused", "little"] * 3


def streamed(path, num_samples=20):
    settings = {"num_chains": 2, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(neb.WalkJumpKernel(ENERGY), num_warmup=5, num_samples=num_samples, **settings)
    return neb.stream(mcmc, jax.random.key(0), path, draws_per_write=10, progress_bar=False)


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "draws.zarr"
    streamed(path)
    return path


@pytest.fixture
def store(whole_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(whole_store, tmp_path / "draws.zarr")


def store_refused(store, cause, num_samples=30):
    with pytest.raises(ValueError, match=cause):
        streamed(store, num_samples)
    assert "executed" not in os.listdir()


def test_links_in_a_store(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(store / "posterior" / "x" / "c")
    (store / "posterior" / "x" / "c").symlink_to(tmp_path / "elsewhere")
    store_refused(store, "c is a symbolic link")
    assert os.listdir(tmp_path / "elsewhere") == []
    # Nor through the folder that is renamed at last.
    (tmp_path / ".new.zarr.tmp").symlink_to(tmp_path / "elsewhere")
    streamed(tmp_path / "new.zarr")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_codec_that_unpickles(store):
    """Zarr's format 2 has one, and reads what it is given."""
    shutil.rmtree(store / "posterior" / "y")
    folder = store / "posterior" / "y"
    folder.mkdir()
    metadata = {"zarr_format": 2, "shape": [2, 20, 3], "chunks": [2, 10, 3], "dtype": "|O"}
    metadata |= {"compressor": None, "fill_value": None, "order": "C"}
    (folder / ".zarray").write_text(json.dumps(metadata | {"filters": [{"id": "pickle"}]}))
    values = np.empty((2, 10, 3), object)
    values[:] = Evil()
    (folder / "0.0.0").write_bytes(numcodecs.Pickle().encode(values))
    for num_samples in (20, 30):
        store_refused(store, "is damaged: .*zarray is of Zarr's format 2", num_samples)


def rewrite(path, name, lie):
    """Rewrites an array's metadata where it is: in its own file, or in that of all of a group's."""
    content = json.loads(path.read_text())
    inside = content.get("consolidated_metadata", {}).get("metadata", {})
    (inside.get(name, {}) if content["node_type"] == "group" else content).update(lie)
    path.write_text(json.dumps(content))


def chunks(size):
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": size}}}


GZIP = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]
LIES = {
    "large chunks": ("posterior/y", chunks([2, 10**12, 3]), "has chunks of"),
    "large constant chunks": (
        "constant_data/sigma",
        chunks([10**12]),
        "has chunks of|be a numpyro_neb stream",
    ),
    "many chains": ("sample_stats/lp", {"shape": [10**12, 20]}, "has 1000000000000 chains"),
    "more dimensions": (
        "sample_stats/diverging",
        {"shape": [2, 20, 10**12]},
        "has chunks of|be a numpyro_neb stream",
    ),
    "a long event": (
        "posterior/y",
        {"shape": [2, 20, 10**12]} | chunks([2, 10, 10**12]),
        "posterior/y has changed",
    ),
    "another dtype": ("posterior/y", {"data_type": "float16"}, "posterior/y has changed"),
    "a codec": ("posterior/y", {"codecs": GZIP}, r"encoded by \['gzip'\]|be a numpyro_neb stream"),
    "no such codec": (
        "posterior/y",
        {"codecs": [{"name": "os.system"}]},
        r"encoded by \['os.system'\]|be a numpyro_neb stream",
    ),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_lying_store(store, name, everywhere):
    array, lie, cause = LIES[name]
    rewrite(store / array / "zarr.json", array, lie)
    if everywhere:
        rewrite(store / "zarr.json", array, lie)
        group, _, inner = array.partition("/")
        rewrite(store / group / "zarr.json", inner, lie)
    store_refused(store, cause)


def test_a_forged_state(store):
    (path,) = store.glob(".state-*")
    config, arrays = read_arrays(path, "numpyro_neb sampler state")
    dtype = jnp.result_type(float)
    forgeries = [
        ([], arrays, "does not hold a state"),
        ({"settings": 5, "dtypes": {}}, arrays, "does not hold a state"),
        (config | {"dtypes": {}}, arrays, "holds another state"),
        (config, {}, "holds another state"),
        (config, arrays | {"more": np.ones(3)}, "holds another state"),
        (config, arrays | {".lp": np.ones(3, dtype)}, f".lp is '{dtype}' of shape"),
        (config, arrays | {".lp": np.ones(2, np.int32)}, f".lp is '{dtype}' of shape"),
        (config, arrays | {".rng_key": np.ones(2, np.float32)}, ".rng_key is 'key<fry>' of shape"),
        (config, arrays | {".rng_key": np.ones((2, 3), np.uint32)}, ".rng_key is 'key<fry>'"),
    ]
    for configuration, forged, cause in forgeries:
        write_arrays(path, "numpyro_neb sampler state", configuration, forged)
        store_refused(store, cause)
    path.unlink()
    store_refused(store, r"is damaged: .state-20.safetensors is missing")


def test_what_a_desktop_leaves_in_a_checkpoint_is_no_damage(tmp_path):
    (tmp_path / "arrays").write_bytes(b"numbers")
    atomic_files.write_sums(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"icons")
    atomic_files.check_sums(tmp_path)
    (tmp_path / "more").write_bytes(b"")
    with pytest.raises(ValueError, match="more is not among its SHA256SUMS"):
        atomic_files.check_sums(tmp_path)
