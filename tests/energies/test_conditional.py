"""One network for many noise levels: its Gaussian, its constants, and draws from noise down."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import numpyro_neb as neb

KEY = jax.random.key(0)
LOC, SCALE = np.array([0.5, -1.0, 2.0]), np.array([0.3, 1.0, 4.0])
Y = jnp.array([1.0, 0.3, -2.0], jnp.float32)


def nothing(y, t):
    return jnp.zeros_like(y)


def family(network=nothing, shape=(3,), loc=LOC, scale=SCALE):
    return neb.ConditionalEnergy(network, shape, (0.1, 20.0), loc, scale)


def normal(sigma):
    return stats.multivariate_normal(LOC, np.diag(SCALE**2 + sigma**2))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0, 20.0])
@pytest.mark.parametrize("network", [nothing, lambda y, t: jnp.zeros(())], ids=["event", "scalar"])
def test_without_its_network_it_is_the_gaussian(network, sigma):
    energy = family(network).at(sigma)
    np.testing.assert_allclose(-energy(Y), normal(sigma).logpdf(Y), rtol=1e-5)
    shrunk = LOC + SCALE**2 / (SCALE**2 + sigma**2) * (Y - LOC)
    np.testing.assert_allclose(energy.denoise(Y), shrunk, rtol=1e-4, atol=1e-4)


def test_its_formula():
    """The network's input has unit variance; the skip goes from the Gaussian to x itself."""
    seen = []

    def network(z, t):
        seen.append((z, t))
        return jnp.sin(z) + t

    energies = eqx.tree_at(
        lambda f: (f.skip, f.offset),
        family(network),
        (jnp.linspace(0.01, 0.06, 6), jnp.linspace(0.03, -0.01, 5)),
    )
    sigma = 0.7
    value = energies.at(sigma)(Y)
    t = 2 * np.log(sigma / 0.1) / np.log(200) - 1
    root = np.sqrt(SCALE**2 + sigma**2)
    z = (Y - LOC) / root
    np.testing.assert_allclose(seen[-1][0], z, rtol=1e-5)
    np.testing.assert_allclose(seen[-1][1], t, rtol=1e-5)
    a = np.polynomial.Chebyshev(10 * np.linspace(0.01, 0.06, 6))
    b = np.polynomial.Chebyshev([0.0, *10 * np.linspace(0.03, -0.01, 5)])
    residual = ((1 - a(t)) * sigma + a(t) * root) * z - SCALE * (np.sin(z) + t)
    phi = np.sum((residual / sigma) ** 2 + np.log(2 * np.pi * root**2)) / 2 + 3 * (b(t) - b(1))
    np.testing.assert_allclose(value, phi, rtol=1e-5)


def test_in_float64(x64):
    energy = family().at(0.7)
    assert energy(jnp.asarray(Y, float)).dtype == np.float64
    np.testing.assert_allclose(-energy(jnp.asarray(Y, float)), normal(0.7).logpdf(Y), rtol=1e-12)


@pytest.mark.parametrize("name", ["UNet", "ConvNet"])
def test_convolutions(name):
    """Each level is an energy, and its jump its gradient's; the scalar network's too."""
    settings = {"channels": (2, 3), "conditional": True, "key": KEY}
    network = getattr(neb.networks, name)((4, 4), **settings)
    energies = neb.ConditionalEnergy(network, (4, 4), (0.1, 2.0))
    y = jax.random.normal(KEY, (4, 4))
    one, other = (energies.at(sigma) for sigma in (0.2, 0.4))
    assert one(y).shape == ()
    assert one(y) != other(y)
    moved = neb.fit(
        energies,
        np.asarray(jax.random.normal(KEY, (8, 4, 4))),
        key=KEY,
        num_steps=2,
        batch_size=4,
        objective=neb.dual_score_loss,
        progress_bar=False,
    ).energy
    assert not eqx.tree_equal(moved.network, energies.network)
    assert np.any(np.asarray(moved.offset) != 0)
    assert moved.sigma_range == energies.sigma_range
    np.testing.assert_array_equal(moved.scale, energies.scale)


