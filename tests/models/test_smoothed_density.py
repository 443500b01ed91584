import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import targets
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, Predictive

import numpyro_neb as neb

MIXTURE = targets.skewed_mixture()
NETWORK = neb.networks.MLP((2,), width_size=8, depth=2, key=jax.random.key(0))
LEARNED = neb.ResidualEnergy(NETWORK, 0.5, (2,), loc=1.0, scale=2.0)


@pytest.fixture(params=[MIXTURE, LEARNED], ids=["mixture", "learned"])
def density(request):
    return neb.SmoothedDensity(request.param)


def test_log_prob_is_minus_phi_over_any_batch(density, strict):
    y = jax.random.normal(jax.random.key(0), (4, 3, 2))
    log_prob = density.log_prob(y)
    assert log_prob.shape == (4, 3)
    np.testing.assert_allclose(log_prob[1, 2], -density.energy(y[1, 2]), rtol=1e-5)
    assert density.log_prob(y[0, 0]).shape == ()
    gradient = jax.grad(density.log_prob)(y[0, 0])
    np.testing.assert_allclose(gradient, density.energy.score(y[0, 0]), rtol=1e-4, atol=1e-5)


def test_shapes(density):
    assert (density.batch_shape, density.event_shape, density.event_dim) == ((), (2,), 1)
    assert density.support.event_dim == 1
    assert isinstance(density.support.base_constraint, type(constraints.real))
    assert not density.has_rsample
    for shape in ((), (3,), (3, 2)):
        assert density.sample(jax.random.key(0), shape).shape == (*shape, 2)
    assert density.sample(jax.random.PRNGKey(0)).shape == (2,)


def test_scalar_events():
    density = neb.SmoothedDensity(neb.MixtureEnergy(jnp.array([-1.0, 1.0]), 0.5))
    assert density.event_shape == ()
    assert density.log_prob(jnp.zeros((3,))).shape == (3,)
    assert density.sample(jax.random.key(0), (4,)).shape == (4,)


def test_moments():
    density = neb.SmoothedDensity(MIXTURE)
    mean, covariance = targets.moments(MIXTURE)
    np.testing.assert_allclose(density.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(density.variance, np.diag(covariance), rtol=1e-5)


def test_is_a_pytree_that_passes_through_transformations(density):
    y = jnp.ones(2)
    expected = density.log_prob(y)
    leaves, treedef = jax.tree.flatten(density)
    assert all(eqx.is_array(leaf) for leaf in leaves)
    rebuilt = jax.tree.unflatten(treedef, leaves)
    assert rebuilt.log_prob(y) == expected
    log_prob = lambda d, y: d.log_prob(y)  # noqa: E731
    np.testing.assert_allclose(jax.jit(log_prob)(density, y), expected, rtol=1e-5)
    many = jax.vmap(log_prob, in_axes=(None, 0))(density, jnp.stack([y] * 3))
    np.testing.assert_allclose(many, jnp.stack([expected] * 3), rtol=1e-5)

    def body(carried, y):
        return carried, carried.log_prob(y)

    np.testing.assert_allclose(jax.lax.scan(body, density, y[None])[1][0], expected, rtol=1e-5)


def test_jit_compiles_once_for_equal_structures():
    traces = []

    @jax.jit
    def log_prob(density, y):
        traces.append(y)
        return density.log_prob(y)

    for sigma in (0.5, 0.6):
        log_prob(neb.SmoothedDensity(MIXTURE.at(sigma)), jnp.ones(2))
    assert len(traces) == 1


def test_sample_from_a_mixture_is_exact():
    y = neb.SmoothedDensity(MIXTURE).sample(jax.random.key(0), (20_000,))
    targets.assert_law(y, MIXTURE)


def test_sample_from_another_energy_walks():
    """A residual energy that is a Gaussian's: phi = norm(y - A y)^2 / (2 sigma^2)."""
    sigma, shrink = 0.5, 0.4
    energy = neb.ResidualEnergy(lambda y: (1 - shrink) * y, sigma, (2,), scale=3.0)
    y = neb.SmoothedDensity(energy, num_steps=200).sample(jax.random.key(0), (4096,))
    s = np.sqrt((sigma / shrink) ** 2 - sigma**2)
    targets.assert_law(y, targets.gaussian([s, s], sigma))


def model(data=None):
    y = numpyro.sample("y", neb.SmoothedDensity(MIXTURE))
    numpyro.sample("data", numpyro.distributions.Normal(y, 0.5).to_event(1), obs=data)


def test_in_a_model_under_nuts():
    """N(y, 0.5^2) data turn Y's mixture into the mixture at variance sigma^2 with a likelihood."""
    data = jnp.array([0.2, 0.9])
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=8000, progress_bar=False)
    mcmc.run(jax.random.key(0), data)
    y = np.asarray(mcmc.get_samples()["y"], float)
    # Exact posterior mean: Miyasawa for Y's law seen through noise of sd 0.5.
    weights, means, covariances = targets.components(MIXTURE)
    observed = np.asarray(data, float)
    _, gradient, hessian = targets.brute_force(means, 0.5, np.log(weights), covariances, observed)
    exact = observed - 0.25 * gradient
    covariance = 0.25 * (np.eye(2) - 0.25 * hessian)
    ess = numpyro.diagnostics.effective_sample_size(y[None])
    targets.within(y.mean(0), exact, np.sqrt(np.diag(covariance) / ess))


def test_predictive_passes_raw_keys():
    draws = Predictive(model, num_samples=5)(jax.random.PRNGKey(0))
    assert draws["y"].shape == draws["data"].shape == (5, 2)


@pytest.mark.parametrize("shape", [(3,), (2, 3), ()])
def test_wrong_event_shape(density, shape, untyped):
    with pytest.raises(ValueError, match=r"must end in the event shape \(2,\), got shape"):
        density.log_prob(jnp.zeros(shape))


def test_bad_num_steps(untyped):
    with pytest.raises(ValueError, match="num_steps must be a positive int, got 0"):
        neb.SmoothedDensity(MIXTURE, num_steps=0)


def test_an_error_of_a_custom_sampler_is_not_hidden():
    class Custom(neb.AbstractEnergy):
        sigma: jax.Array
        loc: jax.Array
        scale: jax.Array
        event_shape: tuple[int, ...] = eqx.field(static=True)

        def __call__(self, y):
            return jnp.sum(y**2)

        def sample(self, key, shape=()):
            raise NotImplementedError("of its own")

    energy = Custom(*map(jnp.asarray, (0.5, 0.0, 1.0)), (2,))
    with pytest.raises(NotImplementedError, match="of its own"):
        neb.SmoothedDensity(energy).sample(jax.random.key(0))
