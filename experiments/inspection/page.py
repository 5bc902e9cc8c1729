"""The page about a corpus: what stands out, then tables, texts side by side, pictures."""

import pathlib
from typing import Any

from experiments.inspection import figures
from experiments.inspection.found import WORST
from experiments.inspection.repeats import CLUSTERS, NAMED, shortened_name, visible
from experiments.inspection.survey import Survey
from experiments.processes.messages import human, size
from experiments.sweeps.tables import Table
from experiments.sweeps.template import (
    Difference,
    Page,
    Picture,
    Section,
    write_page,
    write_picture,
)

MOST_KINDS = 40  # of findings that have a row
MOST_SAID = 6  # kinds that are among what stands out


def write_inspection(
    folder: pathlib.Path,
    title: str,
    found: dict[str, Any],
    survey: Survey,
    examples: list[Difference],
) -> pathlib.Path:
    sections: list[Section | None] = [
        splits_table(found),
        lengths_table(found),
        picture(folder, "lengths", "Lengths of documents", figures.lengths(survey)),
        kinds_table(found),
        picture(folder, "kinds", "What was found", figures.kinds(found)),
        worst_table(found, survey),
        clusters_table("exact", found),
        clusters_table("near", found),
        *examples,
        leakage_table(found),
        stages_table(found),
        skew_table(found),
        picture(folder, "shards", "Shards", figures.shards(found)),
    ]
    page = Page(
        title=title,
        notes=notes(found),
        heading="What stands out",
        advice=advice(found),
        sections=[each for each in sections if each],
    )
    return write_page(folder, "inspect", page)


def picture(
    folder: pathlib.Path, name: str, title: str, image: bytes | None
) -> Picture | None:
    return write_picture(folder, name, title, image) if image else None


def notes(found: dict[str, Any]) -> list[str]:
    return [
        f"{found['documents']:,} documents, {size(found['bytes'])} of UTF-8, "
        f"{human(found['tokens'])} tokens ({found['tokens_by']}).",
        "Every stage of cleaning looked at the documents as they are, whatever data.stages "
        "says. Only the table of the configured stages shows what those would do.",
    ]


def advice(found: dict[str, Any]) -> list[str]:
    """Say in a line each what a user would want to know first."""
    num = found["documents"]
    said = [
        f"{found[f'{kind}_duplicates']:,} {kind} duplicates "
        f"({share(found[f'{kind}_duplicates'], num)} of the documents) would go."
        for kind in ("exact", "near")
    ]
    for split, each in found["leakage"]["splits"].items():
        repeat, held_out = each["repeat_training"], each["documents"]
        said.append(
            f"{repeat:,} of {held_out:,} documents of {split} ({share(repeat, held_out)}) "
            "repeat a training document."
        )
    if kinds := list(found["kinds"].items()):
        some = (f"{each['findings']:,} {named(kind)}" for kind, each in kinds[:MOST_SAID])
        more = f" and of {len(kinds) - MOST_SAID} other kinds" * (len(kinds) > MOST_SAID)
        said.append(f"Anomalies: {', '.join(some)}{more}.")
    for name, each in found["skew"].items():
        if times := multiple(each["token_skew"]):
            said.append(
                f"Shards by {name} differ in their tokens {times} times as much as "
                f"chance; the largest has {each['imbalance']['max_over_mean']:.3g} times "
                "the mean."
            )
    return said


def splits_table(found: dict[str, Any]) -> Table:
    body = [
        [split, f"{x['documents']:,}", size(x["bytes"]), human(x["tokens"])]
        for split, x in found["splits"].items()
    ]
    return Table("Splits", "", ["split", "documents", "bytes", "tokens"], body)


def lengths_table(found: dict[str, Any]) -> Table:
    lengths = found["lengths"]
    names = {"0": "shortest", "0.5": "median", "1": "longest"}
    head = [names.get(q, f"{float(q):.0%}") for q in lengths["bytes"]]
    body = [
        [what, *(f"{value:,}" for value in each.values())] for what, each in lengths.items()
    ]
    note = "Each column is a length that so large a share of the documents does not exceed."
    return Table("Lengths of documents", note, ["in", *head], body)


def kinds_table(found: dict[str, Any]) -> Table:
    num = found["documents"]
    body = [
        [named(kind), f"{x['findings']:,}", share(x["findings"], num), score(x["worst"][0])]
        for kind, x in list(found["kinds"].items())[:MOST_KINDS]
    ]
    note = "A document may have several findings. A higher score is surer, or worse."
    if not body:
        note = "No stage found an anomaly."
    elif len(found["kinds"]) > len(body):
        note += f" The commonest {len(body)} of {len(found['kinds'])} kinds are listed."
    head = ["kind", "findings", "of the documents", "highest score"]
    return Table("Anomalies", note, head, body)


