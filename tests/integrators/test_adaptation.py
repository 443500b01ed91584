import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.infer import MCMC

import numpyro_neb as neb
from numpyro_neb.integrators import ABOBA, BAOAB, GHMC, MALA, MAMS, ULA, Microcanonical
from numpyro_neb.integrators.adaptation import Adaptation, to_few_bits

pytestmark = pytest.mark.statistical

# One narrow and one wide direction: s is 1 and 3 in units of sigma = 0.5.
SIGMA, Y_SD = 0.5, np.array([0.5, 1.5])
GAUSSIAN = targets.gaussian(np.sqrt(Y_SD**2 - SIGMA**2), SIGMA)


def run(kernel, num_warmup=600, num_samples=1, num_chains=256, args=(), **kwargs):
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(0), *args, **kwargs)
    return mcmc


def tuned(integrator, energy=GAUSSIAN, **kwargs):
    settings = {"num_steps": 4, "adapt_step_size": True} | kwargs
    return neb.WalkJumpKernel(energy, integrator=integrator, **settings)


@pytest.mark.parametrize(
    ("integrator", "target"),
    [(MALA(), None), (MALA(), 0.8), (GHMC(), None), (GHMC(step_size=3.0), 0.7)],
)
def test_metropolis_steps_go_to_the_target_acceptance(integrator, target):
    kernel = tuned(integrator, target_accept_prob=target)
    target = target or integrator.target_accept_prob
    mcmc = MCMC(kernel, num_warmup=600, num_samples=50, num_chains=256,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.warmup(jax.random.key(0), collect_warmup=True)
    rate = mcmc.get_extra_fields(group_by_chain=True)["acceptance_rate"]
    # Dual averaging leaves the mean off by gamma |log(step / prox)| / sqrt(n), with gamma 0.05 and
    # a prox of ten times the first step: a factor of 100, and a swing of ten about it.
    assert abs(rate.mean() - target) < 0.05 * np.log(1000) / np.sqrt(600)
    mcmc.run(mcmc.post_warmup_state.rng_key)
    # The rate is concave in the log of the step: at their averaged step it is higher, by Jensen.
    rate = mcmc.get_extra_fields(group_by_chain=True)["acceptance_rate"]
    assert target < rate.mean() < (1 + target) / 2


def leapfrog_widening(step, deviation):
    """The relative bias of the variance that the energy error's bound stands for."""
    ratio = (step / deviation) ** 2 / 4
    return ratio / (1 - ratio)


@pytest.mark.parametrize(("d", "max_bias"), [(1, 0.05), (2, 0.05), (8, 0.02), (8, 0.1)])
def test_ula_is_tuned_to_the_stated_bias(d, max_bias):
    """On a Gaussian with equal variances its bias is known: eta / (2 s^2) / (1 - ...)."""
    energy = targets.gaussian(np.zeros(d), SIGMA)
    step = run(tuned(ULA(), energy, max_bias=max_bias)).last_state.step_size
    # ULA's eta is half of the square of a leapfrog's step.
    bias = leapfrog_widening(np.sqrt(2) * np.asarray(step, float), SIGMA)
    # The bound is to first order in the bias, and met on the mean over what warm-up has seen.
    assert 0.4 * max_bias < np.median(bias) <= max_bias * (1 + 2 * max_bias)


@pytest.mark.parametrize("right", [1e-3, 0.3, 20.0])
def test_a_step_goes_to_where_the_mean_square_of_its_error_is_the_bound(right):
    """Squares of mean (h / right)^6: most are tiny, and 3% are above ten times that."""
    settings = {"num_warmup": 4000, "target_accept_prob": None}
    adaptation = Adaptation.start(
        BAOAB(), jnp.zeros(2), adapt_step_size=True, adapt_mass_matrix=False, **settings
    )
    rng = np.random.default_rng(0)
    squares = jnp.asarray(rng.gamma(0.05, 20.0, size=4000), float)

    def step(adaptation, square):
        error = jnp.minimum(square * (adaptation.state.step_size / right) ** 6, 100)
        return adaptation.update(error, jnp.zeros(2)), None

    found = float(jax.lax.scan(step, adaptation, squares)[0].state.step_size)
    # 1,600 squares of variance 20, their weights rising linearly, under a sixth root.
    error = np.sqrt(20 * 4 / 3 / 1600) / 6
    targets.within(np.log(found), np.log(right), error)


def test_a_fresh_velocity_shares_no_randomness_with_the_steps():
    """One step a draw: with a key in common, the noise of the step repeats the velocity's."""
    kernel = tuned(GHMC(friction=1e-6), num_steps=1, adapt_mass_matrix=False)
    state = kernel.init(jax.random.key(0), 10**6, None)
    hot = state.walk._replace(velocity=100 * state.walk.velocity)
    state = state._replace(walk=hot)
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: kernel.sample(state._replace(rng_key=key)))(keys)
    # The acceptance follows from the velocity alone: without a common key, those accepted and the
    # first number of the next key's stream are independent.
    accepted = np.asarray(jnp.any(drawn.walk.position != state.walk.position, axis=1), float)
    rate = np.asarray(drawn.acceptance_rate, float)
    targets.within(accepted.mean(), rate.mean(), np.sqrt((rate * (1 - rate)).mean() / 4000))


