"""Classes that files may name, and none besides them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_neb as neb
from numpyro_neb._internal import configurations
from numpyro_neb._internal.configurations import (
    ACTIVATION,
    SIZE,
    Values,
    configured,
    describe,
)

KEY = jax.random.key(0)
# All that a file can have constructed: whoever adds one has made sure that it does no harm.
STATED = {
    "NetworkEnergy": neb.NetworkEnergy,
    "ResidualEnergy": neb.ResidualEnergy,
    "ConditionalEnergy": neb.ConditionalEnergy,
    "MixtureEnergy": neb.MixtureEnergy,
    "ScoreField": neb.ScoreField,
    "energies.AtLevel": neb.energies.conditional.AtLevel,
    "energies.LevelEnergy": neb.energies.conditional.LevelEnergy,
    "networks.MLP": neb.networks.MLP,
    "networks.ConvNet": neb.networks.ConvNet,
    "networks.UNet": neb.networks.UNet,
    "eqx.nn.MLP": eqx.nn.MLP,
}


def test_only_these_are_constructed():
    assert {name: stated.cls for name, stated in configurations._STATED.items()} == STATED


@pytest.mark.parametrize(
    ("parent", "sizes"),
    [
        (neb.networks.MLP, {"event_shape": (2,), "width_size": 3, "depth": 1}),
        (neb.networks.UNet, {"event_shape": (4, 4), "channels": (2,)}),
        (eqx.nn.MLP, {"in_size": 2, "out_size": 2, "width_size": 3, "depth": 1}),
    ],
)
def test_a_subclass_does_not_state_itself(parent, sizes, tmp_path):
    class Mine(parent):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    energy = neb.ResidualEnergy(Mine(**sizes, key=KEY), 0.3, sizes.get("event_shape", (2,)))
    neb.save(tmp_path / "energy", energy)
    with pytest.raises(ValueError, match=r"holds a Mine, which .* pass like="):
        neb.load(tmp_path / "energy")
    assert eqx.tree_equal(neb.load(tmp_path / "energy", like=energy), energy)


@pytest.fixture
def scaled(monkeypatch):
    """A network that nothing in the package knows."""
    monkeypatch.setattr(configurations, "_STATED", dict(configurations._STATED))

    @configured(
        "tests.Scaled",
        {"size": SIZE, "activation": ACTIVATION},
        arrays={"factor": Values.POSITIVE},
        extent=lambda arguments: (1, {"size": arguments["size"]}),
    )
    class Scaled(eqx.Module):
        factor: jax.Array
        activation: object
        size: int = eqx.field(static=True)

        def __init__(self, size, activation=jnp.tanh, factor=None):
            self.size, self.activation = size, activation
            self.factor = jnp.ones(size) if factor is None else factor

        def __call__(self, y):
            return self.factor * self.activation(y)

    return Scaled


def test_a_class_states_itself_in_one_place(scaled, tmp_path):
    energy = neb.ResidualEnergy(scaled(2, jnp.sin, jnp.array([1.0, 2.0])), 0.3, (2,))
    words = {"class": "tests.Scaled", "size": 2, "activation": "jax.numpy.sin"}
    assert describe(energy)["network"] == words
    neb.save(tmp_path / "energy", energy)
    assert eqx.tree_equal(neb.load(tmp_path / "energy"), energy)
    harmed = eqx.tree_at(lambda e: e.network.factor, energy, jnp.array([1.0, -1.0]))
    neb.save(tmp_path / "energy", harmed)
    with pytest.raises(ValueError, match=r"hold an energy: its network\.factor is not positive"):
        neb.load(tmp_path / "energy")


TENSORS = {"factor": np.ones(2, np.float32)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"size": 3}, "size of 3 with 2 numbers"),
        ({"size": "large"}, "size must be a size, got 'large'"),
        ({"size": 2, "factor": 1}, "the unknown word 'factor'"),
        ({"size": 2, "key": 1}, "the unknown word 'key'"),
        ({"size": 2, "depth": 1}, "the unknown word 'depth'"),  # another class's
        ({"size": 2, "activation": "jax.numpy.mean"}, "'jax.numpy.mean' is not an activation"),
    ],
)
def test_words_are_checked_before_anything_is_built(scaled, words, message):
    with pytest.raises(ValueError, match=message):
        configurations.rebuilt({"class": "tests.Scaled"} | words, TENSORS)


def test_a_word_that_was_added_later_has_its_default(scaled):
    built = configurations.rebuilt({"class": "tests.Scaled", "size": 2}, TENSORS)
    assert built.activation is jnp.tanh
    with pytest.raises(TypeError, match="missing a required argument: 'size'"):
        configurations.rebuilt({"class": "tests.Scaled"}, TENSORS)


MLP = {"class": "networks.MLP", "event_shape": [1], "width_size": 1, "depth": 1}
BARE = {"class": "eqx.nn.MLP", "in_size": 1, "out_size": 1, "width_size": 1, "depth": 1}
CONVNET = {"class": "networks.ConvNet", "event_shape": [4, 4], "channels": [1]}
UNET = {"class": "networks.UNet", "event_shape": [4, 4], "channels": [1]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MLP | {"depth": 3}, "3 layers with 2 arrays"),
        (MLP | {"event_shape": [5, 4]}, "event_shape of 20 with 19 numbers"),
        (MLP | {"width_size": 20}, "width_size of 20 with 19 numbers"),
        (BARE | {"depth": 3}, "3 layers with 2 arrays"),
        (BARE | {"in_size": 20}, "in_size of 20 with 19 numbers"),
        (BARE | {"out_size": 20}, "out_size of 20 with 19 numbers"),
        (BARE | {"width_size": 20}, "width_size of 20 with 19 numbers"),
        (CONVNET | {"channels": [1, 1, 1]}, "3 layers with 2 arrays"),
        (CONVNET | {"channels": [1, 20]}, "channels of 20 with 19 numbers"),
        (CONVNET | {"bottleneck": 20}, "bottleneck of 20 with 19 numbers"),
        (UNET | {"num_blocks": 2, "channels": [1, 1]}, "4 layers with 2 arrays"),
        (UNET | {"channels": [20]}, "channels of 20 with 19 numbers"),
    ],
)
def test_what_is_larger_than_the_file(config, message):
    tensors = {"a": np.ones(10, np.float32), "b": np.ones(9, np.float32)}
    with pytest.raises(ValueError, match=message):
        configurations.rebuilt(config, tensors)


def test_sizes_that_no_array_has_may_be_larger():
    tensors = {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}
    for config in (MLP | {"depth": 0}, BARE | {"depth": 0, "in_size": "scalar"}):
        configurations.rebuilt(config | {"width_size": 256}, tensors)


def test_modules_inside_each_other_have_an_end():
    config = MLP
    for _ in range(20):
        config = {"class": "energies.AtLevel", "network": config}
    with pytest.raises(ValueError, match="9 modules inside each other"):
        configurations.rebuilt(config, {})


def test_an_energy_inside_an_energy(tmp_path):
    inner = neb.NetworkEnergy(eqx.nn.MLP(2, "scalar", 4, 1, key=KEY), 0.5, (2,), scale=2.0)
    energy = neb.NetworkEnergy(inner, 0.3, (2,))
    neb.save(tmp_path / "energy", energy)
    assert eqx.tree_equal(neb.load(tmp_path / "energy"), energy)
    harmed = eqx.tree_at(lambda e: e.network.scale, energy, jnp.array(-1.0))
    neb.save(tmp_path / "energy", harmed)
    with pytest.raises(ValueError, match=r"its network\.scale is not positive"):
        neb.load(tmp_path / "energy")


def test_a_network_alone_is_not_an_energy(tmp_path, untyped):
    config = describe(neb.networks.MLP((2,), width_size=3, depth=1, key=KEY))
    arrays = {"layers.layers.0.weight": np.ones((3, 2), np.float32)}
    arrays |= {"layers.layers.1.weight": np.ones((2, 3), np.float32)}
    neb.files.energy_file.write_arrays(tmp_path / "a", "numpyro_neb energy", config, arrays)
    with pytest.raises(ValueError, match="is not an energy's: energy must be a"):
        neb.load(tmp_path / "a")
