import re
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import targets
from trainings import DATA, SIGMA, Epochs, conditional, energy, fit

import numpyro_neb as neb
from numpyro_neb.training import loop, minibatches


def test_learns_a_gaussian():
    """X ~ N(0, I): the best jump is y / (1 + sigma^2); the loss floor 2 sigma^2 / (1 + sigma^2)."""
    data = np.random.default_rng(1).normal(size=(20_000, 2)).astype(np.float32)
    result = fit(data=data, num_steps=1500, batch_size=128)
    y = jnp.array([[1.0, 0.0], [-0.5, 1.0], [0.3, -1.2]])
    jump = neb.posterior_mean(result.energy, y)
    np.testing.assert_allclose(jump, y / (1 + SIGMA**2), atol=0.05)
    tail = result.losses[-500:]
    floor = 2 * SIGMA**2 / (1 + SIGMA**2)
    assert abs(tail.mean() - floor) < targets.STANDARD_ERRORS * tail.std() / np.sqrt(500)


def test_result():
    result = fit(validation_data=DATA[:20], validate_every=20)
    assert isinstance(result, neb.FitResult)
    assert result.losses.shape == (50,)
    assert np.all(np.isfinite(result.losses))
    np.testing.assert_array_equal(result.validation_steps, [20, 40, 50])
    expected = neb.denoising_loss(
        result.energy, jnp.asarray(DATA[:20]), jax.random.split(jax.random.key(1))[1]
    )
    np.testing.assert_allclose(result.validation_losses[-1], expected, rtol=1e-5)
    assert fit().validation_losses.shape == (0,)
    assert repr(result).startswith("FitResult(ResidualEnergy, 50 steps: loss ")
    assert len(repr(result)) < 250


def test_prints_in_three_lines():
    """With losses as shares of sigma^2 d, what the raw noise has: here 0.5."""
    held_out = fit(validation_data=DATA[:20], validate_every=20)
    losses = held_out.validation_losses
    lines = str(held_out).splitlines()
    assert lines[0] == "ResidualEnergy after 50 training steps"
    first, end = held_out.losses[0], held_out.losses[-5:].mean()
    shares = (
        f"loss: {first:.4g} ({first / 0.5:.1%} of the noise) at first, {end:.4g} ({end / 0.5:.1%}"
    )
    assert lines[1] == f"{shares} of the noise) as the mean of the last 5"
    best = int(np.argmin(losses))
    lowest = f"lowest {losses[best]:.4g} after step {[20, 40, 50][best]}"
    end = f"held-out loss: {losses[-1]:.4g} ({losses[-1] / 0.5:.1%} of the noise) at the end"
    assert lines[2] == f"{end}, {lowest}"
    assert "no held-out loss: give fit validation_data" in str(fit(num_steps=2))
    own = fit(objective=lambda *args: neb.denoising_loss(*args), num_steps=2)
    assert "of the noise" not in str(own)  # the scale of a user's loss is not known
    assert own.noise_loss is None
    assert fit(conditional(), num_steps=2).noise_loss == 2


def test_the_key_decides():
    first, again, other = fit(), fit(), fit(key=jax.random.key(2))
    np.testing.assert_array_equal(first.losses, again.losses)
    assert eqx.tree_equal(first.energy, again.energy)
    assert not np.array_equal(first.losses, other.losses)


def test_noise_is_fresh_and_batches_differ():
    """With a learning rate of zero the losses still differ, by their batches and their noise."""
    frozen = optax.sgd(0.0)
    assert len(set(fit(optimizer=frozen).losses)) == 50
    assert len(set(fit(data=DATA[:1], batch_size=1, optimizer=frozen).losses)) == 50


def test_every_example_is_drawn():
    seen = []

    def objective(energy, x, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return neb.denoising_loss(energy, x, key)

    data = np.arange(10, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    fit(data=data, objective=objective, optimizer=optax.sgd(0.0))
    counts = np.bincount(np.concatenate(seen)[:, 0].astype(int), minlength=10)
    # Multinomial: each of 10 examples expects n/10 of the draws.
    n = counts.sum()
    targets.within(counts, n / 10, np.sqrt(n * 0.1 * 0.9))


def test_the_callers_energy_survives():
    start = energy()
    before = jax.tree.map(lambda a: np.array(a) if eqx.is_array(a) else a, start)
    fit(start)
    assert eqx.tree_equal(jax.tree.map(jnp.asarray, eqx.filter(start, eqx.is_array)),
                          jax.tree.map(jnp.asarray, eqx.filter(before, eqx.is_array)))  # fmt: skip


def test_the_step_does_not_wait_for_the_host(monkeypatch):
    """Values reach the host once in a hundred steps, not at each."""
    reads = []
    report = loop.Training._report
    read = lambda self, *args: (reads.append(self.done), report(self, *args))  # noqa: E731
    monkeypatch.setattr(loop.Training, "_report", read)
    with jax.transfer_guard_device_to_host("log"):
        fit(num_steps=250)
    assert reads == [100, 200, 250]


def test_own_optimizer_and_clipping():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2))
    assert np.all(np.isfinite(fit(optimizer=optimizer).losses))


