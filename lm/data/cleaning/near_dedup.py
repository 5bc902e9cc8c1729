"""Drop documents that are nearly equal to an earlier document.

Two documents are as similar as their sets of shingles: the share of all their shingles that
both have (Jaccard). A shingle is a run of 5 words, as white space cuts them. MinHash
signatures find the candidates (Broder 1997): of two sets, the share of equal minima is on
average their similarity. A signature is cut into 20 bands of 5 minima; two documents with
an equal band are candidates (locality-sensitive hashing; Leskovec, Rajaraman, Ullman:
Mining of Massive Datasets, 3.4). So a pair of similarity s is a candidate with probability
1 - (1 - s^5)^20, which is 0.9996 for 0.8. The exact similarity of each candidate pair is
then computed. Pairs that reach the threshold are joined into clusters, and of a cluster the
first document stays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import rensa

from lm.data.arrays import empty
from lm.data.cleaning.stage import Applied, Copy, Finding
from lm.data.sources.corpus import Document

WORDS = 5  # in a shingle
LONGEST_WORD = 32  # characters; what is longer and hardly ASCII is no single word
BANDS, BAND = 20, 5
SEED = 1
# The share of equal minima is within 0.2 of the similarity, but for 1 pair in a million.
MARGIN = 0.2
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd


@dataclass
class NearDedupConfig:
    # near duplicates have at least this share of all their shingles of 5 words in common;
    # of those with 0.8 all but 1 in 2,000 are found, with 0.7 0.975, with 0.5 half
    threshold: float = field(default=0.8, metadata={"at_least": 0.5, "at_most": 1})


class Sketch(NamedTuple):
    name: str  # Document.name
    signature: np.ndarray  # uint32[BANDS * BAND]
    shingles: np.ndarray  # uint64[S], hashes, sorted, each once


def sketch(config: NearDedupConfig, document: Document) -> Sketch:
    shingles = hashed_shingles(document.text)
    ends = np.array([0, len(shingles)], np.uint64)
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        shingles, ends, BANDS * BAND, SEED
    ).to_rows()
    return Sketch(document.name, np.array(rows[0], np.uint32), shingles)


def hashed_shingles(text: str) -> np.ndarray:
    """Return the distinct shingles of a text as sorted 64-bit hashes, uint64[S]."""
    words = list(split_words(text))
    if len(words) < WORDS:  # the shingles of so short a text are of characters
        words = list(text)
    hashes = np.array(rensa.RMinHash.hash_token_sets([words])[0], np.uint64)
    runs = max(len(hashes) - WORDS + 1, min(len(hashes), 1))
    shingles = np.zeros(runs, np.uint64)
    for place in range(min(WORDS, len(hashes))):  # unsigned sums and products wrap around
        shingles = mixed(shingles * MULTIPLIER + hashes[place : place + runs])
    return np.unique(shingles)


def mixed(x: np.ndarray) -> np.ndarray:
    """Let each bit change all: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def split_words(text: str) -> Iterator[str]:
    """Yield the words between white space; of languages without spaces, the characters."""
    for word in text.split():
        if len(word) > LONGEST_WORD and 2 * len(word.encode("ascii", "ignore")) < len(word):
            yield from word
        else:
            yield word


def decide(config: NearDedupConfig, sketches: Sequence[Sketch]) -> list[Copy | None]:
    """Return a Copy of the first document of its cluster; None for that first one."""
    clusters = cluster(config.threshold, sketches)
    verdicts: list[Copy | None] = [None] * len(sketches)
    for place, first in enumerate(clusters):
        if place != first:
            a, b = sketches[first], sketches[place]
            verdicts[place] = Copy(int(first), a.name, jaccard(a.shingles, b.shingles))
    return verdicts


def apply(config: NearDedupConfig, document: Document, verdict: Copy | None) -> Applied:
    if verdict is None:
        return document, []
    share = verdict.similarity
    reason = f"{share:.1%} of its shingles and those of {verdict.name} are in both"
    if share < config.threshold:  # joined by others between the two
        reason += ", and each of a chain of documents between them reaches "
        reason += f"{config.threshold:.1%} with the next"
    return None, [Finding(document.name, "near_duplicate", share, reason)]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the similarity of two sorted sets; 1 for two empty ones."""
    if not len(a) and not len(b):
        return 1.0
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def cluster(threshold: float, sketches: Sequence[Sketch]) -> np.ndarray:
    """Return the first document of the cluster of each document, int64[documents]."""
    parent = np.arange(len(sketches))
    signatures = empty(len(sketches), BANDS * BAND, np.uint32)
    sizes = np.zeros(len(sketches), np.int64)
    sets = np.zeros(len(sketches), np.int64)  # a hash of each, so that memory stays small
    for place, each in enumerate(sketches):
        signatures[place], sizes[place] = each.signature, len(each.shingles)
        sets[place] = hash(each.shingles.tobytes())
    # Equal sets are one document from here on, however many there are.
    _, first, group = np.unique(sets, return_index=True, return_inverse=True)
    parent = np.where(sizes > 0, first[group], parent)
    distinct = np.flatnonzero((parent == np.arange(len(parent))) & (sizes > 0))
    for band in range(BANDS):
        for members in buckets(signatures[:, band * BAND : (band + 1) * BAND], distinct):
            for a, b in close_pairs(threshold, signatures, sizes, members):
                first, second = sorted((root(parent, a), root(parent, b)))
                if first != second:
                    similarity = jaccard(sketches[a].shingles, sketches[b].shingles)
                    if similarity >= threshold:
                        parent[second] = first
    return np.array([root(parent, place) for place in range(len(parent))], np.int64)


def buckets(band: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the documents with equal minima, in their order, where there are several."""
    key = np.ascontiguousarray(band[documents]).view(f"V{4 * BAND}").ravel()
    _, group, count = np.unique(key, return_inverse=True, return_counts=True)
    several = np.flatnonzero(count[group] > 1)
    order = several[np.argsort(group[several], kind="stable")]
    yield from np.split(documents[order], np.cumsum(count[count > 1])[:-1])


def close_pairs(
    threshold: float, signatures: np.ndarray, sizes: np.ndarray, members: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a bucket that their signatures and sizes do not rule out."""
    for place, a in enumerate(members[1:], 1):
        before = members[:place]
        equal = (signatures[before] == signatures[a]).mean(1)
        most = np.minimum(sizes[before], sizes[a]) / np.maximum(sizes[before], sizes[a])
        for b in before[(equal >= threshold - MARGIN) & (most >= threshold)]:
            yield int(b), int(a)


def root(parent: np.ndarray, place: int) -> int:
    """Return the first document of a cluster, and halve the way to it."""
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = parent[place]
    return int(place)
