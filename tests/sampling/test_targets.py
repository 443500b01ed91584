"""Walks on NumPyro models, alone and as a block of Gibbs."""

import gc
import pickle
import weakref
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs, init_to_median, init_to_value

import numpyro_neb as neb
from numpyro_neb.integrators import BAOAB, GHMC, MALA
from numpyro_neb.sampling.targets import AbstractDensity, EnergyDensity, ModelDensity

SIGMA, X_SD, X_MEAN = 0.7, np.array([0.5, 1.0]), np.array([1.0, -2.0])
ENERGY = targets.gaussian(X_SD, SIGMA, locs=X_MEAN)
DATA = jnp.array([0.3, 0.1])
NOISE = 0.8


def test_densities_are_abstract_or_final():
    for kind in (EnergyDensity, ModelDensity):
        assert kind.__mro__[1] is AbstractDensity
        assert kind.__final__
    with pytest.raises(TypeError, match="abstract"):
        AbstractDensity()


def observed_walk(data):
    y = numpyro.sample("y", neb.SmoothedDensity(ENERGY))
    numpyro.deterministic("twice", 2 * y)
    numpyro.sample("data", dist.Normal(y, NOISE).to_event(1), obs=data)


def with_offset(data):
    y = numpyro.sample("y", neb.SmoothedDensity(ENERGY))
    b = numpyro.sample("b", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.deterministic("sum", y + b)
    numpyro.sample("data", dist.Normal(y + b, NOISE).to_event(1), obs=data)


def posterior_of_y():
    precision = 1 / (X_SD**2 + SIGMA**2) + 1 / NOISE**2
    mean = (X_MEAN / (X_SD**2 + SIGMA**2) + np.asarray(DATA) / NOISE**2) / precision
    return mean, 1 / precision


def posterior_with_offset():
    """Means and covariances of (y_i, b_i), i = 1, 2."""
    prior = 1 / (X_SD**2 + SIGMA**2)
    seen = 1 / NOISE**2
    means, covariances = [], []
    for i in range(2):
        covariance = np.linalg.inv([[prior[i] + seen, seen], [seen, 1 + seen]])
        shift = np.array([prior[i] * X_MEAN[i] + seen * DATA[i], seen * DATA[i]])
        means.append(covariance @ shift)
        covariances.append(covariance)
    return means, covariances


def run(kernel, *args, key=0, init_params=None, extra_fields=(), **kwargs):
    settings = {"num_warmup": 300, "num_samples": 4000, "num_chains": 2, "progress_bar": False}
    mcmc = MCMC(kernel, **(settings | {"chain_method": "vectorized"} | kwargs))
    mcmc.run(jax.random.key(key), *args, init_params=init_params, extra_fields=extra_fields)
    return mcmc


def assert_mean(draws, truth):
    """The mean of draws (chains, draws) within five standard errors, by their ESS."""
    draws = np.asarray(draws, float)
    targets.within(draws.mean(), truth, draws.std() / np.sqrt(effective_sample_size(draws)))


def assert_moments(draws, mean, covariance):
    """Of draws (chains, draws, d)."""
    draws = np.asarray(draws, float)
    for i in range(draws.shape[-1]):
        assert_mean(draws[..., i], mean[i])
        for j in range(i + 1):
            product = (draws[..., i] - mean[i]) * (draws[..., j] - mean[j])
            assert_mean(product, covariance[i][j])


@pytest.mark.parametrize("integrator", [BAOAB(), GHMC(), MALA()], ids=lambda i: type(i).__name__)
def test_posterior_of_a_smoothed_site(integrator):
    kernel = neb.WalkJumpKernel(model=observed_walk, integrator=integrator, num_steps=5)
    draws = run(kernel, DATA).get_samples(group_by_chain=True)
    assert {name: d.shape for name, d in draws.items()} == dict.fromkeys(
        ("y", "y_jump", "twice"), (2, 4000, 2)
    )
    mean, variance = posterior_of_y()
    assert_moments(draws["y"], mean, np.diag(variance))
    np.testing.assert_allclose(draws["twice"], 2 * draws["y"], rtol=1e-6)
    # E[X given y, data] = E[X given y] by the site's own energy: the data depend on y only.
    np.testing.assert_allclose(
        draws["y_jump"], neb.posterior_mean(ENERGY, draws["y"]), rtol=1e-4, atol=1e-4
    )


def test_steps_are_in_the_sites_sigma_and_nothing_is_tuned():
    state = run(neb.WalkJumpKernel(model=observed_walk), DATA, num_samples=10).last_state
    assert state.adaptation is None
    np.testing.assert_allclose(state.step_size, SIGMA, rtol=1e-6)


@pytest.mark.parametrize("chain_method", ["sequential", "parallel", jax.vmap])
def test_every_chain_method_gives_the_same_draws(chain_method):
    # Few steps: rounding grows along a walk, and differs between batched and single programs.
    kernel = neb.WalkJumpKernel(model=observed_walk)
    short = {"num_warmup": 2, "num_samples": 5}
    expected = run(kernel, DATA, **short).get_samples()
    actual = run(kernel, DATA, chain_method=chain_method, **short).get_samples()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-4)


