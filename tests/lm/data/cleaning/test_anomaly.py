"""Planted damage is found, weighed, masked and repaired; planting.py is the oracle."""

import pickle
import random

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from configs.fields import check
from lm.data.cleaning import anomaly
from lm.data.cleaning.anomalies import scores
from lm.data.cleaning.anomalies.repair import repair
from lm.data.cleaning.anomaly import AnomalyConfig
from lm.data.sources.corpus import Document
from lm.data.sources.stdlib import source_files, split_of, stdlib_folder
from tests.lm.data.cleaning.planting import encoded, gibberish, plant

EACH = 12  # damaged documents of each kind
LEAST_AREA = {"gibberish": 0.99, "language": 0.99, "base64": 0.99, "shuffled": 0.95}


def modules(count: int, seed: int) -> list[str]:
    """Return beginnings of modules, at the end of a line."""
    paths = [path for path in source_files() if split_of(path) != "tests"]
    texts = []
    for path in random.Random(seed).sample(paths, len(paths)):
        raw = (stdlib_folder() / path).read_bytes()
        text = raw[:6000].decode(errors="ignore")
        if len(text) > 300:
            texts.append(text[: text.rindex("\n") + 1])
        if len(texts) == count:
            break
    return texts


def sketches_of(texts: list[str]) -> list[anomaly.Sketch]:
    config = AnomalyConfig()
    return [anomaly.sketch(config, Document(x, str(i))) for i, x in enumerate(texts)]


def areas(seed: int, count: int, each: int) -> dict[str, float]:
    """Return the area under the curve of each kind against the clean documents."""
    texts, kinds = plant(modules(count, seed), each, seed)
    by_kind = anomaly.scores_of(sketches_of(texts)).by_kind
    found = {}
    for kind in set(kinds) - {"clean"}:
        some = (kinds == kind) | (kinds == "clean")
        found[kind] = roc_auc_score(kinds[some] == kind, by_kind[kind][some])
    return found


@pytest.fixture(scope="module")
def planted():
    texts, kinds = plant(modules(500, 0), EACH, 0)
    sketches = sketches_of(texts)
    return texts, kinds, sketches, anomaly.scores_of(sketches)


def applied(
    config: AnomalyConfig,
    texts: list[str],
    sketches: list[anomaly.Sketch],
    known: scores.Scores | None = None,
):
    """Decide and apply; the scores do not depend on the config, and may be known."""
    with pytest.MonkeyPatch.context() as patch:
        if known:
            patch.setattr(anomaly, "scores_of", lambda sketches: known)
        verdicts = anomaly.decide(config, sketches)
    return [
        anomaly.apply(config, Document(text, str(i)), verdict)
        for i, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))
    ]


def test_planted_damage_has_the_highest_scores(planted):
    texts, kinds, sketches, known = planted
    by_kind = known.by_kind
    for kind, least in LEAST_AREA.items():
        some = (kinds == kind) | (kinds == "clean")
        area = roc_auc_score(kinds[some] == kind, by_kind[kind][some])
        assert area >= least, f"{kind}: {area:.4f}"
    assert max(len(pickle.dumps(sketch)) for sketch in sketches) < 1000


def test_dropped_documents_are_named_with_kind_score_and_reason(planted):
    texts, kinds, sketches, known = planted
    result = applied(AnomalyConfig(), texts, sketches, known)
    dropped = np.array([document is None for document, _ in result])
    assert dropped[kinds == "clean"].mean() < 0.1
    for kind in ("gibberish", "language", "base64", "encoding"):
        assert dropped[kinds == kind].mean() > 0.9, kind
        right = [
            kind in {x.kind for x in result[i][1]} for i in np.flatnonzero(kinds == kind)
        ]
        assert np.mean(right) > 0.9, kind
    assert dropped[kinds == "shuffled"].mean() > 0.5
    assert dropped[kinds == "truncated"].mean() > 0.3
    for place, (document, findings) in enumerate(result):
        assert (document is None) == bool(findings)
        assert all(x.document == str(place) and x.score >= 5 for x in findings)
        assert all("median" in x.reason for x in findings)
    assert applied(AnomalyConfig(), texts, sketches) == result  # nothing depends on chance


def test_threshold_quantile_and_kinds_choose(planted):
    texts, kinds, sketches, known = planted
    for config, most in (
        (AnomalyConfig(threshold=1e9), 0),
        (AnomalyConfig(threshold=0.1, quantile=0.99, kinds="language,gibberish"), 5),
    ):
        result = applied(config, texts, sketches, known)
        dropped = [document is None for document, _ in result]
        assert most - 1 <= sum(dropped) <= most, config
    config = AnomalyConfig(kinds="base64, language")
    result = applied(config, texts, sketches, known)
    found = {x.kind for _, findings in result for x in findings}
    assert found == {"base64", "language"}
    with pytest.raises(ValueError, match="'poetry', which is no kind; choose from base64"):
        AnomalyConfig(kinds="poetry").chosen()
    with pytest.raises(ValueError, match="quantile"):
        check(AnomalyConfig(quantile=1.0))


def test_worse_documents_weigh_less(planted):
    texts, kinds, sketches, known = planted
    result = applied(AnomalyConfig(action="weight"), texts, sketches, known)
    weights = np.array([document.weight for document, _ in result])
    worst = [max((x.score for x in found), default=0) for _, found in result]
    assert np.allclose(weights, 5 / np.maximum(worst, 5))
    assert (weights[kinds == "clean"] == 1).mean() > 0.9
    assert weights[kinds == "base64"].max() < 0.5


