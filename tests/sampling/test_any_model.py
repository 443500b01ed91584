"""The default walk on models of ordinary sites, and what an unadjusted one says there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC
from scipy import integrate, stats

import numpyro_neb as neb
from numpyro_neb.integrators import BAOAB, GHMC, ULA, Microcanonical, Target
from numpyro_neb.sampling.bias import measure_bias

ENERGY = targets.gaussian([0.5, 1.0], 0.7)

# Heavy tails, kinks, exponential walls, spikes at a boundary: a site and its law.
LAWS = {
    "spike": (dist.Gamma(0.1, 1.0), stats.gamma(0.1)),
    "scale": (dist.HalfNormal(1.0), stats.halfnorm()),
    "heavy_scale": (dist.HalfCauchy(1.0), stats.halfcauchy()),
    "kink": (dist.Laplace(0.0, 1.0), stats.laplace()),
    "cauchy": (dist.Cauchy(0.0, 1.0), stats.cauchy()),
    "student": (dist.StudentT(3.0, 0.0, 1.0), stats.t(3)),
    "arcsine": (dist.Beta(0.5, 0.5), stats.arcsine()),
    "wait": (dist.Exponential(1.0), stats.expon()),
    "flat": (dist.Uniform(0.0, 1.0), stats.uniform()),
    "wide": (dist.LogNormal(0.0, 3.0), stats.lognorm(3.0)),
}


def ordinary():
    for name, (site, _) in LAWS.items():
        numpyro.sample(name, site)


def smoothed():
    numpyro.sample("y", neb.SmoothedDensity(ENERGY))


def kinked():
    numpyro.sample("b", dist.Laplace(0.0, 1.0))


def run(kernel, num_warmup=1000, num_samples=4000, num_chains=8, init_params=None) -> Any:
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(0), init_params=init_params)
    return mcmc


def assert_probability(draws, at, probability):
    """The share of draws (chains, draws) below `at`, within five standard errors by its ESS."""
    below = (np.asarray(draws, float) <= at).astype(float)
    error = np.sqrt(probability * (1 - probability) / effective_sample_size(below))
    targets.within(below.mean(), probability, error)


def assert_laws(draws):
    for name, (_, law) in LAWS.items():
        for probability in (0.01, 0.1, 0.5, 0.9, 0.99):
            assert_probability(draws[name], law.ppf(probability), probability)


def assert_alive(mcmc):
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert not fields["diverging"].any()
    assert (np.asarray(fields["acceptance_rate"]).mean(1) > 0.7).all()


@pytest.mark.slow
def test_the_default_walk_has_the_law_of_any_site():
    mcmc = run(neb.WalkJumpKernel(model=ordinary, num_steps=10))
    assert_alive(mcmc)
    assert_laws(mcmc.get_samples(group_by_chain=True))


@pytest.mark.slow
@pytest.mark.statistical
def test_the_default_walk_has_the_law_of_any_site_in_float64(x64):
    mcmc = run(neb.WalkJumpKernel(model=ordinary, num_steps=10), num_samples=2000)
    assert_alive(mcmc)
    assert_laws(mcmc.get_samples(group_by_chain=True))


@pytest.mark.slow
def test_log_of_a_half_normal_scale_has_the_variance_of_its_closed_form():
    """log |N(0, 1)| has variance pi^2 / 8, and fourth central moment psi'''(1/2) / 16 + 3 var^2."""
    mcmc = run(neb.WalkJumpKernel(model=lambda: numpyro.sample("s", dist.HalfNormal(1.0)),
                                  num_steps=10), num_samples=2000)  # fmt: skip
    u = np.log(np.asarray(mcmc.get_samples(group_by_chain=True)["s"], float))
    mean = -(np.euler_gamma + np.log(2)) / 2
    square = (u - mean) ** 2
    error = square.std() / np.sqrt(effective_sample_size(square))
    targets.within(square.mean(), np.pi**2 / 8, error)


EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def eight_schools():
    mean = numpyro.sample("mean", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(0, 1))
        numpyro.sample("effect", dist.Normal(mean + tau * theta, ERRORS), obs=EFFECTS)


def density_of_tau(tau):
    """With the effects and their mean integrated out, up to a constant."""
    variances = ERRORS**2 + tau**2
    precision = np.sum(1 / variances) + 1 / 25
    centre = np.sum(EFFECTS / variances) / precision
    chi2 = np.sum(EFFECTS**2 / variances) - centre**2 * precision
    logs = np.sum(np.log(variances)) + np.log(precision) + chi2
    return np.exp(-logs / 2 + 25) / (1 + tau**2 / 25)


@pytest.mark.slow
def test_eight_schools():
    """P(tau < .01) is .002: an unadjusted walk makes it .05 to .085."""
    mcmc = run(neb.WalkJumpKernel(model=eight_schools, num_steps=10))
    assert_alive(mcmc)
    tau = mcmc.get_samples(group_by_chain=True)["tau"]
    total = integrate.quad(density_of_tau, 0, np.inf)[0]
    for at in (0.01, 0.1, 1.0, 5.0, 20.0):
        assert_probability(tau, at, integrate.quad(density_of_tau, 0, at)[0] / total)


def test_the_default_is_exact_unless_every_site_is_smoothed():
    short = {"num_warmup": 2, "num_samples": 3, "num_chains": 2}
    exact = run(neb.WalkJumpKernel(model=kinked), **short)
    assert exact.last_state.adaptation is not None
    assert exact.get_extra_fields()["acceptance_rate"].shape == (6,)
    assert exact.get_extra_fields()["stein_ratio"] == ()
    plain = run(neb.WalkJumpKernel(model=smoothed), **short)
    assert plain.last_state.adaptation is None
    assert plain.get_extra_fields()["acceptance_rate"] == ()
    for mcmc, has, integrator in ((exact, True, "GHMC"), (plain, False, "BAOAB")):
        data = neb.to_arviz(mcmc)
        assert ("acceptance_rate" in data["sample_stats"]) == has
        assert "stein_ratio" not in data["sample_stats"]
        assert data["posterior"].attrs["integrator"].startswith(integrator)


def test_the_default_of_an_energy_is_known_at_once():
    assert isinstance(neb.WalkJumpKernel(ENERGY).integrator, BAOAB)
    assert neb.WalkJumpKernel(model=kinked).integrator is None


def test_target_accept_prob_needs_a_test():
    assert neb.WalkJumpKernel(model=kinked, target_accept_prob=0.8).target_accept_prob == 0.8
    with pytest.raises(ValueError, match="target_accept_prob must be None for an integrator"):
        run(neb.WalkJumpKernel(model=smoothed, target_accept_prob=0.8), 1, 1)


def test_print():
    assert str(neb.WalkJumpKernel(ENERGY, num_steps=3)).splitlines() == [
        "WalkJumpKernel on MixtureEnergy of sigma 0.7, event shape (2,)",
        "  steps between draws: 3, of BAOAB()",
        "  tuned in warm-up: no; draws: y, x",
    ]
    assert str(neb.WalkJumpKernel(model=kinked)).splitlines() == [
        "WalkJumpKernel on the model kinked",
        "  steps between draws: 1, of BAOAB(), or GHMC() with sites that are no SmoothedDensity",
        "  tuned in warm-up: if sites are no SmoothedDensity; draws: the model's sites",
    ]


def test_a_step_that_is_far_too_long_does_not_freeze_the_walk():
    """A step of 100 on N(0, 1) is never accepted; a 64th of it is, at each 64th draw."""
    energy = targets.gaussian(np.zeros(2), 1.0)
    kernel = neb.WalkJumpKernel(energy, integrator=GHMC(step_size=100.0), adapt_step_size=True)
    mcmc = run(kernel, num_warmup=0, num_samples=256)
    y = np.asarray(mcmc.get_samples(group_by_chain=True)["y"])
    moves = (np.diff(y[..., 0], axis=1) != 0).sum(1)
    assert (moves > 0).all()
    steps = mcmc.get_extra_fields()["step_size"]
    np.testing.assert_allclose(steps, 100.0, rtol=2**-10)


def test_stein_ratio_is_the_relative_variance_of_a_gaussian():
    """ULA's variance is s^2 / (1 - h^2 / (2 s^2)), in closed form at each chain's own step."""
    s = np.array([0.8, 1.4])
    energy = targets.gaussian(np.sqrt(s**2 - 0.49), 0.7)
    kernel = neb.WalkJumpKernel(energy, integrator=ULA(), num_steps=20, adapt_step_size=True)
    mcmc = run(kernel, num_warmup=300, num_samples=500, num_chains=64)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    step = np.asarray(fields["step_size"], float)[:, :1, None]
    exact = (1 / (1 - step**2 / (2 * s**2))).mean()
    ratio = np.asarray(fields["stein_ratio"], float)
    error = ratio.std() / np.sqrt(effective_sample_size(ratio))
    targets.within(ratio.mean(), exact, error)
    assert exact - 1 > 5 * error  # so that a ratio of one would be seen
    attributes = neb.to_arviz(mcmc)["sample_stats"].attrs
    np.testing.assert_allclose(attributes["variance_bias"], ratio.mean() - 1, rtol=1e-5)
    np.testing.assert_allclose(attributes["variance_bias_mcse"], error, rtol=1e-5)
    with pytest.warns(UserWarning, match=r"the walk is biased: .* max_bias is 0.001"):
        measure_bias(neb.to_arviz(mcmc), max_bias=0.001)


def spike():
    numpyro.sample("spike", dist.Gamma(0.1, 1.0))


@pytest.mark.slow
def test_an_unadjusted_walk_on_a_spike_is_right_at_its_tuned_step():
    """The wall of log Gamma(a, 1) is exponential: rare large errors decide the step."""
    mcmc = run(neb.WalkJumpKernel(model=spike, integrator=BAOAB(), num_steps=10), 500, 2000, 16)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["spike"], float)
    # The bias that max_bias allows.
    error = x.std() / np.sqrt(effective_sample_size(x)) + 0.05 * 0.1 / targets.STANDARD_ERRORS
    targets.within(x.mean(), 0.1, error)
    bias = neb.to_arviz(mcmc, log_likelihood=False)["sample_stats"].attrs
    measured, error = bias["variance_bias"], bias["variance_bias_mcse"]
    targets.within(measured, 0, error + 0.05 / targets.STANDARD_ERRORS)
    # E (u - c)(e^u - a) = 1 for u = log x; with the mean of all draws for each chain's centre.
    u = np.log(np.maximum(x, 1e-45))
    targets.within(measured, np.mean((u - u.mean()) * (x - 0.1)) - 1, 5 * error)


def funnel():
    narrow = numpyro.sample("narrow", dist.Normal(0, 3))
    numpyro.sample("x", dist.Normal(0, jnp.exp(narrow / 2)).expand([9]).to_event(1))


@pytest.mark.slow
@pytest.mark.parametrize("integrator", [Microcanonical(), BAOAB()],
                         ids=lambda i: type(i).__name__)  # fmt: skip
def test_an_unadjusted_walk_in_a_funnel_is_flagged(integrator):
    kernel = neb.WalkJumpKernel(model=funnel, integrator=integrator, num_steps=10)
    mcmc = run(kernel, num_warmup=500, num_samples=2000, num_chains=16)
    with pytest.warns(UserWarning, match=r"R-hat of the log density is 1\."):
        neb.to_arviz(mcmc, log_likelihood=False)


@pytest.mark.slow
def test_the_measured_bias_of_a_microcanonical_walk_is_that_of_its_variances():
    """On a Gaussian, at a step so long that the walk is biased; against other chains' variances."""
    variances, step, friction = jnp.array([0.09, 1.0, 1.0]), 0.55, 0.5
    energy = neb.MixtureEnergy(jnp.zeros((1, 3)), 0.3, covariances=jnp.diag(variances - 0.09)[None])
    integrator = Microcanonical(step / 0.3, friction * 0.3)
    kernel = neb.WalkJumpKernel(
        energy, integrator=integrator, num_steps=10, adapt_step_size=True, max_bias=0.9
    )
    mcmc = run(kernel, num_warmup=0, num_samples=2000, num_chains=64)
    attributes = neb.to_arviz(mcmc)["sample_stats"].attrs

    def chain(key):
        keys = jax.random.split(key, 402)
        target = Target(lambda y: jnp.sum(y**2 / variances) / 2)
        other = Microcanonical(step, friction)
        start = jax.random.normal(keys[0], (3,)) * jnp.sqrt(variances)
        state = other.init(target, start, keys[1])
        body = lambda state, key: (other.step(target, state, key)[0], None)  # noqa: E731
        return jax.lax.scan(body, state, keys[2:])[0].position

    y = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(1), 100_000))
    relative = np.mean(np.asarray(y**2 / variances, float), axis=1)
    error = np.hypot(relative.std() / np.sqrt(len(relative)), attributes["variance_bias_mcse"])
    targets.within(attributes["variance_bias"], relative.mean() - 1, error)
    assert abs(relative.mean() - 1) > 5 * error  # so that no bias would be seen


def hole(y):
    """Infinite potential between 1 and 9, too wide to step over, and no force in there."""
    return jnp.where((y > 1) & (y < 9), jnp.inf, y**2 / 8)


@pytest.mark.parametrize("integrator", [BAOAB(0.3), neb.integrators.ABOBA(0.3), ULA(0.3)],
                         ids=lambda i: type(i).__name__)  # fmt: skip
def test_a_walk_that_diverged_within_a_draw_stays_marked(integrator):
    energy = neb.NetworkEnergy(hole, sigma=1.0, event_shape=())
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=50)
    start = jnp.zeros(64)
    mcmc = run(kernel, num_warmup=0, num_samples=40, num_chains=64, init_params=start)
    diverging = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"])
    y = np.asarray(mcmc.get_samples(group_by_chain=True)["y"])
    assert diverging[:, -1].mean() > 0.5
    assert (np.diff(diverging.astype(int), axis=1) >= 0).all()
    assert (y[~diverging] <= 1).all()
    # A finite draw there can only be the first: the walk stays NaN.
    assert np.isnan(y[:, 1:][diverging[:, :-1] & diverging[:, 1:]]).all()
    np.testing.assert_array_equal(mcmc.last_state.num_diverging, diverging.sum(1))


def test_a_metropolis_walk_stays_out_of_an_infinite_density():
    """Where rounding makes the density infinite, a walk would stay for ever."""
    energy = neb.NetworkEnergy(
        lambda y: jnp.where(jnp.abs(y) > 1, -jnp.inf, 0.0), sigma=0.5, event_shape=()
    )
    for integrator in (GHMC(), neb.integrators.MALA()):
        kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=5)
        mcmc = run(kernel, 0, 500, 4, init_params=jnp.zeros(4))
        y = np.asarray(mcmc.get_samples(group_by_chain=True)["y"], float)
        assert np.abs(y).max() <= 1
        square = y**2  # uniform on (-1, 1)
        targets.within(square.mean(), 1 / 3, square.std() / np.sqrt(effective_sample_size(square)))


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [100.0, 1e4])
def test_warm_up_reaches_data_that_are_much_sharper_than_sigma(ratio):
    """From the prior to the exact conditional Gaussian, a ratio of sigma to the noise away."""
    data = jnp.array([0.5, -1.0])

    def model():
        y = numpyro.sample("y", neb.SmoothedDensity(ENERGY))
        numpyro.sample("data", dist.Normal(y, 0.7 / ratio).to_event(1), obs=data)

    kernel = neb.WalkJumpKernel(model=model, num_steps=5, adapt_step_size=True)
    mcmc = run(kernel, num_samples=2000, num_chains=4)
    prior = 1 / (np.array([0.5, 1.0]) ** 2 + 0.49)
    precision = prior + (ratio / 0.7) ** 2
    mean = np.asarray(data, float) * (ratio / 0.7) ** 2 / precision
    z = (np.asarray(mcmc.get_samples(group_by_chain=True)["y"], float) - mean) * precision**0.5
    # The position itself is known to eps only.
    rounding = 2 * np.finfo(np.float32).eps * precision**0.5
    targets.within(z.mean((0, 1)), 0, 1 / np.sqrt(effective_sample_size(z)) + rounding)
    error = (z**2).std((0, 1)) / np.sqrt(effective_sample_size(z**2))
    targets.within((z**2).mean((0, 1)), 1, error)