@pytest.mark.parametrize("integrator", [ABOBA(step_size=5.0), BAOAB(step_size=5.0)])
def test_unadjusted_steps_are_found_from_a_wild_one(integrator):
    """From a step at which the walk explodes, to one below the bound, and the law is right."""
    # Warm-up itself is no draw from the law: 100 draws of 4 steps forget its last position.
    state = run(tuned(integrator), num_warmup=300, num_samples=100).last_state
    assert state.num_diverging.tolist() == [0] * 256
    widening = leapfrog_widening(np.asarray(state.step_size, float)[:, None], Y_SD)
    assert 0.02 < np.median(widening.mean(1)) < 0.05
    y = np.asarray(state.draw["y"], float)
    targets.within((y**2).mean(0), Y_SD**2, Y_SD**2 * np.sqrt(2 / 256))


def test_friction_is_a_quarter_of_the_widest_coordinates_critical_one():
    state = run(tuned(GHMC())).last_state
    friction = jax.vmap(
        lambda adaptation: adaptation.integrator(GHMC(), jnp.array(2.0), 0.05).friction
    )(state.adaptation)
    # The widest deviation is 3 in units of sigma; each chain knows it from a share of its draws.
    np.testing.assert_allclose(np.median(friction), 0.5 / 3, rtol=0.1)


def test_mass_matrix_makes_scales_equal():
    """On scales 1 and 100 apart, the tuned walk has the law of both."""
    energy = targets.gaussian([0.0, 50.0], SIGMA)
    kernel = tuned(GHMC(), energy, adapt_mass_matrix=True)
    state = run(kernel).last_state
    y = np.asarray(state.draw["y"], float)
    variance = np.array([SIGMA**2, 50.0**2 + SIGMA**2])
    targets.within((y**2).mean(0), variance, variance * np.sqrt(2 / 256))
    deviations = np.sqrt(np.asarray(state.adaptation.state.inverse_mass_matrix, float)) * SIGMA
    # From a window of a few hundred correlated draws.
    np.testing.assert_allclose(np.median(deviations, axis=0), np.sqrt(variance), rtol=0.2)
    assert jnp.all(state.unit == SIGMA)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("integrator", [BAOAB(), Microcanonical(), GHMC(), MAMS()],
                         ids=lambda i: type(i).__name__)  # fmt: skip