def test_a_nan_loss_stops_and_names_the_step():
    def objective(energy, x, key):
        loss = neb.denoising_loss(energy, x, key)
        return jnp.where(jnp.all(x != x[0, 0]), loss, jnp.nan)

    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0: no step has changed"):
        fit(objective=objective)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+: try"):
        fit(optimizer=optax.sgd(1e9))


def test_shows_progress(capsys):
    fit(progress_bar=True, validation_data=DATA[:10])
    shown = capsys.readouterr().err
    assert "50/50" in shown
    assert re.search(r"loss=\d\.\d+ \(\d+\.\d% of the noise\)", shown)
    assert re.search(r"held-out=\d\.\d+ \(\d+\.\d% of the noise\)", shown)


def test_the_bar_moves_where_steps_are_slow(capsys):
    """Fewer than 100 steps, and yet the time left is shown after about a second."""

    def objective(energy, x, key):
        jax.debug.callback(lambda: time.sleep(0.15))
        return neb.denoising_loss(energy, x, key)

    fit(progress_bar=True, num_steps=20, objective=objective)
    shown = capsys.readouterr().err
    early = re.findall(r"(\d+)/20 \[\d+:\d+<00:0(\d), ", shown)
    assert any(2 <= int(done) <= 15 and int(left) >= 1 for done, left in early)


def test_validation_data_are_seen_in_batches(monkeypatch):
    """Of up to 2^18 numbers; the mean over them is the mean over all examples."""
    monkeypatch.setattr(minibatches, "_HELD_OUT", 128)
    sizes = []

    def objective(energy, x, key):
        sizes.append(len(x))
        return jnp.mean(x)

    settings = {"num_steps": 1, "validation_data": DATA[:150], "batch_size": 32}
    result = fit(objective=objective, optimizer=optax.sgd(0.0), **settings)
    assert sizes == [32, 50]  # traced once each: a step, and batches of 64 at most
    np.testing.assert_allclose(result.validation_losses, [DATA[:150].mean()], atol=1e-7)
    result = fit(objective=objective, optimizer=optax.sgd(0.0), **settings | {"batch_size": 100})
    assert sizes[2:] == [100, 75]
    settings["validation_data"] = DATA[:129]
    result = fit(objective=objective, optimizer=optax.sgd(0.0), **settings)
    assert sizes[4:] == [32, 43]
    np.testing.assert_allclose(result.validation_losses, [DATA[:129].mean()], atol=1e-7)
    fit(num_steps=1, validation_data=DATA[:130], objective=objective, optimizer=optax.sgd(0.0))
    assert sizes[6:] == [32, 44, 42]


def test_each_batch_of_validation_data_has_its_own_noise(monkeypatch):
    """With the same noise for both halves, the losses of equal halves would be equal."""
    monkeypatch.setattr(minibatches, "_HELD_OUT", 64)
    halves = np.concatenate([DATA[:32], DATA[:32]])
    result = fit(num_steps=1, validation_data=halves)
    key = jax.random.split(jax.random.key(1))[1]
    parts = [
        float(neb.denoising_loss(result.energy, jnp.asarray(DATA[:32]), k))
        for k in (key, jax.random.fold_in(key, 1))
    ]
    assert parts[0] != parts[1]
    np.testing.assert_allclose(result.validation_losses, [np.mean(parts)], rtol=1e-5)


def test_validation_data_on_disk_are_read_by_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(minibatches, "_HELD_OUT", 64)
    np.save(tmp_path / "data.npy", DATA)
    read = []
    rows = np.memmap.__getitem__
    keep = lambda self, index: (read.append(index), rows(self, index))[1]  # noqa: E731
    in_memory = fit(num_steps=2, validation_data=DATA, validate_every=1)
    monkeypatch.setattr(np.memmap, "__getitem__", keep)
    on_disk = np.load(tmp_path / "data.npy", mmap_mode="r")
    result = fit(num_steps=2, validation_data=on_disk, validate_every=1)
    # 7 batches of at most 32, twice.
    assert read[-14:] == [slice(i, i + 29) for i in range(0, 200, 29)] * 2
    assert read[:-14] == [slice(0)]
    np.testing.assert_allclose(result.validation_losses, in_memory.validation_losses, rtol=1e-6)


