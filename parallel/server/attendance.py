"""Workers that join and leave a run while it goes on: who is there, as pure functions.

An event is (updates, worker, "joins" or "leaves"): after so many updates. Who is there
depends on the number of updates alone, so a run that goes on from a checkpoint, and an
audit, find the same workers. A worker whose first event is that it joins is not there at
the start. One that leaves drops its work, and its numbers go back; what it kept from push
to push stays for its return.
"""

import itertools
from collections.abc import Mapping, Sequence

JOINS, LEAVES = "joins", "leaves"
Event = tuple[int, int, str]


def present(events: Sequence[Event], num_workers: int, updates: int) -> list[int]:
    """Return the workers that are there after so many updates, rising."""
    here = [True] * num_workers
    for _, worker, kind in sorted(events, reverse=True):
        here[worker] = kind == LEAVES  # before its first event
    for at, worker, kind in sorted(events):
        if at <= updates:
            here[worker] = kind == JOINS
    return [worker for worker in range(num_workers) if here[worker]]


def attended(
    clocks: Mapping[int, int], events: Sequence[Event], num_workers: int, updates: int
) -> dict[int, int]:
    """Return the clocks of those who are there; who has joined has that of the slowest."""
    here = present(events, num_workers, updates)
    stay = {worker: clocks[worker] for worker in here if worker in clocks}
    start = min(stay.values(), default=0)
    return {worker: stay.get(worker, start) for worker in here}


def check_attendance(events: Sequence[Event], num_workers: int) -> None:
    """Raise ValueError for what is no event, or cannot happen."""
    name = "parallel.server.attendance"
    for event in events:
        if (
            not isinstance(event, tuple)
            or [type(part) for part in event] != [int, int, str]
            or event[0] < 1
            or event[1] not in range(num_workers)
            or event[2] not in (JOINS, LEAVES)
        ):
            raise ValueError(
                f"{name} has {event!r}; expected (updates, worker, '{JOINS}' or "
                f"'{LEAVES}'), after 1 update or more, and a worker of 0 to "
                f"{num_workers - 1} (parallel.server.workers {num_workers})"
            )
    if len({(at, worker) for at, worker, _ in events}) < len(events):
        raise ValueError(f"{name} {events!r} has two events of a worker at the same update")
    for worker in range(num_workers):
        kinds = [kind for _, who, kind in sorted(events) if who == worker]
        if again := [a for a, b in itertools.pairwise(kinds) if a == b]:
            raise ValueError(
                f"{name}: worker {worker} {again[0]} twice in a row; it can join only "
                "where it is away, and leave only where it is there"
            )
    for at in (0, *(at for at, _, _ in events)):
        if not present(events, num_workers, at):
            raise ValueError(
                f"{name}: after {at} updates no worker is left of parallel.server.workers "
                f"{num_workers}; keep one"
            )
