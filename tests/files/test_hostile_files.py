"""Files of somebody else's, or that a disk has spoilt: refused with the cause, or loaded equal."""

import json
import os
import pickle
import re
import resource
import tracemalloc

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import numpyro_neb as neb
from numpyro_neb.files import energy_file

KEY = jax.random.key(0)
MLP = neb.networks.MLP((2,), width_size=3, depth=1, key=KEY)
UNET = neb.networks.UNet((4, 4), (2, 3), key=KEY)
ENERGIES = {
    "MLP": neb.ResidualEnergy(MLP, 0.3, (2,)),
    "UNet": neb.ResidualEnergy(UNET, 0.3, (4, 4)),
    "eqx.nn.MLP": neb.ResidualEnergy(eqx.nn.MLP(2, 2, 3, 1, key=KEY), 0.3, (2,)),
    "mixture": neb.MixtureEnergy(np.eye(2), 0.3, covariances=np.stack([np.eye(2)] * 2)),
}
LINE = neb.MixtureEnergy(np.array([-1.0, 1.0]), 0.8)
CAUSES = "is truncated|is damaged|header is damaged|first bytes are damaged|did not write it"
CAUSES += r"|has format version .* reads 1: another numpyro_neb wrote it, or it is damaged"


@pytest.fixture
def saved(tmp_path, untyped):
    path = tmp_path / "energy.safetensors"
    neb.save(path, ENERGIES["MLP"])
    return path


@pytest.fixture
def bounded():
    """What a test does takes neither memory, of Python's or of the process, nor a global change."""
    options = np.get_printoptions()
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    # In kilobytes; compiling takes some.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200e3
    assert np.get_printoptions() == options


def refused_or_equal(path, energy, cause):
    """Whether a file is refused, in few words with its cause; where it is not, it loads equal."""
    try:
        loaded = neb.load(path)
    except ValueError as error:
        message = str(error)
    else:
        assert eqx.tree_equal(loaded, energy)
        return False
    assert message.startswith(str(path))
    assert len(message) < 700
    assert re.search(cause, message), message
    return True


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_any_flipped_bit(saved):
    """Each of the header's, and every third of the data's."""
    neb.save(saved, LINE)
    content = saved.read_bytes()
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    for bit in [*range(header), *range(header, 8 * len(content), 3)]:
        saved.write_bytes(flipped(content, bit))
        assert refused_or_equal(saved, LINE, CAUSES)


def test_cut_off_anywhere(saved):
    content = saved.read_bytes()
    for length in range(0, len(content), 3):
        saved.write_bytes(content[:length])
        assert refused_or_equal(saved, ENERGIES["MLP"], "is truncated")
    saved.write_bytes(content + b"more")
    assert refused_or_equal(saved, ENERGIES["MLP"], r"is damaged: it has \d+ bytes, and should")


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def array(shape, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


HEADERS = {
    "terabytes": with_header({"a": array([10**12], 4 * 10**12)}, b"1234"),
    "a header of terabytes": (10**12).to_bytes(8, "little") + b"{}",
    "a header of exabytes": b"\xff" * 8 + b"{}",
    "terabytes of no extent": with_header({"a": array([0, 2**62, 2**62], 0)}),
    "more elements than bytes": with_header({"a": array([10**12], 4)}, b"1234"),
    "a hundred dimensions": with_header({"a": array([1] * 100, 4)}, b"1234"),
    "negative": with_header({"a": array([-1], -4)}, b"1234"),
    "a dtype that NumPy lacks": with_header({"a": array([4], 4, "F8_E8M0")}, b"1234"),
    "no such dtype": with_header({"a": array([4], 4, "O")}, b"1234"),
    "an escaping name": with_header({"../../a": array([1], 4)}, b"1234"),
    "a list": with_header([1, 2, 3]),
    "deeply nested": with_header(b"[" * 100_000),
    "an open object": with_header(b'{"a":' * 100_000),
    "NaN": with_header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, NaN]}}'),
    "a huge number": with_header(b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}"),
    "bytes": os.urandom(100),
    "an npy file": b"\x93NUMPY" + bytes(100),
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "words": b"no tensors here, only words, and quite a few of them",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_lying_header(name, tmp_path, bounded):
    path = tmp_path / "energy"
    path.write_bytes(HEADERS[name])
    assert refused_or_equal(path, None, f"{CAUSES}|is not a safetensors file")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "energy").write_bytes(pickle.dumps(Evil()))
    assert refused_or_equal(tmp_path / "energy", None, "is not a safetensors file")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileNotFoundError, match="no file"):
            neb.load(path)
    assert not (tmp_path / "executed").exists()


