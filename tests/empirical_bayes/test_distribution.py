"""The laws of X given Y against the textbook's, in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from numpyro.distributions import Distribution
from scipy import special, stats

import numpyro_neb as neb
from benchmarks.timing import compilations
from numpyro_neb.empirical_bayes import (
    LinearisedPosterior,
    MixturePosterior,
    PosteriorDistribution,
)
from numpyro_neb.empirical_bayes.distribution import stacked
from numpyro_neb.empirical_bayes.mixture_fit import MixtureFit
from numpyro_neb.empirical_bayes.observations import NormalObservations, Prior

pytestmark = pytest.mark.statistical

RNG = np.random.default_rng(3)
LOCS = RNG.normal(size=(4, 2)) * 2 + 1
LOG_WEIGHTS = RNG.normal(size=4)
ROOT = RNG.normal(size=(4, 2, 2))
COVARIANCES = ROOT @ ROOT.swapaxes(1, 2)
SIGMA = 0.8
Y = RNG.normal(size=(3, 2)) * 2
# The noise of each observation, one after another.
SIGMAS = np.array([0.5, 0.8, 1.3])


def textbook(y, sigma, covariances=COVARIANCES):
    """Weights, means and covariances of X given y, by conditioning each component's Gaussian."""
    logs, means, within = [], [], []
    for log_weight, m, c in zip(LOG_WEIGHTS, LOCS, covariances, strict=True):
        total = c + sigma**2 * np.eye(2)
        gain = c @ np.linalg.inv(total)
        logs.append(log_weight + stats.multivariate_normal.logpdf(y, m, total))
        means.append(m + gain @ (y - m))
        within.append(c - gain @ c)
    return special.softmax(logs), np.array(means), np.array(within)


def moments(weights, means, within):
    mean = weights @ means
    centred = means - mean
    between = np.einsum("k,ki,kj->ij", weights, centred, centred)
    return mean, between + np.tensordot(weights, within, 1)


def exact(energy, y, sigmas=None):
    """The mixture's law, at a sigma of each observation's own if given."""
    batch = y.shape[: y.ndim - len(energy.event_shape)]
    sigma = jnp.broadcast_to(energy.sigma, batch) if sigmas is None else sigmas
    make = eqx.Partial(MixturePosterior, energy.components)
    return PosteriorDistribution(stacked(make, batch, sigma, y))


def matched(mean, covariance, sigma=1.0):
    """The Gaussian with these moments, of an energy whose jump is linear."""

    def one(mean, covariance):
        jump = lambda y: mean + (covariance @ y.reshape(-1) / sigma**2).reshape(mean.shape)  # noqa: E731
        level = jnp.asarray(sigma, mean.dtype)
        return LinearisedPosterior(jump, level, jnp.zeros_like(mean))

    return PosteriorDistribution(stacked(one, covariance.shape[:-2], mean, covariance))


def mixture(covariances=COVARIANCES):
    return neb.MixtureEnergy(LOCS, SIGMA, LOG_WEIGHTS, covariances)


def posterior(covariances=COVARIANCES, sigmas=None):
    return exact(mixture(covariances), jnp.asarray(Y), sigmas)


