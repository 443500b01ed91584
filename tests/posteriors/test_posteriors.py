"""The protocol of posteriors: each by itself, against quadrature, draws and the textbook."""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy import integrate, special, stats

import numpyro_neb as neb
from numpyro_neb.empirical_bayes import Diagonal, Full, Isotropic, LinearisedPosterior
from numpyro_neb.posteriors.spreads import floor, projected_root

pytestmark = pytest.mark.statistical

RNG = np.random.default_rng(11)
ROOTS = RNG.normal(size=(3, 2, 2)) / 2
SIGMA, Y = 0.7, np.array([0.4, -0.9])
WIDE = neb.MixtureEnergy(RNG.normal(size=(3, 2)), SIGMA, None, ROOTS @ ROOTS.swapaxes(1, 2))
ATOMS = neb.MixtureEnergy([[-1.0, 0.5], [1.0, 0.0], [0.3, -2.0]], SIGMA, [0.0, 1.0, 0.5])
# In one dimension: a spike beside a slab, and two modes far apart.
SPIKE = neb.MixtureEnergy([0.0, 0.5], 1.0, [0.4, 0.0], [[[1e-4]], [[4.0]]])
MODES = neb.MixtureEnergy([-2.0, 3.0], 1.0, [0.0, 0.7], [[[0.2]], [[0.5]]])


def linearised(energy, y):
    return targets.Wrapped(energy).posterior(jnp.asarray(y, float))


CASES = {
    "mixture": lambda: WIDE.posterior(jnp.asarray(Y, float)),
    "linearised": lambda: linearised(WIDE, Y),
    "prepared": lambda: linearised(WIDE, Y).prepared(),
    "atoms": lambda: ATOMS.posterior(jnp.asarray(Y, float)),
}
ALL = pytest.mark.parametrize("make", CASES.values(), ids=CASES)
SMOOTH = pytest.mark.parametrize("make", list(CASES.values())[:3], ids=list(CASES)[:3])


class TestEveryPosterior:
    @ALL
    def test_variance_covariance_and_products_agree(self, make, strict):
        found = make()
        columns = jnp.stack([found.product(v) for v in jnp.eye(2)], 1)
        np.testing.assert_allclose(found.covariance, columns, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.variance, jnp.diagonal(columns), rtol=1e-5)
        np.testing.assert_allclose(found.std**2, found.variance, rtol=1e-5)
        assert found.event_shape == found.mean.shape == (2,)
        assert found.projected == 0

    @ALL
    def test_moments_are_those_of_tweedie(self, make):
        """x_hat = y - sigma^2 grad phi and sigma^2 (I - sigma^2 Hess phi), from another formula."""
        found, energy = make(), ATOMS if make is CASES["atoms"] else WIDE
        weights, _, covariances = targets.components(energy)
        clean = covariances - SIGMA**2 * np.eye(2)
        locs = np.asarray(energy.locs, float)
        _, gradient, hessian = targets.brute_force(locs, SIGMA, np.log(weights), clean, Y)
        np.testing.assert_allclose(found.mean, Y - SIGMA**2 * gradient, rtol=1e-4, atol=1e-5)
        covariance = SIGMA**2 * (np.eye(2) - SIGMA**2 * hessian)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-3, atol=1e-5)

    @ALL
    def test_draws_have_its_moments(self, make):
        found = make()
        x = np.asarray(found.sample(jax.random.key(0), (4, 5000)), float)
        assert x.shape == (4, 5000, 2)
        x = x.reshape(-1, 2)
        mean = np.asarray(found.mean, float)
        targets.within(x.mean(0), mean, x.std(0) / np.sqrt(len(x)))
        products = np.einsum("ni,nj->nij", x - mean, x - mean)
        targets.within(
            products.mean(0), found.covariance, products.std(0) / np.sqrt(len(x)) + 1e-12
        )

    @SMOOTH
    def test_quantiles_invert_the_distribution_function(self, make):
        found = make()
        for q in (0.01, 0.3, 0.5, 0.95):
            np.testing.assert_allclose(found.cdf(found.icdf(q)), q, rtol=1e-4)
            np.testing.assert_allclose(found.upper_tail(found.icdf(q)), 1 - q, rtol=1e-4)
        lower, upper = found.interval(0.8)
        np.testing.assert_allclose(found.cdf(upper) - found.cdf(lower), 0.8, rtol=1e-4)
        np.testing.assert_allclose(found.cdf(lower), 0.1, rtol=1e-3)
        assert np.all(np.isnan(found.icdf(1.5)))
        np.testing.assert_array_equal(found.icdf(jnp.array([0.0, 1.0])), [-np.inf, np.inf])

    @SMOOTH
    def test_density_integrates_to_one_and_to_the_distribution_function(self, make, x64):
        found = make()
        grid = jnp.linspace(-6, 6, 241)
        points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
        density = np.exp(jax.vmap(found.log_prob)(points)).reshape(241, 241)
        step = float(grid[1] - grid[0])
        np.testing.assert_allclose(density.sum() * step**2, 1, rtol=1e-6)
        marginal = density.sum(1) * step
        np.testing.assert_allclose(marginal @ grid * step, found.mean[0], rtol=1e-5)
        # The trapezium rule up to x_0 = 0.3, a point of the grid.
        below = (marginal[:127].sum() - marginal[126] / 2) * step
        np.testing.assert_allclose(found.cdf(0.3)[0], below, atol=1e-4)

    @ALL
    def test_sign_rates(self, make):
        found = make()
        tails = np.stack([found.cdf(0.0), found.upper_tail(0.0)])
        np.testing.assert_array_equal(found.lfsr, tails.min(0))
        assert np.all(tails.sum(0) >= 1 - 1e-6)

    @ALL
    @pytest.mark.parametrize("probability", [0.0, 1.0, 90.0])
    def test_no_such_interval(self, make, probability):
        with pytest.raises(ValueError, match="probability must be between 0 and 1, got"):
            make().interval(probability)

    @ALL
    def test_draws_need_a_key(self, make, untyped):
        with pytest.raises(TypeError, match="key must be a JAX random key"):
            make().sample(None)

    @ALL
    def test_is_final(self, make):
        with pytest.raises(TypeError, match=r"which is final: write a subclass of AbstractPost"):
            type("Mine", (type(make()),), {})


