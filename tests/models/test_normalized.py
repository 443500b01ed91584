"""The constants of a family, against quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy import stats

import numpyro_neb as neb
from numpyro_neb.empirical_bayes import normalized

pytestmark = pytest.mark.statistical

SMALL = {"num_particles": 400, "num_levels": 60, "progress_bar": False}
SIGMAS = jnp.geomspace(0.2, 4.0, 7)


def untrained(scale=1.5, seed=0):
    """A network of random weights, and constants of no meaning."""
    key = jax.random.key(seed)
    mlp = neb.networks.MLP((1,), width_size=16, depth=2, conditional=True, key=key)
    family = neb.ConditionalEnergy(mlp, (1,), (0.2, 4.0), 0.7, scale)
    offset = jnp.array([0.03, -0.02, 0.01, 0.02, -0.01])
    where = lambda family: (family.offset, family.constant)  # noqa: E731
    return eqx.tree_at(where, family, (offset, jnp.asarray(2.5)))


@eqx.filter_jit
def log_integrals(family):
    """log Z at `SIGMAS`, by the trapezoidal rule."""

    def log_integral(sigma):
        root = jnp.sqrt(family.scale[()] ** 2 + sigma**2)
        y = family.loc + root * jnp.linspace(-12, 12, 4001)
        phi = jax.vmap(family.unchecked_at(sigma))(y[:, None])
        return jax.nn.logsumexp(-phi) + jnp.log(root * 24 / 4000)

    return jax.vmap(log_integral)(SIGMAS)


def test_every_level_integrates_to_one():
    """Its errors have mean zero over repeats, and are small."""
    family = untrained()
    before = np.asarray(log_integrals(family))
    assert np.ptp(before) > 0.5
    found = [log_integrals(normalized(family, jax.random.key(i), **SMALL)) for i in range(12)]
    found = np.asarray(found, float)
    error = found.std(0, ddof=1)
    assert np.all(error < 0.1)
    # A polynomial of degree 5 leaves up to 0.02.
    assert np.all(abs(found.mean(0)) < targets.STANDARD_ERRORS * error / np.sqrt(12) + 0.02)


def test_log_prob_is_normalised_and_nothing_else_changes():
    family = untrained()
    after = normalized(family, jax.random.key(0), **SMALL)
    y = jnp.linspace(-20, 20, 4001)[:, None]
    for sigma in (0.3, 2.0):
        log_prob = jax.jit(jax.vmap(neb.SmoothedDensity(after.at(sigma)).log_prob))(y)
        assert abs(jnp.trapezoid(jnp.exp(log_prob), y[:, 0]) - 1) < 0.15
        jumps = [jax.vmap(f.at(sigma).denoise)(y) for f in (family, after)]
        np.testing.assert_array_equal(*jumps)
    again = normalized(family, jax.random.key(0), **SMALL)
    assert eqx.tree_equal(after, again)


class Shifted(eqx.Module):
    """The network whose phi is a mixture's, plus 3 + 2 t."""

    mixture: neb.MixtureEnergy

    def __call__(self, z, t):
        sigma = 0.2 * 30 ** ((t + 1) / 2)
        variance = self.mixture.scale**2 + sigma**2
        y = self.mixture.loc + jnp.sqrt(variance) * z
        gaussian = jnp.sum(z**2 + jnp.log(2 * jnp.pi * variance)) / 2
        return self.mixture.at(sigma)(y) - gaussian + 3 + 2 * t


def test_modes_far_apart_in_four_dimensions():
    """Where phi is known: five modes, up to 30 sigma from each other at the lowest level."""
    mixture = neb.MixtureEnergy(jnp.concatenate([jnp.zeros((1, 4)), 4 * jnp.eye(4)]), 0.2)
    family = neb.ConditionalEnergy(Shifted(mixture), (4,), (0.2, 6.0), mixture.loc, mixture.scale)
    settings = SMALL | {"num_levels": 200}

    @eqx.filter_jit
    def off(family):
        phi = lambda sigma: family.unchecked_at(sigma)(y) - mixture.at(sigma)(y)  # noqa: E731
        y = jnp.array([0.1, 4.2, -0.1, 0.0])
        return jax.vmap(phi)(jnp.geomspace(0.2, 6.0, 5))

    found = [off(normalized(family, jax.random.key(i), **settings)) for i in range(8)]
    found = np.asarray(found, float)
    error = found.std(0, ddof=1)
    assert np.all(error < 0.15)
    # By Jensen's inequality log Z is low by half its variance.
    bias = 0.15**2 / 2 + 0.02
    assert np.all(abs(found.mean(0)) < targets.STANDARD_ERRORS * error / np.sqrt(8) + bias)


def test_units_of_each_coordinate():
    """Two Gaussians of unlike units: phi is normalised at first, and stays so."""
    loc, scale = np.array([5.0, -300.0]), np.array([0.5, 40.0])
    network = lambda z, t: 0 * z  # noqa: E731
    family = neb.ConditionalEnergy(network, (2,), (0.1, 100.0), loc, scale)
    after = normalized(family, jax.random.key(0), **SMALL)
    # Nothing is left to chance: phi in z is the same at all levels.
    np.testing.assert_allclose(after.constant, 0, atol=1e-3)
    np.testing.assert_allclose(after.offset, 0, atol=1e-5)


def test_float64(x64):
    after = normalized(untrained(), jax.random.key(0), **SMALL)
    assert after.constant.dtype == after.offset.dtype == jnp.float64


def test_few_weights_are_told():
    family = untrained(scale=0.05)
    settings = SMALL | {"num_particles": 3, "num_levels": 6}
    with pytest.warns(UserWarning, match="Raise num_levels, then num_particles"):
        normalized(family, jax.random.key(0), **settings)


def test_walls():
    """phi is infinite beyond 1.5 in z: Z is a normal probability, whatever the level."""
    wall = lambda z, t: jnp.where(jnp.abs(z[0]) > 1.5, jnp.inf, 0.0)  # noqa: E731
    family = neb.ConditionalEnergy(wall, (1,), (0.2, 4.0))
    after = normalized(family, jax.random.key(0), **SMALL)
    found = after.at(1.0)(jnp.zeros(1)) - family.at(1.0)(jnp.zeros(1))
    inside = stats.norm.cdf(1.5) - stats.norm.cdf(-1.5)
    targets.within(found, np.log(inside), np.sqrt((1 / inside - 1) / SMALL["num_particles"]))


def test_the_bar_counts_levels(capsys):
    normalized(untrained(), jax.random.key(0), **SMALL | {"num_levels": 53, "progress_bar": True})
    assert "53/53" in capsys.readouterr().err
