"""SmoothedDensity among NumPyro's own distributions.

The checks that NumPyro's test suite makes of any continuous vector distribution, on a normalised
mixture. Those that do not apply, and why: `rsample` and gradients of samples (a draw is no
differentiable function of the energy); `cdf`, `icdf`, `entropy`, `kl_divergence` (no closed form);
checks of argument constraints and of their gradients (the one argument is an energy, which checks
itself); enumeration and discrete supports. For a learned energy, which is known up to a constant,
besides: the integral of the density and its values against a reference.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import targets
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.transforms import AffineTransform
from numpyro.infer import (
    MCMC,
    NUTS,
    Predictive,
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import initialize_model, log_density

import numpyro_neb as neb

MIXTURE = targets.skewed_mixture()
IMAGE = neb.MixtureEnergy(jnp.arange(12.0).reshape(2, 2, 3), 0.8)
SCALAR = neb.MixtureEnergy(jnp.array([-1.0, 1.0]), 0.5)


def learned(key, sigma=0.5, loc=0.0):
    network = neb.networks.MLP((2,), width_size=8, depth=2, key=key)
    return neb.ResidualEnergy(network, sigma, (2,), loc=loc, scale=2.0)


def stack(energies):
    arrays = [eqx.partition(energy, eqx.is_array) for energy in energies]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[a for a, _ in arrays])
    return eqx.combine(stacked, arrays[0][1])


MIXTURES = [targets.skewed_mixture(sigma) for sigma in (0.5, 0.7, 1.0)]
LEARNED = [learned(jax.random.key(i), 0.3 + 0.2 * i, float(i)) for i in range(3)]
each_energy = pytest.mark.parametrize("energy", [MIXTURE, IMAGE, SCALAR, LEARNED[0]],
                                      ids=["mixture", "image", "scalar", "learned"])  # fmt: skip
each_stack = pytest.mark.parametrize("energies", [MIXTURES, LEARNED], ids=["mixture", "learned"])


@each_energy
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (4,)])
def test_shapes(energy, batch_shape, sample_shape):
    density = neb.SmoothedDensity(energy, num_steps=2).expand(batch_shape)
    y = density.sample(jax.random.key(0), sample_shape)
    assert (
        y.shape == density.shape(sample_shape) == (*sample_shape, *batch_shape, *energy.event_shape)
    )
    assert density.log_prob(y).shape == sample_shape + batch_shape
    assert jnp.broadcast_shapes(density.mean.shape, energy.event_shape) == density.mean.shape
    assert neb.SmoothedDensity.infer_shapes(energy) == ((), energy.event_shape)
    assert np.all(density.support(y))


@each_energy
def test_support_and_what_a_draw_is_not(energy):
    """The support is the whole space; a draw is no differentiable function of the energy."""
    density = neb.SmoothedDensity(energy, num_steps=2)
    assert density.support.event_dim == density.event_dim == len(energy.event_shape)
    assert not density.is_discrete
    assert not density.has_rsample
    with pytest.raises(NotImplementedError):
        density.rsample(jax.random.key(0))
    y = density.sample(jax.random.key(0), (3,))
    transform = dist.biject_to(density.support)
    np.testing.assert_array_equal(transform(y), y)
    assert np.all(transform.log_abs_det_jacobian(y, y) == 0)


def test_through_vmap_scan_and_grad_as_an_argument():
    """As NumPyro's own distributions: a pytree whose leaves are the energy's arrays."""
    y = jax.random.normal(jax.random.key(0), (3, 2))
    one, several = neb.SmoothedDensity(MIXTURE), neb.SmoothedDensity(stack(MIXTURES))
    log_prob = lambda d, y: d.log_prob(y)  # noqa: E731
    shared = jax.vmap(log_prob, in_axes=(None, 0))(one, y)
    np.testing.assert_allclose(shared, one.log_prob(y), rtol=1e-5)
    expected = [neb.SmoothedDensity(e).log_prob(v) for e, v in zip(MIXTURES, y, strict=True)]
    np.testing.assert_allclose(jax.vmap(log_prob)(several, y), expected, rtol=1e-5)
    _, scanned = jax.lax.scan(lambda c, dy: (c, log_prob(*dy)), 0, (several, y))
    np.testing.assert_allclose(scanned, expected, rtol=1e-5)
    slope = jax.grad(log_prob)(one, y[0])
    assert jax.tree.structure(slope) == jax.tree.structure(one)
    # Moving all components by a is moving y by -a.
    moved = slope.energy.locs.sum(0)
    np.testing.assert_allclose(moved, -jax.grad(one.log_prob)(y[0]), rtol=1e-4, atol=1e-5)


def test_integrates_to_one():
    grid = jnp.linspace(-8, 8, 400)
    density = neb.SmoothedDensity(SCALAR)
    np.testing.assert_allclose(jnp.trapezoid(jnp.exp(density.log_prob(grid)), grid), 1, rtol=1e-5)
    plane = jnp.stack(jnp.meshgrid(grid, grid), -1)
    p = jnp.exp(neb.SmoothedDensity(MIXTURE).log_prob(plane))
    np.testing.assert_allclose(jnp.trapezoid(jnp.trapezoid(p, grid), grid), 1, rtol=1e-5)


@each_energy
def test_gradient_of_log_prob_is_the_slope(energy):
    density = neb.SmoothedDensity(energy)
    y = jax.random.normal(jax.random.key(0), energy.event_shape)
    direction = jax.random.normal(jax.random.key(1), energy.event_shape)
    slope = jnp.sum(jax.grad(density.log_prob)(y) * direction)
    h = 1e-2
    difference = (density.log_prob(y + h * direction) - density.log_prob(y - h * direction)) / (
        2 * h
    )
    np.testing.assert_allclose(slope, difference, rtol=1e-2, atol=1e-2)


@each_energy
def test_expanded_independent_and_masked_agree_with_the_base(energy):
    base = neb.SmoothedDensity(energy, num_steps=2)
    y = jax.random.normal(jax.random.key(0), (5, 3, *energy.event_shape))
    expected = base.log_prob(y)
    expanded = base.expand((3,)).expand((5, 3))
    np.testing.assert_allclose(expanded.log_prob(y), expected, rtol=1e-5)
    assert base.expand(()) is base
    independent = expanded.to_event(1)
    assert (independent.batch_shape, independent.event_shape) == ((5,), (3, *energy.event_shape))
    np.testing.assert_allclose(independent.log_prob(y), expected.sum(-1), rtol=1e-5)
    mask = jnp.array([True, False, True])
    masked = expanded.mask(mask)
    np.testing.assert_allclose(masked.log_prob(y), expected * mask, rtol=1e-5)
    for density in (expanded, independent, masked):
        again = jax.tree.unflatten(*jax.tree.flatten(density)[::-1])
        np.testing.assert_allclose(again.log_prob(y), density.log_prob(y), rtol=1e-6)
        jitted = jax.jit(lambda d, y: d.log_prob(y))(density, y)
        np.testing.assert_allclose(jitted, density.log_prob(y), rtol=1e-5, atol=1e-5)
    draws = expanded.sample(jax.random.key(1))
    assert len(np.unique(np.asarray(draws).reshape(15, -1), axis=0)) == 15


def test_validation():
    density = neb.SmoothedDensity(MIXTURE, validate_args=True)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="value must be finite, got NaN or infinity"):
            density.log_prob(jnp.array([0.0, bad]))
        # Under jit the value is not known: it goes through.
        assert not np.isfinite(jax.jit(density.log_prob)(jnp.array([0.0, bad])))
    with pytest.raises(ValueError, match=r"must end in the event shape \(2,\)"):
        density.log_prob(jnp.zeros(3))
    with numpyro.validation_enabled(), pytest.raises(ValueError, match="value must be finite"):
        neb.SmoothedDensity(MIXTURE).log_prob(jnp.array([0.0, np.nan]))
    with numpyro.validation_enabled(False):
        assert np.isnan(neb.SmoothedDensity(MIXTURE).log_prob(jnp.array([0.0, np.nan])))


@each_stack
def test_a_stack_of_energies_is_a_batch(energies):
    made = eqx.filter_vmap(partial(neb.SmoothedDensity, num_steps=50))(stack(energies))
    given = neb.SmoothedDensity(stack(energies), num_steps=50)
    y = jax.random.normal(jax.random.key(0), (4, 3, 2))
    each = [neb.SmoothedDensity(energy) for energy in energies]
    for density in (made, given, promote_batch_shape(made)):
        assert (density.batch_shape, density.event_shape) == ((3,), (2,))
        for name, value in (("log_prob", y), ("denoise", y), ("log_prob", y[0]), ("denoise", y[0])):
            expected = [getattr(d, name)(value[..., i, :]) for i, d in enumerate(each)]
            found = getattr(density, name)(value)
            axis = value.ndim - 2
            np.testing.assert_allclose(found, np.stack(expected, axis), rtol=2e-4, atol=1e-5)
        shared = density.log_prob(y[:, :1])  # one value for all of them
        np.testing.assert_allclose(shared[:, 2], each[2].log_prob(y[:, 0]), rtol=2e-4, atol=1e-5)
        for name in ("mean", "variance"):
            np.testing.assert_allclose(
                getattr(density, name), [getattr(d, name) for d in each], rtol=1e-5
            )
        assert density.sample(jax.random.key(1), (5,)).shape == (5, 3, 2)
    assert neb.SmoothedDensity.infer_shapes(stack(energies)) == ((3,), (2,))


def test_draws_of_a_stack_have_each_energys_law():
    y = neb.SmoothedDensity(stack(MIXTURES)).sample(jax.random.key(0), (10_000,))
    for i, energy in enumerate(MIXTURES):
        targets.assert_law(y[:, i], energy)


def test_a_stack_in_two_dimensions_expands_and_goes_through_vmap():
    stacked = stack([stack(LEARNED), stack(LEARNED[::-1])])
    density = neb.SmoothedDensity(stacked, num_steps=2)
    assert density.batch_shape == (2, 3)
    y = jax.random.normal(jax.random.key(0), (2, 3, 2))
    expected = neb.SmoothedDensity(LEARNED[2]).log_prob(y[1, 0])
    np.testing.assert_allclose(density.log_prob(y)[1, 0], expected, rtol=2e-4)
    rows = jax.vmap(lambda d, y: d.log_prob(y))(density, y)
    np.testing.assert_allclose(rows, density.log_prob(y), rtol=2e-4)
    # A dimension of size one takes the size that it is expanded to.
    arrays, static = eqx.partition(stack(LEARNED), eqx.is_array)
    column = eqx.combine(jax.tree.map(lambda a: a[:, None], arrays), static)
    column = neb.SmoothedDensity(column, num_steps=2)
    wide = column.expand((3, 4))
    assert wide.sample(jax.random.key(0), (5,)).shape == (5, 3, 4, 2)
    y = jax.random.normal(jax.random.key(0), (3, 4, 2))
    expected = neb.SmoothedDensity(LEARNED[1]).log_prob(y[1])
    np.testing.assert_allclose(wide.log_prob(y)[1], expected, rtol=2e-4)


def test_promoted_wrappers_keep_the_stack_in_front():
    """NumPyro 0.22 gives an `Independent` a wrong batch shape here, a MultivariateNormal's too."""

    def made(energy):
        density = neb.SmoothedDensity(energy)
        return density.expand((4,)), density.expand((4,)).to_event(1), density.mask(True)

    expanded, independent, masked = map(promote_batch_shape, eqx.filter_vmap(made)(stack(LEARNED)))
    assert (expanded.batch_shape, masked.batch_shape) == ((3, 4), (3,))
    y = jax.random.normal(jax.random.key(0), (3, 4, 2))
    expected = np.stack([neb.SmoothedDensity(e).log_prob(y[i]) for i, e in enumerate(LEARNED)])
    np.testing.assert_allclose(expanded.log_prob(y), expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(independent.log_prob(y), expected.sum(1), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(masked.log_prob(y[:, 0]), expected[:, 0], rtol=2e-4, atol=1e-5)
    assert expanded.expand((2, 3, 4)).batch_shape == (2, 3, 4)


def test_plates():
    def model(obs=None):
        with numpyro.plate("rows", 3, dim=-1), numpyro.plate("columns", 4, dim=-2):
            numpyro.sample("y", neb.SmoothedDensity(MIXTURE), obs=obs)

    y = jax.random.normal(jax.random.key(0), (4, 3, 2))
    value, _ = log_density(model, (), {}, {"y": y})
    np.testing.assert_allclose(value, neb.SmoothedDensity(MIXTURE).log_prob(y).sum(), rtol=1e-5)
    observed, _ = log_density(model, (y,), {}, {})
    np.testing.assert_allclose(observed, value, rtol=1e-6)
    assert Predictive(model, num_samples=2)(jax.random.key(0))["y"].shape == (2, 4, 3, 2)

    def subsampled():
        with numpyro.plate("rows", 10, subsample_size=2) as rows:
            numpyro.sample("y", neb.SmoothedDensity(MIXTURE), obs=jnp.ones((10, 2))[rows])

    value, _ = log_density(handlers.seed(subsampled, 0), (), {}, {})
    np.testing.assert_allclose(
        value, 10 * neb.SmoothedDensity(MIXTURE).log_prob(jnp.ones(2)), rtol=1e-5
    )


def in_scan(energies, length=3, plate=None):
    """A chain of noisy signals, each observed through noise of sd 1, each with its own energy."""
    arrays, static = eqx.partition(energies, eqx.is_array)

    def transition(previous, arrays):
        energy = MIXTURE if energies is None else eqx.combine(arrays, static)
        density = neb.SmoothedDensity(energy, num_steps=2)
        if plate is None:
            y = numpyro.sample("y", density)
        else:
            with numpyro.plate("copies", plate):
                y = numpyro.sample("y", density)
        numpyro.sample("seen", dist.Normal(y, 1.0).to_event(y.ndim), obs=jnp.zeros(y.shape))
        return y, y

    start = jnp.zeros((2,) if plate is None else (plate, 2))
    scan(transition, start, arrays, length=length)


@pytest.mark.parametrize("plate", [None, 4])
@pytest.mark.parametrize("energies", [None, MIXTURES, LEARNED], ids=["one", "mixture", "learned"])
def test_inside_scan(energies, plate):
    stacked = None if energies is None else stack(energies)
    shape = (3, 2) if plate is None else (3, plate, 2)
    y = jax.random.normal(jax.random.key(0), shape)
    args = (stacked, 3, plate)
    value, sites = log_density(in_scan, args, {}, {"y": y})
    each = energies or [MIXTURE] * 3
    expected = sum(neb.SmoothedDensity(e).log_prob(y[i]).sum() for i, e in enumerate(each))
    expected += dist.Normal(y, 1.0).log_prob(0.0).sum()
    np.testing.assert_allclose(value, expected, rtol=2e-4)
    assert sites["y"]["fn"].batch_shape == shape[:-1]
    model = handlers.seed(in_scan, 0)
    assert handlers.trace(model).get_trace(*args)["y"]["value"].shape == shape


@pytest.mark.parametrize("plate", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_scan_under_nuts_and_the_walk(plate):
    model = partial(in_scan, stack(LEARNED), 3, plate)
    for kernel in (NUTS(model), neb.WalkJumpKernel(model=model)):
        mcmc = MCMC(kernel, num_warmup=5, num_samples=5, progress_bar=False)
        mcmc.run(jax.random.key(0))
        draws = mcmc.get_samples()
        shape = (5, 3, 2) if plate is None else (5, 3, plate, 2)
        assert draws["y"].shape == shape
        if isinstance(kernel, neb.WalkJumpKernel):
            expected = jax.vmap(LEARNED[1].denoise)(draws["y"][:, 1].reshape(-1, 2))
            np.testing.assert_allclose(
                draws["y_jump"][:, 1].reshape(-1, 2), expected, rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize(
    "strategy",
    [
        init_to_sample,
        init_to_uniform,
        init_to_median,
        init_to_mean,
        init_to_feasible,
        init_to_value(values={"y": jnp.ones((3, 2))}),
    ],
    ids=["sample", "uniform", "median", "mean", "feasible", "value"],
)
def test_init_strategies(strategy):
    def model():
        with numpyro.plate("copies", 3):
            numpyro.sample("y", neb.SmoothedDensity(MIXTURE))

    info = initialize_model(jax.random.key(0), model, init_strategy=strategy).param_info
    assert info.z["y"].shape == (3, 2)
    assert np.isfinite(info.potential_energy)
    if strategy is init_to_mean:
        np.testing.assert_allclose(info.z["y"], np.tile(MIXTURE.loc, (3, 1)), rtol=1e-5)


def test_reparameterisations():
    """TransformReparam moves an affine map out; LocScaleReparam has no loc and scale to move."""

    def affine():
        base = neb.SmoothedDensity(MIXTURE)
        transform = AffineTransform(jnp.array([1.0, -1.0]), 2.0)
        numpyro.sample("z", dist.TransformedDistribution(base, transform))

    z = jnp.array([0.4, 0.7])
    plain, _ = log_density(affine, (), {}, {"z": z})
    moved = handlers.reparam(affine, config={"z": TransformReparam()})
    y = (z - jnp.array([1.0, -1.0])) / 2
    value, sites = log_density(moved, (), {}, {"z_base": y})
    np.testing.assert_allclose(value, plain + 2 * np.log(2.0), rtol=1e-5)
    np.testing.assert_allclose(sites["z"]["value"], z, rtol=1e-6)

    def model():
        y = numpyro.sample("y", neb.SmoothedDensity(MIXTURE))
        numpyro.sample("b", dist.Normal(y[0], 2.0))

    beside = handlers.reparam(model, config={"b": LocScaleReparam(0)})
    value, _ = log_density(beside, (), {}, {"y": z, "b_decentered": jnp.array(0.3)})
    expected = neb.SmoothedDensity(MIXTURE).log_prob(z) + dist.Normal(0, 1).log_prob(0.3)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    on_y = handlers.reparam(model, config={"y": LocScaleReparam(0)})
    with pytest.raises((AttributeError, ValueError)):
        handlers.trace(handlers.seed(on_y, 0)).get_trace()


def test_effect_handlers():
    def model():
        return numpyro.sample("y", neb.SmoothedDensity(MIXTURE))

    y = jnp.array([0.4, 0.7])
    for key in (jax.random.key(0), jax.random.PRNGKey(0), 0):
        assert handlers.seed(model, key)().shape == (2,)
    conditioned = handlers.trace(handlers.condition(model, {"y": y})).get_trace()
    assert conditioned["y"]["is_observed"]
    scoped = handlers.scope(handlers.substitute(model, {"y": y}), prefix="a")
    assert list(handlers.trace(scoped).get_trace()) == ["a/y"]
    expected = 0.5 * neb.SmoothedDensity(MIXTURE).log_prob(y)
    value, _ = log_density(handlers.scale(model, scale=0.5), (), {}, {"y": y})
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    with handlers.mask(mask=False):
        value, _ = log_density(model, (), {}, {"y": y})
    assert value == 0
