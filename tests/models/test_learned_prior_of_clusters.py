"""learned_prior of an exact mixture of narrow clusters, which sigma mixes: X given y is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs, Predictive
from scipy import stats
from targets import MixtureFamily

import numpyro_neb as neb

WITHIN = 0.1


def clusters(d, sigma):
    """Five clusters of sd 0.1 on a line, or on a rotated one."""
    direction = np.array([0.8, 0.6])[:d] / np.linalg.norm(np.array([0.8, 0.6])[:d])
    locs = np.arange(-2.0, 3)[:, None] * direction[None]
    covariances = np.broadcast_to(WITHIN**2 * np.eye(d), (5, d, d))
    return neb.MixtureEnergy(
        jnp.asarray(locs, float), sigma, covariances=jnp.asarray(covariances, float)
    )


def model(energy, noise, seen=None):
    x = neb.learned_prior("x", energy)
    numpyro.sample("seen", dist.Normal(x, noise).to_event(1), obs=seen)


def exact(energy, noise, seen):
    """Mean and sd of X given seen = X + noise, by quadrature on a grid."""
    locs, seen = np.asarray(energy.locs, float), np.asarray(seen, float)
    d = len(seen)
    axis = np.linspace(-3, 3, 801)
    grid = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    density = sum(np.exp(stats.norm.logpdf(grid, m, WITHIN).sum(1)) for m in locs)
    density *= np.exp(stats.norm.logpdf(seen, grid, noise).sum(1))
    density /= density.sum()
    mean = density @ grid
    return mean, np.sqrt(density @ (grid - mean) ** 2)


def assert_exact(x, mean, sd):
    """Within five standard errors of mean and sd, and these below a tenth of the sd."""
    x = np.asarray(x, float)
    squares = (x - mean) ** 2
    for draws, truth in ((x, mean), (squares, sd**2)):
        error = draws.std((0, 1)) / np.sqrt(effective_sample_size(draws))
        targets.within(draws.mean((0, 1)), truth, error)
        assert np.all(error < 0.1 * (sd if draws is x else sd**2))


def posterior_draws(kernel, *args, num_samples=4000):
    mcmc = MCMC(
        kernel,
        num_warmup=500,
        num_samples=num_samples,
        num_chains=4,
        chain_method=jax.vmap if isinstance(kernel, Gibbs) else "vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), *args)
    return mcmc.get_samples(group_by_chain=True)


SEEN = [(0.6, 0.3), (1.15, 0.2)]


@pytest.mark.slow
@pytest.mark.statistical
# In two dimensions, where NUTS takes long paths, one case is enough.
@pytest.mark.parametrize(
    ("d", "precision", "at", "noise"),
    [
        *((1, precision, *seen) for seen in SEEN for precision in ("x32", "x64")),
        (2, "x32", *SEEN[0]),
    ],
)
def test_posterior_is_the_exact_one(d, precision, at, noise, request):
    """At sigma = 0.48, a third of the spread, a Gaussian X given y is off by a third of an sd."""
    request.getfixturevalue(precision)
    energy, seen = clusters(d, 0.48), jnp.array([at, at / 2])[:d]
    draws = posterior_draws(NUTS(model), energy, noise, seen)
    assert not np.any(draws["x_projected"])
    assert_exact(draws["x"], *exact(energy, noise, seen))


@pytest.mark.slow
@pytest.mark.statistical
def test_in_gibbs():
    energy, seen = clusters(1, 0.48), jnp.array([0.6])
    walker = neb.WalkJumpKernel(model=model, num_steps=10, integrator=neb.integrators.GHMC())
    kernel = Gibbs([(walker, ["x_y"]), (NUTS(model), None)])
    draws = posterior_draws(kernel, energy, 0.3, seen)
    assert_exact(draws["x"], *exact(energy, 0.3, seen))


@pytest.mark.statistical
@pytest.mark.parametrize("d", [1, 2])
def test_prior_draws_have_the_law_of_x(d):
    energy = clusters(d, 0.48)

    def prior():
        with numpyro.plate("draws", 20_000):
            neb.learned_prior("x", energy)

    x = Predictive(prior, num_samples=1)(jax.random.key(0))["x"][0]
    # At a sigma of 1e-3, Y is X but for a relative variance of 1e-4.
    targets.assert_law(x, energy.at(1e-3))
    reference = energy.at(1e-3).sample(jax.random.key(1), (20_000,))
    statistic = stats.ks_2samp(np.asarray(x)[:, 0], np.asarray(reference)[:, 0]).statistic
    assert statistic < targets.KOLMOGOROV * np.sqrt(2 / 20_000)


def test_chosen_moments_stay_gaussian():
    """`covariance="diagonal"` asks for a Gaussian of those variances, mixture or not."""
    energy, y = clusters(1, 0.48), jnp.array([0.5])
    values = {"x_y": y, "x_eps": jnp.ones(1)}
    prior = lambda kind: neb.learned_prior("x", energy, kind)  # noqa: E731
    fixed = numpyro.handlers.seed(numpyro.handlers.substitute(prior, values), 0)
    posterior = energy.posterior(y)
    np.testing.assert_allclose(fixed("diagonal"), posterior.mean + posterior.std, rtol=1e-5)
    # The exact quantile at Phi(1), .841.
    np.testing.assert_allclose(posterior.cdf(fixed("full")), stats.norm.cdf(1), rtol=1e-5)


def test_a_family_gives_all_modes_their_weights():
    """Draws of X in a model, by the flow from noise: shares and widths of two modes."""
    exact = neb.MixtureEnergy(
        np.array([-2.0, 1.0]), 1.0, np.log([0.3, 0.7]), np.full((2, 1, 1), 0.09)
    )
    family = MixtureFamily(exact, (0.1, 20.0))
    model = lambda: neb.learned_prior("x", family)  # noqa: E731
    found = Predictive(model, num_samples=4000)(jax.random.key(0))
    x = np.asarray(found["x"], float)
    assert abs(np.mean(x < -0.5) - 0.3) < 5 * np.sqrt(0.21 / 4000) + 0.01
    for part, middle in ((x[x < -0.5], -2.0), (x[x > -0.5], 1.0)):
        assert abs(part.mean() - middle) < 5 * 0.3 / np.sqrt(len(part)) + 0.01
        assert abs(part.std() / 0.3 - 1) < 5 / np.sqrt(2 * len(part)) + 0.02
    # The latent y is plain noise.
    assert abs(found["x_y"].std() / np.sqrt(float(exact.scale) ** 2 + 400) - 1) < 0.06
