"""What the league costs, and what a thousandth of float32's bytes allows: tables."""

import math
import statistics
from collections.abc import Iterator

import jax
import numpy as np

from experiments.processes.messages import human
from experiments.studies.league.members import (
    MEMBERS,
    SIZE,
    SIZES,
    STEPS,
    TRIAL_SHARE,
    cells,
    frontier,
    origins,
    tokens_of,
)
from experiments.studies.league.search import length_of
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown
from parallel.exchange.config import CODECS, ExchangeConfig

CORES = 2
LENGTHS = (1000, STEPS, 2500, 5000, 10000)


def arithmetic_table() -> str:
    """Return what a thousandth of float32's bytes allows, 2 islands, in parameters P.

    All-reduce sends 4 P bytes a step, a broadcast 4 P, and a meeting what int2 sends.
    """
    many = jax.ShapeDtypeStruct((1 << 20,), np.float32)
    codec = CODECS["int2"](ExchangeConfig(codec="int2"))
    meeting = codec.sent_bytes([many], 2) / many.size
    body = []
    for steps in LENGTHS:
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
    """Return the tokens of all trials and runs, those there, and the hours of two cores.

    A size takes the seconds of a core for a token that its median line took.
    """
    each = {}
    for label in SIZES:
        found = [
            x["core_seconds"] / x["tokens"]
            for x in lines
            if x["size"] == label and "core_seconds" in x
        ]
        each[label] = statistics.median(found) if found else math.nan
    head = ["part", "trials and runs", "there", "tokens", "hours", "hours to go"]
    parts = [(name, *summed(heads, lines, each)) for name, heads in parts_of_it()]
    total = ("together", *map(sum, zip(*(numbers for _, *numbers in parts), strict=True)))
    return markdown(head, [told(*part) for part in (*parts, total)])


def told(
    name: str, number: int, done: int, tokens: int, hours: float, left: float
) -> list[str]:
    shown = ["" if math.isnan(x) else f"{x:.1f}" for x in (hours, left)]
    return [name, str(number), str(done), human(tokens), *shown]


def parts_of_it() -> Iterator[tuple[str, list[tuple]]]:
    """Yield the parts of the study, and (kind, member, size, islands, number) of each."""
    league = cells(list(MEMBERS))
    own = [(name, n) for name, n in league if not MEMBERS[name].tuned_as]
    yield "trials", [("trial", name, SIZE, n, length_of(SIZE, n).least) for name, n in own]
    for seed in range(3):
        runs = [("run", name, SIZE, n, seed) for name, n in league]
        yield f"runs of seed {seed}", runs
    for size in SIZES:
        found = [cell for cell in frontier() if cell[1] == size != SIZE]
        if found:
            tuned = (cell for cell in found if len(origins(*cell[1:])) < 2)
            trials = [("trial", *cell, length_of(*cell[1:]).least) for cell in tuned]
            yield (
                f"frontier, {size}, one seed",
                trials + [("run", *cell, 0) for cell in found],
            )


def steps_of(kind: str) -> int:
    return STEPS // TRIAL_SHARE if kind == "trial" else STEPS


def lines_of(
    lines: list[Line], kind: str, member: str, size: str, islands: int
) -> list[Line]:
    """Return the trials or the runs of a cell, of the length that they have now."""
    keys = ("kind", "member", "size", "islands", "steps")
    cell = (kind, member, size, islands, steps_of(kind))
    return [line for line in lines if tuple(line[key] for key in keys) == cell]


def summed(heads: list[tuple], lines: list[Line], seconds: dict[str, float]) -> tuple:
    """Return how many trials and runs, how many are there, tokens, hours, hours to go."""
    done = number = tokens = 0
    hours = left = 0.0
    for kind, member, label, islands, which in heads:
        found = lines_of(lines, kind, member, label, islands)
        wanted = which if kind == "trial" else 1
        there = [x for x in found if kind == "trial" or x["seed"] == which]
        each = tokens_of(islands, steps_of(kind))
        one = each * seconds[label] / CORES / 3600
        done, number, tokens = done + len(there), number + wanted, tokens + each * wanted
        hours, left = hours + one * wanted, left + one * max(wanted - len(there), 0)
    return number, done, tokens, hours, left
