import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets

import numpyro_neb as neb

MIXTURE = targets.skewed_mixture()


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("as_numpy", [True, False])
def test_over_any_batch(batch, as_numpy):
    y = np.random.default_rng(0).normal(size=(*batch, 2)).astype(np.float32)
    mean = neb.posterior_mean(MIXTURE, y if as_numpy else jnp.asarray(y))
    assert mean.shape == y.shape
    each = [MIXTURE.denoise(jnp.asarray(yi)) for yi in y.reshape(-1, 2)]
    np.testing.assert_allclose(mean.reshape(-1, 2), np.reshape(each, (-1, 2)), rtol=1e-5, atol=1e-6)


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

    class Watched(neb.MixtureEnergy):
        def denoise(self, y):
            batched = jax.custom_batching.custom_vmap(lambda y: y)

            @batched.def_vmap
            def watch(axis_size, in_batched, y):
                longest.append(axis_size)
                return y, in_batched[0]

            return batched(super().denoise(y))

    energy = Watched(jnp.array([[-1.0], [1.0]]), 0.5)
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
