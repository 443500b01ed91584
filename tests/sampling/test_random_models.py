"""Models whose density is no function of their sites: rows or values drawn at random."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import block, scope
from numpyro.infer import MCMC, NUTS, Gibbs

import numpyro_neb as neb

ROWS = jnp.linspace(-1, 1, 20)
SEEN = dist.Normal(0.0, 1.0)


def random_key() -> Any:
    return numpyro.prng_key()


def subset():
    m = numpyro.sample("m", SEEN)
    with numpyro.plate("rows", 20, subsample_size=4) as rows:
        numpyro.sample("x", dist.Normal(m, 1), obs=ROWS[rows])


def subset_by_subsample():
    m = numpyro.sample("m", SEEN)
    with numpyro.plate("rows", 20, subsample_size=4):
        numpyro.sample("x", dist.Normal(m, 1), obs=numpyro.subsample(ROWS, event_dim=0))


def nested():
    m = numpyro.sample("m", SEEN)
    with numpyro.plate("columns", 3), numpyro.plate("rows", 20, subsample_size=4) as rows:
        numpyro.sample("x", dist.Normal(m, 1), obs=ROWS[rows][:, None] * jnp.ones(3))


def all_rows():
    m = numpyro.sample("m", SEEN)
    with numpyro.plate("rows", 20, subsample_size=20) as rows:
        numpyro.sample("x", dist.Normal(m, 1), obs=ROWS[rows])


def noise_in_the_density():
    m = numpyro.sample("m", SEEN)
    mean = m + jax.random.normal(random_key())
    numpyro.sample("x", dist.Normal(mean, 1), obs=0.0)


def noise_in_a_deterministic_site():
    m = numpyro.sample("m", SEEN)
    numpyro.deterministic("p", m + jax.random.normal(random_key()))


def hidden_site():
    m = numpyro.sample("m", SEEN)
    with block():
        e = numpyro.sample("e", SEEN)
    numpyro.sample("x", dist.Normal(m + e, 1), obs=0.0)


def random_parameter():
    m = numpyro.sample("m", SEEN)
    w: Any = numpyro.param("w", jax.random.normal)
    numpyro.sample("x", dist.Normal(m * w, 1), obs=0.0)


def shuffled_rows():
    m = numpyro.sample("m", SEEN)
    rows = jax.random.choice(random_key(), ROWS, (5,))
    numpyro.sample("x", dist.Normal(m, 1).expand([5]).to_event(1), obs=rows)


def fixed_parameter():
    m = numpyro.sample("m", SEEN)
    w: Any = numpyro.param("w", 2.0)
    numpyro.sample("x", dist.Normal(m * w, 1), obs=0.0)


def run(model, **kwargs):
    mcmc = MCMC(neb.WalkJumpKernel(model=model), num_warmup=1, num_samples=1, progress_bar=False)
    mcmc.run(jax.random.key(0), **kwargs)
    return mcmc


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (subset, "rows"),
        (subset_by_subsample, "rows"),
        (nested, "rows"),
        (scope(subset, "part"), "part/rows"),
    ],
)
def test_a_plate_of_some_of_its_rows(model, name, tmp_path):
    message = f"model must have no plate with subsample_size .* got '{name}' with 4 of 20"
    with pytest.raises(ValueError, match=message):
        run(model)
    mcmc = MCMC(neb.WalkJumpKernel(model=model), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match=message):
        neb.streaming.stream(mcmc, jax.random.key(0), tmp_path / "run")


def test_gibbs_refuses_them_itself():
    kernel = Gibbs([(neb.WalkJumpKernel(model=with_two), ["m"]), (NUTS(with_two), None)])
    mcmc = MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match="subsample plates"):
        mcmc.run(jax.random.key(0))


def with_two():
    numpyro.sample("z", SEEN)
    subset()


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (noise_in_the_density, "density"),
        (noise_in_a_deterministic_site, "site 'p'"),
        (hidden_site, "density"),
        (random_parameter, "site 'w'"),
        (shuffled_rows, "site 'x'"),
    ],
)
def test_a_value_that_depends_on_the_random_key(model, what):
    message = f"model must have no random value that is not a latent site, got a {what} that"
    with pytest.raises(ValueError, match=message):
        run(model)


@pytest.mark.parametrize("model", [all_rows, fixed_parameter])
def test_what_only_looks_random(model):
    assert run(model).get_samples()["m"].shape == (1,)
