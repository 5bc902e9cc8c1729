"""Exact counts of tuples of small integers, spread over devices by hash.

The idea: a tuple is packed into a few 32-bit words that have the order of the tuples. So
counting is sorting, and a table of counts is a sorted array. Each device sorts and counts
its own tuples. In one all-to-all it sends each distinct tuple with its count to the device
that owns the tuple; a hash of the tuple says which. The owner merges what it receives into
its part of the table. All of it is integers, so the counts have the same bits on any number
of devices.

Shapes are static: a table has room for a fixed number of distinct tuples. One exchange
carries a fixed number of tuples, too; it is repeated until all tuples have arrived.

Shapes: N tuples, n integers in a tuple, K words of a tuple, C capacity, D devices.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EMPTY = np.uint32(
    0xFFFFFFFF
)  # every word of a row of a table that holds no tuple; sorts last


class Table(NamedTuple):
    """Distinct tuples in ascending order, empty rows after them."""

    words: jax.Array  # uint32[C, K]
    counts: jax.Array  # int32[C], 0 in empty rows
    lost: jax.Array  # int32[], tuples without room; the counts are exact where it is 0


def empty_table(capacity: int, num_words: int) -> Table:
    words = jnp.full((capacity, num_words), EMPTY, jnp.uint32)
    return Table(words, jnp.zeros(capacity, jnp.int32), jnp.int32(0))


def packing(width: int, limit: int) -> tuple[int, int, int]:
    """Return (bits of an integer, integers in a word, words) for tuples below `limit`.

    No integer has all its bits set, so no tuple looks like an empty row. Raises ValueError
    if the integers do not fit in a word.
    """
    bits = limit.bit_length()
    if not 1 <= bits <= 32 or width < 1:
        raise ValueError(
            f"tuples of {width} integers below {limit} cannot be counted: expected at "
            "least one integer, and a limit from 1 to 2**32 - 1"
        )
    per_word = 32 // bits
    return bits, per_word, -(-width // per_word)


def pack(tuples_Nn: jax.Array, limit: int) -> jax.Array:
    """Pack integers 0 <= i < limit into uint32 words_NK that sort as the tuples do."""
    width = tuples_Nn.shape[1]
    bits, per_word, num_words = packing(width, limit)
    missing = num_words * per_word - width
    padded = jnp.pad(tuples_Nn.astype(jnp.uint32), ((0, 0), (0, missing)))
    shifts = jnp.arange(per_word - 1, -1, -1, dtype=jnp.uint32) * jnp.uint32(bits)
    split = padded.reshape(-1, num_words, per_word) << shifts
    return jnp.sum(split, -1, dtype=jnp.uint32)


def unpack(words_NK: jax.Array, width: int, limit: int) -> jax.Array:
    """Return the int32 tuples_Nn of packed words; in empty rows they mean nothing."""
    bits, per_word, _ = packing(width, limit)
    shifts = jnp.arange(per_word - 1, -1, -1, dtype=jnp.uint32) * jnp.uint32(bits)
    mask = jnp.uint32((1 << bits) - 1)
    split = (words_NK[..., None] >> shifts) & mask
    return split.reshape(len(words_NK), -1)[:, :width].astype(jnp.int32)


def owner(words_NK: jax.Array, degree: int) -> jax.Array:
    """Return uint32_N, the device that owns each tuple (hash: Murmur3's finaliser)."""
    hash_N = jnp.zeros(len(words_NK), jnp.uint32)
    for word_N in words_NK.T:
        hash_N = (hash_N ^ word_N) * jnp.uint32(0x9E3779B1)
        hash_N = (hash_N ^ (hash_N >> 16)) * jnp.uint32(0x85EBCA6B)
        hash_N = (hash_N ^ (hash_N >> 13)) * jnp.uint32(0xC2B2AE35)
        hash_N = hash_N ^ (hash_N >> 16)
    return hash_N % jnp.uint32(degree)


def count_sorted(words_NK: jax.Array, counts_N: jax.Array, first_N=()) -> Table:
    """Sort tuples, first by `first_N` if given, and add up the counts of equal tuples.

    The table has as many rows as there are tuples. The caller must have made tuples of
    count 0 EMPTY; they become the empty rows at its end.
    """
    keys = (*first_N, *words_NK.T)
    *keys, counts_N = jax.lax.sort((*keys, counts_N), num_keys=len(keys))
    words_NK = jnp.stack(keys[len(first_N) :], 1)
    new_N = jnp.any(words_NK[1:] != words_NK[:-1], 1)
    run_N = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new_N, dtype=jnp.int32)])
    empty = empty_table(*words_NK.shape)
    return Table(
        empty.words.at[run_N].set(words_NK),
        empty.counts.at[run_N].add(counts_N),
        empty.lost,
    )


