"""Replica exchange: the walk on several noise levels."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from jax.scipy.special import logsumexp
from numpyro.infer import MCMC

import numpyro_neb as neb
from numpyro_neb.integrators import ABOBA, BAOAB, GHMC, MALA
from numpyro_neb.integrators.base import WalkState
from numpyro_neb.sampling.ladder import Ladder

SIGMAS = (0.6, 0.9, 1.4, 2.5)
MIXTURE = targets.skewed_mixture()
KERNEL = neb.WalkJumpKernel(MIXTURE, sigmas=SIGMAS, num_steps=4)
FAR = neb.MixtureEnergy(np.array([[-3.0, 0.0], [7.0, 0.0]]), 1.0, log_weights=np.log([0.9, 0.1]))


def chains(kernel=KERNEL, *, num_samples=12, num_warmup=6, num_chains=2, **kwargs):
    settings = {"chain_method": "vectorized", "progress_bar": False} | kwargs
    return MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, num_chains=num_chains,
                **settings)  # fmt: skip


def run(kernel=KERNEL, key=0, **kwargs):
    run_kwargs = {k: kwargs.pop(k) for k in ("init_params", "extra_fields") if k in kwargs}
    mcmc = chains(kernel, **kwargs)
    mcmc.run(jax.random.key(key), **run_kwargs)
    return mcmc


@pytest.fixture(scope="module")
def mcmc():
    return run(extra_fields=("levels.sigma", "walk.position"))


def by_chain(mcmc, name="y"):
    return np.asarray(mcmc.get_samples(group_by_chain=True)[name])


def at_levels(count, key=0):
    """Independent exact draws at each level, of shape (count, levels, 2), and a ladder there."""
    keys = jax.random.split(jax.random.key(key), len(SIGMAS))
    y = [MIXTURE.at(s).sample(k, (count,)) for s, k in zip(SIGMAS, keys, strict=True)]
    return jnp.stack(y, axis=1)


def log_density(y, sigma):
    """The log density of Y at a level by the textbook formula, in float64, for each row."""
    weights, means, covariances = targets.components(MIXTURE.at(sigma))
    away = np.asarray(y, float)[:, None] - means
    quadratic = np.einsum("nki,kij,nkj->nk", away, np.linalg.inv(covariances), away)
    logs = np.log(weights) - quadratic / 2 - np.linalg.slogdet(covariances)[1] / 2
    return np.asarray(logsumexp(logs, axis=1))


@pytest.mark.statistical
@pytest.mark.parametrize("round_", [0, 1])
def test_a_round_of_exchanges_leaves_the_law_of_each_level(round_):
    """Exact draws stay exact; the rates are those of the formula, with the right pairs."""
    ladder, count = KERNEL._walker((), {}), 20_000
    assert isinstance(ladder, Ladder)
    y, key = at_levels(count), jax.random.key(1)
    state = KERNEL.init(jax.random.key(2), 0, None)
    level = jnp.arange(len(SIGMAS))

    @jax.jit
    def exchanged(y, key):
        both = jax.vmap(lambda s, y: jax.value_and_grad(MIXTURE.at(s))(y))
        # As velocities, which level they come from.
        start = WalkState(
            y, jnp.broadcast_to(level[:, None], y.shape) + 0.0, *both(ladder.sigmas, y)
        )
        return ladder.exchanged(start, state.levels, None, key, round_)

    walked, levels = jax.vmap(exchanged)(y, jax.random.split(key, count))
    came_from = np.asarray(walked.velocity[..., 0]).round().astype(int)
    np.testing.assert_array_equal(np.sort(came_from, axis=1), np.tile(level, (count, 1)))
    pairs = [(0, 1), (2, 3)] if round_ == 0 else [(1, 2)]
    for low, high in pairs:
        moved = came_from[:, low] == high
        swapped = np.asarray(walked.position)[:, [low, high]]
        np.testing.assert_array_equal(swapped[moved], np.asarray(y)[moved][:, [high, low]])
        logs = [[log_density(y[:, i], SIGMAS[j]) for i in (low, high)] for j in (low, high)]
        rate = np.minimum(1, np.exp(logs[0][1] + logs[1][0] - logs[0][0] - logs[1][1]))
        np.testing.assert_allclose(levels.exchange_rate[:, low], rate, rtol=2e-3, atol=1e-4)
        targets.within(moved.mean(), rate.mean(), np.sqrt(rate.mean() / count))
        assert 0.2 < rate.mean() < 0.98
    # The pairs of the other rounds have not tried.
    assert levels.exchange_rate.any(axis=0).tolist() == [(i, i + 1) in pairs for i in range(3)]
    for i, sigma in enumerate(SIGMAS):
        targets.assert_law(walked.position[:, i], MIXTURE.at(sigma))
    for i, sigma in enumerate(SIGMAS):
        energies = jax.vmap(MIXTURE.at(sigma))(walked.position[:, i])
        np.testing.assert_allclose(walked.potential[:, i], energies, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("integrator", [None, MALA(), ABOBA(0.2), BAOAB(0.2)], ids=str)
def test_every_level_has_its_law(integrator):
    kernel = neb.WalkJumpKernel(MIXTURE, sigmas=SIGMAS, num_steps=96, integrator=integrator)
    mcmc = chains(kernel, num_warmup=14, num_samples=1, num_chains=4096)
    mcmc.run(jax.random.key(0), extra_fields=("walk.position",))
    draws = mcmc.get_samples()
    np.testing.assert_allclose(draws["x"], jax.vmap(MIXTURE.at(0.6).denoise)(draws["y"]), atol=1e-4)
    targets.assert_law(draws["y"], MIXTURE.at(0.6))
    if not isinstance(integrator, ABOBA):  # whose state is in mid-step
        for i, sigma in enumerate(SIGMAS):
            position = mcmc.get_extra_fields()["walk.position"][:, i]
            targets.assert_law(position, MIXTURE.at(sigma))


@pytest.mark.slow
@pytest.mark.statistical
def test_weights_of_modes_ten_sigma_apart():
    """.9 and .1, which one level's walk never finds from where it starts."""
    kernel = neb.WalkJumpKernel(FAR, sigmas=(1.0, 1.5, 2.2, 3.3, 5.0), num_steps=32)
    start = jnp.tile(FAR.locs[:1], (200, 1))
    mcmc = run(kernel, num_warmup=100, num_samples=200, num_chains=200, init_params=start)
    shares = (by_chain(mcmc)[..., 0] > 2).mean(axis=1)
    targets.within(shares.mean(), 0.1, shares.std() / np.sqrt(len(shares)))
    assert shares.std() / np.sqrt(len(shares)) < 0.005
    assert mcmc.last_state.round_trips.min() > 10
    single = run(neb.WalkJumpKernel(FAR, num_steps=32), num_chains=20, num_samples=200,
                 init_params=start[:20])  # fmt: skip
    assert (by_chain(single)[..., 0] < 2).all()


