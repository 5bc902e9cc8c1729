"""The tables of docs/links.md, from the results of experiments.studies.links."""

import statistics
from collections.abc import Iterable

from configs.sweeps.strategies import BASE
from experiments.studies.links.cells import FITTED, RTTS, TIMED, TIMED_EVERY, Cell
from experiments.studies.links.model import AlphaBeta, fit, pays_at
from experiments.sweeps.results import Line
from experiments.sweeps.rows import reached
from experiments.sweeps.tables import digits, markdown

SHOWN = 220  # characters of a message
Seconds = dict[str, dict[Cell, float]]  # member -> cell -> seconds of a step


def cell_of(line: Line) -> Cell:
    return Cell(*(line[name] for name in Cell._fields))


def own_every(line: Line) -> int:
    """Return the steps between two meetings of a local method; 0 for the others."""
    return TIMED[line["member"]].get("parallel.local.every", 0)


def step_seconds(line: Line) -> float:
    """Return the seconds of a step; a local method's, averaged over its own H steps."""
    every = own_every(line)
    if not every:
        return statistics.median(line["seconds"])
    *alone, meeting = line["seconds"][-TIMED_EVERY:]
    usual = statistics.median(alone)
    return usual + max(meeting - usual, 0.0) / every


def ledger_bytes(line: Line) -> float:
    """Return what a process sends in a step; a local method's, averaged over H steps."""
    every = own_every(line)
    return line["ledger_bytes"] * (TIMED_EVERY / every if every else 1)


def by_member(lines: list[Line], congestion: str) -> Seconds:
    """Take the lines of one control of congestion."""
    found: Seconds = {}
    for line in lines:
        if line["congestion"] != congestion:
            continue
        found.setdefault(line["member"], {})[cell_of(line)] = step_seconds(line)
    return {name: found[name] for name in TIMED if name in found}


def link_tables(lines: list[Line], curves: list[Line]) -> dict[str, str]:
    """Return the tables by name; without results they are empty but for their heads.

    All but that of losses are of the control of congestion that the first line has.
    """
    members = [line for line in lines if "member" in line]
    controls = list(dict.fromkeys(line["congestion"] for line in members))
    by_control = {name: by_member(members, name) for name in controls}
    timed = by_control[controls[0]] if controls else {}
    checks = [line for line in lines if "check" in line]
    sent = {line["member"]: ledger_bytes(line) for line in members}
    return {
        "emulator": check_table(checks),
        "links-far": far_table(timed),
        "links-rate": rate_table(timed),
        "links-loss": loss_table(by_control),
        "links-some": some_table(timed),
        "links-model": model_table(timed, sent),
        "links-to-loss": to_loss_table(timed, curves),
    }


def check_table(lines: list[Line]) -> str:
    last = {(line["check"], line["ideal"]): line for line in lines}
    body = [
        [what, "" if ideal is None else f"{ideal:g}", f"{line['found']:g}"]
        + ["yes" if line["fits"] else "NO"]
        for (what, ideal), line in last.items()
    ]
    return markdown(["", "asked for", "found", "within bounds"], body)


def grid_table(timed: Seconds, cells: Iterable[Cell], heads: list[str]) -> str:
    """Tabulate the seconds of a step of each member, a column for each cell."""
    cells = list(cells)
    body = [
        [name, *(digits(found[cell]) if cell in found else "" for cell in cells)]
        for name, found in timed.items()
        if any(cell in found for cell in cells)
    ]
    return markdown(["", *heads], body)


def far_table(timed: Seconds) -> str:
    cells = [Cell("all", rtt, 0, 0) for rtt in RTTS]
    return grid_table(timed, cells, [f"{rtt} ms" for rtt in RTTS])


def rate_table(timed: Seconds) -> str:
    pairs = [(0, 100), (0, 10), (50, 0), (50, 100), (50, 10), (150, 10)]
    cells = [Cell("all", rtt, rate, 0) for rtt, rate in pairs]
    heads = [f"{rtt} ms, {f'{rate} Mbit/s' if rate else 'no limit'}" for rtt, rate in pairs]
    return grid_table(timed, cells, heads)


def loss_table(by_control: dict[str, Seconds]) -> str:
    pairs = [(rtt, loss) for rtt in (10, 50, 150) for loss in (0, 0.1, 1)]
    cells = [Cell("all", rtt, 0, loss) for rtt, loss in pairs]
    timed = {
        f"{member}, {control}": found
        for control, members in by_control.items()
        for member, found in members.items()
    }
    return grid_table(timed, cells, [f"{rtt} ms, {loss:g} %" for rtt, loss in pairs])