def test_float64(x64):
    result = fit(data=DATA.astype(float), num_steps=3)
    assert result.energy.network.layers.layers[0].weight.dtype == jnp.float64
    assert result.losses.dtype == np.float64


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"data": np.zeros((5, 2), np.uint8)}, TypeError, "data must hold floats, got uint8"),
        ({"data": np.zeros((5, 3), np.float32)}, ValueError, r"data must have shape .*\(5, 3\)"),
        ({"data": np.zeros((0, 2), np.float32)}, ValueError, r"n at least 1, got \(0, 2\)"),
        ({"data": DATA * np.nan}, ValueError, "data must be finite"),
        ({"validation_data": DATA[:, :1]}, ValueError, "validation_data must have shape"),
        ({"num_steps": 0}, ValueError, "num_steps must be a positive int, got 0"),
        ({"batch_size": -1}, ValueError, "batch_size must be a positive int, got -1"),
        ({"batch_size": None}, ValueError, "batch_size must be given if data are an array"),
        ({"data": iter([DATA])}, ValueError, "batch_size must be left out if data are batches"),
        ({"ema_decay": 1.0}, ValueError, "ema_decay must be between 0 and 1, got 1.0"),
        ({"validate_every": 0}, ValueError, "validate_every must be a positive int, got 0"),
    ],
)
def test_bad_arguments(kwargs, error, message, untyped):
    with pytest.raises(error, match=message):
        fit(**kwargs)


def test_patience_keeps_the_best():
    """Down the gradient for 100 steps and up it from there: training ends soon after."""
    rate = lambda step: jnp.where(step < 100, 1e-2, -5e-3)  # noqa: E731
    settings = {"num_steps": 400, "validation_data": DATA[:100], "validate_every": 5}
    result = fit(optimizer=optax.sgd(rate), patience=3, **settings)
    lowest = int(np.argmin(result.validation_losses))
    assert len(result.validation_losses) == lowest + 4 < 30
    assert len(result.losses) == 5 * (lowest + 4)
    # The energy is the one of the lowest loss: the same as that of a run which stopped there.
    shorter = fit(optimizer=optax.sgd(rate), num_steps=5 * (lowest + 1))
    for a, b in zip(*(jax.tree.leaves(r.energy) for r in (result, shorter)), strict=True):
        if eqx.is_array(a):
            np.testing.assert_array_equal(a, b)
    whole = fit(optimizer=optax.sgd(rate), patience=None, **settings | {"num_steps": 100})
    assert len(whole.losses) == 100


def test_patience_needs_something_to_wait_for(untyped):
    with pytest.raises(ValueError, match="patience needs validation_data"):
        fit(patience=3)
    with pytest.raises(ValueError, match="patience must be a positive int, got 0"):
        fit(patience=0, validation_data=DATA[:5])


@pytest.mark.statistical
def test_one_network_for_many_noise_levels():
    """X ~ N(0, I): at each sigma the best jump is y / (1 + sigma^2)."""
    data = np.random.default_rng(1).normal(size=(20_000, 2)).astype(np.float32)
    result = fit(conditional(), data=data, num_steps=3000, batch_size=256)
    assert isinstance(result.energy, neb.ConditionalEnergy)
    for sigma in (0.2, 0.5, 1.0):
        y = np.sqrt(1 + sigma**2) * data
        jump = neb.posterior_mean(result.energy.at(sigma), y)
        excess = np.mean(np.sum((np.asarray(jump) - y / (1 + sigma**2)) ** 2, 1))
        assert excess < 0.05 * 2 * sigma**2 / (1 + sigma**2), sigma
    tail = result.losses[-1000:]
    # E norm(x - x_hat)^2 / sigma^2 = 2 / (1 + sigma^2), over log-uniform sigma.
    levels = np.exp(np.linspace(np.log(0.2), np.log(1.0), 10_001))
    floor = np.mean(2 / (1 + levels**2))
    assert floor - 5 * tail.std() / np.sqrt(1000) < tail.mean() < 1.02 * floor


