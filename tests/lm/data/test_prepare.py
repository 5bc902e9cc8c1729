"""No token lost, none twice, and the batch of step k a function of (seed, k)."""

import collections
import dataclasses
import errno
import json
import math
import pathlib
import random
import threading
import time

import filelock
import numpy as np
import pytest

from configs import fields
from lm.data import prepare as preparation
from lm.data.bigram import ADD_K
from lm.data.cleaning.clean import clean
from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.data.rows.order import Order, step_rows, train_batches, validation_batches
from lm.data.rows.packing import PACKINGS, concatenate, first_fit
from lm.data.sources.files import jsonl_corpus, text_corpus
from lm.data.tokenizer import LEAST_VOCAB_SIZE, encode_documents
from lm.vocabulary import END_ID
from tests.experiments.runs import write_corpus


def documents(num=300, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 90, num)
    return [rng.integers(1, 1000, n).astype(np.int32) for n in lengths]


def pairs_of_documents(docs):
    return collections.Counter(
        pair for d in docs for pair in zip(d[:-1].tolist(), d[1:].tolist(), strict=True)
    )


def pairs_of_rows(rows):
    counts = collections.Counter()
    for tokens, segments in rows:
        inside = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        previous, following = tokens[:-1][inside], tokens[1:][inside]
        counts.update(zip(previous.tolist(), following.tolist(), strict=True))
    return counts


@pytest.mark.parametrize("seq_len", [3, 16, 40])
def test_first_fit_keeps_every_target_once(seq_len):
    docs = documents()
    rows = list(first_fit(docs, seq_len))
    assert all(t.shape == s.shape == (seq_len + 1,) for t, s in rows)
    assert pairs_of_rows(rows) == pairs_of_documents(docs)


def test_first_fit_wastes_little():
    docs = documents(3000)
    rows = list(first_fit(docs, 64))
    fewest = sum(map(len, docs)) / 65
    assert len(rows) < 1.05 * fewest


def test_concatenation_keeps_the_stream():
    docs = [np.array([END_ID, *d, END_ID]) for d in documents(100)]
    rows = [tokens for tokens, _ in concatenate(docs, 16)]
    stream = np.concatenate([rows[0]] + [row[1:] for row in rows[1:]])
    whole = np.concatenate([docs[0]] + [d[1:] for d in docs[1:]])
    assert len(whole) - len(stream) < 16
    np.testing.assert_array_equal(stream, whole[: len(stream)])


def test_clean():
    assert clean("\ufeffa\r\nb\rc\x00") == "a\nb\nc"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder / "corpus", 30)
    return folder


