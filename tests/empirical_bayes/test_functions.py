from functools import partial

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import numpyro
import pytest
import targets
from numpyro.infer import Predictive
from scipy import stats

import numpyro_neb as neb
from numpyro_neb import empirical_bayes
from numpyro_neb._internal import batching
from numpyro_neb.empirical_bayes import LinearisedPosterior, MixturePosterior

MIXTURE = targets.skewed_mixture()


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("as_numpy", [True, False])
def test_over_any_batch(batch, as_numpy):
    y = np.random.default_rng(0).normal(size=(*batch, 2)).astype(np.float32)
    mean = neb.posterior_mean(MIXTURE, y if as_numpy else jnp.asarray(y))
    assert mean.shape == y.shape
    each = [MIXTURE.denoise(jnp.asarray(yi)) for yi in y.reshape(-1, 2)]
    np.testing.assert_allclose(mean.reshape(-1, 2), np.reshape(each, (-1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("n", [7, 8, 9, 16, 17])
def test_chunks_do_not_show(n):
    y = MIXTURE.sample(jax.random.key(0), (n,))
    whole = jax.vmap(MIXTURE.denoise)(y)
    np.testing.assert_allclose(
        neb.posterior_mean(MIXTURE, y, chunk_size=8), whole, rtol=1e-5, atol=1e-6
    )


def test_memory_is_that_of_a_chunk():
    """No array that the compiled program makes is longer than a chunk."""
    longest = []

    class Watched(targets.Wrapped):
        def denoise(self, y):
            batched = jax.custom_batching.custom_vmap(lambda y: y)

            @batched.def_vmap
            def watch(axis_size, in_batched, y):
                longest.append(axis_size)
                return y, in_batched[0]

            return batched(super().denoise(y))

    energy = Watched(neb.MixtureEnergy(jnp.array([[-1.0], [1.0]]), 0.5))
    y = np.zeros((1_000_000, 1), np.float32)
    assert neb.posterior_mean(energy, y, chunk_size=50_000).shape == y.shape
    assert longest == [50_000]


def test_inside_transformations():
    y = MIXTURE.sample(jax.random.key(0), (6,))
    whole = jax.vmap(MIXTURE.denoise)(y)
    mean = lambda y: neb.posterior_mean(MIXTURE, y, chunk_size=2)  # noqa: E731
    np.testing.assert_allclose(jax.jit(mean)(y), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(mean)(y), whole, rtol=1e-5, atol=1e-6)


def test_minimises_the_squared_error():
    """E norm(x - x_hat)^2 is the trace of E Cov(X given Y); any other estimator is worse."""
    s, sigma = np.array([0.5, 2.0]), 1.0
    energy = targets.gaussian(s, sigma)
    rng = np.random.default_rng(0)
    x = s * rng.normal(size=(50_000, 2))
    y = x + sigma * rng.normal(size=x.shape)
    errors = np.sum((x - neb.posterior_mean(energy, y.astype(np.float32))) ** 2, axis=1)
    exact = np.sum(s**2 * sigma**2 / (s**2 + sigma**2))
    targets.within(errors.mean(), exact, errors.std() / np.sqrt(len(x)))


def test_an_energy_that_is_traced_in_many_chunks():
    """Derivatives with respect to the energy, at batches of one chunk and of more."""
    y = jnp.linspace(-1, 1, 9).reshape(9, 1)
    energy = neb.MixtureEnergy(jnp.array([[-1.0], [1.0]]), 0.5)
    total = lambda s, size: neb.posterior_mean(energy.at(s), y, chunk_size=size)[-1, 0]  # noqa: E731
    slopes = [jax.grad(total)(0.5, size) for size in (4, 9)]
    np.testing.assert_allclose(*slopes, rtol=1e-5)
    spread = jax.grad(lambda s: neb.posterior_std(energy.at(s), jnp.full((3, 1), 50.0)).sum())
    assert jnp.isfinite(spread(0.1))  # no variance is left there


@pytest.mark.parametrize(
    "ask",
    [
        neb.posterior_mean,
        neb.posterior_std,
        neb.posterior_covariance,
        neb.posterior_distribution,
        empirical_bayes.credible_interval,
        empirical_bayes.local_false_sign_rate,
        partial(empirical_bayes.posterior_components, num_components=1),
    ],
)
def test_observations_have_to_be_finite(ask):
    with pytest.raises(ValueError, match="y must be finite, got NaN or infinity"):
        ask(MIXTURE, np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32))


@pytest.mark.statistical
def test_components_of_a_large_mixture_stay_small():
    """No array of probes x components x dimensions; and an empty batch has none."""
    energy = neb.MixtureEnergy(jax.random.normal(jax.random.key(0), (5000, 30)), 1.0)
    find = lambda y: empirical_bayes.posterior_components(energy, y, 4)  # noqa: E731
    largest = max(np.prod(shape) for shape in targets.array_shapes(find, jnp.zeros((3, 30))))
    assert largest <= 3 * 2048 * 30
    assert find(jnp.zeros((0, 30))).components.shape == (0, 4, 30)


def images(sigma=0.6):
    """A mixture over events of shape (2, 3)."""
    rng = np.random.default_rng(5)
    root = rng.normal(size=(5, 6, 6)) / 3
    locs = rng.normal(size=(5, 2, 3))
    return neb.MixtureEnergy(locs, sigma, covariances=root @ root.swapaxes(1, 2))


POINTS = np.random.default_rng(6).normal(size=(2, 3, 2, 3)) * 1.5


@pytest.mark.statistical
@pytest.mark.parametrize(
    "form", [images, lambda: targets.Wrapped(images())], ids=["exact", "derivatives"]
)
def test_covariance_is_that_of_the_textbook(form, x64, strict):
    """Second-order Tweedie: sigma^2 (I - sigma^2 Hess phi), by brute force."""
    mixture, y = images(), jnp.asarray(POINTS)
    flat = np.asarray(mixture.locs).reshape(5, 6)
    covariances = np.einsum("kij,kj,klj->kil", mixture.axes, mixture.spreads, mixture.axes)
    weights = np.asarray(mixture.log_weights)
    full = neb.posterior_covariance(form(), y, chunk_size=4)
    assert full.shape == (2, 3, 6, 6)
    for at, found in zip(POINTS.reshape(6, 6), full.reshape(6, 6, 6), strict=True):
        hessian = targets.brute_force(flat, 0.6, weights, covariances, at)[2]
        np.testing.assert_allclose(found, 0.36 * (np.eye(6) - 0.36 * hessian), atol=1e-9)
    diagonal = jnp.diagonal(full, axis1=-2, axis2=-1).reshape(y.shape)
    variances = neb.posterior_covariance(form(), y, "diagonal", chunk_size=4)
    np.testing.assert_allclose(variances, diagonal, rtol=1e-8)
    std = neb.posterior_std(form(), y, chunk_size=4)
    np.testing.assert_allclose(std, jnp.sqrt(diagonal), rtol=1e-8)
    operator = neb.posterior_covariance(form(), y, "operator")
    v = jnp.asarray(np.random.default_rng(7).normal(size=y.shape))
    product = jnp.einsum("abij,abj->abi", full, v.reshape(2, 3, 6)).reshape(y.shape)
    np.testing.assert_allclose(operator.mv(v), product, rtol=1e-7, atol=1e-9)
    assert lineax.is_symmetric(operator)


@pytest.mark.statistical
@pytest.mark.parametrize(
    "form", [images, lambda: targets.Wrapped(images())], ids=["exact", "derivatives"]
)
def test_components_are_the_leading_eigenvectors(form, x64):
    y = jnp.asarray(POINTS)
    values, vectors = np.linalg.eigh(neb.posterior_covariance(images(), y))
    found = empirical_bayes.posterior_components(form(), y, 2, tolerance=1e-7, chunk_size=4)
    np.testing.assert_allclose(found.variances, values[..., ::-1][..., :2], rtol=1e-8)
    components = found.components.reshape(2, 3, 2, 6)
    leading = np.swapaxes(vectors[..., ::-1][..., :2], -1, -2)
    np.testing.assert_allclose(np.abs(np.sum(components * leading, -1)), 1, rtol=1e-6)
    assert np.all(found.residuals < 1e-7)


@pytest.mark.statistical
def test_components_in_784_dimensions_need_no_matrix():
    """A random walk energy of 784 dimensions: dense eigenvectors, and no array of 784 x 784."""
    key = jax.random.key(0)
    network = neb.networks.MLP((28, 28), width_size=64, depth=2, key=key)
    energy = neb.ResidualEnergy(network, 1.0, (28, 28))
    y = jax.random.normal(key, (28, 28))
    components = partial(empirical_bayes.posterior_components, energy, num_components=5)
    assert (784, 784) not in targets.array_shapes(components, y)
    found = components(y, max_iterations=500)
    values, vectors = np.linalg.eigh(neb.posterior_covariance(energy, y))
    np.testing.assert_allclose(found.variances, values[::-1][:5], rtol=1e-3)
    # A vector's error is its residual over the gap to the next one; their span's is smaller.
    span = vectors[:, ::-1][:, :8]
    inside = np.linalg.norm(found.components.reshape(5, 784) @ span, axis=1)
    np.testing.assert_allclose(inside, 1, atol=5e-3)


@pytest.mark.statistical
def test_components_of_a_few_iterations_say_how_far_they_are():
    y = jnp.asarray(POINTS[0, 0], jnp.float32)
    locs = np.random.default_rng(0).normal(size=(200, 2, 3)).astype(np.float32)
    energy = neb.MixtureEnergy(locs, 0.8)
    done = empirical_bayes.posterior_components(energy, y, 1)
    assert done.residuals.shape == done.variances.shape == (1,)
    assert np.all(done.residuals < 1e-3)
    image = neb.posterior_covariance(energy, y) @ done.components.reshape(6)
    distance = np.linalg.norm(image - done.variances[0] * done.components.reshape(6))
    assert distance < 2e-3 * done.variances[0]


def test_distribution_is_exact_or_matches_moments():
    mixture, y = images(), jnp.asarray(POINTS, float)
    exact = neb.posterior_distribution(mixture, y)
    matched = neb.posterior_distribution(targets.Wrapped(mixture), y)
    assert isinstance(exact.posteriors, MixturePosterior)
    assert isinstance(matched.posteriors, LinearisedPosterior)
    for law in (exact, matched):
        assert law.batch_shape == (2, 3)
        assert law.event_shape == (2, 3)
        np.testing.assert_allclose(law.mean, neb.posterior_mean(mixture, y), atol=1e-5)
        np.testing.assert_allclose(law.stddev, neb.posterior_std(mixture, y), rtol=1e-3)


def test_inside_a_model():
    """A posterior is a distribution like any other."""

    def model(y):
        numpyro.sample("x", neb.posterior_distribution(images(), y))

    y = jnp.asarray(POINTS[0, 0], float)
    draws = Predictive(model, num_samples=7)(jax.random.key(0), y)["x"]
    assert draws.shape == (7, 2, 3)


@pytest.mark.parametrize("form", [lambda e: e, targets.Wrapped], ids=["exact", "derivatives"])
def test_intervals_cover(form):
    """x ~ N(0, s^2): 90% of 20,000 intervals, within five binomial standard errors."""
    s = np.array([0.7, 1.5])
    energy = form(targets.gaussian(s, 1.0))
    rng = np.random.default_rng(0)
    x = s * rng.normal(size=(20_000, 2))
    y = (x + rng.normal(size=x.shape)).astype(np.float32)
    lower, upper = empirical_bayes.credible_interval(energy, y, 0.9, chunk_size=20_000)
    covered = np.mean((lower <= x) & (x <= upper), axis=0)
    targets.within(covered, 0.9, np.sqrt(0.9 * 0.1 / len(x)))
    # A normal prior: the mean shrinks by s^2 / (s^2 + 1), the sd is the root of it.
    shrinkage = s**2 / (s**2 + 1)
    reach = 1.6448536 * np.sqrt(shrinkage)
    np.testing.assert_allclose(lower, shrinkage * y - reach, atol=2e-3)
    np.testing.assert_allclose(upper, shrinkage * y + reach, atol=2e-3)
    rate = empirical_bayes.local_false_sign_rate(energy, y)
    exact = stats.norm.cdf(-np.abs(shrinkage * y) / np.sqrt(shrinkage))
    np.testing.assert_allclose(rate, exact, atol=1e-4)


def test_the_intervals_of_a_mixture_cover():
    """Two groups with different means: a Gaussian of matched moments would not do it as well."""
    energy = neb.MixtureEnergy(
        jnp.array([-2.0, 2.0]), 1.0, jnp.log(jnp.array([0.8, 0.2])), jnp.full((2, 1, 1), 0.1)
    )
    rng = np.random.default_rng(0)
    x = np.where(rng.random(20_000) < 0.8, -2, 2) + np.sqrt(0.1) * rng.normal(size=20_000)
    y = (x + rng.normal(size=x.shape)).astype(np.float32)
    lower, upper = empirical_bayes.credible_interval(energy, y, 0.8, chunk_size=5000)
    targets.within(np.mean((lower <= x) & (x <= upper)), 0.8, np.sqrt(0.8 * 0.2 / len(x)))
    rate = empirical_bayes.local_false_sign_rate(energy, y)
    # Those named with a rate of r are wrong about the sign at a rate of r.
    positive = neb.posterior_distribution(energy, jnp.asarray(y)).cdf(0.0) < 0.5
    wrong = positive != (x > 0)
    targets.within(np.mean(wrong), np.mean(rate), np.sqrt(np.mean(rate * (1 - rate)) / len(x)))


def test_long_work_shows_a_bar(capsys, monkeypatch):
    real = batching.tqdm
    monkeypatch.setattr(batching, "tqdm", lambda **kwargs: real(**kwargs | {"delay": 0}))
    y = np.zeros((50, 2), np.float32)
    neb.posterior_mean(MIXTURE, y, chunk_size=8)
    assert "50/50" in capsys.readouterr().err
    neb.posterior_mean(MIXTURE, y, chunk_size=8, progress_bar=False)
    assert "50" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y: neb.posterior_covariance(MIXTURE, y, "half"), "covariance must be 'full', 'd"),
        (lambda y: empirical_bayes.credible_interval(MIXTURE, y, 1.0), "probability must be betw"),
        (lambda y: empirical_bayes.posterior_components(MIXTURE, y, 3), "num_components must be"),
        (
            lambda y: empirical_bayes.posterior_components(MIXTURE, y, 0),
            "num_components must be a positive int, got 0",
        ),
        (
            lambda y: empirical_bayes.posterior_components(MIXTURE, y, 1, max_iterations=0),
            "max_iterations must be a positive int, got 0",
        ),
        (
            lambda y: empirical_bayes.posterior_components(MIXTURE, y, 1, tolerance=0.0),
            "tolerance must be positive, got 0.0",
        ),
        (lambda y: neb.posterior_std(MIXTURE, y[:, :1]), r"y must end in the event shape \(2,\)"),
        (lambda y: neb.posterior_std(MIXTURE, y, chunk_size=-1), "chunk_size must be a positive"),
    ],
)
def test_bad_arguments_of_the_others(call, message, untyped):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((4, 2)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": jnp.zeros((4, 3))}, ValueError, r"y must end in the event shape \(2,\), got"),
        ({"y": jnp.zeros(())}, ValueError, r"y must end in the event shape \(2,\), got"),
        ({"y": np.zeros((4, 2), int)}, TypeError, "y must hold floats, got int64"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be a positive int, got 0"),
    ],
)
def test_bad_arguments(arguments, error, message, untyped):
    with pytest.raises(error, match=message):
        neb.posterior_mean(**({"energy": MIXTURE, "y": jnp.zeros(2)} | arguments))