def less(a_NK: jax.Array, b_NK: jax.Array) -> jax.Array:
    """Compare rows of words in lexicographic order."""
    result_N = jnp.zeros(len(a_NK), bool)
    for a_N, b_N in zip(a_NK.T[::-1], b_NK.T[::-1], strict=True):
        result_N = (a_N < b_N) | ((a_N == b_N) & result_N)
    return result_N


def lower_bound(sorted_CK: jax.Array, words_NK: jax.Array) -> jax.Array:
    """Return int32_N, the number of sorted rows that are less than each of the words."""

    def halve(_, bounds):
        low_N, high_N = bounds
        middle_N = (low_N + high_N) // 2
        right_N = (low_N < high_N) & less(sorted_CK[middle_N], words_NK)
        return jnp.where(right_N, middle_N + 1, low_N), jnp.where(right_N, high_N, middle_N)

    low_N = jnp.zeros(len(words_NK), jnp.int32)
    high_N = jnp.full(len(words_NK), len(sorted_CK), jnp.int32)
    rounds = len(sorted_CK).bit_length()
    return jax.lax.fori_loop(0, rounds, halve, (low_N, high_N))[0]


def merge(table: Table, more: Table) -> Table:
    """Add the counts of `more` to `table`, which keeps its capacity.

    The time is linear in the capacity, because `table` is not sorted again: the new place
    of a row is its old place plus the number of new rows before it.
    """
    capacity = len(table.counts)
    # Tuples that the table has already: add to their counts.
    at_N = lower_bound(table.words, more.words)
    found_N = jnp.all(table.words[jnp.minimum(at_N, capacity - 1)] == more.words, 1)
    found_N &= at_N < capacity
    full_N = more.counts > 0
    counts_C = table.counts.at[jnp.where(found_N, at_N, capacity)].add(
        more.counts, mode="drop"
    )

    # New tuples: at_N rows of the table, and the new tuples before it, come before each.
    new_N = full_N & ~found_N
    before_N = jnp.cumsum(new_N, dtype=jnp.int32) - new_N
    place_N = jnp.where(new_N, at_N + before_N, capacity)
    # Old tuples move up by the number of new tuples that come before them. A place from the
    # capacity on is dropped below.
    inserted_C = jnp.zeros(capacity + 1, jnp.int32).at[at_N].add(new_N.astype(jnp.int32))
    place_C = jnp.arange(capacity) + jnp.cumsum(inserted_C)[:-1]
    place_C = jnp.where(table.counts > 0, place_C, capacity)

    empty = empty_table(*table.words.shape)
    distinct = jnp.sum(table.counts > 0) + jnp.sum(new_N)
    return Table(
        empty.words.at[place_C].set(table.words, mode="drop")
        .at[place_N].set(more.words, mode="drop"),
        empty.counts.at[place_C].set(counts_C, mode="drop")
        .at[place_N].set(more.counts, mode="drop"),
        table.lost + more.lost + jnp.maximum(distinct - capacity, 0).astype(jnp.int32),
    )  # fmt: skip


def count_tuples(
    table: Table,
    tuples_Nn: jax.Array,
    valid_N: jax.Array,
    limit: int,
    axes: tuple[str, ...] = (),
) -> Table:
    """Add the valid tuples to the table, on one device or over mesh axes.

    With `axes` it must run inside shard_map or pmap over them. Each device brings its own
    tuples and holds the part of the table that it owns.
    """
    words_NK = jnp.where(valid_N[:, None], pack(tuples_Nn, limit), EMPTY)
    counts_N = valid_N.astype(jnp.int32)
    if not axes:
        return merge(table, count_sorted(words_NK, counts_N))
    degree = jax.lax.axis_size(axes)
    mine = count_sorted(words_NK, counts_N, (owner_or_none(words_NK, degree),))
    return exchange(table, mine, degree, axes)