def test_sites_of_unknown_scale_are_tuned():
    """y and b jointly, correlated; step, friction and scales found in warm-up."""
    kernel = neb.WalkJumpKernel(model=with_offset, num_steps=5)
    mcmc = run(kernel, DATA, num_samples=8000)
    assert mcmc.last_state.adaptation is not None
    draws = mcmc.get_samples(group_by_chain=True)
    for i, (mean, covariance) in enumerate(zip(*posterior_with_offset(), strict=True)):
        pair = np.stack([draws["y"][..., i], draws["b"][..., i]], axis=-1)
        assert_moments(pair, mean, covariance)
    np.testing.assert_allclose(draws["sum"], draws["y"] + draws["b"], rtol=1e-5, atol=1e-5)


def test_without_a_smoothed_site_the_unit_is_one():
    """A Beta-Bernoulli model, on the unit interval: the transform's Jacobian is in the law."""

    def model(data):
        p = numpyro.sample("p", dist.Beta(jnp.array([1.1, 2.0]), jnp.array([1.1, 3.0])).to_event(1))
        numpyro.sample("data", dist.Bernoulli(p).to_event(1), obs=data)

    data = dist.Bernoulli(jnp.array([0.9, 0.3])).sample(jax.random.key(1), (40,))
    mcmc = run(neb.WalkJumpKernel(model=model, integrator=GHMC(), num_steps=5), data)
    assert mcmc.last_state.unit.tolist() == [[1.0, 1.0]] * 2
    a = np.array([1.1, 2.0]) + np.asarray(data).sum(0)
    b = np.array([1.1, 3.0]) + 40 - np.asarray(data).sum(0)
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    p = mcmc.get_samples(group_by_chain=True)["p"]
    for i in range(2):
        assert_mean(p[..., i], (a / (a + b))[i])
        assert_mean((p[..., i] - (a / (a + b))[i]) ** 2, variance[i])


@pytest.mark.slow
def test_an_unadjusted_walk_on_a_model_of_unknown_scales_stays_below_max_bias():
    """A normal's mean and scale from 50 observations, of sd .07 and .05 where the unit is one."""

    def model(data):
        scale = numpyro.sample("scale", dist.HalfNormal(2.0))
        mean = numpyro.sample("mean", dist.Normal(0, 10))
        numpyro.sample("data", dist.Normal(mean, scale).expand([50]).to_event(1), obs=data)

    data = jnp.asarray(np.random.default_rng(0).normal(3, 0.5, size=50), float)
    kernel = neb.WalkJumpKernel(model=model, integrator=BAOAB(), num_steps=5)
    draws = run(kernel, data, num_samples=20_000)
    exact = run(NUTS(model), data, num_samples=20_000)
    for name in ("scale", "mean"):
        y, reference = (np.asarray(m.get_samples()[name], float) for m in (draws, exact))
        ess = effective_sample_size(draws.get_samples(group_by_chain=True)[name])
        sampling = 5 * np.sqrt(2 * (2 / ess))
        assert abs(y.var() / reference.var() - 1) < 0.05 + sampling


