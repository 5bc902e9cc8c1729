"""Tables from the results of experiments.studies.wire and slow_link."""

import statistics
from collections.abc import Sequence

import numpy as np

from configs.sweeps.strategies import BASE, MEMBERS
from experiments.sweeps.results import Line
from experiments.sweeps.rows import reached
from experiments.sweeps.tables import markdown

SEGMENT = 1448  # bytes of a TCP segment's payload
TIMED_EVERY = 4  # H at which members that average every H steps are timed


def wire_table(lines: list[Line]) -> str:
    """Compare the ledger's bytes with the bytes that an interface counted."""
    head = (
        *("", "processes", "ledger", "interface", "ratio"),
        *("packets", "segments sent again", "without both"),
    )
    body = []
    for x in lines:
        ledger, sent, packets = x["ledger_bytes"], x["sent_bytes"], x["sent_packets"]
        once = sent - x["headers"] * packets - SEGMENT * x["resent_segments"]
        cells = [x["member"], x["hosts"], f"{ledger:,.0f}", f"{sent:,}"]
        cells += [f"{sent / ledger:.3f}", f"{packets:,}", x["resent_segments"]]
        body.append([*cells, f"{once / ledger:.3f}"])
    return markdown(head, body)


def step_seconds(line: Line) -> float:
    """Return the mean seconds of a step, with meetings at the member's own H."""
    every = MEMBERS[line["member"]].get("parallel.local.every", 0)
    if not every:
        return statistics.median(line["seconds"])
    meeting = statistics.median(line["seconds"][TIMED_EVERY - 1 :: TIMED_EVERY])
    alone = statistics.median(
        x for i, x in enumerate(line["seconds"], 1) if i % TIMED_EVERY
    )
    return alone + (meeting - alone) / every


def crossing(rates: Sequence[float], ratios: Sequence[float]) -> str:
    """Return the rate below which a ratio of seconds to the base's is under 1."""
    order = np.argsort(rates)[::-1]  # fast links first
    for fast, slow in zip(order, order[1:], strict=False):
        if ratios[fast] >= 1 > ratios[slow]:
            share = np.log(ratios[fast]) / np.log(ratios[fast] / ratios[slow])
            log_rate = (1 - share) * np.log(rates[fast]) + share * np.log(rates[slow])
            return f"{np.exp(log_rate):.3g}"
    return "always" if ratios[order[0]] < 1 else "never here"


def slow_link_table(lines: list[Line], curves: list[Line]) -> str:
    """Tabulate each member's seconds at each rate, to two losses.

    One loss is reached by all members; the other is the median of the members' best.
    """
    by_member = {x["member"]: x["curve"] + [[x["steps"], x["loss"]]] for x in curves}
    timed = {(x["member"], x["rate"]): step_seconds(x) for x in lines}
    members = [m for m in MEMBERS if m in by_member and any(m == x for x, _ in timed)]
    best = [min(loss for _, loss in by_member[m]) for m in members]
    need = {
        target: {m: reached(by_member[m], target) for m in members}
        for target in (max(best), statistics.median_high(best))
    }
    return "\n\n".join(
        f"To a validation loss of {target:.3f}:\n\n{seconds_table(timed, steps)}"
        for target, steps in need.items()
    )


def seconds_table(
    timed: dict[tuple[str, float], float], need: dict[str, float | None]
) -> str:
    """Tabulate seconds by rate; the last column is the rate below which a member pays."""
    rates = sorted({rate for _, rate in timed}, key=lambda rate: rate or np.inf)[::-1]
    shown = [f"{rate:g} Mbit/s" if rate else "no limit" for rate in rates]
    body = []
    for m in (m for m in need if need[m] is not None):
        here = [rate for rate in rates if (m, rate) in timed and (BASE, rate) in timed]
        seconds = {rate: need[m] * timed[m, rate] for rate in here}
        shaped = [
            (rate, seconds[rate] / (need[BASE] * timed[BASE, rate]))
            for rate in here
            if rate
        ]
        cells = [f"{seconds[r]:.0f}" if r in seconds else "" for r in rates]
        pays = "" if m == BASE else crossing(*zip(*shaped, strict=True))
        body.append([m, f"{need[m]:.0f}", *cells, pays])
    return markdown(["", "steps", *shown, "pays below, Mbit/s"], body)
