"""The tables of docs/compression.md, from the lines of experiments.studies.compression."""

import itertools
import math
import statistics

from experiments.processes.messages import human, size
from experiments.studies.compression.members import DEGREES, MEMBERS, MODELS, PLAIN
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown, over_seeds

Lines = dict[str, dict[int, Line]]  # member -> seed -> its last line
# Ways to prune, of which the published order is that each is worse than the next.
ORDERS = (
    ("50% pruned, random", "50% pruned, magnitude", "50% pruned, straight-through"),
    ("80% pruned, random", "80% pruned, magnitude", "80% pruned, straight-through"),
    ("2:4, magnitude", "2:4, straight-through"),
)
STUDENT, TAUGHT = "quarter-size student", "quarter-size student, taught"
MISSING = "Not measured yet."


def tables(lines: list[Line]) -> dict[str, str]:
    ways = grouped([line for line in lines if line["study"] == "ways"])
    frontier = [line for line in lines if line["study"] == "frontier"]
    return {
        "ways": ways_table(ways, [line for line in lines if line["study"] == "rates"]),
        "order": order_table(ways),
        "gap": gap_line(ways),
        "frontier-bytes": frontier_bytes(frontier),
        "frontier-seconds": frontier_seconds(frontier, lines),
    }


def grouped(lines: list[Line]) -> Lines:
    """Keep the lines of the longest runs: a quick look is not mixed with them."""
    longest = max((line["steps"] for line in lines), default=0)
    found: Lines = {}
    for line in lines:
        if line["steps"] == longest:
            found.setdefault(line["member"], {})[line["seed"]] = line
    return {name: found[name] for name in MEMBERS if name in found}


def mean(seeds: dict[int, Line], name: str) -> float:
    return statistics.fmean(line[name] for line in seeds.values())


def to_plain(seeds: dict[int, Line], plain: dict[int, Line]) -> str:
    """Return the relative excess of the loss over the plain model's of the same seed."""
    both = sorted(seeds.keys() & plain.keys())
    excess = [seeds[seed]["loss"] / plain[seed]["loss"] - 1 for seed in both]
    return over_seeds(excess, "+.2%") if both else ""


def ways_table(ways: Lines, timed: list[Line]) -> str:
    if not ways:
        return MISSING
    head = ["way", "loss", "to plain", "on disk", "not zero", "generates", "seeds"]
    plain = ways.get(PLAIN, {})
    rates = {line["member"]: human(line["generated_per_second"]) for line in timed}
    rows = [
        [
            name,
            over_seeds([line["loss"] for line in seeds.values()]),
            to_plain(seeds, plain),
            size(mean(seeds, "bytes")),
            human(mean(seeds, "nonzero")),
            rates.get(name, ""),
            len(seeds),
        ]
        for name, seeds in ways.items()
    ]
    return markdown(head, rows)


def order_table(ways: Lines) -> str:
    """Compare ways to prune in the published order, seed by seed."""
    rows = []
    for order in ORDERS:
        for worse, better in itertools.pairwise(order):
            both = sorted(ways.get(worse, {}).keys() & ways.get(better, {}).keys())
            lost = [ways[worse][x]["loss"] - ways[better][x]["loss"] for x in both]
            if lost:
                rows.append([f"{worse} - {better}", over_seeds(lost, "+.4f")])
    return markdown(["difference of losses", "over the seeds"], rows) if rows else MISSING


def gap_line(ways: Lines) -> str:
    """Say which part of the gap between student and teacher the teacher closes."""
    both = set.intersection(*(set(ways.get(x, {})) for x in (PLAIN, STUDENT, TAUGHT)))
    if not both:
        return MISSING
    plain, alone, taught = (
        statistics.fmean(ways[name][seed]["loss"] for seed in both)
        for name in (PLAIN, STUDENT, TAUGHT)
    )
    share = (alone - taught) / (alone - plain)
    return f"The teacher closes {share:.0%} of the student's gap, over {len(both)} seed(s)."


def loss_within(line: Line, steps: float) -> float | None:
    """Return the last loss that a run has after at most so many steps."""
    reached = [loss for step, loss in line["curve"] if step <= steps]
    return reached[-1] if reached else None


def cells(lines: list[Line], loss_of) -> list[list[str]]:
    """Return a row for each model and a cell for each degree, means over the seeds."""
    rows = []
    for model in MODELS:
        row = [model]
        for degree in DEGREES:
            chosen = [x for x in lines if (x["model"], x["devices"]) == (model, degree)]
            losses = [loss for line in chosen if (loss := loss_of(line)) is not None]
            row.append(f"{statistics.fmean(losses):.4f}" if losses else "")
        rows.append(row)
    return [row for row in rows if any(row[1:])]


def head_of() -> list[str]:
    return ["model", *(f"{degree} device(s)" for degree in DEGREES)]


def frontier_bytes(lines: list[Line]) -> str:
    """Compare losses where a device has sent as much as the plain model's in half a run.

    One device sends nothing, and has its loss at the end.
    """
    plain = [x for x in lines if x["model"] == PLAIN and x["devices"] == max(DEGREES)]
    if not plain:
        return MISSING
    budget = plain[0]["sent_bytes"] * plain[0]["steps"] / 2

    def loss_of(line: Line) -> float | None:
        sent = line["sent_bytes"]
        return loss_within(line, budget / sent if sent else math.inf)

    rows = cells(lines, loss_of)
    return f"At {size(budget)} sent by each device:\n\n{markdown(head_of(), rows)}"


def frontier_seconds(lines: list[Line], timed: list[Line]) -> str:
    """Compare losses at equal seconds, for each rate of the link that was timed."""
    seconds = {
        (x["model"], x["devices"], x["rate"]): statistics.median(x["seconds"])
        for x in timed
        if x["study"] == "links"
    }
    parts = []
    for rate in sorted({key[2] for key in seconds}, reverse=True):
        alone = seconds.get((PLAIN, 1, rate))
        if not alone or not lines:
            continue
        budget = alone * lines[0]["steps"]

        def loss_of(line: Line, budget=budget, rate=rate) -> float | None:
            each = seconds.get((line["model"], line["devices"], rate))
            return each and loss_within(line, budget / each)

        table = markdown(head_of(), cells(lines, loss_of))
        parts.append(f"Links of {rate:g} Mbit/s, {budget:.0f} s of training:\n\n{table}")
    return "\n\n".join(parts) or MISSING
