"""The tables of docs/balance.md, from the lines of results/balance.jsonl."""

import numpy as np

from experiments.studies.balance.instances import CONDITIONS, KINDS
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown
from parallel.balance.policies import POLICIES

SCORE, LENGTHS, LIVE = "score", "lengths", "live"  # studies


def balance_tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables of the page by name."""
    scores = largest(lines)
    told = [line for line in scores if line["condition"] == "as told"]
    by_kind = {kind: [x for x in told if x["kind"] == kind] for kind in KINDS}
    by_condition = {c: [x for x in scores if x["condition"] == c] for c in CONDITIONS}
    return {
        "kinds": ratios_table(by_kind),
        "conditions": ratios_table(by_condition),
        "optimum": optimum_table(scores),
        "live": live_table(lines),
        "lengths": lengths_table([x for x in lines if x["study"] == LENGTHS]),
    }


def largest(lines: list[Line]) -> list[Line]:
    """Return a line for each kind and condition: the one with the most instances."""
    found: dict[tuple[str, str], Line] = {}
    for line in lines:
        if line["study"] == SCORE:
            key = line["kind"], line["condition"]
            found[key] = max(found.get(key, line), line, key=lambda x: x["instances"])
    return list(found.values())


def ratios_table(columns: dict[str, list[Line]]) -> str:
    """Tabulate mean ratios and the largest; the lowest means of a column are marked."""
    columns = {head: lines for head, lines in columns.items() if lines}
    means = {
        head: {name: mean_of(lines, name) for name in POLICIES}
        for head, lines in columns.items()
    }
    rows = []
    for name in POLICIES:
        cells = [f"`{name}`"]
        for head, lines in columns.items():
            mean, least = means[head][name], min(means[head].values())
            worst = max(line[f"{name}, worst"] for line in lines)
            told = f"**{mean:.3f}**" if mean == least else f"{mean:.3f}"
            cells.append(f"{told} ({worst:.2f})")
        rows.append(cells)
    return markdown(["policy", *columns], rows)


def mean_of(lines: list[Line], name: str) -> float:
    weights = [line["instances"] for line in lines]
    return float(np.average([line[name] for line in lines], weights=weights))


def optimum_table(scores: list[Line]) -> str:
    """Tabulate how well the optimum is known."""
    rows = []
    for condition in CONDITIONS:
        lines = [line for line in scores if line["condition"] == condition]
        if not lines:
            continue
        size = {f"{line['pieces']} on {line['workers']}" for line in lines}
        rows.append(
            [
                condition,
                ", ".join(sorted(size)),
                sum(line["instances"] for line in lines),
                sum(line["proven"] for line in lines),
                f"{mean_of(lines, 'bounds'):.4f}",
                ", ".join(sorted({str(line["seed"]) for line in lines})),
            ]
        )
    head = ["", "pieces on workers", "instances", "proven to 1 %", "bounds", "seed"]
    return markdown(head, rows)


def lengths_table(lines: list[Line]) -> str:
    names = ("as they come", "as they come, worst", "level", "level, worst")
    head = ["rows", "as they come", "worst step", "`data.level`", "worst step"]
    last = {line["member"]: line for line in lines}
    rows = [[m, *(f"{x[name]:.3f}" for name in names)] for m, x in last.items()]
    return markdown(head, rows)


def live_table(lines: list[Line]) -> str:
    """Tabulate seconds of a step in real processes beside simulated ones.

    A run in which some loop computed for longer than its floor says nothing of the deal.
    """
    head = ["deal", "processes", "slower", "simulated", "live", "ratio", "to ideal", "loss"]
    rows = []
    for x in (line for line in lines if line["study"] == LIVE):
        cells = [x["member"], x["workers"], f"{x['slow']:g} x", f"{x['simulated']:.2f} s"]
        if x["late"]:
            rows.append([*cells, "computed past its floor", "", "", ""])
            continue
        ratio, ideal = x["live"] / x["simulated"], x["live"] / x["ideal"]
        told = f"{x['live']:.2f} s", f"{ratio:.3f}", f"{ideal:.2f}", f"{x['loss']:.5f}"
        rows.append([*cells, *told])
    return markdown(head, rows)
