"""The table of soaks of a page."""

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
