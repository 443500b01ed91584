"""Leading eigenvalues that a random start hardly sees, and the bound on those that it misses."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy import stats

import numpyro_neb as neb
from numpyro_neb.empirical_bayes import lanczos, posterior_components

pytestmark = pytest.mark.statistical


class Spectrum(neb.AbstractEnergy):
    """Cov(X given y) = diag(y): phi'' = 1 - y for sigma = 1."""

    event_shape: tuple[int, ...] = eqx.field(static=True)
    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array

    def __call__(self, y):
        return jnp.sum(y**2 / 2 - y**3 / 6)


def energy(d, dtype=jnp.float32):
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    return Spectrum(event_shape=(d,), sigma=one, loc=zero, scale=one)


D = 60
SPECTRA = {
    "a small lead among equal ones": [0.51] + [0.5] * (D - 1),
    "two leads": [0.51, 0.51] + [0.5] * (D - 2),
    "a second lead": [0.9, 0.51] + [0.5] * (D - 2),
    "equal": [0.3] * D,
    "zero": [0.0] * D,
    "negative": [-0.2] + [-0.3] * (D - 1),
    "one positive": [0.01] + [-0.3] * (D - 1),
    "no gap": np.linspace(1, 0, D),
    "a large negative one": [0.5, 0.4, *np.linspace(0.3, 0, D - 3), -20.0],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvalues_lie_within_the_bounds(dtype, x64):
    spectra = np.array(list(SPECTRA.values()))
    y = spectra[:, np.random.default_rng(0).permutation(D)].astype(dtype)
    found = posterior_components(energy(D, dtype), y, 3, max_iterations=40)
    exact = -np.sort(-spectra)[:, :3]
    largest = np.abs(spectra).max(1, keepdims=True)
    # Sums of D products, rounded.
    rounding = 10 * np.finfo(dtype).eps * largest
    assert np.all(found.variances <= exact + rounding)
    assert np.all(exact <= found.upper + rounding)
    squares = np.asarray(found.residuals) ** 2
    assert np.all(np.abs(found.variances - exact) <= squares * np.abs(exact[:, :1]) + rounding)
    products = y[:, None] * found.components
    norms = np.linalg.norm(products - found.variances[..., None] * found.components, axis=2)
    assert np.all(norms <= found.residuals * np.abs(exact[:, :1]) + rounding)
    gram = np.einsum("nid,njd->nij", found.components, found.components)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-5)
    converged = dict(zip(SPECTRA, np.asarray(found.converged), strict=True))
    # The first two have no gaps; in float32 the rounding of -0.3 is not small beside 0.01.
    hard = {"no gap", "a large negative one"} | ({"one positive"} if dtype == np.float32 else set())
    assert {name for name, done in converged.items() if not done} == hard


@pytest.mark.parametrize(("lead", "rest"), [(0.51, 0.5), (0.9, None), (3.0, None)])
def test_a_lead_in_784_dimensions(lead, rest):
    """Of the first the start has no share, but a residual below 1e-3; of the others the residual is
    small after eight products, when the bound is still 0.25 and 1e-4 of the variance: it goes on.
    """
    y = np.linspace(0, 0.5, 784) if rest is None else np.full(784, rest)
    y[17] = lead
    found = posterior_components(energy(784), y.astype(np.float32), 1)
    np.testing.assert_allclose(found.variances, lead, rtol=1e-6)
    np.testing.assert_allclose(np.abs(found.components[0, 17]), 1, atol=1e-4)
    assert found.converged
    # By the square of the tolerance, 4 sqrt(eps).
    assert found.upper[0] < lead * (1 + 16 * np.finfo(np.float32).eps)


def test_all_steps_leave_nothing_out(x64):
    """After d products there is no bound left, and none in the complement of those found."""
    y = np.random.default_rng(1).normal(size=(4, 12))
    found = posterior_components(energy(12, float), y, 12, tolerance=1e-7)
    np.testing.assert_allclose(found.variances, -np.sort(-y), rtol=1e-10, atol=1e-12)
    assert np.all(found.upper - found.variances < 1e-13)
    assert np.all(found.converged)


def test_one_product_too_few_leaves_something_out(x64):
    found = posterior_components(
        energy(9, float), np.linspace(0, 1, 9), 1, tolerance=1e-7, max_iterations=8
    )
    assert found.variances[0] < 1 - 1e-10
    assert found.upper[0] >= 1
    assert not found.converged


def test_one_dimension():
    found = posterior_components(energy(1), np.array([[0.3], [-0.2]], np.float32), 1)
    np.testing.assert_allclose(found.variances[:, 0], [0.3, -0.2], rtol=1e-6)
    assert np.all(found.converged)


def test_too_few_products_do_not_converge():
    y = np.linspace(0, 1, 400).astype(np.float32)
    found = posterior_components(energy(400), y, 3, max_iterations=3)
    assert not found.converged
    assert found.variances[0] < 0.99
    assert found.upper[0] >= 1
    assert found.residuals[0] ** 2 >= 1 - found.variances[0]
    # The best basis of their span, of which the first vectors were not.
    table = np.asarray(found.components) * y @ np.asarray(found.components).T
    np.testing.assert_allclose(table, np.diag(found.variances), atol=1e-5)
    assert np.all(np.diff(found.variances) < 0)


def of_random_directions(n, rest, steps):
    """The largest eigenvalue, as far as found: 0.6 along a direction, and `rest` beside it."""
    d = len(rest)
    direction = np.random.default_rng(2).normal(size=(n, d))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)

    def one(direction):
        def times(v):
            # diag(rest) in the complement of the direction, and 0.6 along it.
            along = direction @ v
            v = rest * (v - along * direction)
            return v + (0.6 * along - direction @ v) * direction

        find = partial(lanczos.leading, times, max_steps=steps, tolerance=0.0, number=0)
        return find(jnp.zeros((1, d)), largest=jnp.zeros(()), size=jnp.zeros(()))

    top = jax.jit(jax.vmap(one, axis_name="y"))(jnp.asarray(direction))
    assert np.all(top.value <= 0.6 + 1e-12)
    return np.mean(top.value + top.missed < 0.6)


@pytest.mark.parametrize("steps", [3, 8])
def test_the_bound_holds_as_often_as_it_says(steps, monkeypatch, x64):
    """Directions drawn at random for one eigenvalue above the others, and a probability of 5%."""
    monkeypatch.setattr(lanczos, "_PROBABILITY", 0.05)
    too_low = of_random_directions(4000, jnp.linspace(0, 0.5, 40), steps)
    assert too_low < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 4000)
    # After enough products it is not so wide that it always holds.
    assert steps < 8 or too_low > 0


def test_one_product_of_rank_one_shows_the_probability(monkeypatch, x64):
    """With c the start's share of the direction, p_1(0.6) = sqrt(1 - c^2) / c exactly."""
    monkeypatch.setattr(lanczos, "_PROBABILITY", 0.05)
    d, n = 40, 4000
    too_low = of_random_directions(n, jnp.zeros(d), 1)
    # c^2 is Beta(1/2, (d - 1)/2), and the bound holds from c^2 / (1 - c^2) = its 5% quantile on.
    law = stats.beta(0.5, (d - 1) / 2)
    limit = law.ppf(0.05)
    share = law.cdf(limit / (1 + limit))
    targets.within(too_low, share, np.sqrt(share * (1 - share) / n))
