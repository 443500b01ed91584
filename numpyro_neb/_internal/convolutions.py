"""Convolutions as matrix products, for compiled loops on a CPU."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from itertools import product
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array, PyTree, Shaped

_CONVOLUTION, _JIT, _REMAT = "conv_general_dilated", "jit", "remat2"  # JAX's names


def as_matrix_products(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function, with its convolutions evaluated as slices and matrix products.

    XLA:CPU runs a convolution several times slower inside a compiled loop (`jax.lax.scan`,
    `while_loop`, `fori_loop`) than outside; a matrix product is as fast in both. Convolutions of
    any dimension, stride, padding, dilation, grouping and layout are replaced, also inside
    `jax.jit` and `jax.checkpoint`. Those inside `fn`'s own loops and conditionals, and those inside
    functions with custom derivatives (`jax.custom_jvp`, `jax.custom_vjp`), stay as they are.

    Args:
        fn: A function of arrays, or of pytrees of arrays, that JAX can trace.

    Returns:
        A function of the same positional arguments with the same values, up to rounding, that can
        be differentiated, vectorised and compiled as `fn` can. If there is nothing to replace, it
        calls `fn`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax import lax
        >>> from numpyro_neb._internal.convolutions import as_matrix_products
        >>> def blur(x):
        ...     return lax.conv(x, jnp.full((1, 1, 3, 3), 1 / 9), (1, 1), "VALID")
        >>> as_matrix_products(blur)(jnp.ones((1, 1, 4, 4))).round(3).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """

    def converted(*args: PyTree) -> PyTree:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        if not _has_convolution(closed.jaxpr):
            return fn(*args)
        out = _evaluate(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), out)

    return converted


def for_compiled_loops(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`as_matrix_products(fn)` if JAX's default backend is the CPU, otherwise `fn` itself."""
    return as_matrix_products(fn) if jax.default_backend() == "cpu" else fn


def _has_convolution(jaxpr: Any) -> bool:
    return any(_is_convolution(eqn) or _encloses_convolution(eqn) for eqn in jaxpr.eqns)


def _is_convolution(eqn: Any) -> bool:
    # Batch groups come from the gradient of a grouped kernel; an empty result has no windows.
    return (
        eqn.primitive.name == _CONVOLUTION
        and eqn.params["batch_group_count"] == 1
        and 0 not in eqn.outvars[0].aval.shape
    )


def _encloses_convolution(eqn: Any) -> bool:
    return eqn.primitive.name in (_JIT, _REMAT) and _has_convolution(_body(eqn)[0])


def _body(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """The jaxpr of an enclosing equation, and its constants: that of `jax.checkpoint` has none."""
    body = eqn.params["jaxpr"]
    return getattr(body, "jaxpr", body), getattr(body, "consts", ())


def _evaluate(jaxpr: Any, consts: Iterable[Any], *args: Any) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        with eqn.ctx.manager:
            out = _evaluate_equation(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, out, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _evaluate_equation(eqn: Any, args: list[Any]) -> Sequence[Any]:
    if _is_convolution(eqn):
        lhs, rhs = args
        return [_convolve(lhs, rhs, eqn.outvars[0].aval.shape, eqn.params)]
    if _encloses_convolution(eqn):
        inner = partial(_evaluate, *_body(eqn))
        if eqn.primitive.name == _REMAT:
            kept = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
            inner = jax.checkpoint(inner, **kept)
        return inner(*args)
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Up to JAX 0.8 the functions among the parameters come separately from the others.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *args, **params)
    return out if eqn.primitive.multiple_results else [out]


def _convolve(
    lhs: Shaped[Array, "..."],
    rhs: Shaped[Array, "..."],
    out_shape: tuple[int, ...],
    params: dict[str, Any],
) -> Shaped[Array, "..."]:
    """`lax.conv_general_dilated` with these parameters, whose result has the shape `out_shape`."""
    lhs_spec, rhs_spec, out_spec = params["dimension_numbers"]
    groups = params["feature_group_count"]
    # Channels come last: a window's channels lie together in memory, as the product wants them.
    lhs = lhs.transpose(lhs_spec[0], *lhs_spec[2:], lhs_spec[1])
    rhs = rhs.transpose(*rhs_spec[2:], *rhs_spec[1::-1])
    out_size = tuple(out_shape[axis] for axis in out_spec[2:])
    taps = tuple(product(*map(range, rhs.shape[:-2])))
    x = lhs.reshape(*lhs.shape[:-1], groups, -1)
    kernel = rhs.reshape(len(taps), rhs.shape[-2], groups, -1)
    # The array between product and slices is the large one: choose the order that keeps it small.
    if prod(lhs.shape[1:-1]) * rhs.shape[-1] < prod(out_size) * lhs.shape[-1]:
        out = _product_then_shifts(x, kernel, taps, out_size, params)
    else:
        out = _shifts_then_product(x, kernel, taps, out_size, params)
    out = out.reshape(*out.shape[:-2], -1)
    order = (out_spec[0], *out_spec[2:], out_spec[1])
    return out.transpose(*(order.index(axis) for axis in range(out.ndim)))


def _shifts_then_product(x, kernel, taps, out_size, params):
    x = _pad(x, params)
    patches = jnp.concatenate([_window(x, tap, out_size, params) for tap in taps], axis=-1)
    return _product(patches, kernel.reshape(-1, *kernel.shape[2:]), params)


def _product_then_shifts(x, kernel, taps, out_size, params):
    kernel = jnp.moveaxis(kernel, 0, 2)
    products = _product(x, kernel.reshape(*kernel.shape[:2], -1), params)
    products = jnp.split(_pad(products, params), len(taps), axis=-1)
    shifted = map(partial(_window, out_size=out_size, params=params), products, taps)
    return reduce(jnp.add, shifted)


def _pad(x, params):
    spatial = zip(params["padding"], params["lhs_dilation"], strict=True)
    inner = [(int(low), int(high), dilation - 1) for (low, high), dilation in spatial]
    none = (0, 0, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), [none, *inner, none, none])


def _window(x, tap, out_size, params):
    """The entries of x that one tap of the kernel multiplies."""
    strides = params["window_strides"]
    starts = [t * dilation for t, dilation in zip(tap, params["rhs_dilation"], strict=True)]
    limits = [
        start + (size - 1) * stride + 1
        for start, size, stride in zip(starts, out_size, strides, strict=True)
    ]
    last = x.shape[-2:]
    return lax.slice(x, (0, *starts, 0, 0), (len(x), *limits, *last), (1, *strides, 1, 1))


def _product(x, kernel, params):
    """The product of x (..., groups, in) and the kernel (in, groups, out), group by group."""
    out = lax.dot_general(
        x,
        kernel,
        (((x.ndim - 1,), (0,)), ((x.ndim - 2,), (1,))),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return jnp.moveaxis(out, 0, -2)
