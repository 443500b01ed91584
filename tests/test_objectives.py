import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets

import numpyro_neb as neb

SIGMA = 0.7
GAUSSIAN = targets.gaussian([0.5, 1.0], SIGMA, locs=[1.0, -2.0])
MIXTURE = targets.skewed_mixture(SIGMA)
BATCHES, BATCH = 400, 500


def clean(energy, key, shape):
    """Draws of X, by the exact sampler at a noise level that does not count."""
    return energy.at(1e-6).sample(key, shape)


@eqx.filter_jit
def losses(energy, truth, key):
    def one(key):
        key_x, key_y = jax.random.split(key)
        return neb.denoising_loss(energy, clean(truth, key_x, (BATCH,)), key_y)

    return jax.lax.map(one, jax.random.split(key, BATCHES))


def floor(energy, key):
    """L* = sigma^2 d - sigma^4 E norm(grad log f)^2 by Monte Carlo, with its standard error."""
    y = energy.sample(key, (BATCHES * BATCH,))
    squares = jnp.sum(jax.vmap(energy.score)(y) ** 2, axis=1)
    value = SIGMA**2 * 2 - SIGMA**4 * float(squares.mean())
    return value, SIGMA**4 * float(squares.std()) / np.sqrt(len(y))


def test_loss_at_the_exact_gaussian_energy_is_its_floor():
    """For X ~ N(m, diag s^2): L* = sum of s^2 sigma^2 / (s^2 + sigma^2)."""
    s2 = np.array([0.25, 1.0])
    exact = np.sum(s2 * SIGMA**2 / (s2 + SIGMA**2))
    sample = np.asarray(losses(GAUSSIAN, GAUSSIAN, jax.random.key(0)), float)
    targets.within(sample.mean(), exact, sample.std() / np.sqrt(BATCHES))
    value, error = floor(GAUSSIAN, jax.random.key(1))
    targets.within(value, exact, error)


def test_loss_at_the_exact_mixture_energy_is_its_floor():
    sample = np.asarray(losses(MIXTURE, MIXTURE, jax.random.key(0)), float)
    value, error = floor(MIXTURE, jax.random.key(1))
    targets.within(sample.mean(), value, np.hypot(error, sample.std() / np.sqrt(BATCHES)))


def trained(num_steps):
    network = neb.networks.MLP((2,), width_size=32, depth=2, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, SIGMA, (2,))
    data = clean(MIXTURE, jax.random.key(1), (20_000,))
    return neb.fit(
        energy, data, key=jax.random.key(2), num_steps=num_steps, batch_size=64, progress_bar=False
    ).energy


@pytest.mark.parametrize("num_steps", [20, 1000])
def test_excess_loss_is_the_score_error(num_steps):
    """L - L* = sigma^4 E norm(grad phi + grad log f)^2, the two sides measured apart."""
    energy = trained(num_steps)
    # The same draws for both energies: their difference has far less noise than either.
    key = jax.random.key(3)
    excess = np.asarray(losses(energy, MIXTURE, key) - losses(MIXTURE, MIXTURE, key), float)
    y = MIXTURE.sample(jax.random.key(4), (BATCHES * BATCH,))
    gap = jax.vmap(energy.score)(y) - jax.vmap(MIXTURE.score)(y)
    squares = SIGMA**4 * np.sum(np.asarray(gap, float) ** 2, axis=1)
    error = np.hypot(excess.std() / np.sqrt(BATCHES), squares.std() / np.sqrt(len(y)))
    assert squares.mean() > targets.STANDARD_ERRORS * error
    targets.within(excess.mean(), squares.mean(), error)


def test_sums_over_coordinates_and_averages_over_the_batch():
    identity = neb.ResidualEnergy(lambda y: y, 0.5, (3, 2))
    x = jnp.zeros((20_000, 3, 2))
    loss = float(neb.denoising_loss(identity, x, jax.random.key(0)))
    # x_hat = y: the loss is sigma^2 d; norm(eps)^2 has variance 2 d.
    targets.within(loss, 0.25 * 6, 0.25 * np.sqrt(2 * 6 / 20_000))


@pytest.mark.parametrize("shape", [(2,), (5, 3), ()])
def test_bad_shape(shape, untyped):
    with pytest.raises(ValueError, match=r"x must have shape \(batch, \*event_shape\)"):
        neb.denoising_loss(GAUSSIAN, jnp.zeros(shape), jax.random.key(0))
