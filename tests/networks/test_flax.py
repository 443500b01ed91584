"""Flax modules as networks of energies."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from numpyro.infer import MCMC

import numpyro_neb as neb
from numpyro_neb.networks import from_linen, from_nnx

SIGMA, SD = 0.5, np.array([0.5, 1.0, 2.0])


class Noisy(nnx.Module):
    """A linear map behind batch statistics and a dropout."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.norm.mean[...] = jnp.array([0.1, 0.0, -0.3], jnp.float32)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, y):
        return self.linear(self.dropout(self.norm(y)))


class Normed(linen.Module):
    @linen.compact
    def __call__(self, y):
        y = linen.BatchNorm(use_running_average=True)(y)
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=True)(y))


def nnx_network():
    return from_nnx(Noisy())


def linen_network():
    module = Normed()
    return from_linen(module, module.init(jax.random.key(0), jnp.zeros(3)))


@pytest.fixture(params=[nnx_network, linen_network], ids=["nnx", "linen"])
def network(request):
    return request.param()


def test_nnx_is_the_module_in_inference_mode():
    module, y = Noisy(), jnp.array([1.0, -2.0, 0.5])
    network = from_nnx(module)
    assert not module.dropout.deterministic
    module.eval()
    np.testing.assert_allclose(network(y), module(y), rtol=1e-6)
    by_hand = module.linear((y - module.norm.mean[...]) / np.sqrt(1 + 1e-5))
    np.testing.assert_allclose(network(y), by_hand, rtol=1e-5)


def test_linen_is_the_module_on_its_variables():
    module, y = Normed(), jnp.array([1.0, -2.0, 0.5])
    variables = module.init(jax.random.key(0), y)
    np.testing.assert_allclose(from_linen(module, variables)(y), module.apply(variables, y))


def test_trains_by_fit_to_the_exact_denoiser(network):
    """A linear network can reach L* = sum of s^2 sigma^2 / (s^2 + sigma^2)."""
    data = jnp.asarray(SD * np.random.default_rng(0).normal(size=(4096, 3)), float)
    energy = neb.ResidualEnergy(network, SIGMA, (3,))
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-2, 1000), weight_decay=1e-4)
    trained = neb.fit(
        energy, data, key=jax.random.key(1), num_steps=1000, batch_size=256, optimizer=optimizer,
        progress_bar=False,
    ).energy  # fmt: skip
    loss = eqx.filter_jit(neb.denoising_loss)
    held_out = jnp.asarray(SD * np.random.default_rng(1).normal(size=(20_000, 3)), float)
    floor = np.sum(SD**2 * SIGMA**2 / (SD**2 + SIGMA**2))
    # A squared norm's variance is below 2 floor^2. Least squares for 4 coefficients a coordinate on
    # n = 4096 points lies 4 / n = 0.1% above the floor; the 2% leave room for the optimiser.
    found = float(loss(trained, held_out, jax.random.key(2)))
    assert abs(found - floor) < 5 * np.sqrt(2 * floor**2 / 20_000) + 0.02 * floor
    assert float(loss(energy, held_out, jax.random.key(2))) > 1.5 * floor
    before, after = energy.network.rest, trained.network.rest
    assert len(jax.tree.leaves(before)) > 0
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_walks_saves_loads_and_pickles(network, tmp_path):
    energy = neb.ResidualEnergy(network, SIGMA, (3,), loc=1.0, scale=2.0)
    y = jnp.array([1.0, -2.0, 0.5])
    mcmc = MCMC(neb.WalkJumpKernel(energy), num_warmup=2, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(0))
    assert np.isfinite(mcmc.get_samples()["x"]).all()
    neb.save(tmp_path / "e.safetensors", energy)
    with pytest.raises(ValueError, match="pass like=, an energy of the same structure"):
        neb.load(tmp_path / "e.safetensors")
    other = jax.tree.map(lambda a: a + 1 if eqx.is_inexact_array(a) else a, energy)
    for again in (
        neb.load(tmp_path / "e.safetensors", like=other),
        pickle.loads(pickle.dumps(energy)),
    ):
        np.testing.assert_array_equal(again(y), energy(y))
        np.testing.assert_array_equal(again.score(y), energy.score(y))