def test_linearised_is_exact_for_a_gaussian(x64):
    gaussian = targets.gaussian([0.5, 1.5], SIGMA, locs=[1.0, -1.0])
    x = jnp.array([0.2, 0.1])

    @eqx.filter_jit
    def everything(posterior):
        values = [getattr(posterior, n) for n in ("mean", "variance", "covariance", "std", "lfsr")]
        at = [getattr(posterior, n)(x) for n in ("cdf", "upper_tail", "log_prob", "product")]
        return [*values, *at, posterior.icdf(0.2)]

    exact = everything(gaussian.posterior(jnp.asarray(Y)))
    found = everything(linearised(gaussian, Y))
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("energy", [SPIKE, MODES], ids=["spike and slab", "two modes"])
@pytest.mark.parametrize("y", [0.1, 1.0])
def test_laws_that_are_no_gaussians(energy, y, x64):
    """By quadrature of prior times likelihood, which knows nothing of components given y."""
    weights, means, covariances = targets.components(energy)
    scales = np.sqrt(covariances[:, 0, 0] - 1)
    prior = lambda x: weights @ stats.norm.pdf(x, means[:, 0], scales)  # noqa: E731
    product = lambda x: prior(x) * stats.norm.pdf(y, x, 1)  # noqa: E731
    between = lambda a, b: integrate.quad(  # noqa: E731
        product, a, b, points=[p for p in (-0.05, 0.05) if a < p < b], limit=200
    )[0]
    total = between(-15, 0) + between(0, 15)
    found = energy.posterior(jnp.asarray(y))
    rate = min(between(-15, 0), between(0, 15)) / total
    np.testing.assert_allclose(found.lfsr, rate, rtol=1e-4)
    np.testing.assert_allclose(found.log_prob(jnp.asarray(0.7)), np.log(product(0.7) / total), 1e-4)
    for q in (0.2, 0.9):
        end = float(found.icdf(q))
        np.testing.assert_allclose(between(-15, end) / total, q, rtol=1e-4)
    # The Gaussian of matched moments has the same spread, and another law.
    matched = linearised(energy, y)
    np.testing.assert_allclose(matched.variance, found.variance, rtol=1e-6)
    x = jnp.linspace(-3, 5, 81)
    assert np.abs(jax.vmap(matched.cdf)(x) - jax.vmap(found.cdf)(x)).max() > 0.01


