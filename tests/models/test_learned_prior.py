"""learned_prior against posteriors in closed form, and on inverse problems."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import targets
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, SVI, Gibbs, Predictive, Trace_ELBO, init_to_mean
from numpyro.infer.autoguide import AutoMultivariateNormal
from scipy import stats

import numpyro_neb as neb
from benchmarks import learned_prior as digits_prior
from numpyro_neb.posteriors.spreads import floor, projected_root

NOISE = 0.4


def prior_of(d, num_components, sigma):
    """A mixture of wide, rotated Gaussians that overlap; sigma is a third of the spread at most."""
    rng = np.random.default_rng(d)
    axes = np.linalg.qr(rng.normal(size=(num_components, d, d)))[0]
    spreads = rng.uniform(3 * sigma, 1.2, size=(num_components, d))
    return neb.MixtureEnergy(
        jnp.asarray(0.7 * rng.normal(size=(num_components, d)), float),
        sigma,
        log_weights=jnp.log(jnp.arange(1.0, num_components + 1)),
        covariances=jnp.asarray(np.einsum("kij,kj,klj->kil", axes, spreads**2, axes), float),
    )


def clean_components(energy):
    """Weights, means and covariances of X, in float64."""
    weights, means, covariances = targets.components(energy)
    return weights, means, covariances - float(energy.sigma) ** 2 * np.eye(means.shape[1])


def seen_through(d):
    rng = np.random.default_rng(100 + d)
    return rng.normal(size=(d // 2 + 1, d)).astype(np.float32) / np.sqrt(d / 2)


def exact_posterior(energy, matrix, data):
    """Mean and sd of X given data = matrix X + noise, a mixture's."""
    weights, means, covariances = clean_components(energy)
    matrix, data = np.asarray(matrix, float), np.asarray(data, float)
    logs, posterior_means, posterior_covariances = [], [], []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        total = matrix @ covariance @ matrix.T + NOISE**2 * np.eye(len(matrix))
        gain = covariance @ matrix.T @ np.linalg.inv(total)
        logs.append(np.log(weight) + stats.multivariate_normal.logpdf(data, matrix @ mean, total))
        posterior_means.append(mean + gain @ (data - matrix @ mean))
        posterior_covariances.append(covariance - gain @ matrix @ covariance)
    shares = np.exp(logs - np.logaddexp.reduce(logs))
    mean = shares @ np.array(posterior_means)
    second = [
        c + np.outer(m - mean, m - mean)
        for c, m in zip(posterior_covariances, posterior_means, strict=True)
    ]
    return mean, np.sqrt(np.diag(np.tensordot(shares, second, 1)))


def linear_model(energy, matrix, data=None, prior=None):
    x = neb.learned_prior("x", energy) if prior is None else prior()
    numpyro.sample("data", dist.Normal(matrix @ x, NOISE).to_event(1), obs=data)


def naive(energy):
    y = numpyro.sample("y", neb.SmoothedDensity(energy))
    return numpyro.deterministic("x", energy.denoise(y))


def posterior_draws(energy, matrix, data, prior=None, num_warmup=500, num_samples=1500):
    mcmc = MCMC(
        NUTS(linear_model, init_strategy=init_to_mean),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=8,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), energy, matrix, data, prior)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float)
    # A Monte-Carlo error of 2% of the sd.
    assert effective_sample_size(x).min() > 2500
    return x.reshape(-1, x.shape[-1])


def errors(x, energy, matrix, data):
    """How far the mean is off, in posterior sds, and the sd, as a share."""
    mean, sd = exact_posterior(energy, matrix, data)
    return np.abs(x.mean(0) - mean) / sd, x.std(0) / sd - 1


def data_from(energy, matrix, key=3):
    """One x from the law of X, and what is seen of it."""
    key_x, key_noise = jax.random.split(jax.random.key(key))
    x = energy.at(1e-6).sample(key_x)
    return x, matrix @ x + NOISE * jax.random.normal(key_noise, (len(matrix),))


@pytest.mark.statistical
@pytest.mark.parametrize(("d", "num_components"), [(2, 1)])
def test_posterior_is_the_exact_one(d, num_components):
    energy, matrix = prior_of(d, num_components, 0.15), seen_through(d)
    _, data = data_from(energy, matrix)
    mean_off, sd_off = errors(posterior_draws(energy, matrix, data), energy, matrix, data)
    assert mean_off.max() < 0.05
    assert np.abs(sd_off).max() < 0.05


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("d", "num_components"), [(2, 3), (10, 1), (10, 3)])
def test_posterior_of_mixtures_and_in_ten_dimensions(d, num_components):
    test_posterior_is_the_exact_one(d, num_components)


