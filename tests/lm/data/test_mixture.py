"""Mixtures of sources: what is drawn, how it counts, and what cannot be mixed."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from configs import fields
from configs.base import Experiment
from experiments.run import startup
from experiments.run.evaluation import Documents, by_source
from lm.data.config import DataConfig
from lm.data.prepare import Data, current_fingerprint, prepare
from lm.data.rows.augment import AugmentConfig
from lm.data.rows.order import Order, Places, step_rows, train_batches
from lm.data.rows.parts import effective_share, parts_of
from lm.data.rows.sampling import SamplingConfig
from lm.data.rows.store import Rows, targets
from lm.data.sources.config import SourceConfig
from lm.data.sources.corpus import Corpus, Document
from lm.data.sources.mixture import mixed_corpus
from lm.data.texts import numbered, open_corpus

BATCH, NUM = 8, 512
BY_WEIGHT = SamplingConfig("key", rates="weights")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make two corpora in alphabets of their own, the second a sixth of the first."""
    folder = tmp_path_factory.mktemp("mixture")
    rng = np.random.default_rng(0)
    for name, letters, num in (("much", "abcdefgh", 36), ("rare", "stuvwxyz", 6)):
        (folder / name).mkdir()
        for number in range(num):
            words = ["".join(rng.choice(list(letters), 4)) for _ in range(120)]
            (folder / name / f"{number:02}.txt").write_text(" ".join(words))
    return folder


def source(folder, label: str, **more) -> SourceConfig:
    given = {"source": "text", "path": str(folder / label), "validation_share": 0.25}
    return SourceConfig(label=label, **(given | more))


def config(folder, *sources: SourceConfig, **more) -> DataConfig:
    return DataConfig(
        sources=sources, cache=str(folder / "cache"), vocab_size=300, seq_len=32,
        batch_size=BATCH, stages="", leakage="keep", **more,
    )  # fmt: skip


def both(folder, much=1.0, rare=1.0, **more) -> DataConfig:
    sources = source(folder, "much", weight=much), source(folder, "rare", weight=rare)
    return config(folder, *sources, **more)


def order(data: DataConfig, seed: int = 1) -> Order:
    return Order(seed, BATCH, data.sampling, data.augment, data.source_weights)


@pytest.fixture(scope="module")
def mixed(folder) -> Data:
    return prepare(both(folder, sampling=SamplingConfig("key")))


def rows_of(parts, names) -> Rows:
    tokens = np.zeros((sum(map(sum, parts)), 9), np.uint16)
    return Rows(tokens, np.ones_like(tokens), parts=parts, strata=names)


def test_rates_are_the_weights_or_the_rows():
    rows, names = rows_of(((700, 200, 100),), ("a", "b", "c")), ("a", "b", "c")
    weights = {"a": 1.0, "b": 0.0, "c": 3.0}
    for temperature, base, expected in [
        (1.0, "weights", [0.25, 0, 0.75]),
        (2.0, "weights", [1 / (1 + 3**0.5), 0, 3**0.5 / (1 + 3**0.5)]),
        (1e9, "weights", [0.5, 0, 0.5]),
        (1.0, "rows", [0.7, 0.2, 0.1]),
        (1e9, "rows", [1 / 3, 1 / 3, 1 / 3]),
    ]:
        sampling = SamplingConfig("key", base, temperature)
        (parts,) = parts_of(rows, sampling, weights)
        np.testing.assert_allclose([part.rate for part in parts], expected, atol=1e-6)
        places = Places(rows, Order(3, NUM, sampling, source_weights=weights))
        drawn = [places(1, place).row for place in range(NUM)]
        shares = np.histogram(drawn, [0, 700, 900, 1000])[0] / NUM
        np.testing.assert_allclose(shares, expected, atol=2 / NUM)
        assert names == rows.strata
    # A shard without text of a source draws from the others; one of none at all cannot.
    (_, second) = parts_of(rows_of(((5, 5), (0, 5)), ("a", "c")), BY_WEIGHT, weights)
    assert [part.rate for part in second] == [0, 1]
    with pytest.raises(ValueError, match="text of shard 1 is of sources with the weight 0"):
        parts_of(rows_of(((5, 5), (0, 5)), ("a", "b")), BY_WEIGHT, weights)


