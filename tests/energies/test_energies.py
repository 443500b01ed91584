import functools
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import targets

import numpyro_neb as neb

KEY = jax.random.key(0)
SHAPE = (2, 3)


def mlp(out="event", shape=SHAPE, **kwargs):
    return neb.networks.MLP(shape, out, width_size=8, depth=2, key=KEY, **kwargs)


def conditional(**kwargs):
    settings = {"width_size": 8, "depth": 2, "conditional": True, "key": jax.random.key(0)}
    network = neb.networks.MLP((2, 3), **settings)
    return neb.ConditionalEnergy(
        network, **({"event_shape": (2, 3), "sigma_range": (0.1, 1.0)} | kwargs)
    )


def energies():
    locs = jax.random.normal(KEY, (5, *SHAPE))
    loc = jnp.full(SHAPE, 0.5)
    yield "residual", neb.ResidualEnergy(mlp(), 0.4, SHAPE, loc=loc, scale=2.0)
    yield "network", neb.NetworkEnergy(mlp("scalar"), 0.4, SHAPE, loc=1.0, scale=jnp.full(SHAPE, 3))
    yield "kernel density", neb.MixtureEnergy(locs, 0.4)
    yield "mixture", neb.MixtureEnergy(locs, 0.4, covariances=jnp.stack([jnp.eye(6)] * 5))
    yield "level", conditional(loc=loc, scale=2.0).at(0.4)


@pytest.fixture(params=energies(), ids=lambda p: p[0])
def energy(request):
    return request.param[1]


class TestEveryEnergy:
    """The protocol: what everything after training relies on."""

    def test_shapes_and_identities(self, energy, strict):
        y = jax.random.normal(jax.random.key(1), SHAPE)
        assert energy(y).shape == ()
        assert energy.sigma.shape == ()
        np.testing.assert_allclose(energy.score(y), -jax.grad(energy)(y), rtol=1e-6)
        # Miyasawa: x_hat(y) = y - sigma^2 grad phi(y).
        expected = y - energy.sigma**2 * jax.grad(energy)(y)
        np.testing.assert_allclose(energy.denoise(y), expected, rtol=1e-4, atol=1e-5)

    def test_jit_vmap_and_batches(self, energy):
        y = jax.random.normal(jax.random.key(1), (4, *SHAPE))
        batched = eqx.filter_jit(eqx.filter_vmap(energy))(y)
        np.testing.assert_allclose(batched, [energy(yi) for yi in y], rtol=1e-5)

    def test_refuses_a_batch(self, energy, untyped):
        with pytest.raises(ValueError, match=r"y must have the event shape \(2, 3\).*jax.vmap"):
            energy(jnp.zeros((4, *SHAPE)))

    def test_pickles(self, energy):
        y = jnp.ones(SHAPE)
        assert pickle.loads(pickle.dumps(energy))(y) == energy(y)

    def test_starts_from_the_stated_gaussian(self, energy):
        keys = jax.random.split(KEY, 4000)
        draws = jax.vmap(lambda k: neb.energies.initial_position(energy, k))(keys)
        sd = np.broadcast_to(np.sqrt(energy.scale**2 + energy.sigma**2), SHAPE)
        targets.within(draws.mean(0), energy.loc, sd / np.sqrt(4000))
        # Var of a sample variance: 2 sd^4 / n.
        targets.within(draws.var(0), sd**2, sd**2 * np.sqrt(2 / 4000))

    def test_float64(self, energy, x64):
        wide = jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, energy)
        y = jnp.ones(SHAPE, float)
        assert wide(y).dtype == jnp.float64
        assert wide.denoise(y).dtype == jnp.float64


def test_formulas():
    y = jnp.array([1.0, -2.0])
    double = neb.ResidualEnergy(lambda y: 2 * y + 1, 0.5, (2,))
    np.testing.assert_allclose(double(y), np.sum((y - (2 * y + 1)) ** 2) / (2 * 0.25))
    scalar = neb.NetworkEnergy(lambda y: jnp.sum(y**3), 0.5, (2,), loc=1.0, scale=2.0)
    np.testing.assert_allclose(scalar(y), np.sum(((y - 1) / 2) ** 3), rtol=1e-6)


