from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets

import numpyro_neb as neb
from numpyro_neb.posteriors import components

pytestmark = pytest.mark.statistical

RNG = np.random.default_rng(0)
LOCS = RNG.normal(size=(6, 3)) * 2 + 5
LOG_WEIGHTS = RNG.normal(size=6)
ROOT = RNG.normal(size=(6, 3, 3))
COVARIANCES = ROOT @ ROOT.swapaxes(1, 2)
SIGMA = 0.7
CASES = [
    pytest.param(None, None, id="kernel density"),
    pytest.param(LOG_WEIGHTS, None, id="weights"),
    pytest.param(LOG_WEIGHTS, COVARIANCES, id="covariances"),
]
POINTS = np.concatenate([LOCS, LOCS + RNG.normal(size=LOCS.shape), RNG.normal(size=(4, 3)) * 30])


@pytest.mark.parametrize(("log_weights", "covariances"), CASES)
def test_against_brute_force_in_float64(log_weights, covariances, x64, strict):
    energy = neb.MixtureEnergy(LOCS, SIGMA, log_weights, covariances)
    weights = np.zeros(6) if log_weights is None else log_weights
    for y in POINTS:
        value, gradient, hessian = targets.brute_force(LOCS, SIGMA, weights, covariances, y)
        np.testing.assert_allclose(energy(jnp.asarray(y)), value, rtol=1e-10)
        np.testing.assert_allclose(energy.score(jnp.asarray(y)), -gradient, rtol=1e-8, atol=1e-10)
        jump = y - SIGMA**2 * gradient
        np.testing.assert_allclose(energy.denoise(jnp.asarray(y)), jump, rtol=1e-8)
        np.testing.assert_allclose(jax.hessian(energy)(jnp.asarray(y)), hessian, atol=1e-7)


@pytest.mark.parametrize(("log_weights", "covariances"), CASES)
def test_float32_agrees(log_weights, covariances, strict, x32):
    energy = neb.MixtureEnergy(LOCS, SIGMA, log_weights, covariances)
    weights = np.zeros(6) if log_weights is None else log_weights
    for y in POINTS:
        value, gradient, _ = targets.brute_force(LOCS, SIGMA, weights, covariances, y)
        y = jnp.asarray(y, jnp.float32)
        np.testing.assert_allclose(energy(y), value, rtol=1e-4)
        np.testing.assert_allclose(energy.denoise(y), y - SIGMA**2 * gradient, atol=2e-3)


@pytest.mark.parametrize("distance", [1e2, 1e4, 1e8, 1e15])
def test_far_away_the_jump_is_the_nearest_location(distance, strict):
    locs = jnp.asarray(LOCS, float)
    energy = neb.MixtureEnergy(locs, SIGMA)
    direction = jnp.array([0.6, -0.8, 0.0])
    y = energy.loc + distance * direction
    # From far away the nearest one is the farthest along the direction.
    nearest = locs[jnp.argmax(locs @ direction)]
    np.testing.assert_allclose(energy.denoise(y), nearest, rtol=1e-5)
    assert jnp.all(jnp.isfinite(energy.score(y)))
    assert jnp.isfinite(energy(y))


def test_is_normalised(x64):
    """exp(-phi) integrates to one, by the trapezium rule on a wide, fine grid."""
    energy = targets.skewed_mixture()
    grid = jnp.linspace(-8, 8, 321)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1).reshape(-1, 2)
    density = jnp.exp(-jax.vmap(energy)(points))
    np.testing.assert_allclose(density.sum() * (grid[1] - grid[0]) ** 2, 1.0, atol=1e-6)


def test_loc_and_scale_are_the_moments_of_x():
    energy = targets.skewed_mixture(sigma=0.7)
    mean, covariance = targets.moments(energy)
    np.testing.assert_allclose(energy.loc, mean, rtol=1e-5)
    np.testing.assert_allclose(energy.scale**2, np.diag(covariance) - 0.7**2, rtol=1e-4)


def test_another_noise_level():
    energy = targets.skewed_mixture(sigma=0.7)
    y = jnp.array([0.4, -1.0])
    np.testing.assert_allclose(energy.at(0.2)(y), targets.skewed_mixture(sigma=0.2)(y), rtol=1e-5)
    slope = jax.grad(lambda s: energy.at(s)(y))(0.7)
    step = (energy.at(0.701)(y) - energy.at(0.699)(y)) / 0.002
    np.testing.assert_allclose(slope, step, rtol=1e-2)


def test_draws_have_the_law():
    energy = targets.skewed_mixture()
    y = energy.sample(jax.random.key(0), (20, 1000))
    assert y.shape == (20, 1000, 2)
    targets.assert_law(y.reshape(-1, 2), energy)


