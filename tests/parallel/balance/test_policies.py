"""Plans beside slow ones written down from the papers, and beside the best of all."""

import itertools
import math

import numpy as np
import pytest

from parallel.balance.moves import improved
from parallel.balance.online import (
    START_MOVING,
    STOP_MOVING,
    backup,
    dynamic,
    reverse,
    work_stealing,
)
from parallel.balance.policies import PLANS, POLICIES, policy_named
from parallel.balance.shares import check_speeds, shares
from parallel.balance.simulate import Trouble, makespan, simulate
from parallel.balance.view import NONE, View

ENDS_FIRST = ("minimum_completion_time", "longest_first", "min_min", "max_min", "sufferage")


def instances(num, num_pieces, num_workers, seed=0):
    """Yield seconds of pieces on workers that have nothing in common."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        yield rng.uniform(1, 10, (num_pieces, num_workers))


def first_view(seconds_NM, ready_M=None):
    num_pieces, num_workers = seconds_NM.shape
    ready_M = np.zeros(num_workers) if ready_M is None else np.asarray(ready_M, float)
    return View(
        seconds_NM,
        tuple(range(num_pieces)),
        ((),) * num_workers,
        (NONE,) * num_workers,
        ready_M,
    )


def slowly(rule, seconds, ready):
    """Place one piece after the other by a rule, in plain Python; return its queues."""
    ready, left = list(ready), list(range(len(seconds)))
    queues = [[] for _ in ready]
    while left:
        ends = {i: [r + s for r, s in zip(ready, seconds[i], strict=True)] for i in left}
        if rule == "minimum_completion_time":
            piece = left[0]
        elif rule == "min_min":
            piece = min(left, key=lambda i: min(ends[i]))
        elif rule == "max_min":
            piece = max(left, key=lambda i: min(ends[i]))
        else:
            piece = max(left, key=lambda i: sorted(ends[i])[1] - sorted(ends[i])[0])
        worker = ends[piece].index(min(ends[piece]))
        ready[worker] = ends[piece][worker]
        queues[worker].append(piece)
        left.remove(piece)
    return tuple(map(tuple, queues))


def test_plans_are_those_of_the_papers():
    for seconds_NM in instances(100, 10, 4):
        ready_M = seconds_NM[0] / 2
        view = first_view(seconds_NM, ready_M)
        for rule in ("minimum_completion_time", "min_min", "max_min", "sufferage"):
            expected = slowly(rule, seconds_NM.tolist(), ready_M)
            assert POLICIES[rule](view) == expected, rule


def best_by_trying(seconds_NM):
    num_pieces, num_workers = seconds_NM.shape
    every = np.array(list(itertools.product(range(num_workers), repeat=num_pieces)))
    taken = seconds_NM[np.arange(num_pieces), every]
    loads = [np.where(every == w, taken, 0).sum(1) for w in range(num_workers)]
    return np.max(loads, 0).min()


def plan_end(plan, seconds_NM):
    loads = np.zeros(seconds_NM.shape[1])
    for piece, worker in plan(seconds_NM, np.zeros_like(loads)):
        loads[worker] += seconds_NM[piece, worker]
    return loads.max()


def test_proven_bounds_hold_and_none_is_below_the_optimum():
    """Equal workers, workers of different speeds, and workers with nothing in common."""
    rng = np.random.default_rng(1)
    worst = {}
    for seconds_NM in instances(30, 7, 3):
        num_workers = seconds_NM.shape[1]
        work = rng.integers(1, 12, (7, 1)).astype(float)
        speeds = rng.uniform(1, 10, (1, 3))
        kinds = {
            "equal": work * np.ones((1, 3)),
            "speeds": work / speeds,
            "any": seconds_NM,
        }
        for kind, seconds in kinds.items():
            best = best_by_trying(seconds)
            for name, plan in PLANS.items():
                end = plan_end(plan, seconds)
                assert end >= best * (1 - 1e-12), (name, kind)
                worst[name, kind] = max(worst.get((name, kind), 1), end / best)
                if name in ENDS_FIRST:
                    assert end <= seconds.min(1).sum() + 1e-9 <= num_workers * best + 1e-9
    for name in ENDS_FIRST:  # each is list scheduling on equal workers
        assert worst[name, "equal"] <= 2 - 1 / 3
    for name in ("longest_first", "max_min", "by_length"):
        assert worst[name, "equal"] <= 4 / 3 - 1 / 9
    assert 1 < worst["longest_first", "speeds"] <= 2 * 3 / 4
    assert worst["static", "any"] > worst["sufferage", "any"] > 1.05


def test_the_best_has_no_better_neighbour_and_is_near_the_optimum():
    ratios = []
    for seconds_NM in instances(20, 8, 3, seed=2):
        queues = POLICIES["best"](first_view(seconds_NM))
        workers = {p: w for w, queue in enumerate(queues) for p in queue}
        chosen = np.array([workers[p] for p in range(8)])

        def end(chosen, seconds_NM=seconds_NM):
            return np.bincount(chosen, seconds_NM[range(8), chosen], 3).max()

        ours = end(chosen)
        for piece, worker in itertools.product(range(8), range(3)):
            assert end(np.where(np.arange(8) == piece, worker, chosen)) >= ours - 1e-9
        for i, j in itertools.combinations(range(8), 2):
            swapped = chosen.copy()
            swapped[[i, j]] = chosen[[j, i]]
            assert end(swapped) >= ours - 1e-9
        assert all(plan_end(plan, seconds_NM) >= ours - 1e-9 for plan in PLANS.values())
        ratios.append(ours / best_by_trying(seconds_NM))
    assert 1 - 1e-12 <= min(ratios) and np.mean(ratios) <= 1.02
    # A worker that is dead gets nothing, however much there is to gain.
    alone = improved(np.array([0, 0, 0]), np.ones((3, 2)), np.array([0, np.inf]))
    assert alone.tolist() == [0, 0, 0]


def test_simple_deals():
    view = first_view(np.ones((7, 3)), [0, math.inf, 0])
    assert POLICIES["static"](view) == ((0, 1, 2, 3), (), (4, 5, 6))
    assert POLICIES["round_robin"](view) == ((0, 2, 4, 6), (), (1, 3, 5))
    # 4 workers: two columns by length, each of two rows.
    lengths = np.array([9, 1, 9, 1, 1, 1, 9, 9, 1, 1, 1, 1])[:, None] * np.ones((1, 4))
    queues = POLICIES["grid"](first_view(lengths))
    assert [{float(lengths[p, 0]) for p in q} for q in queues[:2]] == [{9.0}, {9.0}]
    assert sorted(p for q in queues for p in q) == list(range(12))
    # Three times as fast: three times as many, and they follow each other.
    seconds = np.ones((8, 1)) * [3, 1]
    assert POLICIES["by_speed"](first_view(seconds)) == ((0, 1), (2, 3, 4, 5, 6, 7))


def test_chunks_of_the_pull_queue_get_smaller():
    view = first_view(np.ones((20, 2)))
    queues = dynamic(view)
    assert queues == (tuple(range(5)), tuple(range(5, 9)))  # a quarter of what is left
    busy = view._replace(pool=(18, 19), running=(0, NONE), queues=((), ()))
    assert dynamic(busy) == ((), (18,))
    assert dynamic(busy._replace(pool=())) == ((), ())


def test_a_thief_takes_the_end_of_the_fullest_queue():
    view = first_view(np.ones((9, 3)))._replace(
        pool=(), running=(0, 1, NONE), queues=((2, 3, 4, 5, 6), (7, 8), ())
    )
    assert work_stealing(view) == ((2, 3), (7, 8), (4, 5, 6))


def test_work_moves_only_far_out_of_balance_and_then_until_near_it():
    """Hysteresis: a load between the two margins stays as it is, from either side."""
    view = first_view(np.ones((40, 2)))
    for first, moves in [(20, False), (22, False), (24, False), (25, True), (40, True)]:
        queues = tuple(range(first)), tuple(range(first, 40))
        after = reverse(view._replace(pool=(), queues=queues))
        assert (after != queues) == moves, first
        most = max(map(len, after)) / 20
        assert most <= (1 + STOP_MOVING if moves else 1 + START_MOVING)
        assert sorted(p for q in after for p in q) == list(range(40))


def test_a_spare_worker_saves_what_hangs():
    """All workers are equally fast; one needs 100 times as long after a while."""
    seconds = np.ones((12, 4))
    hangs = {0: Trouble(1.5, 100.0)}
    slow = simulate(POLICIES["minimum_completion_time"], seconds, seconds, hangs)
    assert makespan(slow) > 100
    assert makespan(simulate(backup, seconds, seconds, hangs)) == 4
    ran = simulate(backup, seconds, seconds)  # copies share the work where nobody hangs
    assert sum(each.counts for each in ran) == 12 and makespan(ran) == 3


def test_shares_end_first():
    rng = np.random.default_rng(3)
    for num_pieces in (0, 1, 5, 9):
        seconds_M = rng.uniform(1, 10, 3)
        ready_M = rng.uniform(0, 5, 3)
        counts_M = shares(num_pieces, seconds_M, ready_M)
        assert counts_M.sum() == num_pieces

        def end(counts, seconds_M=seconds_M, ready_M=ready_M):
            return max(
                (
                    r + c * s
                    for c, s, r in zip(counts, seconds_M, ready_M, strict=True)
                    if c
                ),
                default=0,
            )

        every = itertools.product(range(num_pieces + 1), repeat=3)
        best = min(end(counts) for counts in every if sum(counts) == num_pieces)
        assert end(counts_M) == pytest.approx(best)


def test_one_of_eight_workers_is_ten_times_slower():
    """Steps of 256 equal rows: by speed it costs a tenth; moving work learns it at once."""
    seconds_M = np.array([1.0] * 7 + [10.0])
    actual = np.ones((256, 1)) * seconds_M
    ideal = 256 / (1 / seconds_M).sum()
    unaware = np.ones((256, 8))
    steps = [makespan(simulate(POLICIES["static"], unaware, actual))]
    assert steps[0] == 320  # ten times as long as with equal workers
    assert makespan(simulate(POLICIES["by_speed"], actual, actual)) <= 1.1 * ideal
    queues = POLICIES["static"](first_view(unaware))
    for _ in range(5):
        view = first_view(actual)._replace(pool=(), queues=queues)
        queues = reverse(view)
        steps.append(max(len(q) * s for q, s in zip(queues, seconds_M, strict=True)))
    assert steps[-1] <= 1.1 * ideal


def test_wrong_speeds_and_names_are_refused():
    for speeds, error in [
        ((1, 2), "has 2 speeds, and there are 3 workers"),
        ((1, 0, 2), r"speeds\[1\] is 0; a speed is a number above 0"),
        (("fast", 1, 1), r"speeds\[0\] is 'fast'; a speed is a number"),
        ((1, 2, -1), r"speeds\[2\] is -1"),
        ((math.inf, 1, 1), r"speeds\[0\] is inf"),
        ((1, math.nan, 1), r"speeds\[1\] is nan"),
    ]:
        with pytest.raises(ValueError, match=error):
            check_speeds(speeds, 3, "parallel.speeds")
    check_speeds((1, 2.5, 3), 3, "parallel.speeds")
    with pytest.raises(ValueError, match="no policy 'fast'; choose one of static, round_"):
        policy_named("fast")
    assert policy_named("best") is POLICIES["best"]
    with pytest.raises(ValueError, match="all of the 2 workers are dead"):
        POLICIES["dynamic"](first_view(np.ones((2, 2)), [math.inf, math.inf]))
