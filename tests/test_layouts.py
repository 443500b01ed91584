"""What has to work: arrays of any layout, width and kind, ints and lists, transformations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wrong_arguments import (
    KEY,
    MADE,
    MIXTURE,
    TRAINED,
    Own,
)

import numpyro_neb as neb
from numpyro_neb import empirical_bayes, geometry, integrators, networks, plots

WIDE = np.arange(12, dtype=np.float32).reshape(3, 4) / 12
LAYOUTS = {
    "every other column": WIDE[:, ::2],
    "transposed": np.ascontiguousarray(WIDE[:, ::2].T).T,
    "Fortran's order": np.asfortranarray(WIDE[:, ::2]),
    "backwards": np.ascontiguousarray(WIDE[::-1, ::2])[::-1],
    "read-only": np.broadcast_to(WIDE[:, ::2], (3, 2)),
    "another byte order": WIDE[:, ::2].astype(">f4"),
    "JAX's": jnp.asarray(WIDE[:, ::2]),
    "a list": WIDE[:, ::2].tolist(),
}
PLAIN = np.ascontiguousarray(WIDE[:, ::2])
KERNEL = neb.WalkJumpKernel(MIXTURE)


def trained(y):
    return neb.fit(**TRAINED | {"data": y}).losses


USES = {
    "posterior_mean": lambda y: neb.posterior_mean(MIXTURE, y, chunk_size=100),
    "posterior_std": lambda y: neb.posterior_std(MIXTURE, y),
    "posterior_covariance": lambda y: neb.posterior_covariance(MIXTURE, y),
    "posterior_distribution": lambda y: neb.posterior_distribution(MIXTURE, y).mean,
    "credible_interval": lambda y: empirical_bayes.credible_interval(MADE["ResidualEnergy"], y)[0],
    "recall": lambda y: neb.recall(MIXTURE, y, progress_bar=False).attractors,
    "denoising_loss": lambda y: neb.denoising_loss(MIXTURE, y, KEY),
    "sure_loss": lambda y: neb.sure_loss(MADE["ResidualEnergy"], y, KEY),
    "fit": trained,
    "SmoothedDensity": lambda y: neb.SmoothedDensity(MIXTURE).log_prob(y),
    "init_params": lambda y: KERNEL.init(jax.random.split(KEY, 3), 0, y).draw["y"],
}
PARAMETERS = {
    "MixtureEnergy": lambda y: neb.MixtureEnergy(y, 0.5).denoise(jnp.zeros(2)),
    "sphere_overlaps": lambda y: neb.sphere_overlaps(y).counts,
    "overlap_regimes": lambda y: neb.overlap_regimes(y, 1),
    "fit_mixture": lambda y: neb.fit_mixture(y, 1, progress_bar=False).posterior_mean,
    "walk_jump": lambda y: plots.walk_jump(np.asarray(y)[None, None]).images[0].get_array(),
}


@pytest.mark.parametrize("use", (USES | PARAMETERS).values(), ids=USES | PARAMETERS)
def test_any_layout_works(use, untyped):
    expected = use(PLAIN)
    for layout, y in LAYOUTS.items():
        np.testing.assert_allclose(use(y), expected, rtol=1e-6, atol=1e-6, err_msg=layout)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_narrow_floats_are_computed_in_the_energys_dtype(use):
    dtype = jnp.bfloat16 if use is USES["posterior_mean"] else np.float16
    y = PLAIN.astype(dtype)
    found, expected = use(y), use(y.astype(np.float32))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("use", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_may_be_ints(use, untyped):
    ints = np.array([[0, 1], [2, 5], [3, 3]])
    for y in (ints, ints.tolist(), ints.astype(np.uint8), jnp.asarray(ints)):
        np.testing.assert_allclose(use(y), use(ints.astype(np.float32)), rtol=1e-6)


def test_numbers_of_any_kind(untyped):
    """NumPy's and JAX's scalars are numbers too; kernels and files hold plain ones."""
    kernel = neb.WalkJumpKernel(MIXTURE, num_steps=np.int64(3), max_score=np.float32(2))
    assert type(kernel.num_steps) is int
    assert type(kernel.max_score) is float
    assert neb.MixtureEnergy(PLAIN, jnp.asarray(1)).sigma == 1
    assert integrators.BAOAB(step_size=np.float32(0.5)).step_size == 0.5
    assert geometry.sphere_shell(np.int64(3), 1) == geometry.sphere_shell(3, 1.0)


def test_a_list_of_traced_arrays(untyped):
    middle = jax.jit(lambda a, b: neb.MixtureEnergy([a, b], 0.5).loc)
    np.testing.assert_allclose(middle(PLAIN[0], PLAIN[1]), PLAIN[:2].mean(0), rtol=1e-6)


def test_checks_do_not_stand_in_the_way_of_transformations(strict):
    y = jnp.asarray(PLAIN, float)
    energy = Own(lambda y: jnp.sum(y**2) + jnp.sum(y**4))
    expected = neb.posterior_mean(energy, y)
    mean = lambda y: neb.posterior_mean(energy, y)  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(mean))(y), expected, rtol=1e-6)
    assert jnp.all(jnp.isfinite(jax.grad(lambda y: jnp.sum(mean(y)))(y)))
    losses = jax.vmap(lambda key: neb.denoising_loss(energy, y, key))(jax.random.split(KEY, 3))
    assert losses.shape == (3,)
    sigma = jax.grad(lambda s: neb.MixtureEnergy(y, s)(y[0]))(jnp.asarray(0.5, y.dtype))
    assert jnp.isfinite(sigma)
    one = jax.jit(jax.vmap(neb.SmoothedDensity(energy).log_prob))(y)
    np.testing.assert_allclose(one, -jnp.sum(y**2 + y**4, axis=1), rtol=1e-6)


def test_one_event_of_any_kind(untyped):
    """Python's numbers, lists and another byte order, as batches of them."""
    line = neb.MixtureEnergy(np.array([-1.0, 1.0]), 0.5)
    network = networks.MLP((2,), width_size=4, depth=1, key=KEY)
    for y, energy in (
        (0.5, line),
        ([0.1, 0.2], MIXTURE),
        ([0.1, 0.2], neb.ResidualEnergy(network, 0.5, (2,))),
        (np.array([0.1, 0.2], ">f8"), neb.ResidualEnergy(network, 0.5, (2,))),
    ):
        array = jnp.asarray(np.asarray(y, "=f8"))
        for use in (energy, energy.score, energy.denoise):
            np.testing.assert_array_equal(use(y), use(array))


def test_a_float32_energy_in_float64(x64, untyped):
    """Its network takes float32 alone, and so do we."""
    layer = eqx.nn.Conv1d(1, 1, 3, padding=1, dtype=jnp.float32, key=KEY)
    half = jnp.asarray(0.5, jnp.float32)
    energy = Own(lambda y: jnp.sum(layer(y[None]) ** 2), half, 0 * half, 2 * half)
    assert neb.posterior_mean(energy, np.ones((3, 2), np.float32)).dtype == jnp.float32


def test_keys_of_bare_numbers_of_another_kind():
    with jax.default_prng_impl("rbg"):
        draws = MIXTURE.sample(jax.random.PRNGKey(0), (3,))
    assert draws.shape == (3, 2)
