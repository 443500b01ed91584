"""The benchmark of posteriors in two stages: its figures, its models, and that it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density

from benchmarks import two_stages

RNG = np.random.default_rng(0)


def test_differences():
    """Of quantities whose means differ by 0.5 sd and 0.1 sd, and sds by factors 1 and 1.2."""
    z = RNG.normal(size=(1000, 2))
    z = (z - z.mean(0)) / z.std(0)
    found = two_stages.differences(
        np.array([7.0, -0.2]) + z * [4, 2.4], np.array([5.0, 0]) + z * [4, 2]
    )
    np.testing.assert_allclose(found, [0.5, 0.2], rtol=1e-9)


@pytest.mark.parametrize("name", two_stages.POSTERIORS)
def test_the_halves_are_all_of_the_data(name):
    """The log likelihoods of the halves add up to that of all data, and each half is as large."""
    _, likelihood, data = two_stages.POSTERIORS[name]()
    arrays = data(np.random.default_rng(0))
    halves = [[jnp.asarray(a[part::2], float) for a in arrays] for part in (0, 1)]
    u = jnp.asarray(RNG.normal(size=10 if name == "hierarchical" else 9 if name == "funnel" else 8))
    value = lambda arrays: float(log_density(likelihood, (u, *arrays), {}, {})[0])  # noqa: E731
    parts = [value(half) for half in halves]
    np.testing.assert_allclose(sum(parts), value([jnp.asarray(a, float) for a in arrays]), 1e-5)
    assert len(halves[0][0]) == len(halves[1][0])


def test_a_gaussian_prior():
    """Has the draws' mean and covariance."""
    samples = RNG.normal(size=(500, 3)) @ RNG.normal(size=(3, 3)) + [1.0, 2, 3]
    prior = two_stages.gaussian(samples)
    law = trace(seed(prior, jax.random.key(0))).get_trace()["u"]["fn"]
    np.testing.assert_allclose(law.mean, samples.mean(0), rtol=1e-5)
    np.testing.assert_allclose(law.covariance_matrix, np.cov(samples.T), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_table(capsys, monkeypatch):
    """With the Gaussian in place of the learned prior, which has tests of its own."""
    settings = []

    def stub(name, samples, **kwargs):
        settings.append((name, samples.shape, kwargs["num_steps"]))
        return two_stages.gaussian(samples)

    monkeypatch.setattr("numpyro_neb.prior_from_draws", stub)
    short = ["--posteriors", "logistic", "--seeds", "0", "--draws", "400", "--steps", "20"]
    two_stages.main([*short, "--warmup", "200"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert settings == [("u", (400, 8), 20)]
    assert [row[1] for row in rows] == ["learned prior", "Gaussian prior", "all data again"]
    # The posterior is nearly normal, so that all three are right: a difference of means has a
    # standard error of 0.1 sd if a quarter of the 400 draws of each kind count.
    assert all(float(row[3]) < 0.5 for row in rows)
