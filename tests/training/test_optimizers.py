"""Every optimiser of optax: it trains, or an error says why not; the caller's energy survives."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trainings import DATA, StopError, energy, fit, same, stop_after

import numpyro_neb as neb

contrib = optax.contrib
RATE = 3e-3
# Those that take more than a learning rate, or none.
MADE = {
    "adamaxw": lambda: optax.adamaxw(RATE),
    "adafactor": lambda: optax.adafactor(RATE),
    "lbfgs": optax.lbfgs,
    "noisy_sgd": lambda: optax.noisy_sgd(RATE, key=0),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(RATE),
    "polyak_sgd": optax.polyak_sgd,
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(RATE),
    "rprop": lambda: optax.rprop(RATE),
    "sgd": lambda: optax.sgd(0.03),
    "sm3": lambda: optax.sm3(0.03),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "reduce_on_plateau": lambda: optax.chain(
        optax.adam(RATE), contrib.reduce_on_plateau(patience=2, accumulation_size=5)
    ),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
    "if_finite": lambda: optax.apply_if_finite(optax.adam(RATE), 3),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=RATE),
    "cocob": contrib.cocob,
    "dadapt_adamw": contrib.dadapt_adamw,
    "dog": lambda: contrib.dog(1.0),
    "dowg": lambda: contrib.dowg(1.0),
    "mechanize": lambda: contrib.mechanize(optax.adam(0.01)),
    "momo": contrib.momo,
    "momo_adam": contrib.momo_adam,
    "muon": lambda: contrib.muon(RATE),
    "prodigy": contrib.prodigy,
    "sam": lambda: contrib.sam(optax.adam(RATE), optax.chain(contrib.normalize(), optax.sgd(0.01))),
    "sam_opaque": lambda: contrib.sam(
        optax.adam(RATE), optax.chain(contrib.normalize(), optax.sgd(0.01)), opaque_mode=True
    ),
    "sam_in_a_chain": lambda: optax.chain(
        optax.clip(10.0), contrib.sam(optax.adam(RATE), optax.sgd(0.01))
    ),
    "schedule_free": lambda: contrib.schedule_free(optax.adam(0.01, b1=0.0), 0.01),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(0.01),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(0.03),
    "sophia": lambda: contrib.sophia(RATE),
}
PLAIN = ["adabelief", "adadelta", "adagrad", "adam", "adamax", "adamw", "adan", "amsgrad"]
PLAIN += ["fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "radam", "rmsprop"]
PLAIN += ["sign_sgd", "signum", "yogi"]
PLAIN_CONTRIB = ["acprop", "ademamix", "adopt", "madgrad", "simplified_ademamix"]
for name in PLAIN:
    MADE[name] = lambda name=name: getattr(optax, name)(1.0 if name == "adadelta" else RATE)
for name in PLAIN_CONTRIB:
    MADE[name] = lambda name=name: getattr(contrib, name)(RATE)
REFUSED = {
    "lookahead": (
        lambda: optax.lookahead(optax.sgd(0.1), 5, 0.5),
        "optax.lookahead trains two sets of parameters",
    ),
    "galore": (  # in optax 0.2.8 it can't take a tree with None in it
        lambda: contrib.galore(RATE, rank=2),
        "its init raised|.*has no attribute 'dtype'",
    ),
    "dpsgd": (
        lambda: contrib.dpsgd(0.1, 1.0, 0.1, seed=0),
        "differential privacy takes the gradient of each example",
    ),
}
# A deprecated one, and what is a part of an optimiser.
PARTS = {
    "optimistic_adam",
    "normalize",
    "freeze",
    "split_real_and_imaginary",
    "differentially_private_aggregate",
}


def alike(one, other):
    for a, b in zip(*(jax.tree.leaves(eqx.filter(e, eqx.is_array)) for e in (one, other)),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_the_list_is_that_of_optax():
    """A new optimiser of optax is in neither table, and fails here."""
    from optax._src import alias

    names = {n for n in dir(alias) if n.islower() and hasattr(optax, n)}
    makes = {n: getattr(getattr(alias, n), "__annotations__", {}).get("return") for n in names}
    known = set(MADE) | set(REFUSED) | PARTS
    assert {n for n, kind in makes.items() if "Transformation" in str(kind)} <= known
    parts = ("scale_by_", "hutchinson", "schedule_free_eval")
    there = {n for n in dir(contrib) if n.islower() and n[0] != "_" and not n.startswith(parts)}
    assert there <= known


loss_of = eqx.filter_jit(neb.denoising_loss)  # compiled once


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MADE))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_optimizer_trains(name):
    start, untouched = energy(), energy()
    result = fit(start, optimizer=MADE[name](), num_steps=150, batch_size=200)
    alike(start, untouched)
    assert np.all(np.isfinite(result.losses))
    key = jax.random.key(5)
    before, after = (loss_of(e, jnp.asarray(DATA), key) for e in (start, result.energy))
    assert after < before


@pytest.mark.parametrize("name", ["prodigy", "mechanize", "sam", "lbfgs"])
def test_the_callers_energy_survives(name):
    """Their `init` returns the parameters themselves."""
    start, untouched = energy(), energy()
    fit(start, optimizer=MADE[name](), num_steps=2)
    alike(start, untouched)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_work_is_refused(name):
    make, message = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make()
    with pytest.raises(ValueError, match=f"optimizer does not work with fit: {message}"):
        fit(optimizer=optimizer, data=iter([]), batch_size=None)


def test_an_update_that_fails_is_named_before_the_first_step():
    def update(grads, state, params=None, *, curvature):
        return grads, state

    odd = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    with pytest.raises(ValueError, match=r"optimizer \(EmptyState\) does .* argument: 'curvature'"):
        fit(optimizer=odd, data=iter([]), batch_size=None)


def test_a_line_search_needs_a_loss_that_can_be_computed_again(untyped):
    objective = neb.MaximumLikelihood(num_chains=4, num_steps=1)
    with pytest.raises(ValueError, match=r"does not work with fit: .* loss for one step only"):
        fit(optimizer=optax.lbfgs(), objective=objective)
    with pytest.raises(TypeError, match=r"got MultiSteps|its .gradient_transformation\(\)"):
        fit(optimizer=optax.MultiSteps(optax.sgd(0.1), 2))


def test_reduce_on_plateau_sees_the_loss():
    """In units of sigma^2: on a loss that does not fall the rate is halved every other step."""
    plateau = contrib.reduce_on_plateau(factor=0.5, patience=2)
    seen = []

    def update(grads, state, params=None, *, value, **others):
        jax.debug.callback(lambda value: seen.append(float(value)), value)
        return jax.tree.map(jnp.zeros_like, grads), state

    watch = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    result = fit(optimizer=optax.chain(plateau, watch), num_steps=5)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, result.losses / 0.5**2, rtol=1e-6)


def by_hand(optimizer, num_steps):
    """The last parameters of a plain loop, and the optimiser's state."""
    from numpyro_neb.energies import trainable

    params, rest = eqx.partition(energy(), trainable(energy()))
    state, key = optimizer.init(params), jax.random.split(jax.random.key(1), 3)[0]

    @jax.jit
    def step(params, state, i):
        key_batch, key_noise = jax.random.split(jax.random.fold_in(key, i))
        x = jnp.asarray(DATA)[jax.random.randint(key_batch, (32,), 0, 200)]
        loss = lambda p: neb.denoising_loss(eqx.combine(p, rest), x, key_noise) / 0.25  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(num_steps):
        params, state = step(params, state, i)
    return params, state


