"""The tables of docs/league.md, computed from the lines of results/league.jsonl."""

import math
import statistics
from typing import NamedTuple

from configs.sweeps.combine import Member
from experiments.processes.messages import human, size
from experiments.studies.league.costs import arithmetic_table, cost_table, lines_of
from experiments.studies.league.members import (
    ALL,
    BASE,
    FLOAT32S,
    FRONTIER,
    MEMBERS,
    SIZE,
    SIZES,
    cells,
    dims_of,
    frontier,
    origins,
    tokens_of,
)
from experiments.studies.league.search import (
    Tried,
    at_an_end,
    best_of,
    following,
    length_of,
    loss_at,
    values_at,
)
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown

SHARES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
PARAMS, STEP_SECONDS = 1e9, 10  # of the example


class Row(NamedTuple):
    """The runs of a cell."""

    member: str
    runs: dict[int, Line]  # seed -> line
    base: dict[int, Line]  # those of float32, with as many islands of the same size
    same: dict[int, Line]  # those of float32 with the member's optimizer

    @property
    def sent(self) -> float:
        return statistics.fmean(line["bytes_slow"] for line in self.runs.values())

    @property
    def fewer(self) -> float:
        base = statistics.fmean(line["bytes_slow"] for line in self.base.values())
        return base / self.sent

    @property
    def excess(self) -> list[float]:
        """The relative distances to float32's loss with the same seed; inf: not finite."""
        return distances(self.runs, self.base)

    @property
    def excess_of_same(self) -> list[float]:
        """The same beside float32 with the member's optimizer; empty: that is the base."""
        return distances(self.runs, self.same) if self.same != self.base else []


def distances(runs: dict[int, Line], base: dict[int, Line]) -> list[float]:
    """Return the relative distances to the base's loss with the same seed."""
    return [
        math.inf if line["loss"] is None else line["loss"] / base[seed]["loss"] - 1
        for seed, line in sorted(runs.items())
        if seed in base
    ]


def trials_of(lines: list[Line], member: str, size: str, islands: int) -> Tried:
    """Return the points that a cell's search has tried, in their order."""
    found = lines_of(lines, "trial", member, size, islands)
    return {tuple(line["point"]): line["loss"] for line in found}


def begin_of(lines: list[Line], member: str, size: str, islands: int) -> Member:
    """Return the values that a search begins from; empty: the usual ones."""
    found = origins(size, islands)
    return tuned_values(lines, member, *found[0]) if found else {}


def tuned_values(lines: list[Line], member: str, size: str, islands: int) -> Member:
    """Return the values of the best trial; those to begin from if there was none.

    Where more islands have no search, they change the learning rate as at SIZE.
    """
    if tried := trials_of(lines, member, size, islands):
        found = lines_of(lines, "trial", member, size, islands)
        best = best_of(tried)
        return next(line["values"] for line in found if tuple(line["point"]) == best)
    dims = MEMBERS[member].dims
    begin = begin_of(lines, member, size, islands)
    if len(origins(size, islands)) < 2:
        return begin or values_at(dims, (0,) * len(dims))
    few, more = (tuned_values(lines, member, SIZE, n)[dims[0].field] for n in (2, islands))
    return begin | {dims[0].field: begin[dims[0].field] * more / few}


def row_of(lines: list[Line], member: str, size: str, islands: int) -> Row | None:
    """Return the runs of a cell beside float32's; None without a seed that both have."""

    def runs(name: str) -> dict[int, Line]:
        return {line["seed"]: line for line in lines_of(lines, "run", name, size, islands)}

    row = Row(member, runs(member), runs(BASE), runs(same_optimizer(member)))
    return row if row.excess else None


def same_optimizer(member: str) -> str:
    """Return the float32 member that has the optimizer of this one; "" if there is none."""
    name = MEMBERS[member].overrides.get("optim.name")
    found = (x for x in FLOAT32S if MEMBERS[x].overrides.get("optim.name") == name)
    return next(found, "")


def rows_of(lines: list[Line], size: str, islands: int) -> list[Row]:
    found = (row_of(lines, member, size, islands) for member in MEMBERS)
    return [row for row in found if row]


def shown_rows(lines: list[Line]) -> dict[int, list[Row]]:
    """Return what the picture shows: the rows but float32's, by the number of islands."""
    found = {n: [row for row in rows_of(lines, SIZE, n) if row.member != BASE] for n in ALL}
    return {islands: rows for islands, rows in found.items() if rows}


def percent(values: list[float]) -> str:
    """Return the mean, and the lowest and the highest of several; "" of none."""
    if not values:
        return ""
    if math.inf in values:
        return "not finite"
    told = f"{statistics.fmean(values):+.2%}"
    several = f" ({min(values):+.2%} to {max(values):+.2%})" if len(values) > 1 else ""
    return told + several


def mean_loss(row: Row) -> str:
    losses = [line["loss"] for line in row.runs.values()]
    return "" if None in losses else f"{statistics.fmean(losses):.4f}"


def times(number: float) -> str:
    return f"{number:.4g}"


