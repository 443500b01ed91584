import dataclasses
import pickle
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from numpyro.infer import MCMC

import numpyro_neb as neb
from numpyro_neb.integrators import ABOBA, BAOAB, GHMC, MALA, ULA

MIXTURE = targets.skewed_mixture()


def run(kernel, key=0, **kwargs):
    run_kwargs = {k: kwargs.pop(k) for k in ("init_params", "extra_fields") if k in kwargs}
    settings = {"num_warmup": 5, "num_samples": 20, "progress_bar": False} | kwargs
    mcmc = MCMC(kernel, **settings)
    mcmc.run(jax.random.key(key), **run_kwargs)
    return mcmc


INTEGRATORS = [
    BAOAB(),
    BAOAB(step_size=0.3, friction=2.0),
    ULA(step_size=0.1),
    MALA(),
    ABOBA(),
    GHMC(),
]


@pytest.mark.statistical
@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_the_walk_has_the_law_and_the_jump_is_the_posterior_mean(integrator):
    kernel = neb.WalkJumpKernel(MIXTURE, integrator=integrator, num_steps=50)
    draws = targets.independent_draws(kernel, num_chains=4096, num_draws=20)
    targets.assert_law(draws["y"], MIXTURE)
    np.testing.assert_allclose(draws["x"], jax.vmap(MIXTURE.denoise)(draws["y"]), atol=1e-4)


def test_jumps_are_narrower_than_x():
    """E x_hat = E X, and Var(x_hat) = Var(X) - E Cov(X given Y); for a Gaussian, both known."""
    s, sigma = np.array([0.5, 1.0]), 0.7
    energy = targets.gaussian(s, sigma, locs=[3.0, -1.0])
    kernel = neb.WalkJumpKernel(energy, num_steps=50)
    x = targets.independent_draws(kernel, num_chains=4096, num_draws=4)["x"].astype(float)
    variance = s**4 / (s**2 + sigma**2)
    targets.within(x.mean(0), [3.0, -1.0], np.sqrt(variance / len(x)))
    targets.within(x.var(0), variance, variance * np.sqrt(2 / len(x)))


def test_one_long_chain_has_the_moments_within_its_ess():
    from numpyro.diagnostics import effective_sample_size

    y = np.asarray(
        run(neb.WalkJumpKernel(MIXTURE), num_warmup=200, num_samples=20_000).get_samples()["y"],
        float,
    )
    mean, covariance = targets.moments(MIXTURE)
    for values, truth in ((y, mean), ((y - mean) ** 2, np.diag(covariance))):
        ess = effective_sample_size(values[None])
        targets.within(values.mean(0), truth, values.std(0) / np.sqrt(ess))


def test_chains_start_from_the_stated_gaussian():
    kernel = neb.WalkJumpKernel(MIXTURE)
    keys = jax.random.split(jax.random.key(0), 4096)
    state = kernel.init(keys, 0, None, model_args=(), model_kwargs={})
    y = np.asarray(state.draw["y"], float)
    variance = np.asarray(MIXTURE.scale**2 + MIXTURE.sigma**2, float)
    targets.within(y.mean(0), np.asarray(MIXTURE.loc, float), np.sqrt(variance / 4096))
    targets.within(y.var(0), variance, variance * np.sqrt(2 / 4096))


@pytest.mark.parametrize("chain_method", ["sequential", "parallel", jax.vmap])
def test_every_chain_method_gives_the_same_draws(chain_method):
    kernel = neb.WalkJumpKernel(MIXTURE, num_steps=3)
    expected = run(kernel, num_chains=2, chain_method="vectorized").get_samples()
    actual = run(kernel, num_chains=2, chain_method=chain_method).get_samples()
    for name in ("x", "y"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5)


def test_thinning_keeps_every_other_draw():
    kernel = neb.WalkJumpKernel(MIXTURE)
    every = run(kernel).get_samples()["y"]
    np.testing.assert_array_equal(run(kernel, thinning=2).get_samples()["y"], every[1::2])


