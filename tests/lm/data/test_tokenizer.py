"""Whatever the tokenizer: the text comes back, and each of its bytes is in one token."""

import itertools
import random
import re

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from configs import fields
from lm.data.classes import CLASSES, character_classes, encode_classes, token_classes
from lm.data.config import DataConfig
from lm.data.tokenizer import (
    END_OF_TEXT,
    LEAST_VOCAB_SIZE,
    NUM_BYTES,
    cuts,
    encode_documents,
    load_tokenizer,
    sample_of_all,
    split_text,
    token_bytes,
    train_tokenizer,
)
from lm.vocabulary import END_ID

CODE = (
    "def total(x):\n\treturn x + 12.5  # naïve Größe, 漢字\n\n\nprint(total(3), 'Größe')\n"
)
# What a text may be made of that is easy to get wrong.
PARTS = [
    " ", "   ", "\t", "\n", "\r\n", "\r", "\x0b\x1c\x85\u2028\u3000", "\x00", "\x7f",
    "\x80", "\xff", "\u0120", "\ufeff", "\ufffd", "\U0010ffff", "e\u0301\u0323", "é",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "漢字", "שָׁלוֹם", "\u202eabc", "🎉",
    "👩\u200d👩\u200d👧", "🇩🇪", "<0xE2>", "##ing", "▁a", END_OF_TEXT, "<|", "'s", "a",
    "Wort", "word", "123", "x1_", "):", CODE,
]  # fmt: skip


def vocab_size(kind: str, num_more: int = 60) -> int:
    return NUM_BYTES if kind == "byte" else NUM_BYTES + num_more


def made(kind: str, num_more: int = 60):
    return train_tokenizer(kind, [CODE, *PARTS[:24]] * 2, vocab_size(kind, num_more))


def odd_texts(num: int):
    rng = random.Random(0)
    yield from ("", *PARTS)
    for _ in range(num):
        yield "".join(rng.choices(PARTS, k=rng.randint(2, 12)))
    for _ in range(num):  # any characters that there are, but for halves of pairs
        drawn = (rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))
                 for _ in range(rng.randint(1, 30)))  # fmt: skip
        yield "".join(map(chr, drawn))