def forged(path, changes=None, **metadata):
    """The file with other arrays and metadata, and a digest that fits."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | metadata
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors |= changes or {}
    metadata["sha256"] = energy_file._digest(metadata, tensors)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


WORDS = {"event_shape": [2], "out": "event", "width_size": 3, "depth": 1}
WORDS |= {"activation": "jax.nn.silu", "conditional": False, "class": "networks.MLP"}


def configuration(event_shape=(2,), **words):
    network = WORDS | {"event_shape": list(event_shape)} | words
    return {"class": "ResidualEnergy", "event_shape": list(event_shape), "network": network}


UNET_WORDS = {"class": "networks.UNet", "event_shape": [4, 4], "channels": [2], "num_blocks": 1}


def unet(event_shape=(4, 4), **words):
    network = UNET_WORDS | {"event_shape": list(event_shape)} | words
    return {"class": "ResidualEnergy", "event_shape": list(event_shape), "network": network}


LEVEL = {"class": "energies.AtLevel", "network": WORDS}
for _ in range(400):
    LEVEL = {"class": "energies.AtLevel", "network": LEVEL}
CONFIGURATIONS = {
    "a wide network": configuration(width_size=10**9),
    "a deep network": configuration(depth=10**6),
    "a large event": configuration((10**9,)),
    "a huge event": configuration((10**9,) * 30),
    "an event of many dimensions": configuration((1,) * 10_000),
    "a number beyond a float": configuration(width_size=10**400),
    "not a number": configuration(width_size=float("nan")),
    "infinite": configuration(depth=float("inf")),
    "a large image": unet((2**20, 2**20)),
    "many channels": unet(channels=[10**9, 10**9]),
    "many levels": unet(channels=[1] * 10_000),
    "many blocks": unet(num_blocks=10**9),
    "channels by name": unet(channels={"a": 1}),
    "a large patch": unet(patch_size=10**9),
    "levels of levels": {"class": "ResidualEnergy", "event_shape": [2], "network": LEVEL},
    "no network": {"class": "ResidualEnergy", "event_shape": [2], "network": 5},
    "a network in words": {"class": "ResidualEnergy", "event_shape": [2], "network": "class"},
    "a rising range": {"class": "ConditionalEnergy", "event_shape": [2], "network": WORDS}
    | {"sigma_range": [0.1, float("inf")]},
    "a long range": {"class": "ConditionalEnergy", "event_shape": [2], "network": WORDS}
    | {"sigma_range": [0.1] * 5},
    "many words": configuration(**{f"word{i}": 1 for i in range(20_000)}),
    "a string": "ResidualEnergy",
    "a number": 10**100,
    "null": None,
    "saving": configuration(activation="jax.numpy.save"),
    "loading": configuration(activation="jax.numpy.load"),
    "printing": configuration(activation="jax.numpy.set_printoptions"),
    "the outer product": configuration(activation="jax.numpy.outer"),
    "a mean": configuration(activation="jax.numpy.mean"),
    "a key": configuration(key=0),
    "a dtype": configuration(dtype="float16"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_forged_configuration(saved, name, bounded, monkeypatch):
    monkeypatch.chdir(saved.parent)
    forged(saved, config=json.dumps(CONFIGURATIONS[name]))
    assert refused_or_equal(saved, ENERGIES["MLP"], "has a configuration that is not an energy's")
    assert os.listdir() == [saved.name]


BOMBS = {
    "a deep list": "[" * 100_000 + "]" * 100_000,
    "a deep object": '{"network":' * 100_000,
    "a long number": '{"class": ' + "9" * 5000 + "}",
    "too long": json.dumps({"class": "MixtureEnergy", "network": "x" * 2**20}),
    "nothing": "",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_configuration_that_is_a_bomb(saved, name, bounded):
    forged(saved, config=BOMBS[name])
    assert refused_or_equal(saved, None, r"configuration that is not JSON|configuration of \d+ ch")


WRONG = [None, True, -1, 0, 1.5, float("nan"), 10**400, "", "x", [], [0], [1.5], ["x"], [[1]], {}]


@pytest.mark.parametrize("kind", ENERGIES)
def test_words_of_the_wrong_type(kind, saved):
    """Each word of a configuration with each wrong value; True is right where a word is one."""
    neb.save(saved, ENERGIES[kind])
    with safetensors.safe_open(saved, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
    equal = 0
    for inside in (False, True) if "network" in config else (False,):
        for word in config["network"] if inside else config:
            # For a skip any number is right.
            right = ("-1", "0", "1.5") if word == "skip" else ()
            for value in [w for w in WRONG if repr(w) not in right]:
                changed = json.loads(json.dumps(config))
                (changed["network"] if inside else changed)[word] = value
                forged(saved, config=json.dumps(changed))
                equal += not refused_or_equal(saved, ENERGIES[kind], "")
    assert equal <= 3


VALUES = {
    "sigma": [np.float32(np.nan), np.float32(0), np.float32(-0.3), np.float32(np.inf)],
    "scale": [np.float32(np.nan), np.float32(0), np.float32(-1)],
    "loc": [np.float32(np.inf), np.array([np.nan, 0], np.float32)],
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_no_energy_has(saved, name):
    for value in VALUES[name]:
        forged(saved, {name: np.asarray(value)})
        assert refused_or_equal(saved, None, f"its {name} is not|{name} must be|has shape")
        neb.save(saved, ENERGIES["MLP"])
    for dtype in (np.int32, np.complex64, np.bool_):
        forged(saved, {name: np.asarray(ENERGIES["MLP"].scale, dtype)})
        assert refused_or_equal(saved, None, "expected a floating-point type")


def test_values_that_no_mixture_has(saved):
    neb.save(saved, ENERGIES["mixture"])
    with safetensors.safe_open(saved, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in ("locs", "spreads", "axes", "log_weights", "scale"):
        for value in (np.nan, np.inf) if name != "scale" else (-1.0,):
            forged(saved, tensors | {name: np.full_like(tensors[name], value)})
            assert refused_or_equal(saved, None, f"its {name} (is|are) (not|negative)")
    forged(saved, tensors | {"spreads": -tensors["spreads"] - 1})
    assert refused_or_equal(saved, None, "its spreads is negative")


@pytest.mark.parametrize("version", ["0", "2", "-1", "1.0", "", "9" * 10_000, "\x1b[31mred"])
def test_another_format_version(saved, version):
    forged(saved, version=version)
    assert refused_or_equal(saved, None, "and this numpyro_neb reads 1: another [a-z_]* wrote it$")
    with pytest.raises(ValueError, match="has format version") as error:
        neb.load(saved)
    assert str(error.value).isprintable()


def test_saving_does_not_follow_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "energy"
    path.with_name(f".energy.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    neb.save(path, ENERGIES["MLP"])
    assert (tmp_path / "mine").read_text() == "mine"
    assert os.listdir(path.parent) == ["energy"]
    assert eqx.tree_equal(neb.load(path), ENERGIES["MLP"])
