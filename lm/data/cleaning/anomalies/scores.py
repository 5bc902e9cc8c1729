"""How far each document of a corpus is from the others, one score for each kind of damage.

A score is a distance from the corpus's median in units of its deviation (1.4826 times the
median absolute deviation, which is the standard deviation of normal numbers). Damaged
documents hardly move the median, as long as they are few.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from lm.data.cleaning.anomalies.measures import Measures
from lm.data.cleaning.anomalies.ngram import ORDER, NGram
from lm.data.cleaning.anomalies.word_order import WordOrder

# The n-gram is fitted on the documents that the last fit found likely. (length of the
# contexts + 1, deviations up to which a document stays): short contexts come first, since
# long ones would learn the strange documents by heart.
ROUNDS = ((1, 1.5), (2, 1.5), (ORDER, 2.0))
FITTED = 20_000  # documents that the models are fitted on, at most
LEAST_LINKED = 0.25  # of the corpus's median, below which letters are random
FEW_PAIRS = 20.0  # so many pairs of words say half of what many say
AGREEING = 1.5  # two measures that agree are rarer than one with as large a sum
TREES = 100
TAIL = 0.95  # quantile that stands for the tail of a measure with many odd values


class Scores(NamedTuple):
    """One number a document, float64[documents], and what it was made of."""

    by_kind: dict[str, np.ndarray]
    bits: np.ndarray  # of a byte, under the n-gram of the other documents
    information: np.ndarray  # bits that a word tells of the next
    isolated: np.ndarray  # by the isolation forest
    measures: Measures  # each an array

    def reason(self, kind: str, place: int) -> str:
        """Say in words why a document is of a kind, beside the median of the corpus."""

        def told(values: np.ndarray, words: str) -> str:
            usual = np.median(values)
            return f"{values[place]:.3g} {words} (median {usual:.3g})"

        return "; ".join(
            told(getattr(self.measures, name), words)
            if name in Measures._fields
            else told(getattr(self, name), words)
            for name, words in REASONS[kind]
        )


LIKELY = ("bits", "bits a byte under the corpus's n-gram")
LINKED = ("linked", "of a letter's bits told by the letter before")
REASONS = {
    "base64": [("encoded", "of the characters in runs of base64 or hexadecimal")],
    "gibberish": [LIKELY, LINKED],
    "language": [LIKELY, LINKED],
    "shuffled": [
        ("information", "bits told by a word of the next"),
        ("ordered", "deviations of repeated pairs of words from shuffled ones"),
    ],
    "encoding": [("damaged", "of the characters lost, control or mojibake")],
    "truncated": [
        ("end", "is its end: 0 a line's, 1 a sentence's, 2 a word, 3 else"),
        ("start", "is its start: 0 of a line or sentence, 1 in the middle"),
        ("unclosed", "brackets left open: 1 yes, -1 closed too often"),
    ],
    "too_repetitive": [
        ("equal_text", "of the text in repeated lines"),
        ("top_pair", "of the pairs of words are the same"),
        ("compressed", "of the size after compression"),
    ],
    "too_short": [("log_characters", "is the logarithm of its characters")],
    "outlier": [
        ("isolated", "isolation (0 to 1) by all measures together"),
        ("entropy", "bits of a byte by itself"),
        ("word_length", "characters a word"),
        ("log_line", "is the logarithm of the characters a line"),
    ],
}


def deviations(values: np.ndarray, least: float) -> np.ndarray:
    """Return (value - median) / deviation; a deviation counts as `least` or more."""
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    return (values - middle) / max(spread, least)


def above(
    values: np.ndarray, core: np.ndarray, least: float, share: float = 0.75
) -> np.ndarray:
    """Return deviations from the core of the corpus, for measures with one long tail.

    The deviation is that of the normal distribution with the same median and the same
    quantile `share`.
    """
    middle, upper = np.quantile(values[core], [0.5, share])
    return (values - middle) / max((upper - middle) / NormalDist().inv_cdf(share), least)


def halves(kept: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (places to fit on, places to score): each half is scored by the other."""
    odd = np.arange(len(kept)) % 2 == 1
    found = []
    for scored in (odd, ~odd):
        fit = np.flatnonzero(~scored & kept)
        step = -(-len(fit) // FITTED) or 1
        found.append((fit[::step], np.flatnonzero(scored)))
    return found


def surprise(samples: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of a byte in each sample, and which samples the fit was on."""
    bits, kept = np.zeros(len(samples)), np.ones(len(samples), bool)
    for order, limit in (*ROUNDS, (ORDER, np.inf)):
        for fit, scored in halves(kept):
            model = NGram(order, sum(len(samples[i]) for i in fit))
            model.add([samples[i] for i in fit])
            bits[scored] = model.bits(samples[i] for i in scored)
        if limit < np.inf:
            kept = deviations(bits, 0.1) < limit
    return bits, kept


def word_information(samples: Sequence[bytes], kept: np.ndarray) -> np.ndarray:
    """Return the information of the pairs of words, near the median where they are few."""
    found, pairs = np.zeros((2, len(samples)))
    for fit, scored in halves(kept):
        order = WordOrder([samples[i] for i in fit])
        for place in scored:
            found[place], pairs[place] = order.information(samples[place])
    middle = np.median(found[pairs > 0]) if pairs.any() else 0.0
    return middle + (found - middle) * pairs / (pairs + FEW_PAIRS)


def score(samples: Sequence[bytes], measures: Measures, hashed: np.ndarray) -> Scores:
    """Score every document.

    samples: fragments of each document; measures: float32[documents] each; hashed:
    float16[documents, HASHED].
    """
    bits, kept = surprise(samples)
    found = word_information(samples, kept)
    unlikely = above(bits, kept, 0.15)
    is_random = measures.linked < LEAST_LINKED * np.median(measures.linked[kept])
    unlinked = above(-measures.linked, kept, 0.03)
    ordered = np.log1p(np.maximum(measures.ordered, 0))
    repeats = np.maximum.reduce(
        [
            above(measures.equal_text, kept, 0.1, TAIL),
            above(measures.top_pair, kept, 0.03, TAIL),
            above(-measures.compressed, kept, 0.05, TAIL),
        ]
    )
    columns = [*standard(measures), np.clip(unlikely, -10, 10), *hashed.T]
    isolated = isolation(columns)
    by_kind = {
        "base64": deviations(measures.encoded, 0.03),
        "gibberish": np.where(is_random, unlikely + unlinked, 0.0),
        "language": np.where(is_random, 0.0, unlikely),
        "shuffled": AGREEING * (above(-found, kept, 0.1) + above(-ordered, kept, 0.3)),
        "encoding": deviations(measures.damaged, 0.001),
        "truncated": broken_off(measures, kept),
        "too_repetitive": repeats,
        "too_short": above(-measures.log_characters, kept, 0.5),
        "outlier": above(isolated, kept, 0.01, TAIL),
    }
    return Scores(by_kind, bits, found, isolated, measures)


def broken_off(measures: Measures, core: np.ndarray) -> np.ndarray:
    """Return the bits of surprise about how each text begins and ends.

    An end that one document in 64 of the core of the corpus has scores 6.
    """
    total = np.zeros(len(core))
    for values in (measures.end, measures.start, measures.unclosed):
        kinds, group = np.unique(values, return_inverse=True)
        counts = np.bincount(group[core], minlength=len(kinds)) + 0.5
        total += np.log2(counts.max() / counts[group])
    return total


def standard(measures: Measures) -> list[np.ndarray]:
    """Return the measures as deviations, -10 to 10."""
    return [np.clip(deviations(x, 0.02), -10, 10) for x in measures]


def isolation(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return how easily each document is isolated from the others, 0 to 1.

    columns: float[documents] each.

    Isolation forest (Liu, Ting and Zhou 2008): a random tree needs few cuts to set apart
    what is unlike the rest.
    """
    from sklearn.ensemble import IsolationForest  # takes a second to import

    def features(part: slice) -> np.ndarray:
        return np.stack([column[part] for column in columns], 1, dtype=np.float32)

    num = len(columns[0])
    step = -(-num // FITTED) or 1
    forest = IsolationForest(n_estimators=TREES, random_state=0)
    forest.fit(features(slice(None, None, step)))
    parts = (slice(start, start + FITTED) for start in range(0, num, FITTED))
    return -np.concatenate([forest.score_samples(features(part)) for part in parts])
