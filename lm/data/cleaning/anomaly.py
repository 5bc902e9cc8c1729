"""Find documents that are unlike their corpus; drop, weigh, mask or repair them.

The sketch of a document is some of its text and its measures. `decide` compares all
documents with each other (anomalies/scores.py) and says which are anomalies, of which kind,
and why:

  base64          long runs of base64, hexadecimal and the like
  gibberish       unlikely under the n-gram of the corpus, and letters follow each other
                  at random
  language        unlikely too, but with the structure of a language: another one
  shuffled        words that the corpus knows, in an order that it does not know
  encoding        lost characters, control characters, mojibake
  truncated       it starts or ends as few documents of the corpus do
  too_repetitive  equal lines, one pair of words again and again, easily compressed
  too_short       far shorter than the others
  outlier         easily isolated by its measures taken together
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lm.data.cleaning.anomalies.measures import (
    HASHED,
    Measures,
    hashed_pairs,
    measure,
    pieces,
)
from lm.data.cleaning.anomalies.repair import repair
from lm.data.cleaning.anomalies.scores import Scores, score
from lm.data.cleaning.anomalies.spans import Letters, bad_spans, count_letters
from lm.data.cleaning.stage import Applied, Finding
from lm.data.sources.corpus import Document

FRAGMENTS, FRAGMENT = 3, 192  # the bytes of a document that the n-gram sees
# A document that is one of these is not also called another of them; the first counts.
CONTENT = ("base64", "gibberish", "language", "shuffled")
KINDS = (*CONTENT, "encoding", "truncated", "too_repetitive", "too_short", "outlier")
LOCAL = {"base64", "gibberish", "encoding"}  # what a few bad spans can be the reason of
WHOLE = {"language", "truncated", "too_repetitive", "too_short"}  # never a matter of spans
SOME_BAD = 0.05  # share of a document in bad spans that can be the reason of other kinds
MOST_BAD = 0.5  # share above which it is dropped as a whole
MEMORY = 2_000_000  # characters of the corpus that a repair looks at, at most


@dataclass
class AnomalyConfig:
    # what becomes of an anomaly; drop: the document goes; weight: its loss counts
    # threshold / score; mask: the loss of bad spans is left out, and documents go that are
    # bad as a whole; repair: so too, but lost characters are filled in where that is sure
    action: str = field(
        default="drop", metadata={"choices": ("drop", "weight", "mask", "repair")}
    )
    # score from which a training document is an anomaly, in deviations of the corpus; look
    # at the scores with experiments.inspect first
    threshold: float = field(default=5.0, metadata={"above": 0})
    # share of the documents that are kept whatever their score is; 0.99: at most the worst
    # hundredth goes
    quantile: float = field(default=0.0, metadata={"at_least": 0, "below": 1})
    # kinds that are acted upon, separated by commas; "": all
    kinds: str = ""

    def chosen(self) -> tuple[str, ...]:
        """Return the names in `kinds`; ValueError for one that is no kind."""
        names = [name.strip() for name in self.kinds.split(",") if name.strip()]
        if unknown := [name for name in names if name not in KINDS]:
            raise ValueError(
                f"data.anomaly.kinds names {unknown[0]!r}, which is no kind; choose from "
                f"{', '.join(KINDS)}"
            )
        return tuple(names) or KINDS


class Sketch(NamedTuple):
    sample: bytes  # fragments, NUL between them
    measures: bytes  # float32
    hashed: bytes  # float16, frequencies of pairs of bytes
    lost: bool  # some character was lost


class Verdict(NamedTuple):
    found: tuple[tuple[str, float, str], ...]  # kind, score, reason; the worst first
    letters: Letters | None = None  # to find bad spans with
    memory: str | None = None  # to fill in lost characters from; None: they are masked


def sketch(config: AnomalyConfig, document: Document) -> Sketch:
    """Return less than 1 kB about a document."""
    measures = np.array(measure(document.text), np.float32)
    raw = pieces(document.text).encode(errors="replace")
    hashed = hashed_pairs(raw).astype(np.float16)
    return Sketch(
        fragments(document.text),
        measures.tobytes(),
        hashed.tobytes(),
        "\ufffd" in document.text,
    )


def fragments(text: str) -> bytes:
    """Return the text if it is short, else fragments at equal distances, NUL between."""
    raw = text.replace("\0", " ").encode(errors="replace")
    if len(raw) <= FRAGMENTS * FRAGMENT:
        return raw
    starts = (np.arange(FRAGMENTS) + 0.5) / FRAGMENTS * (len(raw) - FRAGMENT)
    return b"\0".join(raw[int(x) : int(x) + FRAGMENT] for x in starts)


def scores_of(sketches: Sequence[Sketch]) -> Scores:
    """Return the score of each document for each kind."""
    samples: list[bytes] = []
    measures = np.zeros((len(sketches), len(Measures._fields)), np.float32)
    hashed = np.zeros((len(sketches), HASHED), np.float16)
    for place, each in enumerate(sketches):
        samples.append(each.sample)
        measures[place] = np.frombuffer(each.measures, np.float32)
        hashed[place] = np.frombuffer(each.hashed, np.float16)
    return score(samples, Measures(*measures.T), hashed)


def decide(config: AnomalyConfig, sketches: Sequence[Sketch]) -> list[Verdict]:
    """Return what was found about each document.

    A document needs a score of the threshold or more, and must be among the worst, as many
    as `quantile` lets go.
    """
    if not len(sketches):
        return []
    scores, kinds = scores_of(sketches), config.chosen()
    worst = np.max([scores.by_kind[kind] for kind in kinds], axis=0)
    kept = np.quantile(worst, config.quantile, method="lower") if config.quantile else 0.0
    limit = max(config.threshold, kept)
    found = [
        findings(scores, kinds, limit, place) if worst[place] > kept else ()
        for place in range(len(sketches))
    ]
    if config.action not in ("mask", "repair"):
        return [Verdict(each) for each in found]
    good = [x.sample for x, bad in zip(sketches, found, strict=True) if not bad]
    letters = count_letters(good)
    memory = None
    if config.action == "repair":
        memory = "\n".join(x.decode(errors="ignore") for x in good)[:MEMORY]
    return [
        Verdict(bad, letters, memory if each.lost else None)
        for bad, each in zip(found, sketches, strict=True)
    ]


def findings(
    scores: Scores, kinds: Sequence[str], limit: float, place: int
) -> tuple[tuple[str, float, str], ...]:
    """Return kind, score and reason of what is wrong with one document, the worst first."""
    found = [kind for kind in kinds if scores.by_kind[kind][place] >= limit]
    content = [kind for kind in CONTENT if kind in found]
    found = [kind for kind in found if kind not in content[1:]]
    listed = [
        (kind, float(scores.by_kind[kind][place]), scores.reason(kind, place))
        for kind in found
    ]
    return tuple(sorted(listed, key=lambda each: -each[1]))


def apply(config: AnomalyConfig, document: Document, verdict: Verdict) -> Applied:
    """Return the document as the action leaves it, None if it is dropped; and findings."""
    name = document.name
    found = [Finding(name, *each) for each in verdict.found]
    if config.action == "drop":
        return (None if found else document), found
    if config.action == "weight":
        weight = config.threshold / max([config.threshold, *(x.score for x in found)])
        return document._replace(weight=document.weight * weight), found
    text, filled = document.text, []
    if verdict.memory is not None:
        text, filled = repair(text, verdict.memory)
    if filled:
        reason = f"{len(filled)} gaps filled in, the first with {filled[0]!r}"
        share = sum(map(len, filled)) / len(text)
        found.append(Finding(name, "repaired", share, reason))
    spans = bad_spans(text, verdict.letters)
    share = sum(span.end - span.start for span in spans) / max(len(text), 1)
    if spans:
        first = spans[0]
        reason = (
            f"{share:.3g} of the characters in {len(spans)} spans, the first from "
            f"{first.start} to {first.end}: {first.kind}"
        )
        found.append(Finding(name, "masked", share, reason))
    if not explained(verdict, share, filled) or share > MOST_BAD:
        return None, found
    weighed = tuple((span.start, span.end, 0.0) for span in spans)
    return document._replace(text=text, spans=document.spans + weighed), found


def explained(verdict: Verdict, share: float, filled: Sequence[str]) -> bool:
    """Tell whether the rest is good: all that was found lies in spans, or is repaired."""
    kinds = {kind for kind, *_ in verdict.found}
    if kinds <= LOCAL:
        return not kinds or share > 0 or bool(filled)
    return share > SOME_BAD and not kinds & WHOLE
