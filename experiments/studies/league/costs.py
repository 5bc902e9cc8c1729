"""What the league costs, and what a thousandth of float32's bytes allows: tables."""

import math
from collections.abc import Iterator

import jax
import numpy as np

from experiments.processes.messages import human
from experiments.studies.league.members import (
    FRONTIER,
    MEMBERS,
    SIZE,
    SIZES,
    STEPS,
    TRIAL_SHARE,
    cells,
    tokens_of,
)
from experiments.studies.league.search import length_of
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown
from parallel.exchange.config import CODECS, ExchangeConfig

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
    told = ["" if math.isnan(x) else f"{x:.1f}" for x in (hours, left)]
    return [str(number), str(done), human(tokens), *told]
