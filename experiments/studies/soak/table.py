"""The tables of runs that met faults."""

import math

from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown

HEAD = [
    "run", "seed", "faults", "kinds", "rows lost", "rows repeated", "flips named",
    "same bits", "recovery p50", "p99", "goodput", "by Daly",
]  # fmt: skip


def soak_table(lines: list[Line]) -> str:
    """Return a row for each run of a soak."""
    return markdown(HEAD, [row(line) for line in lines])


def row(line: Line) -> list[str]:
    flips = line["kinds"].get("flipped_parameter", 0)
    return [
        line.get("run", "sync"),
        str(line["seed"]),
        str(line["faults"]),
        str(len(line["kinds"])),
        str(line["rows_lost"]),
        str(line["rows_repeated"]),
        f"{line['named']['parted']} of {flips}",
        "yes" if line["bitwise"] else "no",
        f"{line['recovery_p50']:.1f} s" if "recovery_p50" in line else "",
        f"{line['recovery_p99']:.1f} s" if "recovery_p99" in line else "",
        f"{line['goodput']:.1%}",
        f"{line['goodput_by_daly']:.1%}" if "goodput_by_daly" in line else "",
    ]


def goodput_table(lines: list[Line]) -> str:
    """Return a row for each rate of faults and distance of copies."""
    head = (
        *("a fault in", "steps between copies", "faults", "goodput", "by Daly"),
        *("lost by a fault", "recovery p50"),
    )
    body = [
        [
            *(f"{x['between']:g} s", x["copies"] or "none", x["restarts"]),
            *(f"{x['goodput']:.1%}", f"{x.get('goodput_by_daly', math.nan):.1%}"),
            *(f"{x['lost_each']:.1f} s", f"{x.get('recovery_p50', math.nan):.1f} s"),
        ]
        for x in lines
    ]
    return markdown(head, body) if body else "Not measured yet."