def test_weighted_draws_count_as_the_shares_say():
    rows = rows_of(((60, 20), (10, 30)), ("a", "b"))
    of_stratum = {"a": 2.0, "b": 11.0}

    def mean_of(sampling: SamplingConfig) -> float:
        """The mean of a figure over the draws, each weighted as its row is."""
        parts = parts_of(rows, sampling, {"a": 5.0, "b": 1.0})
        each = [
            (part.rate * part.weight / len(parts), of_stratum[name])
            for shard in parts
            for part, name in zip(shard, rows.strata, strict=True)
        ]
        assert sum(weight for weight, _ in each) == pytest.approx(1)
        return sum(weight * figure for weight, figure in each)

    for drawn in (
        SamplingConfig("key"),
        SamplingConfig("key", temperature=3),
        BY_WEIGHT,
        SamplingConfig("key", batches="resampled"),
    ):
        natural = dataclasses.replace(drawn, reweigh=True)
        assert mean_of(natural) == pytest.approx((70 * 2 + 50 * 11) / 120)
        wanted = dataclasses.replace(natural, shares={"a": 0.2, "b": 0.8})
        assert mean_of(wanted) == pytest.approx(0.2 * 2 + 0.8 * 11)
    # One shard, drawn as it is: the effective size by Kish's formula over all its rows.
    single = rows_of(((90, 10),), ("a", "b"))
    half = SamplingConfig("key", reweigh=True, shares={"a": 0.5, "b": 0.5})
    weights = np.repeat([0.5 / 0.9, 0.5 / 0.1], [90, 10])
    kish = weights.sum() ** 2 / np.square(weights).sum() / 100
    assert effective_share(parts_of(single, half, {})) == pytest.approx(kish)
    own = dataclasses.replace(half, shares={"a": 0.9, "b": 0.1})
    assert effective_share(parts_of(single, own, {})) == pytest.approx(1)
    # Drawn at the wanted rates, no row needs a weight.
    drawn = dataclasses.replace(half, rates="weights")
    assert effective_share(parts_of(single, drawn, {"a": 1, "b": 1})) == pytest.approx(1)


def test_one_source_is_that_source_alone(folder):
    one = config(folder, source(folder, "much"))
    alone = prepare(one.alone(one.sources[0]))
    found = prepare(one)
    for split in ("train", "validation"):
        for name in ("tokens", "segments", "documents"):
            a, b = (getattr(getattr(x, split), name) for x in (alone, found))
            assert (a is None and b is None) or np.array_equal(a, b)
    assert step_rows(found.train, order(one), 3) == step_rows(alone.train, Order(1, 8), 3)


def test_each_source_holds_out_documents_by_its_own_rules(folder):
    given = both(folder)
    mixture = open_corpus(given)
    for split in ("train", "validation"):
        apart = [
            document._replace(key=each.label)
            for each in given.sources
            for document in open_corpus(given.alone(each)).documents(split)
        ]
        assert list(mixture.documents(split)) == apart
        assert {document.key for document in apart} == {"much", "rare"}


def test_of_shifted_text_each_source_gives_a_part_of_what_is_read(monkeypatch):
    for module in ("sources.mixture", "texts"):
        monkeypatch.setattr(f"lm.data.{module}.SHIFTED_CHARACTERS", 18)

    def opened(source):
        texts = [source.label * length for length in (7, 0, 3, 9)]
        splits = ("train",) if source.label == "c" else ("train", "shifted")
        return Corpus({}, lambda split: (Document(x, "") for x in texts), splits)

    sources = [SourceConfig(label=label) for label in "abc"]
    found = list(numbered(mixed_corpus(sources, opened)))
    assert [split for split, _ in found].count("train") == 12
    shifted = [document.text for split, document in found if split == "shifted"]
    assert shifted == ["a" * 7, "aa", "b" * 7, "bb"]  # 9 characters of each


