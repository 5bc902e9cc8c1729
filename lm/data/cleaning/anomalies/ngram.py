"""A small n-gram model of bytes: how surprising a text is, in bits for each byte.

The probability of a byte after its k predecessors is mixed with that after k - 1 of them
(MacKay and Peto 1995): p_k = (count of both + A p_{k-1}) / (count of the context + A).
Counts lie in tables at a hash of the bytes; two contexts that share a place are mixed up,
which costs little since the tables are larger than the sample they are fitted on.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

ORDER = 5  # a byte and at most four before it
LEAST_BITS, MOST_BITS = 12, 20  # 2^bits places are in the table of each length
STRENGTH = 4.0  # A
CHUNK = 500  # texts that are worked on at a time
GAP = b"\0" * ORDER  # between texts, so that no context reaches into the last one
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def joined(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return all bytes, uint8[n], and the number of the text of each; -1 between texts."""
    data = np.frombuffer(GAP + b"".join(text + GAP for text in texts), np.uint8)
    of = np.full(len(data), -1, np.int64)
    lengths = np.array([len(text) for text in texts], np.int64)
    starts = len(GAP) + np.cumsum(lengths + len(GAP)) - lengths - len(GAP)
    place = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(
        lengths.sum()
    )
    of[place] = np.repeat(np.arange(len(texts)), lengths)
    of[data == 0] = -1  # a text of several fragments has gaps of its own
    return data, of


def places(data: np.ndarray, order: int, bits: int) -> list[np.ndarray]:
    """Return for k = 0 ... order the place of the k bytes that end at each byte."""
    found, hashed = [np.zeros(len(data), np.int64)], np.zeros(len(data), np.uint64)
    for k in range(order):
        shifted = np.zeros_like(data)
        shifted[k:] = data[: len(data) - k]
        hashed = (hashed + shifted + np.uint64(1)) * MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
        found.append((hashed >> np.uint64(64 - bits)).astype(np.int64))
    return found


class NGram:
    """Counts of all strings of up to `order` bytes, and of the contexts in them."""

    def __init__(self, order: int, size: int) -> None:
        """Make room for the counts of `size` bytes of text."""
        self.order = order
        self.bits_of_place = min(max(size.bit_length() + 1, LEAST_BITS), MOST_BITS)
        shape = order, 1 << self.bits_of_place
        self.pairs = np.zeros(shape, np.int32)  # [k, place of the context and its byte]
        self.contexts = np.zeros(shape, np.int32)  # [k, place of a context of k bytes]

    def add(self, texts: Sequence[bytes]) -> None:
        for start in range(0, len(texts), CHUNK):
            self.add_chunk(texts[start : start + CHUNK])

    def add_chunk(self, texts: Sequence[bytes]) -> None:
        data, of = joined(texts)
        found, real = places(data, self.order, self.bits_of_place), np.flatnonzero(of >= 0)
        for k in range(self.order):
            size = self.pairs.shape[1]
            self.pairs[k] += np.bincount(found[k + 1][real], minlength=size)
            self.contexts[k] += np.bincount(found[k][real - 1], minlength=size)

    def probabilities(self, data: np.ndarray) -> np.ndarray:
        """Return the probability of each byte after those before it, float64[n]."""
        found = places(data, self.order, self.bits_of_place)
        p = np.full(len(data), 1 / 256)
        for k in range(self.order):
            before = np.roll(found[k], 1)
            both, context = self.pairs[k][found[k + 1]], self.contexts[k][before]
            p = (both + STRENGTH * p) / (context + STRENGTH)
        return np.minimum(p, 1.0)

    def bits(self, texts: Iterable[bytes]) -> np.ndarray:
        """Return the mean bits of a byte in each text, float64[texts]; 0 without bytes."""
        found, texts = [np.zeros(0)], iter(texts)
        while chunk := list(itertools.islice(texts, CHUNK)):
            found.append(self.bits_of_chunk(chunk))
        return np.concatenate(found)

    def bits_of_chunk(self, texts: Sequence[bytes]) -> np.ndarray:
        data, of = joined(texts)
        real = of >= 0
        surprise = -np.log2(self.probabilities(data)[real])
        total = np.bincount(of[real], surprise, len(texts))
        return total / np.maximum(np.bincount(of[real], minlength=len(texts)), 1)
