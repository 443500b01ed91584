"""LevelsKernel against posteriors in closed form and by quadrature."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Gibbs
from scipy import stats

import numpyro_neb as neb
from numpyro_neb.sampling.quadratic import mixture_step

SIGMA, NOISE = 0.3, 0.5


class Nothing(eqx.Module):
    """The network of a Gaussian's family."""

    def __call__(self, y, t):
        return 0 * (y + t)


def gaussian(loc, scale):
    """Every noise level of N(loc, scale^2), exact."""
    loc = jnp.asarray(loc, float)
    return neb.ConditionalEnergy(Nothing(), loc.shape, (0.1, 4.0), loc, jnp.asarray(scale, float))


def mixture():
    """Two Gaussians far apart, and one between."""
    locs = jnp.asarray([[-3.0, 0.0], [3.0, 1.0], [0.0, -1.0]], float)
    spreads = jnp.asarray([[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.8]], [[1.0, -0.5],
                           [-0.5, 0.6]]], float)  # fmt: skip
    return neb.MixtureEnergy(locs, SIGMA, jnp.log(jnp.asarray([0.5, 0.3, 0.2], float)), spreads)


def run(
    kernel, *args, num_samples=2000, num_warmup=20, num_chains=4, init_params=None, **settings
) -> Any:
    settings = {"chain_method": "vectorized", "num_chains": num_chains} | settings
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False,
                **settings)  # fmt: skip
    mcmc.run(jax.random.key(0), *args, init_params=init_params)
    return mcmc


def draws_of(mcmc, name="x"):
    return np.asarray(mcmc.get_samples(group_by_chain=True)[name], float)


def assert_mean(draws, truth):
    """Within four standard errors, from the effective sample size."""
    error = draws.std((0, 1)) / np.sqrt(effective_sample_size(draws))
    np.testing.assert_array_less(np.abs(draws.mean((0, 1)) - truth), 4 * error)


def seen_through(energy, data, matrix):
    x = numpyro.sample("x", neb.SmoothedDensity(energy))
    loc = jnp.asarray(matrix, float) @ x
    numpyro.sample("data", dist.Normal(loc, NOISE).to_event(1), obs=data)


def on_grid(energy, log_likelihood, reach=6.0, number=241):
    """Means and second moments of x given data, by quadrature in two dimensions."""
    axis = np.linspace(-reach, reach, number)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    weights, means, covariances = targets.components(energy)
    density = sum(
        w * stats.multivariate_normal.pdf(x, m, c)
        for w, m, c in zip(weights, means, covariances, strict=True)
    )
    density = density * np.exp(log_likelihood(x))
    density /= density.sum()
    return density @ x, density @ x**2


@pytest.mark.slow
def test_a_mixture_given_gaussian_data_is_exact_and_never_rejects():
    energy, matrix, data = mixture(), np.array([[0.5, 1.0]]), jnp.asarray([0.4], float)
    mcmc = run(neb.LevelsKernel(partial(seen_through, energy)), data, matrix)
    mean, square = on_grid(energy, lambda x: stats.norm.logpdf(0.4, x @ matrix[0], NOISE))
    x = draws_of(mcmc)
    assert_mean(x, mean)
    assert_mean(x**2, square)
    # Nearly independent draws, from modes six standard deviations apart.
    assert effective_sample_size(x).min() > 2000
    assert np.min(mcmc.get_extra_fields()["acceptance_rate"]) > 0.99
    jump = jax.vmap(jax.vmap(energy.denoise))(mcmc.get_samples(group_by_chain=True)["x"])
    np.testing.assert_allclose(draws_of(mcmc, "x_jump"), jump, atol=1e-4)