def some_table(timed: Seconds) -> str:
    """Compare the same link everywhere, at one pair of four hosts, and between groups."""
    shown = {
        "one, 50 ms": Cell("one", 50, 0, 0),
        "one, 50 ms, 1 %": Cell("one", 50, 0, 1),
        "all, 50 ms, 1 %": Cell("all", 50, 0, 1),
        "groups, 50 ms": Cell("between", 50, 0, 0),
        "groups, 50 ms, 100 Mbit/s": Cell("between", 50, 100, 0),
        "groups, 10 Mbit/s": Cell("between", 0, 10, 0),
    }
    return grid_table(timed, shown.values(), list(shown))


def models(timed: Seconds) -> dict[str, AlphaBeta]:
    """Fit the model of each member for which all cells to fit are there."""
    return {
        name: fit({cell: found[cell] for cell in FITTED})
        for name, found in timed.items()
        if all(cell in found for cell in FITTED)
    }


def model_table(timed: Seconds, sent: dict[str, float]) -> str:
    """Tabulate the model of each member, and its error on cells that it did not see."""
    body = []
    for name, model in models(timed).items():
        others = {
            cell: seconds
            for cell, seconds in timed[name].items()
            if cell not in FITTED and cell.where == "all" and not cell.loss
        }
        errors = [abs(model.step(cell) / others[cell] - 1) for cell in others]
        shown = [f"{100 * f(errors):.0f}%" for f in (statistics.median, max) if errors]
        body.append(
            [name, digits(model.seconds), f"{model.round_trips:.1f}"]
            + [digits(model.sent_bytes / 1e6), digits(sent[name] / 1e6)]
            + [str(len(errors)), *(shown or ["", ""])]
        )
    head = ["", "c, s", "k", "bytes, MB", "ledger, MB", "other cells"]
    return markdown([*head, "median error", "largest"], body)


def to_loss_table(timed: Seconds, curves: list[Line]) -> str:
    """Multiply the steps to a loss by the seconds of a step, for two losses.

    One loss is reached by all members; the other is the median of the members' best.
    """
    by_name = {x["member"]: x["curve"] + [[x["steps"], x["loss"]]] for x in curves}
    curves_of = {name: by_name[name] for name in timed if name in by_name}
    best = [min(loss for _, loss in curve) for curve in curves_of.values()]
    targets = {max(best), statistics.median_high(best)} if best else set()
    return "\n\n".join(
        f"To a validation loss of {target:.3f}:\n\n"
        + seconds_table(timed, {n: reached(c, target) for n, c in curves_of.items()})
        for target in sorted(targets, reverse=True)
    )


def seconds_table(timed: Seconds, steps: dict[str, float | None]) -> str:
    """Tabulate the seconds of so many steps; the last column follows from the model."""
    shown = {
        "0 ms": Cell("all", 0, 0, 0),
        "100 Mbit/s": Cell("all", 0, 100, 0),
        "10 Mbit/s": Cell("all", 0, 10, 0),
        "50 ms": Cell("all", 50, 0, 0),
        "50 ms, 10 Mbit/s": Cell("all", 50, 10, 0),
    }
    fitted, body = models(timed), []
    for name in (name for name in steps if steps[name] is not None):
        found = timed[name]
        cells = [
            f"{steps[name] * found[c]:.0f}" if c in found else "" for c in shown.values()
        ]
        pays = ""
        if name != BASE and {name, BASE} <= fitted.keys():
            pays = pays_at(fitted[name], steps[name], fitted[BASE], steps[BASE])
        body.append([name, f"{steps[name]:.0f}", *cells, pays])
    heads = [f"seconds, {head}" for head in shown]
    return markdown(["", "steps", *heads, "pays at, Mbit/s"], body)


def partition_table(lines: list[Line]) -> str:
    """Tabulate when each process ended after a cut, and what the first of them said."""
    body = []
    for line in lines:
        fates = [
            "waits" if seconds is None else f"ends after {seconds:.0f} s"
            for seconds in line["ended"]
        ]
        if line["more_steps"] > 1:  # one may have been under way
            fates = ["goes on" if fate == "waits" else fate for fate in fates]
        ended = [i for i, seconds in enumerate(line["ended"]) if seconds is not None]
        first = min(ended, key=lambda i: line["ended"][i], default=None)
        said = "" if first is None else line["said"][first][:SHOWN]
        settings = [line[name] for name in ("strategy", "deadline", "jax", "cut")]
        body.append([*settings, *fates, said])
    hosts = [f"process {i}" for i in range(len(lines[0]["ended"]) if lines else 0)]
    return markdown(
        ["", "deadline, s", "JAX", "cut between", *hosts, "the first to end says"], body
    )
