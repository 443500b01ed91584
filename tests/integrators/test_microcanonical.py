"""Microcanonical walks: the exact turn, the law with a Metropolis test, the bias without one."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.infer import MCMC
from scipy import stats
from scipy.integrate import solve_ivp

import numpyro_neb as neb
from numpyro_neb.integrators import MAMS, Microcanonical, Target, metropolis
from numpyro_neb.integrators.microcanonical import _turned

pytestmark = pytest.mark.statistical

CHAINS = 4096


def walks(integrator, potential, d, num_steps, chains=CHAINS, step=None):
    """Where independent chains are after `num_steps` from N(0, I)."""
    target = Target(potential)
    step = step or (lambda state, key: integrator.step(target, state, key)[0])

    def chain(key):
        key_start, key_init, key = jax.random.split(key, 3)
        state = integrator.init(target, jax.random.normal(key_start, (d,)), key_init)
        body = lambda state, key: (step(state, key), None)  # noqa: E731
        return jax.lax.scan(body, state, jax.random.split(key, num_steps))[0]

    return jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), chains))


@pytest.mark.parametrize("d", [2, 3, 7])
def test_the_turn_solves_its_equation(d, x64):
    """dv/dt = P(v) f d / (d - 1), and the growth's rate is f'v; by a general solver."""
    rng = np.random.default_rng(d)
    gradient, v = rng.normal(size=(2, d)) * np.array([[5.0], [1.0]])
    v *= np.sqrt(d) / np.linalg.norm(v)

    def rates(_, state):
        v, f = state[:-1], -gradient
        return np.append((f - v * (v @ f) / d) * d / (d - 1), f @ v)

    found = solve_ivp(rates, (0, 0.7), np.append(v, 0), rtol=1e-10, atol=1e-10).y[:, -1]
    turned, growth = _turned(Target(jnp.sum), jnp.asarray(v), jnp.asarray(gradient), 0.7)
    np.testing.assert_allclose(turned, found[:-1], atol=1e-8)
    np.testing.assert_allclose(growth, found[-1], rtol=1e-8)


def test_the_turn_survives_a_wall():
    """A force of 1e6 against the velocity, or along it, neither overflows nor speeds it up."""
    v = jnp.array([np.sqrt(2), 0.0])
    for sign in (1.0, -1.0):
        turned, growth = _turned(Target(jnp.sum), v, sign * jnp.array([1e6, 1.0]), 1.0)
        np.testing.assert_allclose(jnp.linalg.norm(turned), np.sqrt(2), rtol=1e-6)
        assert jnp.isfinite(growth)
    np.testing.assert_array_equal(_turned(Target(jnp.sum), v, jnp.zeros(2), 1.0)[0], v)


LAWS = {
    "skewed": (lambda y: jnp.sum(jnp.exp(y) - y), stats.loggamma(1)),
    "kink": (lambda y: jnp.sum(jnp.abs(y)), stats.laplace()),
    "heavy tails": (lambda y: jnp.sum(2 * jnp.log1p(y**2 / 3)), stats.t(3)),
}


@pytest.mark.parametrize(("law", "d"), [("skewed", 2), ("kink", 5), ("heavy tails", 3)])
def test_mams_is_exact(law, d):
    """At a step that is often rejected: each coordinate's law, and two are independent."""
    potential, exact = LAWS[law]
    y = np.asarray(walks(MAMS(1.2, friction=0.5), potential, d, 600).position, float)
    for coordinate in y.T:
        distance = stats.kstest(coordinate, exact.cdf).statistic * np.sqrt(CHAINS)
        assert distance < targets.KOLMOGOROV
    uniform = exact.cdf(y)
    correlation = np.corrcoef(uniform.T)[0, 1]
    targets.within(correlation, 0, 1 / np.sqrt(CHAINS))


def test_energy_error_makes_an_unadjusted_step_exact():
    """A Metropolis test on it takes the bias away, which is plain without the test."""
    potential, exact = LAWS["skewed"]
    integrator = Microcanonical(2.0, friction=0.5)
    target = Target(potential)

    def tested(state, key):
        key_step, key_accept = jax.random.split(key)
        proposal, error = integrator.step(target, state, key_step)
        return metropolis(key_accept, state, proposal, error)

    for step, right in ((tested, True), (None, False)):
        y = np.asarray(walks(integrator, potential, 3, 400, step=step).position[:, 0], float)
        distance = stats.kstest(y, exact.cdf).statistic * np.sqrt(CHAINS)
        assert (distance < targets.KOLMOGOROV) == right


