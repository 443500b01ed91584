import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from scipy import stats

import numpyro_neb as neb
from numpyro_neb.empirical_bayes import log_normalizer
from numpyro_neb.models import normalizer

pytestmark = pytest.mark.statistical

SMALL = {"num_particles": 200, "num_temperatures": 100, "progress_bar": False}


def apart(dim, distance=8.0, sigma=0.5):
    """Four modes of unequal weight, each `distance` sigma from its neighbours; normalised."""
    if dim == 2:
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    else:
        rng = np.random.default_rng(0)
        corners = np.linalg.qr(rng.normal(size=(dim, 4)))[0].T / np.sqrt(2)
    locs = jnp.asarray(1 + distance * sigma * corners, float)
    return neb.MixtureEnergy(locs, sigma, log_weights=jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1])))


class Shrink(eqx.Module):
    factor: float

    def __call__(self, z):
        return self.factor * z


def shrunken(event_shape, shrink=0.6, sigma=0.5, **buffers):
    """phi = shrink^2 norm(y)^2 / (2 sigma^2), and its log Z."""
    energy = neb.ResidualEnergy(Shrink(1 - shrink), sigma, event_shape, **buffers)
    dim = int(np.prod(event_shape))
    return energy, dim / 2 * np.log(2 * np.pi * (sigma / shrink) ** 2)


def lifted(*args):
    """phi + 7.5."""
    return targets.Wrapped(neb.MixtureEnergy(*args), lambda y, phi: phi(y) + 7.5)


class Broken(targets.Wrapped):
    """phi of the first coordinate's sign: `positive` there, `negative` elsewhere."""

    positive: jax.Array
    negative: jax.Array

    def __init__(self, positive, negative):
        super().__init__(neb.MixtureEnergy(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), 0.5))
        self.positive, self.negative = jnp.array(positive), jnp.array(negative)

    def __call__(self, y):
        return super().__call__(y) + jnp.where(y[0] > 0, self.positive, self.negative)


@pytest.mark.parametrize(("dim", "largest"), [(2, 0.05), (16, 0.15), (64, 0.3)])
def test_of_a_normalised_mixture_is_zero(dim, largest):
    value, error = log_normalizer(apart(dim), jax.random.key(0), progress_bar=False)
    assert abs(value) < 2 * error
    assert 0 < error < largest


@pytest.mark.parametrize(("dim", "num_steps"), [(2, 1), (16, 2)])
def test_the_standard_error_is_that_of_the_value(dim, num_steps):
    """Over keys, the values' distances from zero in standard errors are standard normal."""
    settings = SMALL | {"num_steps": num_steps}
    runs = [log_normalizer(apart(dim), jax.random.key(i), **settings) for i in range(40)]
    values, errors = np.array(runs, float).T
    z = values / errors
    # 1e-3 on either side; a correct sampler fails for one set of keys in five hundred.
    low, high = stats.chi2.ppf([1e-3, 1 - 1e-3], len(z)) / len(z)
    assert low < np.mean(z**2) < high
    assert abs(np.mean(z)) < stats.norm.isf(1e-3) / np.sqrt(len(z))


def test_the_mean_weight_is_z_at_any_setting():
    """Plain importance sampling and a few temperatures: exp(value) is unbiased even so."""
    energy = apart(2, distance=6.0)
    for num_temperatures in (2, 3, 7):
        settings = {"num_particles": 20_000, "num_temperatures": num_temperatures}
        value, error = log_normalizer(energy, jax.random.key(1), progress_bar=False, **settings)
        targets.within(value, 0, error)


def test_an_offset_of_phi_is_minus_that_of_log_z():
    energy = apart(2)
    raised = lifted(energy.locs, energy.sigma, energy.log_weights)
    value, error = log_normalizer(energy, jax.random.key(0), **SMALL)
    value_lifted, error_lifted = log_normalizer(raised, jax.random.key(0), **SMALL)
    # The same walks up to rounding: 100 sums of numbers below 10.
    np.testing.assert_allclose(value_lifted, value - 7.5, atol=1e-3)
    np.testing.assert_allclose(error_lifted, error, atol=1e-3)


