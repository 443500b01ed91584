"""The networks for images, against what convolutions have to be."""

import pickle
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.signal import correlate

import numpyro_neb as neb
from numpyro_neb.networks.convolutional import ConvNet, UNet, _gather, _scatter

KEY = jax.random.key(0)
SHAPES = pytest.mark.parametrize("shape", [(8, 8), (3, 8, 4)])
conv_net = partial(ConvNet, channels=(4, 6), bottleneck=5, key=KEY)


def u_net(shape, channels=(4, 6), **options):
    """One whose layers all count: at first some are zero."""
    network = UNet(shape, channels, key=KEY, **options)
    arrays, rest = eqx.partition(network, eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)
    keys = jax.random.split(KEY, len(leaves))
    leaves = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, leaves), rest)


def image(shape):
    return np.random.default_rng(0).normal(size=shape).astype(jnp.result_type(float))


@SHAPES
@pytest.mark.parametrize("make", [conv_net, partial(conv_net, stride=2)])
def test_conv_net(make, shape):
    """Zero-padded correlations, then two affine maps, with the smooth ReLU between."""
    network, y = make(shape), image(shape)
    x = y.reshape(-1, *shape[-2:])
    silu = lambda u: u / (1 + np.exp(-u))  # noqa: E731
    for convolution in network.convolutions:
        kernels = np.asarray(convolution.weight)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        out = np.concatenate([correlate(padded, kernel, "valid") for kernel in kernels])
        x = silu(out[:, :: network.stride, :: network.stride] + convolution.bias)
    hidden = silu(network.hidden.weight @ x.reshape(-1) + network.hidden.bias)
    assert hidden.shape == (5,)
    expected = network.readout.weight @ hidden + network.readout.bias
    np.testing.assert_allclose(network(jnp.asarray(y)), expected.squeeze(), rtol=1e-4, atol=1e-5)


def test_the_papers_conv_net():
    """Channels of 256, 512 and 1024, every pixel kept, a bottleneck of 10."""
    network = eqx.filter_eval_shape(ConvNet, (28, 28), key=KEY)
    shapes = [convolution.weight.shape[:2] for convolution in network.convolutions]
    assert shapes == [(256, 1), (512, 256), (1024, 512)]
    assert network.hidden.weight.shape == (10, 1024 * 28 * 28)
    assert network.activation is jax.nn.silu


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, (10, 22)), ({"num_blocks": 2}, (6, 26)), ({"patch_size": 2}, (4, 29))],
)
def test_what_a_pixel_sees_in_a_u_net(options, rows):
    """On the fine level one row more for each 3 x 3 convolution; further by the coarse one."""
    network, y = u_net((32, 4), **options), jnp.asarray(image((32, 4)))
    fine = eqx.tree_at(
        lambda n: [n.double[0].weight, n.double[0].bias], network, replace_fn=jnp.zeros_like
    )
    of_pixel = eqx.filter_jit(eqx.filter_grad(lambda y, network: network(y)[16, 1]))
    seen, seen_finely = (np.flatnonzero(np.any(of_pixel(y, n), axis=1)) for n in (network, fine))
    np.testing.assert_array_equal(seen_finely, np.arange(rows[0], rows[1] + 1))
    assert seen[0] < rows[0]
    assert seen[-1] > rows[1]


def test_a_u_net_begins_as_a_gaussian():
    """Its output is zero, and its last layer learns at once."""
    energy = neb.ResidualEnergy(UNet((8, 8), (4, 6), key=KEY), 0.3, (8, 8))
    y = jnp.asarray(image((8, 8)))
    np.testing.assert_allclose(energy(y), np.sum(y**2) / (2 * 0.3**2), rtol=1e-5)
    loss = lambda network: jnp.sum((network(y) - 1) ** 2)  # noqa: E731
    assert jnp.any(eqx.filter_jit(eqx.filter_grad(loss))(energy.network).head.weight != 0)


@SHAPES
def test_u_net_of_colours(shape):
    network, y = u_net(shape), jnp.asarray(image(shape))
    assert network(y).shape == shape
    jacobian = jax.jit(jax.jacobian(network))(y).reshape(*shape, -1)
    assert np.all(np.any(jacobian != 0, axis=-1))