@pytest.mark.slow
def test_poisson_counts_of_a_mixture():
    energy, counts = mixture(), jnp.asarray([3, 1])

    def model(counts):
        x = numpyro.sample("x", neb.SmoothedDensity(energy))
        numpyro.sample("counts", dist.Poisson(jnp.exp(0.5 * x)).to_event(1), obs=counts)

    mcmc = run(neb.LevelsKernel(model, max_sigma=3.0), counts)
    log_likelihood = lambda x: stats.poisson.logpmf([3, 1], np.exp(0.5 * x)).sum(-1)  # noqa: E731
    mean, square = on_grid(energy, log_likelihood)
    x = draws_of(mcmc)
    assert 0.3 < np.mean(mcmc.get_extra_fields()["acceptance_rate"]) < 0.999
    assert_mean(x, mean)
    assert_mean(x**2, square)


@pytest.mark.slow
@pytest.mark.statistical
def test_clipped_data_of_a_mixture():
    energy = mixture()

    def model(data):
        x = numpyro.sample("x", neb.SmoothedDensity(energy))
        numpyro.sample("data", dist.Normal(jnp.clip(x, -1.0, 1.0), 0.5).to_event(1), obs=data)

    x = draws_of(run(neb.LevelsKernel(model, max_sigma=2.0), jnp.asarray([0.8, -0.7], float)))

    def log_likelihood(x):
        return stats.norm.logpdf([0.8, -0.7], np.clip(x, -1, 1), 0.5).sum(-1)

    mean, square = on_grid(energy, log_likelihood)
    assert_mean(x, mean)
    assert_mean(x**2, square)


@pytest.mark.slow
def test_unknown_noise_beside_nuts():
    energy, data = mixture(), jnp.asarray([0.9, -0.2], float)

    def model(data):
        x = numpyro.sample("x", neb.SmoothedDensity(energy))
        tau = numpyro.sample("tau", dist.LogNormal(-0.5, 0.5))
        numpyro.sample("data", dist.Normal(x, tau).to_event(1), obs=data)

    kernel = Gibbs([(neb.LevelsKernel(model), ["x"]), (NUTS(model), None)])
    mcmc = run(kernel, data, num_warmup=300, chain_method=jax.vmap)
    logs = np.linspace(-3, 2, 101)
    parts = []
    for tau in np.exp(logs):
        # The law of the data given tau is a mixture, too.
        weights, means, covariances = targets.components(energy)
        evidence = sum(
            w * stats.multivariate_normal.pdf(data, m, c + tau**2 * np.eye(2))
            for w, m, c in zip(weights, means, covariances, strict=True)
        )
        parts.append(evidence * stats.norm.pdf(np.log(tau), -0.5, 0.5))
    share = np.array(parts) / np.sum(parts)
    assert_mean(np.log(draws_of(mcmc, "tau")), share @ logs)


def noisy(energy, data):
    """x seen twice through noise of an unknown size, with a shift."""
    x = numpyro.sample("x", neb.SmoothedDensity(energy))
    tau = numpyro.sample("tau", dist.LogNormal(-0.5, 0.3))
    numpyro.sample("data", dist.Normal(x, tau).to_event(1), obs=data)


def test_a_family_with_unknown_noise():
    # Long walks on a Gaussian forget where they start.
    energy = gaussian([1.0, -1.0], [0.8, 0.6]).at(SIGMA)
    data = jnp.asarray([2.0, -1.5], float)
    mcmc = run(neb.LevelsKernel(partial(noisy, energy)), data, num_samples=400, num_chains=8)
    variance = np.array([0.8, 0.6]) ** 2 + SIGMA**2
    logs = np.linspace(-0.5 - 1.8, -0.5 + 1.8, 201)
    tau = np.exp(logs)[:, None]
    evidence = stats.norm.logpdf(data, [1.0, -1.0], np.sqrt(variance + tau**2)).sum(1)
    share = np.exp(evidence) * stats.norm.pdf(logs, -0.5, 0.3)
    share /= share.sum()
    gain = variance / (variance + tau**2)
    means = np.array([1.0, -1.0]) + gain * (np.asarray(data) - [1.0, -1.0])
    squares = means**2 + gain * tau**2
    x = draws_of(mcmc)
    assert_mean(np.log(draws_of(mcmc, "tau")), share @ logs)
    assert_mean(x, share @ means)
    assert_mean(x**2, share @ squares)
    assert np.mean(mcmc.get_extra_fields()["acceptance_rate"]) > 0.8


