"""An energy trained inside a NumPyro model, through a factor on the DEEN objective."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, Trace_ELBO

import numpyro_neb as neb

SIGMA, SD = 0.5, np.array([0.5, 1.0])
# A linear network can be the exact denoiser of a Gaussian.
LINEAR = eqx.nn.Linear(2, 2, key=jax.random.key(2))
ENERGY = neb.ResidualEnergy(LINEAR, SIGMA, (2,))


def model(x, data, energy=ENERGY):
    trained = eqx_module("energy", energy)
    numpyro.factor("deen", -neb.denoising_loss(trained, x, numpyro.prng_key()))
    shift = numpyro.param("shift", 0.0)
    numpyro.sample("data", dist.Normal(shift, 1.0), obs=data)


def test_svi_trains_the_energy_beside_another_parameter():
    x = jnp.asarray(SD * np.random.default_rng(0).normal(size=(4096, 2)), float)
    data = jnp.array([2.0, 2.5, 3.0])
    svi = SVI(model, lambda x, data: None, optax.adam(1e-2), Trace_ELBO())
    found = svi.run(jax.random.key(1), 1500, x, data, progress_bar=False)
    trained = eqx.combine(found.params["energy$params"], ENERGY)
    # The floor, sum of s^2 sigma^2 / (s^2 + sigma^2), within five standard errors of a test loss,
    # to which the last steps of Adam at a rate of 0.01 add of the order of the rate's square.
    floor = np.sum(SD**2 * SIGMA**2 / (SD**2 + SIGMA**2))
    loss = eqx.filter_jit(neb.denoising_loss)
    held_out = jnp.asarray(SD * np.random.default_rng(1).normal(size=(4096, 2)), float)
    losses = np.array([loss(trained, held_out, key) for key in jax.random.split(jax.random.key(2))])
    # norm^2 of a Gaussian error with variances v_i has a variance of 2 sum v_i^2 < 2 floor^2.
    assert abs(losses.mean() - floor) < 5 * np.sqrt(2 * floor**2 / 4096) + 0.01
    before = loss(ENERGY, held_out, jax.random.key(2))
    assert before > floor + 0.2
    np.testing.assert_allclose(found.params["shift"], data.mean(), atol=0.05)
    for name in ("sigma", "loc", "scale"):
        np.testing.assert_array_equal(getattr(trained, name), getattr(ENERGY, name))


@pytest.mark.statistical
def test_training_through_log_prob_is_wrong():
    """The likelihood that lacks log Z rewards a flat energy: it unlearns what `fit` has learned."""
    shrink = SD**2 / (SD**2 + SIGMA**2)
    # phi = norm((1 - a) y)^2 / (2 sigma^2) is the exact energy with (1 - a)^2 = 1 - shrink.
    exact = neb.ResidualEnergy(
        eqx.tree_at(
            lambda net: (net.weight, net.bias),
            LINEAR,
            (jnp.diag(jnp.asarray(1 - np.sqrt(1 - shrink), float)), jnp.zeros(2)),
        ),
        SIGMA,
        (2,),
    )
    y = jnp.asarray(np.sqrt(SD**2 + SIGMA**2) * np.random.default_rng(0).normal(size=(20_000, 2)))
    y = y.astype(float)

    def likelihood(energy):
        return neb.SmoothedDensity(energy).log_prob(y).mean()

    slope = eqx.filter_grad(likelihood)(exact).network.weight
    deen = eqx.filter_grad(neb.denoising_loss)(
        exact, jnp.asarray(SD * np.random.default_rng(1).normal(size=(20_000, 2)), float),
        jax.random.key(0),
    ).network.weight  # fmt: skip
    # At the truth the objective is at its floor, and the likelihood wants to climb on.
    assert np.abs(np.diag(deen)).max() < 0.05
    assert np.diag(slope).min() > 0.5
