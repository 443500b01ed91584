"""Maximum likelihood by the walk's own chains."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import targets
from scipy import stats
from trainings import CLOSE, DATA, StopError, conditional, energy, fit, over, same, stop_after

import numpyro_neb as neb
from numpyro_neb.energies.base import AbstractEnergyFamily
from numpyro_neb.integrators import ABOBA, GHMC
from numpyro_neb.training import AbstractObjective

pytestmark = pytest.mark.statistical

SMALL = {"num_chains": 16, "num_steps": 2}
LIKELIHOOD = neb.MaximumLikelihood(**SMALL)


class Quartic(neb.AbstractEnergy):
    """phi(y) = a y + b y^2 / 2 + c y^4 / 4 in one dimension: asymmetric, and with three weights."""

    weights: jax.Array
    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=())

    def __call__(self, y):
        return jnp.sum(self.weights * jnp.stack([y, y**2 / 2, y**4 / 4]))


POINTS, SIGMA = np.array([-1.0, 0.5, 1.2]), 0.6
QUARTIC = Quartic(jnp.array([0.4, -0.5, 0.6]), *map(jnp.asarray, (SIGMA, 0.0, 1.0)))


def exact_gradient(weight):
    """The gradient by the weights of -E log f(Y) + weight * denoising_loss / sigma^2."""
    grid = np.linspace(-8, 8, 20_001)
    a, b, c = np.asarray(QUARTIC.weights, float)
    basis = np.stack([grid, grid**2 / 2, grid**4 / 4])
    model = np.exp(-(a * basis[0] + b * basis[1] + c * basis[2]))
    noisy = np.exp(-((grid - POINTS[:, None]) ** 2) / (2 * SIGMA**2))
    model, noisy = (f / f.sum(-1, keepdims=True) for f in (model, noisy))
    gradient = basis @ noisy.mean(0) - basis @ model
    slopes = np.stack([np.ones_like(grid), grid, grid**3])
    # x - x_hat(y) = x - y + sigma^2 phi'(y), squared, over sigma^2.
    errors = POINTS[:, None] - grid + SIGMA**2 * (np.array([a, b, c]) @ slopes)
    anchor = np.einsum("pg,pg,wg->w", noisy, 2 * errors, slopes) / len(POINTS)
    return gradient + weight * anchor


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_gradient_against_quadrature(weight):
    """With the weights held, the gradients of many steps have the exact one as their mean.

    GHMC has no bias. Chains of other keys are independent: their means give the standard error.
    """
    integrator = neb.integrators.GHMC()
    objective = neb.MaximumLikelihood(256, 5, weight, integrator)
    x = jnp.asarray(np.repeat(POINTS, 100), jnp.float32)

    @jax.jit
    def mean_gradient(key):
        def step(chains, key):
            def loss(weights):
                one = eqx.tree_at(lambda e: e.weights, QUARTIC, weights)
                value, after, _ = objective(one, x, key, chains)
                return value, after

            gradient, after = jax.grad(loss, has_aux=True)(QUARTIC.weights)
            return after, gradient

        keys = jax.random.split(key, 240)
        _, gradients = jax.lax.scan(step, objective.init(QUARTIC, key), keys)
        return jnp.mean(gradients[40:], axis=0)

    means = np.stack([mean_gradient(key) for key in jax.random.split(jax.random.key(0), 20)])
    error = means.std(0, ddof=1) / np.sqrt(len(means))
    targets.within(means.mean(0), exact_gradient(weight), error)
    assert np.all(error < 0.05 * np.abs(exact_gradient(weight)).max())


def test_the_loss_is_the_gap_and_the_anchor():
    """At lr 0 the losses are gap + w L / sigma^2, with L the denoising loss of the same data."""
    still = optax.sgd(0.0)
    objective = neb.MaximumLikelihood(**SMALL, denoising_weight=0.3)
    plain = neb.MaximumLikelihood(**SMALL, denoising_weight=0.0)
    result, bare = (fit(objective=o, optimizer=still) for o in (objective, plain))
    np.testing.assert_array_equal(result.metrics["gap"], bare.losses)
    np.testing.assert_array_equal(result.metrics["gap"], bare.metrics["gap"])
    anchors = (result.losses - bare.losses) / 0.3
    expected = fit(optimizer=still).losses / 0.5**2
    error = np.hypot(anchors.std(), expected.std()) / np.sqrt(len(anchors))
    targets.within(anchors.mean(), expected.mean(), error)


def test_chains_begin_at_noisy_data_and_move():
    data = np.array([[-40.0, 40.0], [40.0, -40.0]], np.float32)  # 226 sigma apart
    slow = neb.MaximumLikelihood(16, 1, integrator=neb.integrators.BAOAB(step_size=1e-3))
    settings = {"key": jax.random.key(3), "data": data, "objective": slow}
    first = fit(**settings, num_steps=1).objective_state
    nearest = np.min(np.linalg.norm(first.position[:, None] - data, axis=2), axis=1)
    assert np.all(nearest < 5 * 0.5 * np.sqrt(2))
    assert np.all(np.std(first.position - np.sign(first.position) * 40, axis=0) > 0.2)
    assert 0.5 < np.std(first.velocity) < 1.5
    later = fit(**settings, num_steps=2).objective_state
    assert np.all(np.any(later.position != first.position, axis=1))


@pytest.mark.parametrize(("integrator", "carried"), [("BAOAB", True), ("GHMC", False)])
def test_a_gradient_is_carried_from_update_to_update(integrator, carried):
    """The first kick is the last update's gradient; a Metropolis test needs this update's."""
    chains = neb.MaximumLikelihood(**SMALL, integrator=getattr(neb.integrators, integrator)())
    keys = jax.random.split(jax.random.key(0), 3)
    x = jnp.asarray(DATA[:32])
    _, state, _ = chains(energy(), x, keys[1], chains.init(energy(), keys[0]))
    expected = jax.vmap(jax.grad(energy()))(state.position)
    np.testing.assert_allclose(state.gradient, expected, rtol=1e-4, atol=1e-5)
    pushed = state._replace(gradient=state.gradient + 1)
    ends = [chains(energy(), x, keys[2], s)[1].position for s in (state, pushed)]
    assert np.allclose(*ends) != carried


def test_goes_on_bit_for_bit_after_a_stop(tmp_path):
    settings = {"objective": LIKELIHOOD, "ema_decay": 0.9, "num_steps": 30}
    settings |= {"validation_data": DATA[:20], "validate_every": 10, "patience": 9}
    whole = fit(**settings)
    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 4}
    with pytest.raises(StopError):
        fit(**settings, **kept, callback=stop_after(10))
    result = fit(**settings, **kept)
    same(result, whole)
    np.testing.assert_array_equal(result.validation_losses, whole.validation_losses)
    for name, values in whole.metrics.items():
        np.testing.assert_array_equal(result.metrics[name], values)
    jax.tree.map(np.testing.assert_array_equal, result.objective_state, whole.objective_state)
    for other in (neb.MaximumLikelihood(**SMALL, denoising_weight=0.1), neb.denoising_loss):
        with pytest.raises(ValueError, match="holds a training run with another objective"):
            fit(**(settings | {"objective": other}), **kept)


def test_checkpoints_tell_objectives_by_their_arrays():
    steps = [neb.integrators.BAOAB(step_size=jnp.asarray(h)) for h in (0.5, 0.9)]
    one, other = (neb.MaximumLikelihood(**SMALL, integrator=step).identity for step in steps)
    assert one != other


def test_under_debug_nans():
    with jax.debug_nans(True):
        objective = neb.MaximumLikelihood(**SMALL)
        start = energy()
        chains = objective.init(start, jax.random.key(0))
        loss, *_ = objective(start, jnp.asarray(DATA), jax.random.key(1), chains)
    assert np.isfinite(loss)


class Seen(neb.MaximumLikelihood):
    """Keeps the sharding of the chains of each step that runs."""

    seen: list = eqx.field(static=True, default_factory=list)

    def __call__(self, energy, x, key, state):
        jax.debug.inspect_array_sharding(state.position, callback=self.seen.append)
        return super().__call__(energy, x, key, state)


def test_chains_are_split_over_the_devices():
    one = fit(objective=LIKELIHOOD, num_steps=20)
    objective = Seen(**SMALL)
    many = fit(objective=objective, num_steps=20, sharding=over("batch"))
    np.testing.assert_allclose(many.losses, one.losses, **CLOSE)
    np.testing.assert_allclose(many.objective_state.position, one.objective_state.position, **CLOSE)
    assert objective.seen[0].shard_shape((16, 2)) == (4, 2)


def test_chains_that_explode_start_again_and_are_counted():
    """A step beyond the stable one takes every chain out of the range of the data."""
    objective = neb.MaximumLikelihood(16, 50, integrator=neb.integrators.BAOAB(step_size=4.0))
    with pytest.warns(UserWarning, match="of the chains start again at each step"):
        result = fit(objective=objective, num_steps=20)
    assert result.metrics["restarts"][0] == 0  # they had yet to start
    assert np.mean(result.metrics["restarts"][1:]) > 0.5
    assert np.all(np.isfinite(result.objective_state.position))
    low, high = DATA.min(0) - 5 * 0.5, DATA.max(0) + 5 * 0.5
    assert np.all(
        (result.objective_state.position > low) & (result.objective_state.position < high)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.all(fit(objective=LIKELIHOOD).metrics["restarts"] == 0)


def test_the_gap_is_shown(capsys):
    calls = []
    callback = lambda done, metrics: calls.append(metrics)  # noqa: E731
    result = fit(objective=LIKELIHOOD, callback=callback, progress_bar=True)
    assert calls[-1]["gap"] == pytest.approx(result.metrics["gap"].mean(), rel=1e-5)
    assert "gap=" in capsys.readouterr().err


def test_the_validation_loss_is_minus_the_log_density():
    """Of a normalised energy, and of one that is 7 above it: -E log f(Y) + w L / sigma^2."""
    exact = targets.skewed_mixture()
    x = exact.at(1e-6).sample(jax.random.key(0), (4000,))
    plain = neb.MixtureEnergy(exact.locs, exact.sigma, exact.log_weights)
    lifted = targets.Wrapped(plain, lambda y, phi: phi(y) + 7)
    chains, key = LIKELIHOOD.init(plain, jax.random.key(0)), jax.random.key(1)

    @eqx.filter_jit
    def loss(energy):
        at_data = LIKELIHOOD.validation_loss(energy, x, key, chains)
        return at_data + LIKELIHOOD.validation_constant(energy, key, chains)

    values = [loss(e) for e in (plain, lifted)]
    np.testing.assert_allclose(*values, rtol=1e-5)
    y = x + exact.sigma * jax.random.normal(jax.random.key(2), x.shape)
    phi, errors = jax.vmap(plain)(y), jnp.sum((x - jax.vmap(plain.denoise)(y)) ** 2, axis=1)
    each = phi + LIKELIHOOD.denoising_weight * errors / exact.sigma**2
    # Both means are over 4,000 draws of the noise; log Z has the error of 100 particles.
    log_z = neb.empirical_bayes.log_normalizer(
        plain, jax.random.key(3), num_particles=100, num_temperatures=200, progress_bar=False
    )
    error = np.hypot(np.sqrt(2 / 4000) * float(each.std()), float(log_z.standard_error))
    targets.within(float(values[0]), float(each.mean()), error)


class Levels(eqx.Module):
    """y plus a number that depends on the level: phi(y; sigma) does not depend on y."""

    weight: jax.Array

    def __call__(self, y, t):
        return y + self.weight * t


@pytest.mark.slow
def test_a_conditional_energy_has_chains_at_all_levels():
    """What phi adds at a level cancels: data and chains are at the same levels."""
    levels = neb.ConditionalEnergy(Levels(jnp.array(3.0)), (2,), (0.1, 2.0), preconditioned=False)
    for num_chains in (48, 20, 32):  # more than the batch has, fewer, and as many
        objective = neb.MaximumLikelihood(num_chains, 1, denoising_weight=0.0)
        result = fit(levels, objective=objective, num_steps=2, optimizer=optax.sgd(0.0))
        # phi is 3^2 2 / (2 sigma^2) at most 900, a rounding error of float32.
        np.testing.assert_allclose(result.metrics["gap"], 0, atol=900 * 1e-6)
    logs = np.sort(np.log(result.objective_state.sigma))
    np.testing.assert_allclose(np.diff(logs), np.log(20) / 32, rtol=1e-4)
    trained = fit(conditional(), objective=LIKELIHOOD, validation_data=DATA[:20])
    assert np.all(np.isfinite(trained.losses))
    assert np.isfinite(trained.validation_losses[-1])


class Blobs(AbstractEnergyFamily):
    """A mixture at any noise level."""

    mixture: neb.MixtureEnergy
    loc: jax.Array
    scale: jax.Array
    event_shape: tuple[int, ...] = eqx.field(static=True, default=())

    def at(self, sigma):
        return self.mixture.at(sigma)

    unchecked_at = at

    def levels(self, u):
        return 0.7 * (6 / 0.7) ** u


@pytest.mark.parametrize("integrator", [GHMC(), ABOBA(0.2)], ids=str)
def test_ladders_of_chains_have_the_law_of_their_energies(integrator):
    """Modes 8 apart of weights .8 and .2, where the data that chains start at are half and half."""
    mixture = neb.MixtureEnergy(np.array([0.0, 8.0]), 1.0, log_weights=np.log([0.8, 0.2]))
    family = Blobs(mixture, mixture.loc, mixture.scale)
    x = jnp.asarray(np.repeat([0.0, 8.0], 256), float)
    step = jax.jit(lambda key, state: objective(family, x, key, state)[1:])
    distances = {}
    for num_levels in (8, 1):
        objective = neb.MaximumLikelihood(512, 10, integrator=integrator, num_levels=num_levels)
        state = objective.init(family, jax.random.key(0))
        for key in jax.random.split(jax.random.key(1), 150):
            state, metrics = step(key, state)
        step.clear_cache()
        assert ("exchange_rate" in metrics) == (num_levels > 1)
        # The chains of a ladder are independent too: the law is the product of theirs.
        sigma, y = np.asarray(state.sigma, float)[:, None], np.asarray(state.position, float)
        if isinstance(integrator, ABOBA):  # the state is in mid-step
            y = y - 0.1 * sigma[:, 0] * np.asarray(state.velocity)
        places = stats.norm.cdf((y[:, None] - [0.0, 8.0]) / sigma) @ [0.8, 0.2]
        low = sigma[:, 0] < 1.5  # where no chain crosses
        for name, part in (("all", places), ("low", places[low])):
            excess = stats.kstest(part, "uniform").statistic * np.sqrt(len(part))
            distances[num_levels, name] = excess / targets.KOLMOGOROV
    assert distances[8, "all"] < 1
    assert distances[8, "low"] < 1 < distances[1, "low"]


def test_ladders_are_trained():
    objective = neb.MaximumLikelihood(16, 2, num_levels=4)
    result = fit(conditional(), objective=objective, validation_data=DATA[:20])
    assert np.all(np.isfinite(result.losses))
    assert ((result.metrics["exchange_rate"] > 0) & (result.metrics["exchange_rate"] <= 1)).all()
    with pytest.raises(ValueError, match="num_levels must be 1 for an energy of one noise level"):
        fit(objective=objective)
    with pytest.raises(ValueError, match="num_levels must be a divisor of num_chains, got 3"):
        neb.MaximumLikelihood(16, num_levels=3)


@pytest.mark.parametrize("name", ["ULA", "ABOBA", "MALA"])
def test_any_integrator_and_any_energy(name):
    integrator = getattr(neb.integrators, name)()
    objective = neb.MaximumLikelihood(**SMALL, integrator=integrator)
    mlp = neb.networks.MLP((2,), "scalar", width_size=8, depth=1, key=jax.random.key(0))
    result = fit(neb.NetworkEnergy(mlp, 0.5, (2,)), objective=objective, num_steps=5)
    assert np.all(np.isfinite(result.losses))
    moved = fit(QUARTIC, data=POINTS.astype(np.float32), objective=objective, num_steps=5)
    assert np.all(moved.energy.weights != QUARTIC.weights)
    assert moved.energy.sigma == QUARTIC.sigma


def test_in_float64(x64):
    result = fit(data=DATA.astype(float), objective=LIKELIHOOD, num_steps=5)
    assert result.objective_state.position.dtype == np.float64
    assert result.losses.dtype == np.float64


def test_an_objective_of_its_own_state():
    """The protocol alone: a state that counts, and a metric."""

    class Counting(AbstractObjective):
        metrics = ("count",)
        start: jax.Array = eqx.field(default_factory=lambda: jnp.zeros(()))

        def optimizer(self, num_steps):
            return optax.sgd(0.0)

        def init(self, energy, key):
            return self.start

        def __call__(self, energy, x, key, state):
            return neb.denoising_loss(energy, x, key), state + 1, {"count": state}

        def validation_loss(self, energy, x, key, state):
            return state

    counting = Counting()
    settings = {"num_steps": 7, "validation_data": DATA[:5], "validate_every": 3}
    for _ in range(2):  # what init returns is copied, not given away
        result = fit(objective=counting, **settings)
    np.testing.assert_array_equal(result.metrics["count"], np.arange(7))
    np.testing.assert_array_equal(result.validation_losses, [3, 6, 7])
    assert result.objective_state == 7

    class Growing(Counting):
        def __call__(self, energy, x, key, state):
            return neb.denoising_loss(energy, x, key), jnp.append(state, 0.0), {"count": 0.0}

    class Misnamed(Counting):
        def __call__(self, energy, x, key, state):
            return neb.denoising_loss(energy, x, key), state, {"number": 0.0}

    with pytest.raises(ValueError, match="objective must return a state of the structure, shapes"):
        fit(objective=Growing())
    with pytest.raises(
        ValueError, match=r"the metrics that it names, \['count'\], got \['number'\]"
    ):
        fit(objective=Misnamed())
    assert fit(num_steps=2).metrics == {}
    assert energy().event_shape == (2,)


def modes(distance):
    """Two Gaussians, .8 and .2, so many standard deviations of Y apart, and X of them."""
    rng = np.random.default_rng(0)
    spread, sigma = 0.3, 0.4  # of X, and of the noise: Y has 0.5
    small = rng.random(20_000) < 0.2
    x = np.stack([np.where(small, distance * 0.5, 0.0), np.zeros(len(small))], axis=1)
    return (x + spread * rng.normal(size=x.shape)).astype(np.float32), sigma


@pytest.mark.slow
def test_the_weights_of_modes_that_the_chains_cross():
    """Denoising misses a weight of .2 by more than .03; maximum likelihood does not."""
    x, sigma = modes(3.5)
    network = neb.networks.MLP((2,), width_size=32, depth=2, key=jax.random.key(0))
    start = neb.ResidualEnergy(network, sigma, (2,), loc=x.mean(0), scale=x.std(0))
    denoised = fit(start, x, num_steps=300, batch_size=128).energy
    right = fit(
        denoised, x, num_steps=1000, batch_size=128, objective=neb.MaximumLikelihood()
    ).energy

    def share(energy):
        kernel = neb.WalkJumpKernel(energy, num_steps=50)
        draws = targets.independent_draws(kernel, num_chains=4000, num_draws=20)["y"]
        return np.mean(draws[:, 0] > 3.5 * 0.5 / 2)

    truth = np.mean(x[:, 0] + sigma * np.random.default_rng(1).normal(size=len(x)) > 3.5 * 0.25)
    # 4,000 independent chains: a standard error of .006.
    assert abs(share(denoised) - truth) > 0.03
    assert abs(share(right) - truth) < 0.03
