"""The tables of docs/planner.md, from the lines of the benchmark."""

import itertools
import re
import statistics
from collections.abc import Callable, Iterable

import numpy as np

from experiments.studies.plan_accuracy import limits
from experiments.studies.plan_accuracy.grid import ABSENT, NUM_SEEN
from experiments.studies.plan_accuracy.maxtext import FITTED
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown
from parallel.cost.machine import GIB

NAMES = (
    "plan-compiled",
    "plan-tpu",
    "plan-fits",
    "plan-time",
    "plan-regret",
    "plan-speed",
    "plan-maxtext",
    "plan-device",
)
SPREAD = 0.2  # between the best and the median plan of a case that counts
PARTS = ("timed", "speed", "compiled", "tpu", "limit", "absent", "maxtext")
DEVICE = ("device", "device machine")  # measured where there is a GPU or TPU
NEAR = 0.15  # of the limit
# What the compiler says of a program that is too large, beside its arguments.
TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)G\)")


def tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables by name; cells that failed have no part in them."""
    by: dict[str, list[Line]] = {part: [] for part in (*PARTS, "machine", *DEVICE)}
    for line in lines:
        if "error" not in line:
            by[line["part"]].append(line)
    return {
        "plan-compiled": compiled_table(by["compiled"]),
        "plan-tpu": tpu_table(by["tpu"], by["absent"], by["limit"]),
        "plan-fits": fits_table(by["tpu"] + by["absent"] + by["limit"]),
        "plan-time": time_table(by["timed"]),
        "plan-regret": regret_table(by["timed"]),
        "plan-speed": speed_table(by["speed"]),
        "plan-maxtext": maxtext_table(by["maxtext"]),
        "plan-device": device_table(by["device"]),
    }


def errors(lines: Iterable[Line], planned: str, found: str) -> list[float]:
    return [x[planned] / x[found] - 1 for x in lines if x.get(found)]


def quantiles(found: list[float]) -> list[str]:
    """Return the median, the 95th percentile and the largest of the sizes of errors."""
    if not found:
        return ["not measured"] * 3
    sizes = np.abs(found)
    return [f"{x:.1%}" for x in (np.median(sizes), np.quantile(sizes, 0.95), sizes.max())]


LARGE = 100e6  # parameters, from which the error of the memory has an aim
HEAD = ("", "cells", "median error", "95th percentile", "largest")


def compiled_table(lines: list[Line]) -> str:
    """Compare bytes by strategy, then state and temporaries of all cells."""
    rows = []
    for (name,), group in cells_of(lines, lambda x: (x["strategy"],)).items():
        found = quantiles(errors(group, "planned_sent", "sent"))
        most = max(abs(x["planned_sent"] - x["sent"]) for x in group)
        rows.append([f"bytes sent, {name}", len(group), *found, f"{most:,.0f}"])
    for name, key in {"state": "state", "temporaries": "temporary"}.items():
        found = quantiles(errors(lines, f"planned_{key}", key))
        rows.append([f"{name}, all strategies", len(lines), *found, ""])
    return markdown((*HEAD, "largest, bytes"), rows)


def tpu_table(lines: list[Line], absent: list[Line], limit: list[Line]) -> str:
    """Compare memory; `absent` are models of a few layers, some of them held out."""
    every = [*lines, *absent, *limit]
    large = [line for line in every if line["parameters"] >= LARGE]
    groups: dict[str, list[Line]] = {
        "all of 100 M parameters or more": large,
        "results/tpu.jsonl": lines,
    }
    for line in lines:
        groups.setdefault(line["model"], []).append(line)
    seen = [(model, overrides) for model, overrides in ABSENT[:NUM_SEEN]]
    for line in absent:
        known = (line["model"], line["overrides"]) in seen
        name = "few layers, in sight" if known else "few layers, held out"
        groups.setdefault(name, []).append(line)
    for index, line in enumerate(limit):
        seen = index < limits.NUM_SEEN
        name = f"{line['model']}, in sight" if seen else "held out"
        groups.setdefault(f"in a loop, {name}", []).append(line)
    rows = []
    for name, group in groups.items():
        found = [x | {"needed": needed(x)} for x in group]
        known = errors(found, "planned_bytes", "needed")
        rows.append([name, len(known), *quantiles(known)])
    return markdown(HEAD, rows)


def fits_table(lines: list[Line]) -> str:
    def row(name: str, group: list[Line]) -> list:
        agree = sum(x["fits"] == x["planned_fits"] for x in group)
        share = f"{agree / len(group):.0%}" if group else "not measured"
        return [name, len(group), agree, share]

    looped = [x for x in lines if x["part"] == "limit"]
    held = looped[limits.NUM_SEEN :]
    groups = {"all": lines, "in a loop": looped, "in a loop, held out": held}
    rows = []
    for name, group in groups.items():
        rows.append(row(name, group))
        rows.append(row("of these, near the limit", list(filter(is_near, group))))
    table = markdown(("cells", "number", "agree", "share"), rows)
    wrong = [x for x in lines if x["fits"] != x["planned_fits"]]
    return "\n\n".join([table, *map(told_wrong, wrong)])


def told_wrong(line: Line) -> str:
    name = line.get("strategy") or line.get("member") or line["overrides"]
    found = f"takes {needed(line) / line['limit']:.1%}" if line["fits"] else "does not fit"
    return (
        f"Not agreed: {line['model']}, {name}, {line['topology']}: planned "
        f"{line['planned_bytes'] / line['limit']:.1%} of the memory, and it {found}."
    )


def is_near(line: Line) -> bool:
    """Tell whether a cell lies near its chip's memory, by the compiler's figure.

    By the plan's, where the compiler gives none.
    """
    return abs((needed(line) or line["planned_bytes"]) / line["limit"] - 1) <= NEAR


def needed(line: Line) -> float | None:
    """Return the bytes of a cell; of one that does not fit, if the compiler tells them.

    Where there is a loop, the peak: what is allocated in all is more. The temporaries that
    do not fit are told with the results, which would lie where the arguments lie.
    """
    told = TEMPORARIES.search(line.get("said", ""))
    return float(told[1]) * GIB if told else line.get("peak", line["bytes"])


def cells_of(lines: list[Line], key: Callable[[Line], tuple]) -> dict[tuple, list[Line]]:
    found: dict[tuple, list[Line]] = {}
    for line in lines:
        found.setdefault(key(line), []).append(line)
    return found


def same_program(x: Line) -> tuple:
    return x["shape"], x["rate"], x["plan"]


def time_table(lines: list[Line]) -> str:
    """Compare seconds at each rate of the link, then of all cells."""
    groups = {"all": lines}
    for (rate,), group in sorted(cells_of(lines, lambda x: (x["rate"],)).items()):
        groups[rate_name(rate)] = group
    rows = []
    for name, group in groups.items():
        found = quantiles(errors(group, "planned_seconds", "seconds"))
        rows.append([f"planned, {name}", len(group), *found])
        pairs = noise(group)
        rows.append([f"the same measured twice, {name}", len(pairs), *quantiles(pairs)])
    return markdown(HEAD, rows)


def rate_name(rate: float) -> str:
    return f"{rate:g} Mbit/s" if rate else "no limit"


def noise(lines: list[Line]) -> list[float]:
    """Return how two measurements of a cell differ, as a share of the second."""
    return [
        a["seconds"] / b["seconds"] - 1
        for group in cells_of(lines, same_program).values()
        for a, b in itertools.combinations(group, 2)
    ]


def regret_table(lines: list[Line]) -> str:
    """List the cases whose plans differ, and how much slower the chosen one is.

    A case with fewer measured programs than the others is not complete, and left out.
    """
    rows, regrets = [], []
    cases = {
        case: cells_of(group, same_program)
        for case, group in cells_of(lines, lambda x: (x["shape"], x["rate"])).items()
    }
    whole = max(map(len, cases.values()), default=0)
    for (shape, rate), programs in sorted(cases.items()):
        if len(programs) < whole:
            continue
        seconds = {
            key: statistics.mean(x["seconds"] for x in g) for key, g in programs.items()
        }
        best, middle = min(seconds.values()), statistics.median(seconds.values())
        if middle / best - 1 <= SPREAD:
            continue
        chosen = min(programs, key=lambda key, p=programs: planned_order(p[key][0]))
        regrets.append(seconds[chosen] / best - 1)
        told = noise(programs[chosen])
        rows.append(
            [
                shape,
                rate_name(rate),
                len(seconds),
                f"{middle / best - 1:.0%}",
                chosen[2],
                min(seconds, key=seconds.get)[2],
                f"{regrets[-1]:.1%}",
                f"{abs(told[0]):.1%}" if told else "",
            ]
        )
    if not rows:
        return "not measured"
    rows.append(["median", "", "", "", "", "", f"{statistics.median(regrets):.1%}", ""])
    head = ("shape", "link", "plans", "median over best", "chosen", "best", "regret",
            "chosen, measured twice")  # fmt: skip
    return markdown(head, rows)


def planned_order(line: Line) -> tuple[float, ...]:
    """Return what plans are sorted by (parallel/cost/plan.py)."""
    return float(f"{line['planned_seconds']:.6g}"), line["planned_sent"], line["planned_k"]


def speed_table(lines: list[Line]) -> str:
    head = ("config", "hardware", "candidates", "seconds of planning", "of the command")
    rows = [
        [x["model"], x["hardware"], x["candidates"], f"{x['planning']:.2f}",
         f"{x['command']:.1f}"]
        for x in lines
    ]  # fmt: skip
    return markdown(head, rows) if rows else "not measured"


def maxtext_table(lines: list[Line]) -> str:
    head = ("model", *(f"{n} x 256 chips" for n in sorted({x["slices"] for x in lines})))
    rows = []
    for name, group in cells_of(lines, lambda x: (x["model"],)).items():
        cells = [
            f"{x['published']:.1%}, planned {x['predicted']:.1%} "
            f"({x['predicted'] / x['published'] - 1:+.0%}{', fitted' * x['fitted']})"
            for x in sorted(group, key=lambda x: x["slices"])
        ]
        rows.append([*name, *cells])
    free = [x for x in lines if (x["model"], x["slices"]) not in FITTED]
    middle, high, most = quantiles(errors(free, "predicted", "published"))
    said = f"Of the {len(free)} cells that were not fitted, the error is {middle} in the "
    return f"{markdown(head, rows)}\n\n{said}median and {most} at most."


def device_table(lines: list[Line]) -> str:
    """List the cells of a GPU or TPU that was here, then how wrong plans are over all."""
    if not lines:
        return "not measured"

    def beside(line: Line, planned: str, found: str, unit: float, name: str) -> str:
        if planned not in line:
            return ""
        error = line[planned] / line[found] - 1
        return f"{line[planned] / unit:.1f} {name} ({error:+.0%})"

    rows = [
        [
            line["model"]
            + ": "
            + ", ".join(f"{k}={v}" for k, v in line["overrides"].items()),
            f"{line['seconds'] * 1e3:.1f} ms",
            beside(line, "planned_seconds", "seconds", 1e-3, "ms"),
            beside(line, "calibrated_seconds", "seconds", 1e-3, "ms"),
            f"{line['bytes'] / 1e9:.1f} GB",
            beside(line, "planned_bytes", "bytes", 1e9, "GB"),
        ]
        for line in lines
    ]
    head = ("cell", "a step", "by the data sheet", "by calibrate", "memory", "planned")
    pairs = {
        "seconds, by the data sheet": ("planned_seconds", "seconds"),
        "seconds, by calibrate": ("calibrated_seconds", "seconds"),
        "memory": ("planned_bytes", "bytes"),
    }
    told = []
    for name, (planned, found) in pairs.items():
        known = [line for line in lines if planned in line]
        told.append([name, len(known), *quantiles(errors(known, planned, found))])
    return f"{markdown(head, rows)}\n\n{markdown(HEAD, told)}"
