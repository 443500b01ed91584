"""Draws as ArviZ data: of a walk on an energy, of a fit, and what ArviZ says of them.

Walks on a model are in test_arviz_models.py.
"""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import targets
from numpyro.infer import HMC, MCMC, NUTS

import numpyro_neb as neb

# ArviZ 0.x gives an InferenceData, 1.x a DataTree.
GENERATION = int(az.__version__.split(".")[0])


def run(event_shape=(2, 3), num_samples=20, sigma=0.5, **kwargs):
    locs = jax.random.normal(jax.random.key(0), (4, *event_shape))
    kernel = neb.WalkJumpKernel(neb.MixtureEnergy(locs, sigma), num_steps=2, **kwargs)
    chains = {"num_chains": 2, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=5, num_samples=num_samples, **chains)
    mcmc.run(jax.random.key(0))
    return mcmc


@pytest.fixture(scope="module")
def mcmc():
    return run()


def test_groups(mcmc):
    data = neb.to_arviz(mcmc)
    assert type(data).__name__ == ("InferenceData" if GENERATION == 0 else "DataTree")
    for name in ("x", "y"):
        variable = data.posterior[name]
        assert variable.dims == ("chain", "draw", "height", "width")
        expected = mcmc.get_samples(group_by_chain=True)[name]
        np.testing.assert_array_equal(variable.values, expected)
        np.testing.assert_array_equal(variable["width"], [0, 1, 2])
    fields = mcmc.get_extra_fields(group_by_chain=True)
    for name in ("lp", "energy", "step_size", "diverging"):
        np.testing.assert_array_equal(data.sample_stats[name].values, fields[name])
    assert "acceptance_rate" not in data.sample_stats
    assert data.constant_data["sigma"].values.item() == 0.5
    energy = mcmc.sampler.energy
    np.testing.assert_array_equal(data.constant_data["loc"], energy.loc)
    np.testing.assert_array_equal(data.constant_data["scale"], energy.scale)
    assert data.constant_data["loc"].dims == ("height", "width")
    assert data.sample_stats.attrs["num_coordinates"] == 6
    attributes = data.posterior.attrs
    assert attributes["created_by"] == f"numpyro_neb {neb.__version__}"
    assert attributes["energy"] == "MixtureEnergy"
    assert attributes["integrator"] == (
        "BAOAB(step_size=1.0, friction=0.2, initial_velocity='gaussian')"
    )
    assert attributes["steps_per_draw"] == 2


@pytest.mark.parametrize(
    ("event_shape", "dims"),
    [((), ()), ((4,), ("event_dim_0",)), ((3, 2, 2), ("channel", "height", "width"))],
)
def test_dims_of_every_event_shape(event_shape, dims):
    assert neb.to_arviz(run(event_shape)).posterior["x"].dims == ("chain", "draw", *dims)


def test_jumps_that_are_nearly_one_are_drawn():
    """In one mode they differ by a few roundings of float32, too few for a histogram's bins."""
    locs = jax.random.normal(jax.random.key(0), (4, 8, 8))
    mcmc = MCMC(neb.WalkJumpKernel(neb.MixtureEnergy(locs, 0.5)), num_warmup=5, num_samples=20,
                progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(0))
    jumps = neb.to_arviz(mcmc)["posterior"]["x"]
    assert jumps.dtype == np.float64
    np.testing.assert_array_equal(jumps[0], mcmc.get_samples()["x"])
    for pixel in jumps.values[0].reshape(20, 64).T:
        assert np.histogram(pixel, 512)[0].sum() == 20


