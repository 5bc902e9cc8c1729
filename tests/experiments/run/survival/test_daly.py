"""Daly's formulas against runs that are drawn, and against a search."""

import numpy as np

from experiments.run.survival import daly
from experiments.run.survival.clock import Clock
from experiments.run.survival.saving import AUTO, DAY, Saves, between_faults, steps_between


def drawn_share(work, save, between, restart, rng, segments=4000):
    """Simulate: each segment of work and its save must pass without a fault."""
    seconds = 0.0
    for _ in range(segments):
        while (fault := rng.exponential(between)) < work + save:
            seconds += fault
            while (again := rng.exponential(between)) < restart:
                seconds += again  # a fault during the restart
            seconds += restart
        seconds += work + save
    return segments * work / seconds


def test_the_share_of_work_is_that_of_drawn_faults():
    rng = np.random.default_rng(0)
    for work, save, between, restart in [
        (30.0, 2.0, 300.0, 20.0),
        (30.0, 2.0, 60.0, 20.0),
        (5.0, 2.0, 60.0, 5.0),
    ]:
        found = drawn_share(work, save, between, restart, rng)
        np.testing.assert_allclose(
            daly.efficiency(work, save, between, restart), found, rtol=0.03
        )


def test_the_interval_loses_the_least():
    for save, between in [(0.1, 60.0), (5.0, 300.0), (20.0, 3600.0), (60.0, 120.0)]:
        works = np.geomspace(save / 50, between * 4, 4000)
        shares = [daly.efficiency(w, save, between, 10.0) for w in works]
        ours = daly.efficiency(daly.interval(save, between), save, between, 10.0)
        assert ours > 0.995 * max(shares)
    assert daly.interval(10.0, 5.0) == 5.0


def test_a_run_saves_by_what_saves_cost_and_faults_it_met(tmp_path):
    # 100 steps in 22 s, of which two saves of 1 s each; a fault in 101 s.
    steps = steps_between(22.0, 2.0, 100, 2, 101.0)
    assert steps == round(daly.interval(1.0, 101.0) / 0.2)
    assert steps_between(1.0, 1.0, 0, 1, 1e9) > 0
    assert steps_between(50.0, 45.0, 5, 1, 1.0) == 1

    def event(name, wall, elapsed):
        return {
            "event": name, "step": 0, "wall": wall, "elapsed": elapsed, "seconds": {}
        }  # fmt: skip

    lives = [event("start", 0.0, 1.0), event("last", 0.0, 50.0), event("start", 60.0, 2.0)]
    assert between_faults(lives) == 62.0
    assert between_faults(lives[:1]) == DAY
    again = [event("last", 60.0, 30.0), event("start", 100.0, 10.0)]
    assert between_faults([*lives, *again]) == 110.0 / 2
    ended = [event("start", 0.0, 1.0), event("end", 0.0, 50.0), event("start", 60.0, 2.0)]
    assert between_faults(ended) == DAY  # none was a fault
    assert (
        between_faults([event("start", 0.0, 1.0), event("saved", 0.0, 2 * DAY)]) == 2 * DAY
    )

    saves = Saves(AUTO, tmp_path, Clock())
    saves.begin(20)
    assert [step for step in range(21, 35) if saves.due(step)] == [30, 31, 32, 33, 34]
    saves.saved(30)
    assert not saves.due(30) and saves.next > 30  # as no fault was met, much later
    assert [step for step in range(1, 10) if Saves(3, tmp_path, Clock()).due(step)] == [
        3, 6, 9
    ]  # fmt: skip
    assert not any(Saves(0, tmp_path, Clock()).due(step) for step in range(1, 10))