def test_atoms_keep_a_zero_on_both_sides(x64):
    energy = neb.MixtureEnergy([-1.0, 0.0, 4.0], 1.0)
    found = energy.posterior(jnp.asarray(0.4))
    negative, zero, positive = special.softmax(-((0.4 - np.array([-1.0, 0.0, 4.0])) ** 2) / 2)
    np.testing.assert_allclose(found.cdf(0.0), negative + zero, rtol=1e-9)
    np.testing.assert_allclose(found.upper_tail(0.0), zero + positive, rtol=1e-9)
    np.testing.assert_allclose(found.lfsr, min(negative + zero, zero + positive), rtol=1e-9)
    np.testing.assert_allclose(found.log_prob(jnp.asarray(4.0)), np.log(positive), rtol=1e-9)
    assert found.icdf(negative / 2) == -1
    assert found.icdf(negative + zero / 2) == 0
    assert found.icdf(0.0) == -1
    assert found.icdf(1.0) == 4


def test_many_atoms_and_blocks_do_not_show(monkeypatch, x64):
    """Quantiles, tails and products of a mixture whose components go by blocks."""
    for energy in (ATOMS, WIDE):
        found = energy.posterior(jnp.asarray(Y))
        ask = lambda p: (p.icdf(0.3), p.lfsr, p.variance, p.covariance, p.mean)  # noqa: E731
        whole = ask(found)
        with monkeypatch.context() as patch:
            patch.setattr("numpyro_neb.posteriors.components._BLOCK", 4)
            for a, b in zip(whole, ask(found), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9)


def test_quantiles_have_the_implicit_derivative(x64):
    """d quantile / d y, though bisection itself has none."""
    quantile = lambda y: MODES.posterior(y).icdf(0.3)  # noqa: E731
    h = 1e-5
    slope = (quantile(jnp.asarray(0.4 + h)) - quantile(jnp.asarray(0.4 - h))) / (2 * h)
    np.testing.assert_allclose(jax.grad(quantile)(jnp.asarray(0.4)), slope, rtol=1e-5)


class Curved(neb.AbstractEnergy):
    """phi = y' A y / 2: Cov(X given y) = sigma^2 (I - sigma^2 A), whatever that is."""

    hessian: jax.Array
    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(3,))

    def __call__(self, y):
        return y @ self.hessian @ y / 2


def curved(values, sigma=0.5):
    """An energy whose covariance has these eigenvalues, in units of sigma^2, along the axes."""
    hessian = (1 - jnp.array(values)) / sigma**2
    return Curved(jnp.diag(hessian), jnp.array(sigma), jnp.array(0.0), jnp.array(1.0))


def test_a_custom_energy_has_a_posterior():
    found = curved([0.5, 1.0, 4.0]).posterior(jnp.array([1.0, 2.0, 3.0]))
    assert isinstance(found, LinearisedPosterior)
    np.testing.assert_allclose(found.mean, [0.5, 2.0, 12.0], rtol=1e-5)
    np.testing.assert_allclose(found.variance, 0.25 * np.array([0.5, 1.0, 4.0]), rtol=1e-5)
    x = jnp.array([0.0, 1.0, 11.0])
    expected = stats.norm.logpdf(x, found.mean, 0.5 * np.sqrt([0.5, 1.0, 4.0])).sum()
    np.testing.assert_allclose(found.log_prob(x), expected, rtol=1e-5)


