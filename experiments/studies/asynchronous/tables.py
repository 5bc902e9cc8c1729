"""The tables of stale pushes and of uneven workers."""

import statistics

from experiments.studies.asynchronous.members import METHODS, MODES, RATES, SLOW, STALENESS
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown

NONE = "Not measured yet."


def staleness_table(lines: list[Line]) -> str:
    """Show the loss of each method at its best rate; an edge of the rates is marked."""
    lines = [x for x in lines if x["part"] == "staleness"]
    if not lines:
        return NONE
    body = [
        [method, *(best(lines, method, staleness) for staleness in STALENESS)]
        for method in METHODS
    ]
    return markdown(["", *(f"staleness {x}" for x in STALENESS)], body)


def best(lines: list[Line], method: str, staleness: int) -> str:
    found = {}
    for rate in RATES:
        of = [
            x["loss"]
            for x in lines
            if (x["method"], x["staleness"], x["rate"]) == (method, staleness, rate)
        ]
        if of:
            found[rate] = statistics.fmean(of)
    if not found:
        return ""
    rate = min(found, key=found.get)
    edge = "; an edge" if rate in (min(RATES), max(RATES)) else ""
    return f"{found[rate]:.4f} (rate {rate:g}{edge})"


def speed_table(lines: list[Line]) -> str:
    """Show numbers a second, of the runs in which no step took longer than it should."""
    lines = [x for x in lines if x["part"] == "speed" and x["most_filled"] <= 1]
    if not lines:
        return NONE
    found = {mode: [x for x in lines if x["mode"] == mode] for mode in MODES}
    rates = {
        mode: statistics.median(x["numbers_per_second"] for x in of)
        for mode, of in found.items()
        if of
    }
    ideal = {"sync": 1 / max(SLOW) * len(SLOW), "async": sum(1 / x for x in SLOW)}
    body = [
        [
            mode,
            len(found[mode]),
            f"{rate:.3g}",
            f"{rate / rates['sync']:.3g}" if "sync" in rates else "",
            f"{ideal[mode] / ideal['sync']:.3g}" if mode in ideal else "",
            f"{statistics.fmean(x['loss'] for x in found[mode]):.4f}",
        ]
        for mode, rate in rates.items()
    ]
    head = ("mode", "runs", "numbers a second", "over sync", "ideal", "validation loss")
    return markdown(head, body)