def test_float64(x64):
    linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0), param_dtype=jnp.float64, dtype=jnp.float64)
    energy = neb.ResidualEnergy(from_nnx(linear), SIGMA, (3,))
    assert energy.denoise(jnp.ones(3)).dtype == jnp.float64


def test_float64_inputs_of_float32_parameters(network, x64):
    energy = neb.ResidualEnergy(network, SIGMA, (3,))
    assert energy.denoise(jnp.ones(3)).dtype == jnp.float64


def test_under_every_transformation(network):
    energy = neb.ResidualEnergy(network, SIGMA, (3,))
    y = jax.random.normal(jax.random.key(1), (4, 3))

    @jax.jit
    def descend(y):
        return jax.lax.scan(lambda y, _: (y - 0.1 * jax.grad(energy)(y), energy(y)), y, length=3)[0]

    by_hand = y
    for _ in range(3):
        by_hand = by_hand - 0.1 * jnp.stack([jax.grad(energy)(row) for row in by_hand])
    np.testing.assert_allclose(jax.vmap(descend)(y), by_hand, rtol=1e-4, atol=1e-5)


def test_gradient_is_the_modules_own():
    module, y = Noisy(), jnp.array([1.0, -2.0, 0.5])
    energy = neb.ResidualEnergy(from_nnx(module), SIGMA, (3,))
    module.eval()
    expected = jax.grad(lambda y: jnp.sum((y - module(y)) ** 2) / (2 * SIGMA**2))(y)
    np.testing.assert_allclose(jax.grad(energy)(y), expected, rtol=1e-5)


def test_only_parameters_train_and_the_users_module_stays():
    """Under a weight decay that would shrink anything it reached."""
    module = Noisy()
    original = jax.tree.leaves(nnx.clone(module))
    energy = neb.ResidualEnergy(from_nnx(module), SIGMA, (3,))
    data = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    trained = neb.fit(
        energy, data, key=jax.random.key(0), num_steps=3, batch_size=8, progress_bar=False,
        optimizer=optax.adamw(0.1, weight_decay=1.0),
    ).energy  # fmt: skip
    # Mean and variance; a key and a counter of the dropout's.
    assert len(jax.tree.leaves(trained.network.rest)) == 4
    assert eqx.tree_equal(trained.network.rest, energy.network.rest)
    for old, new in zip(
        *map(jax.tree.leaves, (energy.network.params, trained.network.params)), strict=True
    ):
        assert not np.any(old == new)
    for old, new in zip(original, jax.tree.leaves(module), strict=True):
        assert jnp.array_equal(old, new)


class Plain(nnx.Module):
    """Variables that hold no JAX array, and an activation that does not pickle by itself."""

    def __init__(self):
        self.weight = nnx.Param(np.ones(3, np.float32))
        self.shift = nnx.BatchStat(np.full(3, 2.0, np.float32))
        self.gain = nnx.Variable(0.5)
        self.activation = nnx.silu

    def __call__(self, y):
        return self.gain * self.activation(self.weight[...] * y + self.shift[...])


def checkpoint():
    """Linen's variables as a checkpoint returns them, in NumPy, with a typed key among them."""
    module = Normed()
    variables = jax.tree.map(np.array, module.init(jax.random.key(0), jnp.zeros(3)))
    variables["batch_stats"]["BatchNorm_0"]["mean"] += 1
    return from_linen(module, variables | {"state": {"key": jax.random.key(3)}})


