"""The command that counts a corpus: the same losses on any devices, by any strategy."""

import collections
import json
import math

import jax
import numpy as np
import pytest

from experiments.run.checkpoint import Checkpoints
from experiments.run.ngram_counts import model_of, saved_counts
from lm.data.cleaning.dedup import deduplicate
from lm.data.sources.files import text_corpus
from lm.data.tokenizer import LEAST_VOCAB_SIZE, encode_documents, load_tokenizer
from parallel.counting.program import counting_program
from parallel.mesh import data_mesh
from tests.experiments.runs import ROOT, run, small, write_corpus
from tests.parallel.counting.test_counting import (
    assert_counts,
    batches,
    counting,
    numpy_counts,
    take,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ngrams")
    write_corpus(folder / "corpus", 30)
    return folder


def losses(folder, strategy: str, devices: int) -> dict[tuple[str, int], float]:
    file = folder / f"{strategy}.jsonl"
    overrides = {"parallel.strategy": strategy}
    result = run(
        "studies.ngrams", *small(folder, **overrides), f"--devices={devices}", "--rows=48",
        f"--results={file}",
    )  # fmt: skip
    assert "| kneser_ney | " in result.stdout
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {(line["smoothing"], line["order"]): line["loss"] for line in lines}


def test_every_order_and_smoothing(folder):
    found = losses(folder, "shard_map", 4)
    assert len(found) == 15
    assert found == pytest.approx(losses(folder, "jit", 1), rel=1e-6)
    (meta,) = folder.glob("cache/rows/*/meta.json")
    baseline = json.loads(meta.read_text())["bigram_loss"]  # with the best of several k
    assert baseline - 1e-5 < found["add_k", 2] < found["add_k", 1]


@pytest.fixture(scope="module")
def accented(tmp_path_factory):
    """A folder whose corpus has characters of several bytes."""
    folder = tmp_path_factory.mktemp("accented")
    for file in write_corpus(folder / "corpus").iterdir():
        file.write_text(file.read_text().replace("e", "é"))
    return folder


def bigram_by_hand(folder, tokenizer, k: float) -> tuple[float, float]:
    """Return the nats a token and the bits a byte of the text that is held out."""
    corpus, seen = text_corpus(str(folder / "corpus"), "", 0.05), set()
    train, held_out = (
        list(deduplicate(corpus.texts(split), seen)) for split in corpus.splits
    )
    pairs, firsts, words = (collections.Counter() for _ in range(3))
    for ids in encode_documents(tokenizer, train):
        pairs.update(zip(ids[:-1], ids[1:], strict=True))
        firsts.update(ids[:-1])
        words.update(ids[1:])
    size, nats, tokens = tokenizer.get_vocab_size(), 0.0, 0
    for ids in encode_documents(tokenizer, held_out):
        for first, word in zip(ids[:-1], ids[1:], strict=True):
            met = pairs[first, word], firsts[first]
            count, total = met if firsts[first] else (words[word], words.total())
            nats -= math.log((count + k) / (total + k * size))
            tokens += 1
    return nats / tokens, nats / math.log(2) / sum(len(t.encode()) for t in held_out)


@pytest.mark.parametrize("kind", LEAST_VOCAB_SIZE)
def test_a_bigram_over_each_tokenizer_is_that_by_hand(accented, kind):
    workdir = accented / kind
    config = {
        "data.source": "text", "data.path": accented / "corpus",
        "data.cache": accented / "cache", "data.tokenizer": kind,
        "data.vocab_size": 257 if kind == "byte" else 280, "data.seq_len": 64,
        "data.batch_size": 512, "model.order": 2, "model.smoothing": "add_k",
        "model.k": 0.1, "steps": 2,
    }  # fmt: skip
    overrides = [f"--config.{name}={value}" for name, value in config.items()]
    run("train", f"--config={ROOT}/configs/ngram.py", *overrides,
        f"--workdir={workdir}", "--devices=2")  # fmt: skip
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    summary = json.loads((workdir / "summary.json").read_text())
    found = summary["val_loss"], summary["val_bits_per_byte"]
    assert found == pytest.approx(bigram_by_hand(accented, tokenizer, 0.1), rel=1e-5)


def test_a_strategy_without_a_meaning_is_refused(folder):
    flags = small(folder, **{"parallel.strategy": "fsdp"})
    result = run("studies.ngrams", *flags, "--devices=2", check=False)
    assert result.returncode == 2
    assert "fsdp has no meaning for a model of counts; choose one of jit" in result.stderr


def test_a_table_goes_on_from_a_checkpoint_on_other_devices(tmp_path):
    first, second = (
        counting_program(counting(), strategy, data_mesh(degree))
        for strategy, degree in (("shard_map", 4), ("pmap", 2))
    )
    state, _ = take(first, first.init(jax.random.key(0)), batches(2))
    with Checkpoints(tmp_path / "checkpoints", 2, write=True) as checkpoints:
        checkpoints.save(2, first, state, None)
        checkpoints.wait()
        state = checkpoints.restore(second)
        shapes = {"params": saved_counts(counting(), data_mesh(8))}
        alone = checkpoints.load(2, shapes)["params"]
    for found, expected in zip(
        model_of(counting(), alone), numpy_counts(batches(2)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert state.step == 2
    state, _ = take(second, state, batches(4)[2:])
    assert_counts(second, state, batches(4))
