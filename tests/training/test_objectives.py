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


@pytest.mark.statistical
def test_loss_at_the_exact_gaussian_energy_is_its_floor():
    """For X ~ N(m, diag s^2): L* = sum of s^2 sigma^2 / (s^2 + sigma^2)."""
    s2 = np.array([0.25, 1.0])
    exact = np.sum(s2 * SIGMA**2 / (s2 + SIGMA**2))
    sample = np.asarray(losses(GAUSSIAN, GAUSSIAN, jax.random.key(0)), float)
    targets.within(sample.mean(), exact, sample.std() / np.sqrt(BATCHES))
    value, error = floor(GAUSSIAN, jax.random.key(1))
    targets.within(value, exact, error)


@pytest.mark.statistical
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


@pytest.mark.statistical
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


def noisy(energy, count, key=0):
    """Clean and noisy draws."""
    key_x, key_y = jax.random.split(jax.random.key(key))
    x = clean(energy, key_x, (count,))
    return x, x + SIGMA * jax.random.normal(key_y, x.shape)


@pytest.mark.statistical
@pytest.mark.parametrize("probes", [None, 1, 3])
def test_sure_is_the_risk(probes):
    """Without the clean data, the same as with them: for a right energy, and for a wrong one."""
    wrong = targets.gaussian([1.5, 0.2], SIGMA, locs=[0.0, 1.0])
    x, y = noisy(MIXTURE, 50_000)
    for energy in (MIXTURE, wrong):
        jumps = np.asarray(jax.vmap(energy.denoise)(y))
        risks = np.sum((np.asarray(x) - jumps) ** 2, axis=1)
        one = lambda y, key, energy=energy: neb.sure_loss(energy, y[None], key, num_probes=probes)  # noqa: E731
        keys = jax.random.split(jax.random.key(1), len(y))
        estimates = np.asarray(jax.jit(jax.vmap(one))(y, keys), float)
        difference = estimates - risks
        targets.within(difference.mean(), 0, difference.std() / np.sqrt(len(y)))
        whole = neb.sure_loss(energy, y, jax.random.key(1), num_probes=probes)
        targets.within(float(whole), estimates.mean(), difference.std() / np.sqrt(len(y)))


@pytest.mark.statistical
def test_sure_in_closed_form():
    """A linear jump, y -> m + A (y - m): norm((A - I)(y - m))^2 + 2 sigma^2 tr A - sigma^2 d."""
    a = np.array([0.25, 1.0]) / (np.array([0.25, 1.0]) + SIGMA**2)
    y = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    risk = np.sum(((a - 1) * (y - [1.0, -2.0])) ** 2, 1) + SIGMA**2 * (2 * a.sum() - 2)
    loss = neb.sure_loss(GAUSSIAN, jnp.asarray(y), jax.random.key(0))
    np.testing.assert_allclose(loss, risk.mean(), rtol=1e-5)


@pytest.mark.statistical
def test_sure_probes_unless_the_dimension_is_small():
    """Exact in 16 dimensions, whatever the key; one probe in 17."""
    for d, same in ((16, True), (17, False)):
        energy = neb.MixtureEnergy(jax.random.normal(jax.random.key(0), (5, d)), SIGMA)
        y = jax.random.normal(jax.random.key(1), (3, d))
        losses = [neb.sure_loss(energy, y, jax.random.key(k)) for k in (0, 1)]
        assert (losses[0] == losses[1]) == same


@pytest.mark.statistical
def test_training_on_noisy_data_alone():
    """A network that has seen no clean point is nearly as good as the exact rule."""
    _, y = noisy(MIXTURE, 20_000)
    network = neb.networks.MLP((2,), width_size=32, depth=2, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, SIGMA, (2,))
    settings = {"num_steps": 2000, "batch_size": 128, "progress_bar": False}
    energy = neb.fit(energy, y, key=jax.random.key(2), objective=neb.sure_loss, **settings).energy
    x, y = noisy(MIXTURE, 20_000, key=5)
    risk = lambda e: np.mean(np.sum((np.asarray(jax.vmap(e.denoise)(y)) - x) ** 2, 1))  # noqa: E731
    exact, raw = risk(MIXTURE), np.mean(np.sum((np.asarray(y - x)) ** 2, 1))
    assert risk(energy) < exact + 0.05 * (raw - exact)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": jnp.zeros((3, 1))}, ValueError, r"y must have shape \(batch, \*event_shape\)"),
        ({"num_probes": 0}, ValueError, "num_probes must be a positive int, got 0"),
    ],
)
def test_sure_of_bad_arguments(arguments, error, message, untyped):
    arguments = {"energy": MIXTURE, "y": jnp.zeros((3, 2)), "key": jax.random.key(0)} | arguments
    with pytest.raises(error, match=message):
        neb.sure_loss(**arguments)


@pytest.mark.slow
def test_blind_digits_beat_the_linear_rule():
    """Trained and stopped on noisy digits alone: 5% below the best linear rule for them."""
    from benchmarks import sure

    y, x, seen = sure.noisy_digits()
    linear = np.mean(np.sum((sure.linear_rule(y, seen) - x) ** 2, axis=1))
    start = sure.mixture(y[:1200], 10)
    result = sure.train_blind(start, y, num_steps=2000, rate=1e-3, decay=0.0)
    assert len(result.losses) < 2000
    assert sure.error(result.energy, x, seen) < 0.95 * linear
