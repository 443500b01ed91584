"""Random keys, split without a loop."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def split_key(key: PRNGKeyArray, num: int) -> tuple[PRNGKeyArray, ...]:
    """The keys of `jax.random.split(key, num)`, bit for bit, for a small `num`.

    On a CPU JAX compiles its hash, threefry, as a loop, which for a few keys takes several times as
    long as the arithmetic: as long as a step of a walk on a small energy. Here it has no loop.

    Args:
        key: One key, typed or raw.
        num: The number of keys.

    Reference:
        Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3 (2011).
    """
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    # JAX's setting for this way of splitting; unknown to a release of JAX, its own way is taken.
    partitionable = getattr(jax.config, "jax_threefry_partitionable", False)
    if not (threefry and partitionable):
        return tuple(jax.random.split(key, num))
    words = jax.random.key_data(key)
    pairs = [jnp.stack(_threefry(words[0], words[1], count)) for count in range(num)]
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return tuple(pairs)
    return tuple(jax.random.wrap_key_data(pair, impl="threefry2x32") for pair in pairs)


def _threefry(first, second, count):
    """The hash of the counter (0, count): 20 rounds, with the key added after every fourth."""
    keys = first, second, first ^ second ^ jnp.uint32(_PARITY)
    x, y = first, second + jnp.uint32(count)
    for i in range(5):
        for turn in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << turn) | (y >> (32 - turn)))
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y
