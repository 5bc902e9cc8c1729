"""The search for a member's values: a walk over ladders, which any lines so far determine.

A point is a tuple of rungs, one of each tuned field; the beginning is rung 0 of all. The
next point is the nearest one to the best that was not tried: a rung up or down of one
field, the learning rate first, then of two. A search that was stopped goes on where it was.
Every member has TRIALS trials, and goes on while its best lies at an end of what was
tried, but has at most MOST. With 4 and 8 islands it begins from what it found with 2, at
another size from what it found at the next one, and only the learning rate is tuned.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from configs.sweeps.combine import Member
from experiments.studies.league.members import Dim, origins

Point = tuple[int, ...]
Tried = Mapping[Point, float | None]  # the loss; None: not finite


class Length(NamedTuple):
    least: int  # trials
    most: int


WHOLE, AGAIN = Length(8, 14), Length(3, 6)


def length_of(size: str, islands: int) -> Length:
    return AGAIN if origins(size, islands) else WHOLE


def loss_at(tried: Tried, point: Point) -> float:
    loss = tried[point]
    return math.inf if loss is None else loss


def best_of(tried: Tried) -> Point:
    """Return the point of the lowest loss, the first of equal ones."""
    return min(tried, key=lambda point: loss_at(tried, point))


def following(dims: Sequence[Dim], tried: Tried, length: Length = WHOLE) -> Point | None:
    """Return the next point to try; None: the search has ended."""
    if not tried:
        return (0,) * len(dims)
    best = best_of(tried)
    if len(tried) >= length.most:
        return None
    if len(tried) < length.least:
        return next(point for point in around(dims, best) if point not in tried)
    return next(beyond(dims, tried, best), None)


def beyond(dims: Sequence[Dim], tried: Tried, best: Point) -> Iterator[Point]:
    """Yield the points beside the best in the fields at whose ends it lies."""
    for index, dim in enumerate(dims):
        rungs = [point[index] for point in tried]
        for end, step in ((max(rungs), 1), (min(rungs), -1)):
            point = moved(best, index, step)
            if best[index] == end and dim.exists(point[index]) and point not in tried:
                yield point


def around(dims: Sequence[Dim], best: Point) -> Iterator[Point]:
    """Yield points by their distance from the best, changes of the first field first."""
    for distance in itertools.count(1):
        found = [
            change
            for change in itertools.product(
                range(-distance, distance + 1), repeat=len(dims)
            )
            if sum(map(abs, change)) == distance
        ]
        # Of one field before of two; of the first before of the last; up before down.
        found.sort(key=lambda change: (*(x == 0 for x in change), [-x for x in change]))
        for change in sorted(found, key=lambda change: sum(x != 0 for x in change)):
            point = tuple(x + y for x, y in zip(best, change, strict=True))
            if all(dim.exists(rung) for dim, rung in zip(dims, point, strict=True)):
                yield point


def moved(point: Point, index: int, step: int) -> Point:
    return (*point[:index], point[index] + step, *point[index + 1 :])


def values_at(dims: Sequence[Dim], point: Point) -> Member:
    """Return the values of the tuned fields at a point."""
    return {dim.field: dim.value(rung) for dim, rung in zip(dims, point, strict=True)}


def at_an_end(dims: Sequence[Dim], tried: Tried) -> list[str]:
    """Return the fields at whose ends the best lies, after the last trial."""
    found = beyond(dims, tried, best := best_of(tried))
    changed = [
        next(i for i, (x, y) in enumerate(zip(point, best, strict=True)) if x != y)
        for point in found
    ]
    return [dims[index].field for index in dict.fromkeys(changed)]