@pytest.mark.slow
@pytest.mark.statistical
def test_the_naive_prior_is_too_narrow():
    """x = denoise(y) lacks E Cov(X given Y): its sd is s / sqrt(1 + sigma^2 / s^2)."""
    energy = targets.gaussian([0.45, 0.45], 0.45)
    matrix = 1e-3 * np.eye(2, dtype=np.float32)  # nothing is seen: the posterior is the prior
    data = jnp.zeros(2)
    narrow = posterior_draws(energy, matrix, data, prior=partial(naive, energy))
    _, sd_off = errors(narrow, energy, matrix, data)
    # Five standard errors of a sd from 2,500 draws.
    np.testing.assert_allclose(sd_off, 0.5**0.5 - 1, atol=5 / np.sqrt(2 * 2500))
    _, sd_off = errors(posterior_draws(energy, matrix, data), energy, matrix, data)
    np.testing.assert_allclose(sd_off, 0, atol=5 / np.sqrt(2 * 2500))


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("d", "num_components"), [(2, 3)])
def test_intervals_cover_and_ranks_are_uniform(d, num_components):
    """Simulation-based calibration over 200 data sets (Talts et al. 2018)."""
    num_sets, num_ranks = 200, 49
    energy, matrix = prior_of(d, num_components, 0.15), seen_through(d)
    truth, data = jax.vmap(lambda key: data_from(energy, matrix, key))(jnp.arange(num_sets))

    def draws(key, data):
        kernel = NUTS(linear_model, init_strategy=init_to_mean, max_tree_depth=5)
        mcmc = MCMC(kernel, num_warmup=150, num_samples=49 * 8, progress_bar=False)
        mcmc.run(key, energy, matrix, data)
        return mcmc.get_samples()["x"]

    keys = jax.random.split(jax.random.key(1), num_sets)
    x, truth = np.asarray(jax.jit(jax.vmap(draws))(keys, data)), np.asarray(truth)
    # The k-th of n draws has expected rank k / (n + 1): a sample quantile of that rank is unbiased.
    low, high = np.quantile(x, [0.05, 0.95], axis=1, method="weibull")
    covered = ((low <= truth) & (truth <= high)).mean(0)
    assert np.all(np.abs(covered - 0.9) < 3 * np.sqrt(0.9 * 0.1 / num_sets))
    ranks = (x[:, ::8] < truth[:, None]).sum(1)
    counts = np.array([np.bincount(r // 5, minlength=10) for r in ranks.T])
    # Pearson's chi^2 in each coordinate, at the level of five standard errors.
    expected = num_sets * 5 / (num_ranks + 1)
    assert np.all(
        ((counts - expected) ** 2 / expected).sum(1)
        < stats.chi2.isf(2 * stats.norm.sf(targets.STANDARD_ERRORS), 9)
    )


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("d", [2])
def test_with_a_trained_energy(d):
    exact, matrix = prior_of(d, 3, 0.3), seen_through(d)
    x = exact.at(1e-6).sample(jax.random.key(5), (100_000,))
    network = neb.networks.MLP((d,), width_size=64, depth=2, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, 0.3, (d,), loc=x.mean(0), scale=x.std(0))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 6000))
    settings = {"num_steps": 6000, "batch_size": 256, "progress_bar": False}
    energy = neb.fit(energy, x, key=jax.random.key(1), optimizer=optimizer, **settings).energy
    _, data = data_from(exact, matrix)
    draws = posterior_draws(energy, matrix, data, num_warmup=300, num_samples=700)
    mean_off, sd_off = errors(draws, exact, matrix, data)
    assert mean_off.max() < 0.1
    assert np.abs(sd_off).max() < 0.1


@pytest.mark.parametrize("covariance", ["full", "diagonal", "isotropic"])
def test_x_given_y_has_the_stated_law(covariance):
    """One Gaussian: Cov(X given y) = (C^-1 + I / sigma^2)^-1, the same at every y."""
    root = np.array([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [0.0, -0.4, 0.8]])
    clean = root @ root.T
    energy = neb.MixtureEnergy(jnp.ones((1, 3)), 0.5, covariances=jnp.asarray(clean)[None])
    y = jnp.array([0.3, -1.0, 2.0])

    def model():
        with numpyro.plate("draws", 20_000):
            neb.learned_prior("x", energy, covariance)

    fixed = numpyro.handlers.substitute(model, {"x_y": jnp.broadcast_to(y, (20_000, 3))})
    sites = numpyro.handlers.trace(numpyro.handlers.seed(fixed, 0)).get_trace()
    x = np.asarray(sites["x"]["value"], float)
    exact = np.linalg.inv(np.linalg.inv(clean) + 4 * np.eye(3))
    if covariance == "diagonal":
        exact = np.diag(np.diag(exact))
    if covariance == "isotropic":
        exact = np.eye(3) * np.trace(exact) / 3
    law = neb.MixtureEnergy(energy.denoise(y)[None], 1e-3, covariances=jnp.asarray(exact)[None])
    targets.assert_law(x, law)
    assert not sites["x_projected"]["value"].any()


def test_sites_in_plates():
    energy = neb.MixtureEnergy(jnp.zeros((2, 2, 3)), 0.5)

    def model():
        with numpyro.plate("a", 4, dim=-1), numpyro.plate("b", 5, dim=-2):
            return neb.learned_prior("x", energy)

    sites = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    shapes = {name: s["value"].shape for name, s in sites.items() if s["type"] != "plate"}
    event = (5, 4, 2, 3)
    assert shapes == {"x_y": event, "x_eps": event, "x_projected": (5, 4), "x": event}
    draws = Predictive(model, num_samples=3)(jax.random.PRNGKey(0))
    assert draws["x"].shape == (3, *event)


def test_scalar_events():
    energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), 0.5)
    model = lambda: neb.learned_prior("x", energy)  # noqa: E731
    draws = Predictive(model, num_samples=7)(jax.random.key(0))
    assert draws["x"].shape == (7,)