def test_a_walk_comes_down_from_thirty_deviations(integrator, num_steps):
    """On scales 400 apart, with draws of one step as well: the law after 2,400 gradients."""
    scales = jnp.geomspace(0.05, 20.0, 12)
    model = lambda: numpyro.sample("x", dist.Normal(0, scales).to_event(1))  # noqa: E731
    kernel = neb.WalkJumpKernel(model=model, integrator=integrator, num_steps=num_steps)
    signs = jnp.sign(jax.random.normal(jax.random.key(1), (32, 12)))
    counts = {"num_warmup": 2400 // num_steps, "num_samples": 1600 // num_steps}
    mcmc = run(kernel, num_chains=32, init_params={"x": 30 * scales * signs}, **counts)
    squares = np.asarray((mcmc.get_samples(group_by_chain=True)["x"] / scales) ** 2, float).mean(1)
    # Chains are independent; the bias is that of max_bias.
    error = squares.std(0) / np.sqrt(32) + integrator.max_bias / targets.STANDARD_ERRORS
    targets.within(squares.mean(0), 1, error)


@pytest.mark.parametrize("integrator", [BAOAB(), GHMC(), ULA()], ids=lambda i: type(i).__name__)
def test_every_chain_method_finds_the_same_step_and_the_same_draws(integrator):
    kernel, found = tuned(integrator, targets.skewed_mixture(), num_steps=3), {}
    for method in ("vectorized", "sequential", "parallel"):
        settings = {"num_warmup": 60, "num_samples": 30, "progress_bar": False}
        mcmc = MCMC(kernel, num_chains=2, chain_method=method, **settings)
        mcmc.run(jax.random.key(0))
        found[method] = mcmc.get_samples()["y"], mcmc.get_extra_fields()["step_size"]
    for method in ("sequential", "parallel"):
        for one, other in zip(found[method], found["vectorized"], strict=True):
            # Only rounding apart, which 270 steps may amplify a thousandfold.
            np.testing.assert_allclose(one, other, atol=1e-3)


def test_steps_are_rounded_to_ten_bits():
    values = jnp.array([0.1, 1.0, 3e-30, 700.3])
    rounded = to_few_bits(values)
    np.testing.assert_allclose(rounded, values, rtol=2**-10)
    np.testing.assert_array_equal(rounded, to_few_bits(values * (1 + 1e-6)))


def test_what_warm_up_found_is_kept_and_reusable():
    kernel = tuned(MALA())
    mcmc = MCMC(kernel, num_warmup=200, num_samples=30, num_chains=2,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(0))
    steps = mcmc.get_extra_fields(group_by_chain=True)["step_size"]
    assert (steps == steps[:, :1]).all()
    later = MCMC(kernel, num_warmup=0, num_samples=30, num_chains=2,
                 chain_method="vectorized", progress_bar=False)  # fmt: skip
    later.post_warmup_state = mcmc.last_state
    later.run(jax.random.key(1))
    np.testing.assert_array_equal(later.get_extra_fields(group_by_chain=True)["step_size"], steps)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("d", [10, 100])
def test_microcanonical_is_tuned_to_the_stated_bias(d):
    """On a standard normal: the default is not exceeded, and most of it used."""
    energy = neb.MixtureEnergy(jnp.zeros((1, d)), 1.0)
    mcmc = run(tuned(Microcanonical(), energy), num_samples=400, num_chains=64)
    squares = np.asarray(mcmc.get_samples(group_by_chain=True)["y"], float) ** 2
    bias = squares.mean((1, 2)) - 1
    error = bias.std() / np.sqrt(64)
    assert 0.5 * Microcanonical.max_bias < bias.mean() < Microcanonical.max_bias + 3 * error


@pytest.mark.parametrize("integrator", [BAOAB(), GHMC()], ids=lambda i: type(i).__name__)
def test_the_step_keeps_its_length_when_units_change(integrator):
    """A thousandth of the first unit: the step is as right as on that unit."""

    def model(scale):
        numpyro.sample("x", dist.Normal(0, scale).expand([10]).to_event(1))

    kernel = neb.WalkJumpKernel(model=model, integrator=integrator, num_steps=4)
    steps = [
        run(kernel, num_warmup=300, num_chains=16, args=(scale,)).last_state.adaptation.state
        for scale in (1.0, 1e-3)
    ]
    one, small = (
        np.median(np.asarray(s.step_size)[:, None] * np.sqrt(s.inverse_mass_matrix)) for s in steps
    )
    np.testing.assert_allclose(small / 1e-3, one, rtol=0.3)


@pytest.mark.parametrize("num_warmup", [0, 1, 5])
def test_short_warm_ups(num_warmup):
    mcmc = run(tuned(BAOAB()), num_warmup=num_warmup, num_chains=2)
    assert np.isfinite(mcmc.get_samples()["y"]).all()
    if num_warmup == 0:
        np.testing.assert_allclose(mcmc.last_state.step_size, SIGMA, rtol=1e-6)


def test_frozen_coordinates_do_not_disturb_the_tuning():
    frozen = np.array([True, False])
    kernel = tuned(GHMC(), frozen=frozen)
    start = jnp.ones((256, 2))
    mcmc = run(kernel, num_samples=20, init_params=start)
    assert (mcmc.get_samples()["y"][:, 0] == 1).all()
    rate = mcmc.get_extra_fields()["acceptance_rate"].mean()
    assert abs(rate - 0.9) < 0.05


def test_float64(x64):
    energy = neb.MixtureEnergy(np.zeros((1, 2)), SIGMA)
    kernel = tuned(BAOAB(), energy)
    state = kernel.init(jax.random.split(jax.random.key(0)), 30, None)
    state = jax.jit(kernel.sample)(state)
    assert state.step_size.dtype == state.draw["y"].dtype == jnp.float64
