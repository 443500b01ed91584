"""The same problem in other units, or shifted, has the same answer, or an error says why not."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trainings import DATA, Epochs, energy, fit

import numpyro_neb as neb
from numpyro_neb.training.objectives import AbstractObjective

pytestmark = pytest.mark.statistical

RNG = np.random.default_rng(0)
# Two clusters, as float32 numbers of few digits: to multiply them by powers of two is exact.
CLUSTERS = RNG.choice([-2.0, 2.0], (500, 1)) * np.array([1, 0.5]) + 0.3 * RNG.normal(size=(500, 2))
CLUSTERS = CLUSTERS.astype(np.float32)
LOC, SCALE = CLUSTERS.mean(0), CLUSTERS.std(0)
UNITS = [2.0**-20, 2.0**20]  # about 1e-6 and 1e6
NETWORK = {"width_size": 16, "depth": 2, "key": jax.random.key(0)}


def residual(unit):
    network = neb.networks.MLP((2,), **NETWORK)
    return neb.ResidualEnergy(network, 0.5 * unit, (2,), loc=LOC * unit, scale=SCALE * unit)


def scalar(unit):
    network = neb.networks.MLP((2,), "scalar", **NETWORK)
    return neb.NetworkEnergy(network, 0.5 * unit, (2,), loc=LOC * unit, scale=SCALE * unit)


def conditional(unit):
    network = neb.networks.MLP((2,), conditional=True, **NETWORK)
    levels = (0.25 * unit, unit)
    return neb.ConditionalEnergy(network, (2,), levels, loc=LOC * unit, scale=SCALE * unit)


class InUnits(AbstractObjective):
    """A user's objective that is an object, in the data's units squared."""

    def optimizer(self, num_steps):
        return optax.adam(1e-3)

    def init(self, energy, key):
        return None

    def __call__(self, energy, x, key, state):
        return 3 * neb.denoising_loss(energy, x, key), state, {}

    def validation_loss(self, energy, x, key, state):
        return neb.denoising_loss(energy, x, key)


def weighted(energy, x, key):
    return 0.5 * neb.denoising_loss(energy, x, key)


def without_units(energy, x, key):
    return neb.denoising_loss(energy, x, key) / energy.sigma**2


CASES = {
    "denoising": (residual, neb.denoising_loss),
    "scalar": (scalar, neb.denoising_loss),
    "conditional": (conditional, neb.denoising_loss),
    "sure": (residual, neb.sure_loss),
    "sure_with_probes": (residual, partial(neb.sure_loss, num_probes=2)),
    "likelihood": (residual, neb.MaximumLikelihood(num_chains=16, num_steps=3)),
    "likelihood_at_levels": (conditional, neb.MaximumLikelihood(num_chains=16, num_steps=3)),
    "a function": (residual, weighted),
    "a function without units": (residual, without_units),
    "an object": (residual, InUnits()),
}


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("unit", UNITS)
def test_units_do_not_matter(case, unit, x32):
    """The losses scale, and the weights are the same up to the rounding of log sigma, if any.

    Powers of two scale exactly. An objective's logarithms and roots do not: rounding of 1e-7,
    which 30 steps of Adam make into at most 1e-3 of a weight's movement.
    """
    make, objective = CASES[case]

    def run(unit):
        data = CLUSTERS * np.float32(unit)
        return fit(make(unit), data, objective=objective, num_steps=30)

    one, other = run(1.0), run(unit)
    dimensionless = case.startswith("likelihood") or case in (
        "conditional",
        "a function without units",
    )
    scale = 1.0 if dimensionless else unit**2
    np.testing.assert_allclose(other.losses / scale, one.losses, rtol=2e-3, atol=2e-3)
    arrays = (
        jax.tree.leaves(eqx.filter(r.energy.network, eqx.is_inexact_array)) for r in (one, other)
    )
    for a, b in zip(*arrays, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # Adam has moved each by up to 30 times 1e-3


def test_losses_are_in_the_units_of_the_data():
    """What is reported is the objective's own value: sigma^2 d and less, not a share."""
    seen = []
    result = fit(
        residual(1e-3), CLUSTERS * np.float32(1e-3), optimizer=optax.sgd(0.0), num_steps=400,
        callback=lambda _, means: seen.append(means["loss"]),
        validation_data=CLUSTERS * np.float32(1e-3),
    )  # fmt: skip
    loss = float(neb.denoising_loss(residual(1e-3), CLUSTERS * np.float32(1e-3), jax.random.key(9)))
    # 400 minibatches of 32, and one batch of 500: the relative error of the smaller number.
    error = result.losses.std() * np.sqrt(32 / 500 + 1 / 400)
    assert abs(result.losses.mean() - loss) < 5 * error
    assert abs(np.mean(seen) - loss) < 5 * error
    assert abs(result.validation_losses[-1] - loss) < 5 * np.sqrt(2) * error
    np.testing.assert_allclose(result.noise_loss, 2 * 0.0005**2, rtol=1e-5)


