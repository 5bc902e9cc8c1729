"""The tables of what uneven text costs, from the lines of experiments.studies.uneven."""

import statistics
from collections.abc import Callable

from experiments.studies.uneven.members import METHODS, STUDIES, UNTREATED
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown, over_seeds
from lm.data.rows.partition import PARTITIONS

Lines = dict[str, dict[int, Line]]  # member -> seed -> its last line


def table(study: str, lines: list[Line]) -> str:
    """Return a study's table; members that were not measured are left out."""
    found: Lines = {}
    for line in lines:
        if line["study"] == study and line["member"] in STUDIES[study].members:
            found.setdefault(line["member"], {})[line["seed"]] = line
    ordered = {name: found[name] for name in STUDIES[study].members if name in found}
    return TABLES[study](ordered)


def told(seeds: dict[int, Line], field: str = "loss") -> str:
    return over_seeds([line[field] for line in seeds.values()])


def mean(seeds: dict[int, Line], field: str = "loss") -> float:
    return statistics.fmean(line[field] for line in seeds.values())


def excess(seeds: dict[int, Line], base: dict[int, Line], field: str = "loss") -> str:
    """Return the relative difference of the means over the seeds that both have."""
    both = seeds.keys() & base.keys()
    if not both:
        return ""
    of = sum(seeds[seed][field] for seed in both)
    return f"{of / sum(base[seed][field] for seed in both) - 1:+.2%}"


def poisoned_table(found: Lines) -> str:
    """Also tell which share of the gap from poisoned to clean each member wins back.

    It is over the seeds that all three have.
    """
    rows, clean = [], found.get("clean", {})
    for name, seeds in found.items():
        kind, _, remedy = name.partition("; ")
        worst, won = found.get(f"{kind}; {UNTREATED}", {}), ""
        every = seeds.keys() & worst.keys() & clean.keys()
        if every and remedy != UNTREATED:
            here, bad, good = (
                sum(x[seed]["loss"] for seed in every) for x in (seeds, worst, clean)
            )
            won = f"{(bad - here) / (bad - good):.0%}"
        rows.append([name, told(seeds), excess(seeds, clean), won, len(seeds)])
    head = ["training text", "validation loss", "to clean", "gap won back", "seeds"]
    return markdown(head, rows)


def partitions_table(found: Lines) -> str:
    """Return partitions x methods, then the other members."""
    hashed = {method: found.get(f"hash; {method}") for method in METHODS}

    def cell(policy: str, method: str) -> str:
        seeds, base = found.get(f"{policy}; {method}"), hashed[method]
        if not seeds:
            return ""
        compared = f" ({excess(seeds, base)})" if base and policy != "hash" else ""
        return told(seeds) + compared

    rows = []
    for policy in PARTITIONS:
        some = next((found[name] for name in found if name.startswith(f"{policy};")), None)
        if some:
            multiple = f"{mean(some, 'multiple'):.0f}"
            rows.append([policy, multiple, *(cell(policy, method) for method in METHODS)])
    first = markdown(["dealt by", "unlike (times chance)", *METHODS], rows)
    used = {f"{policy}; {method}" for policy in PARTITIONS for method in METHODS}
    others = [
        [
            name,
            f"{mean(seeds, 'multiple'):.0f}",
            told(seeds),
            excess(seeds, found.get(f"hash; {name.rpartition('; ')[2]}", {})),
            len(seeds),
        ]
        for name, seeds in found.items()
        if name not in used
    ]
    head = ["", "unlike", "validation loss", "to hash, same method", "seeds"]
    return f"{first}\n\n{markdown(head, others)}"


def compared(columns: dict[str, str]) -> Callable[[Lines], str]:
    """Return a table with these fields of a line, each beside the first member's."""

    def of_members(found: Lines) -> str:
        base = next(iter(found.values()), {})
        rows = [
            [name]
            + [
                cell
                for field in columns.values()
                for cell in (told(seeds, field), excess(seeds, base, field))
            ]
            + [f"{mean(seeds, 'epochs'):.1f}", len(seeds)]
            for name, seeds in found.items()
        ]
        heads = [head for column in columns for head in (column, "to the first")]
        return markdown(["training", *heads, "epochs", "seeds"], rows)

    return of_members


def augmentation_table(found: Lines) -> str:
    rows = [
        [
            name,
            told(seeds, "train"),
            told(seeds),
            f"{mean(seeds) - mean(seeds, 'train'):.3f}",
            excess(seeds, found.get("none", {})),
            f"{mean(seeds, 'epochs'):.1f}",
            len(seeds),
        ]
        for name, seeds in found.items()
    ]
    head = ["augmentation", "training loss", "validation loss", "gap", "to none"]
    return markdown([*head, "epochs", "seeds"], rows)


TABLES: dict[str, Callable[[Lines], str]] = {
    "poisoned": poisoned_table,
    "partitions": partitions_table,
    "mixture": compared({"loss, common kind": "loss", "loss, rare kind": "rare"}),
    "augmentation": augmentation_table,
}
