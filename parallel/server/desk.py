"""Who works on which number: the rules of handing out and taking back, as pure functions.

A number names a batch. A push is of one number, or of several where a worker takes several
steps by itself. Numbers are handed out, and taken back when their push has been applied, or
given back when their worker has died. The lowest numbers that are not applied and not out
are handed out next. So what was given back goes first, and no number is passed over but
those that are out.

The position is (next, missing): all numbers below `next` are applied, but for those of
`missing`, at most one push for each worker. It is short, however far a fast worker is ahead
of a slow one; the numbers applied above the lowest missing one may be thousands.

A worker's clock is the number of its pushes that were applied. Stale synchronous parallel
(Ho et al. 2013): a worker starts its next push only if its clock is at most `bound` ahead
of the slowest worker's. So what it pulls lacks at most the last `bound` pushes of any
other.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Desk(NamedTuple):
    next: int  # numbers from here on were never handed out
    returned: frozenset[int]  # below `next`, neither applied nor out
    out: Mapping[int, tuple[int, ...]]  # worker -> the numbers that it works on
    clocks: Mapping[int, int]  # worker -> pushes of it that were applied

    @property
    def missing(self) -> list[int]:
        """The numbers below `next` that are not applied, rising."""
        return sorted(self.returned.union(*self.out.values()))

    @property
    def applied(self) -> int:
        """How many numbers are applied."""
        return self.next - len(self.missing)


def open_desk(workers: Iterable[int], next: int = 0, missing: Iterable[int] = ()) -> Desk:
    """Begin at a position; what was out there is handed out first."""
    return Desk(next, frozenset(missing), {}, dict.fromkeys(workers, 0))


def lag(desk: Desk, worker: int) -> int:
    """Return by how many pushes a worker's clock is ahead of the slowest worker's."""
    return desk.clocks[worker] - min(desk.clocks.values())


def may_start(desk: Desk, worker: int, bound: int | None, end: int | None) -> bool:
    """Tell whether a worker may be handed a number below `end` (None: there is no end)."""
    if worker in desk.out or (bound is not None and lag(desk, worker) > bound):
        return False
    return end is None or bool(desk.returned) or desk.next < end


def hand(
    desk: Desk, worker: int, count: int = 1, end: int | None = None
) -> tuple[Desk, tuple[int, ...]]:
    """Hand a worker the lowest `count` numbers that are neither applied nor out.

    There are fewer if fewer are left below `end`.
    """
    if worker in desk.out:
        raise ValueError(f"worker {worker} still works on number {desk.out[worker][0]}")
    again = sorted(desk.returned)[:count]
    stop = desk.next + count - len(again)
    stop = stop if end is None else max(desk.next, min(stop, end))
    numbers = (*again, *range(desk.next, stop))
    return desk._replace(
        next=stop,
        returned=desk.returned.difference(again),
        out={**desk.out, worker: numbers},
    ), numbers


def without(desk: Desk, worker: int) -> dict[int, tuple[int, ...]]:
    return {other: numbers for other, numbers in desk.out.items() if other != worker}


def take(desk: Desk, worker: int) -> Desk:
    """Note that the push of a worker's numbers has been applied."""
    if worker not in desk.out:
        raise ValueError(f"worker {worker} has no number that it could push")
    clocks = {**desk.clocks, worker: desk.clocks[worker] + 1}
    return desk._replace(out=without(desk, worker), clocks=clocks)


def give_back(desk: Desk, worker: int) -> Desk:
    """Take numbers back from a worker that died on them."""
    returned = desk.returned.union(desk.out[worker])
    return desk._replace(returned=returned, out=without(desk, worker))


def join(desk: Desk, worker: int) -> Desk:
    """Let a worker join; its clock is that of the slowest, so that it holds nobody up."""
    start = min(desk.clocks.values(), default=0)
    return desk._replace(clocks={**desk.clocks, worker: start})


def leave(desk: Desk, worker: int) -> Desk:
    """Let a worker leave; its numbers, if it has some, go back."""
    desk = give_back(desk, worker) if worker in desk.out else desk
    clocks = {w: clock for w, clock in desk.clocks.items() if w != worker}
    return desk._replace(clocks=clocks)
