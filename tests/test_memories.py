"""NEBULA on energies whose attractors are known."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy.optimize import brentq
from scipy.spatial.distance import cdist

import numpyro_neb as neb
from numpyro_neb import memories
from numpyro_neb._internal import batching

pytestmark = pytest.mark.statistical

PAIR = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
# Most tests take these shapes, 2 modes and 12 cues in the plane: each function is compiled once.
CUES = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
FLOWS = pytest.mark.parametrize("flow", ["gradient", "jump"])


@FLOWS
@pytest.mark.parametrize("sigma", [0.3, 0.8, 0.95])
def test_two_modes_apart(flow, sigma):
    """y = tanh(y / sigma^2) has two roots beside 0 while sigma < 1, and cues go by their sign."""
    energy = neb.MixtureEnergy(PAIR, sigma)
    root = brentq(lambda y: np.tanh(y / sigma**2) - y, 1e-3, 1)
    found = neb.recall(energy, CUES, flow=flow)
    expected = np.stack([np.sign(CUES[:, 0]) * root, np.zeros(12)], 1)
    # At rest within 1e-3 / sigma of gradient, over the curvature: so far from the attractor.
    curvature = 1 - (1 - root**2) / sigma**2
    np.testing.assert_allclose(found.attractors, expected, atol=1.1e-3 * sigma / curvature)
    np.testing.assert_allclose(found.curvatures, curvature, atol=2e-2)
    np.testing.assert_allclose(found.energies, jax.vmap(energy)(found.attractors), atol=1e-5)
    assert np.all(found.stable)


@FLOWS
def test_two_modes_merged(flow):
    """From sigma = 1 on the mean is the only memory."""
    energy = neb.MixtureEnergy(PAIR, 1.5)
    found = neb.recall(energy, CUES, flow=flow)
    np.testing.assert_allclose(found.attractors, 0, atol=1.1e-3 * 1.5 / (1 - 1 / 1.5**2))
    np.testing.assert_allclose(found.curvatures, 1 - 1 / 1.5**2, atol=1e-3)
    assert np.all(found.stable)


@FLOWS
def test_a_saddle_is_no_memory(flow):
    """On the line between two modes the flow comes to rest in the middle."""
    cues = np.stack([np.zeros(12), np.linspace(-0.7, 1.5, 12)], 1).astype(np.float32)
    found = neb.recall(neb.MixtureEnergy(PAIR, 0.5), cues, flow=flow)
    np.testing.assert_allclose(found.attractors, 0, atol=1e-3)
    assert np.all(found.converged)
    assert not np.any(found.stable)
    np.testing.assert_allclose(found.curvatures, 1 - 1 / 0.5**2, atol=1e-2)


def test_every_location_far_from_the_others_is_a_memory():
    locs = 10 * np.random.default_rng(1).normal(size=(32, 2, 3)).astype(np.float32)
    energy = neb.MixtureEnergy(locs, 0.5)
    cues = locs + 0.5 * np.random.default_rng(2).normal(size=locs.shape).astype(np.float32)
    found = memories.find_memories(energy, cues)
    assert len(found.counts) == 32
    assert np.all(found.stable)
    np.testing.assert_allclose(found.attractors[found.basins], locs, atol=2e-3)


def test_the_path_of_a_gaussian():
    """dy/dt = -(y - m) / (s^2 + sigma^2)."""
    s, m = np.array([0.5, 2.0]), np.array([1.0, -1.0])
    energy = targets.gaussian(s, 0.7, locs=m)
    times = np.array([0.0, 0.3, 1.0, 4.0])
    path = memories.follow(energy, CUES, times)
    assert path.shape == (12, 4, 2)
    decay = np.exp(-times[:, None] * 0.49 / (s**2 + 0.49))
    np.testing.assert_allclose(path, m + (CUES[:, None] - m) * decay, atol=2e-4)
    found = neb.recall(energy, CUES)
    np.testing.assert_allclose(found.curvatures, 0.49 / (4 + 0.49), rtol=1e-3)


def test_energy_falls_along_the_path():
    energy = targets.skewed_mixture()
    path = memories.follow(energy, CUES, np.linspace(0, 10, 30))
    energies = jax.vmap(jax.vmap(energy))(path)
    assert np.all(np.diff(energies, axis=1) < 1e-5)


@FLOWS
def test_hopfields_setting(flow):
    """Ten binary patterns of 64 bits, a sixth of each flipped."""
    rng = np.random.default_rng(0)
    patterns = rng.choice([-1.0, 1.0], size=(10, 64)).astype(np.float32)
    cues = patterns.copy()
    for cue in cues:
        cue[rng.permutation(64)[:10]] *= -1
    found = neb.recall(neb.MixtureEnergy(patterns, 1.0), cues, flow=flow)
    np.testing.assert_array_equal(np.sign(found.attractors), patterns)
    assert np.all(found.stable)


def test_basins_by_falling_size():
    energy = neb.MixtureEnergy(PAIR, 0.3)
    cues = np.array([[0.5, 0.0], [-0.2, 1.0], [0.1, 0.3], [2.0, 0.0]] * 3, np.float32)
    found = memories.find_memories(energy, cues)
    np.testing.assert_array_equal(found.counts, [9, 3])
    np.testing.assert_array_equal(found.basins, [0, 1, 0, 0] * 3)
    np.testing.assert_allclose(found.attractors, [[1, 0], [-1, 0]], atol=1e-3)
    assert str(found) == "2 memories of 12 cues; basins of 9, 3"
    one = memories.find_memories(energy, cues[:1], flow="jump")
    np.testing.assert_array_equal(one.basins, [0])


@FLOWS
def test_what_does_not_come_to_rest(flow):
    energy = neb.MixtureEnergy(PAIR, 0.95)
    found = neb.recall(energy, CUES, flow=flow, max_steps=2)
    assert not np.any(found.converged)
    assert not np.any(found.stable)
    several = memories.find_memories(energy, CUES, flow=flow, max_steps=2)
    assert np.all(several.basins == -1)
    assert len(several.counts) == 0
    assert str(several) == "0 memories of 12 cues, 12 cues not at rest"


@pytest.mark.parametrize("batch", [(), (0,), (2, 6)])
def test_any_batch(batch):
    energy = neb.MixtureEnergy(PAIR, 0.5)
    found = neb.recall(energy, jnp.ones((*batch, 2)))
    assert found.attractors.shape == (*batch, 2)
    assert all(field.shape == batch for field in found[1:])


def test_chunks_do_not_show():
    energy = neb.MixtureEnergy(PAIR, 0.5)
    whole, parts = (neb.recall(energy, CUES, chunk_size=size) for size in (64, 5))
    # Batches of another size round otherwise; each path ends within 1e-3 sigma of rest.
    np.testing.assert_allclose(parts.attractors, whole.attractors, atol=1e-3 * 0.5)
    np.testing.assert_allclose(parts.num_steps, whole.num_steps, atol=1)


def test_a_bar_moves_early(monkeypatch):
    """After 16 cues or an eighth of them; and each cue keeps its own path."""
    moves = []

    class Watched(batching.tqdm):
        def update(self, n=1):
            moves.append(n)
            return super().update(n)

    monkeypatch.setattr(batching, "tqdm", Watched)
    energy = targets.gaussian(np.array([0.5, 2.0]), 0.7)
    cues = np.random.default_rng(0).normal(size=(145, 2)).astype(np.float32)
    path = memories.follow(energy, cues, np.array([0.5, 1.0]))
    assert moves == [19] * 7 + [12]
    rates = 0.49 / (np.array([0.25, 4.0]) + 0.49)
    np.testing.assert_allclose(path[:, 1], cues * np.exp(-rates), atol=2e-4)
    moves.clear()
    found = neb.recall(neb.MixtureEnergy(PAIR, 0.3), cues[:40], flow="jump")
    assert moves[:3] == [16, 16, 8]
    np.testing.assert_array_equal(np.sign(found.attractors[:, 0]), np.sign(cues[:40, 0]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            partial(neb.recall, flow="down"),
            ValueError,
            "flow must be 'gradient' or 'jump', got 'down'",
        ),
        (
            partial(neb.recall, tolerance=0.0),
            ValueError,
            "tolerance must be positive, got 0.0",
        ),
        (partial(neb.recall, max_steps=0), ValueError, "max_steps must be a positive int, got 0"),
        (partial(neb.recall, chunk_size=0), ValueError, "chunk_size must be a positive int, got"),
        (partial(memories.find_memories, merge_distance=0.0), ValueError, "merge_distance must be"),
        (
            partial(memories.follow, times=np.array([1.0, 0.5])),
            ValueError,
            "times must be finite,",
        ),
        (lambda e, y: neb.recall(e, y * jnp.nan), ValueError, "y must be finite, got NaN"),
        (lambda e, y: neb.recall(e, y[:, :1]), ValueError, r"y must end in the event shape \(2,\)"),
        (lambda e, y: memories.find_memories(e, y[0]), ValueError, r"y must have shape \(n, \*"),
        (lambda e, y: neb.recall(e, y.astype(int)), TypeError, "y must hold floats, got int"),
        (
            lambda e, y: neb.recall(None, y),
            TypeError,
            "energy must be a numpyro_neb.AbstractEnergy",
        ),
    ],
)
def test_bad_arguments(call, error, message, untyped):
    with pytest.raises(error, match=message):
        call(neb.MixtureEnergy(PAIR, 0.5), jnp.ones((3, 2)))


@FLOWS
@pytest.mark.parametrize(("offset", "sigma"), [(100.0, 0.1), (0.0, 0.1), (-30.0, 0.02)])
def test_far_from_the_origin(flow, offset, sigma):
    """Only the distance between the points matters, in units of sigma."""
    found = neb.recall(neb.MixtureEnergy(PAIR + offset, sigma), PAIR + offset + sigma, flow=flow)
    assert np.all(found.stable)
    # An ulp of 100 in float32 is 8e-6.
    np.testing.assert_allclose(found.attractors - offset, PAIR, atol=1e-3 * sigma + 2e-5)


@FLOWS
def test_many_dimensions(flow):
    d = 4000
    locs = np.random.default_rng(0).random((3, d)).astype(np.float32)
    energy = neb.MixtureEnergy(jnp.asarray(locs), 0.1)
    cues = energy.sample(jax.random.key(0), (6,))
    found = neb.recall(energy, cues, flow=flow, max_steps=200)
    assert np.all(found.stable)
    assert np.all(cdist(found.attractors, locs).min(1) < 1e-3 * 0.1 + 1e-6 * d**0.5)


@FLOWS
@pytest.mark.parametrize("sigma", [0.1, 0.04])
def test_a_flat_valley_is_one_memory(flow, sigma):
    """N(0, I) has a curvature of sigma^2 / (1 + sigma^2), far below 1."""
    energy = targets.gaussian(np.ones(64), sigma)
    cues = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    found = memories.find_memories(energy, cues, flow=flow, max_steps=20_000)
    assert len(found.counts) == 1
    assert found.stable.all()
    np.testing.assert_allclose(found.attractors[0], 0, atol=0.05 * sigma)


def test_cues_on_the_slow_plateau_of_a_saddle_go_on():
    energy = neb.MixtureEnergy(PAIR, 0.97)
    cues = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    found = memories.find_memories(energy, cues)
    assert found.stable.sum() == 2
    assert np.sum(~found.stable[found.basins]) <= 1
    saddle = memories.find_memories(energy, np.zeros((16, 2), np.float32))
    assert str(saddle) == "0 memories of 16 cues, 1 unstable resting point(s); basins of 16"


class Polynomial(neb.AbstractEnergy):
    """sum c_ij u^i v^j in the plane y = (u, v), of terms {(i, j): c_ij}."""

    coefficients: jax.Array
    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(2,))

    def __init__(self, terms):
        table = np.zeros((5, 5), np.float32)
        for powers, coefficient in terms.items():
            table[powers] = coefficient
        self.coefficients, self.sigma = jnp.asarray(table), jnp.array(0.5)
        self.loc, self.scale = jnp.array(0.0), jnp.array(1.0)

    def __call__(self, y):
        u, v = (jnp.stack([jnp.ones_like(z), z, z**2, z**3, z**4]) for z in y)
        return jnp.dot(u, self.coefficients @ v)


# 0.1 (u^2 + v^2 - 1)^2
RING = Polynomial({(4, 0): 0.1, (0, 4): 0.1, (2, 2): 0.2, (2, 0): -0.2, (0, 2): -0.2})


@FLOWS
def test_valleys_with_a_flat_bottom_are_not_stable(flow):
    for energy in (Polynomial({(2, 0): 1}), RING, Polynomial({})):
        found = neb.recall(energy, CUES, flow=flow)
        assert np.all(found.converged)
        assert not np.any(found.stable)
        np.testing.assert_allclose(found.curvatures, 0, atol=1e-3)


def shoulder(slope):
    """The derivative by u is u ((u - 2)^2 + slope): nearly flat at 2, and least at 0."""
    return Polynomial({(4, 0): 1 / 4, (3, 0): -4 / 3, (2, 0): (4 + slope) / 2, (0, 2): 1 / 2})


@pytest.mark.parametrize("slope", [1e-3, 1e-4])
def test_a_plateau_on_the_way_is_no_memory(slope):
    """Its gradient falls below the tolerance, with a curvature above it in the beginning."""
    cues = np.array([[2.5, 0.3], [3.0, 0.0], [1.0, 0.5], [-1.0, 0.0]] * 3, np.float32)
    found = memories.find_memories(shoulder(slope), cues)
    assert str(found) == "1 memories of 12 cues; basins of 12"
    # A gradient of 0.005 curvatures, in units of sigma.
    np.testing.assert_allclose(found.attractors, 0, atol=0.005 * 0.5)
    np.testing.assert_allclose(found.curvatures, 0.5**2, rtol=1e-2)


def test_a_slope_is_no_place_of_rest():
    """Its gradient is below the tolerance everywhere."""
    found = neb.recall(Polynomial({(1, 0): 2e-4, (0, 2): 1}), CUES, max_steps=300)
    assert not np.any(found.converged)


def test_a_quartic_minimum_is_one_point():
    """Where a third of the remaining distance is what the gradient over the curvature shows."""
    cues = CUES.copy()
    cues[:, 1] = 0
    found = memories.find_memories(Polynomial({(4, 0): 1, (0, 2): 1}), cues)
    np.testing.assert_array_equal(found.counts, [12])
    # 4 y^3 sigma = 0.005 times the tolerance, 1e-3.
    np.testing.assert_allclose(found.attractors, 0, atol=(0.005 * 1e-3 / 2) ** (1 / 3))
    assert "0 memories of 12 cues, 1 point(s) in valleys with a flat bottom" in str(found)


def test_a_ring_of_minima_is_told_from_memories():
    """Each cue shows the point in its direction."""
    angles = np.arange(12.0) / 2
    points = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    found = memories.find_memories(RING, 1.5 * points)
    np.testing.assert_allclose(found.attractors[found.basins], points, atol=0.005)
    assert "0 memories of 12 cues, 12 point(s) in valleys with a flat bottom" in str(found)


class Bowl(neb.AbstractEnergy):
    """A quadratic energy of these curvatures."""

    curvatures: jax.Array
    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=(400,))

    def __init__(self, curvatures):
        self.curvatures, self.sigma = jnp.asarray(curvatures), jnp.array(1.0)
        self.loc, self.scale = jnp.array(0.0), jnp.array(1.0)

    def __call__(self, y):
        return jnp.sum(self.curvatures * y**2) / 2


@pytest.mark.parametrize(("first", "stable"), [(-0.005, False), (0.0005, False), (0.002, True)])
def test_one_direction_among_hundreds_decides(first, stable):
    """A start of the iteration has a share of about 1/20 in it."""
    found = neb.recall(Bowl(jnp.full(400, 0.009).at[7].set(first)), np.zeros(400, np.float32))
    # The largest variance is 1 - first, and its relative error at most 2.5e-5.
    np.testing.assert_allclose(found.curvatures, first, atol=1e-4)
    assert found.converged
    assert bool(found.stable) == stable


def test_what_the_products_leave_open_is_not_stable(monkeypatch):
    few = partial(memories.posterior_components, max_iterations=4)
    monkeypatch.setattr(memories, "posterior_components", few)
    found = neb.recall(Bowl(jnp.linspace(0.002, 0.9, 400)), np.zeros(400, np.float32))
    assert found.curvatures > 1e-3
    assert not found.stable


def test_prints_in_three_lines():
    lines = str(neb.recall(neb.MixtureEnergy(PAIR, 0.5), CUES)).split("\n")
    assert lines[0] == "12 cues: 12 at rest, 12 stable"
    assert lines[1].startswith("energies ")
    assert "smallest curvatures 0.9" in lines[1]
    assert "steps: median " in lines[2]
    assert str(neb.recall(neb.MixtureEnergy(PAIR, 0.5), CUES[:0])) == "0 cues: 0 at rest, 0 stable"


@FLOWS
def test_without_a_minimum_nothing_comes_to_rest(flow):
    for terms in ({(1, 0): 1, (0, 1): 1}, {(4, 0): -1, (0, 4): -1}):
        found = neb.recall(Polynomial(terms), CUES, flow=flow, max_steps=300)
        assert not np.any(found.converged)
        assert not np.any(found.stable)


def test_a_path_that_goes_to_infinity():
    with pytest.raises(FloatingPointError, match="did not reach its end"):
        memories.follow(Polynomial({(4, 0): -1, (0, 4): -1}), CUES, np.array([0.0, 1e3]))


@FLOWS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float64(flow, dtype, x64):
    energy = neb.MixtureEnergy(PAIR.astype(float), 0.5)
    found = neb.recall(energy, CUES.astype(dtype), flow=flow, tolerance=1e-9)
    assert found.attractors.dtype == np.float64
    assert np.all(found.stable)
    np.testing.assert_allclose(jax.vmap(energy.score)(found.attractors), 0, atol=2.1e-9)
    assert memories.follow(energy, CUES.astype(dtype), np.array([1.0])).dtype == np.float64


@pytest.mark.slow
def test_inside_jit(monkeypatch):
    """Where no round can be left out, and each compiles the flow again: two of the five."""
    monkeypatch.setattr(memories, "_ROUNDS", 2)
    recalled = lambda y: neb.recall(neb.MixtureEnergy(PAIR, 0.5), y).attractors  # noqa: E731
    np.testing.assert_allclose(jax.jit(recalled)(CUES), recalled(CUES), atol=1e-3)


@pytest.mark.slow
def test_memories_of_digits(digits, digits_energy):
    """Few memories, all stable, like prototypes: from .4 to 1 from the nearest example."""
    train, _ = digits
    found = memories.find_memories(digits_energy, train[:300])
    assert np.all(found.basins >= 0)
    assert 5 <= len(found.counts) <= 25
    assert np.all(found.stable)
    nearest = cdist(found.attractors.reshape(-1, 64), train.reshape(-1, 64)).min(1)
    assert 0.4 < np.median(nearest) < 1.0
