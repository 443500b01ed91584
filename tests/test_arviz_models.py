"""A walk on a model as ArviZ data: every group of its schema. Its plots: test_arviz_plots.py."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.infer import MCMC, Gibbs, Predictive

import numpyro_neb as neb
from numpyro_neb.integrators import BAOAB

GENERATION = int(az.__version__.split(".")[0])
ENERGY = targets.skewed_mixture()
X = np.linspace(-1, 1, 12).astype(np.float32)
Y = (0.3 + 0.8 * X + 0.5 * np.random.default_rng(0).normal(size=12)).astype(np.float32)
SAMPLED = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior")
SAMPLED += ("prior_predictive", "warmup_posterior", "warmup_sample_stats")


def model(x, name="line", /, y=None, *, noise=0.5):
    w = numpyro.sample("w", neb.SmoothedDensity(ENERGY))
    with numpyro.plate("point", len(x)):
        mean = numpyro.deterministic("mean", w[0] + w[1] * x)
        numpyro.sample("y", dist.Normal(mean, noise), obs=y)


KERNEL = neb.WalkJumpKernel(model=model, integrator=BAOAB(0.3), num_steps=10)


def chains(kernel, num_samples=100, num_chains=4):
    settings = {"chain_method": "vectorized", "progress_bar": False}
    return MCMC(kernel, num_warmup=30, num_samples=num_samples, num_chains=num_chains, **settings)


@pytest.fixture(scope="module")
def whole():
    """The MCMC, what it was given, and its data with every group."""
    mcmc = chains(KERNEL)
    mcmc.warmup(jax.random.key(0), X, y=Y, collect_warmup=True)
    warmup = mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)
    mcmc.run(jax.random.key(1), X, y=Y)
    given = {
        "warmup": warmup,
        "prior": Predictive(model, num_samples=200)(jax.random.key(2), X),
        "posterior_predictive": Predictive(model, mcmc.get_samples())(jax.random.key(3), X),
    }
    return mcmc, given, neb.to_arviz(mcmc, **given)


def names_of_groups(data):
    groups = data._groups_all if GENERATION == 0 else [g.strip("/") for g in data.groups]
    return {group for group in groups if group}


def test_every_group(whole):
    mcmc, given, data = whole
    assert names_of_groups(data) == {*SAMPLED, "observed_data", "constant_data"}
    draws = mcmc.get_samples(group_by_chain=True)
    assert set(data["posterior"].data_vars) == {"w", "w_jump", "mean"}
    assert data["posterior"]["mean"].dims == ("chain", "draw", "point")
    assert data["posterior"]["w"].dims == data["posterior"]["w_jump"].dims
    np.testing.assert_array_equal(data["posterior"]["w_jump"], draws["w_jump"])
    np.testing.assert_array_equal(data["observed_data"]["y"], Y)
    assert data["observed_data"]["y"].dims == ("point",)
    assert set(data["constant_data"].data_vars) == {"x", "w_sigma"}
    np.testing.assert_array_equal(data["constant_data"]["x"], X)
    assert data["constant_data"]["x"].dims == ("point",)
    np.testing.assert_allclose(data["constant_data"]["w_sigma"], ENERGY.sigma)
    expected = dist.Normal(draws["mean"], 0.5).log_prob(Y)
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, rtol=1e-4, atol=1e-4)
    predicted = np.asarray(given["posterior_predictive"]["y"]).reshape(4, 100, 12)
    np.testing.assert_array_equal(data["posterior_predictive"]["y"], predicted)
    assert data["sample_stats"].attrs["num_coordinates"] == 2


def test_prior_and_warm_up(whole):
    _, given, data = whole
    w = np.asarray(given["prior"]["w"])
    np.testing.assert_array_equal(data["prior"]["w"], w[None])
    jumps = jax.vmap(ENERGY.denoise)(w)
    np.testing.assert_allclose(data["prior"]["w_jump"][0], jumps, rtol=1e-4, atol=1e-5)
    assert set(data["prior"].data_vars) == {"w", "w_jump", "mean"}
    assert set(data["prior_predictive"].data_vars) == {"y"}
    assert data["prior_predictive"]["y"].dims == ("chain", "draw", "point")
    draws, fields = given["warmup"]
    np.testing.assert_array_equal(data["warmup_posterior"]["w"], draws["w"])
    assert data["warmup_posterior"]["mean"].dims == ("chain", "draw", "point")
    np.testing.assert_array_equal(data["warmup_sample_stats"]["lp"], fields["lp"])
    assert data["warmup_posterior"].sizes["draw"] == 30


def test_arviz_conventions(whole, tmp_path):
    """Sampled groups begin with chain and draw, and files and converters keep them all."""
    *_, data = whole
    path = str(tmp_path / "draws.nc")
    data.to_netcdf(path)
    back = az.from_netcdf(path)
    assert names_of_groups(back) == names_of_groups(data)
    for group in SAMPLED:
        for name, variable in data[group].data_vars.items():
            assert variable.dims[:2] == ("chain", "draw"), (group, name)
            np.testing.assert_array_equal(back[group][name], variable)
    convert = az.convert_to_inference_data if GENERATION == 0 else az.convert_to_datatree
    assert names_of_groups(convert(data)) == names_of_groups(data)
    assert set(az.convert_to_dataset(data, group="prior").data_vars) == {"w", "w_jump", "mean"}
    table = az.summary(data, var_names=["w", "w_jump"])
    assert list(table.index) == ["w[0]", "w[1]", "w_jump[0]", "w_jump[1]"]


def test_what_is_not_asked_for(whole):
    mcmc, *_ = whole
    data = neb.to_arviz(mcmc, dims={"w": ["coefficient"]}, log_likelihood=False)
    groups = {"posterior", "sample_stats", "observed_data", "constant_data"}
    assert names_of_groups(data) == groups
    assert data["posterior"]["w_jump"].dims == ("chain", "draw", "coefficient")
    assert data["posterior"]["mean"].dims == ("chain", "draw", "point")


def test_a_prior_without_the_latent_sites(whole):
    mcmc, given, _ = whole
    prior = {"y": given["prior"]["y"]}
    assert "prior" not in names_of_groups(neb.to_arviz(mcmc, prior=prior, log_likelihood=False))


def test_plates_and_arguments_of_every_kind():
    """A dimension between two plates has ArviZ's own name; arguments may be more than arrays."""

    def crossed(*sizes, extra=None, table=None, **more):
        with numpyro.plate("above", 2, dim=-3), numpyro.plate("below", 4, dim=-1):
            numpyro.sample("z", neb.SmoothedDensity(ENERGY))
            numpyro.deterministic("apart", jnp.zeros(7))
        numpyro.sample("b", dist.Normal(0, 1).expand([3]).to_event(1), infer={"event_dims": ["k"]})

    mcmc = chains(neb.WalkJumpKernel(model=crossed), num_samples=3, num_chains=1)
    mcmc.run(jax.random.key(0), 2, np.arange(3), extra="text", table=np.ones((4, 5)), flag=True,
             tree={"a": 1})  # fmt: skip
    data = neb.to_arviz(mcmc)
    posterior = data["posterior"]
    dims = ("chain", "draw", "above", "z_dim_1", "below", "z_dim_0")
    assert posterior["z"].dims == posterior["z_jump"].dims == dims
    assert posterior["z"].shape == (1, 3, 2, 1, 4, 2)
    assert posterior["apart"].dims == ("chain", "draw", "apart_dim_0")
    assert posterior["b"].dims == ("chain", "draw", "k")
    constants = data["constant_data"]
    assert set(constants.data_vars) == {"sizes_0", "sizes_1", "table", "flag", "z_sigma"}
    # A row for each member of one plate; no plate has three.
    assert constants["table"].dims == ("below", "table_dim_1")
    assert constants["sizes_1"].dims == ("sizes_1_dim_0",)
    assert "observed_data" not in names_of_groups(data)
    assert data["sample_stats"].attrs["num_coordinates"] == 2 * 4 * 2 + 3


