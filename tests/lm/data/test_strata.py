"""Draws from strata: rates, epochs, and any position by itself."""

import collections

import numpy as np
import pytest

from lm.data.rows import strata
from lm.data.rows.parts import Part, parts_told
from lm.data.rows.strata import Draw, check_rates, rates, row_order


def test_one_stratum_is_the_plain_order():
    order, draw = row_order(37, 5), Draw([37], 5, [1.0], False)
    positions = [0, 1, 36, 37, 4095, 4096, 123_456]
    assert [draw(i).row for i in positions] == [order[i] for i in positions]
    assert [draw(i).epoch for i in positions] == [i // 37 for i in positions]


def test_rates_follow_the_temperature():
    np.testing.assert_allclose(rates([30, 10], 1), [0.75, 0.25])
    np.testing.assert_allclose(rates([100, 1], 2), [10 / 11, 1 / 11])
    np.testing.assert_allclose(rates([1000, 1], 1e9), [0.5, 0.5], atol=1e-6)
    # All goes to the largest, and nothing overflows.
    np.testing.assert_allclose(rates([100_000, 99_999, 0], 1e-9), [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("shuffled", [False, True])
def test_each_stratum_has_its_rate_and_whole_epochs(shuffled, monkeypatch):
    monkeypatch.setattr(strata, "PERIOD", period := 512)
    sizes, wanted = [600, 200], rates([600, 200], 3)
    draw = Draw(sizes, 1, wanted, shuffled)
    rows = [draw(i).row for i in range(2 * period)]
    rare = [row for row in rows if row >= sizes[0]]
    assert abs(len(rare) / len(rows) - wanted[1]) < 1 / period
    # No row comes a second time before all others of its stratum have come.
    assert len(rare) > 400
    for start in (0, 200):
        assert set(rare[start : start + 200]) == set(range(600, 800))
    counts = collections.Counter(row for row in rows if row < 600)
    assert max(counts.values()) - min(counts.values()) <= 1
    # Another object finds the same row at any position, whatever it was asked before.
    again = Draw(sizes, 1, wanted, shuffled)
    assert [again(i).row for i in (900, 5)] == [rows[900], rows[5]]


def test_stratified_batches_hold_each_stratum_in_proportion():
    draw, batch = Draw([3000, 1000], 0, [0.75, 0.25], False), 16
    for step in range(100):
        rows = [draw(i).row for i in range(step * batch, (step + 1) * batch)]
        assert abs(sum(row >= 3000 for row in rows) - 4) <= 1
    shuffled = Draw([3000, 1000], 0, [0.75, 0.25], True)
    rare = [
        sum(shuffled(i).row >= 3000 for i in range(step * batch, (step + 1) * batch))
        for step in range(100)
    ]
    # About the variance of independent draws, 16 * 1/4 * 3/4.
    assert 2 < np.var(rare) < 4


def test_a_stratum_too_rare_for_a_period_is_refused():
    with pytest.raises(ValueError, match="'rare' has the rate 1e-05, less than one row in"):
        check_rates(("common", "rare"), rates([100_000, 1], 1).tolist())
    check_rates(("common", "rare", "never"), [0.999, 0.001, 0.0])


def test_a_stratum_that_gives_no_row_is_told():
    parts = [[Part(0, 0.0, 1.0), Part(5, 1.0, 1.0)]]
    told = parts_told(parts, ("numbers", "prose"), 10)
    assert "numbers 0 rows, 0.00% drawn, 0 epochs; prose 5 rows, 100.00% drawn, 2" in told
    assert "Kish" not in told
    # Half of the draws weigh 1, half 3: (1 + 3)^2 / (2 (1 + 9)) of them.
    parts = [[Part(5, 0.5, 1.0), Part(5, 0.5, 3.0)]]
    assert "100 rows are worth 80.0 of equal" in parts_told(parts, ("a", "b"), 10)
