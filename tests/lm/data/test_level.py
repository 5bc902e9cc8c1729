"""Levelled batches: the same rows, on other devices, with equal numbers of tokens."""

import dataclasses
import itertools

import numpy as np
import pytest

from lm.data.config import DataConfig
from lm.data.rows.level import halved, level
from lm.data.rows.order import train_batches
from tests.lm.data.test_buckets import made_rows


def most(tokens, num_devices):
    """Return the most tokens of a device over their mean."""
    sums = tokens.reshape(num_devices, -1).sum(1)
    return sums.max() / sums.mean()


def test_every_split_over_devices_is_level():
    """Log-normal lengths, 8 rows for a device: 1.3 and more become 1.02 and less."""
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(20):
        tokens = np.clip(rng.lognormal(3.3, 0.9, 64), 1, 128).astype(int)
        order = level(tokens)
        assert sorted(order) == list(range(64))
        before.append(most(tokens, 8))
        after.append([most(tokens[order], devices) for devices in (2, 4, 8)])
    assert np.mean(before) > 1.3 and np.max(after) <= 1.02


def test_halves_are_as_alike_as_a_swap_can_make_them():
    rng = np.random.default_rng(1)
    for size in (2, 5, 8, 9):
        tokens = rng.integers(0, 50, size)
        first = halved(tokens)
        assert first.sum() == size - size // 2

        def excess(first, tokens=tokens):
            return abs(tokens[first].sum() - tokens[~first].sum())

        for a, b in itertools.product(np.flatnonzero(first), np.flatnonzero(~first)):
            swapped = first.copy()
            swapped[[a, b]] = False, True
            assert excess(swapped) >= excess(first)
    assert level(np.array([], int)).tolist() == [] and level(np.array([7])).tolist() == [0]


@pytest.mark.parametrize("lengths", [(), (32, 16, 8)])
def test_a_levelled_batch_has_the_same_rows(lengths):
    rows, order = made_rows(0)
    order = order._replace(lengths=lengths, batch_size=16)
    levelled = order._replace(level=True)
    parts = [train_batches(rows, levelled, 0, 4, part, 2) for part in range(2)]
    for plain, *halves in zip(train_batches(rows, order, 0, 4), *parts, strict=True):
        joined = {n: np.concatenate([half[n] for half in halves]) for n in plain}
        back = np.argsort(joined["row"])  # a row keeps the number that dropout depends on
        for name in plain:
            np.testing.assert_array_equal(joined[name][back], plain[name])
        tokens = [np.count_nonzero(half["segments"]) for half in halves]
        assert max(tokens) <= 1.02 * np.mean(tokens)


def test_what_cannot_be_levelled_is_refused():
    none = DataConfig(packing="none", level=True)
    none.validate()
    for changes, words in [
        ({"packing": "first_fit"}, "data.packing is 'first_fit', which fills all rows"),
        ({"shards": 4}, "data.shards 4 says which rows are on which replica"),
    ]:
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(none, **changes).validate()