@pytest.mark.statistical
def test_the_last_walk_is_at_the_sites_own_sigma():
    """Of an X much narrower than sigma; one level higher, Y's variance would be a fifth larger."""
    energy = gaussian([0.5], [0.1]).at(SIGMA)

    def model():
        numpyro.sample("x", neb.SmoothedDensity(energy))

    kernel = neb.LevelsKernel(model, max_sigma=4.0)
    x = draws_of(run(kernel, num_samples=500, num_chains=8))
    assert_mean((x - 0.5) ** 2, np.array([0.1**2 + SIGMA**2]))


def test_arviz_and_a_plate():
    energy = gaussian(np.zeros(2), np.ones(2)).at(0.5)

    def model(data=None):
        with numpyro.plate("rows", 3):
            x = numpyro.sample("x", neb.SmoothedDensity(energy))
            numpyro.sample("data", dist.Normal(x, 1.0).to_event(1), obs=data)

    data = jnp.asarray([[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], float)
    mcmc = run(neb.LevelsKernel(model, num_steps=64), data, num_samples=300)
    posterior = neb.to_arviz(mcmc).posterior
    assert posterior["x"].shape == (4, 300, 3, 2)
    assert posterior["x"].dims == posterior["x_jump"].dims == ("chain", "draw", "rows", "x_dim_0")
    assert_mean(draws_of(mcmc), np.asarray(data) * 1.25 / 2.25)
    np.testing.assert_allclose(posterior["x_jump"], posterior["x"] * 0.8, atol=1e-5)


def test_data_far_more_precise_than_the_prior():
    """One datum 0.7 x_0 + 1.3 x_1 of noise 3e-4, in float32: the other direction keeps its law."""
    energy = neb.MixtureEnergy(jnp.zeros((1, 2)), 0.1, covariances=jnp.eye(2)[None])
    direction, tau = np.array([0.7, 1.3]), 3e-4

    def log_likelihood(x):
        return -((jnp.asarray(direction, x.dtype) @ x - 0.5) ** 2) / (2 * tau**2)

    noise, y = jnp.asarray(4.0), jnp.asarray([1.0, 2.0])
    variance = 1.01 * 16 / (1.01 + 16)
    precision = np.eye(2) / variance + np.outer(direction, direction) / tau**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (np.asarray(y) / 16 + direction * 0.5 / tau**2)
    step = partial(mixture_step, energy, log_likelihood, noise, jnp.asarray(mean, y.dtype), y)
    x, rate = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(0), 4000))
    assert rate.mean() > 0.99
    x = np.asarray(x, float)
    targets.within(x.mean(0), mean, np.sqrt(np.diag(covariance) / 4000))
    targets.within(x.var(0), np.diag(covariance), np.diag(covariance) * np.sqrt(2 / 4000))


@pytest.mark.statistical
def test_a_way_down_out_of_the_support_is_marked_and_not_taken():
    """The data's law is NaN for negative x: such a draw is the one before."""
    energy = gaussian([1.0], [2.0]).at(0.5)

    def model():
        x = numpyro.sample("x", neb.SmoothedDensity(energy))
        numpyro.sample(
            "data", dist.Normal(jnp.sqrt(x), 0.3, validate_args=False).to_event(1), obs=jnp.ones(1)
        )

    with pytest.raises(FloatingPointError, match="finite value and gradient where the walk starts"):
        run(neb.LevelsKernel(model), init_params={"x": -jnp.ones((4, 1))}, num_samples=2)
    mcmc = run(neb.LevelsKernel(model), init_params={"x": jnp.ones((4, 1))}, num_samples=50)
    assert np.all(draws_of(mcmc) > 0)
    marked = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"])
    assert 0 < marked.mean() < 1
    same = np.diff(draws_of(mcmc)[..., 0], axis=1) == 0
    np.testing.assert_array_equal(same, marked[:, 1:])