def worst_table(found: dict[str, Any], survey: Survey) -> Table | None:
    body = [
        [
            named(kind),
            shortened_name(x["document"]),
            score(x),
            x["reason"],
            visible(survey.excerpts.get(x["document"], "")),
        ]
        for kind, each in list(found["kinds"].items())[:MOST_KINDS]
        for x in each["worst"]
    ]
    note = f"Of each kind, the {WORST} with the highest scores; inspect.json lists all."
    head = ["kind", "document", "score", "reason", "how it begins"]
    return Table("The worst of each kind", note, head, body) if body else None


def clusters_table(kind: str, found: dict[str, Any]) -> Table:
    total = found[f"{kind}_duplicates"]
    listed = found["clusters"][kind]
    body = [
        [
            f"{x['documents']:,}",
            f"{x['similarity']:.1%}",
            shortened_name(x["first"]),
            others(x["others"], x["documents"] - 1),
        ]
        for x in listed
    ]
    note = f"{total:,} documents would go. " + (
        f"The {CLUSTERS} largest clusters, of each at most {NAMED} documents."
        if len(listed) == CLUSTERS
        else ""
    )
    head = ["documents", "lowest similarity", "would stay", "would go"]
    return Table(f"{kind.capitalize()} duplicates", note, head, body)


def others(names: list[str], num: int) -> str:
    more = f" and {num - len(names):,} more" if num > len(names) else ""
    return ", ".join(map(shortened_name, names)) + more


def leakage_table(found: dict[str, Any]) -> Table:
    leaks = found["leakage"]
    body = [
        [
            shortened_name(x["document"]),
            x["split"],
            x["how"],
            shortened_name(x["repeats"]),
            f"{x['similarity']:.1%}",
        ]
        for x in leaks["examples"]
    ]
    note = " ".join(
        f"{x['repeat_training']:,} of {x['documents']:,} documents of {split} repeat a "
        "training document."
        for split, x in leaks["splits"].items()
    )
    if leaks["documents"] > len(body):
        note += f" The first {len(body)} are listed."
    head = ["document", "split", "found by", "repeats", "similarity"]
    return Table("Leakage between splits", note, head, body)


def stages_table(found: dict[str, Any]) -> Table:
    head = ["stage", "dropped", "changed", "kept as they were", "findings"]
    body = [
        [
            each["stage"],
            *(f"{each[what]:,}" for what in ("dropped", "changed", "kept")),
            ", ".join(f"{n:,} {named(kind)}" for kind, n in each["findings"].items()),
        ]
        for each in found["stages"]
    ]
    note = "What the stages that the config chooses do, one after the other. "
    if found["stages_error"]:
        note += f"They cannot run: {found['stages_error']}"
    elif not body:
        note = "The config chooses no stage."
    else:
        note += (
            f"{found['weighed']:,} of the documents that are left have a weight, or spans "
            "with a weight."
        )
    return Table("The configured stages", note, head, body)


def skew_table(found: dict[str, Any]) -> Table:
    meanings = (
        (
            "tokens, kinds",
            "Jensen-Shannon divergence of the shards, in multiples of chance",
        ),
        ("max/mean", "tokens of the largest shard; a synchronous step waits for it"),
        ("variation", "standard deviation of the tokens over their mean"),
        ("Gini", "0: all shards have equal tokens; near 1: one has nearly all"),
    )
    body = []
    for dealt, x in found["skew"].items():
        even = x["imbalance"]
        body.append(
            [
                dealt,
                f"{x['token_skew']['divergence']:.3g}",
                multiple(x["token_skew"]),
                multiple(x["kind_skew"]),
                f"{even['max_over_mean']:.3f}",
                f"{even['variation']:.3f}",
                f"{even['gini']:.3f}",
                f"{sum(n == 0 for n in x['documents'])}",
            ]
        )
    note = (
        f"The documents dealt to {found['shards']} shards by each data.partition, with "
        "data.shard_sizes=natural. Words come in bursts within a document, so shards by "
        "hash also differ by more than chance would let single tokens differ."
    )
    head = ["dealt by", "divergence (nats)", "tokens", "kinds", "max/mean", "variation"]
    head += ["Gini", "empty shards"]
    return Table("Skew over shards", note, head, body, meanings=meanings)


def multiple(skew: dict[str, float | None]) -> str:
    return "" if skew["multiple"] is None else f"{skew['multiple']:.3g}"


def share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "0%"


def score(finding: dict[str, Any]) -> str:
    return f"{finding['score']:.3g}"


def named(kind: str) -> str:
    return kind.replace("_", " ")
