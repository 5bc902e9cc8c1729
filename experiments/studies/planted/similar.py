"""How alike two texts are, by brute force, and copies of a wanted likeness.

The Jaccard similarity of two texts is the number of shingles that both have over the number
that either has. A shingle is five words in a row, and a word has no white space in it.
"""

import random
import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

SHINGLE = 5  # words
Shingles = set[tuple[str, ...]]


def shingles(words: Sequence[str]) -> Shingles:
    """Return the runs of SHINGLE words; one run if there are fewer words."""
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def jaccard(one: Shingles, other: Shingles) -> float:
    return len(one & other) / len(one | other)


def all_pairs(texts: Sequence[str], least: float) -> list[tuple[int, int, float]]:
    """Return (i, j, Jaccard) of all pairs i < j that are at least so similar.

    Every pair is compared: the product of the matrix of documents and shingles with its
    transpose counts the shingles that two documents share.
    """
    numbers: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for i, text in enumerate(texts):
        for shingle in shingles(text.split()):
            rows.append(i)
            columns.append(numbers.setdefault(shingle, len(numbers)))
    ones = np.ones(len(rows), np.int32)
    has = sparse.csr_array((ones, (rows, columns)), (len(texts), len(numbers)))
    size = has.sum(axis=1)
    shared = sparse.triu(has @ has.T, 1).tocoo()
    i, j = shared.coords
    similarity = shared.data / (size[i] + size[j] - shared.data)
    found = [
        (int(a), int(b), float(s))
        for a, b, s in zip(i, j, similarity, strict=True)
        if s >= least
    ]
    return sorted(found)


def unlike(texts: Sequence[str], most: float) -> list[str]:
    """Leave out texts until no two are more similar than `most`."""
    dropped: set[int] = set()
    for i, j, _ in all_pairs(texts, most):
        if i not in dropped:
            dropped.add(j)
    return [text for i, text in enumerate(texts) if i not in dropped]


def altered(
    text: str, low: float, high: float, words: Sequence[str], rng: random.Random
) -> tuple[str, float]:
    """Return a copy with words replaced, removed and added, and its Jaccard similarity.

    The similarity is a random number between `low` and `high`, or the nearest below it that
    single words allow. `words` are those to put in.
    """
    parts = re.split(r"(\s+)", text)  # words and white space in turn
    places = [i for i, part in enumerate(parts) if part.strip()]
    before, wanted = shingles(text.split()), rng.uniform(low, high)
    similarity = 1.0
    for place in rng.sample(places, len(places)):
        old = parts[place]
        parts[place] = rng.choice([rng.choice(words), "", f"{old} {rng.choice(words)}"])
        now = jaccard(before, shingles("".join(parts).split()))
        if now < low:
            parts[place] = old  # one word too many: try another
            continue
        similarity = now
        if similarity <= wanted:
            break
    assert low <= similarity <= high, (low, similarity, high)
    return "".join(parts), similarity
