"""Find held-out documents that repeat a training document.

A held-out document leaks if a training document has the same words (case, punctuation and
white space do not count); if it is the beginning of a training document, or a training
document is its beginning and at least half of it; or if the two are near duplicates. A
document of less than 16 letters begins nothing: only equal ones repeat it.

To find beginnings, the sketch of a document has the digests of its first 8, 16, 32, ...
letters. Two documents of which one begins the other agree in all that both have. Only then
the texts are read again and compared.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

from lm.data.cleaning import near_dedup
from lm.data.cleaning.exact_dedup import digest, only_words
from lm.data.cleaning.near_dedup import NearDedupConfig
from lm.data.cleaning.stage import Applied, Copy, Finding, Stage
from lm.data.sources.corpus import Document

SHORTEST = 8  # letters of the shortest beginning that is looked at


class LeakageConfig(NamedTuple):
    near: NearDedupConfig | None  # None: near duplicates are already gone


class Sketch(NamedTuple):
    name: str  # Document.name
    whole: int  # digest of all letters
    size: int  # number of letters
    beginnings: tuple[int, ...]  # digests of the first SHORTEST * 2^i letters
    near: near_dedup.Sketch | None


def sketch(config: LeakageConfig, document: Document) -> Sketch:
    letters = only_words(document.text)
    beginnings, size = [], SHORTEST
    while size <= len(letters):
        beginnings.append(digest(letters[:size]))
        size *= 2
    near = near_dedup.sketch(config.near, document) if config.near else None
    return Sketch(document.name, digest(letters), len(letters), tuple(beginnings), near)


def decide(
    config: LeakageConfig, sketches: Sequence[Sketch], num_train: int, texts: Sequence[str]
) -> list[Copy | None]:
    """Return a Copy for each held-out document that leaks; None for all others.

    The first `num_train` documents are those of training. `texts` gives the text of a
    document by its place.
    """
    found = repeated_words(sketches, num_train, texts)
    if config.near:
        near = near_dedup.decide(config.near, Near(sketches))
        found = [a or b for a, b in zip(found, near, strict=True)]
    return [
        each if place >= num_train and each and each.first < num_train else None
        for place, each in enumerate(found)
    ]


class Near(Sequence):
    """The near-duplicate parts of sketches."""

    def __init__(self, sketches: Sequence[Sketch]):
        self.sketches = sketches

    def __len__(self) -> int:
        return len(self.sketches)

    def __getitem__(self, place: int) -> near_dedup.Sketch:
        return self.sketches[place].near


def repeated_words(
    sketches: Sequence[Sketch], num_train: int, texts: Sequence[str]
) -> list[Copy | None]:
    """Find held-out documents with the words, or a beginning, of a training document."""
    found: list[Copy | None] = [None] * len(sketches)
    wholes, beginnings = collections.defaultdict(list), collections.defaultdict(list)
    for place in range(num_train, len(sketches)):
        each = sketches[place]
        wholes[each.whole].append(place)
        # A training document of at least half the size has this beginning too.
        if len(each.beginnings) > 1:
            beginnings[each.beginnings[-2]].append(place)
    for first in range(num_train):
        each = sketches[first]
        places = list(wholes.get(each.whole, ()))
        for key in each.beginnings:
            places += beginnings.get(key, ())
        for place in places:
            if found[place] is None and agree(each, sketches[place]):
                a, b = sorted((only_words(texts[first]), only_words(texts[place])), key=len)
                if b.startswith(a):
                    found[place] = Copy(first, each.name, len(a) / len(b))
    return found


def agree(train: Sketch, held_out: Sketch) -> bool:
    """Tell whether one may begin the other; the training one must have half the size."""
    levels = min(len(train.beginnings), len(held_out.beginnings))
    return (
        2 * train.size >= held_out.size
        and train.beginnings[:levels] == held_out.beginnings[:levels]
    )


def apply(config: LeakageConfig, document: Document, verdict: Copy | None) -> Applied:
    if verdict is None:
        return document, []
    reason = (
        f"it has the words of the training document {verdict.name}, or begins it, or is "
        f"begun by it; the one is {verdict.similarity:.1%} of the other"
    )
    return None, [Finding(document.name, "leak", verdict.similarity, reason)]


# No row of the table: it also needs the texts and the number of training documents.
LEAKAGE = Stage(LeakageConfig, apply, sketch, decide)
