"""The peers of the benchmark on inverse problems: their laws on a Gaussian, and that it runs."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets

import numpyro_neb as neb
from benchmarks import inverse, learned_prior

# X ~ N(LOC, 0.3^2 I) in two dimensions, of which one is seen through noise of sd 0.1.
LOC = np.array([0.4, 0.6])
EXACT = neb.MixtureEnergy(jnp.asarray(LOC[None]), 0.1, covariances=0.09 * jnp.eye(2)[None])
FAMILY = types.SimpleNamespace(
    at=EXACT.at,
    unchecked_at=EXACT.unchecked_at,
    sigma_range=(0.02, 3.0),
    event_shape=(2,),
    loc=EXACT.loc,
    scale=EXACT.scale,
)
MATRIX = np.array([[1.0, 0.0]], np.float32)
PROBLEM = inverse.linear_problem(EXACT, MATRIX)
SEEN = jnp.array([0.8])


def drawn(method, setting, steps, draws):
    size = types.SimpleNamespace(steps=steps, draws=draws, warmup=500)
    run = jax.jit(lambda key: method(FAMILY, PROBLEM, SEEN, key, setting, size))
    return np.asarray(run(jax.random.key(0)), float)


def test_plug_and_play_ends_at_its_fixed_point():
    """D is affine, with slope b: x = D(x + s (seen - x)), of x seen, and x = D(x) of the other."""
    sigma, step = 0.2, 0.5
    b = 0.09 / (0.09 + sigma**2)
    x = (b * step * 0.8 + (1 - b) * LOC[0]) / (1 - b * (1 - step))
    found = drawn(inverse.plug_and_play, (sigma, step), 100, 1)
    np.testing.assert_allclose(found, [[x, LOC[1]]], rtol=1e-5)


def test_langevin_draws_from_the_posterior():
    """Of Y ~ N(loc, v), v = 0.3^2 + SIGMA^2, given the data; the walk's variance has its factor."""
    v, setting = 0.09 + inverse.SIGMA**2, 0.5
    draws = drawn(inverse.langevin, setting, 60, 3000)
    assert draws.shape == (3000, 2)
    precision = np.array([1 / v + 100, 1 / v])
    mean = np.array([(LOC[0] / v + 80) / precision[0], LOC[1]])
    step = setting / (3 * (100 + 1 / inverse.SIGMA**2))
    variance = 1 / precision / (1 - step * precision / 2)
    # Draws are a 60 steps apart: the slower coordinate's correlation is (1 - step / v)^60.
    rho = (1 - step * precision) ** 60
    ess = len(draws) * (1 - rho) / (1 + rho)
    targets.within(draws.mean(0), mean, np.sqrt(variance / ess))
    targets.within(draws.var(0), variance, variance * np.sqrt(2 / ess))


def test_diffusion_without_guidance_has_the_law_of_x():
    """The variance of a Gaussian at each level follows from that at the last."""
    draws = drawn(inverse.guided_diffusion, 0.0, 60, 3000)
    sigmas = np.append(np.geomspace(3.0, 0.02, 30), 0)
    variance = 9 + 0.09
    for sigma, after in itertools.pairwise(sigmas):
        b, share = 0.09 / (0.09 + sigma**2), (after / sigma) ** 2
        variance = (b + share * (1 - b)) ** 2 * variance + after**2 * (1 - share)
    assert len(draws) == 3500  # It needs no warm-up
    targets.within(draws.mean(0), LOC, np.sqrt(variance / len(draws)))
    targets.within(draws.var(0), variance, variance * np.sqrt(2 / len(draws)))


def test_guidance_goes_to_the_data():
    """Of what is seen, and of nothing else."""
    free = drawn(inverse.guided_diffusion, 0.0, 60, 600)
    guided = drawn(inverse.guided_diffusion, 0.1, 60, 600)
    posterior = (LOC[0] / 0.09 + 80) / (1 / 0.09 + 100)
    assert abs(guided[:, 0].mean() - posterior) < abs(free[:, 0].mean() - posterior) / 2
    # What is not seen keeps its law, here the very draws.
    np.testing.assert_allclose(guided[:, 1], free[:, 1], atol=1e-5)


@pytest.mark.slow
def test_the_table_of_peers(capsys, monkeypatch, tmp_path):
    train, _ = learned_prior.digits()
    neb.save(tmp_path / "family", inverse.trained(train, 16, 20, 32, 3.0, 1.0))
    short = ["--images", "2", "--draws", "4", "--steps", "64", "--problems", "blur"]
    arguments = ["inverse", "peers", "--energy", str(tmp_path / "family"), *short]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(inverse, "PEERS", {k: inverse.PEERS[k] for k in ("plug-and-play", "DPS")})
    inverse.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    methods = ["LevelsKernel", "LevelsKernel, noise unknown", *inverse.PEERS]
    assert [row[1] for row in rows] == methods
    assert {row[-1].rstrip(" |") for row in rows} == {"1,152", "64"}