def test_frozen_coordinates_are_constants_and_do_not_count():
    locs = jax.random.normal(jax.random.key(0), (4, 2, 3))
    kernel = neb.WalkJumpKernel(neb.MixtureEnergy(locs, 0.5), frozen=np.eye(2, 3, dtype=bool))
    mcmc = MCMC(kernel, num_warmup=0, num_samples=2, progress_bar=False)
    mcmc.run(jax.random.key(0), init_params=jnp.zeros((2, 3)))
    data = neb.to_arviz(mcmc, constant_data={"seen": np.ones(3)})
    np.testing.assert_array_equal(data.constant_data["frozen"], np.eye(2, 3, dtype=bool))
    assert data.constant_data["frozen"].dims == ("height", "width")
    assert data.constant_data["seen"].shape == (3,)
    assert data.sample_stats.attrs["num_coordinates"] == 4


def test_own_dims_and_coords(mcmc):
    dims = {"x": ["time", "sensor"], "y": ["time", "sensor"]}
    data = neb.to_arviz(mcmc, coords={"sensor": ["a", "b", "c"]}, dims=dims)
    assert data.posterior["y"].dims == ("chain", "draw", "time", "sensor")
    assert list(data.posterior["sensor"].values) == ["a", "b", "c"]


def test_from_numpyro_works_as_well(mcmc):
    data = az.from_numpyro(mcmc)
    assert set(data.posterior.data_vars) == {"x", "y"}
    np.testing.assert_array_equal(data.sample_stats["lp"], neb.to_arviz(mcmc).sample_stats["lp"])


def test_writes_netcdf_and_reads_it_back(mcmc, tmp_path):
    path = str(tmp_path / "draws.nc")
    data = neb.to_arviz(mcmc)
    data.to_netcdf(path)
    np.testing.assert_array_equal(az.from_netcdf(path).posterior["x"], data.posterior["x"])