@pytest.mark.parametrize(
    ("event_shape", "per_coordinate"), [((), False), ((3,), True), ((8, 8), True)]
)
def test_a_gaussian_of_any_event_shape(event_shape, per_coordinate, strict):
    rng, shape = np.random.default_rng(0), event_shape if per_coordinate else ()
    loc = jnp.asarray(rng.normal(size=shape), float)
    scale = jnp.asarray(rng.uniform(0.7, 1.5, shape), float)
    energy, exact = shrunken(event_shape, loc=loc, scale=scale)
    settings = {"num_temperatures": 300, "progress_bar": False}
    value, error = log_normalizer(energy, jax.random.key(0), **settings)
    assert value.shape == error.shape == ()
    assert 0 < error < 0.05
    targets.within(value, exact, error)


def test_float64(x64):
    """Where phi is the reference's up to a constant, the weights are equal and log Z exact."""
    energy, exact = shrunken((5,), shrink=0.6, sigma=0.6, scale=0.8)
    value, error = log_normalizer(energy, jax.random.key(0), **SMALL)
    assert value.dtype == error.dtype == jnp.float64
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    assert error < 1e-12


def test_float32_of_an_energy_far_from_zero(x32):
    energy, exact = shrunken((5,), shrink=0.6, sigma=0.6, scale=0.8, loc=100.0)
    value, error = log_normalizer(energy, jax.random.key(0), **SMALL)
    assert value.dtype == error.dtype == jnp.float32
    np.testing.assert_allclose(value, exact, atol=1e-3)


def test_a_single_location_is_its_own_reference():
    energy = neb.MixtureEnergy(jnp.ones((4, 2)), 0.5)
    value, error = log_normalizer(energy, jax.random.key(0), **SMALL)
    np.testing.assert_allclose([value, error], 0, atol=1e-4)


def test_the_same_key_gives_the_same_result():
    energy = apart(2)
    first, again = (log_normalizer(energy, jax.random.key(0), **SMALL) for _ in range(2))
    other = log_normalizer(energy, jax.random.key(1), **SMALL)
    assert first == again
    assert first != other


def test_compiles_once(monkeypatch):
    """However many parts, and also for a second energy of the same structure."""
    traced = eqx.debug.assert_max_traces(normalizer._anneal.__wrapped__, max_traces=1)
    monkeypatch.setattr(normalizer, "_anneal", eqx.filter_jit(traced))
    for distance in (6.0, 8.0):
        energy = apart(2, distance)
        settings = SMALL | {"num_temperatures": 122}  # 41 parts of 3, the last filled up
        log_normalizer(energy, jax.random.key(0), **settings)


@pytest.mark.parametrize("num_temperatures", [2, 51, 52, 122])
def test_the_bar_counts_temperatures(num_temperatures, monkeypatch):
    bars = []

    class Bar(normalizer.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(normalizer, "tqdm", Bar)
    monkeypatch.setattr(normalizer, "_anneal", lambda energy, particles, *_: particles)
    settings = SMALL | {"num_temperatures": num_temperatures, "progress_bar": True}
    energy, _ = shrunken((5,), shrink=0.6, sigma=0.6, scale=0.8)
    log_normalizer(energy, jax.random.key(0), **settings)
    (bar,) = bars
    assert bar.n == bar.total == num_temperatures - 1


def test_one_gradient_a_step():
    """The energy is called once a step, and once at the start."""
    calls = []

    def counted(y, phi):
        jax.debug.callback(lambda y: calls.append(y), y)
        return phi(y)

    energy = targets.Wrapped(neb.MixtureEnergy(jnp.array([-1.0, 1.0]), 1.0), counted)
    counts = {"num_particles": 30, "num_temperatures": 11, "num_steps": 3}
    log_normalizer(energy, jax.random.key(0), progress_bar=False, **counts)
    jax.effects_barrier()
    assert len(calls) == 30 * (1 + 10 * 3)


def test_warns_where_few_weights_make_up_the_standard_error():
    energy = apart(16, distance=20.0)
    with pytest.warns(UserWarning, match=r"of 200 weights make it up, and 10 are needed\. Raise"):
        log_normalizer(energy, jax.random.key(0), **(SMALL | {"num_temperatures": 2}))


def test_the_warning_comes_where_the_standard_error_is_wrong():
    """With log-normal weights, of which log E w is known."""
    rng = np.random.default_rng(0)
    for spread, least, most in ((0.5, 0, 0.01), (1.5, 0.3, 0.6), (2.5, 0.9, 1)):
        warned, squares = 0, []
        for _ in range(300):
            log_weights = spread * rng.normal(size=1000) - spread**2 / 2
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                value, error = normalizer.estimate(log_weights, "num_particles")
            warned += len(caught)
            squares.append(float(value / error) ** 2)
        assert least <= warned / 300 <= most
        # chi-squared with 300 degrees of freedom: a standard error of 0.08 where z is normal.
        assert (abs(np.mean(squares) - 1) < 0.35) == (warned < 270)


def test_weights_too_large_for_exp():
    log_weights = np.random.default_rng(0).normal(size=1000) * 0.1
    value, error = normalizer.estimate(log_weights, None)
    for offset in (-1e4, 1e4):
        moved = normalizer.estimate(log_weights + offset, None)
        np.testing.assert_allclose(moved, (value + offset, error), rtol=1e-6)


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (np.nan, 0.0, r"phi is NaN or -infinity at \d+ of 200 particles"),
        (-np.inf, 0.0, r"phi is NaN or -infinity at \d+ of 200 particles"),
        (np.inf, np.inf, "phi is infinite at all particles"),
    ],
)
def test_a_phi_that_is_not_finite(positive, negative, message):
    with pytest.raises(FloatingPointError, match=message):
        log_normalizer(Broken(positive, negative), jax.random.key(0), **SMALL)


