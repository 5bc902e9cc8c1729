"""Rows in shards and strata: what each batch holds, from which files, and its weights."""

import dataclasses

import numpy as np
import pytest

from lm.data.config import DataConfig
from lm.data.prepare import prepare
from lm.data.rows.augment import AugmentConfig
from lm.data.rows.order import Order, step_rows, train_batches
from lm.data.rows.sampling import SamplingConfig
from lm.data.rows.shards import shards_of
from lm.data.sources.files import text_corpus

SHARDS, BATCH = 4, 8
LETTERS = "abcdefghij"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make documents of digits and of words, in two folders, the first much larger."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for number in range(60):
        place = folder / "corpus" / ("words" if number % 6 else "numbers")
        place.mkdir(parents=True, exist_ok=True)
        words = [LETTERS[x % 10] + LETTERS[x // 10] for x in rng.integers(0, 99, 150)]
        digits = [str(x) for x in rng.integers(1000, 9999, 60)]
        text = " ".join(words if number % 6 else digits) + f" {number}\n"
        (place / f"{number:02}.txt").write_text(text)
    return folder


def config(folder, **changes) -> DataConfig:
    return DataConfig(
        source="text", path=str(folder / "corpus"), cache=str(folder / "cache"),
        vocab_size=300, seq_len=32, batch_size=BATCH, stages="", leakage="keep",
        validation_share=0.1, **changes,
    )  # fmt: skip


def order(data: DataConfig, seed: int = 1) -> Order:
    return Order(seed, data.batch_size, data.sampling, data.augment)


@pytest.fixture(scope="module")
def sharded(folder):
    given = config(folder, shards=SHARDS, partition="dictionary", shard_sizes="natural")
    with pytest.raises(ValueError, match="dictionary has 2 keys .*for data.shards 4"):
        prepare(given)
    given = config(folder, shards=SHARDS, partition="hash", shard_sizes="natural")
    return given, prepare(given)


def test_shards_hold_each_training_document_once(folder, sharded):
    _, data = sharded
    tokens, segments = np.array(data.train.tokens[:]), np.array(data.train.segments[:])
    assert data.train.tokens.shape == tokens.shape
    assert len(data.train.parts) == SHARDS and sum(map(sum, data.train.parts)) == len(
        tokens
    )
    alone = prepare(config(folder)).train
    # Text that is packed in other company has the same targets.
    for name, rows in (("tokens", tokens), ("segments", segments)):
        assert rows.dtype == getattr(alone, name).dtype

    def pairs(tokens, segments):
        inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        both = np.stack([tokens[:, :-1][inside], tokens[:, 1:][inside]])
        return sorted(map(tuple, both.T.tolist()))

    assert pairs(tokens, segments) == pairs(alone.tokens, alone.segments)
    assert data.meta["train"]["targets"] == len(pairs(tokens, segments))
    corpus = text_corpus(str(folder / "corpus"), "", 0.1)
    assert data.meta["documents"]["train"] == len(list(corpus.documents("train")))


def test_a_place_of_the_batch_belongs_to_a_shard(sharded):
    given, data = sharded
    ends = np.cumsum([sum(sizes) for sizes in data.train.parts])
    seen = [[] for _ in range(SHARDS)]
    for step in range(30):
        rows = step_rows(data.train, order(given), step)
        for place, row in enumerate(rows):
            shard = int(np.searchsorted(ends, row, side="right"))
            assert shard == place * SHARDS // BATCH
            seen[shard].append(row)
    for rows, sizes in zip(seen, data.train.parts, strict=True):
        # Each shard has epochs of its own.
        epoch = rows[: sum(sizes)]
        assert len(set(epoch)) == len(epoch)
    # Shards of one length would go in step, if they had one order.
    assert seen[0] != [row - int(ends[0]) for row in seen[1]]


def test_a_process_opens_its_own_shards_alone(folder, sharded, monkeypatch):
    given, _ = sharded
    whole = list(train_batches(prepare(given).train, order(given), 0, 3))
    for process in range(2):
        rows = prepare(given).train
        mine = list(train_batches(rows, order(given), 0, 3, process, 2))
        for batch, part in zip(whole, mine, strict=True):
            half = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
            for name in batch:
                np.testing.assert_array_equal(batch[name][half], part[name])
        assert sorted(rows.tokens.arrays) == list(shards_of(process, 2, SHARDS))
    assert [*shards_of(2, 8, 4)] == [1] and [*shards_of(1, 3, 4)] == [1, 2]


def test_weights_put_the_shares_of_the_text_back(folder, sharded):
    given, data = sharded
    reweighed = dataclasses.replace(given, sampling=SamplingConfig(reweigh=True))
    (batch,) = train_batches(data.train, order(reweighed), 0, 1)
    sizes = np.array([sum(part) for part in data.train.parts])
    expected = np.repeat(sizes / sizes.mean(), BATCH // SHARDS)
    assert sizes.min() < sizes.max()
    np.testing.assert_allclose(batch["weights"], np.tile(expected, (33, 1)).T, rtol=1e-6)
    (plain,) = train_batches(data.train, order(given), 0, 1)
    assert "weights" not in plain


def test_strata_are_drawn_at_their_rates(folder):
    sampling = SamplingConfig(strata="kind", temperature=1e9, reweigh=True)
    given = config(folder, sampling=sampling)
    data = prepare(given)
    assert data.meta["strata"] == ["numbers", "prose"]
    ((few, many),) = sorted([sorted(data.train.parts[0])])
    assert few * 4 < many
    weights = []
    for batch in train_batches(data.train, order(given), 0, 4):
        weights += batch["weights"][:, 0].tolist()
    # Half of the rows are of each kind, and count as much as the kind does in the text.
    assert sorted(np.unique(weights, return_counts=True)[1]) == [16, 16]
    total = few + many
    np.testing.assert_allclose(np.unique(weights), [2 * few / total, 2 * many / total])


def test_augmentation_changes_what_is_read_not_what_is_predicted(folder):
    given = config(folder, augment=AugmentConfig("token_dropout", rate=0.3))
    rows = prepare(given).train
    plain = list(train_batches(rows, Order(1, BATCH), 0, 3))
    found = list(train_batches(rows, order(given), 0, 3))
    for a, b in zip(plain, found, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        assert 0.1 < (b["inputs"] != b["tokens"]).mean() < 0.5
    (last,) = train_batches(rows, order(given), 2, 3)
    np.testing.assert_array_equal(last["inputs"], found[2]["inputs"])


def test_bad_input_names_the_numbers(folder):
    with pytest.raises(ValueError, match="batch_size 8 is not divisible by data.shards 3"):
        config(folder, shards=3).validate()
    with pytest.raises(ValueError, match="shard_sizes is 'natural', but data.shards is 1"):
        config(folder, shard_sizes="natural").validate()
    with pytest.raises(ValueError, match="data.shards is 1000, but there are"):
        prepare(config(folder, shards=1000))
    given = config(folder, shards=2, packing="concat")
    given.seq_len = 100_000
    with pytest.raises(
        ValueError, match="shard 0 of data.shards 2 has too little .*100000"
    ):
        prepare(given)
