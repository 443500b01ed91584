from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numpyro_neb._internal.convolutions import as_matrix_products

# Name: shape of the images, shape of the kernel, options of lax.conv_general_dilated.
NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
CASES = {
    "1d": ((2, 3, 8), (4, 3, 3), {}),
    "1d_stride_dilation": (
        (2, 3, 11),
        (4, 3, 3),
        {"window_strides": (2,), "rhs_dilation": (3,), "padding": [(2, 1)]},
    ),
    "2d_same": ((2, 3, 5, 6), (3, 3, 3, 2), {"padding": "SAME"}),
    "2d_fewer_channels": ((2, 5, 5, 6), (1, 5, 3, 3), {"padding": "SAME"}),
    "2d_stride": ((1, 2, 7, 6), (3, 2, 3, 3), {"window_strides": (2, 3), "padding": "SAME"}),
    "2d_fewer_channels_stride": ((1, 9, 7, 6), (1, 9, 3, 2), {"window_strides": (2, 1)}),
    "2d_negative_padding": ((1, 2, 7, 6), (3, 2, 2, 2), {"padding": [(-1, 2), (0, -2)]}),
    "2d_groups": ((2, 4, 5, 5), (6, 2, 3, 3), {"feature_group_count": 2}),
    "2d_groups_fewer_channels": ((2, 9, 5, 5), (3, 3, 3, 3), {"feature_group_count": 3}),
    "2d_depthwise": ((2, 3, 5, 5), (3, 1, 3, 3), {"feature_group_count": 3, "padding": "SAME"}),
    "2d_transposed": (
        (2, 3, 4, 4),
        (2, 3, 3, 3),
        {"lhs_dilation": (2, 3), "padding": [(1, 2), (2, 2)]},
    ),
    "2d_transposed_shifts_first": (
        (1, 1, 4, 4),
        (7, 1, 2, 3),
        {"lhs_dilation": (2, 1), "padding": [(1, 1), (-1, 2)]},
    ),
    "2d_nhwc": ((2, 5, 6, 3), (3, 2, 3, 4), NHWC | {"padding": "SAME"}),
    "2d_nhwc_groups": ((2, 5, 6, 4), (3, 2, 2, 6), NHWC | {"feature_group_count": 2}),
    "2d_any_layout": ((5, 3, 2, 6), (2, 3, 4, 3), {"dimension_numbers": ("HCNW", "WIOH", "CWNH")}),
    "3d": ((1, 2, 4, 3, 4), (2, 2, 2, 2, 3), {"padding": "SAME", "window_strides": (2, 1, 1)}),
    "pointwise": ((2, 3, 4, 4), (5, 3, 1, 1), {}),
    "empty": ((1, 2, 2, 2), (3, 2, 3, 3), {}),
}


def close(actual, expected, tolerance=1e-5):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


def names(jaxpr):
    """The primitives of a jaxpr and of those inside."""
    return set(eqn_names(jaxpr.eqns))


def eqn_names(eqns):
    for eqn in eqns:
        yield eqn.primitive.name
        for param in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(param):
                yield from eqn_names(param.eqns)


def is_jaxpr(param):
    return hasattr(param, "eqns")


def convolution(name, dtype=jnp.float32):
    shape, kernel_shape, options = CASES[name]
    options = {"window_strides": (1,) * (len(shape) - 2), "padding": "VALID"} | options
    keys = jax.random.split(jax.random.key(0))
    x, kernel = (
        jax.random.normal(k, s, dtype) for k, s in zip(keys, (shape, kernel_shape), strict=True)
    )
    return partial(lax.conv_general_dilated, **options), x, kernel


def smooth_sum(fn, *args):
    return jnp.sum(jnp.sin(fn(*args)))


def check(name, dtype, tolerance):
    fn, x, kernel = convolution(name, dtype)
    converted = as_matrix_products(fn)

    @jax.jit  # one program for all four: compilation is what takes time here
    def values_and_gradients(x, kernel):
        return [
            (f(x, kernel), jax.grad(partial(smooth_sum, f), (0, 1))(x, kernel))
            for f in (converted, fn)
        ]

    close(*values_and_gradients(x, kernel), tolerance)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, strict):
    check(name, jnp.float32, 1e-5)


@pytest.mark.parametrize("name", ["1d_stride_dilation", "2d_same", "2d_transposed"])
def test_float64(name, strict, x64):
    check(name, jnp.float64, 1e-12)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"empty"}))
def test_no_convolution_is_left(name):
    fn, x, kernel = convolution(name)
    left = names(jax.make_jaxpr(as_matrix_products(fn))(x, kernel))
    assert "dot_general" in left
    assert not left & {"conv_general_dilated", "gather"}


