"""Metrics of next-token prediction: sums on devices, one division at the end.

Only sums over target tokens leave a device, so the metrics are exact under any strategy,
any padding and any split into batches. lm/data/classes.py finds classes of tokens (keyword,
name, number, ...): the true class of each target, and the class that each token of the
vocabulary has most often. The latter is the class of a prediction.

Shapes: B batch, T time, V vocabulary, C classes, K bins.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RESAMPLES = 2000  # of the bootstrap
TOP_K = 5
NUM_BINS = 15  # bins of the calibration error, as in Guo et al. 2017


def prediction_sums(
    logits_BTV: jax.Array,
    labels_BT: jax.Array,
    mask_BT: jax.Array,
    classes_BT: jax.Array | None = None,
    class_of_V: jax.Array | None = None,
    num_classes: int = 0,
) -> dict[str, jax.Array]:
    """Return the sums that `metrics` divides, int32 except for `bin_confidence`.

    `confusion` is [C, C + 1]: the true class of a target, and the class of the prediction.
    If the logits of a position hold a NaN or an infinity that has no softmax, the position
    predicts nothing: it counts as wrong, with a confidence of 0, in the last column.
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    confidence_BT = jnp.max(jax.nn.softmax(logits_BTV), -1)
    predicts_BT = jnp.isfinite(confidence_BT)
    confidence_BT = jnp.where(predicts_BT, confidence_BT, 0.0)
    best_BT = jnp.argmax(logits_BTV, -1)
    correct_BT = predicts_BT & (best_BT == labels_BT)
    high_BT = predicts_BT & (ranks(logits_BTV, labels_BT) < TOP_K)
    bins_BT = jnp.clip(jnp.ceil(confidence_BT * NUM_BINS) - 1, 0, NUM_BINS - 1)
    bins_BT = jnp.where(mask_BT, bins_BT, NUM_BINS).astype(jnp.int32)

    def count(condition_BT: jax.Array) -> jax.Array:
        return jnp.sum(condition_BT & mask_BT, dtype=jnp.int32)

    def by_bin(values_BT: jax.Array) -> jax.Array:
        return jnp.zeros(NUM_BINS + 1, values_BT.dtype).at[bins_BT].add(values_BT)[:-1]

    sums = {
        "targets": count(mask_BT),
        "correct": count(correct_BT),
        "correct_top_k": count(high_BT),
        "bin_counts": by_bin(jnp.ones_like(bins_BT)),
        "bin_correct": by_bin(correct_BT.astype(jnp.int32)),
        "bin_confidence": by_bin(confidence_BT),
    }
    if classes_BT is not None:
        # A row of the vocabulary that is no token has no class.
        known_BT = predicts_BT & (best_BT < len(class_of_V))
        predicted_BT = jnp.where(known_BT, jnp.asarray(class_of_V)[best_BT], num_classes)
        none = jnp.zeros((num_classes, num_classes + 1), jnp.int32)
        sums["confusion"] = none.at[classes_BT, predicted_BT].add(mask_BT)
    return sums


def ranks(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
    """Return the rank of each label, from 0, with the likeliest token first.

    If logits are equal, the token with the lower number comes first, as in argmax. So if
    all logits are equal, only TOP_K of the V labels have a rank below TOP_K.
    """
    label_logits_BT1 = jnp.take_along_axis(logits_BTV, labels_BT[..., None], -1)
    earlier_BTV = jnp.arange(logits_BTV.shape[-1]) < labels_BT[..., None]
    before_BTV = jnp.where(
        earlier_BTV, logits_BTV >= label_logits_BT1, logits_BTV > label_logits_BT1
    )
    return jnp.sum(before_BTV, -1)


def metrics(sums: dict[str, np.ndarray], classes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Divide sums over the whole evaluation, given as NumPy arrays.

    Returns accuracy, top_5_accuracy and calibration_error (the expected calibration error).
    With classes there are also micro and macro averages and, under `classes`, precision,
    recall, F1 and the number of targets of each class. A quotient with the divisor 0 is 0,
    as in scikit-learn.
    """
    total = max(int(sums["targets"]), 1)
    gaps = np.abs(sums["bin_correct"] - sums["bin_confidence"].astype(np.float64))
    found: dict[str, Any] = {
        "accuracy": int(sums["correct"]) / total,
        f"top_{TOP_K}_accuracy": int(sums["correct_top_k"]) / total,
        "calibration_error": float(gaps.sum() / total),
    }
    if "confusion" not in sums:
        return found
    confusion = sums["confusion"].astype(np.int64)
    hits, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)[:-1]
    precision, recall = divide(hits, predicted), divide(hits, true)
    f1 = divide(2 * hits, predicted + true)
    there = predicted + true > 0  # a class that never occurs has no part in the averages
    for name, values in [("precision", precision), ("recall", recall), ("f1", f1)]:
        found[f"macro_{name}"] = float(values[there].mean())
    found["micro_f1"] = float(hits.sum() / max(confusion.sum(), 1))
    found["classes"] = {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "targets": int(true[i]),
        }
        for i, name in enumerate(classes)
        if there[i]
    }
    return found


def bootstrap_interval(
    loss_D: np.ndarray, tokens_D: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Return an interval of the loss of a token, over the choice of the D documents.

    Documents are drawn again, with replacement, and each draw has the loss sum(loss_D) /
    sum(tokens_D). The ends are quantiles of the draws (percentile bootstrap: Efron and
    Tibshirani 1993, 13). None for fewer than two documents.
    """
    num = len(loss_D)
    if num < 2:
        return None
    rng, drawn = np.random.default_rng(seed), []
    together = min(max((1 << 22) // num, 1), RESAMPLES)  # bounds the memory
    for start in range(0, RESAMPLES, together):
        chosen = rng.integers(0, num, (min(together, RESAMPLES - start), num))
        drawn.append(loss_D[chosen].sum(1) / tokens_D[chosen].sum(1))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
