"""Documents that repeat others: how many, in which clusters, and across splits."""

import collections
import difflib
from typing import Any, NamedTuple

from experiments.inspection.observe import Copies, Observed
from experiments.sweeps.template import Difference
from lm.data.cleaning.stage import Copy

NAMED = 20  # documents of a cluster that are named
CLUSTERS = 10  # of each kind that are listed, the largest
SHOWN = 6  # clusters of which two texts are shown
LONGEST_NAME = 120  # characters
LONGEST = 20_000  # characters of a text that are compared
AROUND = 2  # equal lines that are shown around a difference
MOST_LINES, MOST_PARTS, WIDEST = 12, 12, 300  # lines of a part, parts, characters of a line


class Cluster(NamedTuple):
    first: int  # place of the document that would be kept
    others: list[int]  # places, in order
    similarity: float  # the lowest to the first
    name: str


def clusters(copies: Copies) -> list[Cluster]:
    """Return the clusters, the largest first."""
    members = collections.defaultdict(list)
    for place, copy in copies.items():
        members[copy.first].append(place)
    found = [
        Cluster(
            first,
            sorted(places),
            min(copies[place].similarity for place in places),
            copies[places[0]].name,
        )
        for first, places in members.items()
    ]
    return sorted(found, key=lambda each: (-len(each.others), each.first))


def near_copies(observed: Observed) -> Copies:
    """Return the near duplicates that are not exact ones."""
    exact = observed.copies.get("exact_dedup", {})
    near = observed.copies.get("near_dedup", {})
    return {place: copy for place, copy in near.items() if place not in exact}


def clusters_report(observed: Observed, copies: Copies) -> list[dict[str, Any]]:
    return [
        {
            "documents": 1 + len(each.others),
            "first": each.name,
            "others": [observed.documents[p].name for p in each.others[:NAMED]],
            "similarity": each.similarity,
        }
        for each in clusters(copies)[:CLUSTERS]
    ]


def leaks(observed: Observed) -> dict[int, tuple[str, Copy]]:
    """Map each held-out document that repeats a training document to how, and which.

    A document that repeats one in several ways is told by the first of exact, near, other.
    """
    num_train = observed.splits.get("train", 0)
    found: dict[int, tuple[str, Copy]] = {}
    for name, copies in observed.copies.items():
        for place, copy in copies.items():
            if copy.first < num_train <= place:
                found.setdefault(place, (name, copy))
    return dict(sorted(found.items()))


def leakage_report(observed: Observed) -> dict[str, Any]:
    found = leaks(observed)
    held_out = {s: n for s, n in observed.splits.items() if s != "train"}
    where = collections.Counter(observed.split_of(place) for place in found)
    how = collections.Counter(name for name, _ in found.values())
    return {
        "documents": len(found),
        "by": dict(how),
        "splits": {
            split: {"documents": num, "repeat_training": where[split]}
            for split, num in held_out.items()
        },
        "examples": [
            {
                "document": observed.documents[place].name,
                "split": observed.split_of(place),
                "how": name,
                "repeats": copy.name,
                "similarity": copy.similarity,
            }
            for place, (name, copy) in list(found.items())[:CLUSTERS]
        ],
    }


def examples(observed: Observed) -> list[Difference]:
    """Show the first document of the largest clusters beside its least similar copy."""
    near = near_copies(observed)
    found = []
    for each in clusters(near)[:SHOWN]:
        other = min(each.others, key=lambda place: near[place].similarity)
        left, right = observed.documents[each.first], observed.documents[other]
        parts = difference(left.text[:LONGEST], right.text[:LONGEST])
        note = (
            f"{near[other].similarity:.1%} similar; the cluster has "
            f"{1 + len(each.others)} documents."
        )
        if max(len(left.text), len(right.text)) > LONGEST:
            note += f" The first {LONGEST:,} characters were compared."
        names = shortened_name(left.name), shortened_name(right.name)
        found.append(Difference(f"Near duplicates: {names[0]}", note, *names, parts))
    return found


def difference(left: str, right: str) -> list[tuple[bool, str, str]]:
    """Return runs of lines that are equal or differ; long ones lose their middle."""
    a, b = (visible(text).split("\n") for text in (left, right))
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    parts: list[tuple[bool, str, str]] = []
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if len(parts) == MOST_PARTS:
            return [
                *parts,
                (True, *(f"... {n} further lines ..." for n in (len(a) - i, len(b) - j))),
            ]
        if tag == "equal":
            ends = i_end == len(a) and j_end == len(b)
            around = (AROUND * bool(parts), AROUND * (not ends))
        else:
            around = (MOST_LINES // 2, MOST_LINES // 2)
        texts = (shortened(x, *around) for x in (a[i:i_end], b[j:j_end]))
        parts.append((tag == "equal", *("\n".join(lines) for lines in texts)))
    return parts


def shortened(lines: list[str], head: int, tail: int) -> list[str]:
    """Keep so many lines at the beginning and at the end; cut long lines."""
    lines = [x if len(x) <= WIDEST else f"{x[:WIDEST]} ..." for x in lines]
    left_out = len(lines) - head - tail
    if left_out < 2:
        return lines
    return [*lines[:head], f"... {left_out} lines ...", *lines[len(lines) - tail :]]


def visible(text: str) -> str:
    """Show control characters by their pictures, which no page can take for its own."""
    return text.translate(
        {code: 0x2400 + code for code in range(32) if code not in (9, 10)}
    )


def shortened_name(document: str) -> str:
    """Return the name of a document, without its middle if it is long."""
    shown = visible(document)
    half = LONGEST_NAME // 2
    return shown if len(shown) <= LONGEST_NAME else f"{shown[:half]} ... {shown[-half:]}"
