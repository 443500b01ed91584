"""Every plot of ArviZ, in either generation, on what `to_arviz` returns by default."""

import inspect

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.infer import MCMC, Predictive

import numpyro_neb as neb
from numpyro_neb.integrators import BAOAB

pytestmark = [
    pytest.mark.slow,
    # Of loo: of the data of the model here.
    pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto"),
    # Of a chain whose jumps stay in one mode.
    pytest.mark.filterwarnings("ignore:Your data appears to have a single value"),
]

GENERATION = int(az.__version__.split(".")[0])
OF_ARVIZ = {
    name
    for name, value in inspect.getmembers(az, inspect.isfunction)
    if name.startswith(("plot_", "combine_plots"))
}
# ArviZ draws 40 panels at most: of larger events, these are the coordinates to look at.
FEW = {
    (): {},
    (2,): {},
    (8, 8): {"coords": {"height": [3], "width": [3, 5]}},
    (3, 4, 4): {"coords": {"channel": [0], "height": [3], "width": [1, 2]}},
}
LINES = [(az.plot_trace, {}), (az.plot_rank, {})]
# The plots of any draws, and what they are given besides.
OF_DRAWS = {
    "combine_plots": {"plots": LINES},
    "plot_autocorr": {},
    "plot_convergence_dist": {},
    "plot_density": {},
    "plot_dgof": {},
    "plot_dgof_dist": {},
    "plot_dist": {},
    "plot_dist_comparison": {},
    "plot_energy": {},
    "plot_ess": {},
    "plot_ess_evolution": {},
    "plot_forest": {},
    "plot_mcse": {},
    "plot_pair": {},
    "plot_pair_focus": {},
    "plot_parallel": {},
    "plot_posterior": {},
    "plot_rank": {},
    "plot_rank_dist": {},
    "plot_ridge": {},
    "plot_trace": {},
    "plot_trace_dist": {},
    "plot_violin": {},
}
Y = {"var_names": ["y"]}
# Those of a model's groups, which a walk on an energy does not have: observed_data,
# log_likelihood, posterior_predictive, prior.
OF_MODELS = {
    "plot_bf": {"var_names" if GENERATION else "var_name": "scale", "ref_val": 0.5},
    "plot_bpv": {},
    "plot_lm": {},
    "plot_loo_interval": Y,
    "plot_loo_pit": Y if GENERATION else {"y": "y"},
    "plot_ppc": {},
    "plot_ppc_dist": {},
    "plot_ppc_dist_pit": {},
    "plot_ppc_interval": {},
    "plot_ppc_pit": {},
    "plot_ppc_tstat": {},
    "plot_prior_posterior": {"var_names": ["w", "scale"]},
    "plot_ts": {"y": "y"},
}
OTHERS = {
    "draws values, not the groups of a run": {"plot_dot", "plot_ecdf", "plot_hdi", "plot_kde"},
    "compares several models": {"plot_compare", "plot_elpd"},
    "draws the result of arviz.loo, see below": {"plot_khat"},
    "for binary, ordinal, censored or count data": {
        "plot_loo_pava",
        "plot_ppc_censored",
        "plot_ppc_pava",
        "plot_ppc_pava_residuals",
        "plot_ppc_rootogram",
        "plot_separation",
    },
    "needs a group prior_sbc or posterior_sbc, of calibration by simulation": {"plot_ecdf_pit"},
    "needs a group log_prior": {"plot_psense_dist", "plot_psense_quantities"},
}
if GENERATION == 0:  # There it draws values.
    del OF_DRAWS["plot_dist"]
    OTHERS["draws values, not the groups of a run"].add("plot_dist")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def chains(kernel, num_samples=30):
    settings = {"num_chains": 4, "chain_method": "vectorized", "progress_bar": False}
    return MCMC(kernel, num_warmup=30, num_samples=num_samples, **settings)


@pytest.fixture(scope="module", params=list(FEW), ids=str)
def walk(request):
    """The event's shape, and ArviZ data of a walk on an energy of it."""
    shape = request.param
    energy = neb.MixtureEnergy(jax.random.normal(jax.random.key(0), (4, *shape)), 0.5)
    mcmc = chains(neb.WalkJumpKernel(energy, num_steps=3))
    mcmc.run(jax.random.key(0))
    return shape, neb.to_arviz(mcmc)


X = np.linspace(-1, 1, 12).astype(np.float32)
MIXTURE = targets.skewed_mixture()


def line(x, y=None):
    w = numpyro.sample("w", neb.SmoothedDensity(MIXTURE))
    scale = numpyro.sample("scale", dist.Gamma(3.0, 6.0))
    with numpyro.plate("point", len(x)):
        numpyro.sample("y", dist.Normal(w[0] + w[1] * x, scale), obs=y)


@pytest.fixture(scope="module")
def model():
    """ArviZ data of a walk on a model: by default, and with the groups that must be given."""
    kernel = neb.WalkJumpKernel(model=line, integrator=BAOAB(0.1), num_steps=20)
    mcmc = chains(kernel, 100)
    y = (0.3 + 0.8 * X + 0.5 * np.random.default_rng(0).normal(size=12)).astype(np.float32)
    mcmc.run(jax.random.key(1), X, y)
    prior = Predictive(line, num_samples=200)(jax.random.key(2), X)
    predictive = Predictive(line, mcmc.get_samples())(jax.random.key(3), X)
    return neb.to_arviz(mcmc), neb.to_arviz(mcmc, prior=prior, posterior_predictive=predictive)


def test_every_plot_has_its_place():
    """A new plot of ArviZ is in none of the tables: it must be tried, or have a reason."""
    known = [OF_DRAWS.keys(), OF_MODELS.keys(), *OTHERS.values()]
    assert set().union(*known) >= OF_ARVIZ
    assert sum(map(len, known)) == len(set().union(*known))


@pytest.mark.parametrize("name", sorted(OF_DRAWS.keys() & OF_ARVIZ))
def test_plots_of_a_walk(name, walk):
    shape, data = walk
    given = OF_DRAWS[name] | (FEW[shape] if name != "plot_energy" else {})
    if name == "plot_pair_focus":
        chosen = {dim: values[0] for dim, values in FEW[shape].get("coords", {}).items()}
        chosen = chosen or dict.fromkeys(["event_dim_0"] * len(shape), 0)
        given |= {"focus_var": "y", "focus_var_coords": chosen}
    plot = getattr(az, name)
    # That of the energy takes sample_stats, of which there is nothing to select.
    if "coords" not in inspect.signature(plot).parameters and name != "plot_energy":
        data = data["posterior"].sel(given.pop("coords", {}))
    plot(data, **given)


@pytest.mark.parametrize("name", sorted((OF_DRAWS.keys() | OF_MODELS.keys()) & OF_ARVIZ))
def test_plots_of_a_model(name, model):
    default, whole = model
    if name == "plot_pair_focus":
        az.plot_pair_focus(default, focus_var="scale")
    elif name in OF_DRAWS:
        getattr(az, name)(default, **OF_DRAWS[name])
    elif name == "plot_lm":  # the data come second in 0.x
        az.plot_lm(**{"dt" if GENERATION else "idata": whole, "x": "x", "y": "y"})
    else:
        getattr(az, name)(whole, **OF_MODELS[name])


def test_plots_of_loo(model):
    default, _ = model
    az.plot_khat(az.loo(default, pointwise=True))


def test_a_forest_of_a_whole_image(walk):
    """ArviZ 1.x has dimensions `row` and `column` of its own: draws must not."""
    _, data = walk
    az.plot_forest(data)
    assert {"row", "column"}.isdisjoint(data["posterior"].sizes)
