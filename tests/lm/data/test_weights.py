"""Weights of tokens, and the numbers of documents, on their way from text to batches."""

import collections
from types import SimpleNamespace

import numpy as np
import pytest

from configs import ngram
from experiments.run.check import check_data
from lm.data.prepare import tell_weights
from lm.data.rows.order import Order, train_batches, validation_batches
from lm.data.rows.packing import PACKINGS, TOKEN, first_fit
from lm.data.rows.sampling import SamplingConfig
from lm.data.rows.store import Rows, read_rows, write_rows
from lm.data.rows.weights import effective_size, encode, importance
from lm.data.sources.corpus import Document
from lm.data.tokenizer import token_bytes, train_tokenizer

TEXT = "naïve été, “quoted” words and wörds; 漢字 too. " * 3
META = {"row_len": 9, "dtype": "uint16", "segments": True}


def documents(num=60, seed=0):
    """Documents in which each token is another: id, weight and document say which."""
    rng, found = np.random.default_rng(seed), []
    for number in range(num):
        tokens = np.empty(rng.integers(2, 30), TOKEN)
        tokens["id"] = 1 + np.arange(len(tokens))
        tokens["weight"], tokens["document"] = rng.uniform(0, 2, len(tokens)), number
        found.append(tokens)
    return found


def targets(rows):
    for tokens, segments in rows:
        inside = (segments[1:] == segments[:-1]) & (segments[1:] > 0)
        yield from tokens[1:][inside].tolist()


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_target_keeps_its_weight_and_its_document(packing):
    rows = list(PACKINGS[packing](documents(), 8))
    expected = collections.Counter(t for d in documents() for t in d[1:].tolist())
    found = collections.Counter(targets(rows))
    assert not found - expected
    lost = (expected - found).total()
    assert lost == 0 if packing != "concat" else lost < 8  # concat drops the tail


def test_a_token_has_the_weight_of_the_spans_that_it_touches():
    tokenizer = train_tokenizer("bpe", [TEXT], 300)
    spans = ((3, 9, 0.0), (8, 20, 0.5), (25, 60, 3.0), (36, 37, 0.25))
    (found,) = encode(tokenizer, [Document(TEXT, "a", weight=0.5, spans=spans)])
    # By the bytes of each token, without the tokenizer's offsets.
    ends = np.cumsum(token_bytes(tokenizer)[found["id"]])
    of_byte = np.repeat(np.arange(len(TEXT)), [len(c.encode()) for c in TEXT])
    expected = [0.5]
    for start, end in zip(ends[:-2], ends[1:-1], strict=True):
        characters = set(of_byte[start:end].tolist())
        touched = [w for a, b, w in spans if characters & set(range(a, b))]
        expected.append(0.5 * min(touched, default=1.0))
    np.testing.assert_array_equal(found["weight"], [*expected, 0.5])
    assert {0.0, 0.125, 0.25, 0.5, 1.5} == set(found["weight"].tolist())
    (plain,) = encode(tokenizer, [Document(TEXT, "a")])
    np.testing.assert_array_equal(plain["id"], found["id"])
    assert (plain["weight"] == 1).all()


def test_documents_are_numbered_in_their_order():
    tokenizer = train_tokenizer("byte", [], 257)
    many = [Document("x" * n, str(n), weight=n) for n in range(1, 300)]
    for number, tokens in enumerate(encode(tokenizer, many)):
        assert len(tokens) == number + 3
        assert set(tokens["document"].tolist()) == {number}
        assert set(tokens["weight"].tolist()) == {number + 1}


def written(rows, folder, split):
    told = write_rows(rows, folder, split, META)
    return told, read_rows(folder, split, META | {split: told})


def test_weights_are_stored_only_where_there_are_some(tmp_path):
    rows = list(first_fit(documents(), 8))
    for row, segments in rows[:10]:  # the first other weight comes late
        row["weight"][segments > 0] = 1
    told, read = written(rows, tmp_path, "train")
    for place, (row, segments) in enumerate(rows):
        kept = segments > 0
        np.testing.assert_array_equal(read.weights[place][kept], row["weight"][kept])
    weights = np.array([t[1] for t in targets(rows)], np.float64)
    assert told["weight"] == pytest.approx(weights.sum(), rel=1e-12)
    expected = weights.sum() ** 2 / (weights**2).sum()
    assert told["effective_targets"] == pytest.approx(expected, rel=1e-12)
    assert told["fractional_weights"] and read.documents is None
    (batch,) = train_batches(read, Order(0, len(rows)), 0, 1)
    assert batch["weights"].dtype == np.float32
    assert sorted(batch["weights"].sum(1)) == sorted(read.weights.sum(1))

    for row, _ in rows:
        row["weight"] = 1
    (empty := tmp_path / "ones").mkdir()
    told, read = written(rows, empty, "train")
    assert read.weights is None and "weight" not in told
    (batch,) = train_batches(read, Order(0, len(rows)), 0, 1)
    assert "weights" not in batch
    for row, _ in rows:
        row["weight"] = row["id"] % 2
    assert not written(rows, tmp_path, "train")[0]["fractional_weights"]


