"""Choose exactly the k smallest of many numbers that lie in several arrays, of any layout.

A sort would bring all numbers to one device. Here the k-th smallest is found bit by bit, by
counting how many numbers are smaller than a guess. Only these counts cross devices, and
they are integers, so every layout finds the same. Equal numbers are told apart by their
places.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from lm.compress.leaves import Leaves

BITS = 32


def ordered(x: jax.Array) -> jax.Array:
    """Map float32 that are not negative to uint32 in the same order, from 1 on."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) + 1


def smallest(keys: Leaves, k: jax.Array | int) -> Leaves:
    """Return bool arrays, true at the k smallest of all these uint32 together."""
    k = jnp.asarray(k, jnp.uint32)
    values, places = list(keys.values()), numbered(list(keys.values()))
    limit = largest(lambda guess: count(x < guess for x in values) <= k)
    missing = k - count(x < limit for x in values)
    equal = [x == limit for x in values]
    # Of those equal to the limit, take the first ones.
    end = largest(
        lambda guess: (
            count(e & (i < guess) for e, i in zip(equal, places, strict=True)) <= missing
        )
    )
    return {
        name: (x < limit) | (e & (i < end))
        for name, x, e, i in zip(keys, values, equal, places, strict=True)
    }


def smallest_of_each(x: jax.Array, k: jax.Array | int) -> jax.Array:
    """Return bool like x, [N, ...], true at the k smallest of each of the N arrays."""
    return jax.vmap(lambda one: smallest({"": one}, k)[""])(x)


def count(parts) -> jax.Array:
    return sum(jnp.sum(part, dtype=jnp.uint32) for part in parts)


def largest(holds) -> jax.Array:
    """Return the largest uint32 for which `holds`, which holds for 0 and then up to it."""

    def with_bit(index: int, guess: jax.Array) -> jax.Array:
        more = guess | (jnp.uint32(1) << (BITS - 1 - index).astype(jnp.uint32))
        return jnp.where(holds(more), more, guess)

    return jax.lax.fori_loop(0, BITS, with_bit, jnp.uint32(0))


def numbered(arrays: list[jax.Array]) -> list[jax.Array]:
    """Return each element's place among all elements, from 0 on."""
    found, first = [], 0
    for x in arrays:
        places = jnp.full(x.shape, first, jnp.uint32)
        for dim in range(x.ndim):
            stride = math.prod(x.shape[dim + 1 :])
            iota = partial(jax.lax.broadcasted_iota, jnp.uint32, x.shape)
            places += jnp.uint32(stride) * iota(dim)
        found.append(places)
        first += x.size
    return found