def test_fields(mcmc):
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert {"exchange_rate", "round_trips", "acceptance_rate"} <= set(KERNEL.default_fields)
    assert fields["exchange_rate"].shape == (2, 12, 3)
    assert ((fields["exchange_rate"] >= 0) & (fields["exchange_rate"] <= 1)).all()
    assert fields["exchange_rate"].std() > 0
    assert (np.diff(fields["round_trips"], axis=1) >= 0).all()
    y, lowest = by_chain(mcmc), MIXTURE.at(SIGMAS[0])
    np.testing.assert_array_equal(y, fields["walk.position"][:, :, 0])
    np.testing.assert_allclose(fields["lp"], -jax.vmap(jax.vmap(lowest))(y), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fields["step_size"], 0.5 * SIGMAS[0], rtol=1e-6)
    np.testing.assert_allclose(
        by_chain(mcmc, "x"), jax.vmap(jax.vmap(lowest.denoise))(y), atol=1e-4
    )
    np.testing.assert_allclose(fields["levels.sigma"][0, -1], SIGMAS, rtol=1e-6)
    assert "exchange_rate" not in neb.WalkJumpKernel(MIXTURE).default_fields
    assert "sigma 0.6, 0.9, 1.4, 2.5" in str(KERNEL)


@pytest.mark.parametrize("chain_method", ["sequential", "parallel", jax.vmap])
def test_every_chain_method_gives_the_same_draws(chain_method, mcmc):
    actual = by_chain(run(chain_method=chain_method))
    np.testing.assert_allclose(actual, by_chain(mcmc), rtol=1e-4, atol=1e-4)


