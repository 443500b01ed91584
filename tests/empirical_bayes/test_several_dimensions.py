"""A covariance for each observation, projections and missing coordinates."""

import numpy as np
import pytest
from scipy import stats

import numpyro_neb as neb

pytestmark = pytest.mark.statistical


def spread_out(n=300, seed=0):
    """Points on a circle, each with a covariance of its own."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    x = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    roots = 0.4 * rng.normal(size=(n, 2, 2))
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(2)
    return (
        x,
        x
        + stats.multivariate_normal.rvs(size=n, cov=np.eye(2), random_state=seed)[
            :, None
        ].__matmul__(np.linalg.cholesky(covariances).swapaxes(1, 2))[:, 0],
        covariances,
    )


def textbook(fit, y, covariances, projection):
    """The likelihood of each observation under each point mass."""
    return np.array(
        [
            [stats.multivariate_normal.pdf(own, maps @ m, cov) for m in fit.locs]
            for own, cov, maps in zip(y, covariances, projection, strict=True)
        ]
    )


def test_the_four_outside_the_hull():
    """Two pairs with precisions .2 and 20: the maximum is at (+-.9901, +-.9901), -7.747548."""
    y = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
    precisions = np.array([np.diag([0.2, 20.0])] * 2 + [np.diag([20.0, 0.2])] * 2)
    fit = neb.fit_mixture(y, np.linalg.inv(precisions), max_gap=1e-6)
    assert fit.log_likelihood == pytest.approx(-7.747548, abs=1e-5)
    np.testing.assert_allclose(np.abs(fit.locs), 0.9901, atol=1e-3)


def test_the_moments_are_the_textbooks():
    """Of X given y at the fitted point masses."""
    _, y, covariances = spread_out(80)
    fit = neb.fit_mixture(y, covariances)
    each = textbook(fit, y, covariances, np.broadcast_to(np.eye(2), (80, 2, 2))) * fit.weights
    np.testing.assert_allclose(fit.log_likelihoods, np.log(each.sum(1)), rtol=1e-7)
    shares = each / each.sum(1, keepdims=True)
    np.testing.assert_allclose(fit.posterior_mean, shares @ fit.locs, atol=1e-7)
    np.testing.assert_allclose(np.asarray(fit.posterior.mean), shares @ fit.locs, atol=1e-4)


def test_isotropic_covariances_are_the_plain_fit():
    """sigma^2 I on the same locations gives what a scalar sigma gives."""
    _, y, _ = spread_out(150)
    locs = np.stack(np.meshgrid(np.linspace(-3, 3, 9), np.linspace(-3, 3, 9)), -1).reshape(-1, 2)
    sigma = np.random.default_rng(0).uniform(0.4, 0.8, 150)
    plain = neb.fit_mixture(y, sigma, locs=locs, max_gap=1e-6)
    whole = neb.fit_mixture(y, sigma[:, None, None] ** 2 * np.eye(2), locs=locs, max_gap=1e-6)
    assert whole.log_likelihood == pytest.approx(plain.log_likelihood, abs=2e-6)
    np.testing.assert_allclose(whole.posterior_mean, plain.posterior_mean, atol=1e-3)


def test_it_is_the_maximum_and_better_than_the_observations():
    """Point masses move, to a higher likelihood than on the observations."""
    x, y, covariances = spread_out()
    fit = neb.fit_mixture(y, covariances, max_gap=1e-3)
    on_data = neb.fit_mixture(y, covariances, locs=y, max_gap=1e-3)
    assert fit.log_likelihood > on_data.log_likelihood - 1e-3
    error = lambda estimate: np.mean(np.sum((estimate - x) ** 2, 1))  # noqa: E731
    assert error(fit.posterior_mean) < 0.8 * error(y)


def test_a_projection_and_a_missing_coordinate():
    """Seeing only x_1 + x_2 of some rows, and only x_1 of others, is the marginal likelihood."""
    _, y, covariances = spread_out(60)
    projection = np.broadcast_to(np.eye(2), (60, 2, 2)).copy()
    y = y.copy()
    y[::3, 1] = np.nan
    locs = np.stack(np.meshgrid(np.linspace(-3, 3, 7), np.linspace(-3, 3, 7)), -1).reshape(-1, 2)
    fit = neb.fit_mixture(y, covariances, locs=locs)
    each = textbook(fit, np.nan_to_num(y), covariances, projection)
    for j in range(0, 60, 3):
        each[j] = stats.norm.pdf(y[j, 0], fit.locs[:, 0], np.sqrt(covariances[j, 0, 0]))
    np.testing.assert_allclose(fit.log_likelihoods, np.log(each @ fit.weights), rtol=1e-7)
    sums = np.array([[1.0, 1.0]])
    seen = neb.fit_mixture(np.nansum(y, 1)[:, None], np.full((60, 1, 1), 0.3), projection=sums)
    assert seen.posterior_mean.shape == (60, 2)
    ones = stats.norm.pdf(np.nansum(y, 1)[:, None], seen.locs.sum(1), np.sqrt(0.3))
    np.testing.assert_allclose(seen.log_likelihoods, np.log(ones @ seen.weights), rtol=1e-7)


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (np.array([[[1.0, 2.0], [2.0, 1.0]]] * 3), "sigma must hold symmetric, positive definite"),
        (np.ones((3, 2, 3)), r"sigma must have shape \(3, 2, 2\)"),
    ],
)
def test_bad_covariances(sigma, message, untyped):
    """A message that names the argument."""
    with pytest.raises(ValueError, match=message):
        neb.fit_mixture(np.zeros((3, 2)), sigma)
