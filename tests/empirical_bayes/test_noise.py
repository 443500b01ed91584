"""The noise that an energy sees in observations."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import targets

import numpyro_neb as neb
from numpyro_neb.empirical_bayes.noise import apparent_noise, warn_of_other_noise

RNG = np.random.default_rng(0)
# Three of twenty coordinates vary, by ten sigma; the others are noise alone.
SPREADS = np.where(np.arange(20) < 3, 3.0, 0.0)
ENERGY = neb.MixtureEnergy(np.zeros((1, 20)), 0.3, covariances=np.diag(SPREADS**2)[None])


def seen(noise, n=500):
    y = SPREADS * RNG.normal(size=(n, 20)) + noise * RNG.normal(size=(n, 20))
    return y.astype(np.float32)


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("form", [lambda e: e, targets.Wrapped], ids=["exact", "derivatives"])
def test_in_closed_form(noise, form):
    """E norm(sigma grad phi)^2 = sum sigma^2 (s_i^2 + noise^2) / (s_i^2 + sigma^2)^2."""
    total = SPREADS**2 + 0.3**2
    expected = np.sum(0.09 * (SPREADS**2 + noise**2) / total**2) / np.sum(0.09 / total)
    found = apparent_noise(form(ENERGY), seen(noise))
    targets.within(found.sigma, 0.3 * np.sqrt(expected), found.error)
    # 500 x 17 squares of normals.
    np.testing.assert_allclose(found.error, found.sigma / np.sqrt(2 * 500 * 17), rtol=0.15)


def test_warns_of_another_noise_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_noise(ENERGY, seen(0.3))
        warn_of_other_noise(ENERGY, seen(0.33))  # not by a quarter
    for noise in (0.1, 0.6):
        with pytest.warns(UserWarning, match=r"looks like 0\.\d+, not like .* sigma = 0\.3"):
            warn_of_other_noise(ENERGY, seen(noise))
    one = neb.MixtureEnergy(np.zeros(1), 0.3)
    warn_of_other_noise(one, jnp.array([0.8]))  # one number says too little


def test_energies_that_curve_down_there():
    energy = neb.MixtureEnergy(np.array([-3.0, 3.0]), 1.0)
    assert apparent_noise(energy, np.zeros(3, np.float32)).sigma == np.inf


def test_no_observations():
    with pytest.raises(ValueError, match=r"y must not be empty, got shape \(0, 20\)"):
        apparent_noise(ENERGY, np.zeros((0, 20), np.float32))
