"""All-reduce algorithms, written out in sends from device to device.

All have one signature: (x_n, axes) -> the sum of x_n over all devices of the axes. x_n is a
flat array of any size and float type. Several axes count as one, in row-major order. Every
device ends with the same bits, because replicated parameters must never drift apart. So
each element is either summed on one device and copied, or summed by additions that commute.

Elements sent by a device, on average, for n elements and N devices (p the largest power of
two in N, r = N - p, F devices on the fast axis and S = N / F on the slow ones):

  psum              2 n (N-1)/N, if the compiler takes a ring
  ring              2 n (N-1)/N in 2 (N-1) sends (Patarasuk and Yuan 2009)
  tree              n (p log2 p + 2 r)/N in log2 p sends and 2 more: recursive doubling
  halving_doubling  n (2 (p-1) + 2 r)/N in 2 log2 p sends and 2 more (Rabenseifner 2004)
  p2p               2 n (N-1)/N in 2 (N-1) sends: in round r, device i sends to i + r
  all_to_all        what p2p does, in 2 of the compiler's collectives
  all_gather        n (N-1) in 1 collective: for small arrays
  hierarchical      2 n (F-1)/F over the fast axis, 2 (n/F) (S-1)/S over the slow ones

XLA for CPUs moves bfloat16 as float32 in every collective (it leaves float16 alone). So
where devices send to each other, 16-bit floats travel as 16-bit words. XLA's own sums
cannot be changed: psum, and the sums of hierarchical, send twice the bytes in bfloat16.
p2p, all_to_all and all_gather add 16-bit floats in float32 and round once; the others round
at each addition.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Axes = tuple[str, ...]
AllReduce = Callable[[jax.Array, Axes], jax.Array]
Pairs = list[tuple[int, int]]  # (from, to)


def as_words(move: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Move the bits of 16-bit floats, so that no compiler widens them on the way."""
    if x.dtype.itemsize != 2:
        return move(x)
    words = jax.lax.bitcast_convert_type(x, jnp.uint16)
    return jax.lax.bitcast_convert_type(move(words), x.dtype)


def send(x: jax.Array, axes: Axes, pairs: Pairs) -> jax.Array:
    """Return what another device sends to this one; zeros if none does."""
    return as_words(lambda words: jax.lax.ppermute(words, axes, pairs), x)


def chunked(x_n: jax.Array, num: int) -> jax.Array:
    """[n] -> [num, c], the last chunk filled up with zeros."""
    return jnp.pad(x_n, (0, -x_n.size % num)).reshape(num, -1)


def psum(x_n: jax.Array, axes: Axes) -> jax.Array:
    return jax.lax.psum(x_n, axes)


def ring(x_n: jax.Array, axes: Axes) -> jax.Array:
    """Send partial sums of the chunks round the ring, then the sums."""
    degree, index = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    chunks_Nc = chunked(x_n, degree)
    onwards = [(i, (i + 1) % degree) for i in range(degree)]

    def reduce(step, partial_c):
        return send(partial_c, axes, onwards) + chunks_Nc[(index - step - 1) % degree]

    sum_c = jax.lax.fori_loop(0, degree - 1, reduce, chunks_Nc[index])

    def gather(step, carry):
        sums_Nc, sum_c = carry
        sum_c = send(sum_c, axes, onwards)
        return sums_Nc.at[(index - step) % degree].set(sum_c), sum_c

    sums_Nc = jnp.zeros_like(chunks_Nc).at[(index + 1) % degree].set(sum_c)
    sums_Nc, _ = jax.lax.fori_loop(0, degree - 1, gather, (sums_Nc, sum_c))
    return sums_Nc.ravel()[: x_n.size]


def power_of_two(degree: int) -> int:
    return 1 << (degree.bit_length() - 1)


def on_a_power_of_two(x_n: jax.Array, axes: Axes, sum_powers: Callable) -> jax.Array:
    """Add the arrays of devices beyond a power of two to the first ones; send sums back."""
    degree, index = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    power = power_of_two(degree)
    rest = range(degree - power)
    if rest:
        x_n = x_n + send(x_n, axes, [(power + i, i) for i in rest])
    sum_n = sum_powers(x_n, axes, power, index)
    if rest:
        late_n = send(sum_n, axes, [(i, power + i) for i in rest])
        sum_n = jnp.where(index < power, sum_n, late_n)
    return sum_n


def partners(power: int, distance: int) -> Pairs:
    return [(i, i ^ distance) for i in range(power)]


def distances(power: int) -> list[int]:
    return [1 << bit for bit in range(power.bit_length() - 1)]


def tree(x_n: jax.Array, axes: Axes) -> jax.Array:
    """Add the whole arrays of the partners at distance 1, 2, 4, ..."""

    def sum_powers(x_n, axes, power, index):
        for distance in distances(power):
            x_n = x_n + send(x_n, axes, partners(power, distance))
        return x_n

    return on_a_power_of_two(x_n, axes, sum_powers)


