"""Span corruption: source and target together are the text, on disk and in each epoch."""

import numpy as np
import pytest

from configs import fields
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.data.rows.buckets import bucket_of
from lm.data.rows.order import Order, step_rows, train_batches
from lm.data.rows.packing import TOKEN
from lm.data.rows.spans import (
    NOT_IN_TEXT,
    SENTINELS,
    SpansConfig,
    longest_piece,
    span_row,
    span_rows,
    text_of,
)
from lm.data.sources.files import text_corpus
from lm.data.tokenizer import train_tokenizer
from tests.experiments.runs import write_corpus

SOURCE, LENGTH = 24, 40
CONFIG = SpansConfig(rate=0.3, mean_span=2.0)


def by_hand(row):
    """Put a text together as a reader would: look up the run of each sentinel."""
    source, target = row[:SOURCE].tolist(), row[SOURCE + 1 :].tolist()
    runs, text = {}, []
    for token in target[: target.index(0)] if 0 in target else target:
        if token in SENTINELS:
            runs[token] = run = []
        else:
            run.append(token)
    for token in source[: source.index(0)]:
        text += runs.pop(token) if token in SENTINELS else [token]
    assert not runs
    return text


def test_no_text_has_the_bytes_of_the_sentinels():
    numbers = [*range(0xD800), *range(0xE000, 0x110000)]
    used = set("".join(map(chr, numbers)).encode())
    assert set(range(256)) - used == set(NOT_IN_TEXT) and len(NOT_IN_TEXT) == 13
    tokenizer = train_tokenizer("bpe", ["naïve ¿qué?"] * 9, 300)
    found = [tokenizer.decode([token]) for token in SENTINELS]
    assert found == ["\ufffd"] * 13
    assert [tokenizer.id_to_token(token) for token in SENTINELS] == list(
        map(chr, NOT_IN_TEXT)
    )


def test_source_and_target_restore_each_text():
    rng = np.random.default_rng(0)
    longest = longest_piece(CONFIG, LENGTH, SOURCE)
    for length in [*range(2, longest + 1)] * 5:
        text = rng.integers(300, 999, length).astype(np.int32)
        tokens, segments = span_row(CONFIG, text, LENGTH, SOURCE, rng)
        assert by_hand(tokens) == text_of(tokens, SOURCE).tolist() == text.tolist()
        taken = min(max(round(0.3 * length), 1), length - 1)
        runs = min(max(round(taken / 2), 1), taken, length - taken)
        assert np.isin(tokens[:SOURCE], SENTINELS).sum() == runs
        inside = np.flatnonzero(segments)
        # The mark before the target, sentinels and runs, the mark after it.
        assert inside.tolist() == [*range(SOURCE, SOURCE + taken + runs + 2)]
        assert tokens[SOURCE] == tokens[inside[-1]] == 0


def test_weights_and_documents_go_with_their_tokens():
    text = np.zeros(20, TOKEN)
    text["id"], text["weight"] = np.arange(300, 320), np.arange(20) / 10
    text["document"] = 7
    row, segments = span_row(CONFIG, text, LENGTH, SOURCE, np.random.default_rng(1))
    assert (row["document"] == 7).all()
    for place in np.flatnonzero(row["id"]):
        token = row["id"][place]
        first = row["id"][place + 1] if token in SENTINELS and place > SOURCE else token
        if first not in SENTINELS:
            assert row["weight"][place] == pytest.approx((first - 300) / 10)


def test_documents_are_cut_into_pieces_that_fit():
    documents = [np.concatenate([[0], np.arange(n) + 300, [0]]) for n in (100, 3, 1, 0, 29)]
    rows = list(span_rows(CONFIG, documents, LENGTH, SOURCE))
    longest, pieces = longest_piece(CONFIG, LENGTH, SOURCE), []
    for document in documents:
        for start in range(0, len(document) - 2, longest):
            piece = document[1:-1][start : start + longest].tolist()
            pieces += [piece] if len(piece) > 1 else []
    assert [by_hand(tokens) for tokens, _ in rows] == pieces


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spans")
    write_corpus(folder / "corpus")
    config = DataConfig(
        source="text", path=str(folder / "corpus"), cache=str(folder / "cache"), stages="",
        vocab_size=300, seq_len=LENGTH, source_len=SOURCE, packing="spans", spans=CONFIG,
        batch_size=16, equal_tokens=True,
    )  # fmt: skip
    fields.check(config, "data.")
    config.validate()
    return config, prepare(config)


