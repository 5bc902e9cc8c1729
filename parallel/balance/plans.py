"""Plans: all pieces are dealt at once, from the seconds that each is expected to take.

The four that place each piece where it ends first (minimum completion time, min-min,
max-min, sufferage) end after at most the sum of the pieces' least seconds, which is at most
M times the least possible (Ibarra and Kim 1977). Names and comparison: Braun et al. 2001,
"A comparison of eleven static heuristics"; sufferage: Maheswaran et al. 1999.

`seconds_KM` are the expected seconds of piece k on worker m, `ready_M` the seconds until
each worker is free, inf if it is dead. A plan is [(piece, worker), ...].
"""

import math
from collections.abc import Callable

import numpy as np

from parallel.balance.lists import balanced, longest_first
from parallel.balance.shares import shares
from parallel.balance.view import living

Dealt = list[tuple[int, int]]


def lengths(seconds_KM: np.ndarray, ready_M: np.ndarray) -> np.ndarray:
    """Return how long each piece is: its mean seconds over the living workers."""
    return seconds_KM[:, living(ready_M)].mean(1)


def static(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Give each worker the same number of pieces that follow each other."""
    alive = living(ready_M)
    parts = np.array_split(np.arange(len(seconds_KM)), len(alive))
    return [(int(k), w) for w, part in zip(alive, parts, strict=True) for k in part]


def round_robin(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Deal the pieces to the workers in turn, as cards are dealt."""
    alive = living(ready_M)
    return [(k, alive[k % len(alive)]) for k in range(len(seconds_KM))]


def grid(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Arrange workers in columns by length of piece, and in rows by sample.

    A column has the pieces of about one length, so that little of a batch is padding. Each
    column has about the same sum of lengths, and deals its pieces in turn to its rows.
    """
    alive = living(ready_M)
    num_rows = max(r for r in range(1, math.isqrt(len(alive)) + 1) if len(alive) % r == 0)
    num_columns = len(alive) // num_rows
    work = lengths(seconds_KM, ready_M)
    order = longest_first(work.tolist())
    middle = np.cumsum(work[order]) - work[order] / 2
    columns = np.minimum(middle / work.sum() * num_columns, num_columns - 1).astype(int)
    dealt, turns = [], [0] * num_columns
    for k, column in zip(order, columns.tolist(), strict=True):
        row = turns[column] % num_rows
        turns[column] += 1
        dealt.append((k, alive[column * num_rows + row]))
    return dealt


def in_order(order: list[int], seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Give one piece after the other to the worker that would end it first."""
    ready_M, dealt = ready_M.copy(), []
    for k in order:
        worker = int(np.argmin(ready_M + seconds_KM[k]))
        ready_M[worker] += seconds_KM[k, worker]
        dealt.append((k, worker))
    return dealt


def minimum_completion_time(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Give the pieces by their numbers, each to the worker that would end it first.

    On equal workers this is list scheduling: at most 2 - 1/M times the least possible
    (Graham 1966).
    """
    return in_order(list(range(len(seconds_KM))), seconds_KM, ready_M)


def longest_processing_time(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Do the same, the longest piece first.

    On equal workers, at most 4/3 - 1/(3M) times the least possible (Graham 1969); on
    workers of different speeds, at most 2M/(M + 1) times (Gonzalez et al. 1977).
    """
    order = longest_first(lengths(seconds_KM, ready_M).tolist())
    return in_order(order, seconds_KM, ready_M)


def one_by_one(choose: Callable[[np.ndarray], int]) -> Callable:
    """Return a plan that again and again takes one of the pieces that are left.

    `choose` is given when each piece that is left would end on each living worker, and
    returns the place of one. The piece goes where it ends first.
    """

    def plan(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
        alive = living(ready_M)
        seconds_KA, ready_A = seconds_KM[:, alive], ready_M[alive]
        left, dealt = list(range(len(seconds_KM))), []
        while left:
            ends = ready_A + seconds_KA[left]
            place = choose(ends)
            worker = int(np.argmin(ends[place]))
            ready_A[worker] = ends[place, worker]
            dealt.append((left.pop(place), alive[worker]))
        return dealt

    return plan


def suffers(ends: np.ndarray) -> int:
    """Choose the piece that would lose the most if it did not get its best worker."""
    if ends.shape[1] == 1:
        return 0
    two = np.partition(ends, 1, axis=1)
    return int(np.argmax(two[:, 1] - two[:, 0]))


min_min = one_by_one(lambda ends: int(np.argmin(ends.min(1))))
max_min = one_by_one(lambda ends: int(np.argmax(ends.min(1))))
sufferage = one_by_one(suffers)


def by_speed(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Give each worker pieces that follow each other, as many as its speed allows.

    Only the workers' mean seconds count, not those of each piece.
    """
    alive = living(ready_M)
    counts = shares(len(seconds_KM), seconds_KM[:, alive].mean(0), ready_M[alive])
    return list(enumerate(np.repeat(alive, counts).tolist()))


def by_length(seconds_KM: np.ndarray, ready_M: np.ndarray) -> Dealt:
    """Give each worker the same sum of lengths, as if all were equally fast."""
    alive = living(ready_M)
    work = lengths(seconds_KM, ready_M).tolist()
    workers = balanced(work, len(alive))
    return [(k, alive[workers[k]]) for k in longest_first(work)]