def test_a_run_goes_on_bit_for_bit(mcmc):
    """Draw 7 of the run is not one after which there is an exchange: the clock goes on too."""
    first = run(num_samples=7)
    restored = pickle.loads(pickle.dumps(first))
    restored.post_warmup_state = restored.last_state
    restored.num_samples = 5
    restored.run(restored.last_state.rng_key)
    whole = np.concatenate([by_chain(first), by_chain(restored)], axis=1)
    np.testing.assert_array_equal(whole, by_chain(mcmc))


def test_a_stream_and_a_saved_state_go_on(mcmc, tmp_path):
    data = neb.stream(chains(), jax.random.key(0), tmp_path / "draws.zarr", draws_per_write=5,
                      progress_bar=False)  # fmt: skip
    np.testing.assert_allclose(data.posterior["y"].values, by_chain(mcmc), rtol=1e-6, atol=1e-6)
    assert data.sample_stats["exchange_rate"].shape == (2, 12, 3)
    other = neb.WalkJumpKernel(MIXTURE, sigmas=(0.6, 0.9, 1.4, 2.6), num_steps=4)
    with pytest.raises(ValueError, match="sigmas"):
        neb.stream(chains(other), jax.random.key(0), tmp_path / "draws.zarr", draws_per_write=5,
                   progress_bar=False)  # fmt: skip
    neb.streaming.save_state(tmp_path / "state", mcmc)
    again = chains()
    neb.streaming.load_state(tmp_path / "state", again)
    for got, expected in zip(
        jax.tree.leaves(again.post_warmup_state.levels),
        jax.tree.leaves(mcmc.last_state.levels),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


def test_arviz(mcmc):
    data = neb.to_arviz(mcmc)
    assert data.posterior["x"].dims == ("chain", "draw", "event_dim_0")
    assert data.sample_stats["exchange_rate"].shape == (2, 12, 3)
    np.testing.assert_allclose(data.constant_data["sigmas"].values, [SIGMAS] * 2, rtol=1e-6)
    np.testing.assert_allclose(data.constant_data["sigma"].values, SIGMAS[0], rtol=1e-6)
    assert data.sample_stats.attrs["num_coordinates"] == 2


def test_levels_start_from_their_gaussians_or_around_init_params():
    state = KERNEL.init(jax.random.split(jax.random.key(0), 4096), 0, None)
    y = np.asarray(state.walk.position, float)
    for i, sigma in enumerate(SIGMAS):
        variance = np.asarray(MIXTURE.scale, float) ** 2 + sigma**2
        targets.within(y[:, i].mean(0), MIXTURE.loc, np.sqrt(variance / 4096))
        targets.within(y[:, i].var(0), variance, variance * np.sqrt(2 / 4096))
    start = jnp.tile(jnp.array([3.0, -1.0]), (4096, 1))
    state = KERNEL.init(jax.random.split(jax.random.key(0), 4096), 0, start)
    y = np.asarray(state.walk.position, float)
    np.testing.assert_array_equal(y[:, 0], start)
    variance = SIGMAS[2] ** 2 - SIGMAS[0] ** 2
    targets.within(y[:, 2].var(0), variance, variance * np.sqrt(2 / 4096))


@pytest.mark.statistical
def test_frozen_coordinates_stay_at_every_level():
    kernel = neb.WalkJumpKernel(
        MIXTURE, sigmas=SIGMAS, num_steps=16, frozen=np.array([True, False])
    )
    mcmc = run(kernel, init_params=jnp.full((2, 2), 0.7), extra_fields=("walk.position",))
    position = mcmc.get_extra_fields()["walk.position"]
    assert (position[..., 0] == np.float32(0.7)).all()
    assert (position[..., 1].std(axis=0) > 0).all()
    assert neb.to_arviz(mcmc).sample_stats.attrs["num_coordinates"] == 1
    assert mcmc.get_extra_fields()["exchange_rate"].max() > 0


class Counted(neb.AbstractEnergy):
    """A Gaussian's energy that counts how often it is computed, with a wall that one level has."""

    sigma: jax.Array
    counter: list = eqx.field(static=True)
    wall: float = eqx.field(static=True, default=np.inf)
    loc: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.0))
    scale: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(1.0))
    event_shape: tuple = eqx.field(static=True, default=(2,))

    def at(self, sigma):
        return Counted(jnp.asarray(sigma, float), self.counter, self.wall)

    def __call__(self, y):
        jax.debug.callback(lambda _: self.counter.append(1), y)
        # What is infinite at the highest level.
        beyond = (self.sigma > 1) & (jnp.sum(y**2) > self.wall)
        return jnp.sum(y**2) / (2 * (1 + self.sigma**2)) + jnp.where(beyond, jnp.inf, 0)


