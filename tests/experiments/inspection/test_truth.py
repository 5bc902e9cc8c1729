"""What is found in a planted corpus, and the measures by which it is judged."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.inspection.corpus import inspect
from experiments.inspection.truth import area, copies, planted_table, scores
from experiments.studies.planted.plant import plant
from lm.data.config import DataConfig
from lm.data.sources.corpus import Corpus, Document
from lm.data.sources.table import SOURCES, Source


@pytest.fixture(scope="module")
def planted():
    texts, truth = plant(seed=1, num_clean=60)
    # In another order than the truth, as held-out documents come last.
    documents = [Document(x, f"corpus.jsonl#{i}") for i, x in enumerate(texts, 1)]
    splits = {"train": documents[20:], "validation": documents[:20]}
    return texts, truth, Corpus({}, lambda split: iter(splits[split]))


def test_all_copies_are_found_and_nothing_else(planted, tmp_path, monkeypatch):
    texts, truth, corpus = planted
    monkeypatch.setitem(SOURCES, "planted", Source(lambda config: corpus))
    config = DataConfig(source="planted", vocab_size=300)
    inspection = inspect(config, 2, tmp_path)
    found = scores(config, texts, truth, inspection.observed)
    assert found["exact_pairs"] == 3 and found["near_pairs"] == 4
    for name in ("exact_recall", "exact_precision", "near_recall", "near_precision"):
        assert found[name] == 1, name
    assert found["mojibake_restored"] == 1 and found["clean_touched"] == 0
    assert found["spans"] == 10 and found["spans_restored"] + found["spans_wrong"] <= 1
    assert found["auroc_damaged"] > 0.99 and found["auroc_mojibake"] > 0.99
    # If they were no copies, nothing of what is found would be right.
    alone = truth | {"pairs": [x for x in truth["pairs"] if not 0.8 <= x[2] < 1]}
    assert copies(alone, inspection.observed)["near_precision"] == 0
    lines = [
        found | {"near_recall": x, "documents": n} for x, n in [(1, 9), (0.5, 9), (0, 8)]
    ]
    assert "0.7500 | 0.5000 | 1.0000 |" in planted_table(lines, 9)


def test_the_area_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 6, 30) / 5  # with ties
        faulty = rng.random(30) < 0.4
        expected = roc_auc_score(faulty, scores)
        assert area(scores[faulty], scores[~faulty]) == pytest.approx(expected)
