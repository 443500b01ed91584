import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets

import numpyro_neb as neb
from numpyro_neb.integrators import BAOAB, ULA

# Coordinates of unequal width in units of sigma; Y ~ N(0, x_sd^2 + sigma^2).
SIGMA = 0.5
X_SD = np.array([0.2, 0.6, 1.5])
Y_VAR = X_SD**2 + SIGMA**2
GAUSSIAN = targets.gaussian(X_SD, SIGMA)
CHAINS = 8192


def stationary(integrator, *, num_steps, variance):
    """States of independent chains, begun at a Gaussian of `variance` and walked on."""
    target = jax.value_and_grad(GAUSSIAN)

    def chain(key):
        key_start, key_init, key_walk = jax.random.split(key, 3)
        start = jnp.sqrt(jnp.asarray(variance, float)) * jax.random.normal(key_start, (3,))
        state = integrator.init(target, start, key_init)
        return neb.integrators.walk(integrator, target, state, key_walk, SIGMA, num_steps)

    return jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), CHAINS))


def assert_variance(draws, variance):
    # A Gaussian's sample second moment has standard error variance sqrt(2 / n).
    second = np.mean(np.asarray(draws, float) ** 2, axis=0)
    targets.within(second, variance, variance * np.sqrt(2 / CHAINS))


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.8])
def test_baoab_stationary_variance(step_size):
    """Position exact at every stable step; velocity 1 - h^2 / (4 s^2)."""
    state = stationary(BAOAB(step_size=step_size), num_steps=400, variance=2 * Y_VAR)
    assert_variance(state.position, Y_VAR)
    assert_variance(state.velocity, 1 - (step_size * SIGMA) ** 2 / (4 * Y_VAR))


@pytest.mark.parametrize("step_size", [0.5, 0.8])
def test_ula_stationary_variance(step_size):
    """s^2 / (1 - eta / (2 s^2)), visibly wider than the target at these steps."""
    eta = (step_size * SIGMA) ** 2
    biased = Y_VAR / (1 - eta / (2 * Y_VAR))
    assert biased[0] > Y_VAR[0] * (1 + targets.STANDARD_ERRORS * np.sqrt(2 / CHAINS))
    state = stationary(ULA(step_size=step_size), num_steps=400, variance=biased * 1.5)
    assert_variance(state.position, biased)


def test_friction_is_per_time():
    """The velocity's memory over one free step is exp(-gamma h), gamma in units of 1/sigma."""
    flat = lambda y: (jnp.zeros(()), jnp.zeros_like(y))  # noqa: E731
    integrator = BAOAB(step_size=0.5, friction=0.7)
    state = integrator.init(flat, jnp.zeros(CHAINS), jax.random.key(0))
    after = integrator.step(flat, state, jax.random.key(1), SIGMA)
    correlation = np.mean(np.asarray(state.velocity * after.velocity, float))
    # A product of unit Gaussians with correlation c has variance 1 + c^2.
    decay = np.exp(-0.7 * 0.5)
    targets.within(correlation, decay, np.sqrt((1 + decay**2) / CHAINS))


def test_paper_walk():
    assert ULA.paper().step_size == 0.01
    y = jnp.array([1.0, -1.0, 0.5])
    target = jax.value_and_grad(GAUSSIAN)
    key = jax.random.key(3)
    state = ULA.paper().init(target, y, key)
    delta = SIGMA / 100
    noise = jax.random.normal(key, (3,))
    expected = y - delta**2 * jax.grad(GAUSSIAN)(y) + np.sqrt(2) * delta * noise
    stepped = ULA.paper().step(target, state, key, GAUSSIAN.sigma)
    np.testing.assert_allclose(stepped.position, expected, rtol=1e-6)


@pytest.mark.parametrize("integrator", [BAOAB(), ULA()], ids=lambda i: type(i).__name__)
class TestEveryIntegrator:
    def test_state_carries_the_gradient(self, integrator, strict):
        target = jax.value_and_grad(GAUSSIAN)
        state = integrator.init(target, jnp.ones(3), jax.random.key(0))
        for key in jax.random.split(jax.random.key(1), 3):
            state = integrator.step(target, state, key, GAUSSIAN.sigma)
            value, gradient = target(state.position)
            assert state.potential == value
            assert jnp.array_equal(state.gradient, gradient)
        kinetic = 0.0 if state.velocity is None else jnp.sum(state.velocity**2) / 2
        np.testing.assert_allclose(state.energy, state.potential + kinetic, rtol=1e-6)

    def test_one_gradient_a_step(self, integrator):
        calls = []

        def target(y):
            calls.append(y)
            return jax.value_and_grad(GAUSSIAN)(y)

        state = integrator.init(target, jnp.ones(3), jax.random.key(0))
        integrator.step(target, state, jax.random.key(1), SIGMA)
        assert len(calls) == 2

    def test_units(self, integrator):
        """Everything measured in other units: the same walk."""
        wide = targets.gaussian(10 * X_SD, 10 * SIGMA)
        walked = []
        for energy, scale in ((GAUSSIAN, 1.0), (wide, 10.0)):
            target = jax.value_and_grad(energy)
            state = integrator.init(target, scale * jnp.ones(3), jax.random.key(0))
            state = neb.integrators.walk(
                integrator, target, state, jax.random.key(1), energy.sigma, 5
            )
            walked.append(state.position / scale)
        np.testing.assert_allclose(*walked, rtol=1e-4)


@pytest.mark.parametrize("name", ["step_size", "friction"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_arguments(name, value, untyped):
    with pytest.raises(ValueError, match=rf"{name} must be positive and finite, got {value}"):
        BAOAB(**{name: value})
