"""Law 8 for encoder-decoders: causal in the target, blind to padding, equal decoded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.beam import Beam
from lm.data.rows.pairs import pair_row
from lm.decoding import Sampling, generate
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Setting
from lm.precision import PrecisionConfig, mixed_precision
from tests.lm.models.drawn import drawn
from tests.lm.models.overfit import overfit

VOCAB, SOURCE_LEN, TARGET_LEN = 23, 8, 7
SEQ_LEN = SOURCE_LEN + TARGET_LEN
KINDS = {
    "transformer": {"kind": "transformer", "num_heads": 2},
    "lstm": {"kind": "recurrent", "cell": "lstm", "tied": False},
    "gru": {"kind": "recurrent", "cell": "gru"},
}


DISTINCT = ("transformer", "lstm")  # gru differs from lstm in its cell alone


@functools.cache
def make(name, **changes):
    config = Seq2SeqConfig(
        **{
            "width": 16,
            "num_layers": 2,
            "dropout": 0.0,
            "label_smoothing": 0.0,
            **KINDS[name],
            **changes,
        }
    )
    config.validate(Setting(VOCAB, SEQ_LEN, SOURCE_LEN))
    task = config.task(Setting(VOCAB, SEQ_LEN, SOURCE_LEN))
    return task, drawn(task, 0.3)


@functools.cache
def logits_of(name):
    """Return the compiled logits; all laws ask for those of 4 rows."""
    return jax.jit(make(name)[0].logits)


def random_pairs(rows, seed=0):
    rng = np.random.default_rng(seed)

    def text(longest):
        return rng.integers(1, VOCAB, rng.integers(1, longest + 1)).tolist()

    return [(text(SOURCE_LEN - 1), text(TARGET_LEN - 1)) for _ in range(rows)]


def as_batch(pairs):
    rows = [pair_row(*pair, SOURCE_LEN, SEQ_LEN) for pair in pairs]
    tokens, segments = (np.stack(side) for side in zip(*rows, strict=True))
    return {"tokens": tokens, "segments": segments, "row": np.arange(len(rows))}


@pytest.mark.parametrize("name", KINDS)
def test_no_future_target_and_every_source_token_changes_a_logit(name):
    _, params = make(name)
    logits = logits_of(name)
    batch = as_batch(2 * [([3, 4, 5, 6], [7, 8, 9, 10, 11]), ([5] * 7, [1, 2, 3, 4, 5])])
    before = logits(params, batch)
    assert before.shape == (4, TARGET_LEN, VOCAB)
    changed = batch["tokens"].copy()
    changed[:, SOURCE_LEN + 3] += 1
    after = logits(params, batch | {"tokens": changed})
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3], after[:, 3])
    for position in range(4):
        changed = batch["tokens"].copy()
        changed[:, position] += 1
        after = logits(params, batch | {"tokens": changed})
        assert (np.abs(after - before).max((1, 2)) > 1e-4).all(), position


@pytest.mark.parametrize("name", DISTINCT)
def test_what_follows_the_source_in_its_row_is_not_seen(name):
    _, params = make(name)
    batch = as_batch(2 * [([3, 4, 5], [7, 8]), ([5, 6], [1, 2, 3])])
    before = logits_of(name)(params, batch)
    after_end = batch["tokens"].copy()
    after_end[::2, 4:SOURCE_LEN] = after_end[1::2, 3:SOURCE_LEN] = 9
    after = logits_of(name)(params, batch | {"tokens": after_end})
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DISTINCT)
def test_decoding_step_by_step_equals_the_whole_target(name):
    task, params = make(name)
    batch = as_batch(random_pairs(4))
    full = logits_of(name)(params, batch)
    tokens = batch["tokens"]
    cache = task.cache(4, TARGET_LEN)
    cache = jax.jit(task.encode)(params, cache, tokens[:, :SOURCE_LEN])
    decode, parts = jax.jit(task.decode), []
    for start, end in [(0, 3), *[(i, i + 1) for i in range(3, TARGET_LEN)]]:
        some = tokens[:, SOURCE_LEN + start : SOURCE_LEN + end]
        logits, cache = decode(params, cache, some, jnp.full(4, start))
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, rtol=1e-4, atol=1e-5)


def test_the_loss_is_of_the_targets_with_their_end_mark():
    task, params = make("transformer")
    pairs = random_pairs(4)
    batch = as_batch(pairs)
    loss, sums = jax.jit(task.loss, static_argnums=2)(params, batch, None)
    logits = np.asarray(logits_of("transformer")(params, batch), np.float64)
    expected = 0.0
    for row, (_, target) in enumerate(pairs):
        for position, label in enumerate([*target, 0]):
            log_p = logits[row, position] - np.log(np.exp(logits[row, position]).sum())
            expected -= log_p[label]
    assert sums["tokens"] == sum(len(target) + 1 for _, target in pairs)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)


def test_smoothed_labels_are_trained_on_and_the_likelihood_is_reported():
    plain, params = make("lstm")
    smoothed, _ = make("lstm", label_smoothing=0.2)
    batch = as_batch(random_pairs(4))
    loss, sums = jax.jit(smoothed.loss, static_argnums=2)(params, batch, None)
    logits = logits_of("lstm")(params, batch)
    labels = jax.nn.one_hot(batch["tokens"][:, -TARGET_LEN:], VOCAB)
    spread = optax.smooth_labels(labels, 0.2)
    counts = batch["segments"][:, -TARGET_LEN:] > 0
    expected = jnp.sum(optax.softmax_cross_entropy(logits, spread) * counts)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    plain_loss = jax.jit(plain.loss, static_argnums=2)(params, batch, None)[0]
    np.testing.assert_allclose(sums["loss"], plain_loss, rtol=1e-5)
    assert loss != sums["loss"]


@pytest.mark.parametrize("name", DISTINCT)
def test_dropout_is_per_row_and_off_without_key(name):
    task, params = make(name, dropout=0.5)
    batch, loss = as_batch(random_pairs(4)), jax.jit(task.loss)
    whole = loss(params, batch, jax.random.key(3))[0]
    halves = [
        loss(params, jax.tree.map(lambda x, s=s: x[s], batch), jax.random.key(3))[0]
        for s in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(whole, sum(halves), rtol=1e-5)
    assert abs(whole - loss(params, batch, jax.random.key(4))[0]) > 1e-3
    losses = [
        jax.jit(each.loss, static_argnums=2)(params, batch, None)[0]
        for each in (task, make(name)[0])
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_overfits_a_tiny_batch_and_writes_it(name):
    """So the tokens that decoding is given are those of teacher forcing."""
    config = Seq2SeqConfig(
        **{"width": 32, "num_layers": 1, "dropout": 0.0, **KINDS[name]},
        label_smoothing=0.0,
    )
    task = config.task(Setting(VOCAB, SEQ_LEN, SOURCE_LEN))
    params = jax.jit(task.init)(jax.random.key(0))
    pairs = random_pairs(4)
    batch = as_batch(pairs)
    params = overfit(task, params, batch, rate=1e-2)
    sources = np.asarray(batch["tokens"][:, :SOURCE_LEN])
    for method in (Sampling(temperature=0), Beam(3)):
        new = generate(task, params, [[0]] * 4, TARGET_LEN, method, 0, sources)
        assert new == [target for _, target in pairs]


@pytest.mark.parametrize(
    "name, compute", [("transformer", "bfloat16"), ("lstm", "float16")]
)
def test_sixteen_bits_stay_near_and_decode(name, compute):
    task, params = make(name, dropout=0.1)
    half = mixed_precision(task, PrecisionConfig(compute=compute))
    batch = as_batch(random_pairs(3))
    losses = [jax.jit(t.loss)(params, batch, jax.random.key(0))[0] for t in (half, task)]
    np.testing.assert_allclose(*losses, rtol=3e-2)
    assert losses[0] != losses[1]
    sources = np.asarray(batch["tokens"][:, :SOURCE_LEN])
    assert len(generate(half, params, [[0]] * 3, 4, Beam(2), 0, sources)) == 3


def test_sources_and_encoders_come_together():
    task, params = make("lstm")
    with pytest.raises(ValueError, match="needs sources, and this one was given none"):
        generate(task, params, [[0]], 3, Sampling(), 0)
    unknown = np.full((1, SOURCE_LEN), VOCAB)
    with pytest.raises(ValueError, match=f"token {VOCAB} is unknown to the model"):
        generate(task, params, [[0]], 3, Sampling(), 0, unknown)
