import json
import os
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import targets

import numpyro_neb as neb
from numpyro_neb.files import energy_file

KEY = jax.random.key(0)
OWN = neb.networks.MLP((2, 3), width_size=8, depth=2, activation=jax.nn.softplus, skip=0.3, key=KEY)
SCALAR = neb.networks.MLP((2, 3), "scalar", width_size=8, depth=1, key=KEY)
BARE = eqx.nn.MLP(2, 2, 4, 2, activation=jnp.tanh, use_final_bias=False, key=KEY)
ENERGIES = {
    "residual": neb.ResidualEnergy(OWN, 0.3, (2, 3), loc=np.ones((2, 3)), scale=2.0),
    "network": neb.NetworkEnergy(SCALAR, 0.3, (2, 3)),
    "bare MLP": neb.ResidualEnergy(BARE, 0.3, (2,)),
    "kernel density": neb.MixtureEnergy(jnp.arange(6.0).reshape(3, 2), 0.3),
    "mixture": targets.skewed_mixture(),
}


@pytest.mark.parametrize("energy", ENERGIES.values(), ids=ENERGIES)
@pytest.mark.parametrize("with_like", [False, True])
def test_round_trip(energy, with_like, tmp_path):
    path = tmp_path / "energy.safetensors"
    neb.save(path, energy)
    like = jax.tree.map(lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a, energy)
    loaded = neb.load(path, like=like if with_like else None)
    assert eqx.tree_equal(loaded, energy)
    assert type(loaded) is type(energy)


class Doubled(eqx.Module):
    inner: eqx.nn.Linear

    def __call__(self, y):
        return 2 * self.inner(y)


OF_ONES_OWN = neb.ResidualEnergy(Doubled(eqx.nn.Linear(2, 2, key=KEY)), 0.3, (2,))


@pytest.mark.parametrize(
    ("energy", "name"),
    [
        (OF_ONES_OWN, "Doubled"),
        (neb.ResidualEnergy(eqx.nn.MLP(2, 2, 4, 1, lambda x: x**2, key=KEY), 0.3, (2,)), "MLP"),
        (neb.ResidualEnergy(lambda y: y, 0.3, (2,)), "function"),
    ],
)
def test_a_module_of_ones_own_needs_like(energy, name, tmp_path):
    path = tmp_path / "energy"
    neb.save(path, energy)
    with pytest.raises(ValueError, match=rf"holds a {name}, which .* pass like="):
        neb.load(path)
    assert eqx.tree_equal(neb.load(path, like=energy), energy)


def test_like_of_another_architecture(tmp_path):
    path = tmp_path / "energy"
    neb.save(path, ENERGIES["residual"])
    with pytest.raises(ValueError, match="holds another energy: these arrays are in one only"):
        neb.load(path, like=ENERGIES["mixture"])
    wide = neb.networks.MLP((2, 3), width_size=9, depth=2, key=KEY)
    with pytest.raises(ValueError, match=r"has shape \(8,.*expected \(9,"):
        neb.load(path, like=neb.ResidualEnergy(wide, 0.3, (2, 3), loc=np.ones((2, 3))))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "energy.safetensors"
    neb.save(path, ENERGIES["residual"])
    return path


def test_truncated_at_any_point(saved):
    content = saved.read_bytes()
    for length in (0, 5, 8, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is truncated"):
            neb.load(saved)


def test_any_flipped_bit_is_found(saved):
    content = saved.read_bytes()
    for position in np.random.default_rng(0).integers(8, len(content), 60):
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(position % 8)
        saved.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"damaged|truncated|did not write|format version"):
            neb.load(saved)