def test_patches():
    x = jnp.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    patches = _gather(x, 2)
    assert patches.shape == (8, 2, 3)
    np.testing.assert_array_equal(patches[:, 1, 2], x[:, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(_scatter(patches, 2), x)


@pytest.mark.parametrize("make", [conv_net, u_net])
def test_conditional(make):
    network = make((8, 8), conditional=True)
    y = jnp.asarray(image((8, 8)))
    assert not np.allclose(network(y, jnp.array(0.1)), network(y, jnp.array(0.9)))
    with pytest.raises(ValueError, match="t must be given if and only if conditional=True"):
        network(y)
    with pytest.raises(ValueError, match="t must be given if and only if conditional=False"):
        make((8, 8))(y, jnp.array(0.1))


def test_a_conditional_u_net_is_a_conditional_energy():
    network = u_net((8, 8), conditional=True)
    energy = neb.ConditionalEnergy(network, (8, 8), (0.1, 1.0))
    low, high = (energy.at(sigma).denoise(jnp.asarray(image((8, 8)))) for sigma in (0.1, 1.0))
    assert not np.allclose(low, high)


def conditional_energy():
    network = u_net((8, 8), conditional=True, num_blocks=2, activation=jax.nn.gelu)
    return neb.ConditionalEnergy(network, (8, 8), (0.1, 1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: neb.NetworkEnergy(conv_net((3, 8, 8), stride=2), 0.3, (3, 8, 8)),
        lambda: neb.ResidualEnergy(u_net((8, 8), patch_size=2), 0.3, (8, 8), scale=0.5),
        conditional_energy,
    ],
    ids=["ConvNet", "UNet", "conditional"],
)
def test_files_and_pickles(make, tmp_path):
    energy = make()
    neb.save(tmp_path / "energy", energy)
    for back in (neb.load(tmp_path / "energy"), pickle.loads(pickle.dumps(energy))):
        assert eqx.tree_equal(back, energy)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.statistical
def test_recall_with_convolutions(monkeypatch):
    """Inside the solver's loop convolutions are matrix products: the flow is the same."""
    energy, y = neb.ResidualEnergy(u_net((8, 8), (4,)), 0.3, (8, 8)), image((2, 8, 8))
    found = neb.recall(energy, y, progress_bar=False)
    assert np.all(found.converged)
    monkeypatch.setattr(neb.memories, "for_compiled_loops", lambda fn: fn)
    # Another batch shape compiles the solver again.
    native = neb.recall(energy, jnp.concatenate([y, y[:1]]), progress_bar=False)
    # Both are at rest: within tolerance sigma / curvature of the same memory.
    left = np.linalg.norm((found.attractors - native.attractors[:2]).reshape(2, -1), axis=1)
    assert np.all(left < 2 * 1e-3 * 0.3 / found.curvatures)
    score = jax.jit(jax.vmap(energy.score))(found.attractors)
    assert np.all(np.linalg.norm(score.reshape(2, -1), axis=1) < 1.1e-3 / 0.3)


@pytest.mark.slow
def test_a_u_net_learns_digits(digits):
    """A quarter better than the best linear denoiser, that of the training digits' Gaussian."""
    train, held_out = digits
    network = UNet((8, 8), (16, 32), key=KEY)
    energy = neb.ResidualEnergy(network, 0.3, (8, 8), loc=train.mean(0), scale=train.std())
    settings = {"num_steps": 600, "batch_size": 64, "progress_bar": False}
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, 600))
    result = neb.fit(energy, train, key=jax.random.key(1), optimizer=optimizer, **settings)
    covariance = np.cov(train.reshape(-1, 64).T)
    gaussian = neb.MixtureEnergy(train.mean(0)[None], 0.3, covariances=covariance[None])
    losses = [neb.denoising_loss(e, jnp.asarray(held_out), KEY) for e in (result.energy, gaussian)]
    assert losses[0] < 0.75 * losses[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet((64,), key=KEY), r"event_shape must be \(height, width\) or \(channels"),
        (lambda: ConvNet((8, 8), (), key=KEY), "channels must be a tuple with at least one entry"),
        (lambda: ConvNet((8, 8), (4,), stride=0, key=KEY), "stride must be a positive int, got 0"),
        (lambda: UNet((8, 8), (4, 0), key=KEY), "channels must be a tuple of positive ints"),
        (
            lambda: UNet((6, 8), (4, 4, 4), key=KEY),
            r"multiples of patch_size 2\^\(levels - 1\) = 4",
        ),
        (
            lambda: UNet((8, 8), (4, 4), num_blocks=0, key=KEY),
            "num_blocks must be a positive int, got 0",
        ),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_float32_networks_under_x64():
    """As one that was loaded from a file is."""
    with jax.enable_x64(False):
        unconditional = neb.ResidualEnergy(u_net((8, 8)), 0.5, (8, 8))
        conditional = neb.ConditionalEnergy(u_net((8, 8), conditional=True), (8, 8), (0.1, 1.0))
        expected = conditional.at(0.5).denoise(jnp.zeros((8, 8)))
    with jax.enable_x64(True):
        y = jnp.zeros((8, 8), jnp.float32)
        np.testing.assert_allclose(conditional.at(0.5).denoise(y), expected, rtol=1e-5, atol=1e-6)
        same = neb.ResidualEnergy(
            unconditional.network,
            unconditional.sigma,
            (8, 8),
            unconditional.loc,
            unconditional.scale,
        )
        assert same.denoise(y).dtype == jnp.float32


@pytest.mark.parametrize("conditional", [False, True])
def test_a_skip_that_is_exact_for_a_gaussian(conditional):
    """X ~ N(loc, scale^2) in an energy whose network is zero but for its skip."""
    sigma, scale, loc = 0.4, 1.7, jnp.array([[3.0, -1.0]])
    skip = 1 - sigma / (scale**2 + sigma**2) ** 0.5
    mlp = neb.networks.MLP(
        (1, 2), width_size=4, depth=1, skip=skip, conditional=conditional, key=jax.random.key(0)
    )
    t = (jnp.array(0.3),) * conditional
    y = jnp.array([[0.5, 2.0]])
    zero = jax.tree.map(lambda leaf: 0 * leaf if eqx.is_inexact_array(leaf) else leaf, mlp)
    bare = neb.networks.MLP(
        (1, 2), width_size=4, depth=1, conditional=conditional, key=jax.random.key(0)
    )
    np.testing.assert_allclose(mlp(y, *t), bare(y, *t) + skip * y, rtol=1e-6)
    if not conditional:
        energy = neb.ResidualEnergy(zero, sigma, (1, 2), loc=loc, scale=scale)
        phi = jnp.sum((y - loc) ** 2) / (2 * (scale**2 + sigma**2))
        np.testing.assert_allclose(energy(y), phi, rtol=1e-5)