def test_inner_steps_are_steps_of_the_walk():
    """num_steps steps between draws: the law after one draw of n is that of n draws of one."""
    start = jnp.zeros((4096, 2))
    y = {}
    for inner, draws in ((6, 1), (1, 6)):
        kernel = neb.WalkJumpKernel(MIXTURE, num_steps=inner)
        settings = {"num_warmup": 0, "num_samples": draws, "num_chains": len(start)}
        mcmc = run(kernel, **settings, chain_method="vectorized", init_params=start)
        y[inner] = np.asarray(mcmc.get_samples(group_by_chain=True)["y"][:, -1], float)
    error = np.sqrt((y[1].var(0) + y[6].var(0)) / len(start))
    targets.within(y[1].mean(0), y[6].mean(0), error)


@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_a_run_continues_bit_for_bit(chain_method):
    kernel = neb.WalkJumpKernel(MIXTURE)
    settings = {"num_chains": 2, "chain_method": chain_method, "num_warmup": 5}
    whole = run(kernel, num_samples=20, **settings).get_samples(group_by_chain=True)["y"]
    mcmc = run(kernel, num_samples=10, **settings)
    first = mcmc.get_samples(group_by_chain=True)["y"]
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    second = mcmc.get_samples(group_by_chain=True)["y"]
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), whole)


def test_warmup_then_run():
    kernel = neb.WalkJumpKernel(MIXTURE)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=10, progress_bar=False)
    mcmc.warmup(jax.random.key(0), collect_warmup=True)
    assert mcmc.get_samples()["y"].shape == (5, 2)
    mcmc.run(mcmc.post_warmup_state.rng_key)
    expected = run(kernel, num_samples=10).get_samples()["y"]
    np.testing.assert_array_equal(mcmc.get_samples()["y"], expected)


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_init_params(chains, chain_method):
    start = jnp.arange(2.0 * chains).reshape((chains, 2)[2 - (chains > 1) - 1 :])
    kernel = neb.WalkJumpKernel(MIXTURE, integrator=ULA(step_size=1e-6))
    settings = {"num_chains": chains, "chain_method": chain_method, "num_warmup": 0}
    mcmc = run(kernel, num_samples=1, init_params=start, **settings)
    y = mcmc.get_samples(group_by_chain=True)["y"][:, -1]
    np.testing.assert_allclose(y.reshape(start.shape), start, atol=1e-4)


def test_raw_keys():
    mcmc = MCMC(neb.WalkJumpKernel(MIXTURE), num_warmup=1, num_samples=3, num_chains=2,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.PRNGKey(0))
    assert mcmc.get_samples()["y"].shape == (6, 2)


def test_fields():
    mcmc = run(neb.WalkJumpKernel(MIXTURE), extra_fields=("walk.velocity", "num_diverging"))
    fields = mcmc.get_extra_fields()
    assert set(fields) == {
        "diverging", "lp", "energy", "step_size", "walk.velocity", "num_diverging"
    }  # fmt: skip
    y = mcmc.get_samples()["y"]
    np.testing.assert_allclose(fields["lp"], -jax.vmap(MIXTURE)(y), rtol=1e-5)
    kinetic = jnp.sum(fields["walk.velocity"] ** 2, axis=1) / 2
    np.testing.assert_allclose(fields["energy"], kinetic - fields["lp"], rtol=1e-5)
    np.testing.assert_allclose(fields["step_size"], 0.7, rtol=1e-6)
    assert not fields["diverging"].any()
    # An unadjusted integrator accepts nothing and rejects nothing.
    assert "acceptance_rate" not in neb.WalkJumpKernel(MIXTURE).default_fields


def test_metropolis_integrators_report_their_acceptance():
    kernel = neb.WalkJumpKernel(MIXTURE, integrator=GHMC(step_size=1.5), num_steps=3)
    mcmc = run(kernel, num_chains=2, chain_method="vectorized")
    rate = mcmc.get_extra_fields(group_by_chain=True)["acceptance_rate"]
    assert rate.shape == (2, 20)
    assert 0.2 < rate.mean() < 1
    assert rate.std() > 0
    single = run(kernel)
    text = kernel.get_diagnostics_str(single.last_state)
    assert text == f"step size 1.05e+00, acc. prob={float(single.last_state.acceptance_rate):.2f}"