def test_what_is_no_covariance_is_projected_in_draws_only():
    energy, y = curved([0.5, -0.8, 4.0]), jnp.array([1.0, 2.0, 3.0])
    found = energy.posterior(y)
    np.testing.assert_allclose(found.projected, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found.variance, 0.25 * np.array([0.5, -0.8, 4.0]), rtol=1e-5)
    assert found.std[1] == 0
    np.testing.assert_allclose(found.cdf(found.mean + jnp.array([0, 1e-3, 0]))[1], 1)
    least = 0.25 * float(floor(jnp.array([0.5, -0.8, 4.0])))
    np.testing.assert_allclose(found.prepared().variance, [0.125, least, 1.0], rtol=1e-4)
    x = np.asarray(found.sample(jax.random.key(0), (1000,)), float)
    assert np.abs(x[:, 1] - found.mean[1]).max() < 5 * np.sqrt(least)
    assert np.isfinite(found.log_prob(found.mean))
    assert energy.posterior(y).prepared().projected == found.projected


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.5, 1.0, 4.0], [0.5, 0.5, -0.8]])
def test_draws_have_a_derivative_where_eigenvalues_coincide(values, x64):
    """By finite differences in a direction that tells the eigenvalues apart."""
    turn = RNG.normal(size=(3, 3))
    turn = jnp.asarray(turn + turn.T)
    energy, key = curved(values), jax.random.key(1)

    def draw(t):
        tilted = eqx.tree_at(lambda e: e.hessian, energy, energy.hessian + t * turn)
        return tilted.posterior(jnp.ones(3)).sample(key)

    h = 1e-6
    slope = (draw(h) - draw(-h)) / (2 * h)
    np.testing.assert_allclose(jax.jacfwd(draw)(0.0), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mixture", "linearised"])
def test_spreads_are_roots_of_what_they_say(name, x64):
    found, eye = CASES[name](), jnp.eye(2)
    columns = lambda spread: jnp.stack([spread.root(found, v)[0] for v in eye], 1)  # noqa: E731
    covariance = np.asarray(found.covariance)
    if name == "linearised":
        np.testing.assert_allclose(columns(Full()) @ columns(Full()).T, covariance, rtol=1e-7)
    else:  # not a root: the law itself as a function of the noise
        np.testing.assert_array_equal(Full().root(found, eye[0])[0], found.around_mean(eye[0]))
    np.testing.assert_allclose(columns(Diagonal()) ** 2, np.diag(np.diag(covariance)), rtol=1e-7)
    expected = np.trace(covariance) / 2 * np.eye(2)
    for spread in (Isotropic(), Isotropic(num_probes=2)):
        np.testing.assert_allclose(columns(spread) ** 2, expected, rtol=1e-7)
    one = columns(Isotropic(num_probes=1))[0, 0] ** 2
    assert np.linalg.eigvalsh(covariance)[0] <= one <= np.linalg.eigvalsh(covariance)[1]
    assert abs(one - expected[0, 0]) > 1e-3


@pytest.mark.parametrize("spread", [Full(), Diagonal(), Isotropic()])
def test_spreads_count_what_they_project(spread):
    found = curved([-0.5, -0.5, -0.8]).posterior(jnp.ones(3))
    noise, projected = spread.root(found, jnp.ones(3))
    assert projected == 1
    # What stands for zero is the floor's root.
    np.testing.assert_allclose(noise, 0.5 * np.sqrt(float(floor(jnp.full(3, 0.8)))), rtol=1e-4)
    assert spread.root(curved([0.5, 0.5, 0.0]).posterior(jnp.ones(3)), jnp.ones(3))[1] == 0


def test_the_floor_grows_with_the_largest_eigenvalue(x32):
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(floor(jnp.array([0.0, 1.0])), 64 * eps)
    np.testing.assert_allclose(floor(jnp.array([0.0, 1e4])), 2e4 * eps)
    assert jax.grad(lambda v: floor(jnp.array([0.0, 1e4 * v])))(1.0) == 0


def test_isotropic_takes_a_count():
    with pytest.raises(ValueError, match="num_probes must be a positive int, got 0"):
        Isotropic(num_probes=0)


def test_in_compiled_loops_convolutions_are_products():
    """XLA:CPU is slow at convolutions in a loop: a posterior has none."""
    network = neb.networks.UNet((1, 4, 4), channels=(2,), num_blocks=1, key=jax.random.key(0))
    energy = neb.ResidualEnergy(network, 0.5, (1, 4, 4))
    y, text = jnp.ones((1, 4, 4)), {}
    text["plain"] = str(jax.make_jaxpr(lambda y: energy.denoise(y))(y))
    text["posterior"] = str(jax.make_jaxpr(lambda y: energy.posterior(y).product(y))(y))
    assert "conv_general_dilated" in text["plain"]
    assert "conv_general_dilated" not in text["posterior"]


def test_only_final_classes_refuse_subclasses():
    class Open(Curved):
        pass

    @final
    class Closed(Curved):
        pass

    assert issubclass(Open, Curved)
    with pytest.raises(TypeError, match=r"Mine must not be a subclass of Closed.*of Curved with"):
        type("Mine", (Closed,), {})
    for energy in (
        neb.MixtureEnergy,
        neb.NetworkEnergy,
        neb.ResidualEnergy,
        neb.ConditionalEnergy,
    ):
        with pytest.raises(TypeError, match=f"must not be a subclass of {energy.__name__}, which"):
            type("Mine", (energy,), {})


def test_a_root_is_symmetric_and_its_square_the_matrix(x64):
    root, projected = projected_root(jnp.asarray(ROOTS[0] @ ROOTS[0].T))
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    np.testing.assert_allclose(root @ root, ROOTS[0] @ ROOTS[0].T, rtol=1e-9)
    assert projected == 0


def test_products_go_a_few_at_a_time():
    """Those of small events all at once, of an image 16: no array of 300 x 600."""
    for d, largest in ((30, 30 * 600), (300, 300 * 300)):
        energy = neb.MixtureEnergy(jax.random.normal(jax.random.key(0), (600, d)), 1.0)
        ask = lambda y, energy=energy: energy.posterior(y).covariance  # noqa: E731
        shapes = targets.array_shapes(ask, jnp.zeros(d))
        assert max(np.prod(shape) for shape in shapes if shape != (600, d)) <= largest


# X = 0 with probability 0.9, otherwise N(0, 4).
POINT_MASS = neb.MixtureEnergy([0.0, 0.0], 1.0, np.log([0.9, 0.1]), [[[0.0]], [[4.0]]])


def test_a_point_mass_counts_on_both_sides_of_zero():
    y = np.linspace(-4, 4, 33).astype(np.float32)
    zero, slab = 0.9 * stats.norm.pdf(y), 0.1 * stats.norm.pdf(y, scale=np.sqrt(5))
    mass, sd = zero / (zero + slab), np.sqrt(4 / 5)
    below = mass + (1 - mass) * stats.norm.cdf(-0.8 * y / sd)
    above = mass + (1 - mass) * stats.norm.cdf(0.8 * y / sd)
    found = neb.posterior_distribution(POINT_MASS, y)
    np.testing.assert_allclose(found.cdf(0.0), below, rtol=1e-5)
    np.testing.assert_allclose(found.lfsr, np.minimum(below, above), rtol=1e-5)


def test_quantiles_at_a_point_mass():
    """The least value whose cdf reaches q, and intervals that hold what they claim."""
    q = jnp.array([1e-3, 0.05, 0.3, 0.5, 0.8, 0.95, 0.999])

    @jax.jit
    @jax.vmap
    def reached_and_held(y):
        found = POINT_MASS.posterior(y)
        lower, upper = found.interval(0.9)
        held = found.cdf(upper) + found.upper_tail(lower) - 1
        return jax.vmap(lambda q: found.cdf(found.icdf(q)))(q), held, upper - lower

    reached, held, width = reached_and_held(jnp.linspace(-4, 4, 17))
    assert np.all(reached >= q - 1e-6)
    assert np.all(held >= 0.9 - 1e-5)
    assert np.all(width >= 0)
    found = POINT_MASS.posterior(jnp.zeros(()))
    assert [found.icdf(q) for q in (0.1, 0.5, 0.9)] == [0, 0, 0]


def test_derivatives_at_a_point_mass_are_finite():
    def at(sigma):
        found = POINT_MASS.at(sigma).posterior(jnp.asarray(0.3))
        return found.cdf(0.4) + found.icdf(0.99)

    step = 1e-2
    slope = (at(1 + step) - at(1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(at)(1.0), slope, rtol=0.02)


def test_no_quantile_is_an_atom_of_no_weight():
    energy = neb.MixtureEnergy([0.0, 1.0, 50.0], 1.0, [0.0, 0.0, -np.inf])
    found = neb.posterior_distribution(energy, jnp.linspace(-1, 2, 9))
    np.testing.assert_array_equal(found.icdf(1.0), 1)
    dense = neb.MixtureEnergy(np.linspace(-30, 30, 601), 0.5)
    top = neb.posterior_distribution(dense, jnp.linspace(-3, 3, 7)).icdf(1 - 6e-8)
    assert jnp.all(top < 6)


def test_values_keep_their_precision(x64):
    atoms = neb.MixtureEnergy(np.array([0.1, 1.0]), 1.0)
    narrow = eqx.tree_at(lambda e: e.sigma, atoms, jnp.float32(1.0))
    y = jnp.zeros(1)
    expected = neb.posterior_distribution(atoms, y).log_prob(jnp.array([0.1]))
    found = neb.posterior_distribution(narrow, y).log_prob(jnp.array([0.1]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_gaussian_of_no_width_is_its_own_quantile():
    point = LinearisedPosterior(lambda y: 0 * y + 1, jnp.array(1.0), jnp.array([2.0]))
    assert [point.icdf(q)[0] for q in (0.0, 0.5, 1.0)] == [1, 1, 1]
