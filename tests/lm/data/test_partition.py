"""Partitions of documents over shards: their laws, on documents of planted groups."""

import collections

import numpy as np
import pytest

from lm.data.rows.partition import PARTITIONS, Sketch, assign, kind_of, sketch

SHARDS = 4
WORDS = ["alpha beta gamma", "uno dos tres", "eins zwei drei", "one two three"]


def documents(policy: str, num: int = 200) -> list[Sketch]:
    """Make documents of four vocabularies, in five folders of unequal size."""
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(WORDS[i % 4].split(), rng.integers(5, 200))) for i in range(num)
    ]
    keys = rng.choice(5, num, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    return [sketch(t, f"k{key}", policy) for t, key in zip(texts, keys, strict=True)]


def loads(sketches, chosen) -> list[int]:
    return np.bincount(chosen, [s.size for s in sketches], SHARDS).tolist()


@pytest.mark.parametrize("policy", PARTITIONS)
def test_equal_shards_have_room_for_one_document_more_at_most(policy):
    sketches = documents(policy)
    chosen = assign(sketches, policy, SHARDS, "equal")
    share = sum(s.size for s in sketches) / SHARDS
    assert max(loads(sketches, chosen)) < share + max(s.size for s in sketches)
    # The same documents give the same shards.
    assert chosen.tolist() == assign(sketches, policy, SHARDS, "equal").tolist()
    # A shard alone has everything.
    assert set(assign(sketches, policy, 1, "equal").tolist()) == {0}


def test_natural_shards_hold_what_belongs_together():
    sketches = documents("kmeans")
    by_words = assign(sketches, "kmeans", SHARDS, "natural")
    # The four vocabularies are four clusters: each shard has one of them.
    for first in range(4):
        assert len(set(by_words[first::4].tolist())) == 1
    assert len(set(by_words[:4].tolist())) == 4
    by_key = assign(sketches, "dictionary", SHARDS, "natural")
    found = collections.defaultdict(set)
    for each, shard in zip(sketches, by_key, strict=True):
        found[each.key].add(int(shard))
    assert all(len(shards) == 1 for shards in found.values())
    by_range = assign(sketches, "range", SHARDS, "natural")
    assert (np.diff(by_range) >= 0).all()
    turns = assign(sketches, "round_robin", SHARDS, "natural")
    assert turns.tolist() == [i % SHARDS for i in range(len(sketches))]
    # A hash does not look at the order of the documents.
    by_hash = assign(sketches, "hash", SHARDS, "natural")
    assert by_hash[::-1].tolist() == assign(sketches[::-1], "hash", 4, "natural").tolist()


def test_a_share_of_the_documents_goes_by_the_hash():
    sketches = documents("kmeans")
    assigned = {
        share: assign(sketches, "kmeans", SHARDS, "natural", share) for share in (0, 0.3, 1)
    }
    by_hash = assign(sketches, "hash", SHARDS, "natural")
    assert assigned[1].tolist() == by_hash.tolist()
    # Which documents go does not depend on the others, and the rest stays where it was.
    shuffled = np.array([s.digest / 2**64 < 0.3 for s in sketches])
    assert 0.2 < shuffled.mean() < 0.4
    expected = np.where(shuffled, by_hash, assigned[0])
    assert assigned[0.3].tolist() == expected.tolist()


def test_a_grid_keeps_kinds_and_lengths_apart():
    sizes = [10, 20, 1000, 2000] * 25
    sketches = [
        Sketch(i, size, "", ("prose", "code")[i // 4 % 2]) for i, size in enumerate(sizes)
    ]
    chosen = assign(sketches, "grid", SHARDS, "natural")
    cells = collections.defaultdict(set)
    for each, shard in zip(sketches, chosen, strict=True):
        cells[int(shard)].add((each.kind, each.size >= 1000))
    assert all(len(cell) == 1 for cell in cells.values())


def test_kinds():
    assert kind_of("The quick brown fox jumps over the lazy dog. " * 9) == "prose"
    assert kind_of("def f(x): return {x: [x + 1 for _ in y.z(x)]}\n" * 9) == "code"
    assert kind_of("12.5, 13.7, 14.99\n" * 9) == "numbers"
    assert kind_of("") == "prose" == kind_of("\ud800 stands alone among words")


def test_bad_input_names_the_numbers():
    sketches = documents("hash", 3)
    with pytest.raises(ValueError, match="data.shards is 4, but there are 3 training"):
        assign(sketches, "hash", 4, "equal")
    alike = [Sketch(7, 10, "a", "prose")] * 9
    with pytest.raises(ValueError, match="dictionary has 1 keys .a. for data.shards 4"):
        assign(alike, "dictionary", 4, "natural")
    with pytest.raises(ValueError, match="hash leaves 3 of data.shards 4 without"):
        assign(alike, "hash", 4, "natural")