def test_metropolis_integrators_stay_in_the_finite_numbers():
    for integrator in (MALA(step_size=50.0), GHMC(step_size=50.0)):
        mcmc = run(neb.WalkJumpKernel(MIXTURE, integrator=integrator, num_steps=20))
        assert not mcmc.get_extra_fields()["diverging"].any()
        assert np.isfinite(mcmc.get_samples()["y"]).all()


@pytest.mark.parametrize("integrator", [BAOAB(), MALA()], ids=lambda i: type(i).__name__)
def test_inverse_temperature(integrator):
    """The law of the walk is N(m, v / beta); the jump is that of phi.

    At beta = 10 a step of sigma, not sigma / sqrt(beta), is beyond what is stable.
    """
    s, sigma, beta = np.array([0.1, 1.0]), 0.7, 10.0
    energy = targets.gaussian(s, sigma, locs=[3.0, -1.0])
    kernel = neb.WalkJumpKernel(
        energy, integrator=integrator, num_steps=50, inverse_temperature=beta
    )
    draws = targets.independent_draws(kernel, num_chains=4096, num_draws=6)
    y, variance = draws["y"].astype(float), (s**2 + sigma**2) / beta
    targets.within(y.mean(0), [3.0, -1.0], np.sqrt(variance / len(y)))
    targets.within(y.var(0), variance, variance * np.sqrt(2 / len(y)))
    np.testing.assert_allclose(draws["x"], jax.vmap(energy.denoise)(draws["y"]), atol=1e-4)


@pytest.mark.parametrize("integrator", [BAOAB(), GHMC(), MALA()], ids=lambda i: type(i).__name__)
def test_frozen_coordinates(integrator):
    """In-painting: the rest has its law given the frozen part, known for a Gaussian."""
    root = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.4, 0.7]])
    covariance = root @ root.T + 0.5**2 * np.eye(3)
    energy = neb.MixtureEnergy(np.zeros((1, 3)), 0.5, covariances=(root @ root.T)[None])
    frozen, given = np.array([False, True, False]), 1.3
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=50, frozen=frozen)
    start = jnp.where(frozen, given, jax.random.normal(jax.random.key(1), (4096, 3)))
    mcmc = run(kernel, num_warmup=9, num_samples=1, num_chains=4096,
               chain_method="vectorized", init_params=start)  # fmt: skip
    y = np.asarray(mcmc.get_samples()["y"], float)
    assert (y[:, 1] == np.asarray(start)[0, 1]).all()
    gain = covariance[[0, 2], 1] / covariance[1, 1]
    rest = covariance[np.ix_([0, 2], [0, 2])] - np.outer(gain, covariance[1, [0, 2]])
    targets.within(y[:, [0, 2]].mean(0), gain * given, np.sqrt(np.diag(rest) / len(y)))
    products = np.einsum("ni,nj->nij", *(y[:, [0, 2]] - gain * given,) * 2)
    targets.within(products.mean(0), rest, products.std(0) / np.sqrt(len(y)))
    # The jump of the frozen part is E[X given all of y], as everywhere.
    np.testing.assert_allclose(
        mcmc.get_samples()["x"], jax.vmap(energy.denoise)(y.astype(np.float32)), atol=1e-4
    )
    # A frozen coordinate has no velocity, and so no share in the energy.
    if mcmc.last_state.walk.velocity is not None:
        assert not mcmc.last_state.walk.velocity[:, 1].any()


@pytest.mark.statistical
def test_score_clipping_tames_a_wild_walk(digits_energy):
    wild = neb.WalkJumpKernel(
        digits_energy, integrator=BAOAB(step_size=1.9), num_steps=20, max_score=1.0
    )
    settings = {"num_samples": 100, "num_chains": 4, "chain_method": "vectorized"}
    assert not run(wild, **settings).get_extra_fields()["diverging"].any()


