"""The pictures of docs/league.md: loss against bytes with the Pareto front, and sizes."""

import pathlib
import statistics
from collections.abc import Iterable

from experiments.studies.league.members import BASE, FRONTIER, SIZES, cells
from experiments.studies.league.tables import Row, row_of, shown_rows
from experiments.sweeps.looks import COLORS, png, pyplot
from experiments.sweeps.results import Line

WITHIN, TARGET = 1.0, 1000  # percent of loss; times fewer bytes
LINEAR = 2.0  # percent; the axis is linear up to here, and logarithmic from here on
TICKS = (-2, -1, 0, 1, 2, 5, 10, 20)


def excess(row: Row) -> tuple[float, float, float]:
    """Return the mean, the lowest and the highest distance to float32, in percent."""
    found = [100 * x for x in row.excess]
    return statistics.fmean(found), min(found), max(found)


def front(rows: Iterable[Row]) -> list[Row]:
    """Return the rows to which no other has both fewer bytes and no higher loss."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.sent, excess(row)[0])):
        if not found or excess(row)[0] < excess(found[-1])[0]:
            found.append(row)
    return found


def bars(axes, x: list[float], rows: list[Row], fmt: str, **style: str) -> None:
    """Draw the mean distances of rows to float32, and from the lowest to the highest."""
    mean, low, high = zip(*map(excess, rows), strict=True)
    around = [[m - y for m, y in zip(mean, low, strict=True)]]
    around += [[y - m for m, y in zip(mean, high, strict=True)]]
    axes.errorbar(x, mean, around, fmt=fmt, ms=4, lw=1, **style)


def draw(axes, rows: list[Row], color: str, label: str) -> None:
    bars(axes, [row.fewer for row in rows], rows, "o", color=color, label=label)
    best = front(rows)
    line = [(row.fewer, excess(row)[0]) for row in best]
    axes.plot(*zip(*line, strict=True), drawstyle="steps-pre", lw=1, color=color)
    for row in rows:
        axes.annotate(
            row.member, (row.fewer, excess(row)[0]), xytext=(4, 3),
            textcoords="offset points", fontsize=6, color=color,
        )  # fmt: skip


def separate(texts: list) -> None:
    """Move labels down until none lies on another, the highest first."""
    placed = []
    for text in sorted(texts, key=lambda text: -text.xy[1]):
        while any(map(text.get_window_extent().overlaps, placed)):
            x, y = text.xyann
            text.xyann = x, y - 1
        placed.append(text.get_window_extent())


def draw_all(lines: list[Line], page: pathlib.Path) -> None:
    """Draw the pictures beside the page."""
    if shown := shown_rows(lines):
        page.with_suffix(".png").write_bytes(draw_league(shown))
        page.with_name(f"{page.stem}-sizes.png").write_bytes(draw_sizes(lines))


def draw_sizes(lines: list[Line]) -> bytes:
    """Draw how far the members of the frontier are from float32 at each size."""
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    series = cells([name for name in FRONTIER if name != BASE])
    for (member, islands), color in zip(series, COLORS, strict=False):
        found = [row_of(lines, member, size, islands) for size in SIZES]
        if rows := [row for row in found if row]:
            params = [next(iter(row.runs.values()))["params"] for row in rows]
            label = f"{member}, {islands} islands"
            bars(axes, params, rows, "o-", color=color, label=label)
    axes.axhline(0, color="#555555", lw=0.5)
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel("loss above float32 under AdamW (%)")
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def draw_league(shown: dict[int, list[Row]]) -> bytes:
    """Draw the members of each number of islands into one picture."""
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    for (islands, rows), color in zip(shown.items(), COLORS, strict=False):
        draw(axes, rows, color, f"{islands} islands")
    axes.axhline(WITHIN, color="#555555", ls="--", lw=1)
    axes.axvline(TARGET, color="#555555", ls=":", lw=1)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set_yticks(TICKS, TICKS)
    axes.set_xlabel("times fewer bytes than float32 all-reduce, over the whole run")
    axes.set_ylabel("validation loss above float32's (%)")
    axes.legend(frameon=False, fontsize=8)
    figure.canvas.draw()  # places all of it
    separate(axes.texts)
    return png(figure)
