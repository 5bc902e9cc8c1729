"""Ternary gradients, whose sum is exact (Wen et al. 2017, TernGrad).

Chunks go to their owners and back, as in quantise.py, but all replicas share the scales.
Letters: W replicas and chunks, B blocks of a chunk, S elements of a block, N those of a
chunk, P words.
"""

import jax
import jax.numpy as jnp

from parallel.exchange.codec import (
    BY_OWNERS,
    Across,
    Axes,
    Codec,
    flatten,
    num_elements,
    ring_bytes,
    stateless,
)
from parallel.exchange.quantise import (
    Code,
    Digits,
    blocks_of,
    levels_code,
    uniform,
    whole_steps,
)
from parallel.program import Key, Params

TRITS = Digits(3, 5)


def ternary(block: int = 500) -> Codec:
    """Round stochastically to -1, 0 or 1 times max|x| of the block, five to a byte.

    This is TernGrad with shared scales (Wen et al. 2017, 3.3), without its clipping of each
    layer to 2.5 standard deviations: max|x| is that of all replicas. So the sum of W
    replicas is a whole number of [-W, W] times the scale, and is sent back exactly.

    The rounding is unbiased, but can err by more than the gradient is long: fed back, such
    errors grow (Karimireddy et al. 2019, 4, ask for a contraction).
    """
    code = levels_code("ternary", block, 1, TRITS, nearest=False)

    def total(tree, state, key, across: Across):
        x_n, unflatten = flatten(tree)
        total_n, residual_n = ternary_sum(x_n, key, across.axes, code)
        return unflatten(total_n), unflatten(residual_n), state

    def sent_bytes(params: Params, degree: int) -> float:
        num_blocks, size = blocks_of(code, num_elements(params), degree)
        votes = num_blocks * size // 5 + 4 * sum_words(num_blocks * size, degree)
        return (degree - 1) * votes + ring_bytes(4 * degree * num_blocks, degree)

    return Codec(
        stateless,
        total,
        sent_bytes,
        BY_OWNERS,
        no_feedback="its unbiased rounding can err by more than the gradient is long",
    )


def ternary_sum(
    x_n: jax.Array, key: Key, axes: Axes, code: Code
) -> tuple[jax.Array, jax.Array]:
    degree, own = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    num_blocks, size = blocks_of(code, x_n.size, degree)
    padding = degree * num_blocks * size - x_n.size
    x_WBS = jnp.pad(x_n, (0, padding)).reshape(degree, num_blocks, size)
    # The owners find the largest scales: unlike an all-reduce's maximum, this keeps a NaN.
    scales_WB = jax.lax.all_to_all(jnp.abs(x_WBS).max(-1), axes, 0, 0, tiled=True)
    scale_WB1 = jax.lax.all_gather(scales_WB.max(0), axes)[..., None]
    noise_WBS = uniform(jax.random.fold_in(key, own), x_WBS.shape)
    mine_WBS = whole_steps(x_WBS, scale_WB1, 1, noise_WBS)

    votes_WP = TRITS.pack((mine_WBS + 1).astype(jnp.uint8).reshape(degree, -1))
    votes_WP = jax.lax.all_to_all(votes_WP, axes, 0, 0, tiled=True)
    sum_N = TRITS.unpack(votes_WP).astype(jnp.uint32).sum(0)  # from 0 to 2 W

    per_word = sums_per_word(degree)
    sum_N = jnp.pad(sum_N, (0, -sum_N.size % per_word))
    base = jnp.uint32(2 * degree + 1)
    places = base ** jnp.arange(per_word, dtype=jnp.uint32)
    words_WP = jax.lax.all_gather(
        (sum_N.reshape(-1, per_word) * places).sum(1, dtype=jnp.uint32), axes
    )
    sums_WN = (words_WP[..., None] // places % base).reshape(degree, -1)
    sums_WN = sums_WN[:, : num_blocks * size].astype(jnp.float32) - degree
    total_WBS = sums_WN.reshape(x_WBS.shape) * scale_WB1
    residual_WBS = x_WBS - mine_WBS * scale_WB1
    return total_WBS.ravel()[: x_n.size], residual_WBS.ravel()[: x_n.size]


def sums_per_word(degree: int) -> int:
    """Return how many numbers of 2 degree + 1 values fit in 32 bits."""
    base, num = 2 * degree + 1, 1
    while base ** (num + 1) <= 2**32:
        num += 1
    return num


def sum_words(num: int, degree: int) -> int:
    return -(-num // sums_per_word(degree))