def test_jumps_alone_are_kept():
    mcmc = run(neb.WalkJumpKernel(MIXTURE), extra_fields=("~draw.y",))
    assert set(mcmc.get_samples()) == {"x"}
    np.testing.assert_array_equal(
        mcmc.get_samples()["x"], run(neb.WalkJumpKernel(MIXTURE)).get_samples()["x"]
    )


def test_chains_sharded_over_devices_give_the_same_draws():
    mesh = jax.sharding.Mesh(jax.devices(), ("chains",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("chains"))
    keys = jax.random.split(jax.random.key(0), 8)
    draws = []
    for given in (keys, jax.device_put(keys, sharding)):
        mcmc = MCMC(neb.WalkJumpKernel(MIXTURE, num_steps=3), num_warmup=2, num_samples=5,
                    num_chains=8, chain_method="vectorized", progress_bar=False)  # fmt: skip
        mcmc.run(given)
        draws.append(mcmc.get_samples(group_by_chain=True)["x"])
    assert len(mcmc.last_state.draw["y"].sharding.device_set) == 4
    np.testing.assert_allclose(*draws, rtol=1e-5, atol=1e-5)


MANY_STEPS = """
import resource, sys, jax, jax.numpy as jnp, numpyro_neb as neb
from numpyro.infer import MCMC
energy = neb.NetworkEnergy(lambda y: jnp.sum(y**2) / 2, 1.0, (64,))
mcmc = MCMC(neb.WalkJumpKernel(energy, num_steps=int(sys.argv[1])), num_warmup=0,
            num_samples=1000, progress_bar=False)
mcmc.run(jax.random.key(0))
assert mcmc.get_samples()["y"].shape == (1000, 64)
variance = float(mcmc.get_samples()["y"][10:].var())
print(variance, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_million_steps_take_no_more_memory_than_ten_thousand():
    """10^6 steps in 64 dimensions, 10^3 of them recorded: stored, they would be 256 MB."""
    peaks = []
    for num_steps in (10, 1000):
        command = [sys.executable, "-c", MANY_STEPS, str(num_steps)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        variance, peak = map(float, result.stdout.split())
        peaks.append(peak / 1024)
    # Of 990 nearly independent draws of 64 unit Gaussians.
    targets.within(variance, 1.0, np.sqrt(2 / (990 * 64)))
    assert peaks[1] - peaks[0] < 64, peaks


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_every_integrator_goes_on_bit_for_bit(integrator):
    kernel = neb.WalkJumpKernel(MIXTURE, integrator=integrator, num_steps=2)
    whole = run(kernel, num_samples=6).get_samples()["y"]
    mcmc = run(kernel, num_samples=3)
    first = mcmc.get_samples()["y"]
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    np.testing.assert_array_equal(np.concatenate([first, mcmc.get_samples()["y"]]), whole)


class Counted(neb.AbstractEnergy):
    """A Gaussian's energy that counts how often it is computed."""

    sigma: jax.Array
    loc: jax.Array
    scale: jax.Array
    counter: list = eqx.field(static=True)
    event_shape: tuple = eqx.field(static=True, default=(2,))

    def __call__(self, y):
        jax.debug.callback(lambda: self.counter.append(1))
        return jnp.sum(y**2) / 2


def test_a_jump_costs_no_network_call():
    counter = []
    energy = Counted(jnp.array(0.5), jnp.array(0.0), jnp.array(1.0), counter)
    kernel = neb.WalkJumpKernel(energy, num_steps=7)
    state = kernel.init(jax.random.key(0), 0, None)
    jax.block_until_ready(state)
    jax.effects_barrier()
    before = len(counter)
    jax.block_until_ready(jax.jit(kernel.sample)(state))
    jax.effects_barrier()
    assert (before, len(counter) - before) == (1, 7)


def test_init_compiles_once():
    traces = []

    class Traced(Counted):
        def __call__(self, y):
            traces.append(y)
            return jnp.sum(y**2) / 2

    energy = Traced(jnp.array(0.5), jnp.array(0.0), jnp.array(1.0), [])
    kernel = neb.WalkJumpKernel(energy)
    kernel.init(jax.random.key(0), 0, None)
    first = len(traces)
    for key in range(1, 4):
        kernel.init(jax.random.key(key), 0, None)
    assert len(traces) == first > 0


def test_a_second_run_with_the_bar_compiles_nothing(monkeypatch, capfd):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    mcmc = MCMC(neb.WalkJumpKernel(MIXTURE), num_warmup=2, num_samples=3, num_chains=2,
                chain_method="vectorized")  # fmt: skip
    mcmc.run(jax.random.key(0))
    with jax.log_compiles():
        mcmc.run(jax.random.key(1))
    compiled = [line for line in capfd.readouterr().err.splitlines() if "_body_fn" in line]
    assert not [line for line in compiled if "Finished XLA compilation" in line]


def test_inside_jit():
    kernel = neb.WalkJumpKernel(MIXTURE)

    def last(key):
        mcmc = MCMC(kernel, num_warmup=2, num_samples=3, progress_bar=False)
        mcmc.run(key)
        return mcmc.get_samples()["y"][-1]

    inside = jax.jit(last)(jax.random.key(0))
    np.testing.assert_allclose(inside, last(jax.random.key(0)), rtol=1e-5)


def test_promotes_nothing(strict):
    kernel = neb.WalkJumpKernel(MIXTURE, num_steps=2)
    state = kernel.sample(kernel.init(jax.random.split(jax.random.key(0)), 0, None))
    assert state.num_diverging.tolist() == [0, 0]


def test_leaks_no_tracer():
    kernel = neb.WalkJumpKernel(MIXTURE)
    with jax.checking_leaks():
        jax.jit(lambda key: kernel.sample(kernel.init(key, 0, None)))(jax.random.key(0))


@pytest.mark.parametrize("activation", [jax.nn.softplus, jax.nn.gelu, jnp.tanh])
def test_an_mcmc_pickles(activation):
    network = eqx.nn.MLP(2, 2, 4, 1, activation=activation, key=jax.random.key(0))
    mcmc = run(neb.WalkJumpKernel(neb.ResidualEnergy(network, 0.5, (2,))))
    restored = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(restored.get_samples()["x"], mcmc.get_samples()["x"])
    # It can go on where the other stopped.
    for either in (mcmc, restored):
        either.post_warmup_state = either.last_state
        either.run(either.last_state.rng_key)
    np.testing.assert_array_equal(restored.get_samples()["y"], mcmc.get_samples()["y"])


def test_a_kernel_is_frozen():
    kernel = neb.WalkJumpKernel(MIXTURE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.num_steps = 3


EXPLODING = neb.WalkJumpKernel(targets.gaussian([0.1, 0.1], 1.0), integrator=BAOAB(step_size=3.0))


def test_an_exploding_walk_is_marked_and_counted(capsys):
    mcmc = run(EXPLODING, num_samples=1500)  # enough to leave float64 too
    y = np.asarray(mcmc.get_samples()["y"])
    diverging = np.asarray(mcmc.get_extra_fields()["diverging"])
    assert diverging.any()
    # Marked from the first bad draw on; nothing before it is.
    assert np.all(np.diff(diverging.astype(int)) >= 0)
    assert np.all(np.isfinite(y[~diverging]))
    assert mcmc.last_state.num_diverging == diverging.sum()
    assert f"{diverging.sum()} diverging" in EXPLODING.get_diagnostics_str(mcmc.last_state)
    mcmc.print_summary()
    assert f"Number of divergences: {diverging.sum()}" in capsys.readouterr().out


def test_progress_bar_text():
    state = run(neb.WalkJumpKernel(MIXTURE)).last_state
    text = neb.WalkJumpKernel(MIXTURE).get_diagnostics_str(state)
    assert text == "step size 7.00e-01"


@pytest.mark.statistical
def test_a_walk_on_the_digits_explodes_near_two_sigma(digits_energy):
    """Steps below 2 sigma are stable for the true density; a learned one gives out a bit before."""
    settings = {"num_samples": 100, "num_chains": 4, "chain_method": "vectorized"}
    fine = run(neb.WalkJumpKernel(digits_energy, num_steps=20), **settings)
    assert not fine.get_extra_fields()["diverging"].any()
    wild = neb.WalkJumpKernel(digits_energy, integrator=BAOAB(step_size=1.9), num_steps=20)
    assert run(wild, **settings).get_extra_fields()["diverging"].any()


def test_float64(x64):
    energy = neb.MixtureEnergy(np.asarray(MIXTURE.locs, np.float64), 0.7)
    mcmc = run(neb.WalkJumpKernel(energy), num_chains=2, chain_method="vectorized")
    assert mcmc.get_samples()["x"].dtype == jnp.float64


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: neb.WalkJumpKernel(MIXTURE, num_steps=0), ValueError, "num_steps must be .*got 0"),
        (lambda: neb.WalkJumpKernel(MIXTURE, num_steps=1.5), ValueError, "num_steps .* got 1.5"),
        *(
            (
                lambda name=name, value=value: neb.WalkJumpKernel(MIXTURE, **{name: value}),
                ValueError,
                f"{name} must be .*got {value}",
            )
            for name, value in (
                ("inverse_temperature", 0.0),
                ("inverse_temperature", float("nan")),
                ("max_score", -1.0),
                ("max_bias", 1.5),
                ("target_accept_prob", 1.0),
            )
        ),
        (
            lambda: neb.WalkJumpKernel(MIXTURE, target_accept_prob=0.8),
            ValueError,
            "target_accept_prob must be None for an integrator without a Metropolis test",
        ),
        (
            lambda: neb.WalkJumpKernel(MIXTURE, frozen=np.array([0, 1])),
            ValueError,
            r"frozen must be a boolean array of the event shape \(2,\), got int64 of shape",
        ),
        (
            lambda: neb.WalkJumpKernel(MIXTURE, frozen=np.ones(3, bool)),
            ValueError,
            r"frozen must be .* got bool of shape \(3,\)",
        ),
        (
            lambda: run(neb.WalkJumpKernel(MIXTURE, frozen=np.array([True, False]))),
            ValueError,
            "init_params must be given if coordinates are frozen",
        ),
        (
            lambda: neb.WalkJumpKernel(MIXTURE, integrator="BAOAB"),
            TypeError,
            r"integrator must be one of numpyro_neb.integrators.*got 'BAOAB'",
        ),
        (
            lambda: neb.WalkJumpKernel(lambda: None),
            TypeError,
            r"energy must be .* got function: wrap .*; a NumPyro model goes to"
            r" WalkJumpKernel\(model=\.\.\.\)$",
        ),
        (
            lambda: run(neb.WalkJumpKernel(MIXTURE), init_params=jnp.zeros(3)),
            ValueError,
            r"init_params must be a float array of shape \(2,\), got float\d\d of shape \(3,\)",
        ),
        (
            lambda: run(neb.WalkJumpKernel(MIXTURE), init_params=jnp.zeros(2, int)),
            ValueError,
            r"init_params must be a float array of shape \(2,\), got int",
        ),
        (
            lambda: run(neb.WalkJumpKernel(MIXTURE), init_params=jnp.array([jnp.nan, 0.0])),
            ValueError,
            "init_params must be finite",
        ),
        (
            lambda: MCMC(neb.WalkJumpKernel(MIXTURE), num_warmup=1, num_samples=1).run(
                jax.random.key(0), jnp.zeros(2)
            ),
            TypeError,
            "run takes no model args",
        ),
    ],
)
def test_bad_arguments(build, error, message, untyped):
    with pytest.raises(error, match=message):
        build()