@pytest.mark.parametrize("more", [{}, {"validation_data": DATA[:20], "patience": 50}])
def test_schedule_free_returns_its_evaluation_parameters(more):
    """Also where they are validated, and with patience."""
    optimizer = contrib.schedule_free_adamw(0.01)
    params, state = by_hand(optimizer, 20)
    expected = contrib.schedule_free_eval_params(state, params)
    result = fit(optimizer=optimizer, num_steps=20, validate_every=20, **more)
    found = eqx.filter(result.energy.network, eqx.is_inexact_array)
    for a, b, last in zip(*map(jax.tree.leaves, (found, expected, params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.abs(b - last).max() > 1e-3
    if more:
        key = jax.random.split(jax.random.key(1))[1]
        loss = neb.denoising_loss(result.energy, jnp.asarray(DATA[:20]), key)
        np.testing.assert_allclose(result.validation_losses, [loss], rtol=1e-5)


def test_sam_returns_synchronised_parameters():
    """After an odd number of steps it stands at an adversarial point a step of 0.1 away."""
    ascent = optax.chain(contrib.normalize(), optax.sgd(0.1))
    at = lambda n: fit(optimizer=contrib.sam(optax.sgd(0.0), ascent), num_steps=n).energy  # noqa: E731
    for a, b in zip(*map(jax.tree.leaves, (eqx.filter(at(3), eqx.is_inexact_array),
                                           eqx.filter(energy(), eqx.is_inexact_array))),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_average_is_of_evaluation_parameters():
    optimizer = contrib.schedule_free_sgd(0.03)
    average = jax.tree.leaves(by_hand(optimizer, 0)[0])
    for t in range(5):
        params, state = by_hand(optimizer, t + 1)
        now = jax.tree.leaves(contrib.schedule_free_eval_params(state, params))
        decay = min(0.7, (1 + t) / (10 + t))
        average = [decay * a + (1 - decay) * b for a, b in zip(average, now, strict=True)]
    result = fit(optimizer=optimizer, num_steps=5, ema_decay=0.7).energy
    found = jax.tree.leaves(eqx.filter(result.network, eqx.is_inexact_array))
    for a, b in zip(found, average, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["schedule_free_adamw", "reduce_on_plateau", "prodigy", "lbfgs"])
def test_goes_on_from_a_checkpoint(tmp_path, name):
    settings = {"optimizer": MADE[name](), "num_steps": 30, "validation_data": DATA[:20]}
    whole = fit(**settings, validate_every=7)
    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 5, "validate_every": 7}
    with pytest.raises(StopError):
        fit(**settings, **kept, callback=stop_after(14))
    same(fit(**settings, **kept), whole)
