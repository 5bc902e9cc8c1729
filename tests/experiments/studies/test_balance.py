"""The optimum by trying all assignments; instances as they are described; the tables."""

import math
import time

import numpy as np
import pytest

from experiments.studies.balance.instances import (
    CONDITIONS,
    DEGRADES,
    KINDS,
    instance,
    seconds_of,
)
from experiments.studies.balance.live import DEALS, Paced, expected
from experiments.studies.balance.optimum import fractional, optimum
from experiments.studies.balance.score import score
from experiments.studies.balance.tables import LIVE, SCORE, balance_tables, live_table
from parallel.balance.policies import POLICIES
from parallel.balance.simulate import Trouble
from tests.parallel.balance.test_simulate import clairvoyant


def test_the_optimum_is_that_of_all_assignments():
    rng = np.random.default_rng(0)
    for troubles in ({}, {1: Trouble(4.0, 3.0)}, {0: Trouble(4.0, math.inf)}):
        for _ in range(3):
            seconds_NM = rng.uniform(1, 10, (6, 3))
            best = clairvoyant(seconds_NM, troubles)
            found = optimum(seconds_NM, troubles, seconds=60)
            assert found.proven and found.lower <= best * (1 + 1e-6)
            assert best <= found.upper * (1 + 1e-6) <= 1.011 * best
            assert fractional(seconds_NM, troubles) <= found.lower * (1 + 1e-9)
    # Without whole pieces: speeds 1 and 3 share 8 pieces of 1 s as 2 and 6.
    assert fractional(np.ones((8, 1)) / [1, 3], {}) == pytest.approx(2)


def test_kinds_and_conditions_are_what_they_are_called():
    rng = np.random.default_rng(1)
    order = {kind: np.argsort(seconds_of(kind, rng, 50, 6), axis=1) for kind in KINDS}
    for kind in ("speeds", "consistent"):
        assert (order[kind] == order[kind][0]).all()
    half = seconds_of("semi-consistent", rng, 50, 6)
    assert (np.diff(half[:, ::2]) > 0).all() and (np.diff(half) < 0).any()
    assert len(np.unique(order["inconsistent"], axis=0)) > 30
    for condition in CONDITIONS:
        one, again = (instance("speeds", condition, 9, 3, 5, 2) for _ in range(2))
        np.testing.assert_array_equal(one.actual_NM, again.actual_NM)
        assert one.troubles == again.troubles
        same = (one.told_NM == one.actual_NM).all()
        assert same == (condition not in ("noise", "wrong speeds"))
        factors = [trouble.factor for trouble in one.troubles.values()]
        expected = {"degrades": [DEGRADES], "dies": [math.inf]}
        assert factors == expected.get(condition, [])
        other = instance("speeds", condition, 9, 3, 5, 3)
        assert (one.told_NM != other.told_NM).any()


def test_a_line_has_every_policy_and_fills_the_tables():
    head = {"study": SCORE, "member": "speeds, as told", "kind": "speeds", "seed": 0}
    head |= {"condition": "as told", "pieces": 8, "workers": 3, "instances": 2}
    line = head | score(head, seconds=60)
    assert line["proven"] == 2 and 1 <= line["best"] <= line["best, worst"] <= 1.05
    assert all(line[name] >= 1 for name in POLICIES)
    larger = line | {"instances": 4, "static": 9.0, "static, worst": 9.5}
    tables = balance_tables([larger, line])
    assert "9.000 (9.50)" in tables["kinds"] and tables["kinds"].count("\n") == 16
    assert "| as told | 8 on 3 | 4 | 2 |" in tables["optimum"]
    assert f"**{line['best']:.3f}**" in tables["conditions"]


def test_deals_at_set_speeds_are_as_worked_by_hand():
    """4 workers, the last 4 times slower: 16 microbatches; cut ones would take 4.92 s."""
    found = {deal: expected(deal, 4, 4.0, 1.0) for deal in DEALS}
    assert {x.ideal for x in found.values()} == {16 / 3.25}
    counts = {deal: (x.counts, x.simulated) for deal, x in found.items()}
    assert counts == {
        "equal": ([4, 4, 4, 4], 16.0),
        "by speed": ([5, 5, 5, 1], 5.0),
        "by wrong speeds": ([1, 5, 5, 5], 20.0),
        "as measured": ([4, 4, 4, 4], 5.0),
    }
    assert [x.moves for x in found.values()] == [False, False, False, True]


def test_a_paced_loop_lasts_at_least_its_floor():
    paced = Paced((2, 1), False, np.array([0.01, 0.02]))
    for replica in range(2):
        paced.begin(replica, None)
        assert paced.end(replica, None) >= 0.02
    paced.begin(0, None)
    time.sleep(0.021)
    assert paced.end(0, None) >= 0.021 and paced.late == 1
    line = {"study": LIVE, "member": "equal", "workers": 2, "slow": 4.0, "simulated": 2.0}
    line |= {"live": 2.1, "ideal": 1.5, "late": 0, "loss": 3.0}
    assert "| 2.10 s | 1.050 | 1.40 | 3.00000 |" in live_table([line])
    assert "past its floor" in live_table([line | {"late": 1}])