def test_less_bias_than_a_leapfrog():
    """On a Gaussian a leapfrog of step h widens a variance by (h/s)^2 / 4: a fourth of it here."""
    variances = jnp.geomspace(0.1, 10.0, 30)
    h = 0.9 * float(variances[0]) ** 0.5
    potential = lambda y: jnp.sum(y**2 / variances) / 2  # noqa: E731
    state = walks(Microcanonical(h, friction=0.3), potential, 30, 400)
    narrow = np.asarray(state.position[:, :5] ** 2 / variances[:5], float)
    leapfrog = float(np.mean(0.25 * h**2 / variances[:5]))
    error = np.sqrt(2 / narrow.size)
    assert narrow.mean() - 1 < leapfrog / 4 + targets.STANDARD_ERRORS * error
    np.testing.assert_allclose(jnp.linalg.norm(state.velocity, axis=-1), np.sqrt(30), rtol=1e-5)


@pytest.mark.parametrize("kind", [Microcanonical, MAMS])
def test_friction_is_per_time(kind):
    """In many dimensions the velocity's memory of a free step is exp(-gamma h)."""
    flat, d = Target(lambda y: jnp.zeros(()), 0.5), 100_000
    integrator = kind(0.5, friction=0.7)
    state = integrator.init(flat, jnp.zeros(d), jax.random.key(0))
    after, _ = integrator.step(flat, state, jax.random.key(1))
    correlation = float(jnp.mean(state.velocity * after.velocity))
    targets.within(correlation, np.exp(-0.35), 1 / np.sqrt(d))


@pytest.mark.parametrize("kind", [Microcanonical, MAMS])
def test_one_coordinate_is_too_few(kind):
    with pytest.raises(ValueError, match="at least two coordinates: take BAOAB or GHMC"):
        kind().init(Target(jnp.sum), jnp.zeros(1), jax.random.key(0))


@pytest.mark.parametrize("kind", [Microcanonical, MAMS])
def test_as_a_kernel(kind):
    """On an exact mixture, tuned: the mean of the walk and its variance, within their errors."""
    energy = neb.MixtureEnergy(jnp.array([[-1.0, 0.0, 0.5], [1.0, 0.5, 0.0]]), sigma=0.7)
    kernel = neb.WalkJumpKernel(energy, integrator=kind(), num_steps=5, adapt_step_size=True)
    settings = {"num_chains": 64, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=200, num_samples=200, **settings)
    mcmc.run(jax.random.key(0))
    y = np.asarray(mcmc.get_samples(group_by_chain=True)["y"], float)
    assert not mcmc.get_extra_fields()["diverging"].any()
    means, second = y.mean(1), (y**2).mean(1)
    locs = np.asarray(energy.locs, float)
    exact = 0.49 + (locs**2).mean(0)
    targets.within(means.mean(0), locs.mean(0), means.std(0) / 8)
    # The bias that the tuning allows an unadjusted walk.
    error = second.std(0) / 8 + 0.05 * exact / targets.STANDARD_ERRORS
    targets.within(second.mean(0), exact, error)


@pytest.mark.parametrize("kind", [Microcanonical, MAMS])
def test_on_a_model(kind):
    """Latent sites of unlike scales, tuned by default: exact moments of a conjugate model."""

    def model():
        a = numpyro.sample("a", dist.Normal(0, 10))
        b = numpyro.sample("b", dist.Normal(jnp.zeros(3), 0.1).to_event(1))
        numpyro.sample("data", dist.Normal(a + b, 1.0).to_event(1), obs=jnp.ones(3))

    kernel = neb.WalkJumpKernel(model=model, integrator=kind(), num_steps=5)
    settings = {"num_chains": 32, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=300, num_samples=200, **settings)
    mcmc.run(jax.random.key(0))
    a = np.asarray(mcmc.get_samples(group_by_chain=True)["a"], float)
    variance = 1 / (0.01 + 3 / 1.01)
    mean = variance * 3 / 1.01
    targets.within(a.mean(), mean, a.mean(1).std() / np.sqrt(32))
    spread = ((a - mean) ** 2).mean(1)
    error = spread.std() / np.sqrt(32) + 0.05 * variance / targets.STANDARD_ERRORS
    targets.within(spread.mean(), variance, error)
