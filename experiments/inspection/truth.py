"""Findings against the truth of planted faults: recall, precision, restored, AUROC."""

import collections
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import rankdata

from experiments.inspection.observe import Observed
from experiments.inspection.repeats import near_copies
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown
from lm.data.cleaning.anomaly import AnomalyConfig
from lm.data.cleaning.stage import Copy
from lm.data.cleaning.table import STAGES
from lm.data.config import DataConfig
from lm.data.sources.corpus import Document

COPIES = ("exact_copy", "near_copy", "decoy")  # of clean documents: clean themselves
# The planted faults -> how findings name them.
NAMES = {
    "mojibake": ("mojibake",),
    "gibberish": ("gibberish",),
    "language": ("language",),
    "base64": ("base64",),
    "shuffled": ("shuffled",),
    "truncated": ("truncated",),
    "damaged": ("encoding", "lost_characters"),
    "spans": ("encoding", "lost_characters"),
}
AROUND = 12  # characters on each side of a span
THRESHOLD = 0.8  # Jaccard, from which two documents are near duplicates

Truth = dict[str, Any]  # as experiments.studies.planted writes it


def number(document: str) -> int:
    """Return the place in the corpus of a document that is named FILE#LINE."""
    return int(document.rpartition("#")[2]) - 1


def scores(
    config: DataConfig, texts: list[str], truth: Truth, observed: Observed
) -> dict[str, float]:
    """Return every measure of a planted corpus; shares are from 0 to 1."""
    kinds = [entry["kind"] for entry in truth["documents"]]
    found = copies(truth, observed)
    found |= restored(config, texts, truth)
    return found | areas(kinds, observed) | repaired(texts, truth)


def pairs(observed: Observed, found: dict[int, Copy]) -> dict[int, int]:
    """Map documents to the first of their cluster, both by their line in the corpus.

    The observed documents are in another order: the held-out ones come last.
    """
    name = {p: observed.documents[p].name for x, c in found.items() for p in (x, c.first)}
    return {number(name[p]): number(name[copy.first]) for p, copy in found.items()}


def copies(truth: Truth, observed: Observed) -> dict[str, float]:
    """Compare the clusters with all pairs that brute force found."""
    exact = pairs(observed, observed.copies.get("exact_dedup", {}))
    near = pairs(observed, near_copies(observed))
    cluster = pairs(observed, observed.copies.get("near_dedup", {}))
    similar = {
        frozenset((number(i), number(j))): similarity for i, j, similarity in truth["pairs"]
    }
    equal = {pair for pair, similarity in similar.items() if similarity == 1}
    alike = {p for p, similarity in similar.items() if THRESHOLD <= similarity < 1}

    def together(pair: frozenset[int]) -> bool:
        one, other = (cluster.get(place, place) for place in pair)
        return one == other

    mates = collections.defaultdict(set)  # truly similar ones
    for pair in alike | equal:
        for place in pair:
            mates[place] |= pair - {place}
    right = [frozenset(pair) in equal for pair in exact.items()]
    return {
        "exact_pairs": len(equal),
        "exact_recall": sum(right) / len(equal),
        "exact_precision": share(right),
        "near_pairs": len(alike),
        "near_recall": share(map(together, alike)),
        "near_precision": share(bool(mates[place]) for place in near),
    }


def restored(config: DataConfig, texts: list[str], truth: Truth) -> dict[str, float]:
    """Return the share of mojibake restored to the byte, and of clean text touched."""
    right, touched = [], []
    for entry, text in zip(truth["documents"], texts, strict=True):
        if entry["kind"] == "mojibake":
            right.append(fixed(config, text) == entry["clean"])
        elif entry["kind"] in ("clean", *COPIES):
            touched.append(fixed(config, text) != text)
    return {"mojibake_restored": share(right), "clean_touched": share(touched)}