def test_units_do_not_matter():
    """Data measured in other units, y' = a y + b, have the same residual energy."""
    y = jnp.arange(6.0).reshape(SHAPE)
    here = neb.ResidualEnergy(mlp(), 0.4, SHAPE, loc=0.5, scale=2.0)
    there = neb.ResidualEnergy(mlp(), 4.0, SHAPE, loc=10 * 0.5 + 3, scale=20.0)
    np.testing.assert_allclose(there(10 * y + 3), here(y), rtol=1e-4)
    np.testing.assert_allclose(there.denoise(10 * y + 3), 10 * here.denoise(y) + 3, atol=1e-3)


@pytest.mark.parametrize("event_shape", [(), (3,), (2, 2), (3, 4, 4)])
def test_any_event_shape(event_shape):
    residual = neb.ResidualEnergy(mlp(shape=event_shape), 0.3, event_shape)
    network = neb.NetworkEnergy(mlp("scalar", event_shape), 0.3, event_shape)
    for energy in (residual, network):
        assert energy.denoise(jnp.zeros(event_shape)).shape == event_shape


def test_buffers_do_not_train_under_weight_decay():
    energy = neb.ResidualEnergy(mlp(), 0.4, SHAPE, loc=0.5, scale=2.0)
    data = jax.random.normal(KEY, (50, *SHAPE))
    fitted = neb.fit(
        energy,
        data,
        key=KEY,
        num_steps=3,
        batch_size=10,
        optimizer=optax.adamw(0.1, weight_decay=1.0),
        progress_bar=False,
    ).energy
    for name in ("sigma", "loc", "scale"):
        assert jnp.array_equal(getattr(fitted, name), getattr(energy, name))
    weights = energy.network.layers.layers[0].weight
    assert not jnp.array_equal(fitted.network.layers.layers[0].weight, weights)


def test_buffers_get_no_gradient():
    energy = neb.ResidualEnergy(mlp(), 0.4, SHAPE)
    grads = eqx.filter_grad(neb.denoising_loss)(energy, jnp.ones((3, *SHAPE)), KEY)
    assert grads.sigma == grads.loc == grads.scale == 0
    assert jnp.any(grads.network.layers.layers[0].weight != 0)


def test_trainable_leaves_inner_energies_their_buffers():
    class Tempered(neb.AbstractEnergy):
        inner: neb.AbstractEnergy
        sigma: jax.Array
        loc: jax.Array
        scale: jax.Array
        event_shape: tuple = eqx.field(static=True)

        def __call__(self, y):
            return 0.5 * self.inner(y)

    inner = neb.ResidualEnergy(mlp(), 0.4, SHAPE)
    energy = Tempered(inner, inner.sigma, inner.loc, inner.scale, SHAPE)
    params = eqx.filter(energy, neb.energies.trainable(energy))
    assert params.sigma is params.inner.sigma is params.inner.loc is None
    assert params.inner.network.layers.layers[0].weight is not None


class Sloped(neb.AbstractEnergy):
    """phi = norm(scale y)^2, whose scale trains, with a table that does not."""

    table: neb.energies.NonTrainable
    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple = eqx.field(static=True, default=(2,))

    buffers = ("sigma", "loc")

    def __call__(self, y):
        return jnp.sum((self.scale * y) ** 2) + jnp.sum(self.table.value)


def test_a_class_says_which_of_its_fields_are_buffers():
    energy = Sloped(neb.energies.NonTrainable(jnp.ones(2)), *map(jnp.array, (0.5, 0.0, 2.0)))
    params = eqx.filter(energy, neb.energies.trainable(energy))
    assert params.sigma is params.loc is params.table.value is None
    assert params.scale == 2.0
    settings = {"num_steps": 3, "batch_size": 10, "progress_bar": False}
    moved = neb.fit(energy, jax.random.normal(KEY, (50, 2)), key=KEY, **settings).energy
    assert moved.scale != 2.0
    assert moved.sigma == 0.5
    assert neb.energies.Frozen is neb.energies.NonTrainable


def test_a_family_inside_an_energy_keeps_its_buffers():
    class AtOne(neb.AbstractEnergy):
        family: neb.ConditionalEnergy
        sigma: jax.Array
        loc: jax.Array
        scale: jax.Array
        event_shape: tuple = eqx.field(static=True, default=(2, 3))

        def __call__(self, y):
            return self.family.unchecked_at(self.sigma)(y)

    energy = AtOne(conditional(), *map(jnp.array, (0.5, 0.0, 1.0)))
    params = eqx.filter(energy, neb.energies.trainable(energy))
    assert params.family.loc is params.family.scale is None
    assert params.family.network.layers.layers[0].weight is not None