@pytest.mark.slow
def test_a_stream_has_the_same_groups(whole, tmp_path):
    pytest.importorskip("zarr")
    mcmc = chains(KERNEL, num_samples=25, num_chains=2)
    mcmc.run(jax.random.key(1), X, y=Y)
    settings = {"draws_per_write": 10, "progress_bar": False}
    data = neb.stream(mcmc, jax.random.key(1), tmp_path / "draws.zarr", model_args=(X,),
                      model_kwargs={"y": Y}, **settings)  # fmt: skip
    expected = neb.to_arviz(mcmc)
    assert names_of_groups(data) == names_of_groups(expected)
    for group in names_of_groups(expected):
        for name, variable in expected[group].data_vars.items():
            assert data[group][name].dims == variable.dims
            # The draws are the same bits; the likelihood is computed in other pieces.
            np.testing.assert_allclose(data[group][name], variable, rtol=1e-5, err_msg=name)
    assert data["sample_stats"].attrs["num_coordinates"] == 2


def test_a_stream_with_the_old_names_of_dimensions_goes_on(tmp_path):
    """Version 0.1.0 wrote images with row and column."""
    pytest.importorskip("zarr")
    kernel = neb.WalkJumpKernel(neb.MixtureEnergy(jnp.ones((1, 2, 3)), 0.5))
    old = {name: ["row", "column"] for name in ("y", "x", "loc")}
    given = {"draws_per_write": 5, "progress_bar": False}
    store = tmp_path / "draws.zarr"
    neb.stream(chains(kernel, 5, 2), jax.random.key(0), store, dims=old, **given)
    data = neb.stream(chains(kernel, 10, 2), jax.random.key(0), store, **given)
    mcmc = chains(kernel, 10, 2)
    mcmc.run(jax.random.key(0))
    for name, draws in mcmc.get_samples(group_by_chain=True).items():
        assert data["posterior"][name].dims == ("chain", "draw", "row", "column")
        np.testing.assert_array_equal(data["posterior"][name], draws)


