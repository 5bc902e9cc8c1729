"""Near duplicates: the shingles, the candidates and the clusters against brute force."""

import itertools
import math
import random

import datasketch
import numpy as np
import pytest

from lm.data.cleaning import near_dedup
from lm.data.cleaning.near_dedup import NearDedupConfig
from lm.data.cleaning.stage import Copy
from lm.data.sources.corpus import Document

WORDS = [f"word{i}" for i in range(3000)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split() if len(text.split()) > 4 else list(text)
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def similarity(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def altered(text: str, num: int, rng: random.Random) -> str:
    words = text.split()
    for place in rng.sample(range(len(words)), num):
        words[place] = rng.choice(WORDS)
    return " ".join(words)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts and copies of them, some of copies, on both sides of the threshold."""
    rng = random.Random(0)
    found = [" ".join(rng.choices(WORDS, k=rng.randint(60, 300))) for _ in range(150)]
    for _ in range(150):
        text = rng.choice(found)
        found.append(altered(text, rng.randint(0, len(text.split()) // 20), rng))
    rng.shuffle(found)
    return found


@pytest.fixture(scope="module")
def similarities(texts) -> dict[tuple[int, int], float]:
    sets = [shingles(text) for text in texts]
    return {
        (i, j): similarity(sets[i], sets[j])
        for j in range(len(sets))
        for i in range(j)
        if not sets[i].isdisjoint(sets[j])
    }


def sketches(texts):
    config = NearDedupConfig()
    return [
        near_dedup.sketch(config, Document(text, str(i))) for i, text in enumerate(texts)
    ]


def test_the_similarity_of_sketches_is_that_of_the_texts(texts):
    short = ["", "a", "a b c d", "a b c d e", "a b c d e f", "abcdefgh", "abcdefgz"]
    some = [*texts[:40], *short]
    found = sketches(some)
    for i, a in enumerate(some):
        for j, b in enumerate(some[:i]):
            if a and b:
                wanted = similarity(shingles(a), shingles(b))
                assert near_dedup.jaccard(found[i].shingles, found[j].shingles) == wanted
    assert len(found[40].shingles) == 0  # no shingle, so no near duplicate of anything


def test_clusters_equal_brute_force(texts, similarities):
    first = list(range(len(texts)))  # the first document of each one's cluster
    for (i, j), found in sorted(similarities.items()):
        if found >= 0.8:
            a, b = sorted((first[i], first[j]))
            first = [a if x == b else x for x in first]
    found = near_dedup.decide(NearDedupConfig(), sketches(texts))
    assert [i if x is None else x.first for i, x in enumerate(found)] == first
    for place, copy in enumerate(found):
        if copy:
            assert copy.name == str(copy.first)
            assert copy.similarity == similarities[copy.first, place]
    assert 50 < len([x for x in found if x]) < 150
    assert [x for x in found if x and x.similarity < 0.8]  # joined by one between the two


def test_candidates_are_as_many_as_theory_says(texts, similarities):
    """Those of datasketch too, which has hashes and minima of its own."""
    found = sketches(texts)
    signatures = np.stack([each.signature for each in found])
    bands = (signatures[:, i : i + 5] for i in range(0, 100, 5))
    everything = np.arange(len(texts))
    ours = {
        pair
        for band in bands
        for members in near_dedup.buckets(band, everything)
        for pair in itertools.combinations(members.tolist(), 2)
    }
    lsh, theirs = datasketch.MinHashLSH(num_perm=100, params=(20, 5)), set()
    for place, text in enumerate(texts):
        minima = datasketch.MinHash(100, seed=3)
        minima.update_batch([repr(x).encode() for x in shingles(text)])
        theirs |= {(other, place) for other in lsh.query(minima)}
        lsh.insert(place, minima)
    chance = {pair: 1 - (1 - s**5) ** 20 for pair, s in similarities.items()}
    mean = sum(chance.values())
    deviation = math.sqrt(sum(p * (1 - p) for p in chance.values()))
    for candidates in (ours, theirs):
        assert abs(len(candidates & chance.keys()) - mean) < 5 * deviation
        assert len(candidates - chance.keys()) < 3  # of equal hashes by chance
        assert {pair for pair, s in similarities.items() if s >= 0.8} <= candidates
    for i, j in similarities:
        equal = np.mean(signatures[i] == signatures[j])
        assert abs(equal - similarities[i, j]) < near_dedup.MARGIN


def test_languages_without_spaces_and_many_equal_documents():
    rng = random.Random(1)
    chinese = "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(400))
    changed = chinese[:200] + "字" + chinese[201:]
    other = "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(400))
    texts = [chinese, other, changed, *[chinese] * 300]
    found = near_dedup.decide(NearDedupConfig(), sketches(texts))
    assert [copy.first if copy else None for copy in found[:3]] == [None, None, 0]
    assert {copy.first for copy in found[3:]} == {0}


def test_the_reason_names_the_first_and_a_chain_to_it():
    for share, chain in ((0.9, False), (0.5, True)):
        verdict = Copy(0, "first", share)
        left, (found,) = near_dedup.apply(NearDedupConfig(), Document("", "x"), verdict)
        assert left is None and found.score == share
        assert f"{share:.1%} of its shingles and those of first" in found.reason
        assert ("a chain of documents" in found.reason) == chain