@pytest.mark.parametrize("kind", LEAST_VOCAB_SIZE)
def test_gives_back_any_text_and_its_bytes(tmp_path, kind, monkeypatch):
    tokenizer = made(kind)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lengths, texts = token_bytes(tokenizer), list(odd_texts(300))
    assert lengths[END_ID] == 0 and lengths[1:].min() == 1
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    found = list(encode_documents(tokenizer, texts))
    monkeypatch.setattr("lm.data.tokenizer.BATCH", 900)
    by_loaded = encode_documents(loaded, texts)
    for text, ids, again in zip(texts, found, by_loaded, strict=True):
        assert ids[0] == ids[-1] == END_ID
        assert END_ID not in ids[1:-1]
        np.testing.assert_array_equal(ids, again)
        for special in (True, False):
            found = loaded.decode(ids[1:-1].tolist(), skip_special_tokens=special)
            assert found == text
        assert lengths[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", LEAST_VOCAB_SIZE)
def test_ids_are_without_holes_and_bytes_come_first(kind):
    tokenizer = made(kind)
    num = tokenizer.get_vocab_size()
    assert num == NUM_BYTES if kind == "byte" else NUM_BYTES + 20 < num <= vocab_size(kind)
    assert sorted(tokenizer.get_vocab().values()) == list(range(num))
    assert (token_bytes(tokenizer)[1:NUM_BYTES] == 1).all()


def test_characters_are_one_token_or_their_bytes():
    tokenizer = train_tokenizer("character", ["éé漢漢漢 aa 🎉"], NUM_BYTES + 1)
    assert token_bytes(tokenizer)[NUM_BYTES:].tolist() == [3]  # there is room for one
    tokenizer = train_tokenizer("character", ["éé漢漢漢 aa 🎉"], 400)
    # One that was seen once is spelled, and so is one that was never seen.
    assert token_bytes(tokenizer)[NUM_BYTES:].tolist() == [3, 2]  # the commonest first
    for character, num in [("é", 1), ("漢", 1), ("a", 1), ("🎉", 4), ("ü", 2)]:
        assert len(tokenizer.encode(character).ids) == num
    ids = tokenizer.encode("e\u0301é").ids  # a combining accent is a character
    assert token_bytes(tokenizer)[ids].tolist() == [1, 1, 1, 2]


def test_words_are_one_token_or_their_bytes():
    text = "the cat saw the cat, and (the) dog's tail\n\n"
    words = re.findall(r"'s| ?[a-z]+| ?[^\sa-z]+|\s+", text)
    assert "".join(words) == text
    tokenizer = train_tokenizer("word", [text] * 2, 400)
    assert tokenizer.get_vocab_size() == NUM_BYTES + len({w for w in words if len(w) > 1})
    assert [tokenizer.decode([i]) for i in tokenizer.encode(text).ids] == words
    assert len(tokenizer.encode(" catt").ids) == 5
    tokenizer = train_tokenizer("word", [text], 400)
    found = [tokenizer.decode([i]) for i in range(NUM_BYTES, tokenizer.get_vocab_size())]
    assert sorted(found) == [" cat", "the"]  # the others were seen once


def test_few_words_are_the_commonest():
    text = " rare" * 3 + " often" * 5 + " most" * 7 + " e" * 2
    tokenizer = train_tokenizer("word", [text], NUM_BYTES + 2)
    assert tokenizer.decode([NUM_BYTES, NUM_BYTES + 1]) == " most often"


@pytest.mark.parametrize("kind", LEAST_VOCAB_SIZE)
def test_classes_are_those_of_the_characters(kind):
    """By the place of each token's bytes in the text, whatever the tokenizer says."""
    tokenizer = made(kind)
    (ids,) = encode_documents(tokenizer, [CODE])
    ends = np.cumsum(token_bytes(tokenizer)[ids])
    of_byte = np.repeat(character_classes(CODE), [len(c.encode()) for c in CODE])
    classes = token_classes(CODE, tokenizer)
    assert len(classes) == len(ids)
    np.testing.assert_array_equal(next(encode_classes([CODE], tokenizer)), classes)
    raw = CODE.encode()
    for start, end, found in zip(ends[:-2], ends[1:-1], classes[1:-1], strict=True):
        piece = raw[start:end]
        first = start + len(piece) - len(piece.lstrip())
        expected = of_byte[first] if piece.strip() else CLASSES.index("space")
        assert found == expected


def test_long_texts_are_cut_at_line_ends(monkeypatch):
    monkeypatch.setattr("lm.data.tokenizer.CHUNK", 50)
    text = "".join(f"line {i}\n" for i in range(100)) + "x" * 130
    parts = list(split_text(text))
    assert "".join(parts) == text
    assert all(len(part) <= 50 for part in parts)
    assert all(part.endswith("\n") for part in parts[:16])
    assert list(split_text("")) == [""] and list(split_text("x" * 100)) == ["x" * 50] * 2


def test_classes_and_ids_of_a_text_of_many_chunks_are_of_the_same_tokens(monkeypatch):
    monkeypatch.setattr("lm.data.tokenizer.CHUNK", 37)
    tokenizer, text = made("bpe"), "\x0c" + CODE * 5 + "a\u2028b = 'c'\n" + CODE
    (ids,) = encode_documents(tokenizer, [text])
    classes = token_classes(text, tokenizer)
    assert len(ids) == len(classes)
    assert tokenizer.decode(ids[1:-1].tolist()) == text
    names = {"def": "keyword", "return": "keyword", "naïve": "comment", "print": "name"}
    begins = np.cumsum(token_bytes(tokenizer)[ids])[:-1]
    of_byte = dict(zip(begins.tolist(), classes[1:].tolist(), strict=True))
    for name, kind in names.items():
        places = [m.start() for m in re.finditer(name.encode(), text.encode())]
        # A word's token may begin with the space before it.
        found = {of_byte.get(p, of_byte.get(p - 1)) for p in places} - {None}
        assert {CLASSES[each] for each in found} == {kind}


def test_words_are_those_of_gpt_2_up_to_a_length():
    ours, gpt_2 = cuts("bpe"), pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in odd_texts(200):
        assert ours.pre_tokenize_str(text) == gpt_2.pre_tokenize_str(text)
    for run in ("漢", "x", "7", "-", " ", "\n"):
        text = f"a {run * 1000} b"
        lengths = [end - start for _, (start, end) in ours.pre_tokenize_str(text)]
        assert sum(lengths) == len(text) and max(lengths) == 257 - run.isspace()


def test_a_sample_is_of_all_texts_and_at_most_what_was_asked_for(monkeypatch):
    monkeypatch.setattr("lm.data.tokenizer.CHUNK", 100)
    texts = ["".join(f"{i} {j}\n" for j in range(90)) for i in range(60)]
    whole = sum(map(len, texts))
    assert "".join(sample_of_all(texts, whole)) == "".join(texts)
    for share in (10, 3):
        found = sample_of_all(iter(texts), whole // share)
        assert whole // share - 100 <= sum(map(len, found)) <= whole // share
        assert found == sample_of_all(iter(texts), whole // share)
        places = [int(chunk.split()[0]) for chunk in found]
        assert places == sorted(places)
        # Chunks of half of the documents or more; a head would have a tenth, or a third.
        assert len(set(places)) >= 27 and abs(np.mean(places) - 29.5) < 5
    assert sample_of_all(texts, 0) == []


def test_a_piece_that_was_seen_once_gets_no_token():
    tokenizer = train_tokenizer("bpe", ["again again once"], 400)
    assert [len(tokenizer.encode(word).ids) for word in ("again", "once")] == [1, 4]


REFUSED = [
    ("sentencepiece", 400, "'sentencepiece'.* bpe, byte, character, word"),
    ("bpe", 256, "vocab_size .*256.* 257"),
    ("character", 257, "'character' .* 258.* 257 "),
    ("word", 257, "'word' .* 258"),
    ("byte", 256, "vocab_size .*256.* 257"),
    ("byte", 4096, "vocab_size .*4096.*'byte' .* 257"),
]


@pytest.mark.parametrize("kind, size, words", REFUSED)
def test_bad_config_is_refused(kind, size, words):
    config = DataConfig("text", tokenizer=kind, vocab_size=size)
    with pytest.raises(ValueError, match=words):
        fields.check(config, "data.")
        config.validate()


def test_every_kind_takes_its_least_vocabulary():
    for kind, least in LEAST_VOCAB_SIZE.items():
        DataConfig("text", tokenizer=kind, vocab_size=least).validate()
        tokenizer = train_tokenizer(kind, itertools.repeat(CODE, 2), least)
        assert tokenizer.get_vocab_size() == least