def config(folder, **changes):
    return DataConfig(
        **{
            "source": "text", "path": str(folder / "corpus"),
            "cache": str(folder / "cache"),
            "vocab_size": 300, "seq_len": 32, "batch_size": 8, **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize("packing", PACKINGS)
def test_prepared_rows_hold_the_text(folder, packing):
    data = prepare(config(folder, packing=packing))
    corpus = text_corpus(str(folder / "corpus"), "", 0.05)
    wanted = dict.fromkeys(corpus.texts("train"))
    expected = pairs_of_documents(encode_documents(data.tokenizer, wanted))
    found = pairs_of_rows(zip(*data.train[:2], strict=True))
    if packing != "concat":
        assert found == expected
    else:  # an end mark is the next document's start mark; the tail is dropped
        assert 0 <= expected.total() - found.total() < 32
    assert found.total() == data.meta["train"]["targets"]


def test_each_tokenizer_has_its_own_cache(folder):
    made = [
        prepare(config(folder, tokenizer=kind, vocab_size=least)).meta["fingerprint"]
        for kind, least in LEAST_VOCAB_SIZE.items()
    ]
    assert len(set(made)) == len(made)


def test_prepared_rows_are_reused_and_follow_the_text(folder, monkeypatch):
    first = prepare(config(folder))
    monkeypatch.setattr(preparation, "make_rows", lambda *_: pytest.fail("made again"))
    assert prepare(config(folder)).meta == first.meta
    monkeypatch.undo()
    with (folder / "corpus" / "0.txt").open("a") as file:
        file.write("one more line\n")
    assert prepare(config(folder)).meta["fingerprint"] != first.meta["fingerprint"]


def test_bigram_loss_equals_a_count_by_hand(folder):
    data = prepare(config(folder))
    train = pairs_of_rows(zip(*data.train[:2], strict=True))
    held_out = pairs_of_rows(zip(*data.validation[:2], strict=True))
    contexts = collections.Counter()
    for (previous, _), n in train.items():
        contexts[previous] += n
    vocab_size = data.meta["vocab_size"]
    losses = []
    for k in ADD_K:
        nats = sum(
            n * -math.log((train[a, b] + k) / (contexts[a] + k * vocab_size))
            for (a, b), n in held_out.items()
        )
        losses.append(nats / held_out.total())
    assert data.meta["bigram_loss"] == pytest.approx(min(losses), rel=1e-9)


def test_each_epoch_takes_every_row_once(folder):
    rows = prepare(config(folder)).train
    num_rows = len(rows.tokens)
    steps = math.ceil(3 * num_rows / 8)
    taken = [row for k in range(steps) for row in step_rows(rows, Order(1, 8), k)]
    epochs = [taken[i * num_rows : (i + 1) * num_rows] for i in range(3)]
    assert all(sorted(epoch) == list(range(num_rows)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert step_rows(rows, Order(2, 8), 0) != step_rows(rows, Order(1, 8), 0)


def test_batches_are_a_function_of_the_step(folder):
    rows = prepare(config(folder)).train
    whole = list(train_batches(rows, Order(1, 8), 0, 9))
    resumed = list(train_batches(rows, Order(1, 8), 5, 9))
    for a, b in zip(whole[5:], resumed, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    for k, batch in enumerate(whole):
        expected = rows.tokens[step_rows(rows, Order(1, 8), k)]
        np.testing.assert_array_equal(batch["tokens"], expected)


def test_processes_share_each_batch(folder):
    rows = prepare(config(folder)).train
    whole = list(train_batches(rows, Order(1, 8), 0, 4))
    parts = [list(train_batches(rows, Order(1, 8), 0, 4, p, 2)) for p in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in batch:
            joined = np.concatenate([first[name], second[name]])
            np.testing.assert_array_equal(joined, batch[name])


def test_validation_takes_every_row_once(folder):
    rows = prepare(config(folder)).validation
    batches = list(validation_batches(rows, 8))
    found = pairs_of_rows(
        (t, s) for b in batches for t, s in zip(b["tokens"], b["segments"], strict=True)
    )
    assert found == pairs_of_rows(zip(*rows[:2], strict=True))
    assert all(len(b["tokens"]) == 8 for b in batches)


def test_jsonl_splits_by_document(tmp_path):
    rng = random.Random(0)
    texts = [f"document {i} {rng.random()}" for i in range(400)]
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    corpus = jsonl_corpus(str(tmp_path / "*.jsonl"), "", 0.25, "body")
    train, held_out = (list(corpus.texts(s)) for s in ("train", "validation"))
    assert sorted(train + held_out) == sorted(texts)
    assert 60 < len(held_out) < 140


def test_held_out_files(tmp_path):
    (tmp_path / "a.txt").write_text("train text\n")
    (tmp_path / "b.txt").write_text("held out\n")
    corpus = text_corpus(str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), 0.5)
    assert list(corpus.texts("train")) == ["train text\n"]
    assert list(corpus.texts("validation")) == ["held out\n"]


def bad_text(tmp_path, content: bytes, name="bad.txt"):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


def test_bad_files_are_named(tmp_path):
    cases = [
        (str(tmp_path / "none-*.txt"), "matches no file"),
        (bad_text(tmp_path, b""), "is empty"),
        (bad_text(tmp_path, b"good \xff bad", "latin.txt"), "latin.txt.*byte 5 is 0xff"),
        (bad_text(tmp_path, b"short text", "short.txt"), "too short for one row"),
        (blank := bad_text(tmp_path, b" \n \n", "blank.txt"), "train text has no document"),
    ]
    for path, words in cases:
        with pytest.raises(ValueError, match=words):
            prepare(config(tmp_path, path=path))
    path = bad_text(tmp_path, b"text", "a.txt")
    for split in ("validation", "shifted"):
        with pytest.raises(ValueError, match=f"the {split} text has no document with text"):
            prepare(config(tmp_path, path=path, **{f"{split}_path": blank}))
    cases = [
        (b'{"text": "a"}\nnot json\n', "line 2 is not JSON"),
        (b'{"texts": "a"}\n', "line 1 has no text under 'text'"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "byte 24 is 0xff"),
    ]
    for content, words in cases:
        path = bad_text(tmp_path, content, "bad.jsonl")
        with pytest.raises(ValueError, match=words):
            prepare(config(tmp_path, source="jsonl", path=path))


def test_a_wait_for_another_process_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preparation, "SILENT_SECONDS", 0.05)
    held, released = threading.Event(), threading.Event()

    def other():
        with filelock.FileLock(tmp_path / "rows.lock"):
            held.set()
            time.sleep(0.3)
            released.set()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with preparation.locked(tmp_path / "rows"):
        assert released.is_set()
    thread.join()
    told = capsys.readouterr().err
    assert told.count("waiting for the process that prepares") == 1
    with preparation.locked(tmp_path / "rows"):
        pass
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"source": "texts"}, "stdlib, tfds, text, jsonl"),
        ({"packing": "best_fit"}, "first_fit, concat"),
        ({"vocab_size": 100}, "vocab_size .*100.* 257"),
        ({"source": "text", "validation_share": 1.5}, "validation_share .*1.5"),
        ({"batch_size": 0}, "batch_size .*0.* 1"),
    ],
)
def test_bad_config_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        fields.check(DataConfig(**changes), "data.")