@pytest.mark.parametrize(("num_steps", "num_draws", "rounds"), [(32, 1, 2), (8, 4, 2), (5, 4, 1)])
def test_an_exchange_costs_a_gradient_for_each_level(num_steps, num_draws, rounds):
    counter = []
    kernel = neb.WalkJumpKernel(Counted(jnp.array(0.5), counter), sigmas=(0.5, 0.7, 1.1),
                                num_steps=num_steps)  # fmt: skip
    state = kernel.init(jax.random.split(jax.random.key(0), 2), 0, None)
    jax.effects_barrier()
    counter.clear()
    sample = jax.jit(kernel.sample)
    for _ in range(num_draws):
        state = sample(state)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(counter) == 2 * 3 * (num_steps * num_draws + rounds)


@pytest.mark.statistical
def test_a_level_that_diverges_is_marked_and_no_exchange_spreads_it():
    energy = Counted(jnp.array(0.5), [], wall=4.0)
    kernel = neb.WalkJumpKernel(energy, sigmas=(0.5, 0.7, 1.1), num_steps=16, integrator=BAOAB())
    mcmc = run(kernel, num_samples=40, init_params=jnp.full((2, 2), 0.01))
    diverging = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["diverging"])
    assert diverging.any()
    assert np.isfinite(by_chain(mcmc)).all()
    # A Metropolis integrator never goes there, and no exchange brings what the level forbids.
    mcmc = run(neb.WalkJumpKernel(energy, sigmas=(0.5, 0.7, 1.1), num_steps=16), num_samples=40,
               init_params=jnp.full((2, 2), 0.01), extra_fields=("walk.position",))  # fmt: skip
    assert not mcmc.get_extra_fields()["diverging"].any()
    highest = mcmc.get_extra_fields()["walk.position"][:, -1]
    assert (np.sum(np.square(highest), axis=1) <= 4).all()


def test_an_integrator_that_shows_another_place_must_come_back_from_it(untyped):
    class Elsewhere(BAOAB):
        def observe(self, target, state):
            return state._replace(position=state.position + 1)

    for make in (
        lambda: neb.WalkJumpKernel(MIXTURE, sigmas=SIGMAS, integrator=Elsewhere()),
        lambda: neb.MaximumLikelihood(16, num_levels=4, integrator=Elsewhere()),
    ):
        with pytest.raises(TypeError, match="integrator must have a method resumed"):
            make()


@pytest.mark.statistical
def test_warm_up_evens_the_exchange_rates():
    """In 8 dimensions X ~ N(0, I): Y's variance goes from 1.01 to 101, and rates are very uneven
    for levels even in log sigma, but even for the right ones."""
    energy = targets.gaussian(np.ones(8), 0.1)
    kernel = neb.WalkJumpKernel(energy, num_levels=7, max_sigma=10.0, num_steps=16)
    assert kernel.levels[0] == pytest.approx(0.1, rel=1e-6)
    mcmc = run(kernel, num_warmup=256, num_samples=1, num_chains=16)
    sigma = np.asarray(mcmc.last_state.levels.sigma, float)
    assert (np.diff(sigma, axis=1) > 0).all()
    np.testing.assert_allclose(sigma[:, [0, -1]], [[0.1, 10.0]] * 16, rtol=1e-6)
    # The rate depends on the ratio of the standard deviations alone.
    spacing = np.diff(np.log(1 + sigma**2), axis=1).mean(axis=0)
    assert spacing.max() / spacing.min() < 1.6
    before = np.diff(np.log(1 + np.geomspace(0.1, 10, 7) ** 2))
    assert before.max() / before.min() > 10


@pytest.mark.statistical
def test_too_short_a_warm_up_says_that_it_sets_no_levels():
    kernel = neb.WalkJumpKernel(FAR, num_levels=3)
    with pytest.warns(UserWarning, match=r"num_warmup = 20 is too few .* takes 256 draws of 1 st"):
        run(kernel, num_warmup=20, num_samples=1)