def test_an_array_on_disk_trains_as_one_in_memory(tmp_path):
    np.save(tmp_path / "data.npy", DATA)
    on_disk = np.load(tmp_path / "data.npy", mmap_mode="r")
    for data in (on_disk, on_disk[:], np.asarray(on_disk)):
        np.testing.assert_allclose(fit(data=data).losses, fit().losses, rtol=1e-6)


def test_only_the_rows_of_a_minibatch_are_read(tmp_path, monkeypatch):
    np.save(tmp_path / "data.npy", DATA)
    read = []
    rows = np.memmap.__getitem__
    keep = lambda self, index: (read.append(np.size(index)), rows(self, index))[1]  # noqa: E731
    monkeypatch.setattr(np.memmap, "__getitem__", keep)
    fit(data=np.load(tmp_path / "data.npy", mmap_mode="r"), num_steps=5)
    # Besides two slices: of some rows, to look at the columns' scales, and of none.
    assert read == [1, 1] + [32] * 5


LARGE = """
import resource, sys
import jax, numpy as np
import numpyro_neb as neb

data = np.load(sys.argv[1], mmap_mode="r")
mlp = neb.networks.MLP((1024,), width_size=8, depth=1, key=jax.random.key(0))
settings = {"key": jax.random.key(1), "num_steps": 50, "batch_size": 32, "progress_bar": False}
neb.fit(neb.ResidualEnergy(mlp, 0.5, (1024,)), data[:100], **settings)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
neb.fit(neb.ResidualEnergy(mlp, 0.5, (1024,)), data, **settings)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_data_larger_than_what_it_takes_of_memory(tmp_path):
    """Of 4 GiB on disk (a sparse file), 50 steps of 32 rows of 4 KiB are read: 6.25 MiB."""
    shape = (2**20, 1024)
    np.lib.format.open_memmap(tmp_path / "data.npy", "w+", np.float32, shape)
    run = [sys.executable, "-c", LARGE, str(tmp_path / "data.npy")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300  # MiB: the pages around those rows, and a second compilation


def test_batches_of_an_iterable():
    seen = []

    def objective(energy, x, key):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return neb.denoising_loss(energy, x, key)

    fit(data=Epochs(), batch_size=None, num_steps=13, objective=objective)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen, [DATA[32 * (i % 6) :][:32] for i in range(13)])


@pytest.mark.parametrize("data", [iter(list(Epochs())), iter([])])
def test_batches_that_end(data):
    with pytest.raises(ValueError, match=r"data ended after \d batches, before num_steps"):
        fit(data=data, batch_size=None)
    with pytest.raises(ValueError, match="a batch of data must have shape"):
        fit(data=iter([DATA[:, :1]]), batch_size=None)


def test_the_average_of_the_parameters():
    """Under SGD on a linear loss the parameters are p - t rate."""
    scalars = lambda energy: jax.tree.leaves(eqx.filter(energy.network, eqx.is_array))  # noqa: E731
    linear = lambda energy, x, key: sum(jnp.sum(p) for p in scalars(energy))  # noqa: E731
    settings = {"objective": linear, "optimizer": optax.sgd(0.01), "num_steps": 30}
    settings["start"] = neb.ResidualEnergy(energy().network, 1.0, (2,))  # the loss's unit is 1
    moved, average = 0.0, 0.0
    for t in range(30):
        moved, decay = moved - 0.01, min(0.7, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * moved
    found = fit(**settings, ema_decay=0.7).energy
    for before, after in zip(scalars(energy()), scalars(found), strict=True):
        np.testing.assert_allclose(after - before, average, rtol=1e-4)


def test_the_average_is_what_is_validated():
    settings = {"validation_data": DATA[:20], "ema_decay": 0.9, "num_steps": 20}
    result = fit(**settings, validate_every=20)
    key = jax.random.split(jax.random.key(1))[1]
    loss = neb.denoising_loss(result.energy, jnp.asarray(DATA[:20]), key)
    np.testing.assert_allclose(result.validation_losses, [loss], rtol=1e-5)


def test_the_callback_logs():
    logged = []
    settings = {"validation_data": DATA[:20], "validate_every": 60}
    result = fit(num_steps=130, callback=lambda *args: logged.append(args), **settings)
    assert [step for step, _ in logged] == [60, 100, 120, 130]
    assert ["validation_loss" in metrics for _, metrics in logged] == [True, False, True, True]
    np.testing.assert_allclose(logged[1][1]["loss"], result.losses[60:100].mean(), rtol=1e-6)