@pytest.mark.parametrize("covariances", [COVARIANCES, None], ids=["Gaussians", "atoms"])
@pytest.mark.parametrize("sigmas", [None, SIGMAS], ids=["one sigma", "one each"])
def test_moments(covariances, sigmas, x64, strict):
    found = posterior(covariances, None if sigmas is None else jnp.asarray(sigmas))
    full = np.zeros((4, 2, 2)) if covariances is None else covariances
    for i, y in enumerate(Y):
        mean, covariance = moments(*textbook(y, SIGMA if sigmas is None else sigmas[i], full))
        np.testing.assert_allclose(found.mean[i], mean, rtol=1e-10)
        np.testing.assert_allclose(found.variance[i], np.diag(covariance), rtol=1e-9)
        np.testing.assert_allclose(found.covariance_matrix[i], covariance, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(found.stddev[i], np.sqrt(np.diag(covariance)), rtol=1e-9)


def test_the_marginals_of_gaussian_components(x64):
    found = posterior()
    value, q = 0.3, np.array([0.001, 0.05, 0.5, 0.9])
    quantiles = np.stack([found.icdf(p) for p in q])
    for i, y in enumerate(Y):
        weights, means, within = textbook(y, SIGMA)
        for j in range(2):
            scales = np.sqrt(within[:, j, j])
            cdf = lambda t, m=means[:, j], s=scales: weights @ stats.norm.cdf((t - m) / s)  # noqa: B023, E731
            np.testing.assert_allclose(found.cdf(value)[i, j], cdf(value), rtol=1e-10)
            np.testing.assert_allclose([cdf(t) for t in quantiles[:, i, j]], q, rtol=1e-4)
            np.testing.assert_allclose(found.lfsr[i, j], min(cdf(0), 1 - cdf(0)), rtol=1e-8)
    lower, upper = found.interval(0.8)
    np.testing.assert_allclose(found.cdf(upper) - found.cdf(lower), 0.8, rtol=1e-4)


def test_the_marginals_of_atoms(x64):
    """Point masses: steps, the sign of an atom at zero on both sides, quantiles that are atoms."""
    energy = neb.MixtureEnergy(jnp.array([2.0, 0.0, -1.0]), 1.0)
    y = jnp.array([0.4, -3.0, 2.5])
    weights = np.exp(-((np.asarray(y)[:, None] - [-1.0, 0.0, 2.0]) ** 2) / 2)
    negative, zero, positive = (weights / weights.sum(1, keepdims=True)).T
    found = exact(energy, y)
    np.testing.assert_allclose(found.cdf(-1.0), negative)
    np.testing.assert_allclose(found.cdf(-1.0001), 0)
    np.testing.assert_allclose(found.cdf(1.9), negative + zero)
    np.testing.assert_allclose(found.lfsr, np.minimum(negative + zero, zero + positive))
    assert np.all(found.icdf(negative - 1e-9) == -1)
    assert np.all(found.icdf(negative + 1e-9) == 0)
    assert np.all(found.icdf(negative + zero + 1e-9) == 2)
    assert np.all(found.icdf(1.0) == 2)


def test_float32_quantile_of_one_is_the_last_atom(x32):
    energy = neb.MixtureEnergy(jnp.linspace(-3, 3, 1001), 1.0)
    found = exact(energy, jnp.linspace(-1, 1, 7))
    # The sum of a thousand responsibilities is not exactly one.
    assert np.all(found.icdf(1.0) > 2.9)
    assert np.all(np.diff(np.stack([found.icdf(q) for q in (0.1, 0.5, 0.9)]), axis=0) > 0)


def test_log_prob_of_gaussians(x64):
    found, x = posterior(), RNG.normal(size=(5, 3, 2))
    log_prob = found.log_prob(x)
    for i, y in enumerate(Y):
        weights, means, within = textbook(y, SIGMA)
        logs = [
            stats.multivariate_normal.logpdf(x[:, i], m, c)
            for m, c in zip(means, within, strict=True)
        ]
        expected = special.logsumexp(logs, b=weights[:, None], axis=0)
        np.testing.assert_allclose(log_prob[:, i], expected, rtol=1e-9)


def test_log_prob_of_atoms(x64):
    found = posterior(None)
    weights = np.array([textbook(y, SIGMA, np.zeros((4, 2, 2)))[0] for y in Y])
    for i, m in enumerate(LOCS):
        at = jnp.broadcast_to(jnp.asarray(m), (3, 2))
        np.testing.assert_allclose(found.log_prob(at), np.log(weights[:, i]), rtol=1e-9)
    assert np.all(found.log_prob(jnp.asarray(Y)) == -np.inf)


def test_log_prob_needs_a_density():
    flat = neb.MixtureEnergy(
        jnp.zeros((1, 2)), 1.0, covariances=jnp.diag(jnp.array([1.0, 0.0]))[None]
    )
    with pytest.raises(ValueError, match="covariances are positive definite"):
        exact(flat, jnp.zeros(2)).log_prob(jnp.zeros(2))


@pytest.mark.parametrize("covariances", [COVARIANCES, None], ids=["Gaussians", "atoms"])
def test_draws_have_the_law(covariances):
    found = posterior(covariances)
    n = 20_000
    x = np.asarray(found.sample(jax.random.key(0), (2, n // 2)), float)
    assert x.shape == (2, n // 2, 3, 2)
    x = x.reshape(n, 3, 2)
    full = np.zeros((4, 2, 2)) if covariances is None else covariances
    for i, y in enumerate(Y):
        mean, covariance = moments(*textbook(y, SIGMA, full))
        targets.within(x[:, i].mean(0), mean, x[:, i].std(0) / np.sqrt(n))
        products = np.einsum("ni,nj->nij", x[:, i] - mean, x[:, i] - mean)
        targets.within(products.mean(0), covariance, products.std(0) / np.sqrt(n))
    if covariances is not None:
        # Not just the moments: each coordinate's uniform under its own distribution function.
        for i in range(3):
            u = [exact(mixture(), jnp.broadcast_to(Y[i], (n, 2))).cdf(x[:, i])]
            for j in range(2):
                distance = stats.kstest(np.asarray(u[0])[:, j], "uniform").statistic
                assert distance < targets.KOLMOGOROV / np.sqrt(n)


def test_draws_of_different_observations_are_independent():
    energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), 1.0)
    x = exact(energy, jnp.zeros(2)).sample(jax.random.key(0), (10_000,))
    targets.within(np.mean(np.asarray(x[:, 0] * x[:, 1])), 0, 1 / 100)


def test_is_a_distribution_that_passes_through_transformations():
    found = posterior()
    assert isinstance(found, Distribution)
    assert found.batch_shape == (3,)
    assert found.event_shape == (2,)
    flat, tree = jax.tree.flatten(found)
    np.testing.assert_allclose(jax.tree.unflatten(tree, flat).mean, found.mean)
    np.testing.assert_allclose(jax.jit(lambda p: p.variance)(found), found.variance, rtol=1e-5)
    wide = found.expand((5, 3))
    assert wide.sample(jax.random.key(0)).shape == (5, 3, 2)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_any_batch(batch):
    found = exact(mixture(), jnp.zeros((*batch, 2)))
    assert found.mean.shape == found.variance.shape == found.lfsr.shape == (*batch, 2)
    assert found.icdf(0.3).shape == found.cdf(0.3).shape == (*batch, 2)
    assert found.covariance_matrix.shape == (*batch, 2, 2)
    assert found.sample(jax.random.key(0), (4,)).shape == (4, *batch, 2)


def test_many_components_go_a_few_observations_at_a_time(monkeypatch):
    found = posterior()
    whole = found.mean, found.variance, found.icdf(0.2)
    monkeypatch.setattr("numpyro_neb.posteriors.base._NUMBERS", 16)
    parts = found.mean, found.variance, found.icdf(0.2)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_gaussian_of_matched_moments(x64):
    covariance = ROOT[0] @ ROOT[0].T
    mean = np.array([0.3, -0.5])
    found = matched(jnp.asarray(mean), jnp.asarray(covariance))
    textbook = stats.multivariate_normal(mean, covariance)
    x = RNG.normal(size=(4, 2))
    np.testing.assert_allclose(found.log_prob(x), textbook.logpdf(x), rtol=1e-9)
    np.testing.assert_allclose(found.covariance_matrix, covariance, rtol=1e-9)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found.stddev, scale)
    np.testing.assert_allclose(found.icdf(0.1), stats.norm.ppf(0.1, mean, scale))
    np.testing.assert_allclose(found.cdf(0.1), stats.norm.cdf(0.1, mean, scale))
    np.testing.assert_allclose(found.lfsr, stats.norm.cdf(-np.abs(mean) / scale))
    assert found.projected == 0


def test_the_gaussians_draws_have_its_moments():
    covariance = ROOT[:3] @ ROOT[:3].swapaxes(1, 2)
    found = matched(jnp.asarray(Y, float), jnp.asarray(covariance, float))
    x = np.asarray(found.sample(jax.random.key(0), (20_000,)), float)
    targets.within(x.mean(0), Y, x.std(0) / np.sqrt(len(x)))
    products = np.einsum("nki,nkj->nkij", x - Y, x - Y)
    targets.within(products.mean(0), covariance, products.std(0) / np.sqrt(len(x)))


def test_a_covariance_that_is_none_is_projected():
    found = matched(jnp.zeros((2, 1)), jnp.diag(jnp.array([1.0, -0.5])), sigma=0.1)
    assert found.event_shape == (2, 1)
    np.testing.assert_allclose(found.projected, 0.5)
    np.testing.assert_allclose(found.variance.reshape(-1), [1.0, 0.0], atol=1e-6)
    assert jnp.isfinite(found.log_prob(jnp.zeros((2, 1))))
    assert found.sample(jax.random.key(0), (3,)).shape == (3, 2, 1)


def test_draws_need_a_key():
    assert not posterior().has_rsample
    for found in (posterior(), matched(jnp.zeros(2), jnp.eye(2))):
        with pytest.raises(TypeError, match="key must be a JAX random key"):
            found.sample(None)


def test_a_mixture_of_images():
    locs = jax.random.normal(jax.random.key(0), (5, 2, 3))
    energy = neb.MixtureEnergy(locs, 0.5)
    flat = neb.MixtureEnergy(locs.reshape(5, 6), 0.5)
    y = locs[:2] + 0.5
    one, other = exact(energy, y), exact(flat, y.reshape(2, 6))
    for name in ("mean", "variance", "lfsr"):
        image, row = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(image.reshape(2, 6), row, rtol=1e-5)
    np.testing.assert_allclose(one.icdf(0.7).reshape(2, 6), other.icdf(0.7))
    np.testing.assert_allclose(one.log_prob(locs[1]), other.log_prob(locs[1].reshape(6)), rtol=1e-5)


def test_gradients_flow_through_the_moments(x64):
    energy = neb.MixtureEnergy(LOCS, SIGMA, LOG_WEIGHTS, COVARIANCES)
    y = jnp.asarray(Y)  # not under jit, where JAX remembers the float64 of a NumPy array for good

    def spread(sigma):
        return jnp.sum(exact(energy.at(sigma), y).variance)

    slope = eqx.filter_jit(jax.grad(spread))(SIGMA)
    np.testing.assert_allclose(
        slope, (spread(SIGMA + 1e-5) - spread(SIGMA - 1e-5)) / 2e-5, rtol=1e-6
    )


@pytest.mark.parametrize("spread", [None, 1.0])
def test_small_sign_rates_keep_their_digits(spread):
    """A symmetric prior: the rate of -y is that of y, down to the smallest."""
    covariances = None if spread is None else jnp.full((2, 1, 1), 0.05)
    energy = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), 0.3, None, covariances)
    y = jnp.array([0.1, 0.8, 1.5])
    positive, negative = exact(energy, y).lfsr, exact(energy, -y).lfsr
    np.testing.assert_allclose(positive, negative, rtol=1e-3)
    assert np.all(positive > 0)
    if spread is None:
        np.testing.assert_allclose(positive, 1 / (1 + np.exp(2 * y / 0.09)), rtol=1e-4)