def rewritten(path, **changes):
    """The file with other metadata, and a digest that fits: somebody's forgery."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["sha256"] = energy_file._digest(metadata, tensors)
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


def test_a_newer_file(saved):
    rewritten(saved, version="2")
    with pytest.raises(ValueError, match="format version 2, and this numpyro_neb reads 1: another"):
        neb.load(saved)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.ones(3)}))
    with pytest.raises(ValueError, match="numpyro_neb did not write it"):
        neb.load(path)
    path.write_text("no tensors here, only words, and quite a few of them")
    with pytest.raises(ValueError, match="not a safetensors file"):
        neb.load(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        neb.load(tmp_path / "absent")


NETWORK = {"class": "networks.MLP", "event_shape": [2, 3], "out": "event", "width_size": 8}
NETWORK |= {"depth": 2, "activation": "jax.nn.softplus"}
LIES = {
    "nothing": {},
    "a list": [],
    "no network": {"class": "ResidualEnergy", "event_shape": [2, 3]},
    "a deep network": {"depth": 10**12},
    "a wide network": {"width_size": 10**15},
    "a private function": {"activation": "jax.nn.__builtins__"},
    "a function of another module": {"activation": "os.system"},
    "a dangerous word": {"activation": "jax.nn.os"},
    "a negative width": {"width_size": -1},
    "an unknown argument": {"colour": "red"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lying_configuration(saved, lie):
    if isinstance(lie, dict) and lie and "class" not in lie:
        network = NETWORK | lie
        lie = {"class": "ResidualEnergy", "event_shape": [2, 3], "network": network}
    rewritten(saved, config=json.dumps(lie))
    with pytest.raises(ValueError, match=r"is not an energy's|expected|another energy"):
        neb.load(saved)


def test_an_unknown_class(saved):
    rewritten(saved, config=json.dumps({"class": "os.system"}))
    with pytest.raises(ValueError, match=r"holds a os.system, which numpyro_neb can't rebuild"):
        neb.load(saved)


def test_float64_needs_x64(tmp_path, x32):
    path = tmp_path / "wide"
    with jax.enable_x64(True):
        energy = neb.MixtureEnergy(np.ones((3, 2)), 0.3)
        assert energy.locs.dtype == jnp.float64
        neb.save(path, energy)
        assert eqx.tree_equal(neb.load(path), energy)
    with pytest.raises(ValueError, match="holds float64: set jax_enable_x64"):
        neb.load(path)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        neb.save(saved, ENERGIES["mixture"])
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_conditional_energy_and_its_levels(tmp_path):
    network = neb.networks.MLP((2,), width_size=4, depth=1, conditional=True, key=jax.random.key(0))
    family = neb.ConditionalEnergy(network, (2,), (0.1, 1.0), loc=jnp.array([0.5, 1.0]))
    for energy in (family, family.at(0.3)):
        neb.save(tmp_path / "energy.safetensors", energy)
        loaded = neb.load(tmp_path / "energy.safetensors")
        assert eqx.tree_equal(loaded, energy)
        assert eqx.tree_equal(pickle.loads(pickle.dumps(energy)), energy)
    y = jnp.array([0.3, -1.0])
    np.testing.assert_array_equal(loaded.denoise(y), family.at(0.3).denoise(y))


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_sizes_of_numpy(tmp_path):
    sizes = {"width_size": np.int64(8), "depth": 2}
    mlp = eqx.nn.MLP(2, 2, **sizes, key=jax.random.key(0))
    energy = neb.ResidualEnergy(mlp, 0.5, (2,))
    neb.save(tmp_path / "energy", energy)
    y = jnp.array([0.3, -0.2])
    assert neb.load(tmp_path / "energy")(y) == energy(y)


def test_a_stack_needs_its_like(tmp_path):
    stack = jax.vmap(lambda sigma: neb.MixtureEnergy(jnp.eye(2), sigma))(jnp.array([0.5, 1.0]))
    neb.save(tmp_path / "stack", stack)
    with pytest.raises(ValueError, match="holds several stacked energies: pass like="):
        neb.load(tmp_path / "stack")
    loaded = neb.load(tmp_path / "stack", like=stack)
    np.testing.assert_array_equal(loaded.sigma, stack.sigma)
