"""Bad spans in an otherwise good document: encoded blocks, gibberish, lost characters."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.cleaning.anomalies.measures import RUN, is_encoded

LEAST_BLOCK = 100  # characters of an encoded block; a shorter one may be a digest or a key
BRIDGE = re.compile(r"[\s\"'\\+,]{0,40}")  # what may stand between two lines of a block
LEAST_PAIRS = 15  # of letters, by which a line can be judged
SURE_PAIRS = 50  # of letters, by which a single line is gibberish
RARE = 0.995  # share of the corpus's lines that are likelier than gibberish
KINDS = 32  # of bytes: a to z, and all other letters
LOST = re.compile("\ufffd+")


class Span(NamedTuple):
    start: int
    end: int
    kind: str  # "base64", "gibberish", "lost_characters"


class Letters(NamedTuple):
    """How rare each pair of neighbouring letters is in the corpus."""

    bits: np.ndarray  # float32[KINDS, KINDS], of the second letter after the first
    limit: float  # mean bits above which a line is gibberish

    def judge(self, line: bytes) -> tuple[float, int]:
        """Return the mean bits of a letter of the line, and how many letters that are."""
        first, second = letters_of(line)
        return (float(self.bits[first, second].mean()) if len(first) else 0.0), len(first)


def letters_of(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the kinds of the letters that have a letter after them, and those of these."""
    x = np.frombuffer(raw.lower(), np.uint8).astype(np.int64)
    kind = np.where(x >= 128, 27, x - ord("a") + 1)  # letters beyond ASCII are one kind
    kind[(kind < 1) | (kind > 27)] = 0
    both = (kind[:-1] > 0) & (kind[1:] > 0)
    return kind[:-1][both], kind[1:][both]


def count_letters(samples: Sequence[bytes]) -> Letters:
    """Count the pairs of letters in samples of good text."""
    first, second = letters_of(b"\0".join(samples))
    counts = np.bincount(first * KINDS + second, minlength=KINDS**2) + 0.5
    counts = counts.reshape(KINDS, KINDS)
    bits = -np.log2(counts / counts.sum(1, keepdims=True)).astype(np.float32)
    letters = Letters(bits, np.inf)
    lines = [line for sample in samples for line in sample.split(b"\n")]
    means = [mean for mean, pairs in map(letters.judge, lines) if pairs >= LEAST_PAIRS]
    return Letters(bits, float(np.quantile(means, RARE)) if means else np.inf)


def bad_spans(text: str, letters: Letters) -> list[Span]:
    """Return the bad spans of a text, in order and without overlap."""
    lost = (Span(x.start(), x.end(), "lost_characters") for x in LOST.finditer(text))
    found = [*encoded_blocks(text), *gibberish(text, letters), *lost]
    spans: list[Span] = []
    for span in sorted(found):
        if not spans or span.start >= spans[-1].end:
            spans.append(span)
        elif span.end > spans[-1].end:
            spans[-1] = spans[-1]._replace(end=span.end)
    return spans


def encoded_blocks(text: str) -> Iterator[Span]:
    """Yield the blocks of base64 and the like; the lines of one may be quoted."""
    start = end = None
    for run in RUN.finditer(text):
        if not is_encoded(run[0]):
            continue
        if end is not None and BRIDGE.fullmatch(text, end, run.start()):
            end = run.end()
            continue
        if end is not None and end - start >= LEAST_BLOCK:
            yield Span(start, end, "base64")
        start, end = run.span()
    if end is not None and end - start >= LEAST_BLOCK:
        yield Span(start, end, "base64")


def gibberish(text: str, letters: Letters) -> Iterator[Span]:
    """Yield runs of lines whose letters follow each other as they hardly do in the corpus.

    A single line counts if it is long. Lines without enough letters belong to the run that
    they stand in.
    """
    place = first = end = bad = judged = 0
    for line in text.split("\n"):
        bits, pairs = letters.judge(line.encode(errors="replace"))
        if pairs >= LEAST_PAIRS and bits > letters.limit:
            first = first if bad else place
            end, bad, judged = place + len(line), bad + 1, judged + pairs
        elif pairs >= LEAST_PAIRS:
            if bad > 1 or judged >= SURE_PAIRS:
                yield Span(first, end, "gibberish")
            bad = judged = 0
        place += len(line) + 1
    if bad > 1 or judged >= SURE_PAIRS:
        yield Span(first, end, "gibberish")