def test_a_component_of_weight_zero_does_not_count():
    energy = neb.MixtureEnergy(jnp.array([0.0, 5.0]), 1.0, jnp.array([0.0, -jnp.inf]))
    np.testing.assert_allclose(energy.denoise(jnp.array(5.0)), 0.0)
    assert jnp.isfinite(energy.score(jnp.array(5.0)))


def test_one_dimensional_data():
    energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), 0.5)
    assert energy.event_shape == ()
    y = jnp.array(0.3)
    np.testing.assert_allclose(energy.denoise(y), np.tanh(0.3 / 0.25), rtol=1e-5)
    assert energy.sample(jax.random.key(0), (4,)).shape == (4,)


@pytest.mark.parametrize(("log_weights", "covariances"), CASES)
def test_blocks_do_not_show(log_weights, covariances, x64, strict, monkeypatch):
    """Six components in two blocks, which overlap: values and derivatives of every kind."""

    def everything(y, sigma):
        energy = neb.MixtureEnergy(LOCS, SIGMA, log_weights, covariances).at(sigma)
        functions = [energy.__call__, energy.score, energy.denoise, jax.hessian(energy)]
        functions += [jax.grad(energy), jax.jacfwd(energy.denoise), jax.jacrev(energy.score)]
        return [fn(y) for fn in functions], jax.grad(lambda s: energy.at(s)(y))(sigma)

    points = jnp.asarray(POINTS[::3])
    whole = jax.jit(jax.vmap(everything, (0, None)))(points, SIGMA)
    monkeypatch.setattr(components, "_BLOCK", 4 if covariances is None else 12)
    parts = jax.jit(jax.vmap(everything, (0, None)))(points, SIGMA)
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    jax.tree.map(close, parts, whole)


def test_blocks_where_the_first_ones_weigh_nothing(monkeypatch):
    monkeypatch.setattr(components, "_BLOCK", 2)
    log_weights = jnp.array([-jnp.inf, -jnp.inf, -jnp.inf, 0.0, -jnp.inf])
    energy = neb.MixtureEnergy(jnp.arange(5.0), 0.01, log_weights)
    np.testing.assert_allclose(energy.denoise(jnp.array(-100.0)), 3.0, rtol=1e-6)
    assert jnp.isfinite(energy(jnp.array(-100.0)))


def test_memory_is_that_of_a_block():
    """No array with more rows than a block is as long as the batch, nor a second copy of locs."""
    locs = jax.random.normal(jax.random.key(0), (10_000, 3))
    energy, y = neb.MixtureEnergy(locs, SIGMA), jnp.zeros((500, 3))
    for fn in (energy.__call__, energy.score, energy.denoise, jax.grad(energy)):
        largest = max(np.prod(shape) for shape in targets.array_shapes(jax.vmap(fn), y))
        assert largest <= components._BLOCK * len(y)
    # With covariances, of which there are d x d numbers each, a d-th of a block.
    covariances = jnp.broadcast_to(jnp.eye(3), (10_000, 3, 3))
    energy = neb.MixtureEnergy(locs, SIGMA, None, covariances)
    for fn in (energy.__call__, energy.score, energy.denoise):
        largest = max(np.prod(shape) for shape in targets.array_shapes(jax.vmap(fn), y))
        assert largest <= components._BLOCK * len(y)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"locs": jnp.array(1.0)}, r"locs must have shape \(K, \*event_shape\)"),
        ({"locs": jnp.zeros((0, 2))}, r"locs must have shape"),
        ({"locs": jnp.array([[jnp.nan, 0.0]])}, r"locs must be finite, got NaN"),
        ({"sigma": 0.0}, r"sigma must be positive, got 0.0"),
        ({"log_weights": jnp.zeros(3)}, r"log_weights must have shape \(2,\), got \(3,\)"),
        ({"log_weights": jnp.array([jnp.nan, 0.0])}, r"log_weights must hold a finite value"),
        ({"covariances": jnp.eye(2)}, r"covariances must have shape \(2, 2, 2\), got \(2, 2\)"),
        ({"covariances": -jnp.stack([jnp.eye(2)] * 2)}, r"positive semi-definite"),
        ({"covariances": jnp.stack([jnp.triu(jnp.ones((2, 2)))] * 2)}, r"symmetric"),
    ],
)
def test_bad_arguments(kwargs, message, untyped):
    arguments = {"locs": jnp.zeros((2, 2)), "sigma": 0.3} | kwargs
    with pytest.raises(ValueError, match=message):
        neb.MixtureEnergy(**arguments)
