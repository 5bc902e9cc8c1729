"""Codecs of fewer bits an element: bfloat16, int8, int4, int2, signs and votes.

All share one construction. The tree is one vector, and each replica owns a
chunk of it. In one all-to-all, every replica sends each chunk, encoded, to its owner. The
owner decodes the chunks and sums them in float32. In one all-gather it sends the encoded
sum to all replicas. That is 2 (W-1)/W encoded elements for each element. The owner's
residual receives what the owner's encoding loses.

An encoding cuts a chunk into blocks with a float32 scale each, and packs the digits of
several elements into bytes. The scales travel behind the digits, in the same array. The
block size of the config is the largest: in a small tree blocks are smaller, so that little
is padding.
Letters: R rows (chunks), B blocks of a row, S elements of a block, P words of a row.

Karimireddy et al. 2019 (EF-SignSGD), Bernstein et al. 2019 (majority vote), Alistarh et al.
2017 (QSGD: stochastic rounding to few levels).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from parallel.exchange.codec import (
    BY_OWNERS,
    Across,
    Axes,
    Codec,
    Packing,
    flatten,
    from_words,
    num_elements,
    stateless,
    to_words,
)
from parallel.program import Key, Params


class Code(NamedTuple):
    block: int | None  # the most elements to a block; None: the whole chunk
    granule: int  # the size of a block is a multiple of it
    encode: Callable[[jax.Array, Key], jax.Array]  # x_RBS -> words_RP
    decode: Callable[[jax.Array, int, int], jax.Array]  # words_RP, B, S -> x_RBS
    row_bytes: Callable[[int, int], int]  # of B blocks of S elements


class Digits(NamedTuple):
    """Digits of a base, several to a byte."""

    base: int
    per_byte: int

    def pack(self, digits_RN: jax.Array) -> jax.Array:
        """Pack digits in uint8; the first part of a row gives the lowest digits."""
        if self.per_byte == 1:
            return digits_RN
        parts = digits_RN.reshape(digits_RN.shape[0], self.per_byte, -1)
        return sum(parts[:, i] * jnp.uint8(self.base**i) for i in range(self.per_byte))

    def unpack(self, bytes_RP: jax.Array) -> jax.Array:
        if self.per_byte == 1:
            return bytes_RP
        base = jnp.uint8(self.base)
        digits = [bytes_RP // jnp.uint8(self.base**i) % base for i in range(self.per_byte)]
        return jnp.concatenate(digits, axis=1)


def bfloat16() -> Codec:
    """Send 16 bits of each element, rounded to nearest, and add in float32.

    Numbers above 3.39e38 become infinite.
    """

    def encode(x_RBS: jax.Array, key: Key) -> jax.Array:
        # A compiler may skip a conversion and its inverse, but not this rounding; and it
        # may widen bfloat16 on the wire, but not integers.
        rounded = jax.lax.reduce_precision(x_RBS, exponent_bits=8, mantissa_bits=7)
        words = jax.lax.bitcast_convert_type(rounded.astype(jnp.bfloat16), jnp.uint16)
        return words.reshape(words.shape[0], -1)

    def decode(words_RP: jax.Array, num_blocks: int, size: int) -> jax.Array:
        x = jax.lax.bitcast_convert_type(words_RP, jnp.bfloat16).astype(jnp.float32)
        return x.reshape(-1, num_blocks, size)

    return by_owners(Code(None, 1, encode, decode, lambda blocks, size: 2 * blocks * size))


def int8(block: int = 256, nearest: bool = True) -> Codec:
    """Round to 255 levels, between -max|x| and max|x| of each block.

    `nearest` errs least, and belongs to error feedback, which makes up for the bias.
    Without feedback, stochastic rounding is unbiased.
    """
    return by_owners(levels_code("int8", block, 127, Digits(256, 1), nearest))


def int4(block: int = 64, nearest: bool = True) -> Codec:
    """Round to 15 levels, as int8 does, two elements to a byte."""
    return by_owners(levels_code("int4", block, 7, Digits(16, 2), nearest))


def int2(block: int = 512) -> Codec:
    """Send -3, -1, 1 or 3 times a scale of each block, four elements to a byte.

    Elements above 1.23 times the block's mean |x| become 3: there lies the border of the
    best four levels of normal numbers (Max 1960, Quantizing for Minimum Distortion). The
    scale is that of least squares. So what is lost is shorter than x, whatever x is, and
    may be fed back. The sign of a zero is drawn, as `sign` does.
    """
    return by_owners(two_bits_code(block))


def sign(block: int = 1024) -> Codec:
    """Send each element's sign, and the mean of |x| of each block, as EF-SignSGD does.

    A bit has no zero: the sign of a zero is drawn anew in each step, so that an element
    without a gradient moves to and fro, and not away.
    """
    return by_owners(sign_code(block))


def majority_vote() -> Codec:
    """Send signs to the owner of a chunk, and the majority's sign back.

    The paper's vote has no size. To stand for a sum, the votes of a chunk are multiplied by
    the sum over replicas of the chunk's mean |x|, which costs one float32 in each message.
    A replica whose chunk is all zeros abstains; the owner's own sign settles a draw. The
    sign of a zero is drawn, as `sign` does.
    """

    def vote(parts_WBS: jax.Array, own: jax.Array) -> jax.Array:
        signs = jnp.sign(parts_WBS)
        # A majority of W whole votes cannot be changed by half a vote, a draw can.
        majority = jnp.sign(signs.sum(0) + 0.5 * signs[own])
        return majority * jnp.abs(parts_WBS).max((1, 2)).sum()

    return by_owners(sign_code(None), vote)._replace(
        no_feedback="votes have no size: a replica that is outvoted keeps its residual, "
        "and adds to it, for ever"
    )


def levels_code(name: str, block: int, levels: int, digits: Digits, nearest: bool) -> Code:
    """Encode x as a whole number of [-levels, levels] times the block's max|x| / levels."""

    def quantise(x_RBS: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        scale_RB1 = jnp.abs(x_RBS).max(-1, keepdims=True) / levels
        noise = 0.5 if nearest else uniform(key, x_RBS.shape)
        digits_RBS = whole_steps(x_RBS, scale_RB1, levels, noise) + levels
        return digits_RBS.astype(jnp.int32).astype(jnp.uint8), scale_RB1

    def value(digits_RBS: jax.Array) -> jax.Array:
        return digits_RBS.astype(jnp.float32) - levels

    return scaled_code(name, block, digits, quantise, value)


def whole_steps(
    x_RBS: jax.Array, scale_RB1: jax.Array, levels: int, noise: jax.Array | float
) -> jax.Array:
    """Return x / scale, rounded down after the noise is added, in [-levels, levels].

    Blocks of zeros, or so small that the scale vanishes, become zeros. So do blocks whose
    scale is not finite: that shows where the scale comes back in.
    """
    usable = (scale_RB1 > 0) & jnp.isfinite(scale_RB1)
    steps = jnp.where(usable, x_RBS / jnp.where(usable, scale_RB1, 1), 0)
    return jnp.clip(jnp.floor(steps + noise), -levels, levels)


BITS, PAIRS_OF_BITS = Digits(2, 8), Digits(4, 4)


def positive(x_RBS: jax.Array, key: Key) -> jax.Array:
    """Return 1 for positive elements, 0 for negative ones, and either for zeros."""
    num_rows, num = x_RBS.shape[0], x_RBS[0].size
    coins = jax.random.bits(key, (num_rows, -(-num // 8)), jnp.uint8)
    coins_RBS = BITS.unpack(coins)[:, :num].reshape(x_RBS.shape)
    return jnp.where(x_RBS == 0, coins_RBS, x_RBS > 0).astype(jnp.uint8)


def mean_size(x_RBS: jax.Array) -> jax.Array:
    """Return the mean |x| of each block."""
    # Divided before it is summed: the sum of a block of large numbers may overflow.
    return (jnp.abs(x_RBS) / x_RBS.shape[-1]).sum(-1, keepdims=True)


def two_bits_code(block: int) -> Code:
    def quantise(x_RBS: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        large_RBS = (jnp.abs(x_RBS) > 1.23 * mean_size(x_RBS)).astype(jnp.uint8)
        steps_RBS = 1 + 2 * large_RBS.astype(jnp.float32)
        fit_RB1 = mean_size(x_RBS * steps_RBS) / mean_size(jnp.square(steps_RBS))
        return positive(x_RBS, key) + 2 * large_RBS, fit_RB1

    def value(digits_RBS: jax.Array) -> jax.Array:
        digits_RBS = digits_RBS.astype(jnp.float32)
        large_RBS = jnp.floor(digits_RBS / 2)
        return (2 * (digits_RBS - 2 * large_RBS) - 1) * (1 + 2 * large_RBS)

    return scaled_code("int2", block, PAIRS_OF_BITS, quantise, value)


def sign_code(block: int | None) -> Code:
    def quantise(x_RBS: jax.Array, key: Key) -> tuple[jax.Array, jax.Array]:
        return positive(x_RBS, key), mean_size(x_RBS)

    def value(digits_RBS: jax.Array) -> jax.Array:
        return 2 * digits_RBS.astype(jnp.float32) - 1

    return scaled_code("sign", block, BITS, quantise, value)


def scaled_code(
    name: str,
    block: int | None,
    digits: Digits,
    quantise: Callable[[jax.Array, Key], tuple[jax.Array, jax.Array]],
    value: Callable[[jax.Array], jax.Array],
) -> Code:
    """Make a code of packed digits and a scale for each block: x = value(digit) * scale."""
    # The noise comes in pairs, so a block is even.
    granule = digits.per_byte * (1 + digits.per_byte % 2)
    if block is not None and (block < granule or block % granule):
        raise ValueError(
            f"{name} has blocks of {block} elements; give a multiple of {granule}"
        )

    def encode(x_RBS: jax.Array, key: Key) -> jax.Array:
        digits_RBS, scale_RB1 = quantise(x_RBS, key)
        packed = digits.pack(digits_RBS.reshape(x_RBS.shape[0], -1))
        return jnp.concatenate([packed, to_words(scale_RB1[..., 0], jnp.uint8)], axis=1)

    def decode(words_RP: jax.Array, num_blocks: int, size: int) -> jax.Array:
        end = num_blocks * size // digits.per_byte
        digits_RBS = digits.unpack(words_RP[:, :end]).reshape(-1, num_blocks, size)
        scale_RB = from_words(words_RP[:, end:], jnp.float32)
        return value(digits_RBS) * scale_RB[..., None]

    def row_bytes(num_blocks: int, size: int) -> int:
        return num_blocks * (size // digits.per_byte + 4)

    return Code(block, granule, encode, decode, row_bytes)


def uniform(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draw from the middles of 65536 parts of [0, 1), two from each 32-bit word.

    The generator costs more than the rest of an encoding, so each word gives two numbers.
    Rounding needs few bits: the mean of a rounded number is off by less than 2^-17 of a
    step.
    """
    words = jax.random.bits(key, (*shape[:-1], shape[-1] // 2), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)
    return (halves.astype(jnp.float32) + 0.5) / 65536


def blocks_of(code: Code, num: int, degree: int) -> tuple[int, int]:
    """Return the number of blocks and their size, for one chunk of `num` / `degree`."""
    chunk = -(-num // degree)
    num_blocks = -(-chunk // code.block) if code.block else 1
    return num_blocks, -(-chunk // (num_blocks * code.granule)) * code.granule


def add(parts_WBS: jax.Array, own: jax.Array) -> jax.Array:
    return parts_WBS.sum(0)


def by_owners(
    code: Code, merge: Callable[[jax.Array, jax.Array], jax.Array] = add
) -> Codec:
    """Make a codec of a code; `merge` turns replicas' chunks into the owner's answer."""

    def total(tree, state, key, across: Across):
        x_n, unflatten = flatten(tree)
        total_n, residual_n = sum_by_owners(x_n, key, across.axes, code, merge)
        return unflatten(total_n), unflatten(residual_n), state

    def sent_bytes(params: Params, degree: int) -> float:
        row = code.row_bytes(*blocks_of(code, num_elements(params), degree))
        return 2 * row * (degree - 1)

    packing = packing_of(code) if merge is add else None
    return Codec(stateless, total, sent_bytes, BY_OWNERS, packing=packing)


def packing_of(code: Code) -> Packing:
    def pack(x_n: jax.Array, key: Key) -> jax.Array:
        num_blocks, size = blocks_of(code, x_n.size, 1)
        padded = jnp.pad(x_n, (0, num_blocks * size - x_n.size))
        return code.encode(padded.reshape(1, num_blocks, size), key)

    def unpack(words_1P: jax.Array, num: int, key: Key) -> jax.Array:
        return code.decode(words_1P, *blocks_of(code, num, 1)).ravel()[:num]

    return Packing(pack, unpack)


def sum_by_owners(
    x_n: jax.Array, key: Key, axes: Axes, code: Code, merge: Callable
) -> tuple[jax.Array, jax.Array]:
    degree, own = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    num_blocks, size = blocks_of(code, x_n.size, degree)
    chunk_key, sum_key = jax.random.split(jax.random.fold_in(key, own))

    padding = degree * num_blocks * size - x_n.size
    x_WBS = jnp.pad(x_n, (0, padding)).reshape(degree, num_blocks, size)
    sent_WP = code.encode(x_WBS, chunk_key)
    received_WP = jax.lax.all_to_all(sent_WP, axes, 0, 0, tiled=True)
    parts_WBS = code.decode(received_WP, num_blocks, size)
    merged_1BS = merge(parts_WBS, own)[None]
    mine_1P = code.encode(merged_1BS, sum_key)
    total_WBS = code.decode(jax.lax.all_gather(mine_1P, axes, tiled=True), num_blocks, size)
    lost_BS = parts_WBS.sum(0) - code.decode(mine_1P, num_blocks, size)[0]
    residual_WBS = x_WBS - code.decode(sent_WP, num_blocks, size)
    residual_WBS = residual_WBS.at[own].add(lost_BS)
    return total_WBS.ravel()[: x_n.size], residual_WBS.ravel()[: x_n.size]