def test_the_unit_of_a_users_loss():
    """sigma^2 if the first loss, per coordinate, is nearer to it than to 1."""
    unit = lambda first, sigma: float(  # noqa: E731
        InUnits().unit(neb.ResidualEnergy(energy().network, sigma, (2,)), jnp.asarray(first))
    )
    assert unit(2 * 0.011, 0.01) == 1  # the geometric mean of 1e-4 and 1 is 0.01
    assert unit(2 * 0.009, 0.01) == pytest.approx(1e-4)
    assert unit(2 * 0.5, 0.01) == 1
    assert unit(-2e-4, 0.01) == pytest.approx(1e-4)
    assert unit(0.0, 0.01) == unit(np.nan, 0.01) == 1


OFFSET = 2_459_000 + 0.01 * RNG.normal(size=(200, 2))
REFUSED = r"values up to 2459000, where numbers of float32 are 0\.29 apart: noise of sigma = 0\.01"


def small(**more):
    return neb.ResidualEnergy(energy().network, 0.01, (2,), **more)


class Offsets(Epochs):
    def __iter__(self):
        return (OFFSET[i : i + 32] for i in range(0, 192, 32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_that_float32_cannot_hold_with_sigma(dtype, tmp_path, x32):
    """As Julian dates: the noise is lost in rounding, and the loss would be 0."""
    data = OFFSET.astype(dtype)
    np.save(tmp_path / "data.npy", data)
    on_disk = np.load(tmp_path / "data.npy", mmap_mode="r")
    levels = neb.ConditionalEnergy(conditional(1.0).network, (2,), (0.01, 100.0))
    for given, name in ((data, "data"), (on_disk, "data"), (jnp.asarray(data), "data")):
        with pytest.raises(ValueError, match=f"{name} has {REFUSED}"):
            fit(small(), given)
    with pytest.raises(ValueError, match=REFUSED):
        fit(levels, data)
    with pytest.raises(ValueError, match=f"a batch of data has {REFUSED}"):
        fit(small(), Offsets(), batch_size=None)
    for given in (data, on_disk):
        with pytest.raises(ValueError, match=f"validation_data has {REFUSED}"):
            fit(small(), 0.01 * DATA, validation_data=given)
    with pytest.raises(ValueError, match=f"loc has {REFUSED}.*Subtract the offset"):
        small(loc=OFFSET.mean(0))
    with pytest.raises(ValueError, match=f"loc has {REFUSED}"):
        neb.ConditionalEnergy(levels.network, (2,), (0.01, 100.0), loc=OFFSET.mean(0))
    with pytest.warns(UserWarning, match=f"y has {REFUSED}"):
        neb.posterior_mean(small(), data.astype(np.float32))


def test_float64_holds_them(x64):
    """And the shifted problem has the same losses: 1e-16 times 2.5e6, in units of .01."""
    shift = OFFSET.mean(0)
    start = lambda loc: neb.ResidualEnergy(  # noqa: E731
        neb.networks.MLP((2,), **NETWORK), 0.01, (2,), loc=loc, scale=0.01
    )
    one = fit(start(shift), OFFSET, num_steps=10).losses
    other = fit(start(np.zeros(2)), OFFSET - shift, num_steps=10).losses
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert one[0] > 0


def test_one_y_far_away_among_others_is_left_alone():
    """Its own answer is as good as before; those of the others do not depend on it."""
    y = np.concatenate([DATA[:20], np.full((1, 2), 1e8, np.float32)])
    neb.posterior_mean(energy(), y)


@pytest.mark.parametrize("sigma", [1e-25, 1e25])
def test_a_sigma_whose_square_is_no_number(sigma, x32):
    with pytest.raises(ValueError, match=r"sigma must be between 1\.1e-19 and 1\.8e\+19, to"):
        neb.ResidualEnergy(energy().network, sigma, (2,))


def test_squares_that_overflow_are_explained(x32):
    """At the first step the learning rate can't be the cause."""
    far = neb.ResidualEnergy(energy().network, 1e15, (2,))
    data = np.full((10, 2), 1e20, np.float32)
    with pytest.raises(FloatingPointError, match="loss is inf at step 0: no step has changed"):
        fit(far, data)


def test_columns_of_unlike_scales_are_said(tmp_path):
    data = DATA * np.array([1, 100], np.float32)
    np.save(tmp_path / "data.npy", data)
    for given in (data, np.load(tmp_path / "data.npy", mmap_mode="r")):
        with pytest.warns(UserWarning, match="the columns of data differ in scale by a factor"):
            fit(data=given, num_steps=1)
    with pytest.warns(UserWarning, match="the columns of data differ in scale by a factor"):
        fit(data=iter([data[:32]]), batch_size=None, num_steps=1)
