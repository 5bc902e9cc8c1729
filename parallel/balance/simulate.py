"""Simulate workers that follow a policy: from event to event, without a clock.

An event is the end of a piece or the death of a worker. After each, the policy is asked who
does what next. It knows the seconds that it was told, corrected by what each worker has
shown so far. How long a piece takes is `actual_NM`, which it is not told.

The state of the workers (Workers) is also that of live ones:
parallel/server/synchronous.py moves it on by the clock.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from parallel.balance.view import NONE, Policy, View

RECENT = 0.5  # weight of the last piece in what a worker is expected to need


class Trouble(NamedTuple):
    """After `at` seconds a worker needs `factor` times as long; inf: it dies."""

    at: float
    factor: float


class Ran(NamedTuple):
    """A piece that a worker ran, from `start` to `end`, in seconds."""

    piece: int
    worker: int
    start: float
    end: float
    counts: bool  # it ended, and no other run of the piece had ended before


def end_of(start: float, seconds: float, trouble: Trouble | None) -> float:
    """Return when a worker ends a piece of `seconds` that it begins at `start`."""
    if trouble is None:
        return start + seconds
    before = min(max(trouble.at - start, 0.0), seconds)
    after = seconds - before
    return start + before + (after * trouble.factor if after else 0.0)


class Workers:
    """The state of all workers at one moment."""

    def __init__(self, told_NM: np.ndarray, troubles: Mapping[int, Trouble]):
        num_pieces, num_workers = told_NM.shape
        self.told_NM, self.troubles = told_NM, troubles
        self.now = 0.0
        self.left = set(range(num_pieces))  # pieces that nobody has ended
        self.queues = [()] * num_workers
        self.running = [NONE] * num_workers
        self.start_M, self.end_M = np.zeros(num_workers), np.full(num_workers, np.inf)
        self.free_M = np.zeros(num_workers)  # when each has ended what it did before
        self.dead = [False] * num_workers
        self.slowness_M = np.ones(num_workers)  # shown seconds over told ones
        self.ran: list[Ran] = []

    def view(self) -> View:
        """Return what a policy may know.

        A piece that has taken longer than expected is expected to take as long again as it
        is late.
        """
        seconds_NM = self.told_NM * self.slowness_M
        ready_M = np.maximum(self.free_M - self.now, 0.0)
        for worker, piece in enumerate(self.running):
            if self.dead[worker]:
                ready_M[worker] = np.inf
            elif piece != NONE:
                due = self.start_M[worker] + seconds_NM[piece, worker]
                ready_M[worker] = abs(due - self.now)
        taken = {*self.running, *(piece for queue in self.queues for piece in queue)}
        pool = tuple(sorted(self.left - taken))
        return View(seconds_NM, pool, tuple(self.queues), tuple(self.running), ready_M)

    def begin(self, busy: Collection[int] = ()) -> list[tuple[int, int]]:
        """Let each worker that runs nothing begin the first piece of its queue.

        Return (worker, piece) of those that begin. `busy` workers still do something else.
        """
        begun = []
        for worker, queue in enumerate(self.queues):
            runs = self.running[worker] != NONE or worker in busy or self.dead[worker]
            if queue and not runs:
                piece, *rest = queue
                self.queues[worker], self.running[worker] = tuple(rest), piece
                self.start_M[worker] = self.now
                begun.append((worker, piece))
        return begun

    def next_event(self) -> None:
        """Go on to the next end of a piece or death, and take in all of that moment."""
        deaths = {
            worker: trouble.at
            for worker, trouble in self.troubles.items()
            if math.isinf(trouble.factor) and not self.dead[worker]
        }
        self.now = min(self.end_M.min(), min(deaths.values(), default=math.inf))
        for worker in np.flatnonzero(self.end_M == self.now):
            self.ended(int(worker))
        for worker, at in deaths.items():
            if at == self.now:
                self.stop(worker, counts=False)
                self.dead[worker], self.queues[worker] = True, ()

    def ended(self, worker: int) -> None:
        """Note that a worker has ended its piece, which nobody needs to begin any more."""
        piece = self.running[worker]
        ratio = (self.now - self.start_M[worker]) / self.told_NM[piece, worker]
        self.slowness_M[worker] += RECENT * (ratio - self.slowness_M[worker])
        self.stop(worker, counts=piece in self.left)
        self.left.discard(piece)
        self.queues = [tuple(p for p in q if p != piece) for q in self.queues]

    def lost(self, worker: int) -> None:
        """Note that what a worker runs is lost; the worker is there and begins it anew."""
        piece = self.running[worker]
        self.running[worker] = NONE
        if piece in self.left:
            self.queues[worker] = (piece, *self.queues[worker])

    def stop(self, worker: int, counts: bool) -> None:
        if (piece := self.running[worker]) != NONE:
            start = float(self.start_M[worker])
            self.ran.append(Ran(piece, worker, start, float(self.now), counts))
        self.running[worker], self.end_M[worker] = NONE, np.inf


def simulate(
    policy: Policy,
    told_NM: np.ndarray,
    actual_NM: np.ndarray,
    troubles: Mapping[int, Trouble] | None = None,
) -> list[Ran]:
    """Return what ran where and when, until each piece has ended once.

    `told_NM` are the seconds of each piece on each worker that the policy is told. Raises
    RuntimeError if the policy leaves pieces undone, ValueError if all workers are dead.
    """
    workers = Workers(told_NM, troubles or {})
    while workers.left:
        workers.queues = list(policy(workers.view()))
        for worker, piece in workers.begin():
            trouble = workers.troubles.get(worker)
            end = end_of(workers.now, actual_NM[piece, worker], trouble)
            workers.end_M[worker] = end
        if max(workers.running) == NONE:
            raise RuntimeError(
                f"the policy leaves the pieces {sorted(workers.left)} undone"
            )
        workers.next_event()
    return workers.ran


def makespan(ran: list[Ran]) -> float:
    """Return the seconds until the last piece has ended."""
    return max(each.end for each in ran if each.counts)