@pytest.fixture
def own(tmp_path):
    """A corpus and a cache for one test to damage."""
    write_corpus(tmp_path / "corpus")
    return config(tmp_path)


def test_prepared_rows_are_loaded_by_their_fingerprint_alone(own):
    first = prepare(own)
    pathlib.Path(own.path, "0.txt").write_text("another text\n")
    loaded = preparation.load_prepared(own, first.meta["fingerprint"])
    np.testing.assert_array_equal(loaded.train.tokens, first.train.tokens)
    assert loaded.tokenizer.to_str() == first.tokenizer.to_str()
    assert preparation.load_prepared(own, "0" * 16) is None


def test_a_damaged_cache_is_refused_and_named(own):
    made = prepare(own)
    cache = preparation.rows_folder(own, made.meta["fingerprint"])
    for name, text in [("meta.json", ""), ("tokenizer.json", "{}"), ("train.tokens", "x")]:
        whole = (cache / name).read_bytes()
        (cache / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{cache.name} is damaged .*remove that"):
            prepare(own)
        (cache / name).write_bytes(whole)
    assert prepare(own).meta == made.meta


def test_a_full_disk_leaves_no_half_of_a_cache(own, monkeypatch):
    def full(config, corpus, made, *_):
        (made / "train.tokens").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preparation, "make_rows", full)
    with pytest.raises(OSError, match="No space left.*make room there, or set data.cache"):
        prepare(own)
    kept = pathlib.Path(own.cache, "rows").iterdir()
    assert [file.suffix for file in kept] == [".lock"]


def test_a_killed_preparation_goes_on_with_the_split_that_it_was_at(own, monkeypatch):
    whole = prepare(dataclasses.replace(own, cache=f"{own.cache}_whole"))
    real, written = preparation.write_shards, []

    def write(rows, folder, split, meta):
        written.append(split)
        if written == ["train", "validation"]:
            raise KeyboardInterrupt
        return real(rows, folder, split, meta)

    monkeypatch.setattr(preparation, "write_shards", write)
    assert preparation.state(own) == "absent"
    with pytest.raises(KeyboardInterrupt):
        prepare(own)
    assert preparation.state(own) == "begun"
    monkeypatch.setattr(preparation, "train_tokenizer", lambda *_: pytest.fail("again"))
    again = prepare(own)
    assert preparation.state(own) == "done"
    assert written == ["train", "validation", "validation"]
    assert again.meta == whole.meta
    folders = [preparation.rows_folder(own, whole.meta["fingerprint"])]
    folders.append(pathlib.Path(f"{own.cache}_whole", "rows", folders[0].name))
    found = [{f.name: f.read_bytes() for f in folder.iterdir()} for folder in folders]
    assert found[0] == found[1] and "documents" in found[0]
