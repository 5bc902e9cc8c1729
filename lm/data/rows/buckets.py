"""Batches of equal tokens: rows of similar length share a batch.

Where a row is one document or one pair, a short one is mostly padding. So rows go into
buckets by the shortest of the lengths T, T/2, T/4, ... that holds them. A batch is of one
bucket. Its rows are cut to that length, and there are twice as many of them where they are
half as long: all batches have the same number of positions, and each bucket has one
compiled step. In a row of a pair, both texts are cut to the same share of their parts.

A bucket of R rows, S of them a batch, has had ceil(e R / S) batches by the end of epoch e.
So the place of each batch follows from the step alone, and each row has been read at least
e times. Inside an epoch the batches of all buckets are shuffled. Each bucket goes through
its own rows in a new permutation each time.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lm.data.rows.strata import another_seed, row_order
from lm.vocabulary import END_ID

MOST = 4  # lengths
LEAST = 4  # positions of a text


def bucket_lengths(seq_len: int, source_len: int) -> tuple[int, ...]:
    """Return T, T/2, T/4, ..., while each text's part of a row can be halved."""
    parts = [part for part in (source_len, seq_len - source_len) if part]
    shares = [1 << halvings for halvings in range(MOST)]
    return tuple(
        seq_len // share
        for share in shares
        if all(part % share == 0 and part // share >= LEAST for part in parts)
    )


def bucket_of(
    tokens: np.ndarray, segments: np.ndarray, source_len: int, lengths: Sequence[int]
) -> int:
    """Return the number of the shortest length that holds a row of [seq_len + 1] tokens."""
    seq_len, source = len(tokens) - 1, tokens[:source_len]
    needed_source = int(np.argmax(source == END_ID)) + 1 if source_len else 0
    needed = np.count_nonzero(segments) - 1
    holds = [
        needed_source <= source_len * length // seq_len
        and needed <= length - source_len * length // seq_len
        for length in lengths
    ]
    return max(number for number, fits in enumerate(holds) if fits)


def cut(rows: np.ndarray, source_len: int, length: int) -> np.ndarray:
    """Cut [B, T + 1] to [B, length + 1], each text to the same share of its part."""
    source = source_len * length // (rows.shape[1] - 1)
    target = rows[:, source_len : source_len + length - source + 1]
    return np.concatenate([rows[:, :source], target], 1) if source else target


class Buckets:
    """(step, place in the batch) -> (row, epoch of its bucket)."""

    def __init__(
        self, numbers: np.ndarray, lengths: Sequence[int], batch_size: int, seed: int
    ):
        """`numbers` has the bucket of each row; a batch has `batch_size` longest rows."""
        self.lengths, self.seed = lengths, seed
        self.members = [np.flatnonzero(numbers == i) for i in range(len(lengths))]
        self.sizes = [batch_size * lengths[0] // length for length in lengths]
        self.orders = [
            row_order(len(rows), another_seed(seed, i)) if len(rows) else None
            for i, rows in enumerate(self.members)
        ]
        self.counted = functools.lru_cache(8)(self.count)
        self.batch = functools.lru_cache(8)(self.find)

    def batches_until(self, epoch: int) -> np.ndarray:
        """Return how many batches each bucket has had by the end of so many epochs."""
        filled = zip(self.members, self.sizes, strict=True)
        return np.array([-(-epoch * len(rows) // size) for rows, size in filled])

    def count(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the bucket of each batch of an epoch, and its batches before that."""
        first, end = self.batches_until(epoch), self.batches_until(epoch + 1)
        buckets = np.repeat(np.arange(len(first)), end - first)
        buckets = np.random.default_rng((self.seed, epoch)).permutation(buckets)
        before = np.zeros(len(buckets), np.int64)
        for bucket, batches in enumerate(first):
            here = buckets == bucket
            before[here] = batches + np.arange(here.sum())
        return buckets, before

    def find(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step's batch, and how many batches it had before."""
        steps_an_epoch = sum(
            len(rows) / size for rows, size in zip(self.members, self.sizes, strict=True)
        )
        # The batches until epoch e are from e to e + 1 times that, plus one a bucket.
        epoch = max(int((step - len(self.sizes)) / steps_an_epoch) - 1, 0)
        while self.batches_until(epoch + 1).sum() <= step:
            epoch += 1
        buckets, before = self.counted(epoch)
        index = step - int(self.batches_until(epoch).sum())
        return int(buckets[index]), int(before[index])

    def shape(self, step: int) -> tuple[int, int]:
        """Return the rows of a step's batch, and their length."""
        bucket, _ = self.batch(step)
        return self.sizes[bucket], self.lengths[bucket]

    def __call__(self, step: int, place: int) -> tuple[int, int]:
        bucket, before = self.batch(step)
        position = before * self.sizes[bucket] + place
        rows = self.members[bucket]
        return int(rows[self.orders[bucket][position]]), position // len(rows)