def test_plates_give_every_element_its_own_walk_and_jump():
    def model():
        with numpyro.plate("n", 3):
            numpyro.sample("y", neb.SmoothedDensity(ENERGY))

    draws = run(neb.WalkJumpKernel(model=model, num_steps=5)).get_samples(group_by_chain=True)
    assert draws["y"].shape == (2, 4000, 3, 2)
    _, covariance = targets.moments(ENERGY)
    for n in range(3):
        assert_moments(draws["y"][:, :, n], X_MEAN, covariance)
    jumps = neb.posterior_mean(ENERGY, draws["y"])
    np.testing.assert_allclose(draws["y_jump"], jumps, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chain_method", ["sequential", jax.vmap])
def test_a_block_of_gibbs_beside_nuts(chain_method):
    kernel = Gibbs(
        [(neb.WalkJumpKernel(model=with_offset, num_steps=5), ["y"]), (NUTS(with_offset), None)]
    )
    mcmc = run(kernel, DATA, chain_method=chain_method, num_samples=6000)
    draws = mcmc.get_samples(group_by_chain=True)
    for i, (mean, covariance) in enumerate(zip(*posterior_with_offset(), strict=True)):
        pair = np.stack([draws["y"][..., i], draws["b"][..., i]], axis=-1)
        assert_moments(pair, mean, covariance)
    np.testing.assert_allclose(draws["sum"], draws["y"] + draws["b"], rtol=1e-5, atol=1e-5)


def test_gibbs_hands_on_constrained_values():
    """A positive site of ours starts where the user says, beside NUTS on the rest."""

    def model():
        numpyro.sample("s", dist.LogNormal(0, 1))
        numpyro.sample("z", dist.Normal(0, 1))

    walk = neb.WalkJumpKernel(model=model, integrator=BAOAB(1e-4), adapt_step_size=False)
    kernel = Gibbs([(walk, ["s"]), (NUTS(model), ["z"])])
    start = {"s": jnp.full(2, 3.0), "z": jnp.zeros(2)}
    mcmc = run(kernel, init_params=start, num_warmup=0, num_samples=1, chain_method="sequential")
    np.testing.assert_allclose(mcmc.get_samples()["s"], 3.0, rtol=1e-2)


def test_refresh_targets_the_present_arguments():
    kernel = neb.WalkJumpKernel(model=observed_walk)
    state = kernel.init(jax.random.key(0), 0, None, (DATA,), {})
    moved = kernel.refresh(state, (DATA + 5,), {})
    at_data = kernel.init(jax.random.key(0), 0, {"y": state.draw["y"]}, (DATA + 5,), {})
    np.testing.assert_allclose(moved.lp, at_data.lp, rtol=1e-5)
    np.testing.assert_allclose(moved.walk.gradient, at_data.walk.gradient, rtol=1e-5)
    np.testing.assert_array_equal(moved.draw["y"], state.draw["y"])
    assert abs(moved.lp - state.lp) > 1


def test_wrap_model():
    kernel = neb.WalkJumpKernel(model=observed_walk, num_steps=3)
    wrapped = kernel.wrap_model(lambda model: partial(model, data=DATA))
    assert (wrapped.num_steps, kernel.model) == (3, observed_walk)
    assert run(wrapped, num_samples=3).get_samples()["y"].shape == (6, 2)
    alone = neb.WalkJumpKernel(ENERGY)
    assert alone.wrap_model(lambda model: model) is alone


def test_gibbs_takes_no_energy():
    with pytest.raises(ValueError, match="Kernels built from a potential function"):
        Gibbs([(neb.WalkJumpKernel(ENERGY), ["y"])])


def test_jit_model_args_takes_new_data_of_the_same_size():
    kernel = neb.WalkJumpKernel(model=observed_walk, num_steps=5)
    mcmc = MCMC(kernel, num_warmup=100, num_samples=2000, num_chains=2,
                chain_method="vectorized", progress_bar=False, jit_model_args=True)  # fmt: skip
    means = []
    for data in (DATA, DATA + 3):
        mcmc.run(jax.random.key(0), data)
        means.append(mcmc.get_samples()["y"].mean(0))
    _, variance = posterior_of_y()
    # The posterior mean moves by variance / noise^2 for each unit of the data.
    np.testing.assert_allclose(means[1] - means[0], 3 * variance / NOISE**2, atol=0.15)


def test_a_model_kernel_keeps_no_old_data_alive():
    kernel = neb.WalkJumpKernel(model=observed_walk)
    alive = []
    for i in range(3):
        data = jnp.asarray(DATA) + i
        alive.append(weakref.ref(data))
        kernel.init(jax.random.key(0), 0, None, (data,))
        del data
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_the_jump_of_a_model_has_no_convolution_in_the_loop():
    conv = eqx.nn.Conv2d(1, 1, 3, padding=1, key=jax.random.key(0))
    energy = neb.ResidualEnergy(lambda y: conv(y[None])[0], 0.5, (4, 4))
    kernel = neb.WalkJumpKernel(model=lambda: numpyro.sample("y", neb.SmoothedDensity(energy)))
    state = kernel.init(jax.random.key(0), 0, None)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(kernel.sample)(state))


