"""Whether the words of a text stand in an order that its corpus knows.

The end of one word and the beginning of the next are one pair. Their pointwise mutual
information, log2 p(second after first) / p(second), is high on the average in text that
somebody wrote, and about 0 where the words were shuffled. The pairs are counted over the
corpus; a rare word counts as its last two letters, so that it still says something.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

COMMON = 300  # words that are counted as themselves
CLASSES = 2048  # with them, those of all other words
STRENGTH = 20.0  # pairs for which the frequency of the second word alone counts
WORD = re.compile(rb"\n|[^\s\0]+")
PART = re.compile(rb"\n|[A-Za-z_\x80-\xff]+|\d+|[^\w\s]")


def pairs_of(sample: bytes) -> list[tuple[bytes, bytes]]:
    """Return (end of a word, beginning of the next) in the fragments of a sample."""
    found = []
    for fragment in sample.split(b"\0"):
        words = WORD.findall(fragment)[1:-1]  # the first and the last may be cut
        parts = [PART.findall(word) or [word] for word in words]
        found += [(x[-1], y[0]) for x, y in zip(parts, parts[1:], strict=False)]
    return found


def word_class(word: bytes, common: dict[bytes, int]) -> int:
    if word in common:
        return common[word]
    if word[:1].isalpha():
        shape = b"A" if word[:1].isupper() else b"a"
        word = shape + word[-2:].lower()
    elif word[:1].isdigit():
        word = b"1"
    return COMMON + zlib.crc32(word) % (CLASSES - COMMON)


def classes_of(samples: Sequence[bytes]) -> list[np.ndarray]:
    """Return the classes of the pairs of each sample, int64[pairs, 2]."""
    pairs = [pairs_of(sample) for sample in samples]
    counts = Counter(word for each in pairs for pair in each for word in pair)
    # Equal counts are put in order by the word, so that nothing depends on chance.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:COMMON]
    common = {word: i for i, word in enumerate(ranked)}
    of = {word: word_class(word, common) for word in counts}
    return [
        np.array([(of[x], of[y]) for x, y in each], np.int64).reshape(-1, 2)
        for each in pairs
    ]


def information(
    fit: Sequence[np.ndarray], scored: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean information of the pairs of each scored text, and their number.

    The counts are those of `fit`, which must be other texts than those scored.
    """
    first, second = np.concatenate([*fit, np.zeros((0, 2), np.int64)]).T
    counts = np.bincount(first * CLASSES + second, minlength=CLASSES**2)
    counts = counts.reshape(CLASSES, CLASSES)
    before = counts.sum(1)
    alone = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * CLASSES)

    def mean(pairs: np.ndarray) -> float:
        x, y = pairs.T
        p = (counts[x, y] + STRENGTH * alone[y]) / (before[x] + STRENGTH)
        return float(np.log2(p / alone[y]).mean()) if len(pairs) else 0.0

    return np.array([mean(x) for x in scored]), np.array([len(x) for x in scored])