def test_log_prob_in_the_tails(x64):
    """Where a component's responsibility is too small for a float, its log is not."""
    locs, covariances = jnp.array([0.0, 20.0]), jnp.full((2, 1, 1), 0.01)
    energy = neb.MixtureEnergy(locs.astype(jnp.float32), 1.0, None, covariances)
    energy = jax.tree.map(lambda a: a.astype(jnp.float32), energy)
    wide = neb.MixtureEnergy(locs, 1.0, None, covariances)
    y, x = jnp.array(20.0), jnp.array(0.2)
    found = exact(energy, y.astype(jnp.float32)).log_prob(x.astype(jnp.float32))
    np.testing.assert_allclose(found, exact(wide, y).log_prob(x), rtol=1e-4)
    atoms = neb.MixtureEnergy(locs, 1.0)
    np.testing.assert_allclose(exact(atoms, y).log_prob(0.0), -200.0, rtol=1e-6)


def test_distribution_functions_take_many_values():
    """As in NumPyro: leading dimensions are draws, for either posterior."""
    mixed = posterior()
    for law in (mixed, matched(mixed.mean, mixed.covariance_matrix)):
        x = law.sample(jax.random.key(0), (5,))
        assert law.cdf(x).shape == (*law.log_prob(x).shape, 2) == (5, 3, 2)
        np.testing.assert_allclose(law.icdf(law.cdf(x)), x, atol=2e-3)
        q = jnp.array([0.1, 0.5, 0.9]).reshape(3, 1, 1)
        assert law.icdf(q).shape == (3, 3, 2)
        np.testing.assert_allclose(law.icdf(q)[1], law.icdf(0.5), atol=1e-5)
    atoms = posterior(None)
    assert np.all(np.isnan(atoms.icdf(1.5)))