def test_prepared_rows_hold_the_text(prepared):
    config, data = prepared
    corpus = text_corpus(config.path, "", 0.05)
    for split in ("train", "validation"):
        rows = getattr(data, split)
        found = sum((by_hand(row) for row in np.asarray(rows.tokens)), [])
        texts = dict.fromkeys(corpus.texts(split))
        expected = sum((data.tokenizer.encode(text).ids for text in texts), [])
        # A last piece of one token is left out.
        assert 0 <= len(expected) - len(found) <= len(texts)
        counts = (np.bincount(x, minlength=300) for x in (expected, found))
        assert np.abs(np.subtract(*counts)).sum() == len(expected) - len(found)


def test_each_epoch_corrupts_anew_and_keeps_the_text(prepared):
    config, data = prepared
    order = Order(1, 16, lengths=config.lengths, source_len=SOURCE, spans=CONFIG)
    plain = Order(1, 16, source_len=SOURCE, spans=CONFIG)
    steps = -(-len(data.train.tokens) // 16) + 2
    seen = {}
    for step, batch in enumerate(train_batches(data.train, plain, 0, steps)):
        for row, tokens, segments in zip(
            step_rows(data.train, plain, step), batch["tokens"], batch["segments"],
            strict=True,
        ):  # fmt: skip
            stored = data.train.tokens[row]
            assert by_hand(tokens) == by_hand(stored)
            np.testing.assert_array_equal(segments, data.train.segments[row])
            seen.setdefault(row, []).append(tokens.tolist())
    twice = [each for each in seen.values() if len(each) > 1]
    assert len(twice) > 9 and sum(a != b for a, b in twice) > len(twice) / 2
    (again,) = train_batches(data.train, plain, steps - 1, steps)
    np.testing.assert_array_equal(again["tokens"], batch["tokens"])
    assert config.lengths == (40, 20, 10)
    # A corruption needs as much room in each epoch, so rows can be cut to one length.
    for batch in train_batches(data.train, order, 0, 9):
        cut_to = batch["tokens"].shape[1] - 1
        assert len(batch["tokens"]) * cut_to == 16 * LENGTH
    for row in range(9):
        args = data.train.segments[row], SOURCE, config.lengths
        assert bucket_of(data.train.tokens[row], *args) == data.train.buckets[row]


def test_weighted_rows_keep_their_corruption(prepared):
    _, data = prepared
    weights = np.ones(data.train.tokens.shape, np.float32)
    order = Order(1, 16, source_len=SOURCE, spans=CONFIG)
    rows = data.train._replace(weights=weights, parts=())
    (batch,) = train_batches(rows, order, 0, 1)
    stored = data.train.tokens[step_rows(rows, order, 0)]
    np.testing.assert_array_equal(batch["tokens"], stored)


def test_what_cannot_be_corrupted_is_refused():
    spans = {"packing": "spans", "seq_len": 512, "source_len": 400}
    for changes, words in [
        (spans, r"a text of 444 tokens.* has 22 runs .* 13 sentinels; raise"),
        (spans | {"source_len": 0}, "data.source_len is 0; it must be at least 2"),
        (spans | {"source_len": 2}, "source_len 2 of data.seq_len 512 has no room"),
        ({"source_len": 9}, "9, but it has no effect where data.source is 'stdlib' and"),
        (
            spans | {"seq_len": 64, "source_len": 40, "tokenizer": "pretrained",
                     "tokenizer_file": "x"},
            "but data.tokenizer is 'pretrained'",
        ),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            DataConfig(**changes).validate()