def bfmi_of_a_gaussian(step_size, friction, num_steps, sds):
    """E-BFMI of BAOAB's energies on N(0, diag(sds^2)): docs/diagnostics.md derives it."""
    h, k, c = step_size, 1 / np.square(sds), np.exp(-friction * step_size)
    m = (1 + c) * h**2 * k / 4
    step = np.array([[1 - m, (1 + c) * h / 2 + 0 * k], [-h * k * (1 + c - m) / 2, c - m]])
    covariance = np.zeros((len(sds), 2, 2))
    covariance[:, 0, 0], covariance[:, 1, 1] = 1 / k, 1 - h**2 * k / 4
    weight = np.stack([k, np.ones(len(sds))], axis=-1)
    lagged = np.linalg.matrix_power(np.moveaxis(step, -1, 0), num_steps) @ covariance
    inner = lambda a: np.einsum("si,sij,sj->", weight, a**2, weight)  # noqa: E731
    return 2 * (1 - inner(lagged) / inner(covariance))


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("step_size", "friction", "num_steps"), [(1.0, 0.2, 1), (1.5, 0.1, 4), (1.0, 0.2, 20)]
)
def test_bfmi_of_a_gaussian(step_size, friction, num_steps):
    """ArviZ's figure tells of the friction; ours is 1 whatever the walk."""
    sds = np.array([1.0, 1.0, 3.0])
    energy = targets.gaussian(np.sqrt(sds**2 - 1 + 1e-6), 1.0)
    kernel = neb.WalkJumpKernel(
        energy, integrator=neb.integrators.BAOAB(step_size, friction), num_steps=num_steps
    )
    chains = {"num_chains": 64, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=300 // num_steps, num_samples=1000, **chains)
    mcmc.run(jax.random.key(0))
    data = neb.to_arviz(mcmc)
    # Of each chain, so that the error is known; a chain's own variance is short by its error.
    levels = np.asarray(data.sample_stats["energy"].values, float)
    ratios = np.mean(np.diff(levels) ** 2, axis=1) / levels.var()
    exact = bfmi_of_a_gaussian(step_size, friction, num_steps, sds)
    targets.within(ratios.mean(), exact, ratios.std() / 8)
    # Var phi is 3/2 on a Gaussian in three dimensions, in every chain within its error.
    lp = np.asarray(data.sample_stats["lp"].values, float)
    spread = (lp - lp.mean()) ** 2
    targets.within(spread.mean(), 1.5, spread.mean(1).std() / 8)
    found = neb.diagnostics.refreshed_bfmi(data)
    np.testing.assert_allclose(found, 3 / (1.5 + lp.var(1, ddof=1)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.statistical
def test_bfmi_is_that_of_a_sampler_that_draws_the_momentum_anew():
    """Three Gaussians of one centre in eight dimensions, under HMC and under our walk."""
    variances = jnp.array([1.0, 1.5, 2.0]) ** 2 - 0.25
    covariances = variances[:, None, None] * jnp.eye(8)
    energy = neb.MixtureEnergy(jnp.zeros((3, 8)), 0.5, covariances=covariances)
    chains = {"num_chains": 64, "chain_method": "vectorized", "progress_bar": False}
    settings = {"adapt_step_size": False, "adapt_mass_matrix": False}
    hmc = HMC(potential_fn=energy, step_size=0.3, num_steps=6, trajectory_length=None, **settings)
    mcmc = MCMC(hmc, num_warmup=100, num_samples=1000, **chains)
    start = energy.sample(jax.random.key(0), (64,))
    mcmc.run(jax.random.key(1), init_params=start, extra_fields=("energy",))
    levels = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["energy"], float)
    ratios = np.mean(np.diff(levels) ** 2, axis=1) / levels.var()
    walk = MCMC(
        neb.WalkJumpKernel(energy, num_steps=30), num_warmup=100, num_samples=1000, **chains
    )
    walk.run(jax.random.key(2))
    # Of the chains' own variances, each short by that of its mean: below a hundredth of it here.
    found = 1 / neb.diagnostics.refreshed_bfmi(neb.to_arviz(walk))
    error = np.hypot(ratios.std() / 8 / ratios.mean(), found.std() / 8 / found.mean())
    targets.within(ratios.mean() * found.mean(), 1.0, error + 0.002)


def test_bfmi_of_other_data(mcmc):
    for other in (az.from_numpyro(mcmc), {"sample_stats": 3}, {}):
        with pytest.raises(ValueError, match="data must be what to_arviz or stream returned"):
            neb.diagnostics.refreshed_bfmi(other)


def test_diverging_walks_are_told_of():
    mcmc = run(event_shape=(2,), integrator=neb.integrators.BAOAB(step_size=50.0))
    diverging = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"])
    chain = np.flatnonzero(diverging.any(1))[0]
    draw = np.flatnonzero(diverging[chain])[0]
    message = rf"{diverging.sum()} of 40 draws are diverging.*first in chain {chain} at draw {draw}"
    with pytest.warns(UserWarning, match=message):
        data = neb.to_arviz(mcmc)
    np.testing.assert_array_equal(data.sample_stats["diverging"], diverging)


def test_bad_arguments(untyped):
    with pytest.raises(
        TypeError, match="mcmc must be an MCMC of a WalkJumpKernel, or a MixtureFit, got int"
    ):
        neb.to_arviz(3)
    nuts = MCMC(NUTS(potential_fn=lambda z: z @ z), num_warmup=1, num_samples=1)
    with pytest.raises(TypeError, match=r"got MCMC of NUTS: arviz\.from_numpyro takes it"):
        neb.to_arviz(nuts)
    kernel = neb.WalkJumpKernel(targets.gaussian([1.0], 0.5))
    with pytest.raises(ValueError, match=r"mcmc must have run: call mcmc.run\(key\)"):
        neb.to_arviz(MCMC(kernel, num_warmup=1, num_samples=1))


def test_a_fitted_mixture():
    rng = np.random.default_rng(0)
    y = np.where(rng.random(30) < 0.5, 0.0, 4.0) + rng.normal(size=30)
    fit = neb.fit_mixture(y, np.linspace(1, 2, 30), locs=np.array([0.0, 1.0, 3.0, 4.0]))
    data = neb.to_arviz(fit, num_samples=500)
    assert data["posterior"]["x"].dims == ("chain", "draw", "observation")
    assert data["posterior"]["x"].shape == (4, 500, 30)
    np.testing.assert_allclose(data["observed_data"]["y"], fit.y)
    np.testing.assert_allclose(data["constant_data"]["sigma"], fit.sigma)
    mean = data["posterior"]["x"].mean(("chain", "draw"))
    doubt = np.asarray(fit.posterior_std) / np.sqrt(2000) + 1e-6
    targets.within(mean.values, np.asarray(fit.posterior_mean), doubt)
    np.testing.assert_allclose(data["posterior"].attrs["log_likelihood"], fit.log_likelihood)
    assert float(az.ess(data)["x"].median()) > 1000  # they are independent
    other = neb.to_arviz(fit, num_samples=500, key=jax.random.key(1))
    assert not np.array_equal(other["posterior"]["x"], data["posterior"]["x"])
    # Without a key the draws are those of key 0, as documented; the fit's own method asks for one.
    again = fit.to_arviz(jax.random.key(0), num_samples=500)
    np.testing.assert_array_equal(again["posterior"]["x"], data["posterior"]["x"])
    for name in ("created_by", "log_likelihood", "duality_gap", "x"):
        assert again["posterior"].attrs[name] == data["posterior"].attrs[name]
    with pytest.raises(TypeError, match="key"):
        fit.to_arviz()


def test_what_makes_its_own_arviz_data_does_so():
    """Whatever its class: no solver's result is known here."""

    class Fit:
        def to_arviz(self, key, coords=None, dims=None, *, num_samples=1000):
            return key, coords, dims, num_samples

    key, *others = neb.to_arviz(Fit(), {"a": [1]}, {"x": ["a"]}, num_samples=3)
    assert jax.random.key_data(key).tolist() == [0, 0]
    assert others == [{"a": [1]}, {"x": ["a"]}, 3]
    with pytest.raises(TypeError, match="warmup must be None for a Fit: it is for an MCMC"):
        neb.to_arviz(Fit(), warmup=({}, {}))


def test_a_fitted_mixture_of_images():
    y = np.random.default_rng(0).normal(size=(5, 2, 3))
    data = neb.to_arviz(neb.fit_mixture(y, 1.0), num_samples=10)
    assert data["posterior"]["x"].dims == ("chain", "draw", "observation", "height", "width")


def test_an_mcmc_has_its_own_draws(mcmc):
    with pytest.raises(TypeError, match="num_samples and key are for a MixtureFit"):
        neb.to_arviz(mcmc, num_samples=10)


def test_a_fit_has_no_warm_up():
    fit = neb.fit_mixture(np.zeros(3), 1.0)
    with pytest.raises(TypeError, match="prior must be None for a MixtureFit: it is for an MCMC"):
        neb.to_arviz(fit, prior={"x": np.zeros((1, 3))})


def test_a_site_with_a_slash():
    """`numpyro.handlers.scope` makes "a/y", which a tree of data takes for a path."""
    energy = neb.MixtureEnergy(jnp.zeros((1, 2)), 0.5)
    model = lambda: numpyro.sample("y", neb.SmoothedDensity(energy))  # noqa: E731
    scoped = [numpyro.handlers.scope(model, prefix="a", divider=d) for d in ("/", ".")]
    kernels = [neb.WalkJumpKernel(model=one) for one in scoped]
    runs = [MCMC(k, num_warmup=2, num_samples=5, progress_bar=False) for k in kernels]
    for mcmc in runs:
        mcmc.run(jax.random.key(0))
    with pytest.raises(ValueError, match=r"without a slash, got 'a/y': .* divider='\.'"):
        neb.to_arviz(runs[0])
    assert set(neb.to_arviz(runs[1])["posterior"].data_vars) == {"a.y", "a.y_jump"}
