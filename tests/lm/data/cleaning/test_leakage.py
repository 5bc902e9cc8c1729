"""Held-out documents that repeat training documents, against their definition."""

import random

import pytest

from lm.data.cleaning import leakage
from lm.data.cleaning.leakage import LeakageConfig
from lm.data.cleaning.near_dedup import NearDedupConfig
from lm.data.prepare import prepare, prepared_documents
from lm.data.sources.corpus import Document
from tests.lm.data.test_prepare import config

LINE = "Four score and seven years ago, our fathers brought forth a new nation.\n"
HEADER = "".join(
    f"Licence, clause {i}: you may do what you want with it.\n" for i in range(9)
)
LEAKS = {
    LINE.upper(): LINE,
    LINE.replace(" ", "\t").replace(",", " --"): LINE,
    f"  {LINE}\n\n\n": LINE,
    LINE[:40]: LINE,  # the beginning of a training document
    LINE + "And so on, for some more words.": LINE,  # with a tail of its own
    "日本語の文書": "日本語の文書。",
    "!!!": "!!!",  # without any letter or digit
}
SOUND = {
    LINE[20:]: LINE,
    LINE + LINE[::-1] * 2: LINE,  # a training document is less than half of it
    HEADER + LINE * 9: HEADER
    + "Other words, as many, about "
    + "things of all kinds " * 30,
    "word": LINE,
    "!!!": "???",
    "42": "43",
}


def decide(train, held_out, near=None):
    texts = [*train, *held_out]
    found = LeakageConfig(near)
    sketches = [
        leakage.sketch(found, Document(text, str(i))) for i, text in enumerate(texts)
    ]
    return leakage.decide(found, sketches, len(train), texts)


def test_what_leaks_and_what_does_not():
    for pairs, leaks in ((LEAKS, True), (SOUND, False)):
        for held_out, train in pairs.items():
            *others, found = decide(["unlike all others", train], [held_out])
            assert others == [None, None]
            assert (found is not None) == leaks, held_out
            assert not leaks or found.first == 1
    # Training documents and pairs of held-out ones are never found.
    assert decide([LINE, LINE], ["something else", "something else"]) == [None] * 4


def test_beginnings_equal_brute_force():
    rng = random.Random(0)

    def words(text):
        return "".join(x for x in text.lower() if x.isalnum())

    train = ["".join(rng.choices("ab", k=rng.randint(1, 60))) for _ in range(200)]
    held_out = ["".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(100)]
    held_out += [x[: rng.randint(1, 60)] + rng.choice(["", " A", "b" * 9]) for x in train]
    found = decide(train, held_out)[len(train) :]
    counts = 0
    for text, copy in zip(held_out, found, strict=True):
        first = [
            i
            for i, other in enumerate(map(words, train))
            if other == words(text)
            or len(words(text)) >= 16
            and (
                other.startswith(words(text))
                or words(text).startswith(other)
                and 2 * len(other) >= len(words(text))
            )
        ]
        assert (copy and copy.first) == (first[0] if first else None), text
        counts += bool(first)
    assert 50 < counts < 250


def test_near_duplicates_leak_also_by_a_chain():
    rng = random.Random(0)
    first = [str(rng.random()) for _ in range(100)]
    second = [*first[:95], *map(str, range(5))]
    third = [*map(str, range(5, 12)), *second[7:]]
    texts = [" ".join(words) for words in (first, second, third)]
    near = NearDedupConfig()
    assert [x and x.first for x in decide(texts[:1], texts[1:], near)] == [None, 0, 0]
    assert decide(texts[:1], texts[2:], near) == [None, None]
    assert decide(texts[:1], texts[1:]) == [None] * 3


@pytest.mark.parametrize("stages", ["exact_dedup,near_dedup", ""])
def test_each_policy(tmp_path, stages, capsys):
    """Whichever stages are on, the same documents leak and are counted as leaks."""
    rng = random.Random(0)
    train = ["\n".join(str(rng.random()) for _ in range(99)) + "\n" for _ in range(3)]
    sound = train[0].replace("0.", "7-") + "held out\n"
    held_out = [train[1], train[2].replace("\n", " \n"), f"{train[0]}tail\n", sound]
    for folder, texts in (("train", train), ("held_out", held_out)):
        (tmp_path / folder).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / folder / f"{number}.txt").write_text(text)

    def prepared(leakage):
        made = prepare(
            config(tmp_path, path=str(tmp_path / "train"), stages=stages, leakage=leakage,
                   validation_path=str(tmp_path / "held_out"))
        )  # fmt: skip
        return made.meta

    meta = prepared("drop")
    assert meta["documents"] == {"train": 3, "validation": 1}
    assert meta["cleaning"]["leakage"]["validation"] == {"dropped": 3, "kept": 1}
    told = "train 3; validation 1 (leakage dropped 3)"
    assert f"documents after cleaning: {told}" in capsys.readouterr().err
    used = config(tmp_path)
    for split, texts in (("train", train), ("validation", [sound])):
        found = prepared_documents(used, meta["fingerprint"], split)
        assert [document.text for document in found] == texts
    with pytest.raises(ValueError, match="held_out.0.txt, of validation, repeats .*1.txt"):
        prepared("refuse")
    assert prepared("keep")["documents"] == {"train": 3, "validation": 4}
    (tmp_path / "held_out" / "3.txt").unlink()
    with pytest.raises(ValueError, match="no document of validation is left: leakage drop"):
        prepared("drop")