def test_wrong_warm_up(whole, untyped):
    mcmc, given, _ = whole
    for warmup, got in (
        (given["warmup"][0], "got dict"),
        ((given["warmup"][0], 3), "got a int in it"),
        (({"w": np.zeros((2, 30, 2))}, {}), r"of 4 chains, got 'w' of shape \(2, 30, 2\)"),
    ):
        with pytest.raises(ValueError, match=rf"warmup must be \(mcmc.get_samples.*{got}"):
            neb.to_arviz(mcmc, warmup=warmup)


def test_warm_up_alone_is_no_run():
    mcmc = chains(neb.WalkJumpKernel(ENERGY), num_samples=3, num_chains=1)
    mcmc.warmup(jax.random.key(0), collect_warmup=True)
    with pytest.raises(ValueError, match="it holds 30 draws of a warm-up"):
        neb.to_arviz(mcmc)


def test_gibbs_is_for_arviz_itself():
    mcmc = MCMC(Gibbs([(KERNEL, None)]), num_warmup=1, num_samples=1)
    with pytest.raises(TypeError, match=r"got MCMC of Gibbs: arviz\.from_numpyro takes it"):
        neb.to_arviz(mcmc)


@pytest.mark.slow
def test_plots_of_warm_up(whole):
    *_, data = whole
    if GENERATION:
        az.plot_trace(data, var_names=["w"], group="warmup_posterior")
    else:
        az.plot_trace(data.warmup_posterior, var_names=["w"])
        az.plot_ess(data, kind="quantile", var_names=["w"])
        az.plot_ess(data, kind="evolution", var_names=["w"])
        az.plot_forest(data, kind="ridgeplot", var_names=["w"])


def test_energy_transitions(whole):
    """The change of energy by a fresh momentum has variance d, whatever the walk."""
    *_, data = whole
    ax = neb.plots.energy_transitions(data)
    (line,) = (patch for patch in ax.patches if not patch.get_fill())
    steps = line.get_xy()[1:-1]
    edges, density = steps[::2, 0], steps[::2, 1]
    edges = np.append(edges, steps[-1, 0])
    width = edges[1] - edges[0]
    # Sheppard's correction for the bins; a difference of two exponential laws has the kurtosis 6,
    # so that its variance of 2 is known from 400 draws to a share of sqrt(5 / 400).
    variance = np.sum(density * width * (edges[:-1] + width / 2) ** 2) - width**2 / 12
    targets.within(variance, 2, 2 * np.sqrt(5 / 400))
    shown = ", ".join(f"{value:.2f}" for value in neb.diagnostics.refreshed_bfmi(data))
    assert ax.get_legend().get_title().get_text() == f"E-BFMI {shown}"
    assert neb.plots.energy_transitions(data, ax=ax) is ax


def test_an_energy_whose_sigma_is_another_site():
    """The jump of each draw is at that draw's sigma, and no one sigma is constant."""

    def model(y, n):
        s = numpyro.sample("s", dist.Uniform(0.3, 1.5))
        w = numpyro.sample("w", neb.SmoothedDensity(ENERGY.at(s)))
        numpyro.sample("v", neb.SmoothedDensity(ENERGY))
        numpyro.sample("y", dist.Normal(w[0], 1.0), obs=y)

    # An argument that has the value of an observed one is an argument still.
    mcmc = chains(neb.WalkJumpKernel(model=model, integrator=BAOAB(0.3)), 10, 1)
    mcmc.run(jax.random.key(0), jnp.asarray(2.0), 2.0)
    prior = Predictive(model, num_samples=5)(jax.random.key(1), None, 2.0)
    data = neb.to_arviz(mcmc, prior=prior)
    for group, draws in (("prior", prior), ("posterior", mcmc.get_samples())):
        expected = [ENERGY.at(s).denoise(w) for s, w in zip(draws["s"], draws["w"], strict=True)]
        jumps = data[group]["w_jump"].values[0]
        np.testing.assert_allclose(jumps, jnp.stack(expected), rtol=1e-4, atol=1e-5)
    assert set(data["constant_data"].data_vars) == {"n", "v_sigma"}
    # Without s there is no telling what w's jump would be.
    del prior["s"]
    assert "w_jump" not in neb.to_arviz(mcmc, prior=prior)["prior"]
