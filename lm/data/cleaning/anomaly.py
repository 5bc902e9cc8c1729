"""Find documents that are unlike their corpus, and drop, weigh, mask or repair them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lm.data.cleaning.measures import HASHED, Measures, hashed_pairs, measure, pieces
from lm.data.cleaning.scores import Scores, score
from lm.data.cleaning.stage import Applied, Finding
from lm.data.sources.corpus import Document

FRAGMENTS, FRAGMENT = 3, 192  # the bytes of a document that the n-gram sees
# A document that is one of these is not also called another of them; the first counts.
CONTENT = ("base64", "gibberish", "language", "shuffled")


class Sketch(NamedTuple):
    sample: bytes  # fragments, NUL between them
    measures: bytes  # float32
    hashed: bytes  # float16[HASHED], frequencies of pairs of bytes


def sketch(config, document: Document) -> Sketch:
    """Return less than 1 kB about a document."""
    measures = np.array(measure(document.text), np.float32)
    raw = pieces(document.text).encode(errors="replace")
    hashed = hashed_pairs(raw).astype(np.float16)
    return Sketch(fragments(document.text), measures.tobytes(), hashed.tobytes())


def fragments(text: str) -> bytes:
    """Return the text if it is short, else fragments at equal distances, NUL between."""
    raw = text.replace("\0", " ").encode(errors="replace")
    if len(raw) <= FRAGMENTS * FRAGMENT:
        return raw
    starts = (np.arange(FRAGMENTS) + 0.5) / FRAGMENTS * (len(raw) - FRAGMENT)
    return b"\0".join(raw[int(x) : int(x) + FRAGMENT] for x in starts)


def scores_of(sketches: Sequence[Sketch]) -> Scores:
    samples = [each.sample for each in sketches]
    columns = np.stack([np.frombuffer(each.measures, np.float32) for each in sketches], 1)
    hashed = np.stack([np.frombuffer(each.hashed, np.float16) for each in sketches])
    return score(samples, Measures(*columns.astype(float)), hashed.astype(np.float32))