class Checked(neb.AbstractEnergy):
    """phi = value(y), and a check of its own."""

    value: object = eqx.field(static=True)
    sigma: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.5))
    loc: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.0))
    scale: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(1.0))
    event_shape: tuple = eqx.field(static=True, default=(2,))

    def __check_init__(self):
        if self.value is None:
            raise TypeError("no value")

    def __call__(self, y):
        return self.value(y)


def test_a_custom_class_is_checked_once_at_construction(untyped):
    with pytest.raises(ValueError, match=r"energy must return .* \(\), got \(2,\): its value is"):
        Checked(square)
    with pytest.raises(TypeError, match="no value"):
        Checked(None)
    calls = []
    energy = Checked(lambda y: calls.append(y) or jnp.sum(y))
    assert len(calls) == 1
    for use in (neb.SmoothedDensity, neb.WalkJumpKernel):
        use(energy)
    assert len(calls) == 1
    # Nor is what JAX puts together again.
    copy = jax.tree.map(lambda leaf: leaf, energy)
    jax.eval_shape(lambda e: e.sigma, copy)
    assert len(calls) == 1


def test_stacks_and_shapes_of_a_custom_class():
    """The check sees one event, whatever the arrays are stacked or abstract."""
    make = lambda sigma: Checked(jnp.sum, sigma)  # noqa: E731
    stack = eqx.filter_vmap(make)(jnp.array([0.3, 0.5]))
    assert stack.sigma.shape == (2,)
    assert neb.SmoothedDensity(stack).log_prob(jnp.ones(2)).shape == (2,)
    shapes = eqx.filter_eval_shape(make, jax.ShapeDtypeStruct((), jnp.float32))
    assert shapes.sigma.shape == ()
    assert jax.jit(lambda sigma: make(sigma)(jnp.ones(2)))(0.5) == 2


def test_levels():
    """One energy is a family of one level."""
    u = jnp.array([0.0, 0.5, 0.999999])
    energy, family = neb.ResidualEnergy(mlp(), 0.4, SHAPE), conditional()
    np.testing.assert_allclose(energy.levels(u), 0.4)
    assert energy.unchecked_at(jnp.array(0.4)) is energy
    np.testing.assert_allclose(family.levels(u), [0.1, 0.1**0.5, 1.0], rtol=1e-4)
    assert energy.one_level
    assert not family.one_level
    with pytest.raises(NotImplementedError, match="ResidualEnergy has no exact sampler"):
        energy.sample(KEY)


ACTIVATIONS = ["celu", "elu", "gelu", "leaky_relu", "mish", "relu", "selu", "sigmoid", "silu"]
ACTIVATIONS += ["soft_sign", "softplus", "squareplus", "swish", "tanh", "hard_silu", "log_sigmoid"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pickles_with_any_activation(name):
    activation = getattr(jax.nn, name)
    network = eqx.nn.MLP(2, 2, 4, 1, activation=activation, key=KEY)
    energy = pickle.loads(pickle.dumps(neb.ResidualEnergy(network, 0.3, (2,))))
    assert energy.network.activation is activation
    assert pickle.loads(pickle.dumps(mlp(activation=activation).layers.layers)) is not None


def test_pickles_with_an_activation_of_set_arguments():
    activation = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
    energy = neb.ResidualEnergy(mlp(activation=activation), 0.3, SHAPE)
    y = -jnp.ones(SHAPE)
    assert pickle.loads(pickle.dumps(energy))(y) == energy(y)


def square(y):
    return y**2


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sigma": -0.3}, r"sigma must be positive, got -0.3"),
        ({"sigma": 0.0}, r"sigma must be positive, got 0.0"),
        ({"sigma": float("nan")}, r"sigma must be positive, got nan"),
        ({"sigma": float("inf")}, r"sigma must be finite, got inf"),
        ({"sigma": np.ones(3)}, r"sigma must be a scalar, got shape \(3,\)"),
        ({"scale": 0.0}, r"scale must be positive, got 0.0"),
        ({"scale": np.ones(5)}, r"scale must be a scalar or of the event shape \(2, 3\).*\(5,\)"),
        ({"loc": np.ones(5)}, r"loc must be a scalar or of the event shape \(2, 3\).*\(5,\)"),
        ({"loc": np.nan}, r"loc must be finite, got NaN"),
        ({"event_shape": 6}, r"event_shape must be a tuple of positive ints, as in \(64,\), got 6"),
        ({"event_shape": (2, 0)}, r"event_shape must be a tuple of positive ints.*\(2, 0\)"),
        ({"network": lambda y: y.sum()}, r"network must return an array of shape \(2, 3\), got"),
        ({"network": lambda y: y @ y}, r"network must take one array of the event shape \(2, 3\)"),
    ],
)
def test_bad_arguments(kwargs, message, untyped):
    arguments = {"network": square, "sigma": 0.3, "event_shape": SHAPE} | kwargs
    with pytest.raises(ValueError, match=message):
        neb.ResidualEnergy(**arguments)


