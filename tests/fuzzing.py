"""How much is tried, energies with their formulas, and observations of any shape and width."""

import functools
import os
from math import prod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import ndtr, ndtri

import numpyro_neb as neb
from numpyro_neb import networks

UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
COMMON = {"deadline": None, "database": None, "suppress_health_check": UNCHECKED}
# To make a failing example smaller takes time to compile: the long profile does.
QUICK = {"derandomize": True, "phases": [Phase.generate]}
settings.register_profile("fast", max_examples=4, **COMMON, **QUICK)
settings.register_profile("long", max_examples=60, **COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fast")
settings.load_profile(PROFILE)
# What takes a second to compile.
FEW = settings(max_examples=2 if PROFILE == "fast" else 15)
MANY = settings(max_examples=25 if PROFILE == "fast" else 1000)

KEY = jax.random.key(0)
EVENTS = ((), (3,), (2, 3))
SIGMA = 0.7
KINDS = ("points", "gaussians", "network", "own")


class Own(neb.AbstractEnergy):
    """A user's energy, with a Hessian of its own at each y."""

    event_shape: tuple[int, ...] = eqx.field(static=True)
    sigma: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(SIGMA))
    loc: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(0.0))
    scale: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(1.0))

    def __call__(self, y):
        return jnp.sum(y**2) / 3 + jnp.sum(jnp.cos(y)) / 4 + jnp.sum(y) ** 2 / 20


@functools.cache
def energy_of(kind, event):
    rng, size = np.random.default_rng(7), prod(event)
    locs = rng.normal(size=(4, *event))
    if kind == "points":
        return neb.MixtureEnergy(locs, SIGMA, [0.0, 1.0, -np.inf, 0.5])
    if kind == "gaussians":
        root = rng.normal(size=(4, size, size)) / 2
        return neb.MixtureEnergy(locs, SIGMA, covariances=root @ root.swapaxes(1, 2))
    if kind == "own":
        return Own(event)
    network = networks.MLP(event, width_size=4, depth=1, key=KEY)
    return neb.ResidualEnergy(network, SIGMA, event, loc=0.3, scale=1.2)


@functools.cache
def formulas(kind, event):
    """phi, the jump and its covariance for one flattened y, straight from their formulas."""
    energy = energy_of(kind, event)

    def jump(flat):
        return flat - SIGMA**2 * jax.grad(lambda v: energy(v.reshape(event)))(flat)

    def one(flat):
        return energy(flat.reshape(event)), jump(flat), SIGMA**2 * jax.jacfwd(jump)(flat)

    return jax.jit(one)


def expected(kind, event, y):
    """phi (n,), jumps (n, d) and covariances (n, d, d) of the rows of y."""
    size = prod(event)
    rows = [formulas(kind, event)(row) for row in jnp.asarray(y, float).reshape(-1, size)]
    shapes = ((), (size,), (size, size))
    return [
        np.stack([row[i] for row in rows]) if rows else np.zeros((0, *shape))
        for i, shape in enumerate(shapes)
    ]


def close(found, wanted, factor=1.0):
    """Numbers of order 10 after some hundreds of operations: within a thousand roundings."""
    tolerance = factor * 1e3 * jnp.finfo(jnp.result_type(float)).eps
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=10 * tolerance)


@st.composite
def observations(draw, kinds=KINDS, batches=((), (1,), (2,), (2, 1), (0,)), events=EVENTS):
    """The kind of an energy, its event shape, and y of any batch, width, kind and layout."""
    kind, event = draw(st.sampled_from(kinds)), draw(st.sampled_from(events))
    batch = draw(st.sampled_from(batches))
    if PROFILE == "long" and len(batches) > 4 and draw(st.booleans()):
        batch = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.normal(size=(*batch, *event)) * draw(st.sampled_from([0.0, 1.0, 2.0]))
    y = y.astype(draw(st.sampled_from([np.float32, np.float16, np.float64, jnp.bfloat16])))
    layout = draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray, jnp.asarray]))
    # ascontiguousarray makes a vector of a scalar.
    return kind, event, batch, layout(y).reshape(y.shape)


def diagonal(kind, event, y):
    return np.diagonal(expected(kind, event, y)[2], axis1=1, axis2=2)


def std(kind, event, y):
    return np.sqrt(np.maximum(diagonal(kind, event, y), 0))


def interval(kind, event, y):
    assume(kind in ("network", "own"))
    _, mean, covariance = expected(kind, event, y)
    std = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0))
    return mean - ndtri(0.95) * std


def sign_rate(kind, event, y):
    assume(kind in ("network", "own"))
    _, mean, covariance = expected(kind, event, y)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    assume(np.all(variance > 1e-3))
    return ndtr(-np.abs(mean) / np.sqrt(variance))
