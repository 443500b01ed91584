"""A denoiser in place of an energy: the same walk, and what needs phi refuses it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import targets
from flax import nnx
from numpyro.infer import MCMC
from scipy import ndimage

import numpyro_neb as neb
from numpyro_neb import integrators
from numpyro_neb.empirical_bayes import log_normalizer, posterior_components
from numpyro_neb.memories import find_memories, follow

MIXTURE = neb.MixtureEnergy(
    jnp.array([[-1.0, 0.0], [1.0, 0.5]]), 0.6, covariances=0.1 * jnp.tile(jnp.eye(2), (2, 1, 1))
)
OWN = neb.ScoreField(MIXTURE.denoise, 0.6, (2,), MIXTURE.loc, MIXTURE.scale)
PLAIN = neb.ScoreField(lambda y: MIXTURE.denoise(y), 0.6, (2,), MIXTURE.loc, MIXTURE.scale)
Y = jnp.array([[0.3, -0.2], [2.0, 1.0]])


def run(energy, integrator, num_samples=50, **settings):
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=2, **settings)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=num_samples, num_chains=2,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(0))
    return mcmc


@pytest.mark.statistical
@pytest.mark.parametrize(
    "integrator",
    [integrators.BAOAB(), integrators.ABOBA(), integrators.ULA(), integrators.Microcanonical()],
    ids=lambda i: type(i).__name__,
)
def test_the_same_walk_to_the_last_bit(integrator):
    mlp = neb.networks.MLP((2,), width_size=8, depth=2, key=jax.random.key(0))
    for energy in (MIXTURE, neb.ResidualEnergy(mlp, 0.5, (2,), loc=1.0, scale=2.0)):
        field = neb.ScoreField(energy.denoise, energy.sigma, (2,), energy.loc, energy.scale)
        expected, found = (run(e, integrator).get_samples() for e in (energy, field))
        for name in ("x", "y"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_score_jump_and_another_sigma():
    np.testing.assert_allclose(PLAIN.score(Y[0]), MIXTURE.score(Y[0]), rtol=1e-4)
    np.testing.assert_array_equal(PLAIN.denoise(Y[0]), MIXTURE.denoise(Y[0]))
    assert OWN.source is not None
    assert PLAIN.source is None
    # An energy's own method, said to be for twice its sigma: a quarter of the score.
    other = neb.ScoreField(MIXTURE.denoise, 1.2, (2,))
    np.testing.assert_allclose(other.score(Y[0]), MIXTURE.score(Y[0]) / 4, rtol=1e-6)


@pytest.mark.statistical
def test_a_walk_on_a_denoiser_has_the_law():
    """And its draws have no log density."""
    mcmc = run(PLAIN, None, 400, inverse_temperature=1.0)
    assert set(mcmc.get_extra_fields()) == {"diverging", "step_size"}
    assert np.isnan(mcmc.last_state.lp).all()
    assert np.isnan(mcmc.last_state.energy).all()
    assert not mcmc.get_extra_fields()["diverging"].any()
    mean, _ = targets.moments(MIXTURE)
    kernel = neb.WalkJumpKernel(PLAIN, num_steps=200)
    draws = targets.independent_draws(kernel, num_chains=2000, num_draws=1)["y"].reshape(-1, 2)
    targets.within(draws.mean(0), mean, draws.std(0) / np.sqrt(len(draws)))
    data = neb.to_arviz(mcmc)
    assert set(data["posterior"].data_vars) == {"x", "y"}


@pytest.mark.statistical
def test_functions_of_the_posterior():
    linear = neb.ResidualEnergy(lambda y: y / 2, 0.6, (2,))  # a Gaussian
    field = neb.ScoreField(lambda y: linear.denoise(y), 0.6, (2,))
    for function in (neb.posterior_mean, neb.posterior_std, neb.posterior_covariance):
        np.testing.assert_allclose(function(field, Y), function(linear, Y), rtol=1e-5)
    found = posterior_components(PLAIN, Y, 1)
    np.testing.assert_allclose(
        found.variances, posterior_components(MIXTURE, Y, 1).variances, rtol=1e-3
    )
    law = neb.posterior_distribution(PLAIN, Y)
    np.testing.assert_allclose(law.mean, neb.posterior_mean(MIXTURE, Y), rtol=1e-5)


@pytest.mark.statistical
@pytest.mark.parametrize("flow", ["gradient", "jump"])
def test_recall(flow):
    found, expected = (neb.recall(e, Y, flow=flow) for e in (PLAIN, MIXTURE))
    np.testing.assert_allclose(found.attractors, expected.attractors, atol=2e-3)
    assert np.isnan(found.energies).all()
    assert "nan" not in str(found)
    assert found.converged.all()
    path = follow(PLAIN, Y, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(path, follow(MIXTURE, Y, jnp.array([0.0, 1.0])), atol=1e-3)


def test_a_denoiser_that_is_no_gradient():
    """Its Jacobian has a rotation: the matrix is the symmetric part, the operator the whole."""
    matrix = np.array([[0.5, 0.5], [-0.5, 0.5]])
    field = neb.ScoreField(lambda y: jnp.asarray(matrix, y.dtype) @ y, 1.0, (2,))
    operator = neb.posterior_covariance(field, jnp.zeros(2), "operator")
    np.testing.assert_allclose(operator.as_matrix(), matrix, atol=1e-6)
    assert not lx.is_symmetric(operator)
    np.testing.assert_allclose(
        neb.posterior_covariance(field, jnp.zeros(2)), (matrix + matrix.T) / 2, atol=1e-6
    )


class Clipped(neb.AbstractEnergy):
    """A custom energy with a jump of its own, which is not that of its phi."""

    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, y):
        return jnp.sum(y**2) / 4

    def denoise(self, y):
        return jnp.maximum(y / 2, 0)


def test_an_energys_own_jump_is_what_is_walked_on():
    energy = Clipped(jnp.array(1.0), jnp.array(0.0), jnp.array(1.0), (2,))
    field = neb.ScoreField(energy.denoise, 1.0, (2,))
    y = jnp.array([-2.0, 2.0])
    np.testing.assert_allclose(field.score(y), energy.denoise(y) - y)


REFUSED = {
    "SmoothedDensity": lambda: neb.SmoothedDensity(PLAIN),
    "log_normalizer": lambda: log_normalizer(PLAIN, jax.random.key(0)),
    "evaluate": lambda: neb.evaluate(PLAIN, Y, key=jax.random.key(0)),
    "find_memories": lambda: find_memories(PLAIN, Y),
    "MALA": lambda: neb.WalkJumpKernel(PLAIN, integrator=integrators.MALA()),
    "GHMC": lambda: neb.WalkJumpKernel(PLAIN, integrator=integrators.GHMC()),
    "tuning": lambda: neb.WalkJumpKernel(PLAIN, adapt_step_size=True),
    "fit": lambda: neb.fit(PLAIN, Y, key=jax.random.key(0), num_steps=1, batch_size=1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_phi_says_so(name, untyped):
    with pytest.raises(TypeError, match=r"ScoreField, which has (no phi\(y\)|a score alone)"):
        REFUSED[name]()


def test_files(tmp_path):
    mlp = neb.networks.MLP((2,), width_size=4, depth=1, key=jax.random.key(0))
    field = neb.ScoreField(mlp, 0.5, (2,), loc=1.0)
    neb.save(tmp_path / "field", field)
    assert eqx.tree_equal(neb.load(tmp_path / "field"), field)
    neb.save(tmp_path / "own", OWN)
    assert eqx.tree_equal(neb.load(tmp_path / "own", like=OWN), OWN)


def test_flax_and_a_function_outside_of_jax():
    net = neb.networks.from_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert run(neb.ScoreField(net, 0.5, (2,)), None, 5).get_samples()["x"].shape == (10, 2)

    def outside(y):
        return np.asarray(ndimage.gaussian_filter1d(np.asarray(y), 1.0, axis=-1), np.float32)

    def denoiser(y):
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return jax.pure_callback(outside, shape, y, vmap_method="expand_dims")

    draws = run(neb.ScoreField(denoiser, 0.5, (6,)), None, 5).get_samples()
    np.testing.assert_allclose(draws["x"], outside(draws["y"]), atol=1e-5)
