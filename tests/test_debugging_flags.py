"""What one switches on to look for a mistake of one's own must not stumble over ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer import MCMC
from trainings import DATA, conditional, energy, fit

import numpyro_neb as neb

FLAGS = {
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "ranks": lambda: jax.numpy_rank_promotion("raise"),
    "dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": jax.checking_leaks,
    "no_jit": lambda: jax.disable_jit(True),
}
EXACT = neb.MixtureEnergy(DATA[:5], 0.5)


def training():
    settings = {"num_steps": 3, "validation_data": DATA[:20], "patience": 2, "ema_decay": 0.5}
    return fit(**settings, validate_every=2).losses


def training_at_levels():
    return fit(conditional(), num_steps=2).losses


def training_blind():
    return fit(objective=neb.sure_loss, num_steps=2).losses


def likelihood():
    sizes = {"num_chains": 4, "num_steps": 2, "num_particles": 2, "num_temperatures": 2}
    objective = neb.MaximumLikelihood(**sizes)
    return fit(objective=objective, num_steps=2, validation_data=DATA[:4]).losses


def walk(integrator=None):
    chosen = integrator or neb.integrators.BAOAB()
    kernel = neb.WalkJumpKernel(energy(), num_steps=2, integrator=chosen)
    mcmc = MCMC(kernel, num_warmup=2, num_samples=2, progress_bar=False)
    mcmc.run(jax.random.key(0))
    return mcmc.get_samples()["x"]


def walk_with_a_test():
    return walk(neb.integrators.MALA())


def posteriors():
    y = jnp.asarray(DATA[:3])
    law = neb.posterior_distribution(energy(), y)
    return jnp.concatenate([
        neb.posterior_mean(energy(), y),
        neb.posterior_std(energy(), y),
        neb.posterior_covariance(energy(), y).reshape(-1, 2),
        neb.posterior_mean(EXACT, y),
        neb.posterior_std(EXACT, y),
        law.sample(jax.random.key(0)),
    ])  # fmt: skip


def memories():
    return neb.recall(EXACT, DATA[:3]).attractors


def normal_means():
    return neb.fit_mixture(DATA[:30, 0], 0.5, progress_bar=False).posterior_mean


def evaluation():
    few = {"num_steps": 2, "num_pairs": 20, "num_swaps": 19}
    few |= {"num_particles": 4, "num_temperatures": 4, "progress_bar": False}
    return neb.evaluate(energy(), DATA[:30], key=jax.random.key(0), **few).denoising_loss


WHAT = [training, training_at_levels, training_blind, likelihood, walk, walk_with_a_test]
WHAT += [posteriors, memories, normal_means, evaluation]


@pytest.mark.slow
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("what", WHAT, ids=lambda what: what.__name__)
def test_under_flags(what, flag):
    with FLAGS[flag]():
        assert np.all(np.isfinite(what()))