def test_files(tmp_path):
    mlp = neb.networks.MLP((3,), width_size=4, depth=1, conditional=True, key=KEY)
    new = eqx.tree_at(lambda f: f.offset, family(mlp), jnp.linspace(0.1, 0.2, 5))
    old = neb.ConditionalEnergy(mlp, (3,), (0.1, 20.0), LOC, SCALE, preconditioned=False)
    for energies in (new, old):
        for energy in (energies, energies.at(0.5)):
            neb.save(tmp_path / "energy", energy)
            assert eqx.tree_equal(neb.load(tmp_path / "energy"), energy)
    neb.save(tmp_path / "old", old)
    with pytest.raises(ValueError, match="these arrays are in one only"):
        neb.load(tmp_path / "old", like=new)


def test_a_level_inside_other_code():
    """Stacks, gradients by sigma, and what trains."""
    energies = family()
    stack = eqx.filter_vmap(energies.at)(jnp.array([0.3, 0.5]))
    assert neb.SmoothedDensity(stack).log_prob(Y).shape == (2,)
    slope = jax.grad(lambda s: energies.at(s)(Y))(0.7)
    step = (-normal(0.701).logpdf(Y) + normal(0.699).logpdf(Y)) / 0.002
    np.testing.assert_allclose(slope, step, rtol=1e-3)
    level = energies.at(0.5)
    params = eqx.filter(level, neb.energies.trainable(level))
    assert params.sigma is params.family.loc is params.family.scale is None
    assert params.family.offset is not None


@pytest.mark.slow
def test_draws_from_noise():
    """X ~ N(LOC, SCALE^2), and Y at one level, each from sigma = 20 down."""
    number = 4000
    energies = family()
    x = np.asarray(energies.sample(KEY, (number,)), float)
    y = np.asarray(neb.SmoothedDensity(energies.at(1.0)).sample(KEY, (number,)), float)
    for draws, variance in ((x, SCALE**2), (y, SCALE**2 + 1)):
        assert np.all(np.abs(draws.mean(0) - LOC) < 5 * np.sqrt(variance / number))
        # Two more percent for the way down: 24 levels over a ratio of 200.
        slack = 5 * np.sqrt(2 / number) + 0.02
        np.testing.assert_allclose(draws.var(0) / variance, 1, atol=slack)
    assert energies.sample(KEY).shape == (3,)
    assert energies.sample(KEY, (2, 1), num_steps=0, num_levels=3).shape == (2, 1, 3)


@pytest.mark.slow
@pytest.mark.statistical
def test_dual_score_matching_normalises():
    """A mixture of two Gaussians in the plane: log f by phi itself, at each level."""
    rng = np.random.default_rng(0)
    spread = np.array([[0.5, 0.0], [0.3, 0.4]])
    signs = rng.choice([-1.0, 1.0], size=(20_000, 1), p=[0.3, 0.7])
    x = (signs * [1.5, 0.5] + rng.normal(size=(20_000, 2)) @ spread).astype(np.float32)
    exact = neb.MixtureEnergy(
        np.array([[-1.5, -0.5], [1.5, 0.5]]),
        1.0,
        np.log([0.3, 0.7]),
        np.stack([spread.T @ spread] * 2),
    )
    mlp = neb.networks.MLP((2,), width_size=64, depth=3, conditional=True, key=KEY)
    start = neb.ConditionalEnergy(mlp, (2,), (0.2, 10.0), x.mean(0), float(x.std()))
    trained = neb.fit(
        start,
        x,
        key=jax.random.key(1),
        num_steps=3000,
        batch_size=256,
        objective=neb.dual_score_loss,
        progress_bar=False,
    ).energy
    for sigma in (0.3, 1.0, 3.0):
        y = exact.at(sigma).sample(jax.random.key(2), (2000,))
        difference = np.asarray(
            neb.SmoothedDensity(trained.at(sigma)).log_prob(y)
            - neb.SmoothedDensity(exact.at(sigma)).log_prob(y)
        )
        # The excess of the loss over its floor is the mean square of the score's error: 0.05 nats
        # at the end of so short a training.
        assert abs(difference.mean()) < 0.05, sigma
        assert difference.std() < 0.15, sigma
        log_z, error = neb.empirical_bayes.log_normalizer(
            trained.at(sigma), jax.random.key(3), num_temperatures=100, progress_bar=False
        )
        assert abs(float(log_z)) < 0.05 + 3 * float(error), sigma
