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


class WordOrder:
    """Counts of pairs of words, by which the order of other words is judged."""

    def __init__(self, samples: Sequence[bytes]) -> None:
        words = Counter(word for x in samples for pair in pairs_of(x) for word in pair)
        # Equal counts are put in order by the word, so that nothing depends on chance.
        ranked = sorted(words, key=lambda word: (-words[word], word))[:COMMON]
        self.common = {word: i for i, word in enumerate(ranked)}
        self.counts = np.zeros((CLASSES, CLASSES), np.int32)
        for sample in samples:
            np.add.at(self.counts, self.classes(sample), 1)
        self.before = self.counts.sum(1)
        total = self.counts.sum() + 0.5 * CLASSES
        self.alone = (self.counts.sum(0) + 0.5) / total

    def classes(self, sample: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes of the first words of the pairs, and of the second words."""
        pairs = [(self.word_class(x), self.word_class(y)) for x, y in pairs_of(sample)]
        first, second = np.array(pairs, np.int64).reshape(-1, 2).T
        return first, second

    def word_class(self, word: bytes) -> int:
        if word in self.common:
            return self.common[word]
        if word[:1].isalpha():
            shape = b"A" if word[:1].isupper() else b"a"
            word = shape + word[-2:].lower()
        elif word[:1].isdigit():
            word = b"1"
        return COMMON + zlib.crc32(word) % (CLASSES - COMMON)

    def information(self, sample: bytes) -> tuple[float, int]:
        """Return the mean information of the pairs of words, in bits, and their number."""
        first, second = self.classes(sample)
        if not len(first):
            return 0.0, 0
        both, alone = self.counts[first, second], self.alone[second]
        p = (both + STRENGTH * alone) / (self.before[first] + STRENGTH)
        return float(np.log2(p / alone).mean()), len(first)