@pytest.mark.parametrize("latent", [True, False])
def test_a_site_with_the_name_of_the_jump(latent):
    def model():
        numpyro.sample("y", neb.SmoothedDensity(ENERGY))
        if latent:
            numpyro.sample("y_jump", dist.Normal(0.0, 1.0))
        else:
            numpyro.deterministic("y_jump", jnp.ones(()))

    with pytest.raises(ValueError, match="model must have no site 'y_jump'"):
        neb.WalkJumpKernel(model=model).init(jax.random.key(0), 0, None)


def test_init_to_value_is_heard_for_a_smoothed_density():
    def model():
        numpyro.sample("y", neb.SmoothedDensity(ENERGY))

    start = jnp.full(ENERGY.event_shape, 9.0)
    kernel = neb.WalkJumpKernel(model=model, init_strategy=init_to_value(values={"y": start}))
    state = kernel.init(jax.random.key(0), 0, None)
    np.testing.assert_array_equal(state.draw["y"], start)


def test_a_walk_on_a_model_goes_on_bit_for_bit_and_pickles():
    kernel = neb.WalkJumpKernel(model=with_offset)
    whole = run(kernel, DATA, num_warmup=30, num_samples=20).get_samples(group_by_chain=True)
    mcmc = run(kernel, DATA, num_warmup=30, num_samples=10)
    first = mcmc.get_samples(group_by_chain=True)
    mcmc = pickle.loads(pickle.dumps(mcmc))
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key, DATA)
    second = mcmc.get_samples(group_by_chain=True)
    for name in whole:
        joined = np.concatenate([first[name], second[name]], axis=1)
        np.testing.assert_array_equal(joined, whole[name])


def test_initial_positions():
    """init_params are unconstrained, as for NUTS; strategies are NumPyro's."""

    def model():
        numpyro.sample("s", dist.LogNormal(1.0, 0.5))
        numpyro.sample("y", neb.SmoothedDensity(ENERGY))

    keys = jax.random.split(jax.random.key(0), 4096)
    state = neb.WalkJumpKernel(model=model).init(keys, 0, None)
    variance = X_SD**2 + SIGMA**2
    y = np.asarray(state.draw["y"], float)
    targets.within(y.mean(0), X_MEAN, np.sqrt(variance / len(y)))
    targets.within(y.var(0), variance, variance * np.sqrt(2 / len(y)))
    for strategy, s in ((init_to_value(values={"s": 2.5}), 2.5), (init_to_median(), np.e)):
        kernel = neb.WalkJumpKernel(model=model, init_strategy=strategy)
        # The median is that of 15 draws: within five standard errors, sqrt(pi / 2) sd / sqrt(15).
        tolerance = 1e-5 if s == 2.5 else 5 * np.sqrt(np.pi / 2) * 0.5 / np.sqrt(15)
        start = kernel.init(jax.random.key(0), 0, None).draw["s"]
        np.testing.assert_allclose(np.log(start), np.log(s), atol=tolerance)
    given = {"s": jnp.log(2.0), "y": jnp.ones(2)}
    draw = neb.WalkJumpKernel(model=model).init(jax.random.key(0), 0, given).draw
    np.testing.assert_allclose(draw["s"], 2.0, rtol=1e-6)
    np.testing.assert_array_equal(draw["y"], given["y"])


