"""Codecs that send few elements: top-k, random-k, deep gradient compression.

Each replica's largest elements have other places. So they are gathered together with their
indices, and every replica adds up all of them. Random places are drawn from a shared key
and are the same on every replica: only values travel, and they can be summed on the way.

Lin et al. 2018 (deep gradient compression), Stich et al. 2018 (sparsified SGD with memory).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from parallel.exchange.codec import (
    BY_GATHERING,
    LINEAR,
    Across,
    Axes,
    Codec,
    Packing,
    flatten,
    from_words,
    num_elements,
    ring_bytes,
    stateless,
    to_words,
)
from parallel.program import Key, Params

WARMUP_SHARE = 0.25  # of the elements kept at first, as in the paper
WARMUP_STAGES = 4  # in which the share falls to its last value; an epoch each in the paper


class Accumulators(NamedTuple):
    momentum: jax.Array  # float32[n], of this replica's gradients
    unsent: jax.Array  # float32[n], momenta added up since the element was sent
    step: jax.Array  # int32[]


def top_k(keep: float) -> Codec:
    """Send the largest elements of this replica's tree, a share `keep` of all."""

    def total(tree, state, key, across: Across):
        x_n, unflatten = flatten(tree)
        indices_k = largest(x_n, num_kept(x_n.size, keep))
        total_n = gather_and_add(x_n, indices_k, across.axes)
        return unflatten(total_n), unflatten(without(x_n, indices_k)), state

    def pack(x_n: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        indices_k = largest(x_n, num_kept(x_n.size, keep))
        return x_n[indices_k], indices_k.astype(index_type(x_n.size))

    def unpack(payload: tuple[jax.Array, jax.Array], num: int, key: Key) -> jax.Array:
        values_k, indices_k = payload
        return jnp.zeros(num).at[indices_k].set(values_k, unique_indices=True)

    sent_bytes = partial(gathered_bytes, keep)
    packing = Packing(pack, unpack)
    return Codec(stateless, total, sent_bytes, BY_GATHERING, packing=packing)


def random_k(keep: float) -> Codec:
    """Send a share `keep` of the elements, drawn anew in each step, one from each stratum.

    The vector is cut into k parts of nearly equal length, and one element of each is drawn.
    All elements are equally likely, and nothing is sorted. The total is not divided by
    `keep`. With error feedback the other elements come later, and a larger total would make
    the residuals grow. Without it, the expected total is `keep` times the sum.
    """

    def total(tree, state, key, across: Across):
        x_n, unflatten = flatten(tree)
        indices_k = one_of_each_part(key, x_n.size, num_kept(x_n.size, keep))
        # A NaN or infinity that is not drawn shows too: 0 times it is NaN.
        values_k = x_n[indices_k] + 0 * jnp.abs(x_n).max()
        sums_k = across.all_reduce(values_k, across.axes)
        total_n = jnp.zeros_like(x_n).at[indices_k].set(sums_k, unique_indices=True)
        return unflatten(total_n), unflatten(without(x_n, indices_k)), state

    def sent_bytes(params: Params, degree: int) -> float:
        return ring_bytes(4 * num_kept(num_elements(params), keep), degree)

    def pack(x_n: jax.Array, key: Key) -> jax.Array:
        indices_k = one_of_each_part(key, x_n.size, num_kept(x_n.size, keep))
        return x_n[indices_k] + 0 * jnp.abs(x_n).max()

    def unpack(values_k: jax.Array, num: int, key: Key) -> jax.Array:
        indices_k = one_of_each_part(key, num, values_k.size)
        return jnp.zeros(num).at[indices_k].set(values_k, unique_indices=True)

    return Codec(stateless, total, sent_bytes, LINEAR, packing=Packing(pack, unpack))


def deep_gradient_compression(
    keep: float, momentum: float = 0.9, warmup_steps: int = 0
) -> Codec:
    """Send the largest elements of each replica's accumulated momentum.

    It replaces the optimizer's momentum, so use plain SGD after it. It also replaces error
    feedback: it keeps what it does not send, and its residuals are zeros. Its law is
    total + sum of unsent = sum of (unsent before + momentum * momentum before + input).
    Where an element is sent, its momentum and its unsent part become zero (factor masking).
    Over `warmup_steps` the share falls from 0.25 to `keep` in 4 stages; `sent_bytes` counts
    the steps after them. The paper also clips each replica's gradient before this, as
    transforms.clipped does.
    """
    shares = warmup_shares(keep) if warmup_steps else []

    def init(params: Params) -> Accumulators:
        zeros = jnp.zeros(num_elements(params), jnp.float32)
        return Accumulators(zeros, zeros, jnp.int32(0))

    def total(tree, state: Accumulators, key, across: Across):
        x_n, unflatten = flatten(tree)
        momentum_n = momentum * state.momentum + x_n
        unsent_n = state.unsent + momentum_n

        def send(share: float):
            indices_k = largest(unsent_n, num_kept(x_n.size, share))
            total_n = gather_and_add(unsent_n, indices_k, across.axes)
            return total_n, without(momentum_n, indices_k), without(unsent_n, indices_k)

        def send_more(share: float):
            with jax.named_scope("warmup"):
                return send(share)

        # The number of elements is part of a program's shapes: a branch for each stage.
        stages = [partial(send_more, share) for share in shares] + [partial(send, keep)]
        stage = state.step // max(1, -(-warmup_steps // WARMUP_STAGES))
        total_n, momentum_n, unsent_n = jax.lax.switch(
            jnp.minimum(stage, len(shares)), stages
        )
        state = Accumulators(momentum_n, unsent_n, state.step + 1)
        return unflatten(total_n), jax.tree.map(jnp.zeros_like, tree), state

    sent_bytes = partial(gathered_bytes, keep)
    keeps = "it keeps by itself what it does not send, and loses nothing else"
    return Codec(init, total, sent_bytes, BY_GATHERING, keeps)


def warmup_shares(keep: float) -> list[float]:
    """Return the shares of the warm-up's stages: a geometric series that ends at `keep`."""
    if keep >= WARMUP_SHARE:
        return []
    ratio = keep / WARMUP_SHARE
    return [WARMUP_SHARE * ratio ** (i / WARMUP_STAGES) for i in range(WARMUP_STAGES)]


def num_kept(num: int, keep: float) -> int:
    return max(1, round(keep * num))


def index_type(num: int):
    return jnp.uint16 if num <= 2**16 else jnp.uint32


def gathered_bytes(keep: float, params: Params, degree: int) -> float:
    num = num_elements(params)
    index_bytes = jnp.dtype(index_type(num)).itemsize
    return (degree - 1) * num_kept(num, keep) * (4 + index_bytes)


def largest(x_n: jax.Array, k: int) -> jax.Array:
    """Return the indices of the k largest |x|, rising; the first of equals, NaN above all.

    Nothing is sorted: 31 counts find the k-th largest bit by bit, because the bits of
    positive floats have the same order as the floats.
    """
    bits_n = jax.lax.bitcast_convert_type(jnp.abs(x_n), jnp.int32)

    def settle_bit(i, threshold):
        higher = threshold | (1 << (30 - i))
        return jnp.where((bits_n >= higher).sum() >= k, higher, threshold)

    threshold = jax.lax.fori_loop(0, 31, settle_bit, jnp.int32(0))
    above_n, equal_n = bits_n > threshold, bits_n == threshold
    chosen_n = above_n | (equal_n & (jnp.cumsum(equal_n) <= k - above_n.sum()))
    # The j-th chosen is where their count reaches j. To look that up takes k log n reads;
    # to scatter every index to its place takes n writes.
    return jnp.searchsorted(jnp.cumsum(chosen_n), jnp.arange(1, k + 1))


def one_of_each_part(key: Key, num: int, k: int) -> jax.Array:
    size, longer = divmod(num, k)  # the first `longer` parts have an element more
    part_k = jnp.arange(k)
    start_k = part_k * size + jnp.minimum(part_k, longer)
    return start_k + jax.random.randint(key, (k,), 0, size + (part_k < longer))


def without(x_n: jax.Array, indices_k: jax.Array) -> jax.Array:
    return x_n.at[indices_k].set(0, unique_indices=True)


def gather_and_add(x_n: jax.Array, indices_k: jax.Array, axes: Axes) -> jax.Array:
    """Sum over replicas the elements of x that each replica has chosen."""
    dtype, k = index_type(x_n.size), indices_k.size
    payload = [to_words(x_n[indices_k], dtype), indices_k.astype(dtype)]
    gathered_WP = jax.lax.all_gather(jnp.concatenate(payload), axes)
    values_Wk = from_words(gathered_WP[:, :-k], jnp.float32)
    indices_Wk = gathered_WP[:, -k:].astype(jnp.int32)

    def add_replica(w, total_n):
        # One replica at a time: its indices differ, so the order of the additions is
        # settled, and the sum has the same bits everywhere.
        return total_n.at[indices_Wk[w]].add(values_Wk[w], unique_indices=True)

    return jax.lax.fori_loop(0, values_Wk.shape[0], add_replica, jnp.zeros_like(x_n))