def owner_or_none(words_NK: jax.Array, degree: int) -> jax.Array:
    """Return the owner of each tuple, and `degree` for empty rows, which sorts last."""
    empty_N = words_NK[:, 0] == EMPTY
    return jnp.where(empty_N, jnp.uint32(degree), owner(words_NK, degree))


def exchange(table: Table, mine: Table, degree: int, axes: tuple[str, ...]) -> Table:
    """Send counts, sorted by owner, to their owners; merge what other devices send."""
    num, num_words = mine.words.shape
    room = exchange_room(num, degree)
    # Where the tuples of each owner begin, and how many there are.
    starts_D = jnp.searchsorted(
        owner_or_none(mine.words, degree), jnp.arange(degree + 1, dtype=jnp.uint32)
    )
    sizes_D = starts_D[1:] - starts_D[:-1]
    # All devices take as many rounds as the fullest of them needs.
    rounds = jax.lax.pmax(-(-jnp.max(sizes_D) // room), axes)
    rows = jnp.concatenate([mine.words, mine.counts.astype(jnp.uint32)[:, None]], 1)
    nothing = jnp.array([EMPTY] * num_words + [0], jnp.uint32)

    def one(carry):
        index, table = carry
        # Take the next `room` tuples of each owner, or empty rows after the last.
        offset_R = index * room + jnp.arange(room)
        chosen_DR = starts_D[:-1, None] + offset_R
        there_DR = offset_R < sizes_D[:, None]
        send = jnp.where(
            there_DR[..., None], rows[jnp.minimum(chosen_DR, num - 1)], nothing
        )
        got = jax.lax.all_to_all(send, axes, 0, 0, tiled=True).reshape(-1, num_words + 1)
        received = count_sorted(got[:, :-1], got[:, -1].astype(jnp.int32))
        return index + 1, merge(table, received)

    return jax.lax.while_loop(lambda carry: carry[0] < rounds, one, (jnp.int32(0), table))[
        1
    ]


def exchange_room(num: int, degree: int) -> int:
    """Return how many of a device's `num` tuples one round carries to each device.

    A hash spreads distinct tuples evenly: one round is nearly always enough.
    """
    mean = -(-num // degree)
    return min(num, mean + 4 * math.isqrt(mean) + 8)


def part_capacity(capacity: int, degree: int) -> int:
    """Return the room that one device's part needs for `capacity` distinct tuples in all.

    It is eight standard deviations above the mean, so hashing overfills a part with a
    probability below 1e-15 (and tuples without room are reported).
    """
    mean = -(-capacity // degree)
    return capacity if degree == 1 else min(capacity, mean + 8 * math.isqrt(mean) + 8)


def join(parts: Table, capacity: int) -> Table:
    """Join the devices' parts, [D, ...], into one table, the same for every D."""
    words_NK = parts.words.reshape(-1, parts.words.shape[-1])
    whole = count_sorted(words_NK, parts.counts.reshape(-1))
    grown = max(capacity - len(whole.counts), 0)
    beyond = jnp.sum(whole.counts[capacity:] > 0, dtype=jnp.int32)
    return Table(
        jnp.pad(whole.words, ((0, grown), (0, 0)), constant_values=EMPTY)[:capacity],
        jnp.pad(whole.counts, (0, grown))[:capacity],
        jnp.sum(parts.lost, dtype=jnp.int32) + beyond,
    )


def deal(whole: Table, degree: int, capacity: int) -> Table:
    """Give each of D devices its part, [D, ...]: the inverse of `join`."""
    empty = empty_table(capacity, whole.words.shape[1])

    def part(device: jax.Array) -> Table:
        mine_C = (owner(whole.words, degree) == device) & (whole.counts > 0)
        place_C = jnp.where(mine_C, jnp.cumsum(mine_C) - 1, capacity)
        return Table(
            empty.words.at[place_C].set(whole.words, mode="drop"),
            empty.counts.at[place_C].set(whole.counts, mode="drop"),
            jnp.where(device == 0, whole.lost, 0),
        )

    return jax.lax.map(part, jnp.arange(degree, dtype=jnp.uint32))
