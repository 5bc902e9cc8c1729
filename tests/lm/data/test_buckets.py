"""Batches of equal tokens: each row once an epoch, little padding, and the same losses."""

import collections
import math

import jax
import numpy as np
import pytest

from lm.data.config import DataConfig
from lm.data.rows.buckets import Buckets, bucket_lengths, bucket_of, cut
from lm.data.rows.order import Order, step_rows, train_batches
from lm.data.rows.packing import one_each
from lm.data.rows.pairs import pair_row
from lm.data.rows.store import Rows
from lm.data.sources.table import DOCUMENT_SOURCES
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Setting

RNG = np.random.default_rng(0)
SEED, BATCH, LENGTHS = 3, 4, (32, 16, 8)


def test_lengths_are_halves_of_both_texts():
    for seq_len, source_len, expected in [
        (32, 0, (32, 16, 8, 4)),
        (512, 0, (512, 256, 128, 64)),
        (24, 8, (24, 12)),
        (64, 48, (64, 32, 16)),
        (33, 0, (33,)),
        (32, 9, (32,)),
    ]:
        assert bucket_lengths(seq_len, source_len) == expected


def test_each_row_is_in_the_shortest_length_that_holds_it():
    """Documents by their number of tokens alone, pairs by both numbers."""
    sizes = RNG.integers(2, 34, 300)
    documents = [RNG.integers(1, 99, size).astype(np.int32) for size in sizes]
    found = [bucket_of(*row, 0, LENGTHS) for row in one_each(documents, 32)]
    # A row of n tokens has n - 1 targets.
    assert found == [2 if size <= 9 else 1 if size <= 17 else 0 for size in sizes]
    for source, target, bucket in [(7, 7, 1), (8, 7, 0), (7, 8, 0), (3, 3, 2), (0, 0, 2)]:
        row = pair_row([5] * source, [6] * target, 16, 32)
        assert bucket_of(*row, 16, LENGTHS) == bucket, (source, target)
        tokens, segments = (cut(x[None], 16, LENGTHS[bucket])[0] for x in row)
        half = LENGTHS[bucket] // 2
        assert len(tokens) == LENGTHS[bucket] + 1
        assert tokens[: source + 1].tolist() == [5] * source + [0]
        assert tokens[half : half + target + 2].tolist() == [0, *[6] * target, 0]
        assert segments.sum() == target + 2 and segments[half:].sum() == target + 2


def test_the_padding_is_that_of_the_lengths():
    """Log-normal lengths: whole rows are 3/4 padding, cut ones at most half, and less."""
    sizes = np.clip(np.exp(RNG.normal(2, 0.6, 4000)), 2, 33).astype(int)
    documents = [np.ones(size, np.int32) for size in sizes]
    rows = list(one_each(documents, 32))
    cut_to = np.array([LENGTHS[bucket_of(*row, 0, LENGTHS)] for row in rows])
    targets = sizes - 1
    expected = np.array([min(n for n in LENGTHS if n >= t) for t in targets])
    np.testing.assert_array_equal(cut_to, expected)
    whole, left = (1 - targets.sum() / n for n in (32 * len(rows), cut_to.sum()))
    assert whole > 0.75 and left < 0.4


def epochs_by_hand(numbers, num_epochs):
    """Count batches epoch by epoch: each bucket's share, rounded up over all epochs."""
    sizes, rows = [4, 8, 16], np.bincount(numbers, minlength=3)
    had, epochs = [0, 0, 0], []
    for epoch in range(num_epochs):
        until = [math.ceil((epoch + 1) * r / s) for r, s in zip(rows, sizes, strict=True)]
        epochs.append([b - a for a, b in zip(had, until, strict=True)])
        had = until
    return epochs


