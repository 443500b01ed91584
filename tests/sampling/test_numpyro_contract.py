"""What NumPyro 0.22 tests of its own kernels (test_mcmc.py, test_pickle.py), for this one.

Chain methods, progress bar, warm-up, reuse, extra fields, removal of sites, chains inside jit,
tracer leaks, float64 and pickling of an energy's walk are in sampling/test_kernel.py; conjugate
posteriors,
Gibbs, jit_model_args, params and init strategies of models in sampling/test_targets.py; tuning in
integrators/test_adaptation.py. What is left is here. These do not apply:

- dense and structured mass matrices, given mass matrices: the walk's unit is a diagonal;
- trajectory_length, num_steps, max_tree_depth, find_heuristic_step_size of HMC and NUTS: a draw is
  num_steps steps, and the step is known in units of sigma;
- forward_mode_differentiation: the walk needs grad phi in reverse mode;
- the functional interface hmc(): the kernel's own init and sample are pure functions;
- enumeration of discrete sites: refused with the advice to use DiscreteGibbs beside the kernel;
- an empty model: there is nothing to walk on, which is an error here;
- SA's proposals, BarkerMH, ensemble kernels: tests of those algorithms.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.diagnostics import effective_sample_size
from numpyro.distributions.transforms import AffineTransform
from numpyro.infer import MCMC, Predictive
from numpyro.infer.reparam import TransformReparam

import numpyro_neb as neb
from numpyro_neb.integrators import BAOAB, GHMC, MALA

# Made once: in a model, its eigenvectors would be compiled into every walk.
MIXTURE = targets.skewed_mixture()
FIVE_STEPS = {"integrator": GHMC(), "num_steps": 5}


def run(kernel, *args, key=0, num_warmup=20, num_samples=10, num_chains=1, **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=kwargs.pop("jit_model_args", False),
    )
    mcmc.run(jax.random.key(key), *args, **kwargs)
    return mcmc


@pytest.mark.parametrize("integrator", [BAOAB(), MALA(), GHMC()], ids=lambda i: type(i).__name__)
def test_a_potential_function(integrator):
    """Any potential is an energy: NetworkEnergy(potential_fn, unit of length, shape)."""
    potential_fn = lambda z: jnp.sum(((z - 1.0) / 0.5) ** 2) / 2  # noqa: E731
    energy = neb.NetworkEnergy(potential_fn, sigma=0.5, event_shape=(), loc=0.0)
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=5)
    z = np.asarray(run(kernel, num_samples=8000).get_samples(group_by_chain=True)["y"], float)
    for values, truth in ((z, 1.0), ((z - 1) ** 2, 0.25)):
        targets.within(values.mean(), truth, values.std() / np.sqrt(effective_sample_size(values)))


def test_logistic_regression():
    """Against the Laplace approximation, good to O(1/n) = 1/300 of a posterior sd here."""
    x = jax.random.normal(jax.random.key(0), (3000, 3))
    labels = dist.Bernoulli(logits=x @ jnp.arange(1.0, 4)).sample(jax.random.key(1))

    def model(labels):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(3), 1).to_event(1))
        logits = numpyro.deterministic("logits", x @ w)
        numpyro.sample("labels", dist.Bernoulli(logits=logits), obs=labels)

    mcmc = run(neb.WalkJumpKernel(model=model, **FIVE_STEPS), labels, num_warmup=400,
               num_samples=1000)  # fmt: skip
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["logits"].shape == (1, 1000, 3000)
    mode = jnp.zeros(3)
    for _ in range(20):  # Newton's method
        p = jax.nn.sigmoid(x @ mode)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + jnp.eye(3)
        mode = mode + jnp.linalg.solve(hessian, x.T @ (labels - p) - mode)
    w = np.asarray(draws["w"], float)
    sd = np.sqrt(np.diag(np.linalg.inv(hessian)))
    error = w.std((0, 1)) / np.sqrt(effective_sample_size(w))
    # The posterior mean lies off the mode by a share of about sqrt(3 / n)-th of a sd.
    assert np.all(abs(w.mean((0, 1)) - mode) < 5 * error + 0.1 * sd)
    np.testing.assert_allclose(w.std((0, 1)), sd, rtol=0.2)


def test_reparametrised_sites_and_going_on_after_warm_up():
    def model(data):
        scale = numpyro.sample("scale", dist.Uniform(0.5, 1))
        affine = dist.TransformedDistribution(dist.Uniform(0, 1), AffineTransform(0, scale))
        with numpyro.handlers.reparam(config={"loc": TransformReparam()}):
            loc = numpyro.sample("loc", affine)
        numpyro.sample("data", dist.Normal(loc, 0.1), obs=data)

    mcmc = MCMC(neb.WalkJumpKernel(model=model, **FIVE_STEPS), num_warmup=200, num_samples=50,
                progress_bar=False)  # fmt: skip
    data = jnp.full(20, 0.4)
    mcmc.warmup(jax.random.key(2), data, collect_warmup=True)
    assert mcmc.get_samples()["loc"].shape == (200,)
    for _ in range(2):
        mcmc.run(jax.random.key(3), data)
        assert set(mcmc.get_samples()) == {"scale", "loc_base", "loc"}
        # The data's mean has sd 0.1 / sqrt(20) = .022 about loc.
        assert abs(mcmc.get_samples()["loc"].mean() - 0.4) < 0.1
        mcmc.post_warmup_state = mcmc.last_state


def test_improper_priors():
    def model(data):
        mean = numpyro.sample("mean", dist.Normal(0, 1).mask(False))
        sd = numpyro.sample("sd", dist.ImproperUniform(dist.constraints.positive, (), ()))
        numpyro.sample("data", dist.Normal(mean, sd).expand([500]).to_event(1), obs=data)

    data = 1 + 2 * jax.random.normal(jax.random.key(1), (500,))
    kernel = neb.WalkJumpKernel(model=model, **FIVE_STEPS)
    draws = run(kernel, data, num_warmup=400, num_samples=1000).get_samples(group_by_chain=True)
    # Under the flat priors the posterior of the mean is Student's, centred at the data's mean.
    mean = np.asarray(draws["mean"], float)
    error = mean.std() / np.sqrt(effective_sample_size(mean))
    targets.within(mean.mean(), float(data.mean()), error)
    np.testing.assert_allclose(draws["sd"].mean(), data.std(), rtol=0.05)


@pytest.mark.parametrize("jit_model_args", [False, True])
def test_the_sites_may_change_with_the_arguments(jit_model_args):
    def model(a=None, b=None, z=None):
        mean = numpyro.sample("mean", dist.Normal(0.0, 0.2))
        if a is not None:
            mean = mean + a * numpyro.sample("x", dist.HalfNormal(0.5))
        if b is not None:
            mean = mean + b * numpyro.sample("y", dist.HalfNormal(0.5))
        numpyro.sample("z", dist.Normal(mean, 1.0), obs=z)

    a, b, z = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    mcmc = MCMC(neb.WalkJumpKernel(model=model), num_warmup=5, num_samples=3,
                progress_bar=False, jit_model_args=jit_model_args)  # fmt: skip
    for given, names in (
        ({"a": a, "b": None}, {"mean", "x"}),
        ({"a": None, "b": b}, {"mean", "y"}),
        ({"a": a, "b": b}, {"mean", "x", "y"}),
    ):
        mcmc.run(jax.random.key(0), **given, z=z)
        assert set(mcmc.get_samples()) == names


def test_reuse_with_data_of_another_size():
    def model(data):
        numpyro.sample("data", dist.Normal(numpyro.sample("mean", dist.Normal(0, 9)), 1), obs=data)

    mcmc = MCMC(neb.WalkJumpKernel(model=model, **FIVE_STEPS), num_warmup=200, num_samples=400,
                progress_bar=False)  # fmt: skip
    for size, value in ((100, 3.0), (50, -3.0)):
        mcmc.run(jax.random.key(0), jnp.full(size, value))
        mean = np.asarray(mcmc.get_samples(group_by_chain=True)["mean"], float)
        exact = value * size / (size + 1 / 81)
        targets.within(mean.mean(), exact, mean.std() / np.sqrt(effective_sample_size(mean)))


def test_compile_then_warm_up_then_run():
    """As one run; and the first of two chains is the chain of the first key alone."""
    energy = targets.skewed_mixture()
    settings = {"num_warmup": 4, "num_samples": 6, "progress_bar": False}
    mcmc = MCMC(neb.WalkJumpKernel(energy), num_chains=2, chain_method="vectorized", **settings)
    key = jax.random.key(0)
    mcmc.run(key)
    expected = mcmc.get_samples(group_by_chain=True)["y"]
    mcmc._compile(key)
    mcmc.warmup(key)
    mcmc.run(mcmc.last_state.rng_key)
    np.testing.assert_array_equal(mcmc.get_samples(group_by_chain=True)["y"], expected)
    alone = MCMC(neb.WalkJumpKernel(energy), **settings)
    alone.run(jax.random.split(key)[0])
    np.testing.assert_allclose(alone.get_samples()["y"], expected[0], atol=1e-5)


def test_sites_without_coordinates():
    """A Dirichlet of one category has nothing to walk on; a plate may be empty."""

    def model():
        one = numpyro.sample("one", dist.Dirichlet(jnp.ones(1)))
        numpyro.sample("none", dist.Normal(0, 1), sample_shape=(0, 3))
        numpyro.sample("data", dist.Normal(one, 1), obs=2.0)

    draws = run(neb.WalkJumpKernel(model=model), num_chains=2).get_samples()
    assert (draws["one"].shape, draws["none"].shape) == ((20, 1), (20, 0, 3))
    assert (draws["one"] == 1).all()


def test_lifted_params():
    def model(data):
        rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("data", dist.Exponential(rate), obs=data)

    lifted = numpyro.handlers.lift(model, prior={"rate": dist.Gamma(2.0, 3.0)})
    data = jnp.full(30, 0.5)
    kernel = neb.WalkJumpKernel(model=lifted, **FIVE_STEPS)
    mcmc = run(kernel, data, num_warmup=300, num_samples=4000)
    rate = np.asarray(mcmc.get_samples(group_by_chain=True)["rate"], float)
    exact = (2 + 30) / (3 + 15)
    targets.within(rate.mean(), exact, rate.std() / np.sqrt(effective_sample_size(rate)))


def test_warnings_of_numpyro_reach_the_user():
    def no_plate():
        x = numpyro.sample("x", dist.Normal(0, 1))
        with numpyro.plate("n", 10):
            numpyro.sample("data", dist.Normal(x, 1), obs=jnp.ones((5, 10)))

    with pytest.warns(UserWarning, match="Missing a plate statement"):
        run(neb.WalkJumpKernel(model=no_plate))


@pytest.fixture(scope="module")
def two_chains():
    """A support that depends on another site, a deterministic site, a jump, and data."""
    data = jnp.array([0.3, -0.2])
    kernel = neb.WalkJumpKernel(model=moving_support, integrator=GHMC(0.3), adapt_step_size=False)
    return run(kernel, data, num_chains=2)


def moving_support(data=None):
    low = numpyro.sample("low", dist.Normal(0, 1))
    x = numpyro.sample("x", dist.Uniform(low, low + 1))
    y = numpyro.sample("y", neb.SmoothedDensity(MIXTURE))
    numpyro.deterministic("sum", x + y[0])
    with numpyro.plate("seen", 2):
        numpyro.sample("data", dist.Normal(x + y[0], 1), obs=data)


def test_draws_are_constrained_and_chains_lie_in_a_row(two_chains):
    flat, grouped = two_chains.get_samples(), two_chains.get_samples(group_by_chain=True)
    assert set(flat) == {"low", "x", "y", "y_jump", "sum"}
    assert np.all((flat["low"] < flat["x"]) & (flat["x"] < flat["low"] + 1))
    np.testing.assert_allclose(flat["sum"], flat["x"] + flat["y"][:, 0], rtol=1e-5, atol=1e-6)
    for name, values in grouped.items():
        np.testing.assert_array_equal(values.reshape(flat[name].shape), flat[name])
    fields, by_chain = (
        two_chains.get_extra_fields(),
        two_chains.get_extra_fields(group_by_chain=True),
    )
    for name, values in by_chain.items():
        np.testing.assert_array_equal(values.ravel(), fields[name])
    two_chains.transfer_states_to_host()
    assert isinstance(two_chains.get_samples()["x"], np.ndarray)


def test_draws_go_to_predictive(two_chains):
    """With the jumps in them, which are no site of the model."""
    for batch_ndims, shape in ((1, (20,)), (2, (2, 10))):
        draws = two_chains.get_samples(group_by_chain=batch_ndims == 2)
        predictive = Predictive(moving_support, draws, batch_ndims=batch_ndims)
        predicted = predictive(jax.random.key(1))
        assert predicted["data"].shape == (*shape, 2)
        np.testing.assert_allclose(predicted["sum"], draws["sum"], rtol=1e-5, atol=1e-6)


def test_the_summary_has_every_site_and_the_count_of_divergences(two_chains, capsys):
    two_chains.print_summary(exclude_deterministic=False)
    printed = capsys.readouterr().out
    for name in ("low", "sum", "x", "y[0]", "y_jump[1]", "Number of divergences: 0"):
        assert name in printed


def test_a_postprocess_fn_of_the_users_own():
    settings = {"num_warmup": 0, "num_samples": 3, "progress_bar": False}
    kernel, key = neb.WalkJumpKernel(targets.skewed_mixture()), jax.random.key(0)
    plain = MCMC(kernel, **settings)
    plain.run(key)
    doubled = MCMC(kernel, **settings, postprocess_fn=lambda draw: {"twice": 2 * draw["y"]})
    doubled.run(key)
    assert set(doubled.get_samples()) == {"twice"}
    np.testing.assert_array_equal(doubled.get_samples()["twice"], 2 * plain.get_samples()["y"])


def test_parallel_chains_with_the_bar(monkeypatch, capfd):
    for name in ("CI", "PYTEST_XDIST_WORKER"):  # where NumPyro draws no bar
        monkeypatch.delenv(name, raising=False)
    kernel, draws = neb.WalkJumpKernel(targets.skewed_mixture()), {}
    for bar in (True, False):
        mcmc = MCMC(kernel, num_warmup=2, num_samples=20, num_chains=2, thinning=3,
                    chain_method="parallel", progress_bar=bar)  # fmt: skip
        mcmc.run(jax.random.key(0))
        draws[bar] = mcmc.get_samples()["y"]
    assert "Running chain 1" in capfd.readouterr().err
    assert draws[True].shape == (2 * 6, 2)
    np.testing.assert_allclose(draws[True], draws[False], rtol=1e-5, atol=1e-5)


def test_a_stale_state_is_refreshed():
    kernel = neb.WalkJumpKernel(model=module_level_model)
    state = kernel.init(jax.random.key(0), 0, None)
    walk = state.walk._replace(potential=jnp.zeros(()), gradient=0 * state.walk.gradient)
    again = kernel.refresh(state._replace(walk=walk), (), {})
    for name in ("potential", "gradient", "position", "velocity"):
        np.testing.assert_allclose(
            getattr(again.walk, name), getattr(state.walk, name), rtol=1e-5, atol=1e-6
        )


def test_extra_fields_of_the_tuning():
    mcmc = run(neb.WalkJumpKernel(targets.skewed_mixture(), adapt_step_size=True),
               extra_fields=("adaptation.state.step_size", "adaptation.num_draws"))  # fmt: skip
    fields = mcmc.get_extra_fields(group_by_chain=True)
    np.testing.assert_array_equal(fields["adaptation.num_draws"][0], np.arange(21, 31))
    assert (fields["adaptation.state.step_size"] > 0).all()


@pytest.mark.parametrize("when", ["before", "after"])
def test_pickling(when):
    kernel = neb.WalkJumpKernel(model=module_level_model, adapt_step_size=True)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=5, progress_bar=False)
    if when == "after":
        mcmc.run(jax.random.key(0))
    restored = pickle.loads(pickle.dumps(mcmc))
    for m in (mcmc, restored):
        m.run(jax.random.key(1))
    for name in ("z", "y", "y_jump"):
        np.testing.assert_array_equal(restored.get_samples()[name], mcmc.get_samples()[name])


def module_level_model():
    numpyro.sample("z", dist.Normal(0, 1))
    numpyro.sample("y", neb.SmoothedDensity(MIXTURE))
