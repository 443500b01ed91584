"""dual_score_loss against its value in closed form, and what it leaves open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from targets import MixtureFamily

import numpyro_neb as neb

KEY = jax.random.key(0)
# X = 0.5: the noise is known from y, and both targets are met exactly.
POINT = MixtureFamily(neb.MixtureEnergy(np.full((1, 3), 0.5), 1.0), (0.3, 4.0))
X = np.full((64, 3), 0.5, np.float32)


class Lifted(neb.energies.AbstractEnergyFamily):
    """A constant and a multiple of log sigma more than another family."""

    inner: MixtureFamily
    constant: jax.Array
    slope: jax.Array

    @property
    def event_shape(self):
        return self.inner.event_shape

    @property
    def loc(self):
        return self.inner.loc

    @property
    def scale(self):
        return self.inner.scale

    def at(self, sigma):
        return self.unchecked_at(sigma)

    def unchecked_at(self, sigma):
        more = self.constant + self.slope * jnp.log(sigma)
        return neb.NetworkEnergy(lambda y: self.inner.mixture.at(sigma)(y) + more, sigma, (3,))

    def levels(self, u):
        return self.inner.levels(u)


def loss(constant=0.0, slope=0.0, **settings):
    family = Lifted(POINT, jnp.asarray(constant), jnp.asarray(slope))
    return float(neb.dual_score_loss(family, X, KEY, **settings))


def test_it_is_zero_where_phi_is_the_density():
    # Squares of sums of a few terms of order ten, in float32.
    assert loss() < 1e-8


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_it_sees_what_a_constant_adds(weight):
    # weight 0.5^2 / (4 d) for the slope, and the square of what is added at sigma = 4.
    added = 0.2 + 0.5 * np.log(4)
    expected = weight * 0.5**2 / 12 + added**2
    np.testing.assert_allclose(loss(0.2, 0.5, weight=weight), expected, rtol=1e-4)


def test_without_the_constants_it_is_denoising():
    """The same noise and levels: the first term alone is that loss."""
    far = MixtureFamily(neb.MixtureEnergy(np.array([[-1.0], [1.0]]), 1.0), (0.3, 4.0))
    x = np.sign(np.random.default_rng(0).normal(size=(256, 1))).astype(np.float32)
    both = [neb.dual_score_loss(far, x, KEY, weight=w) for w in (0.0, 1.0)]
    denoising = neb.denoising_loss(far, x, KEY)
    assert float(both[0]) >= float(denoising)
    # The Gaussian at sigma = 4 is that mixture's phi within 0.01 nats, on average.
    np.testing.assert_allclose(both[0], denoising, rtol=1e-3)
    assert both[1] > both[0]
