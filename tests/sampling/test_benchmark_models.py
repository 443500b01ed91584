"""The benchmark on models: its moments, its count of gradients, and that it runs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from numpyro.infer import Predictive

from benchmarks import models


@pytest.mark.parametrize("name", list(models.SIMULATED))
def test_moments_of_a_target(name):
    """By exact draws of the model, which has no data."""
    target = models.SIMULATED[name]()
    draws = Predictive(target.model, num_samples=100_000)(jax.random.key(0))
    for site, exact in target.squares.items():
        squares = np.asarray(draws[site], float) ** 2
        deviations = np.broadcast_to(target.deviations[site], squares.shape[1:])
        targets.within(squares.mean(0), exact, deviations / np.sqrt(len(squares)))
        # A variance's error from the fourth moment, in halves: it is heavy-tailed.
        halves = squares.reshape(50, -1, *squares.shape[1:]).var(1)
        targets.within(halves.mean(0), deviations**2, halves.std(0) / np.sqrt(50))


class Fixed(NamedTuple):
    """A chain whose draws are known: 3 after one draw of warm-up, and else 1; 7 gradients each."""

    draw: dict
    num_steps: jax.Array
    drawn: jax.Array


class FixedKernel:
    def init(self, keys, num_warmup, init_params, model_args, model_kwargs):
        del num_warmup, init_params, model_args, model_kwargs
        zeros = jnp.zeros(len(keys), int)
        return Fixed({"x": jnp.zeros(len(keys))}, zeros, zeros)

    def sample(self, state, model_args, model_kwargs):
        del model_args, model_kwargs
        x = jnp.where(state.drawn == 1, 3.0, 1.0)
        return Fixed({"x": x}, jnp.full_like(state.drawn, 7), state.drawn + 1)


def test_gradients_until_the_mean_square_is_good():
    """The mean of x^2 after n draws is 1 + 8 / n, its b^2 (8 / n)^2 / 4: below .01 from n = 41."""
    target = models.Target(lambda: None, {"x": 1.0}, {"x": 2.0}, 1, 1)
    found = models.measure(FixedKernel(), target, chains=2, num_warmup=1, gradients=700)
    assert found.gradients == 7 * 41
    assert found.tuning == 7
    np.testing.assert_allclose(found.last, (8 / 100) ** 2 / 4, rtol=1e-5)
    short = models.measure(FixedKernel(), target, chains=2, num_warmup=1, gradients=210)
    assert (short.gradients, short.seconds) == (np.inf, np.inf)
    least = models.measure(FixedKernel(), target, chains=2, num_warmup=0, gradients=0)
    assert (least.tuning, least.last) == (7, 16)  # one draw of warm-up, and one of 3: (9 - 1)^2 / 4


@pytest.mark.slow
def test_benchmark_of_models_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NEB_DATA", str(tmp_path))
    short = ["--chains", "2", "--shorter", "400", "--samplers", "NUTS", "Microcanonical"]
    models.main(["--targets", "brownian", "banana", *short])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("brownian skipped")
    assert [line.split(" | ")[1] for line in lines[3:]] == ["NUTS", "Microcanonical"]
    assert "| not reached | 20 |" in lines[4]
    models.main(["--targets", "banana", "--nuts", "0", *short])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["Microcanonical"]