def test_a_float32_family_stays_so_in_float64(x64, strict):
    mlp = neb.networks.MLP((2,), width_size=4, depth=1, conditional=True, key=jax.random.key(0))
    family = neb.ConditionalEnergy(mlp, (2,), (0.1, 1.0), scale=3.0)
    family = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, family)
    kernel = neb.WalkJumpKernel(family, sigma=0.1, num_levels=3, num_steps=16)
    state = kernel.init(jax.random.key(0), 16, None)
    assert kernel.sample(state).draw["y"].dtype == jnp.float32
    assert family.sample(jax.random.key(0), (1,), num_levels=2).dtype == jnp.float32
    x = jnp.ones((4, 2), jnp.float32)
    assert neb.dual_score_loss(family, x, jax.random.key(0)).dtype == jnp.float32


@pytest.mark.statistical
def test_the_highest_level_is_the_spread_of_the_data():
    kernel = neb.WalkJumpKernel(FAR, num_levels=3)
    # The mean of (x - 3.)^2 over the modes, 10^2 .9 .1, in the first coordinate alone.
    np.testing.assert_allclose(kernel.levels, [1, np.sqrt(3), 3], rtol=1e-5)
    mlp = neb.networks.MLP((2,), width_size=4, depth=1, conditional=True, key=jax.random.key(0))
    family = neb.ConditionalEnergy(mlp, (2,), (0.1, 1.0), scale=3.0)
    np.testing.assert_allclose(
        neb.WalkJumpKernel(family, sigma=0.1, num_levels=3).levels, [0.1, 0.1**0.5, 1], rtol=1e-5
    )
    assert run(neb.WalkJumpKernel(family, sigma=0.1, num_levels=3)).last_state.lp.shape == (2,)


@pytest.mark.statistical
def test_tuned_walks_and_other_temperatures():
    """Each level has a step of its own, and the exchange is that of beta phi."""
    s, beta = np.array([0.2, 1.0]), 4.0
    energy = targets.gaussian(s, 0.5)
    kernel = neb.WalkJumpKernel(energy, sigmas=(0.5, 0.8, 1.3), num_steps=32, integrator=GHMC(),
                                inverse_temperature=beta, adapt_step_size=True)  # fmt: skip
    mcmc = run(kernel, num_warmup=60, num_samples=1, num_chains=1024)
    steps = np.asarray(mcmc.last_state.adaptation.state.step_size)
    assert steps.shape == (1024, 3)
    assert steps.std(axis=0).all()
    y, variance = by_chain(mcmc)[:, 0].astype(float), (s**2 + 0.25) / beta
    targets.within(y.mean(0), 0, np.sqrt(variance / len(y)))
    targets.within(y.var(0), variance, variance * np.sqrt(2 / len(y)))


def test_convolutions_are_products_in_the_loop():
    def network(y, t):
        return jax.lax.conv(y[None, None], jnp.full((1, 1, 3, 3), 0.1), (1, 1), "SAME")[0, 0] * t

    family = neb.ConditionalEnergy(network, (4, 4), (0.1, 1.0))
    kernel = neb.WalkJumpKernel(family, sigmas=(0.1, 0.3, 1.0), num_steps=16)
    state = kernel.init(jax.random.key(0), 0, None)
    program = str(jax.make_jaxpr(kernel.sample)(state))
    assert "conv_general_dilated" not in program
    assert "dot_general" in program


def test_chains_sharded_over_devices_give_the_same_draws():
    mesh = jax.sharding.Mesh(jax.devices(), ("chains",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("chains"))
    keys = jax.random.split(jax.random.key(0), 4)
    draws = []
    for given in (keys, jax.device_put(keys, sharding)):
        mcmc = chains(num_chains=4, num_samples=5)
        mcmc.run(given)
        draws.append(by_chain(mcmc))
    assert len(mcmc.last_state.draw["y"].sharding.device_set) == 4
    np.testing.assert_allclose(*draws, rtol=1e-4, atol=1e-4)


def test_promotes_nothing(strict):
    kernel = neb.WalkJumpKernel(MIXTURE, num_levels=3, num_steps=16)
    state = kernel.sample(kernel.init(jax.random.split(jax.random.key(0)), 40, None))
    assert state.num_diverging.tolist() == [0, 0]


def test_float64(x64):
    energy = neb.MixtureEnergy(np.array([[-1.0], [1.0]]), 0.5)
    state = neb.WalkJumpKernel(energy, sigmas=(0.5, 1.0)).init(jax.random.key(0), 0, None)
    assert state.levels.sigma.dtype == state.draw["y"].dtype == jnp.float64
