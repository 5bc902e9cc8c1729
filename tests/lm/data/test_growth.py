"""A batch that grows: the rows of each step in closed form, and what the config refuses."""

import numpy as np
import pytest

from configs import fields
from configs.base import Experiment
from lm.data.config import DataConfig
from lm.data.rows.growth import rows_at, rows_before
from lm.data.rows.order import Numbered, Order, Places, step_rows, train_batches
from lm.data.rows.store import Rows

GROWTH = ((3, 8), (4, 12), (9, 40))
GROWS = Order(1, 4, growth=GROWTH)


def rows(num_rows: int, parts=()) -> Rows:
    tokens = np.arange(num_rows * 5).reshape(num_rows, 5)
    return Rows(tokens, np.ones_like(tokens), parts=parts)


def test_the_rows_before_a_step_are_counted():
    sizes = [4] * 3 + [8] + [12] * 5 + [40] * 9
    for step, size in enumerate(sizes):
        assert rows_at(4, GROWTH, step) == size
        assert rows_before(4, GROWTH, step) == sum(sizes[:step])
    assert rows_before(4, (), 7) == 28 and rows_at(4, (), 7) == 4


def test_a_growing_batch_reads_the_same_rows_in_the_same_order():
    """Step by step it cuts the one stream of rows, which batches of one row show."""
    sizes = [4] * 3 + [8] + [12] * 5 + [40] * 2
    grows, plain = (Places(rows(23), order) for order in (GROWS, Order(1, 1)))
    read = [grows(k, place).row for k, size in enumerate(sizes) for place in range(size)]
    assert read == [plain(k, 0).row for k in range(sum(sizes))]
    assert read[12:20] == step_rows(rows(23), GROWS, 3)
    # Two shards: each half of a batch goes on where the last half of the shard ended.
    halves = rows(30, parts=((11,), (19,)))
    grows, plain = (Places(halves, order) for order in (GROWS, Order(1, 2)))
    for shard in (0, 1):
        read = [
            grows(k, shard * size // 2 + place).row
            for k, size in enumerate(sizes)
            for place in range(size // 2)
        ]
        assert read == [plain(k, shard).row for k in range(sum(sizes) // 2)]


def test_processes_have_equal_parts_of_each_batch():
    whole = list(train_batches(rows(23), GROWS, 0, 10))
    parts = [list(train_batches(rows(23), GROWS, 2, 10, p, 2)) for p in range(2)]
    for batch, *halves in zip(whole[2:], *parts, strict=True):
        for name, array in batch.items():
            joined = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(joined, array)


def test_numbers_out_of_turn_name_the_same_rows():
    whole = list(train_batches(rows(23), GROWS, 0, 12))
    numbered = Numbered(rows(23), GROWS, 3, 10)
    for number in [3, 4, 7, 5, 1, 9, 8, 11, 6, 6]:  # before, passed over, beyond, again
        found = numbered(number)
        for name, array in whole[number].items():
            np.testing.assert_array_equal(found[name], array)
    assert not numbered.kept


def test_schedules_that_do_not_grow_are_refused():
    for growth, words in [
        (((3, 8), (3, 16)), "16 rows after 3 steps, which follow 8 rows after 3"),
        (((3, 4),), "4 rows after 3 steps, which follow 4 rows after 0"),
        (((0, 8),), "8 rows after 0 steps"),
        ((3, 8), r"data.growth has 3; expected pairs \(steps, rows\)"),
        (((3, 8.0),), "expected pairs"),
        (((3, 9),), "batches of 9 rows, which are not divisible by data.shards 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            DataConfig(batch_size=4, shards=2, growth=growth).validate()
    late = Experiment(steps=9, data=DataConfig(batch_size=4, growth=GROWTH))
    with pytest.raises(ValueError, match="after 9 steps, but the run has 9"):
        late.validate()


def test_a_schedule_comes_back_from_json():
    data = fields.from_dict(DataConfig, {"growth": [[3, 8], [4, 12]]})
    assert data.growth == ((3, 8), (4, 12))