def test_bad_networks(untyped):
    with pytest.raises(TypeError, match=r"network must be callable, got int"):
        neb.ResidualEnergy(3, 0.3, SHAPE)
    with pytest.raises(ValueError, match=r"shape \(\), got \(2, 3\).*out_size='scalar'"):
        neb.NetworkEnergy(square, 0.3, SHAPE)
    with pytest.raises(ValueError, match="out must be 'event' or 'scalar', got 'vector'"):
        neb.networks.MLP(SHAPE, "vector", width_size=8, depth=2, key=KEY)


def test_traced_sigma_is_checked_when_the_program_runs():
    @eqx.filter_jit
    def value(sigma):
        return neb.MixtureEnergy(jnp.zeros((1, 2)), sigma)(jnp.zeros(2))

    assert jnp.isfinite(value(jnp.array(0.3)))
    with pytest.raises(Exception, match="sigma must be positive"):
        value(jnp.array(-0.3))


USES = {
    "SmoothedDensity": neb.SmoothedDensity,
    "WalkJumpKernel": neb.WalkJumpKernel,
    "posterior_mean": lambda energy: neb.posterior_mean(energy, jnp.zeros(2)),
    "fit": lambda energy: neb.fit(energy, jnp.zeros((3, 2)), key=KEY, num_steps=1, batch_size=1),
    "save": lambda energy: neb.save("never-written", energy),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    ("bare", "name"),
    [(mlp(), "MLP"), (square, "function"), (neb.MixtureEnergy, "the class MixtureEnergy")],
)
def test_a_bare_network_is_told_how_to_be_wrapped(use, bare, name, untyped):
    with pytest.raises(TypeError, match=rf"energy must be .*got {name}: wrap .*ResidualEnergy\("):
        use(bare)


def test_the_form_of_the_first_release():
    family = conditional(loc=0.5, scale=2.0, preconditioned=False)
    y = jax.random.normal(jax.random.key(1), (2, 3))
    for sigma, t in ((0.1, -1.0), (0.1**0.5, 0.0), (1.0, 1.0)):
        energy = family.at(sigma)
        assert isinstance(energy, neb.AbstractEnergy)
        np.testing.assert_allclose(energy.sigma, sigma)
        residual = y - 0.5 - 2 * family.network((y - 0.5) / 2, jnp.asarray(t))
        np.testing.assert_allclose(energy(y), jnp.sum(residual**2) / (2 * sigma**2), rtol=1e-4)
    assert family.at(0.2)(y) != family.at(0.3)(y)
    # Neither the level nor the buffers train.
    params = eqx.filter(family.at(0.2), neb.energies.trainable(family.at(0.2)))
    assert params.network.level.value is None
    params = eqx.filter(family, neb.energies.trainable(family))
    assert params.loc is None
    assert params.scale is None
    slope = jax.grad(lambda s: family.at(s)(y))(0.3)
    step = (family.at(0.301)(y) - family.at(0.299)(y)) / 0.002
    np.testing.assert_allclose(slope, step, rtol=2e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: conditional().at(2.0),
            ValueError,
            r"sigma must be in sigma_range = \(0.1, 1\), go",
        ),
        (lambda: conditional().at(-1.0), ValueError, "sigma must be positive, got -1.0"),
        (lambda: conditional(sigma_range=(1.0, 0.5)), ValueError, "sigma_range must be two rising"),
        (lambda: conditional(sigma_range=(0.0, 0.5)), ValueError, "sigma_range must be two rising"),
        (lambda: conditional(event_shape=(3,)), ValueError, "network must take one array of the e"),
        (lambda: neb.ConditionalEnergy(3, (2,), (0.1, 1.0)), TypeError, "network must be callable"),
        (
            lambda: neb.posterior_mean(conditional(), jnp.zeros((2, 3))),
            TypeError,
            r"energy.at\(sig",
        ),
        (lambda: conditional().network(jnp.zeros((2, 3))), ValueError, "t must be given if and on"),
    ],
)
def test_bad_families(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call()