def test_a_gaussian_draw_has_a_derivative():
    def draw(scale):
        law = matched(jnp.zeros(2), scale**2 * jnp.diag(jnp.array([1.0, 4.0])))
        assert law.has_rsample
        return law.rsample(jax.random.key(0))

    np.testing.assert_allclose(jax.jacfwd(draw)(2.0), draw(1.0), rtol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 1.0, 90.0])
def test_no_such_interval(probability):
    with pytest.raises(ValueError, match="probability must be between 0 and 1, got"):
        posterior().interval(probability)


def test_sigma_of_each_has_to_be_positive():
    with pytest.raises(ValueError, match="sigma must be positive"):
        posterior(sigmas=jnp.array([0.5, 0.0, 1.0]))


def test_fits_of_other_numbers_of_components_share_what_is_compiled(x32):
    y = np.linspace(-3, 3, 20)

    def fit(count):
        weights = np.arange(1.0, count + 1)
        prior = Prior("npmle", np.linspace(-2, 2, count), np.zeros(count), weights / weights.sum())
        return MixtureFit(prior, NormalObservations(y, np.ones(20), None), 0.0, 1, 1.0, 0.0)

    fits = [fit(count) for count in (5, 7)]
    first, _ = fits[0].posterior.interval(0.9), fits[0].energy
    with compilations() as compiling:
        second = fits[1].posterior.interval(0.9)
    assert compiling == []
    for fitted, found in zip(fits, (first, second), strict=True):
        exact = neb.empirical_bayes.credible_interval(fitted.energy, y.astype(np.float32), 0.9)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
        assert fitted.energy.locs.shape == fitted.locs.shape  # without those of weight zero