def test_removal_of_sites_and_extra_fields():
    mcmc = run(
        neb.WalkJumpKernel(model=observed_walk),
        DATA,
        num_samples=5,
        extra_fields=("~draw.twice", "walk.velocity", "num_diverging"),
    )
    assert set(mcmc.get_samples()) == {"y", "y_jump"}
    assert mcmc.get_extra_fields()["walk.velocity"].shape == (10, 2)


def test_params_and_handlers():
    """Sites fixed by handlers, `param` sites and sites inside plates behave as under NUTS."""

    def model(data):
        scale = numpyro.param("scale", 2.0)
        m = numpyro.sample("m", dist.Normal(0, scale))
        with numpyro.plate("n", len(data)):
            z = numpyro.sample("z", dist.Normal(m, 1))
            numpyro.sample("data", dist.Normal(z, 1), obs=data)

    fixed = numpyro.handlers.substitute(numpyro.handlers.condition(model, {"m": 0.5}), {})
    draws = run(neb.WalkJumpKernel(model=fixed, num_steps=5), DATA).get_samples(group_by_chain=True)
    assert set(draws) == {"z"}
    for i in range(2):
        assert_mean(draws["z"][..., i], (0.5 + float(DATA[i])) / 2)


def no_latent():
    numpyro.sample("data", dist.Normal(0, 1), obs=0.0)


def discrete():
    numpyro.sample("k", dist.Bernoulli(0.5))


def impossible():
    numpyro.sample("z", dist.Normal(0, 1))
    numpyro.factor("never", -jnp.inf)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: neb.WalkJumpKernel(), ValueError, "one of energy and model must be given"),
        (lambda: neb.WalkJumpKernel(ENERGY, model=discrete), ValueError, "and not both"),
        (lambda: neb.WalkJumpKernel(model=3), TypeError, "model must be callable, got int"),
        (
            lambda: neb.WalkJumpKernel(model=discrete, frozen=np.ones(2, bool)),
            ValueError,
            "frozen must be None with a model",
        ),
        (
            lambda: run(neb.WalkJumpKernel(model=no_latent)),
            ValueError,
            "model must have a latent sample site, got none",
        ),
        (
            lambda: run(neb.WalkJumpKernel(model=discrete)),
            ValueError,
            "no discrete latent site, got 'k': give it to DiscreteGibbs",
        ),
        (
            lambda: run(neb.WalkJumpKernel(model=impossible)),
            RuntimeError,
            "Cannot find valid initial parameters",
        ),
        (
            lambda: run(
                neb.WalkJumpKernel(model=observed_walk), DATA, init_params=jnp.zeros((2, 2))
            ),
            ValueError,
            r"init_params must be a dict with a value for each of \['y'\]",
        ),
        (
            lambda: run(
                neb.WalkJumpKernel(model=observed_walk), DATA, init_params={"y": jnp.zeros((2, 3))}
            ),
            ValueError,
            r"init_params\['y'\] must have the unconstrained shape \(2, 2\), got \(2, 3\)",
        ),
        (
            lambda: run(
                neb.WalkJumpKernel(model=observed_walk),
                DATA,
                init_params={"y": jnp.full((2, 2), jnp.nan)},
            ),
            ValueError,
            r"init_params\['y'\] must be finite",
        ),
    ],
)
def test_bad_arguments(build, error, message, untyped):
    with pytest.raises(error, match=message):
        build()