def test_prior_predictive_has_the_moments_of_x():
    """Mean and covariance are those of X, mixture or not: the laws of total expectation."""
    energy = targets.skewed_mixture(sigma=0.7)

    def model():
        with numpyro.plate("draws", 40_000):
            neb.learned_prior("x", energy)

    x = np.asarray(Predictive(model, num_samples=1)(jax.random.key(0))["x"][0], float)
    weights, means, covariances = clean_components(energy)
    mean = weights @ means
    total = np.tensordot(weights, covariances, 1) + (weights * (means - mean).T) @ (means - mean)
    targets.within(x.mean(0), mean, x.std(0) / np.sqrt(len(x)))
    products = np.einsum("ni,nj->nij", x - mean, x - mean)
    targets.within(products.mean(0), total, products.std(0) / np.sqrt(len(x)))


@pytest.mark.statistical
def test_the_projection_is_counted():
    """phi = norm(2 y)^2 / (2 sigma^2) in one direction: Cov = sigma^2 (1 - 4), no covariance."""
    energy = neb.ResidualEnergy(lambda y: y * jnp.array([3.0, 0.5, 0.5, 0.5]), 0.5, (4,))

    def model():
        neb.learned_prior("x", energy)

    mcmc = MCMC(NUTS(model), num_warmup=50, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = mcmc.get_samples()
    np.testing.assert_allclose(draws["x_projected"], 0.25)
    # What is left of that direction is the jump, and a share of sigma that stands for zero.
    jump = jax.vmap(energy.denoise)(draws["x_y"])
    apart = np.abs(np.asarray(draws["x"] - jump))[:, 0]
    # Cov / sigma^2 is -3 there.
    least = floor(jnp.full(1, -3.0))
    assert np.all(apart <= 1.01 * 0.5 * np.sqrt(least) * np.abs(draws["x_eps"])[:, 0] + 1e-6)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [1.0, 0.3, 1e-3], [0.5, 0.5, -0.4]])
