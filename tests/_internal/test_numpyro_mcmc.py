"""What we read and set of NumPyro's private names is what NumPyro means by them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_neb as neb
from numpyro_neb._internal.numpyro_mcmc import (
    ResumableKernel,
    collected_fields,
    model_arguments,
    set_run,
)


def model(x, *, y):
    w = numpyro.sample("w", numpyro.distributions.Normal(0, 1))
    numpyro.sample("y", numpyro.distributions.Normal(w + x, 1), obs=y)


def chains():
    settings = {"num_chains": 2, "chain_method": "vectorized", "progress_bar": False}
    return MCMC(NUTS(model), num_warmup=3, num_samples=5, **settings)


@pytest.fixture(scope="module")
def mcmc():
    run = chains()
    run.run(jax.random.key(0), 1.0, y=2.0)
    return run


def test_the_arguments_and_fields_of_a_run(mcmc):
    assert model_arguments(mcmc) == ((1.0,), {"y": 2.0})
    fields = collected_fields(mcmc)
    assert fields["z"].keys() == {"w"}
    np.testing.assert_array_equal(fields["z"]["w"], mcmc.get_samples(group_by_chain=True)["w"])
    extra = mcmc.get_extra_fields(group_by_chain=True)
    np.testing.assert_array_equal(fields["diverging"], extra["diverging"])


def test_an_mcmc_made_to_have_run(mcmc):
    made = chains()
    set_run(made, collected_fields(mcmc), mcmc.last_state, *model_arguments(mcmc))
    assert made.last_state is mcmc.last_state
    assert model_arguments(made) == model_arguments(mcmc)
    for grouped in (True, False):
        given, expected = (m.get_samples(group_by_chain=grouped)["w"] for m in (made, mcmc))
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(("name", "count"), [("_sample_fn", 0), ("another", 1)])
def test_a_resumable_kernel_begins_once(name, count, monkeypatch):
    """NumPyro looks for that very name: under another, `init` is called again."""
    if name != "_sample_fn":
        monkeypatch.setattr(ResumableKernel, name, True, raising=False)
        monkeypatch.delattr(ResumableKernel, "_sample_fn")
    begun = []
    init = neb.WalkJumpKernel.init
    monkeypatch.setattr(
        neb.WalkJumpKernel, "init", lambda *args, **kw: (begun.append(1), init(*args, **kw))[1]
    )
    kernel = neb.WalkJumpKernel(neb.MixtureEnergy(jnp.zeros((1,)), 1.0))
    mcmc = MCMC(kernel, num_warmup=2, num_samples=2, progress_bar=False)
    mcmc.run(jax.random.key(0))
    begun.clear()
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.last_state.rng_key)
    assert len(begun) == count