@pytest.mark.parametrize("make", [lambda: from_nnx(Plain()), checkpoint], ids=["nnx", "linen"])
def test_files_hold_what_was_no_jax_array(make, tmp_path):
    energy, y = neb.ResidualEnergy(make(), SIGMA, (3,)), jnp.array([1.0, -2.0, 0.5])
    neb.save(tmp_path / "e", energy)
    like = jax.tree.map(lambda a: jnp.zeros_like(a) if eqx.is_array(a) else a, energy)
    assert like(y) != energy(y)
    loaded = neb.load(tmp_path / "e", like=like)
    assert eqx.tree_equal(loaded, energy)
    assert pickle.loads(pickle.dumps(energy))(y) == energy(y)


def test_a_bound_linen_module_can_be_compiled():
    dense = linen.Dense(3)
    variables = dense.init(jax.random.key(0), jnp.zeros(3))
    network = from_linen(dense.bind(variables), variables)
    np.testing.assert_allclose(
        eqx.filter_jit(network)(jnp.ones(3)), dense.apply(variables, jnp.ones(3)), rtol=1e-6
    )


def test_a_linen_module_in_training_mode_is_refused():
    module = linen.Dropout(0.5, deterministic=False)
    network = from_linen(module, {"params": {"unused": jnp.zeros(1)}})
    with pytest.raises(ValueError, match=r"network must take one array.*needs PRNG for"):
        neb.ResidualEnergy(network, SIGMA, (3,))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: from_nnx(3), TypeError, "module must be an instance of flax.nnx.Module, got int"),
        (lambda: from_nnx(Noisy), TypeError, r"flax\.nnx\.Module, got the class Noisy"),
        (
            lambda: from_linen(3, {}),
            TypeError,
            r"module must be an instance of flax\.linen\.Module, got int",
        ),
        (lambda: from_linen(Normed(), {"a": 1}), ValueError, r'collection "params", got \[\'a\'\]'),
        (lambda: from_linen(Normed(), 3), ValueError, 'collection "params", got int'),
        (
            lambda: from_linen(Normed(), {"params": {}}),
            ValueError,
            "variables must hold parameters, got none: initialise",
        ),
        (
            lambda: from_linen(
                Normed(), jax.eval_shape(Normed().init, jax.random.key(0), jnp.zeros(3))
            ),
            ValueError,
            "variables must hold arrays, got shapes alone",
        ),
        (
            lambda: from_nnx(nnx.eval_shape(Noisy)),
            ValueError,
            "module must hold arrays, got shapes alone",
        ),
        (
            lambda: from_nnx(nnx.bridge.ToNNX(linen.Dense(3), rngs=nnx.Rngs(0))),
            ValueError,
            "module must hold parameters, got none: initialise a lazy module first",
        ),
    ],
)
def test_bad_arguments(make, error, match, untyped):
    with pytest.raises(error, match=match):
        make()


class OfTwo(linen.Module):
    @linen.compact
    def __call__(self, y, t):
        return linen.Dense(3)(jnp.append(y, t))


class OfTwoNNX(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, y, t):
        return self.linear(jnp.append(y, t))


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_of_y_and_t_for_many_noise_levels(kind, tmp_path):
    y, t = jnp.array([1.0, -2.0, 0.5]), jnp.array(0.3)
    if kind == "nnx":
        module = OfTwoNNX()
        network, expected = from_nnx(module), module(y, t)
    else:
        module = OfTwo()
        variables = module.init(jax.random.key(0), y, t)
        network, expected = from_linen(module, variables), module.apply(variables, y, t)
    np.testing.assert_allclose(network(y, t), expected, rtol=1e-6)
    family = neb.ConditionalEnergy(network, (3,), (0.1, 2.0), scale=SD)
    assert family.at(0.2)(y) != family.at(0.3)(y)
    neb.save(tmp_path / "family", family)
    loaded = neb.load(tmp_path / "family", like=family)
    np.testing.assert_array_equal(loaded.at(0.2)(y), family.at(0.2)(y))
