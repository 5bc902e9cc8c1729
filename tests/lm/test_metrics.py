"""Metrics against scikit-learn and closed forms, split over devices and padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from lm.data.classes import CLASSES, character_classes, token_classes, usual_classes
from lm.data.tokenizer import train_tokenizer
from lm.metrics import NUM_BINS, TOP_K, bootstrap_interval, metrics, prediction_sums
from parallel.mesh import data_mesh

ROWS, LENGTH, VOCAB, NUM_CLASSES = 16, 9, 23, 4
NAMES = ("a", "b", "c", "never")


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (ROWS, LENGTH, VOCAB)).astype("f4")
    labels = rng.integers(0, VOCAB, (ROWS, LENGTH))
    labels = np.where(rng.random(labels.shape) < 0.5, logits.argmax(-1), labels)
    mask = rng.random((ROWS, LENGTH)) < 0.7
    mask[3] = False
    class_of = rng.integers(0, NUM_CLASSES - 1, VOCAB).astype("i4")
    classes = rng.integers(0, NUM_CLASSES - 1, (ROWS, LENGTH))
    classes = np.where(rng.random(labels.shape) < 0.6, class_of[labels], classes)
    return logits, labels.astype("i4"), mask, classes.astype("i4"), class_of


@pytest.fixture(scope="module")
def found(drawn):
    sums = prediction_sums(*drawn, NUM_CLASSES)
    return metrics(jax.device_get(sums), NAMES)


def test_accuracies(drawn, found):
    logits, labels, mask, *_ = drawn
    assert found["accuracy"] == accuracy_score(labels[mask], logits[mask].argmax(-1))
    assert found[f"top_{TOP_K}_accuracy"] == top_k_accuracy_score(
        labels[mask], logits[mask], k=TOP_K, labels=np.arange(VOCAB)
    )


def test_classes(drawn, found):
    logits, _, mask, classes, class_of = drawn
    true, predicted = classes[mask], class_of[logits[mask].argmax(-1)]
    labels = np.arange(NUM_CLASSES - 1)  # the last never occurs and counts for nothing
    each = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    for i, name in enumerate(NAMES[:-1]):
        mine = found["classes"][name]
        expected = [column[i] for column in each]
        assert list(mine.values()) == pytest.approx(expected)
    assert "never" not in found["classes"]
    macro = precision_recall_fscore_support(
        true, predicted, average="macro", zero_division=0
    )
    names = ("macro_precision", "macro_recall", "macro_f1")
    assert [found[n] for n in names] == pytest.approx(macro[:3])
    micro = precision_recall_fscore_support(true, predicted, average="micro")
    assert found["micro_f1"] == pytest.approx(micro[2])


def test_calibration_error_by_its_definition(drawn, found):
    logits, labels, mask, *_ = drawn
    logits, labels = logits[mask].astype(np.float64), labels[mask]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = (p / p.sum(-1, keepdims=True)).max(-1)
    correct = logits.argmax(-1) == labels
    error = 0.0
    for low in np.arange(NUM_BINS) / NUM_BINS:
        inside = (confidence > low) & (confidence <= low + 1 / NUM_BINS)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert found["calibration_error"] == pytest.approx(error, rel=1e-5)


def test_perfect_and_certain_predictions_are_calibrated():
    labels = np.arange(VOCAB, dtype="i4")[None]
    logits = 100.0 * np.eye(VOCAB, dtype="f4")[None]
    sums = prediction_sums(logits, labels, np.ones((1, VOCAB), bool))
    result = metrics(jax.device_get(sums))
    assert result["accuracy"] == 1 and result["calibration_error"] == pytest.approx(0)


def test_ties_are_ranked_by_index_and_no_nan_is_right(drawn):
    """Against a stable sort, on logits of five values among which stand odd ones."""
    _, labels, mask, classes, class_of = drawn
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 5, (ROWS, LENGTH, VOCAB)).astype("f4")
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    raised = rng.random((ROWS, LENGTH)) < 0.5
    logits[raised, labels[raised]] = 4  # beside others of 4
    logits[0] = 0  # all are equal
    bad = rng.random((ROWS, LENGTH)) < 0.3
    odd = rng.choice([np.nan, np.inf], bad.sum())
    logits[bad, np.where(rng.random(bad.sum()) < 0.5, labels[bad], 3)] = odd
    logits[5, 0, :], bad[5, 0] = np.nan, True
    order = np.argsort(-logits, -1, kind="stable")
    places = (order == labels[..., None]).argmax(-1)
    good = mask & ~bad
    right = good & (places == 0)
    assert (bad & mask).sum() > 20 and right.sum() > 5
    sums = prediction_sums(logits, labels, mask, classes, class_of, NUM_CLASSES)
    assert sums["targets"] == mask.sum() and sums["correct"] == right.sum()
    assert sums["correct_top_k"] == (good & (places < TOP_K)).sum()
    assert sums["bin_counts"].sum() == mask.sum()
    result = metrics(jax.device_get(sums), NAMES)
    predicted = np.where(bad, NUM_CLASSES, class_of[order[..., 0]])[mask]
    assert result["micro_f1"] == np.mean(predicted == classes[mask])
    _, recall, f1, _ = precision_recall_fscore_support(
        classes[mask], predicted, labels=np.arange(NUM_CLASSES - 1), zero_division=0
    )
    assert [c["recall"] for c in result["classes"].values()] == pytest.approx(recall)
    assert [c["f1"] for c in result["classes"].values()] == pytest.approx(f1)
    assert np.isfinite(result["calibration_error"])


def test_a_model_that_knows_nothing_guesses():
    labels = np.arange(VOCAB, dtype="i4")[None]
    sums = prediction_sums(np.zeros((1, VOCAB, VOCAB)), labels, np.ones((1, VOCAB), bool))
    result = metrics(jax.device_get(sums))
    assert result["accuracy"] == pytest.approx(1 / VOCAB)
    assert result[f"top_{TOP_K}_accuracy"] == pytest.approx(TOP_K / VOCAB)


@pytest.mark.parametrize("degree", [2, 8])
def test_sums_over_devices_are_those_of_one(drawn, degree):
    mesh = data_mesh(degree)
    *arrays, class_of = drawn

    def local(*arrays):
        sums = prediction_sums(*arrays, class_of, NUM_CLASSES)
        return jax.lax.psum(sums, "data")

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False
    )
    one, many = jax.device_get(
        (prediction_sums(*drawn, NUM_CLASSES), jax.jit(spread)(*map(jnp.asarray, arrays)))
    )
    for name in one:
        if name == "bin_confidence":
            np.testing.assert_allclose(many[name], one[name], rtol=1e-6)
        else:
            np.testing.assert_array_equal(many[name], one[name])


SOURCE = 'def total(x):  # add\n    return x + 12.5, "a b"\n'


def test_classes_of_python():
    classes = [CLASSES[i] for i in character_classes(SOURCE)]
    expected = {
        "def": "keyword", "total": "name", "(": "operator", "# add": "comment",
        "return": "keyword", "+": "operator", "12.5": "number", '"a b"': "string",
    }  # fmt: skip
    for part, kind in expected.items():
        start = SOURCE.index(part)
        assert set(classes[start : start + len(part)]) == {kind}, part


def test_token_classes_are_as_many_as_tokens_and_usual_ones_follow():
    tokenizer = train_tokenizer("bpe", [SOURCE] * 3, 300)
    ids = tokenizer.encode(SOURCE).ids
    classes = token_classes(SOURCE, tokenizer)
    assert len(classes) == len(ids) + 2
    usual = usual_classes([SOURCE], tokenizer)
    text = [tokenizer.decode([i]) for i in ids]
    (place,) = [i for i, piece in enumerate(text) if piece.strip() == "return"]
    assert CLASSES[classes[1 + place]] == CLASSES[usual[ids[place]]] == "keyword"


def test_text_that_is_no_python_is_other_and_ends_there():
    """Form feeds and U+2028 are no line ends, and what is wrong shifts nothing."""
    text = "x = 1\x0c\nyes = '\u2028'\n? $ `\nif 2 in yes"
    classes = [CLASSES[i] for i in character_classes(text)]
    expected = {"?": "other", "$": "other", "yes": "name", "if": "keyword"}
    expected |= {"'\u2028'": "string", "2 ": "number", "in": "keyword"}
    for part, kind in expected.items():
        start = text.index(part)
        assert set(classes[start : start + len(part.rstrip())]) == {kind}, part


def test_the_interval_over_documents_is_scipys():
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 2000, 84)
    loss = tokens * rng.gamma(9, 1 / 3, 84)

    def ratio(loss, tokens, axis):
        return loss.sum(axis) / tokens.sum(axis)

    expected = stats.bootstrap(
        (loss, tokens), ratio, paired=True, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    found = bootstrap_interval(loss, tokens)
    # The ends of 2,000 draws have a standard error of about a thirtieth of the width.
    np.testing.assert_allclose(found, expected, atol=0.1 * (expected.high - expected.low))
    assert found == bootstrap_interval(loss, tokens)
    assert found[0] < bootstrap_interval(loss, tokens, 0.9)[0]
    # A loss and a length in proportion tell the ratio exactly; one document tells nothing.
    np.testing.assert_allclose(bootstrap_interval(3.0 * tokens, tokens), 3, rtol=1e-12)
    assert bootstrap_interval(loss[:1], tokens[:1]) is None