@pytest.mark.statistical
def test_the_last_unit_is_that_of_warm_up():
    energy, data = gaussian([1.0, -1.0], [0.8, 0.6]).at(SIGMA), jnp.asarray([2.0, -1.5], float)
    kernel = neb.LevelsKernel(partial(noisy, energy), num_steps=32)
    state = kernel.init(jax.random.key(0), 2, None, (data,), {})
    references = [state.reference]
    sample = jax.jit(lambda state: kernel.sample(state, (data,), {}))
    for _ in range(4):
        state = sample(state)
        references.append(state.reference)
    assert all(np.any(references[i] != references[i + 1]) for i in range(2))
    np.testing.assert_array_equal(references[2], references[4])


def of_unknown_level(family):
    level = numpyro.sample("level", dist.Uniform(0.2, 3.0))
    numpyro.sample("x", neb.SmoothedDensity(family.at(level)))


def scaled(energy):
    with numpyro.handlers.scale(scale=0.25):
        numpyro.sample("x", neb.SmoothedDensity(energy))


def masked(energy):
    numpyro.sample("x", neb.SmoothedDensity(energy).mask(False))


def two_sites(energy):
    for name in ("a", "b"):
        numpyro.sample(name, neb.SmoothedDensity(energy))


def with_tau():
    x = numpyro.sample("x", neb.SmoothedDensity(mixture()))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    numpyro.sample("data", dist.Normal(x, tau).to_event(1), obs=jnp.zeros(2))


def in_plate():
    with numpyro.plate("rows", 3):
        numpyro.sample("x", neb.SmoothedDensity(mixture()))


def other_energy():
    energy = targets.gaussian([0.5, 1.0], 0.7)
    numpyro.sample("x", neb.SmoothedDensity(neb.NetworkEnergy(energy, 0.7, (2,))))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (partial(two_sites, gaussian([0.0], [1.0]).at(0.5)), {}, "one latent SmoothedDensity"),
        (partial(of_unknown_level, gaussian([0.0], [1.0])), {}, "'x' an energy that depends on no"),
        (partial(scaled, gaussian([0.0], [1.0]).at(0.5)), {}, "must not scale or mask 'x'"),
        (partial(masked, gaussian([0.0], [1.0]).at(0.5)), {}, "must not scale or mask 'x'"),
        (partial(seen_through, gaussian([0.0, 0.0], [1.0, 1.0]).at(4.0), jnp.zeros(1),
         np.ones((1, 2))), {}, "the site's sigma must be below 2, where its modes merge, got 4"),
        (with_tau, {}, "no latent site but that of the MixtureEnergy"),
        (in_plate, {}, "in a plate"),
        (partial(seen_through, mixture(), jnp.zeros(1), np.ones((1, 2))), {"max_sigma": 0.2},
         "max_sigma must be above the site's sigma, 0.3, got 0.2"),
    ],
)  # fmt: skip
def test_models_that_it_does_not_take(model, settings, message):
    with pytest.raises(ValueError, match=message):
        run(neb.LevelsKernel(model, **settings), num_samples=2)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="one level of a preconditioned ConditionalEnergy"):
        run(neb.LevelsKernel(other_energy), num_samples=2)
    with pytest.raises(ValueError, match="integrator must have a Metropolis test"):
        neb.LevelsKernel(with_tau, integrator=neb.integrators.BAOAB())
    with pytest.raises(ValueError, match="num_steps must be"):
        neb.LevelsKernel(with_tau, num_steps=31)
    with pytest.raises(ValueError, match="max_sigma must be"):
        neb.LevelsKernel(with_tau, max_sigma=-1.0)
