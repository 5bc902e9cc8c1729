"""Top-k in chunks, in 14 bits an element: the codec of SparseLoCo.

Sarfi et al. 2025 (arXiv 2508.15706), Communication efficient LLM pre-training with
SparseLoCo: each replica adds its pseudo-gradient to a residual that decays by 0.95 from
meeting to meeting (ExchangeConfig.feedback_decay), sends the largest elements of each chunk
of 4,096 in 2 bits each, and a plain outer step applies the mean. A place in such a chunk
has 12 bits.

Here a chunk is 4,096 elements in a row of the whole tree's vector; in the paper it is a
part of one tensor, for a matrix a square of 64 x 64. A value becomes its sign times one of
two sizes: the mean size of the chunk's chosen elements that are larger than their mean, and
that of the others. These are two float32 numbers for each chunk. So what is lost is shorter
than the input, and may be fed back.

Letters: n elements of the tree, C chunks, S elements of a chunk, k chosen in each, W
replicas.
"""

import math

import jax
import jax.numpy as jnp

from parallel.exchange.codec import (
    BY_GATHERING,
    Across,
    Codec,
    flatten,
    from_words,
    num_elements,
    stateless,
    to_words,
)
from parallel.exchange.quantise import PAIRS_OF_BITS, positive
from parallel.exchange.sparse import largest, num_kept
from parallel.program import Key, Params

CHUNK = 4096  # elements: as many as 12 bits can tell apart


def chunk_top_k(keep: float) -> Codec:
    """Send the largest elements of each chunk of 4,096, a share `keep` of its elements."""

    def total(tree, state, key, across: Across):
        x_n, unflatten = flatten(tree)
        num_chunks, size = chunks_of(x_n.size)
        k = num_kept(size, keep)
        x_CS = jnp.pad(x_n, (0, num_chunks * size - x_n.size)).reshape(-1, size)
        key = jax.random.fold_in(key, jax.lax.axis_index(across.axes))
        sent_P = encode(x_CS, k, key)
        received_WP = jax.lax.all_gather(sent_P, across.axes)

        def add_replica(w, total_CS):
            # One replica at a time, so that the sum has the same bits everywhere.
            return added(total_CS, *decode(received_WP[w], num_chunks, k))

        total_CS = jax.lax.fori_loop(
            0, received_WP.shape[0], add_replica, jnp.zeros_like(x_CS)
        )
        places_Ck, values_Ck = decode(sent_P, num_chunks, k)
        residual_CS = added(x_CS, places_Ck, -values_Ck)
        total_n, residual_n = (x.ravel()[: x_n.size] for x in (total_CS, residual_CS))
        return unflatten(total_n), unflatten(residual_n), state

    def sent_bytes(params: Params, degree: int) -> float:
        num_chunks, size = chunks_of(num_elements(params))
        return (degree - 1) * sum(parts_bytes(num_chunks, num_kept(size, keep)))

    return Codec(stateless, total, sent_bytes, BY_GATHERING)


def chunks_of(num: int) -> tuple[int, int]:
    """Return the number of chunks and their size; a small tree is one chunk."""
    size = min(CHUNK, num)
    return -(-num // size), size


def parts_bytes(num_chunks: int, k: int) -> tuple[int, int, int]:
    """Return the bytes of the places, of the values and of their sizes."""
    num = num_chunks * k
    return 3 * math.ceil(num / 2), math.ceil(num / 4), 8 * num_chunks


def encode(x_CS: jax.Array, k: int, key: Key) -> jax.Array:
    """Pack the k largest |x| of each chunk into bytes, uint8[P]."""
    places_Ck = jax.vmap(largest, (0, None))(x_CS, k)
    x_Ck = jnp.take_along_axis(x_CS, places_Ck, 1)
    size_Ck = jnp.abs(x_Ck)
    above_Ck = size_Ck > (size_Ck / k).sum(1, keepdims=True)
    sizes_C2 = jnp.stack([mean_where(size_Ck, ~above_Ck), mean_where(size_Ck, above_Ck)], 1)
    # In a chunk with fewer than k numbers zeros are chosen too; their signs are drawn.
    digits_Ck = positive(x_Ck, key) + 2 * above_Ck.astype(jnp.uint8)
    sizes = to_words(sizes_C2, jnp.uint8).ravel()
    return jnp.concatenate([pack_places(places_Ck.ravel()), packed(digits_Ck), sizes])


def decode(words_P: jax.Array, num_chunks: int, k: int) -> tuple[jax.Array, jax.Array]:
    """Return the places in each chunk, int32[C, k], and the values there."""
    places, values, _ = parts_bytes(num_chunks, k)
    places_Ck, digits_Ck = (
        x[: num_chunks * k].reshape(num_chunks, k)
        for x in (
            unpack_places(words_P[:places]),
            PAIRS_OF_BITS.unpack(words_P[None, places : places + values])[0],
        )
    )
    sizes_C2 = from_words(words_P[places + values :].reshape(num_chunks, 8), jnp.float32)
    above_Ck = digits_Ck // jnp.uint8(2)
    size_Ck = jnp.where(above_Ck == 1, sizes_C2[:, 1:], sizes_C2[:, :1])
    return places_Ck, jnp.where(digits_Ck % jnp.uint8(2) == 1, size_Ck, -size_Ck)


def mean_where(size_Ck: jax.Array, chosen_Ck: jax.Array) -> jax.Array:
    """Return the mean of the chosen numbers of each chunk, and 0 where none is chosen."""
    num_C1 = jnp.maximum(chosen_Ck.sum(1, keepdims=True), 1)
    # Divided before it is summed: the sum of large numbers may overflow.
    return jnp.where(chosen_Ck, size_Ck / num_C1, 0).sum(1)


def packed(digits_Ck: jax.Array) -> jax.Array:
    num = digits_Ck.size
    return PAIRS_OF_BITS.pack(jnp.pad(digits_Ck.ravel(), (0, -num % 4))[None])[0]


def pack_places(places: jax.Array) -> jax.Array:
    """Pack numbers below 4,096, two in three bytes."""
    pairs = jnp.pad(places, (0, places.size % 2)).reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    parts = [first & 255, (first >> 8) | (second & 15) << 4, second >> 4]
    return jnp.stack(parts, 1).astype(jnp.uint8).ravel()


def unpack_places(words: jax.Array) -> jax.Array:
    low, middle, high = words.astype(jnp.int32).reshape(-1, 3).T
    return jnp.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], 1).ravel()


def added(x_CS: jax.Array, places_Ck: jax.Array, values_Ck: jax.Array) -> jax.Array:
    rows_C1 = jnp.arange(x_CS.shape[0])[:, None]
    return x_CS.at[rows_C1, places_Ck].add(values_Ck, unique_indices=True)
