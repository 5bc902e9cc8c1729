"""The tables of uneven workers."""

import itertools
import math
import statistics

from experiments.studies.asynchronous.members import MERGES, MODES, SLOW, SYNC
from experiments.studies.asynchronous.rates import best_place, place
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown

NONE = "Not measured yet."


def speed_table(lines: list[Line]) -> str:
    """Show numbers a second, and when a run first has the loss at the end of sync.

    Of the longest runs, those in which no step took longer than it should; of steps of
    several lengths, the longest.
    """
    lines = longest(lines, "speed")
    floor = max((x["floor"] for x in lines), default=0)
    lines = [x for x in lines if x["floor"] == floor and x["most_filled"] <= 1]
    if not lines:
        return NONE
    found = {mode: [x for x in lines if x["mode"] == mode] for mode in MODES}
    rates = {
        mode: statistics.median(x["numbers_per_second"] for x in of)
        for mode, of in found.items()
        if of
    }
    nobody_waits = sum(1 / x for x in SLOW)
    ideal = {"sync": len(SLOW) / max(SLOW), "async": nobody_waits, "by speed": nobody_waits}
    body = [
        [
            mode,
            len(found[mode]),
            f"{rate:.3g}",
            f"{rate / rates['sync']:.3g}" if "sync" in rates else "",
            f"{ideal[mode] / ideal['sync']:.3g}" if mode in ideal else "",
            f"{statistics.fmean(x['loss'] for x in found[mode]):.4f}",
            time_to(found[mode], found[SYNC]),
        ]
        for mode, rate in rates.items()
    ]
    head = (
        "mode", "runs", "numbers a second", "over sync", "ideal", "validation loss",
        "time to the loss of sync, over sync",
    )  # fmt: skip
    return markdown(head, body)


def islands_table(lines: list[Line]) -> str:
    """Show each way to merge at its best outer rate, by tokens, by updates and by time."""
    lines = longest(lines, "islands")
    if not lines:
        return NONE
    best = {merge: at_best(lines, merge) for merge in MERGES}
    best = {merge: found for merge, found in best.items() if found}
    body = []
    for merge, found in best.items():
        losses = [x["loss"] for x in found]
        sync = best.get(SYNC)
        body.append(
            [
                merge,
                len(found),
                f"{found[0]['rate']:g}" + edge(lines, merge),
                f"{statistics.fmean(losses):.4f}",
                f"{statistics.fmean(x['updates'] for x in found):.0f}",
                f"{found[0]['now'] / sync[0]['now']:.3g}" if sync else "",
                time_to(found, sync) if sync else "",
            ]
        )
    head = (
        "merge", "runs", "outer rate", "validation loss", "updates",
        "time for the numbers, over sync", "time to the loss of sync, over sync",
    )  # fmt: skip
    return markdown(head, body)


def longest(lines: list[Line], part: str) -> list[Line]:
    """Return the lines of a part whose runs are the longest."""
    lines = [x for x in lines if x["part"] == part]
    steps = max((x["steps"] for x in lines), default=0)
    return [x for x in lines if x["steps"] == steps]


def tried(lines: list[Line], merge: str) -> dict[int, float]:
    """Return the loss of the first seed at each place that was tried."""
    return {
        place(x["rate"]): x["loss"] for x in lines if (x["member"], x["seed"]) == (merge, 0)
    }


def at_best(lines: list[Line], merge: str) -> list[Line]:
    """Return the lines of all seeds at the best outer rate, the first seed first."""
    found = tried(lines, merge)
    if not found:
        return []
    best = best_place(found)
    mine = [x for x in lines if x["member"] == merge and place(x["rate"]) == best]
    return sorted(mine, key=lambda x: x["seed"])


def edge(lines: list[Line], merge: str) -> str:
    found = tried(lines, merge)
    return " (an edge)" if best_place(found) in (min(found), max(found)) else ""


def time_to(found: list[Line], sync: list[Line]) -> str:
    """Return when a run first has the loss at the end of sync, as a share of that time.

    It is the mean over the seeds that both have; between two points the loss is straight.
    Lines without a curve tell nothing.
    """
    ends = {x["seed"]: x for x in sync if "curve" in x}
    shares = [
        reached([*x["curve"], x], ends[x["seed"]]["loss"]) / ends[x["seed"]]["now"]
        for x in found
        if x["seed"] in ends and "curve" in x
    ]
    if not shares:
        return ""
    mean = statistics.fmean(shares)
    return f"{mean:.3g}" if math.isfinite(mean) else "not reached"


def reached(points: list[Line], loss: float) -> float:
    """Return when the loss of a curve first is as low as this; infinity: never."""
    if points[0]["loss"] <= loss:
        return points[0]["now"]
    for before, after in itertools.pairwise(points):
        if after["loss"] <= loss:
            share = (before["loss"] - loss) / (before["loss"] - after["loss"])
            return before["now"] + share * (after["now"] - before["now"])
    return math.inf


def seconds_table(lines: list[Line]) -> str:
    """Show numbers a second of islands, of the runs in which no push took too long."""
    lines = [x for x in longest(lines, "seconds") if x["most_filled"] <= 1]
    if not lines:
        return NONE
    rates = {x["member"]: x["numbers_per_second"] for x in lines}
    ideal = sum(1 / x for x in SLOW) / (len(SLOW) / max(SLOW))
    body = [
        [
            merge,
            f"{rates[merge]:.3g}",
            f"{rates[merge] / rates[SYNC]:.3g}" if SYNC in rates else "",
            f"{ideal:.3g}" if merge != SYNC else "1",
        ]
        for merge in MERGES
        if merge in rates
    ]
    head = ("merge", "numbers a second", "over sync", "if nobody waits")
    return markdown(head, body)
