"""The rules of numbers on random schedules: none lost, none repeated, no lag too large."""

import itertools
import random

import pytest

from parallel.server.desk import (
    give_back,
    hand,
    join,
    lag,
    leave,
    may_start,
    open_desk,
    take,
)

SCHEDULES, EVENTS = 100_000, 9


def test_random_schedules_lose_and_repeat_nothing_and_keep_the_bound():
    rng = random.Random(0)
    seen = {"died": 0, "blocked": 0, "restored": 0, "left": 0, "at the bound": 0}
    for _ in range(SCHEDULES):
        run_schedule(rng, seen)
    assert min(seen.values()) > 1000, seen


def run_schedule(rng: random.Random, seen: dict[str, int]) -> None:
    """Check a random run against sets of numbers and lists of pushes."""
    workers, bound = list(range(rng.randint(1, 4))), rng.choice([None, 0, 1, 2, 3])
    desk, applied, pushes = open_desk(workers), set(), dict.fromkeys(workers, 0)
    most_numbers = rng.choice([1, 3])  # of a push
    for _ in range(EVENTS):
        worker, event = rng.choice(workers), rng.random()
        if worker not in desk.out:
            ahead = pushes[worker] - min(pushes.values())
            allowed = bound is None or ahead <= bound
            assert may_start(desk, worker, bound, None) == allowed
            assert lag(desk, worker) == ahead
            if not allowed:
                seen["blocked"] += 1
                continue
            seen["at the bound"] += ahead == bound
            count = rng.randint(1, most_numbers)
            held = applied.union(*desk.out.values())
            free = (n for n in itertools.count() if n not in held)
            desk, numbers = hand(desk, worker, count)
            assert numbers == tuple(itertools.islice(free, count))
        elif event < 0.75:
            numbers = desk.out[worker]
            assert numbers and not applied.intersection(numbers)
            applied.update(numbers)
            pushes[worker] += 1
            desk = take(desk, worker)
        elif event < 0.85:
            seen["died"] += 1
            desk = give_back(desk, worker)
        elif event < 0.95 or len(workers) == 1:
            seen["restored"] += 1  # the position is all that is left of numbers
            clocks = desk.clocks
            desk = open_desk(workers, desk.next, desk.missing)._replace(clocks=clocks)
        else:
            seen["left"] += 1
            desk = join(leave(desk, worker), worker)
            pushes[worker] = min(n for other, n in pushes.items() if other != worker)
        assert set(range(desk.next)) - set(desk.missing) == applied
        assert desk.applied == len(applied)
        assert len(desk.missing) <= len(workers) * most_numbers


@pytest.mark.parametrize("count", [1, 2])
def test_an_end_leaves_no_number_out(count):
    desk, applied, died = open_desk(range(3)), [], False
    while any(may_start(desk, w, None, 7) for w in range(3)) or desk.out:
        for worker in range(3):
            if may_start(desk, worker, None, 7):
                desk, numbers = hand(desk, worker, count, 7)
                assert numbers
        worker = max(desk.out)
        if 3 in desk.out[worker] and not died:
            died, lost = True, desk.out[worker]
            desk = give_back(desk, worker)
            assert may_start(desk, worker, None, 7)
            desk, numbers = hand(desk, worker, count, 7)
            assert numbers == lost
        applied += desk.out[worker]
        desk = take(desk, worker)
    assert sorted(applied) == list(range(7)) and (desk.next, desk.missing) == (7, [])


def test_what_cannot_be_is_refused():
    desk, _ = hand(open_desk(range(2)), 0)
    with pytest.raises(ValueError, match="worker 0 still works on number 0"):
        hand(desk, 0)
    with pytest.raises(ValueError, match="worker 1 has no number"):
        take(desk, 1)