def test_root_and_its_derivative(values, x64):
    """Against finite differences, equal and negative eigenvalues included."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrix = jnp.asarray(axes @ np.diag(values) @ axes.T)
    tangent = rng.normal(size=(3, 3))
    tangent = jnp.asarray(tangent + tangent.T)
    root, projected = projected_root(matrix)
    kept = np.maximum(values, floor(jnp.array(values)))
    np.testing.assert_allclose(root, axes @ np.diag(np.sqrt(kept)) @ axes.T, atol=1e-12)
    np.testing.assert_allclose(projected, np.mean(np.array(values) < 0))
    _, (slope, _) = jax.jvp(projected_root, (matrix,), (tangent,))
    h = 1e-6
    steps = [projected_root(matrix + s * h * tangent)[0] for s in (1, -1)]
    np.testing.assert_allclose(slope, (steps[0] - steps[1]) / (2 * h), atol=1e-6)


@pytest.mark.slow
@pytest.mark.statistical
def test_svi_with_an_autoguide():
    energy, matrix = prior_of(2, 1, 0.15), seen_through(2)
    _, data = data_from(energy, matrix)
    guide = AutoMultivariateNormal(linear_model, init_loc_fn=init_to_mean)
    # A rate that falls to zero, so that the noise of its last gradients does not stay.
    rate = optax.cosine_decay_schedule(1e-2, 3000)
    svi = SVI(linear_model, guide, optax.adam(rate), Trace_ELBO(num_particles=8))
    found = svi.run(jax.random.key(0), 3000, energy, matrix, data, progress_bar=False)
    predictive = Predictive(linear_model, guide=guide, params=found.params, num_samples=4000)
    x = np.asarray(predictive(jax.random.key(1), energy, matrix, data)["x"], float)
    # One Gaussian: y and eps are jointly Gaussian, and the guide's family holds the posterior.
    mean_off, sd_off = errors(x, energy, matrix, data)
    assert mean_off.max() < 0.15
    assert np.abs(sd_off).max() < 0.15


@pytest.mark.slow
def test_in_gibbs_beside_nuts():
    energy, matrix = prior_of(2, 1, 0.15), seen_through(2)
    _, data = data_from(energy, matrix)
    walker = neb.WalkJumpKernel(model=linear_model, num_steps=20, adapt_step_size=True)
    kernel = Gibbs([(walker, ["x_y"]), (NUTS(linear_model), None)])
    mcmc = MCMC(kernel, num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0), energy, matrix, data)
    x = np.asarray(mcmc.get_samples()["x"], float)
    mean, sd = exact_posterior(energy, matrix, data)
    ess = effective_sample_size(x[None])
    # One percent for the estimates of ess; both blocks are exact.
    targets.within(x.mean(0), mean, sd / np.sqrt(ess))
    targets.within(x.var(0), sd**2, sd**2 * np.sqrt(2 / ess) + 0.01 * sd**2)


@pytest.fixture(scope="module")
def trained():
    train, _ = digits_prior.digits()
    return digits_prior.trained(train)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("problem", "covariance", "depth"),
    [("in-painting", "full", 3), ("compressed sensing", "isotropic", 4)],
)
def test_inverse_problems_on_digits(problem, covariance, depth, trained):
    train, held_out = digits_prior.digits()
    matrix, x = digits_prior.operators()[problem], held_out[:50]
    gaussian = digits_prior.reconstruct(digits_prior.gaussian(train), matrix, x, max_tree_depth=6)
    prior = digits_prior.learned(trained, covariance)
    learned = digits_prior.reconstruct(prior, matrix, x, max_tree_depth=depth)
    assert learned.mean_squared_error < 0.85 * gaussian.mean_squared_error
    assert 0.85 < learned.coverage < 0.95


def test_wrong_arguments(untyped):
    energy = prior_of(2, 1, 0.15)
    with pytest.raises(TypeError, match="name must be a string, got int"):
        neb.learned_prior(3, energy)
    with pytest.raises(TypeError, match=r"energy must be a numpyro_neb.AbstractEnergy, got int"):
        neb.learned_prior("x", 3)
    with pytest.raises(ValueError, match=r"covariance must be .* got .dense."):
        neb.learned_prior("x", energy, "dense")


NORMAL = targets.gaussian([1.0, 1.0], 0.3)


def seen_once(data):
    x = neb.learned_prior("x", NORMAL)
    numpyro.sample("data", dist.Normal(x, 1.0).to_event(1), obs=data)


def test_outside_of_a_model():
    with pytest.raises(RuntimeError, match="learned_prior must be called inside a NumPyro model"):
        neb.learned_prior("x", targets.gaussian([1.0, 1.0], 0.3))


def test_summaries_leave_out_how_x_is_drawn():
    mcmc = MCMC(neb.WalkJumpKernel(model=seen_once), num_warmup=5, num_samples=8)
    mcmc.run(jax.random.key(0), jnp.array([2.0, 0.0]))
    draws = Predictive(seen_once, num_samples=3)(jax.random.key(1), None)
    short, whole = (neb.to_arviz(mcmc, prior=draws, latents=keep) for keep in (False, True))
    for group in ("posterior", "prior"):
        assert set(short[group].data_vars) == {"x", "x_projected"}
        extra = {"x_y", "x_eps", "x_y_jump"}
        assert set(whole[group].data_vars) == {"x", "x_projected"} | extra


def test_is_compiled_once():
    """A second call outside of compiled code traces nothing."""
    traced = []

    class Counted(targets.Wrapped):
        def __call__(self, y):
            traced.append(y)
            return super().__call__(y)

    energy = Counted(targets.gaussian([1.0, 1.0], 0.3))
    values = {"x_y": jnp.ones(2), "x_eps": jnp.zeros(2)}
    model = numpyro.handlers.substitute(lambda: neb.learned_prior("x", energy), values)
    # 1 / (1 + 0.3^2) of y
    np.testing.assert_allclose(numpyro.handlers.seed(model, 0)(), 1 / 1.09, rtol=1e-5)
    count = len(traced)
    numpyro.handlers.seed(model, 0)()
    assert len(traced) == count
