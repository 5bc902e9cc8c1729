"""Which learning rate to try next: the same number for each member, and more at an edge.

Rates lie on a grid, each twice the one before. A member is tried at `TRIALS` of them around
its own middle. While its best is the first or the last that was tried, the search goes on
to that side. A loss that is not finite is worse than any other.
"""

import math
import pathlib
from collections.abc import Callable, Mapping

from experiments.sweeps.results import Line, measure_missing, read

TRIALS = 5
MOST = 15  # trials of a member; a search that goes on for so long has no best rate
STEP = 2.0


def place(rate: float) -> int:
    """Return the place on the grid that is nearest to a rate."""
    return round(math.log(rate, STEP))


def rate_of(place: int) -> float:
    return STEP**place


def next_place(
    losses: Mapping[int, float], middle: int, trials: int = TRIALS
) -> int | None:
    """Return the place to try next, given the losses at some; None: the best is known."""
    first = middle - trials // 2
    for wanted in range(first, first + trials):
        if wanted not in losses:
            return wanted
    best, lowest, highest = best_place(losses), min(losses), max(losses)
    if len(losses) >= MOST or lowest < best < highest:
        return None
    return lowest - 1 if best == lowest else highest + 1


def best_place(losses: Mapping[int, float]) -> int:
    """Return the place of the lowest loss, of equal ones the lowest place."""

    def key(place: int) -> tuple[float, int]:
        loss = losses[place]
        return (loss if math.isfinite(loss) else math.inf), place

    return min(losses, key=key)


def tune(
    file: pathlib.Path,
    head: Callable[[float, int], Line],
    measure: Callable[[Line], Line],
    middle: int,
    seeds: int,
    trials: int = TRIALS,
) -> None:
    """Train at all rates that the search asks for, then the other seeds at the best.

    `head` makes of a rate and a seed what tells a run from others; it has both of them.
    What `measure` returns has a `loss`. Lines that `file` has are not measured again.
    """
    while True:
        tried = tuning(read(file), head)
        wanted = next_place(tried, middle, trials)
        if wanted is None:
            break
        measure_missing(file, [head(rate_of(wanted), 0)], measure)
    best = rate_of(best_place(tried))
    measure_missing(file, [head(best, seed) for seed in range(1, seeds)], measure)


def tuning(lines: list[Line], head: Callable[[float, int], Line]) -> dict[int, float]:
    """Return the loss of the first seed at each place that was tried."""
    return {
        place(line["rate"]): line["loss"]
        for line in lines
        if "rate" in line and head(line["rate"], 0).items() <= line.items()
    }
