"""Random shapes, dtypes and batches: the documented result, or an error that names the argument.

A few examples in the fast suite, the same ones each time, of a few shapes, so that what is compiled
for one serves others. HYPOTHESIS_PROFILE=long tries many more, and others each time.
"""

import re
import warnings
from contextlib import ExitStack
from math import prod

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import pytest
import targets
from fuzzing import (
    EVENTS,
    FEW,
    KEY,
    KINDS,
    MANY,
    SIGMA,
    close,
    diagonal,
    energy_of,
    expected,
    interval,
    observations,
    sign_rate,
    std,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpyro.handlers import seed, substitute
from scipy.spatial.distance import pdist

import numpyro_neb as neb
from numpyro_neb import empirical_bayes, geometry, integrators, memories, networks, plots

# Each function of an energy and observations, and its formula; "d d" where there are matrices.
OBSERVED = {
    "mean": (neb.posterior_mean, lambda *a: expected(*a)[1]),
    "std": (neb.posterior_std, std),
    "covariance": (neb.posterior_covariance, lambda *a: expected(*a)[2]),
    "diagonal": (lambda e, y, **k: neb.posterior_covariance(e, y, "diagonal", **k), diagonal),
    "interval": (lambda e, y, **k: empirical_bayes.credible_interval(e, y, **k)[0], interval),
    "sign rate": (empirical_bayes.local_false_sign_rate, sign_rate),
}


@pytest.mark.parametrize("name", OBSERVED)
@given(case=observations(), chunk_size=st.sampled_from([1, 2, 100]))
def test_functions_of_observations(name, case, chunk_size):
    kind, event, batch, y = case
    fn, formula = OBSERVED[name]
    wanted = formula(kind, event, y)
    found = fn(energy_of(kind, event), y, chunk_size=chunk_size, progress_bar=False)
    size = prod(event)
    assert found.shape == ((*batch, size, size) if name == "covariance" else y.shape)
    assert found.dtype == jnp.result_type(float)
    # A root makes an error of eps near zero one of sqrt(eps).
    factor = (
        jnp.finfo(jnp.result_type(float)).eps ** -0.5 / 1e3
        if name in ("std", "interval", "sign rate")
        else 1
    )
    close(np.reshape(found, wanted.shape), wanted, factor)


@given(case=observations())
def test_the_law_of_x_given_y(case):
    kind, event, batch, y = case
    law = neb.posterior_distribution(energy_of(kind, event), y)
    _, mean, covariance = expected(kind, event, y)
    assert (law.batch_shape, law.event_shape) == (batch, event)
    close(np.reshape(law.mean, mean.shape), mean)
    assume(np.all(np.linalg.eigvalsh(covariance) >= 0))
    close(np.reshape(law.covariance_matrix, covariance.shape), covariance)
    assert law.sample(KEY, (2,)).shape == (2, *batch, *event)


@FEW
@given(case=observations(), number=st.integers(1, 3))
def test_components_and_products(case, number):
    kind, event, batch, y = case
    energy, size = energy_of(kind, event), prod(event)
    number = min(number, size)
    found = empirical_bayes.posterior_components(energy, y, number, progress_bar=False)
    covariance = expected(kind, event, y)[2]
    assert found.variances.shape == (*batch, number)
    assert found.components.shape == (*batch, number, *event)
    largest = np.linalg.eigvalsh(covariance)[:, ::-1][:, :number]
    # A residual below 1e-3 of the largest leaves an error of its square, over the gap, at most
    # itself where there is none.
    np.testing.assert_allclose(found.variances.reshape(-1, number), largest, atol=2e-3)
    operator = neb.posterior_covariance(energy, y, "operator")
    product = operator.mv(jnp.ones(y.shape, jnp.result_type(float)))
    assert product.shape == y.shape
    close(product.reshape(-1, size), covariance.sum(2))


@FEW
@given(
    case=observations(kinds=("points", "own"), batches=((2,), (2, 1), (0,))),
    flow=st.sampled_from(["gradient", "jump"]),
)
def test_memories(case, flow):
    kind, event, batch, y = case
    energy = energy_of(kind, event)
    found = neb.recall(energy, y, flow=flow, progress_bar=False)
    assert found.attractors.shape == y.shape
    assert {a.shape for a in found[1:]} == {batch}
    assert np.all(found.converged)
    phi, jump, _ = expected(kind, event, found.attractors)
    close(found.energies.reshape(-1), phi)
    # At rest: sigma norm(grad phi) below the tolerance.
    moves = np.linalg.norm(jump - np.reshape(found.attractors, jump.shape), axis=1)
    assert np.all(moves < 1.01e-3 * SIGMA)
    path = memories.follow(energy, y, np.array([0.0, 0.5, 2.0]))
    assert path.shape == (*batch, 3, *event)
    start = np.asarray(y, jnp.result_type(float)).reshape(-1, prod(event))
    close(path.reshape(-1, 3, prod(event))[:, 0], start)
    flat = np.asarray(y).reshape(-1, *event)
    if len(flat):
        apart = memories.find_memories(energy, flat, flow=flow, progress_bar=False)
        assert apart.basins.shape == flat.shape[:1]
        assert apart.attractors.shape == (len(apart.counts), *event)
        assert apart.counts.sum() == len(flat)


@FEW
@given(case=observations(), sample_shape=st.sampled_from([(), (2,), (1, 3), (0,)]))
def test_a_density(case, sample_shape):
    kind, event, batch, y = case
    density = neb.SmoothedDensity(energy_of(kind, event), num_steps=2)
    phi, jump, _ = expected(kind, event, y)
    lp, x = density.log_prob(y), density.denoise(y)
    assert (lp.shape, x.shape) == (batch, y.shape)
    close(lp.reshape(-1), -phi)
    close(np.reshape(x, jump.shape), jump)
    assert density.sample(KEY, sample_shape).shape == (*sample_shape, *event)
    wide = density.expand((2, 3))
    assert wide.sample(KEY, sample_shape).shape == (*sample_shape, 2, 3, *event)
    assert wide.shape() == (2, 3, *event)


@given(
    event=st.sampled_from(EVENTS),
    stack=st.sampled_from([(3,), (1,), (2, 3)]),
    batch=st.sampled_from([(), (3,), (2, 3), (4, 1, 3), (2,)]),
)
def test_stacked_energies(event, stack, batch, untyped):
    locs = jax.random.normal(KEY, (2, *event))
    make = lambda sigma: neb.MixtureEnergy(locs, sigma)  # noqa: E731
    sigmas = jnp.linspace(0.5, 1.0, prod(stack)).reshape(stack)
    for _ in stack:
        make = eqx.filter_vmap(make)
    y = jax.random.normal(KEY, (*batch, *event))
    density = neb.SmoothedDensity(make(sigmas))
    try:
        shape = np.broadcast_shapes(stack, batch)
    except ValueError:
        with pytest.raises(ValueError, match="value must have leading dimensions that broadcast"):
            density.log_prob(y)
        return
    found = density.log_prob(y)
    assert found.shape == shape
    one = jax.jit(lambda sigma, y: -neb.MixtureEnergy(locs, sigma)(y))
    every = np.broadcast_to(y, (*shape, *event)).reshape(-1, *event)
    pairs = zip(np.broadcast_to(sigmas, shape).ravel(), every, strict=True)
    close(found.ravel(), np.array([one(sigma, y) for sigma, y in pairs]))
    assert density.sample(KEY, (2,)).shape == (2, *stack, *event)


@FEW
@given(case=observations(batches=((1,), (2,), (3,))))
def test_objectives(case):
    kind, event, _, x = case
    energy, size = energy_of(kind, event), prod(event)
    clean = jnp.asarray(x, float)
    loss = neb.denoising_loss(energy, x, KEY)
    noise = jax.random.normal(KEY, x.shape, energy.sigma.dtype)
    jump = expected(kind, event, clean + SIGMA * noise)[1]
    assert (loss.shape, loss.dtype) == ((), jnp.result_type(float))
    close(loss, np.mean(np.sum((np.reshape(clean, jump.shape) - jump) ** 2, axis=1)))
    risk = neb.sure_loss(energy, x, KEY)
    _, jump, covariance = expected(kind, event, clean)
    moves = np.sum((jump - np.reshape(clean, jump.shape)) ** 2, axis=1)
    divergence = np.trace(covariance, axis1=1, axis2=2) / SIGMA**2
    close(risk, np.mean(moves + SIGMA**2 * (2 * divergence - size)), 10)
    assert neb.sure_loss(energy, x, KEY, num_probes=2).shape == ()


@given(
    event=st.sampled_from([*EVENTS, (2, 1, 2)]),
    count=st.integers(1, 3),
    weighted=st.booleans(),
    spread=st.booleans(),
    dtype=st.sampled_from([int, np.float16, np.float32, np.float64, np.uint8, ">f8"]),
)
def test_mixtures(event, count, weighted, spread, dtype):
    rng, size = np.random.default_rng(count), prod(event)
    locs = rng.uniform(0, 3, size=(count, *event)).astype(dtype)
    weights = rng.normal(size=count) if weighted else None
    root = rng.normal(size=(count, size, size))
    covariances = root @ root.swapaxes(1, 2) if spread else None
    energy = neb.MixtureEnergy(locs, SIGMA, weights, covariances)
    y = rng.normal(size=event)
    log_weights = np.zeros(count) if weights is None else weights
    log_weights = log_weights - np.log(np.sum(np.exp(log_weights)))
    flat = locs.astype(float).reshape(count, size)
    phi, gradient, _ = targets.brute_force(
        flat, SIGMA, log_weights, covariances, np.reshape(y, size)
    )
    close(energy(jnp.asarray(y)), phi)
    close(np.reshape(energy.score(jnp.asarray(y)), size), -gradient)
    assert (energy.event_shape, energy.locs.dtype) == (event, jnp.result_type(float))
    assert energy.sample(KEY, (2, 1)).shape == (2, 1, *event)
    assert energy.at(2).sigma == 2


@FEW
@given(case=observations(kinds=("network",), batches=((1,), (3,))), batch_size=st.integers(1, 4))
def test_fit(case, batch_size):
    kind, event, _, x = case
    more = {"batch_size": batch_size, "validation_data": x, "progress_bar": False}
    energy = energy_of(kind, event)
    result = neb.fit(energy, x, key=KEY, num_steps=2, **more)
    assert result.losses.shape == (2,)
    assert result.losses.dtype == jnp.result_type(float)
    assert np.all(np.isfinite(result.losses))
    assert jax.tree.structure(result.energy) == jax.tree.structure(energy)


@pytest.mark.filterwarnings("ignore:lfsr is NaN")
@given(
    event=st.sampled_from(EVENTS),
    count=st.integers(1, 5),
    each=st.booleans(),
    dtype=st.sampled_from([int, np.float16, np.float64]),
)
def test_fit_mixture(event, count, each, dtype):
    rng = np.random.default_rng(count)
    y = rng.normal(size=(count, *event), scale=3).astype(dtype)
    sigma = rng.uniform(0.5, 1, size=count) if each else 1
    fit = neb.fit_mixture(y, sigma, progress_bar=False)
    assert fit.posterior_mean.shape == fit.posterior_std.shape == fit.lfsr.shape == y.shape
    assert fit.duality_gap <= 1e-3
    np.testing.assert_allclose(fit.weights.sum(), 1)
    # The nonparametric MLE does at least as well as the law of one point at any observation.
    flat, sigmas = y.reshape(count, -1).astype(float), np.broadcast_to(sigma, count)
    squares = ((flat[:, None] - flat[None]) ** 2).sum(2) / (2 * sigmas[:, None] ** 2)
    logs = -squares - flat.shape[1] * np.log(sigmas * np.sqrt(2 * np.pi))[:, None]
    # In one dimension the grid need not hold the observations: a tenth of sigma away at most.
    slack = 1e-3 + (0.05 * count * np.sqrt(2 * squares.max()) if not event else 0)
    assert fit.log_likelihood >= logs.sum(0).max() - slack


@given(
    event=st.sampled_from(EVENTS),
    count=st.integers(2, 6),
    dtype=st.sampled_from([int, np.uint8, np.float16, np.float32, ">f4"]),
    sigma=st.floats(0.01, 10),
)
def test_geometry(event, count, dtype, sigma):
    x = np.random.default_rng(count).uniform(0, 9, size=(count, *event)).astype(dtype)
    chi = pdist(x.reshape(count, -1).astype(float)) / (2 * np.sqrt(prod(event)))
    found = neb.sphere_overlaps(x, progress_bar=False)
    wanted = chi.min(), np.median(chi), chi.mean(), chi.max()
    np.testing.assert_allclose(found[:4], wanted, atol=1e-4 * max(1, chi.max()))
    assert found.counts.sum() == found.num_pairs == len(chi)
    assert neb.critical_sigma(x) == found.max
    shares = neb.overlap_regimes(x, sigma)
    np.testing.assert_allclose(shares.apart, np.mean(sigma < chi), atol=1e-9)
    np.testing.assert_allclose(sum(shares), 1)
    shell = geometry.sphere_shell(count, sigma)
    np.testing.assert_allclose(shell.radius**2 + shell.width**2, count * sigma**2, rtol=1e-6)


@FEW
@given(
    height=st.sampled_from([4, 8]),
    planes=st.sampled_from([(), (1,), (3,)]),
    conditional=st.booleans(),
    out=st.sampled_from(["event", "scalar"]),
)
def test_networks(height, planes, conditional, out, tmp_path):
    event = (*planes, height, 4)
    y, t = jnp.ones(event), [jnp.zeros(())] * conditional
    settings = {"conditional": conditional, "key": KEY}
    mlp = networks.MLP(event, out, width_size=3, depth=1, **settings)
    net = networks.ConvNet(event, (2, 2), stride=2, **settings)
    unet = networks.UNet(event, (2, 2), **settings)
    for network, shape in ((mlp, event if out == "event" else ()), (net, ()), (unet, event)):
        got = eqx.filter_eval_shape(network, y, *t)
        assert (got.shape, got.dtype) == (shape, y.dtype)
    if conditional:
        energy = neb.ConditionalEnergy(unet, event, (0.1, 1.0))
        assert energy.at(0.3).denoise(y).shape == event
    else:
        energy = neb.ResidualEnergy(unet, SIGMA, event, loc=np.ones(event), scale=2)
    neb.save(tmp_path / "energy", energy)
    assert eqx.tree_equal(neb.load(tmp_path / "energy"), energy)


@given(kind=st.sampled_from(KINDS[:3]), event=st.sampled_from(EVENTS))
def test_files(kind, event, tmp_path):
    energy = energy_of(kind, event)
    neb.save(str(tmp_path / "energy"), energy)
    assert eqx.tree_equal(neb.load(tmp_path / "energy", like=energy), energy)
    assert eqx.tree_equal(neb.load(tmp_path / "energy"), energy)


@FEW
@given(
    case=observations(batches=((), (2,), (1,))),
    kind=st.sampled_from(["ULA", "MALA", "BAOAB", "ABOBA", "GHMC", "MAMS", "Microcanonical"]),
    num_steps=st.integers(1, 2),
    freeze=st.booleans(),
)
def test_a_kernel(case, kind, num_steps, freeze):
    of_energy, event, batch, start = case
    frozen = np.arange(prod(event)).reshape(event) % 2 == 1 if freeze else None
    energy, integrator = energy_of(of_energy, event), getattr(integrators, kind)(step_size=0.3)
    kernel = neb.WalkJumpKernel(energy, integrator=integrator, num_steps=num_steps, frozen=frozen)
    keys = jax.random.split(KEY, batch) if batch else KEY
    state = kernel.sample(kernel.init(keys, 0, start))
    y, x = state.draw["y"], state.draw["x"]
    assert (y.shape, x.shape, state.lp.shape) == (start.shape, start.shape, batch)
    assert y.dtype == x.dtype == jnp.result_type(float)
    phi, jump, _ = expected(of_energy, event, y)
    close(np.reshape(x, jump.shape), jump)
    close(-state.lp.reshape(-1), phi)
    if freeze:
        still = np.broadcast_to(frozen, y.shape)
        np.testing.assert_array_equal(y[still], np.asarray(start, jnp.result_type(float))[still])


@FEW
@given(
    kind=st.sampled_from(KINDS),
    event=st.sampled_from(EVENTS),
    plate=st.sampled_from([(), (2,), (3, 2)]),
    covariance=st.sampled_from(["full", "diagonal", "isotropic"]),
)
def test_a_prior(kind, event, plate, covariance):
    def model():
        with ExitStack() as stack:
            for i, n in enumerate(reversed(plate)):
                stack.enter_context(numpyro.plate(f"plate_{i}", n, dim=-1 - i))
            return neb.learned_prior("x", energy_of(kind, event), covariance)

    y = {"x_y": jnp.zeros((*plate, *event))}
    x = seed(substitute(model, data=y), KEY)()
    assert x.shape == (*plate, *event)
    assert np.all(np.isfinite(x))


@given(
    shape=arrays.array_shapes(min_dims=3, max_dims=3, max_side=5),
    dtype=st.sampled_from([int, np.uint8, np.float16, np.float64]),
    columns=st.integers(1, 7),
)
def test_pictures(shape, dtype, columns):
    images = np.random.default_rng(0).uniform(0, 9, size=shape).astype(dtype)
    assert plots.denoising(images, images, images).images
    assert plots.walk_jump(images[None]).images
    assert plots.recall_paths(images[None]).images
    ones = np.ones(len(images), int)
    found = memories.FoundMemories(images, ones, ones > 0, ones, ones, ones)
    assert len(plots.memories(found, columns=columns).texts) == len(images)
    plt.close("all")


# What is wrong.

ENERGY = energy_of("points", (3,))
WALK = neb.WalkJumpKernel(ENERGY)
TAKES_FLOATS = {
    "posterior_mean": ("y", lambda y: neb.posterior_mean(ENERGY, y)),
    "posterior_std": ("y", lambda y: neb.posterior_std(ENERGY, y)),
    "posterior_covariance": ("y", lambda y: neb.posterior_covariance(ENERGY, y)),
    "posterior_distribution": ("y", lambda y: neb.posterior_distribution(ENERGY, y)),
    "credible_interval": ("y", lambda y: empirical_bayes.credible_interval(ENERGY, y)),
    "sign_rate": ("y", lambda y: empirical_bayes.local_false_sign_rate(ENERGY, y)),
    "components": ("y", lambda y: empirical_bayes.posterior_components(ENERGY, y, 1)),
    "recall": ("y", lambda y: neb.recall(ENERGY, y)),
    "find_memories": ("y", lambda y: memories.find_memories(ENERGY, y)),
    "follow": ("y", lambda y: memories.follow(ENERGY, y, np.ones(1))),
    "log_prob": ("value", neb.SmoothedDensity(ENERGY, validate_args=True).log_prob),
    "denoising_loss": ("x", lambda x: neb.denoising_loss(ENERGY, x, KEY)),
    "sure_loss": ("y", lambda y: neb.sure_loss(ENERGY, y, KEY)),
    "fit": ("data", lambda x: neb.fit(ENERGY, x, key=KEY, num_steps=1, batch_size=1)),
    "init_params": ("init_params", lambda y: WALK.init(KEY, 0, y)),
    "energy": ("y", ENERGY),
    "score": ("y", energy_of("own", (3,)).score),
}
EXTREME = np.array([[1e200, -1e200], [0.0, 5e-324]])
TAKES_REALS = {
    "MixtureEnergy": ("locs", lambda x: neb.MixtureEnergy(x, 1.0)),
    "sphere_overlaps": ("x", lambda x: neb.sphere_overlaps(x, progress_bar=False)),
    "fit_mixture": ("y", lambda y: neb.fit_mixture(y, 1.0, progress_bar=False)),
    "denoising": ("clean", lambda x: plots.denoising(x, x, x)),
    "walk_jump": ("x", plots.walk_jump),
    "recall_paths": ("paths", plots.recall_paths),
}
# What `fit_mixture` says of data that are thousands of sigma apart.
LOUD = pytest.mark.filterwarnings("ignore:(fit_mixture stopped|locs would be too many)")
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
NUMBERS = st.one_of(arrays.scalar_dtypes(), st.just(np.dtype(np.float32)))


def only_names(error, argument):
    """A TypeError or ValueError, and it begins with the argument's name."""
    assert isinstance(error, TypeError | ValueError), repr(error)
    assert re.match(rf"{re.escape(argument)}\b.* must ", f"{error}"), repr(error)


@pytest.mark.parametrize("name", TAKES_FLOATS | TAKES_REALS)
@LOUD
@MANY
@given(array=arrays.arrays(NUMBERS, SHAPES))
def test_arrays_of_any_kind(name, array, untyped):
    argument, call = (TAKES_FLOATS | TAKES_REALS)[name]
    if name in TAKES_FLOATS:
        # What is right takes time to compile, and has its own tests.
        right = np.issubdtype(array.dtype, np.floating) and array.shape[-1:] == (3,)
        assume(not (right and np.all(np.isfinite(array))))
    try:
        with warnings.catch_warnings():
            # At 1e16 `fit_mixture` does not get to the maximum, and says so.
            warnings.simplefilter("ignore", UserWarning)
            call(array)
    except Exception as error:
        only_names(error, argument)
    plt.close("all")


@pytest.mark.parametrize("name", TAKES_REALS)
@LOUD
def test_extreme_numbers(name, untyped):
    argument, call = TAKES_REALS[name]
    for array in (EXTREME, EXTREME[0], EXTREME[1], EXTREME[None], EXTREME[None, None, 1:]):
        try:
            call(array)
        except Exception as error:
            only_names(error, argument)


COUNTS = {
    "chunk_size": lambda n: neb.posterior_mean(ENERGY, np.zeros((1, 3)), chunk_size=n),
    "num_steps": lambda n: neb.WalkJumpKernel(ENERGY, num_steps=n),
    "dim": lambda n: geometry.sphere_shell(n, 1.0),
}
POSITIVE = {
    "sigma": ENERGY.at,
    "step_size": lambda x: integrators.BAOAB(step_size=x),
    "inverse_temperature": lambda x: neb.WalkJumpKernel(ENERGY, inverse_temperature=x),
}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.one_of(st.floats(), st.text(max_size=1)), max_size=3),
    st.dictionaries(st.text(max_size=1), st.integers(), max_size=2),
    arrays.arrays(NUMBERS, SHAPES),
    st.decimals(),
)


@pytest.mark.parametrize("argument", COUNTS | POSITIVE)
@MANY
@given(value=ANYTHING)
def test_anything_for_a_number(argument, value, untyped):
    try:
        (COUNTS | POSITIVE)[argument](value)
    except Exception as error:
        only_names(error, argument)


@MANY
@given(value=ANYTHING)
def test_anything_for_a_key_a_shape_or_an_energy(value, untyped):
    calls = {
        "key": lambda: ENERGY.sample(value),
        "event_shape": lambda: networks.MLP(value, width_size=1, depth=1, key=KEY),
        "energy": lambda: neb.SmoothedDensity(value),
    }
    for argument, call in calls.items():
        if argument == "event_shape" and np.size(value) and isinstance(value, np.ndarray):
            assume(np.prod(value.astype(float) if value.dtype.kind in "iu" else 0) < 1e4)
        try:
            call()
        except Exception as error:
            only_names(error, argument)