@pytest.mark.parametrize("shares", [(0.2, 0.3, 0.5), (0.02, 0.0, 0.98)])
def test_each_epoch_reads_each_row_once(shares):
    numbers = RNG.choice(3, 150, p=shares).astype(np.uint8)
    buckets = Buckets(numbers, LENGTHS, BATCH, SEED)
    step, read = 0, collections.Counter()
    for epoch, batches in enumerate(epochs_by_hand(numbers, 5), 1):
        seen = collections.Counter()
        for _ in range(sum(batches)):
            num_rows, length = buckets.shape(step)
            assert num_rows * length == BATCH * 32
            rows = [buckets(step, place)[0] for place in range(num_rows)]
            assert {LENGTHS[numbers[row]] for row in rows} == {length}
            seen[LENGTHS.index(length)] += 1
            read.update(rows)
            step += 1
        assert [seen[bucket] for bucket in range(3)] == batches
        for row, bucket in enumerate(numbers):
            others = max(np.count_nonzero(numbers == bucket), 1)
            spare = math.ceil((4 << int(bucket)) / others)  # rows of the last batch
            assert epoch <= read[row] <= epoch + spare
    # Any step by itself, from a fresh start.
    steps = RNG.permutation(step)[:20].tolist()
    alone = [Buckets(numbers, LENGTHS, BATCH, SEED)(k, 1) for k in steps]
    assert alone == [buckets(k, 1) for k in steps]
    assert [Buckets(numbers, LENGTHS, BATCH, 1)(k, 1) for k in steps] != alone


def made_rows(source_len):
    """Return rows of documents, or of pairs, and their order."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(5, 14, (60, 2))
    if source_len:
        made = [pair_row([5] * a, [*range(6, 6 + b)], 16, 32) for a, b in sizes]
    else:
        made = list(one_each([rng.integers(1, 50, a + b) for a, b in sizes], 32))
    tokens, segments = (np.stack(x).astype(np.int32) for x in zip(*made, strict=True))
    numbers = [bucket_of(*row, source_len, LENGTHS) for row in made]
    rows = Rows(tokens, segments, buckets=np.array(numbers, np.uint8))
    return rows, Order(SEED, BATCH, lengths=LENGTHS, source_len=source_len)


def test_batches_are_cut_and_shared_out():
    for source_len in (0, 16):
        rows, order = made_rows(source_len)
        whole = list(train_batches(rows, order, 0, 12))
        halves = [list(train_batches(rows, order, 2, 12, p, 2)) for p in range(2)]
        for step, batch in enumerate(whole):
            kept = rows.tokens[step_rows(rows, order, step)]
            length = batch["tokens"].shape[1] - 1
            source = source_len * length // 32
            np.testing.assert_array_equal(batch["tokens"][:, :source], kept[:, :source])
            end = source_len + length - source + 1
            np.testing.assert_array_equal(
                batch["tokens"][:, source:], kept[:, source_len:end]
            )
            for name in batch if step >= 2 else ():
                joined = np.concatenate([half[step - 2][name] for half in halves])
                np.testing.assert_array_equal(joined, batch[name])


@pytest.mark.parametrize("kind", ["transformer", "recurrent"])
def test_cut_pairs_have_the_losses_of_whole_ones(kind):
    config = Seq2SeqConfig(kind, width=16, num_layers=1, num_heads=2, dropout=0.0)
    task = config.task(Setting(64, 32, 16))
    params = jax.jit(task.init)(jax.random.key(0))
    loss = jax.jit(lambda batch: task.loss(params, batch, None)[1])
    rows, order = made_rows(16)
    batches = enumerate(train_batches(rows, order, 0, 12))
    step, batch = next(each for each in batches if each[1]["tokens"].shape[1] == 17)
    index = step_rows(rows, order, step)
    whole = {"tokens": rows.tokens[index], "segments": rows.segments[index]}
    found, expected = loss(batch), loss(whole | {"row": batch["row"]})
    assert found["tokens"] == expected["tokens"] > 0
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)


def test_what_equal_tokens_cannot_go_with_is_refused():
    assert "stdlib" in DOCUMENT_SOURCES
    none = {"packing": "none", "equal_tokens": True}
    for changes, words in [
        ({"equal_tokens": True}, "data.packing is 'first_fit', which fills all rows"),
        (none | {"shards": 2}, "unset it, or data.growth, data.shards"),
        (none | {"growth": ((9, 64),)}, "unset it, or data.growth"),
        (none | {"seq_len": 33}, "data.seq_len 33 and data.source_len 0 cannot be halved"),
    ]:
        with pytest.raises(ValueError, match=words):
            DataConfig(**changes).validate()
    DataConfig(**none).validate()
