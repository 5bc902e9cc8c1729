"""Tables as Markdown, for the report and for all studies."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from scipy.special import stdtrit

from experiments.processes.messages import human

# 12, -0.5, 98%, 1.5 k, 144 MB, 3.1e-07, 0.25 s; a remark in brackets may follow.
NUMBER = re.compile(
    r"[-+]?\d[\d.,]*(e[-+]?\d+)?%?( ?[kMGTP]?B?| s)( \(.*\)| ± [\d.]+%?| emulated)?"
)


class Table(NamedTuple):
    """A table of a page; `best` are the places (row, column) of the cells to mark."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    meanings: tuple[tuple[str, str], ...] = ()  # (column, what it means)

    @property
    def right(self) -> list[bool]:
        return right_aligned(len(self.head), self.rows)

    def markdown(self, padded: bool = False) -> str:
        marked = [
            [f"**{x}**" if (i, j) in self.best else x for j, x in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        return markdown(self.head, marked, padded)


def escape(cell: Any) -> str:
    """Write a cell; escape `|` and line breaks, which would end it or the table."""
    text = "" if cell is None else str(cell)
    return " ".join(text.splitlines()).replace("|", r"\|")


def line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(escape, cells))} |"


def markdown(
    head: Iterable[Any], rows: Iterable[Iterable[Any]], padded: bool = False
) -> str:
    """Return a table in Markdown, columns of numbers aligned to the right.

    Without rows it returns the head alone, and `line` makes further rows. `padded` fills
    cells with spaces, so that a terminal shows the table aligned.
    """
    head = list(map(escape, head))
    rows = [list(map(escape, row)) for row in rows]
    right = right_aligned(len(head), rows)
    rule = ["---:" if r else "---" for r in right]
    if padded:
        widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
        rule = [r.rjust(width + 2, "-") for r, width in zip(rule, widths, strict=True)]
        head, *rows = (pad(cells, widths, right) for cells in (head, *rows))
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([first, f"|{'|'.join(rule)}|", *others])


def pad(cells: list[str], widths: list[int], right: list[bool]) -> list[str]:
    return [
        cell.rjust(width) if is_right else cell.ljust(width)
        for cell, width, is_right in zip(cells, widths, right, strict=True)
    ]


def right_aligned(num_columns: int, rows: Sequence[Sequence[str]]) -> list[bool]:
    """Tell which columns hold only numbers and empty cells."""
    columns = [[row[i] for row in rows if row[i]] for i in range(num_columns)]
    return [bool(column) and all(map(is_number, column)) for column in columns]


def is_number(cell: str) -> bool:
    return bool(NUMBER.fullmatch(cell.strip("*")))


def digits(number: float) -> str:
    """Format with four digits: 3.412, 98.76, 12.35 k."""
    if not math.isfinite(number):
        return "not finite"
    return f"{number:#.4g}".removesuffix(".") if abs(number) < 1000 else human(number)


def over_seeds(values: Sequence[float], form: str = ".4f") -> str:
    """Return the mean over seeds ± its 95 % interval by Student's t; one seed has none."""
    mean = f"{statistics.fmean(values):{form}}"
    if len(values) < 2:
        return mean
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = stdtrit(len(values) - 1, 0.975) * error
    return f"{mean} ± {f'{half:{form}}'.lstrip('+')}"
