"""Keys split without a loop."""

import jax
import numpy as np
import pytest

from numpyro_neb._internal.keys import split_key


def data(keys):
    return [np.asarray(jax.random.key_data(key)) for key in keys]


def key_of(impl, raw, seed=7):
    return (jax.random.PRNGKey if raw else jax.random.key)(seed, impl=impl)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("impl", [None, "threefry2x32", "rbg"])
@pytest.mark.parametrize("partitionable", [True, False])
def test_the_keys_are_those_of_jax(impl, raw, partitionable):
    if raw and impl == "rbg":
        pytest.skip("a raw key of another generator than the default one has no generator")
    with jax.threefry_partitionable(partitionable):
        key = key_of(impl, raw)
        found = split_key(key, 3)
        assert [k.dtype for k in found] == [key.dtype] * 3
        np.testing.assert_array_equal(data(found), data(jax.random.split(key, 3)))
        keys = jax.random.split(key, 5)
        batch = jax.jit(jax.vmap(lambda key: split_key(key, 2)))(keys)
        due = jax.vmap(jax.random.split, out_axes=1)(keys)
        np.testing.assert_array_equal(data(batch), data(due))


@pytest.mark.parametrize("raw", [False, True])
def test_nothing_loops(raw):
    compiled = jax.jit(lambda key: split_key(key, 3)).lower(key_of(None, raw)).compile()
    assert "while(" not in str(compiled.as_text())