def test_where_phi_is_infinite_there_is_no_mass():
    """Half of the plane left: log Z = -log 2."""
    value, error = log_normalizer(Broken(0.0, np.inf), jax.random.key(0), **SMALL)
    targets.within(value, -np.log(2), error)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"energy": lambda y: y}, TypeError, r"energy must be a numpyro_neb\.AbstractEnergy"),
        ({"num_particles": 1}, ValueError, "num_particles must be an int of at least 2, got 1"),
        ({"num_particles": 1e3}, ValueError, "num_particles must be an int of at least 2, got"),
        ({"num_temperatures": 1}, ValueError, "num_temperatures must be an int of at least 2, got"),
        ({"num_steps": 0}, ValueError, "num_steps must be a positive int, got 0"),
    ],
)
def test_bad_arguments(arguments, error, message, untyped):
    with pytest.raises(error, match=message):
        log_normalizer(**({"energy": apart(2), "key": jax.random.key(0)} | arguments))


def test_a_stack_of_energies_is_refused():
    stack = eqx.filter_vmap(lambda sigma: neb.MixtureEnergy(jnp.zeros((1, 2)), sigma))(jnp.ones(3))
    with pytest.raises(ValueError, match=r"energy must be a single one, .* shape \(3,\)"):
        log_normalizer(stack, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16])
def test_blackjax_agrees(dim):
    """Adaptive tempered SMC between the same two laws: the sum of its increments is log Z."""
    import blackjax

    # A lifted energy, so that zero is no answer.
    energy = apart(dim)
    energy = lifted(energy.locs, energy.sigma, energy.log_weights)
    value, error = log_normalizer(energy, jax.random.key(0), progress_bar=False)
    sd = jnp.sqrt(energy.scale**2 + energy.sigma**2)
    prior = lambda y: jnp.sum(jax.scipy.stats.norm.logpdf(y, energy.loc, sd))  # noqa: E731
    hmc = {"step_size": 0.3, "num_integration_steps": 5, "inverse_mass_matrix": jnp.full(dim, 0.5)}
    smc = blackjax.adaptive_tempered_smc(
        prior,
        lambda y: -energy(y) - prior(y),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        blackjax.smc.extend_params(hmc),
        blackjax.smc.resampling.systematic,
        target_ess=0.8,
        num_mcmc_steps=10,
    )
    advance = jax.jit(smc.step)

    def estimate(key):
        key, key_start = jax.random.split(key)
        noise = jax.random.normal(key_start, (1000, dim))
        state, total = smc.init(energy.loc + sd * noise), 0.0
        while state.tempering_param < 1:
            key, key_step = jax.random.split(key)
            state, info = advance(key_step, state)
            total += float(info.log_likelihood_increment)
        return total

    estimates = np.array([estimate(jax.random.key(i)) for i in range(8)])
    combined = np.hypot(error, estimates.std(ddof=1) / np.sqrt(len(estimates)))
    assert combined < 0.1
    assert abs(value - estimates.mean()) < 3 * combined