def test_bad_spans_are_masked_and_whole_bad_documents_dropped(planted):
    texts, kinds, sketches, known = planted
    texts, sketches, rng = list(texts), list(sketches), random.Random(1)
    usual = [not found for _, found in applied(AnomalyConfig(), texts, sketches, known)]
    clean = np.flatnonzero((kinds == "clean") & usual)
    clean = [place for place in clean if len(texts[place]) > 4000]
    spans = {}
    for number, place in enumerate(clean[:20]):
        cut = texts[place].index("\n", 2000) + 1
        kind = (encoded, gibberish)[number % 2]
        bad = re_wrapped(kind(texts[place][cut : cut + 600], rng, 0))
        texts[place] = texts[place][:cut] + bad + texts[place][cut:]
        spans[place] = cut, cut + len(bad)
        [sketches[place]] = sketches_of([texts[place]])
    result = applied(AnomalyConfig(action="mask"), texts, sketches)
    covered, outside = [], []
    for place, (start, end) in spans.items():
        document, findings = result[place]
        assert document is not None and document.text == texts[place], findings
        masked = np.zeros(len(document.text))
        for first, last, weight in document.spans:
            assert weight == 0
            masked[first:last] = 1
        covered.append(masked[start:end].mean())
        outside.append(np.delete(masked, np.s_[start:end]).mean())
    assert np.mean(covered) > 0.9 and np.mean(outside) < 0.02
    others = [i for i in np.flatnonzero(kinds == "clean") if i not in spans]
    masked = [bool(result[i][0].spans) for i in others if result[i][0] is not None]
    assert np.mean(masked) < 0.1
    for kind in ("base64", "language"):
        gone = [result[i][0] is None for i in np.flatnonzero(kinds == kind)]
        assert np.mean(gone) > 0.9, kind


def re_wrapped(text: str) -> str:
    """Return the text in lines of 60 characters."""
    text = text.replace("\n", "")
    return "".join(f"{text[i : i + 60]}\n" for i in range(0, len(text), 60))


def test_lost_characters_are_filled_in_or_masked():
    texts, rng = modules(200, 2), random.Random(2)
    exact = wrong = open_ = 0
    whole = list(texts)
    for place in range(0, 200, 2):
        size = rng.randint(2, 10)
        start = rng.randrange(50, len(texts[place]) - 100)
        text = texts[place]
        texts[place] = text[:start] + "\ufffd" * size + text[start + size :]
    config = AnomalyConfig(action="repair", kinds="base64")
    for place, (document, findings) in enumerate(
        applied(config, texts, sketches_of(texts))
    ):
        if document is None or place % 2:
            continue
        lost = document.text.find("\ufffd")
        if lost < 0:
            exact += document.text == whole[place]
            wrong += document.text != whole[place]
            assert "repaired" in {x.kind for x in findings}
        else:
            open_ += 1
            first, end, weight = next(x for x in document.spans if x[0] <= lost < x[1])
            assert weight == 0 and set(document.text[lost:end]) == {"\ufffd"}
    assert exact > 0.3 * (exact + wrong + open_) and wrong < 0.15 * exact


def test_a_gap_is_filled_only_where_its_surroundings_are_sure(monkeypatch):
    memory = "the quick brown fox jumps over the lazy dog"
    gap = "a quick brown \ufffd\ufffd\ufffd jumps over it"
    assert repair(gap, memory) == (gap.replace("\ufffd\ufffd\ufffd", "fox"), ["fox"])
    either = f"{memory}; the quick brown cat jumps over the lazy dog"
    assert repair(gap, either) == (gap, [])  # as many votes for the one as for the other
    assert repair(gap, "nothing like it") == (gap, [])
    open_ended = "the quick brown \ufffd over the lazy dog"  # one mark for nine characters
    assert repair(open_ended, memory)[1] == ["fox jumps"]
    assert repair("\ufffdx", memory) == ("\ufffdx", [])
    monkeypatch.setattr("lm.data.cleaning.anomalies.repair.MOST_GAPS", 1)
    text, filled = repair(f"{gap}. {gap}", memory)
    assert filled == ["fox"] and text.count("\ufffd\ufffd\ufffd") == 1


def test_few_documents_and_empty_ones():
    assert anomaly.decide(AnomalyConfig(), []) == []
    for texts in ([""], ["a\n", "", "b\ufffd\ufffd"]):
        config = AnomalyConfig(action="repair")
        assert len(applied(config, texts, sketches_of(texts))) == len(texts)
    same = applied(AnomalyConfig(), ["same text\n"] * 40, sketches_of(["same text\n"] * 40))
    assert all(document is not None for document, _ in same)
    text = "lone \ud800 surrogate \x00"
    assert anomaly.sketch(AnomalyConfig(), Document(text, "x")).sample


def test_an_isolation_forest_in_parts_is_one_forest(monkeypatch):
    """Fitted on every third document, and applied to some at a time."""
    monkeypatch.setattr(scores, "FITTED", 50)
    features = np.random.default_rng(0).normal(size=(130, 3)).astype(np.float32)
    forest = IsolationForest(n_estimators=scores.TREES, random_state=0)
    expected = -forest.fit(features[::3]).score_samples(features)
    np.testing.assert_array_equal(scores.isolation(list(features.T)), expected)