def league_table(lines: list[Line], islands: int) -> str:
    head = ["", "seeds", "loss", "against float32", "with its optimizer"]
    head += ["sent", "times fewer", "uploaded"]
    body = []
    for row in rows_of(lines, SIZE, islands):
        line = next(iter(row.runs.values()))
        shown = [row.member, len(row.runs), mean_loss(row), percent(row.excess)]
        shown += [percent(row.excess_of_same)]
        shown += [size(row.sent), times(row.fewer), size(line["bytes_uploaded"])]
        body.append([*shown, size(line["bytes_warm"]) if line["bytes_warm"] else ""])
    return markdown([*head, "of it, warm-up"], body) if body else NOTHING


NOTHING = "Nothing is measured yet."
PICTURE = "![Loss against bytes](league.png)"
SIZES_PICTURE = "![Loss against size](league-sizes.png)"


def short(field: str) -> str:
    """Return the name of a config field without the component that most of them are in."""
    return field.removeprefix("optim.").removeprefix("parallel.")


def tuning_table(lines: list[Line]) -> str:
    """Return what each search began from, and what it found."""
    head = ["", "size", "islands", "trials", "to begin with", "tuned", "gain", "values"]
    body = []
    league = [(member, SIZE, islands) for member, islands in cells(list(MEMBERS))]
    for cell in [*league, *(cell for cell in frontier() if cell not in league)]:
        member, label, islands = cell
        tried, length = trials_of(lines, *cell), length_of(label, islands)
        if not tried:
            continue
        dims = dims_of(member, begin_of(lines, *cell))
        first, best = (loss_at(tried, p) for p in (next(iter(tried)), best_of(tried)))
        found = tuned_values(lines, *cell)
        values = ", ".join(f"{short(k)} {v:g}" for k, v in found.items())
        ended = following(dims, tried, length) is None
        ends = at_an_end(dims, tried) if ended else []
        told = [f"{short(name)} at the end" for name in ends]
        going = [] if ended else ["goes on"]
        body.append(
            [*cell, len(tried), f"{first:.4f}", f"{best:.4f}"]
            + [f"{best / first - 1:+.2%}", "; ".join([values, *told, *going])]
        )
    return markdown(head, body) if body else NOTHING


def choice_table(lines: list[Line]) -> str:
    """Return the member of the lowest loss for each share of float32's bytes, 2 islands."""
    rows = [row for row in rows_of(lines, SIZE, 2) if math.inf not in row.excess]
    ours = ["times fewer", "against float32"]
    head = ["a link carries", "for example", "choose", *ours, "under AdamW", *ours]
    body = []
    for share in SHARES:
        able = [row for row in rows if row.fewer >= share * 0.999]
        if not able:
            continue
        rate = 8 * 4 * PARAMS / STEP_SECONDS / share / 1e6
        part = f"1/{share}" if share > 1 else "all"
        shown = [f"{part} of float32's bytes", f"{rate:,.4g} Mbit/s"]
        for among in (able, [row for row in able if row.same == row.base]):
            best = min(among, key=lambda row: statistics.fmean(row.excess), default=None)
            cell = [best.member, times(best.fewer), percent(best.excess)] if best else []
            shown += cell or [""] * 3
        body.append(shown)
    return markdown(head, body) if body else NOTHING


def frontier_table(lines: list[Line]) -> str:
    names = [name for name in FRONTIER if name != BASE]
    head = ["parameters", "islands", "float32", *names]
    head += [f"{names[-1]} against {same_optimizer(names[-1])}"]
    body = []
    for label in SIZES:
        for islands in ALL:
            base = row_of(lines, BASE, label, islands)
            if base is None:
                continue
            found = [row_of(lines, name, label, islands) for name in names]
            body.append(
                [human(next(iter(base.runs.values()))["params"]), islands, mean_loss(base)]
                + [f"{percent(r.excess)} at {times(r.fewer)}" if r else "" for r in found]
                + [percent(found[-1].excess_of_same) if found[-1] else ""]
            )
    return markdown(head, body) if body else NOTHING


def noise_table(lines: list[Line]) -> str:
    """Return float32's loss and noise scale along its runs with the first seed."""
    head = ["islands", "tokens of an island", "noise scale, tokens"]
    body = []
    for islands in ALL:
        row = row_of(lines, BASE, SIZE, islands)
        if row and "noise" in (line := next(iter(row.runs.values()))):
            told = (f"{human(noise)} after {step}" for step, noise in line["noise"])
            body.append([islands, tokens_of(1, 1), ", ".join(told)])
    return markdown(head, body) if body else NOTHING


def difference(lines: list[Line], line: Line) -> str:
    """Say how the loss of a run differs from that of the same run in the results."""
    same = {key: line[key] for key in ("kind", "member", "size", "islands", "seed")}
    other = next((x["loss"] for x in lines if same.items() <= x.items()), None)
    told = f"{line['member']}: loss {line['loss']}"
    if None in (line["loss"], other):
        return f"{told}, and {other or 'none'} in the results"
    return f"{told}, and {other} in the results, {line['loss'] / other - 1:+.3%}"


def league_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables by name."""
    return {f"league-{n}": league_table(lines, n) for n in ALL} | {
        "noise": noise_table(lines),
        "tuning": tuning_table(lines),
        "choice": choice_table(lines),
        "picture": PICTURE if shown_rows(lines) else NOTHING,
        "frontier": frontier_table(lines),
        "sizes": SIZES_PICTURE if shown_rows(lines) else NOTHING,
        "arithmetic": arithmetic_table(),
        "cost": cost_table(lines),
    }