def halving_doubling(x_n: jax.Array, axes: Axes) -> jax.Array:
    """Halve the part that a device sums, step by step; then collect the sums in reverse."""

    def sum_powers(x_n, axes, power, index):
        part = chunked(x_n, power).ravel()
        for distance in reversed(distances(power)):
            upper = (index & distance) > 0
            halves = part.reshape(2, -1)
            kept = jnp.where(upper, halves[1], halves[0])
            other = jnp.where(upper, halves[0], halves[1])
            part = kept + send(other, axes, partners(power, distance))
        for distance in distances(power):
            upper = (index & distance) > 0
            other = send(part, axes, partners(power, distance))
            pair = jnp.where(upper, jnp.stack([other, part]), jnp.stack([part, other]))
            part = pair.ravel()
        return part[: x_n.size]

    return on_a_power_of_two(x_n, axes, sum_powers)


def add_up(parts_Nc: jax.Array) -> jax.Array:
    if parts_Nc.dtype.itemsize == 2:
        return parts_Nc.astype(jnp.float32).sum(0).astype(parts_Nc.dtype)
    return parts_Nc.sum(0)


def all_to_all(x_n: jax.Array, axes: Axes) -> jax.Array:
    """Send each device the chunk that it owns; gather the owners' sums."""

    def swap(chunks):
        return jax.lax.all_to_all(chunks, axes, 0, 0, tiled=True)

    sum_c = add_up(as_words(swap, chunked(x_n, jax.lax.axis_size(axes))))
    sums_n = as_words(lambda x: jax.lax.all_gather(x, axes), sum_c).ravel()
    return sums_n[: x_n.size]


def all_gather(x_n: jax.Array, axes: Axes) -> jax.Array:
    """Send all arrays to all devices; each adds them up in the same order."""
    return add_up(as_words(lambda x: jax.lax.all_gather(x, axes), x_n))


def p2p(x_n: jax.Array, axes: Axes) -> jax.Array:
    """Send each device the chunk that it owns, then each the own sum: diagonal by diagonal.

    In round r = 1 ... N - 1 every device i sends to i + r alone, and receives from i - r
    alone, so that no device and no link has more to do than another.
    """
    degree, index = jax.lax.axis_size(axes), jax.lax.axis_index(axes)
    chunks_Nc = chunked(x_n, degree)
    rounds = range(1, degree)
    diagonal = {r: [(i, (i + r) % degree) for i in range(degree)] for r in rounds}
    parts = [send(chunks_Nc[(index + r) % degree], axes, diagonal[r]) for r in rounds]
    sum_c = add_up(jnp.stack([chunks_Nc[index], *parts]))
    sums_Nc = chunks_Nc.at[index].set(sum_c)
    for r in rounds:
        sums_Nc = sums_Nc.at[index - r].set(send(sum_c, axes, diagonal[r]))
    return sums_Nc.ravel()[: x_n.size]


def hierarchical(x_n: jax.Array, axes: Axes) -> jax.Array:
    """Reduce-scatter over the fast, last axis; sum over the others; gather again."""
    *slow, fast = axes
    chunks_Fc = chunked(x_n, jax.lax.axis_size(fast))
    sum_c = jax.lax.psum(jax.lax.psum_scatter(chunks_Fc, fast), tuple(slow))
    sums_n = as_words(lambda x: jax.lax.all_gather(x, fast), sum_c).ravel()
    return sums_n[: x_n.size]


class Algorithm(NamedTuple):
    all_reduce: AllReduce
    # (elements, sizes of the axes) -> those that a device sends on average
    sent_elements: Callable[[int, tuple[int, ...]], float]
    # the kinds of collectives that it takes
    kinds: frozenset[str] = frozenset({"collective-permute"})


def owned(num: int, degree: int) -> int:
    """Count all chunks but the own one, there and back; chunks are padded to one size."""
    return 2 * -(-num // degree) * (degree - 1)


def ring_elements(num: int, sizes: tuple[int, ...]) -> float:
    return owned(num, math.prod(sizes))


def fewest_elements(num: int, sizes: tuple[int, ...]) -> float:
    degree = math.prod(sizes)
    return 2 * num * (degree - 1) / degree


def tree_elements(num: int, sizes: tuple[int, ...]) -> float:
    degree, power = math.prod(sizes), power_of_two(math.prod(sizes))
    return num * (power * len(distances(power)) + 2 * (degree - power)) / degree


def halving_elements(num: int, sizes: tuple[int, ...]) -> float:
    degree, power = math.prod(sizes), power_of_two(math.prod(sizes))
    return (power * owned(num, power) + 2 * (degree - power) * num) / degree


def gathered_elements(num: int, sizes: tuple[int, ...]) -> float:
    return num * (math.prod(sizes) - 1)


def hierarchical_elements(num: int, sizes: tuple[int, ...]) -> float:
    fast, slow = sizes[-1], math.prod(sizes[:-1])
    return owned(num, fast) + 2 * -(-num // fast) * (slow - 1) / slow


ALGORITHMS = {
    # Its ring is the compiler's, without padding.
    "psum": Algorithm(psum, fewest_elements, frozenset({"all-reduce"})),
    "ring": Algorithm(ring, ring_elements),
    "tree": Algorithm(tree, tree_elements),
    "halving_doubling": Algorithm(halving_doubling, halving_elements),
    "all_to_all": Algorithm(
        all_to_all, ring_elements, frozenset({"all-to-all", "all-gather"})
    ),
    "all_gather": Algorithm(all_gather, gathered_elements, frozenset({"all-gather"})),
    "p2p": Algorithm(p2p, ring_elements),
    "hierarchical": Algorithm(
        hierarchical,
        hierarchical_elements,
        frozenset({"reduce-scatter", "all-reduce", "all-gather"}),
    ),
}