def repaired(texts: list[str], truth: Truth) -> dict[str, float]:
    """Return the share of removed spans that come back as they were, and as something else.

    The span is looked for with the characters around it, since others may have moved it.
    """
    stage, config = STAGES["anomaly"], AnomalyConfig(action="repair")
    documents = [Document(text, str(place)) for place, text in enumerate(texts)]
    verdicts = stage.decide(config, [stage.sketch(config, x) for x in documents])
    right, wrong = [], []
    for entry, document, verdict in zip(
        truth["documents"], documents, verdicts, strict=True
    ):
        if entry["kind"] == "spans":
            after, _ = stage.apply(config, document, verdict)
            for span in entry["spans"]:
                start, end = span["start"], span["end"]
                before = document.text[max(start - AROUND, 0) : start]
                before = before.rpartition("\ufffd")[2]  # another span may change, too
                behind = document.text[end : end + AROUND].partition("\ufffd")[0]
                text = after.text if after else ""
                right.append(before + span["lost"] + behind in text)
                gap = before + document.text[start:end] + behind
                wrong.append(bool(text) and gap not in text and not right[-1])
    return {
        "spans": len(right),
        "spans_restored": share(right),
        "spans_wrong": share(wrong),
    }


def fixed(config: DataConfig, text: str) -> str:
    document, _ = STAGES["fix"].apply(config.fix, Document(text, ""), None)
    return document.text if document else ""


def areas(kinds: list[str], observed: Observed) -> dict[str, float]:
    """Return, for each kind of fault, the area under the ROC curve against clean text.

    The score of a document is the highest of its findings, of those that name the fault
    (`auroc`) or of all (`auroc_any`). Without a finding it is 0.
    """
    kind = np.array(kinds)
    clean = np.isin(kind, ("clean", *COPIES))
    named: dict[str, np.ndarray] = {name: np.zeros(len(kinds)) for name in NAMES}
    every = np.zeros(len(kinds))
    for each in observed.findings():
        place, score = number(each["document"]), each["score"]
        if each["stage"] == "anomaly":
            every[place] = max(every[place], score)
        for name, names in NAMES.items():
            if each["kind"] in names:
                named[name][place] = max(named[name][place], score)
    found = {}
    for name in NAMES:
        faulty = kind == name
        found[f"auroc_{name}"] = area(named[name][faulty], named[name][clean])
        found[f"auroc_any_{name}"] = area(every[faulty], every[clean])
    return found


def area(faulty: np.ndarray, clean: np.ndarray) -> float:
    """Return the probability that a faulty document scores more than a clean one.

    Ties count half (Mann and Whitney 1947).
    """
    ranks = rankdata(np.concatenate([faulty, clean]))
    above = ranks[: len(faulty)].sum() - len(faulty) * (len(faulty) + 1) / 2
    return float(above / (len(faulty) * len(clean)))


def share(values: Iterable[bool]) -> float:
    values = list(values)
    return float(statistics.fmean(values)) if values else float("nan")


MEASURES = {
    "exact_recall": "exact copies found",
    "exact_precision": "exact duplicates that are copies",
    "near_recall": "pairs at a Jaccard of 0.8 or more in one cluster",
    "near_precision": "near duplicates with such a pair",
    "mojibake_restored": "mojibake restored to the byte",
    "clean_touched": "clean documents changed by `fix`",
    "spans_restored": "removed spans restored exactly",
    "spans_wrong": "removed spans filled in wrongly",
    "exact_pairs": "exact copies planted",
    "near_pairs": "pairs at a Jaccard of 0.8 or more",
    "spans": "removed spans planted",
}


def planted_table(lines: list[Line], documents: int) -> str:
    """Tabulate each measure of corpora of one size: its mean, lowest and highest."""
    lines = [line for line in lines if line["documents"] == documents]
    names = [name for name in lines[0] if name not in ("member", "seed", "documents")]
    body = []
    for name in names:
        values = [line[name] for line in lines]
        cells = [statistics.fmean(values), min(values), max(values)]
        shown = "{:.4f}" if max(cells) <= 1 else "{:g}"
        kind = name.removeprefix("auroc_")
        if kind.startswith("any_"):
            kind = f"{kind[4:]}, findings of any kind"
        body.append([MEASURES.get(name, f"AUROC, {kind}"), *map(shown.format, cells)])
    return markdown(["", f"mean of {len(lines)} seeds", "lowest", "highest"], body)