def test_tokens_are_drawn_as_the_weights_say(folder, mixed):
    weighted = both(folder, 1, 3, sampling=BY_WEIGHT)
    # The weights order the rows; they are the rows of any other weights.
    assert prepare(weighted).meta == mixed.meta and mixed.train.strata == ("much", "rare")
    (sizes,) = mixed.train.parts
    assert sizes[0] > 4 * sizes[1]
    letters = np.array(
        [
            i > 0 and any(c in "stuvwxyz" for c in mixed.tokenizer.id_to_token(i))
            for i in range(mixed.tokenizer.get_vocab_size())
        ]
    )
    counts = collections.Counter()
    batches = list(train_batches(mixed.train, order(weighted), 0, 128))
    for batch in batches:
        rare = letters[batch["tokens"]].any(1)
        assert rare.sum() == 6  # of 8: stratified
        for row, is_rare in zip(targets(batch["segments"]), rare, strict=True):
            counts[bool(is_rare)] += int(row.sum())
    # A row may end in padding, and less is drawn of what is packed worse.
    assert counts[True] / counts.total() == pytest.approx(0.75, abs=0.02)
    # A step is a function of its number: nothing before it needs to be drawn.
    for start in (57, 127):
        (again,) = train_batches(mixed.train, order(weighted), start, start + 1)
        for name, array in batches[start].items():
            np.testing.assert_array_equal(again[name], array)
    halves = [next(iter(train_batches(mixed.train, order(weighted), 9, 10, p, 2)))
              for p in range(2)]  # fmt: skip
    joined = np.concatenate([half["tokens"] for half in halves])
    np.testing.assert_array_equal(joined, batches[9]["tokens"])


def test_only_the_chosen_strata_are_damaged(folder, mixed):
    augment = AugmentConfig("token_dropout", rate=0.5, strata="rare")
    given = both(folder, sampling=SamplingConfig("key"), augment=augment)
    (sizes,) = mixed.train.parts
    found = collections.Counter()
    for step, batch in enumerate(train_batches(mixed.train, order(given), 0, 16)):
        rows = np.array(step_rows(mixed.train, order(given), step))
        changed = (batch["inputs"] != batch["tokens"]).any(1)
        assert (changed == (rows >= sizes[0])).all()
        found.update(changed.tolist())
    assert found[True] and found[False]
    alone = mixed.train._replace(parts=((sum(sizes),),), strata=("much",))
    with pytest.raises(ValueError, match="strata=kind finds the one stratum 'much'"):
        Order(0, BATCH, SamplingConfig("kind")).check_strata(alone)
    order(given)._replace(augment=AugmentConfig()).check_strata(alone)  # of one source
    for kind in ("code", "rare,code"):
        other = order(given)._replace(augment=AugmentConfig("token_dropout", strata=kind))
        with pytest.raises(ValueError, match="names 'code'; the strata .* 'much', 'rare'"):
            other.check_strata(mixed.train)


def test_what_does_not_change_rows_does_not_change_the_fingerprint(folder):
    usual = current_fingerprint(both(folder))
    shares = SamplingConfig(rates="weights", reweigh=True, shares={"much": 1.0})
    assert current_fingerprint(both(folder, 2, 5, sampling=shares)) == usual
    swapped = config(folder, source(folder, "rare"), source(folder, "much"))
    other = config(folder, source(folder, "much", validation_share=0.5))
    assert len({usual, *map(current_fingerprint, (swapped, other))}) == 3
    moved = folder / "moved"
    (folder / "rare").rename(moved)
    try:  # the text decides, not its place
        there = source(folder, "rare", path=str(moved))
        found = current_fingerprint(config(folder, source(folder, "much"), there))
    finally:
        moved.rename(folder / "rare")
    assert found == usual


