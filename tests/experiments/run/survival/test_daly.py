"""Daly's formulas against runs that are drawn, and against a search."""

import numpy as np

from experiments.run.survival import daly


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
