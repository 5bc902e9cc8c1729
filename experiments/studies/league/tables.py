"""The tables of docs/league.md, computed from the lines of results/league.jsonl."""

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from configs.sweeps.combine import Member
from experiments.processes.messages import human, size
from experiments.studies.league.members import (
    ALL,
    BASE,
    FRONTIER,
    MEMBERS,
    SIZE,
    SIZES,
    STEPS,
    TRIAL_SHARE,
    cells,
    dims_of,
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

SHARES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
PARAMS, STEP_SECONDS = 1e9, 10  # of the example
BITS = 2 + 32 / 512  # of int2: a float32 scale for 512 elements
EARLY_STEPS = (1000, STEPS, 2500, 5000, 10000)


class Row(NamedTuple):
    """The runs of a cell."""

    member: str
    runs: dict[int, Line]  # seed -> line
    base: dict[int, Line]  # those of float32, with as many islands of the same size

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
        return [
            math.inf if line["loss"] is None else line["loss"] / self.base[seed]["loss"] - 1
            for seed, line in sorted(self.runs.items())
            if seed in self.base
        ]


def trials_of(lines: list[Line], member: str, islands: int) -> Tried:
    """Return the points that a cell's search has tried, in their order."""
    return {
        tuple(line["point"]): line["loss"]
        for line in lines
        if is_trial(line, member, islands)
    }


def is_trial(line: Line, member: str, islands: int) -> bool:
    return (line["kind"], line["member"], line["islands"]) == ("trial", member, islands)


def tuned_values(lines: list[Line], member: str, islands: int) -> Member:
    """Return the values of the best trial; those to begin from if there was none."""
    dims, tried = MEMBERS[member].dims, trials_of(lines, member, islands)
    if not tried:
        two = islands == ALL[0]
        return (
            values_at(dims, (0,) * len(dims))
            if two
            else tuned_values(lines, member, ALL[0])
        )
    return next(
        line["values"]
        for line in lines
        if is_trial(line, member, islands) and tuple(line["point"]) == best_of(tried)
    )


def row_of(lines: list[Line], member: str, size: str, islands: int) -> Row | None:
    """Return the runs of a cell beside float32's; None without a seed that both have."""

    def runs(name: str) -> dict[int, Line]:
        cell = ("run", name, size, islands)
        return {
            line["seed"]: line
            for line in lines
            if (line["kind"], line["member"], line["size"], line["islands"]) == cell
        }

    row = Row(member, runs(member), runs(BASE))
    return row if row.excess else None


def rows_of(lines: list[Line], size: str, islands: int) -> list[Row]:
    found = (row_of(lines, member, size, islands) for member in MEMBERS)
    return [row for row in found if row]


def percent(values: list[float]) -> str:
    """Return the mean, and the lowest and the highest of several."""
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
    head = ["", "seeds", "loss", "against float32", "sent", "times fewer", "uploaded"]
    body = []
    for row in rows_of(lines, SIZE, islands):
        line = next(iter(row.runs.values()))
        shown = [row.member, len(row.runs), mean_loss(row), percent(row.excess)]
        shown += [size(row.sent), times(row.fewer), size(line["bytes_uploaded"])]
        body.append([*shown, size(line["bytes_warm"]) if line["bytes_warm"] else ""])
    return markdown([*head, "of it, warm-up"], body) if body else NOTHING


NOTHING = "Nothing is measured yet."


def tuning_table(lines: list[Line]) -> str:
    """Return what each search began from, and what it found."""
    head = ["", "islands", "trials", "to begin with", "tuned", "gain", "values"]
    body = []
    for member, islands in cells(list(MEMBERS)):
        tried, length = trials_of(lines, member, islands), length_of(islands)
        if not tried:
            continue
        dims = dims_of(member, islands, tuned_values(lines, member, ALL[0]))
        first, best = (loss_at(tried, p) for p in (next(iter(tried)), best_of(tried)))
        found = tuned_values(lines, member, islands)
        values = ", ".join(f"{k.rpartition('.')[2]} {v:g}" for k, v in found.items())
        ended = following(dims, tried, length) is None
        ends = at_an_end(dims, tried) if ended else []
        told = [f"{name.rpartition('.')[2]} at the end" for name in ends]
        going = [] if ended else ["goes on"]
        body.append(
            [member, islands, len(tried), f"{first:.4f}", f"{best:.4f}"]
            + [f"{best / first - 1:+.2%}", "; ".join([values, *told, *going])]
        )
    return markdown(head, body) if body else NOTHING


def choice_table(lines: list[Line]) -> str:
    """Return the member of the lowest loss for each share of float32's bytes, 2 islands."""
    rows = [row for row in rows_of(lines, SIZE, 2) if math.inf not in row.excess]
    head = ["a link carries", "for example", "choose", "times fewer", "against float32"]
    body = []
    for share in SHARES:
        able = [row for row in rows if row.fewer >= share * 0.999]
        if not able:
            continue
        best = min(able, key=lambda row: statistics.fmean(row.excess))
        rate = 8 * 4 * PARAMS / STEP_SECONDS / share / 1e6
        part = f"1/{share}" if share > 1 else "all"
        cell = [f"{part} of float32's bytes", f"{rate:.3g} Mbit/s", best.member]
        body.append([*cell, times(best.fewer), percent(best.excess)])
    return markdown(head, body) if body else NOTHING


def frontier_table(lines: list[Line]) -> str:
    names = [name for name in FRONTIER if name != BASE]
    head = ["parameters", "islands", "float32", *names]
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


def arithmetic_table() -> str:
    """Return what a thousandth of float32's bytes allows, 2 islands, in parameters P.

    All-reduce sends 4 P bytes a step, a broadcast 4 P, a meeting in 2 bits BITS / 8 P.
    """
    meeting = BITS / 8
    body = []
    for steps in EARLY_STEPS:
        budget = 4 * steps / 1000
        after = (budget - 4) / meeting
        body.append(
            [f"{steps:,}", f"{budget:.3g} P", f"{int(budget / meeting)}"]
            + [math.ceil(steps / int(budget / meeting))]
            + ([int(after), math.ceil(steps / int(after))] if after >= 1 else [0, "never"])
        )
    head = ["steps", "budget, bytes", "meetings", "H at least"]
    return markdown([*head, "meetings after a broadcast", "H at least"], body)


def cost_table(lines: list[Line]) -> str:
    """Return the tokens of all trials and runs, those there, hours at the best rate."""
    rates = {
        label: max(
            (x["tokens"] / x["seconds"] for x in lines if x["size"] == label), default=0.0
        )
        for label in SIZES
    }
    head = ["part", "trials and runs", "there", "tokens", "hours", "hours to go"]
    body = [
        [name, *summed(list(heads), lines, rates)] for name, heads in parts_of_the_cost()
    ]
    return markdown(head, body)


def parts_of_the_cost() -> Iterator[tuple[str, Iterator[tuple]]]:
    """Yield the parts of the study, and (kind, member, size, islands, number) of each."""
    league, sizes = cells(list(MEMBERS)), [label for label in SIZES if label != SIZE]
    own = [(name, n) for name, n in league if not MEMBERS[name].tuned_as]
    yield "trials", (("trial", name, SIZE, n, length_of(n).least) for name, n in own)
    for seed in range(3):
        runs = (("run", name, SIZE, n, seed) for name, n in league)
        yield f"runs of seed {seed}", runs
    frontier = cells(list(FRONTIER))
    runs = (("run", name, label, n, 0) for label in sizes for name, n in frontier)
    yield "frontier, one seed", runs


def summed(heads: list[tuple], lines: list[Line], rates: dict[str, float]) -> list[str]:
    done = number = 0
    tokens, hours, left = 0, 0.0, 0.0
    for kind, member, label, islands, which in heads:
        cell = (kind, member, label, islands)
        found = [
            x for x in lines if (x["kind"], x["member"], x["size"], x["islands"]) == cell
        ]
        wanted = which if kind == "trial" else 1
        there = [x for x in found if kind == "trial" or x["seed"] == which]
        steps = STEPS // TRIAL_SHARE if kind == "trial" else STEPS
        each, rate = tokens_of(islands, steps), rates[label]
        done, number = done + len(there), number + wanted
        tokens += each * wanted
        hours += each * wanted / rate / 3600 if rate else math.nan
        left += each * max(wanted - len(there), 0) / rate / 3600 if rate else math.nan
    return [str(number), str(done), human(tokens), f"{hours:.1f}", f"{left:.1f}"]


def differences(lines: list[Line], line: Line) -> Iterator[str]:
    """Say how the loss of a run differs from the same run's in the results."""
    same = {key: line[key] for key in ("kind", "member", "size", "islands", "seed")}
    for other in lines:
        if same.items() <= other.items():
            yield (
                f"{line['member']}: loss {line['loss']}, and {other['loss']} in the "
                f"results, {line['loss'] / other['loss'] - 1:+.3%}"
            )


def league_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables by name."""
    return {f"league-{n}": league_table(lines, n) for n in ALL} | {
        "noise": noise_table(lines),
        "tuning": tuning_table(lines),
        "choice": choice_table(lines),
        "frontier": frontier_table(lines),
        "arithmetic": arithmetic_table(),
        "cost": cost_table(lines),
    }