def test_sources_that_cannot_be_mixed_are_refused(folder):
    much = source(folder, "much")
    for given, words in [
        (config(folder, much, much), r"\[0\] and \[1\] have the same label 'much'"),
        (config(folder, source(folder, "")), r"sources\[0\].label is ''"),
        (config(folder, much, path="x"), "data.path is 'x', but data.sources is given"),
        (config(folder, much, source="jsonl"), "data.source is 'jsonl', but data.sources"),
        (both(folder, 0, 0, sampling=BY_WEIGHT), r"\(much 0, rare 0\) sum to nothing"),
        (both(folder, 2, 1), "have weights .much 2, rare 1., but data.sampling.rates is"),
        (config(folder, sampling=BY_WEIGHT), "there are no data.sources to have weights"),
        (
            both(folder, sampling=SamplingConfig("key", shares={"rar": 1.0})),
            "shares names 'rar'; data.sampling.strata=key has much, rare",
        ),
        (
            both(
                folder, sampling=SamplingConfig("kind"), augment=AugmentConfig(strata="x")
            ),
            "augment.strata names 'x'; .*kind has code, numbers, prose",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            given.validate()
    nowhere = source(folder, "rare", path=str(folder / "nowhere"))
    with pytest.raises(ValueError, match="data.sources 'rare': data.path .* matches no"):
        prepare(config(folder, much, nowhere))
    # All of the second source repeats the first, so that none of it is left.
    again = source(folder, "again", path=str(folder / "much"))
    copies = dataclasses.replace(config(folder, much, again), stages="exact_dedup")
    with pytest.raises(ValueError, match="'again': no training document is left after"):
        prepare(copies)


def test_shares_of_strata_that_are_not_there_are_refused(mixed):
    for shares, words in [
        ({"rar": 1.0}, "shares: .* no text of the group 'rar'; it has 'much', 'rare'"),
        ({"rare": 0.7}, "sum to 0.7; they must sum to 1"),
        ({"rare": 0.0, "much": 0.0}, "sum to 0; they must sum to 1"),
    ]:
        sampling = SamplingConfig("key", reweigh=True, shares=shares)
        with pytest.raises(ValueError, match=words):
            parts_of(mixed.train, sampling, {})
    counted = SamplingConfig("key", rates="weights", reweigh=True)
    with pytest.raises(ValueError, match="should count the source 'much', .* never drawn"):
        parts_of(mixed.train, counted, {"much": 0.0, "rare": 1.0})


def test_the_loss_of_each_source_is_that_of_its_documents():
    rng = np.random.default_rng(0)
    sources = (("a", 4), ("b", 0), ("c", 3), ("d", 2))
    loss, tokens = rng.uniform(1, 9, 9), rng.integers(1, 50, 9)
    seen = np.array([0, 2, 3, 4, 6])  # an evaluation of some rows sees some documents
    found = by_source(Documents(seen, loss[seen], tokens[seen]), sources)
    assert found == {
        "a": pytest.approx((loss[0] + loss[2] + loss[3]) / tokens[[0, 2, 3]].sum()),
        "c": pytest.approx((loss[4] + loss[6]) / tokens[[4, 6]].sum()),
    }


def test_documents_are_numbered_by_source(folder, mixed):
    """What says which document a held-out row is of, says which source it is of."""
    held_out = list(open_corpus(both(folder)).documents("validation"))
    counts = collections.Counter(document.key for document in held_out)
    assert mixed.validation.sources == (("much", counts["much"]), ("rare", counts["rare"]))
    rows = mixed.validation
    inside = np.asarray(rows.segments) > 0
    for number, document in enumerate(held_out):
        ids = rows.tokens[inside & (rows.documents == number)]
        text = mixed.tokenizer.decode(ids.tolist())
        assert set(text) <= set(document.text)


def test_flags_set_the_parts_of_a_mixture_and_not_the_whole(folder):
    given = Experiment(data=both(folder))
    startup.check_override_names(["train", "--config.data.sources[1].weight=2"], given)
    for name, words in [
        (
            "data.sources",
            r"config.data.sources; .* such as --config.data.sources\[0\].path",
        ),
        ("data.sampling.shares", "config.data.sampling.shares; write it in the config f"),
        ("data.sources[2].weight", r"no field 'data.sources\[2\].weight'"),
        ("data.sources[1].wait", r"the nearest is 'data.sources\[1\].weight'"),
    ]:
        with pytest.raises(ValueError, match=words):
            startup.check_override_names(["train", f"--config.{name}=2"], given)


def test_a_config_with_sources_is_checked_and_read_back(folder):
    given = both(folder, 2, 1, sampling=BY_WEIGHT)
    written = json.loads(json.dumps(dataclasses.asdict(given)))
    assert fields.from_dict(DataConfig, written) == given
    flat = fields.flatten(given)
    assert flat["sources[1].label"] == "rare" and "sources" not in flat
    fields.override(given, {"sources[1].weight": 7.0})
    assert given.source_weights == {"much": 2, "rare": 7}
    deciding = fields.deciding(given)
    assert "sources[1].weight" in deciding and "sources[1].path" not in deciding
    for name, value, words in [
        ("sources[0].weight", -1.0, r"sources\[0\].weight is -1.0; it must be at least 0"),
        ("sources[0].source", "gettext", r"'gettext'; choose one of .*, jsonl, parquet$"),
        ("sources[1].split", "x", r"\[1\].split is 'x', but .* sources\[1\].source is 'te"),
    ]:
        wrong = fields.override(both(folder), {name: value})
        with pytest.raises(ValueError, match=words):
            fields.check(wrong)
    for sampling in (SamplingConfig(shares={"a": "b"}), SamplingConfig(shares=[])):
        with pytest.raises(ValueError, match="expected a value of type dict of str, float"):
            fields.check(sampling)
    with pytest.raises(ValueError, match="expected a value of type tuple of SourceConfig"):
        fields.check_types(DataConfig(sources=("text",)))