def test_held_out_rows_have_documents_and_no_weights(tmp_path):
    rows = list(first_fit(documents(), 8))
    told, read = written(rows, tmp_path, "validation")
    assert read.weights is None and "weight" not in told
    assert all("weights" not in batch for batch in validation_batches(read, 8))
    inside = [read.documents[i][s > 0].tolist() for i, (_, s) in enumerate(rows)]
    assert inside == [row["document"][s > 0].tolist() for row, s in rows]
    # A row of ids alone, such as a pair, is a document.
    pairs = [(row["id"], segments) for row, segments in rows]
    _, read = written(pairs, tmp_path, "shifted")
    expected = np.repeat(np.arange(len(rows))[:, None], 9, 1)
    np.testing.assert_array_equal(read.documents, expected)


def test_importance_gives_the_corpus_the_shares_of_the_target():
    sizes, wanted = {"py": 600, "md": 300, "c": 100, "h": 0}, {"py": 0.25, "c": 0.75}
    weights = importance(sizes, wanted)
    # The mean over the weighted corpus is the mean in which groups have those shares.
    of_group = {"py": 2.0, "md": 5.0, "c": 11.0, "h": 7.0}
    weighted = sum(sizes[g] * weights[g] * of_group[g] for g in sizes)
    total = sum(sizes[g] * weights[g] for g in sizes)
    assert weighted / total == pytest.approx(0.25 * 2 + 0.75 * 11, rel=1e-12)
    assert total == pytest.approx(1000) and weights["md"] == weights["h"] == 0
    own = {"py": 0.6, "md": 0.3, "c": 0.1}
    assert importance(sizes, own) == pytest.approx({"py": 1, "md": 1, "c": 1, "h": 0})
    for shares, words in [
        ({"py": 0.5, "rs": 0.5}, "no text of the group 'rs'; it has 'c', 'h', 'md', 'py'"),
        ({"py": 1.0, "h": 0.0}, "no text of the group 'h'"),
        ({"py": 2.0, "c": -1.0}, "at least 0"),
        ({"py": float("nan")}, "at least 0"),
        ({"py": 0.0}, "sum to 0; they must sum to 1"),
        ({"py": 1.0, "c": 3.0}, "sum to 4; they must sum to 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            importance(sizes, shares)


def test_the_effective_size_is_the_number_where_weights_are_equal():
    assert effective_size(7 * 0.3, 7 * 0.3**2) == pytest.approx(7)
    assert effective_size(10 + 0, 10**2) == 1
    assert effective_size(0.0, 0.0) == 0


def test_weights_are_told_and_must_not_sum_to_nothing(capsys):
    tell_weights({"targets": 9})
    assert not capsys.readouterr().err
    tell_weights({"targets": 90, "weight": 4.0, "effective_targets": 32.4})
    assert "90 training targets are weighted: they are worth 32" in capsys.readouterr().err
    with pytest.raises(ValueError, match="90 training targets sum to nothing"):
        tell_weights({"targets": 90, "weight": 0.0, "effective_targets": 0.0})


def test_a_model_of_counts_takes_whole_tokens_alone():
    config, ids = ngram.get_config(), np.ones((4, 9))
    strata = Rows(ids, ids, parts=((3, 1),), strata=("code", "prose"))
    data = SimpleNamespace(meta={"train": {}}, tokenizer=None, train=strata)
    data.meta["train"]["fractional_weights"] = True
    with pytest.raises(ValueError, match="other than 0 and 1, and a model of counts"):
        check_data(config, data, None)
    data.meta["train"].clear()
    config.data.sampling = SamplingConfig("kind", temperature=2, reweigh=True)
    with pytest.raises(ValueError, match="unset data.sampling.reweigh"):
        check_data(config, data, None)