@pytest.mark.parametrize("name", ["2d_same", "2d_stride", "2d_groups", "2d_transposed"])
def test_a_gradient_can_be_converted(name):
    """The convolutions of a gradient's backward pass are convolutions too."""
    fn, x, kernel = convolution(name)
    gradient = jax.grad(lambda x: smooth_sum(fn, x, kernel))
    close(jax.jit(as_matrix_products(gradient))(x), jax.jit(gradient)(x))
    assert "conv_general_dilated" not in names(jax.make_jaxpr(as_matrix_products(gradient))(x))


def test_forward_mode_and_second_order(strict):
    fn, x, kernel = convolution("2d_same")

    @jax.jit
    def second_order(x, kernel):
        gradients = [jax.grad(partial(smooth_sum, f)) for f in (as_matrix_products(fn), fn)]
        return [jax.jvp(g, (x, kernel), (jnp.cos(x), kernel))[1] for g in gradients]

    close(*second_order(x, kernel), 1e-4)


def test_network_under_vmap_grad_and_jit(strict):
    keys = jax.random.split(jax.random.key(0), 4)
    layers = [
        eqx.nn.Conv2d(1, 3, 3, padding=1, key=keys[0]),
        eqx.nn.Conv2d(3, 3, 3, stride=2, key=keys[1]),
        eqx.nn.ConvTranspose2d(3, 1, 3, stride=2, key=keys[2]),
    ]

    def energy(y, scale):
        out = y[None]
        for layer in layers:
            out = jax.nn.softplus(scale * layer(out))
        return jnp.sum(out**2)

    y, scale = jax.random.normal(keys[3], (4, 7, 7)), jnp.linspace(0.5, 1, 4)
    native = jax.jit(jax.vmap(jax.value_and_grad(energy)))(y, scale)
    close(jax.jit(jax.vmap(jax.value_and_grad(as_matrix_products(energy))))(y, scale), native)
    close(jax.jit(jax.vmap(as_matrix_products(jax.value_and_grad(energy))))(y, scale), native)

    # The scale is a tracer from outside, one for each chain.
    def closed_over(y, scale):
        return as_matrix_products(partial(energy, scale=scale))(y)

    def step(y, _):
        value, gradient = jax.vmap(jax.value_and_grad(closed_over))(y, scale)
        return y - 0.0 * gradient, value

    close(jax.jit(lambda y: lax.scan(step, y, None, length=2))(y)[1], jnp.stack([native[0]] * 2))


def test_inside_jit_and_checkpoint():
    fn, x, kernel = convolution("2d_same")
    policy = jax.checkpoint_policies.dots_saveable

    @jax.jit
    def nested(x):
        inner = jax.checkpoint(lambda x: jnp.sin(jax.jit(fn)(x, kernel)), policy=policy)
        return {"out": inner(x), "relu": jax.nn.relu(x)}

    converted = as_matrix_products(nested)
    left = names(jax.make_jaxpr(converted)(x))
    assert {"remat2", "dot_general", "custom_jvp_call"} <= left
    assert "conv_general_dilated" not in left
    close(jax.jit(converted)(x), nested(x))
    gradients = [jax.grad(lambda x, f=f: jnp.sum(f(x)["out"])) for f in (converted, nested)]
    close(*(jax.jit(gradient)(x) for gradient in gradients))


def test_loops_stay_as_they_are():
    fn, x, kernel = convolution("2d_same")

    def looped(x):
        return fn(lax.fori_loop(0, 2, lambda _, x: fn(x, kernel), x), kernel)

    left = names(jax.make_jaxpr(as_matrix_products(looped))(x))
    assert {"dot_general", "conv_general_dilated"} <= left
    close(jax.jit(as_matrix_products(looped))(x), jax.jit(looped)(x), 1e-4)


def test_batch_groups_stay_as_they_are():
    fn = partial(lax.conv_general_dilated, window_strides=(1,), padding="SAME", batch_group_count=2)
    x, kernel = jnp.arange(24.0).reshape(4, 2, 3), jnp.ones((2, 2, 3))
    close(as_matrix_products(fn)(x, kernel), fn(x, kernel))


def test_types_and_precision_are_handed_on():
    fn, x, kernel = convolution("2d_same", jnp.bfloat16)
    fn = partial(fn, precision="highest", preferred_element_type=jnp.float32)
    converted = as_matrix_products(fn)
    close(jax.jit(converted)(x, kernel), jax.jit(fn)(x, kernel))
    products = [
        eqn
        for eqn in jax.make_jaxpr(converted)(x, kernel).eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert [eqn.params["precision"] for eqn in products] == [(lax.Precision.HIGHEST,) * 2]


def test_without_a_convolution_nothing_changes():
    def fn(tree, y):
        return {"a": jnp.tanh(tree["x"]) @ y, "b": None, "c": y}

    args = ({"x": jnp.ones((2, 3))}, jnp.arange(3.0))
    close(as_matrix_products(fn)(*args), fn(*args), 0)
    assert str(jax.make_jaxpr(as_matrix_products(fn))(*args)) == str(jax.make_jaxpr(fn)(*args))
