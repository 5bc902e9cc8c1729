"""Law 8 for recurrent models: equal to a plain recurrence in NumPy, causal, resettable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lm.decoding import Sampling, generate
from lm.models.recurrence import gru_step, lstm_step, output, recur, rnn_step, scan
from lm.models.recurrent import (
    CELLS,
    INITIALIZERS,
    RecurrentConfig,
    each_gate,
    open_forget_gate,
)
from lm.models.setting import Setting
from lm.precision import PrecisionConfig, mixed_precision
from tests.lm.models.drawn import drawn
from tests.lm.models.overfit import overfit

VOCAB, SEQ_LEN = 30, 12
SHAPES = {
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru", "tied": False, "init": "xavier"},
    "rnn": {"cell": "rnn"},
    "relu": {"cell": "rnn", "activation": "relu", "init": "he"},
    "sigmoid": {"cell": "rnn", "activation": "sigmoid", "init": "naive", "tied": False},
}
STEPS = {  # cell -> (its step, its gates)
    "rnn": (functools.partial(rnn_step, jnp.tanh), 1),
    "gru": (gru_step, 3),
    "lstm": (lstm_step, 4),
}
PACKED = [1] * 5 + [2] * 6 + [0] * 2


@functools.cache
def make(name="lstm", **changes):
    config = RecurrentConfig(**{"width": 8, "num_layers": 2, **SHAPES[name], **changes})
    config.validate(Setting(VOCAB, SEQ_LEN))
    task = config.task(Setting(VOCAB, 0))
    # Nothing is zero and everything matters, the biases included.
    return config, task, drawn(task, 0.3)


def random_batch(seed=0, rows=3, segments=1):
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(1, VOCAB, (rows, SEQ_LEN + 1)))
    segments = jnp.broadcast_to(jnp.asarray(segments), tokens.shape)
    return {"tokens": tokens, "segments": segments, "row": jnp.arange(rows)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "sigmoid": sigmoid}


def oracle_logits(config, params, tokens):
    """Compute one document's logits step by step, from the equations of the papers."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    states = [[np.zeros(config.width)] * 2 for _ in range(config.num_layers)]
    logits = []
    for token in tokens:
        x = p["embedding"][token] * config.width**0.5
        for index, layer in p["layers"].items():
            h, c = states[index]
            a = x @ layer["input"]["kernel"] + layer["input"].get("bias", 0.0)
            u = h @ layer["cell"]["dense_h"]["kernel"]
            u = u + layer["cell"]["dense_h"].get("bias", 0.0)
            if config.cell == "rnn":
                h = ACTIVATIONS[config.activation](a + u)
            elif config.cell == "lstm":
                i, f, g, o = np.split(a + u, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                (a_r, a_z, a_n), (u_r, u_z, u_n) = np.split(a, 3), np.split(u, 3)
                z = sigmoid(a_z + u_z)
                n = np.tanh(a_n + sigmoid(a_r + u_r) * u_n)
                h = (1 - z) * n + z * h
            states[index] = [h, c]
            x = h
        logits.append(x @ (p["embedding"].T if config.tied else p["output"]["kernel"]))
    return np.array(logits)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_documents_equal_a_plain_recurrence(name):
    config, task, params = make(name, truncate=4)
    whole = random_batch()
    packed = random_batch(segments=PACKED)
    logits = jax.jit(task.logits)(params, whole)
    packed_logits = jax.jit(task.logits)(params, packed)
    for row, tokens in enumerate(np.asarray(whole["tokens"])):
        expected = oracle_logits(config, params, tokens[:-1])
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-5)
        for part in (slice(0, 5), slice(5, 11)):
            expected = oracle_logits(config, params, tokens[part])
            np.testing.assert_allclose(
                packed_logits[row, part], expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_cell_of_flax(cell):
    _, task, params = make(cell=cell, num_layers=1)
    layer, batch = params["layers"][0], random_batch()
    theirs = CELLS[cell](8, 8, rngs=nnx.Rngs(0))
    for name, given in [("dense_i", layer["input"]), ("dense_h", layer["cell"]["dense_h"])]:
        linear = getattr(theirs, name)
        linear.kernel = nnx.Param(given["kernel"])
        assert (linear.bias is None) == ("bias" not in given)
        if "bias" in given:
            linear.bias = nnx.Param(given["bias"])
    carry, logits = theirs.initialize_carry((3, 8), nnx.Rngs(0)), []
    for token in batch["tokens"][:, :-1].T:
        carry, h = theirs(carry, params["embedding"][token] * 8**0.5)
        logits.append(h @ params["embedding"].T)
    np.testing.assert_allclose(
        jax.jit(task.logits)(params, batch), jnp.stack(logits, 1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("step, num_gates", STEPS.values(), ids=STEPS)
def test_all_gradients_are_those_of_autodiff(step, num_gates):
    """One product after the scan against what autodiff adds up inside it."""
    time, batch, width = 6, 2, 3
    gates = num_gates * width
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(width, gates), (gates,), (batch, width), (time, batch, gates)]
    kernel, bias, h, given = map(jax.random.normal, keys, shapes)
    carry = (0.5 * h, h) if num_gates == 4 else h  # (c, h) of the LSTM
    cut_T = jnp.arange(time) % 4 == 0
    first_TB1 = jnp.arange(time)[:, None, None] == jnp.array([[2], [5]])
    weights_TBD = jax.random.normal(keys[4], (time, batch, width))

    def total(run, arrays, *more):
        kernel, bias, carry, given = arrays
        carries = run(step, kernel, bias, carry, given, *more, cut_T, first_TB1)
        return jnp.sum(output(carries) * weights_TBD)

    arrays = kernel, bias, carry, given
    found = jax.grad(lambda arrays: total(recur, arrays))(arrays)
    expected = jax.grad(lambda arrays: total(scan, arrays, None))(arrays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


@pytest.mark.parametrize("name", CELLS)
def test_no_future_token_changes_a_logit(name):
    _, task, params = make(name)
    batch = random_batch()
    changed = dict(batch, tokens=batch["tokens"].at[:, 7].add(1) % VOCAB)
    a, b = (jax.jit(task.logits)(params, x) for x in (batch, changed))
    np.testing.assert_array_equal(a[:, :7], b[:, :7])
    assert not np.allclose(a[:, 7:], b[:, 7:])


@pytest.mark.parametrize("name", SHAPES)
def test_decoding_step_by_step_equals_the_whole_sequence(name):
    _, task, params = make(name)
    tokens = random_batch()["tokens"][:, :-1]
    full = jax.jit(task.logits)(params, random_batch())
    cache, decode = task.cache(3, SEQ_LEN), jax.jit(task.decode)
    # The first five, of which two are taken back, as a padded prompt's are.
    _, cache = decode(params, cache, tokens[:, :5] + 1, jnp.zeros(3, jnp.int32))
    prompt, cache = decode(params, cache, tokens[:, :3], jnp.zeros(3, jnp.int32))
    parts = [prompt]
    for i in range(3, SEQ_LEN):
        logits, cache = decode(params, cache, tokens[:, i : i + 1], jnp.full(3, i))
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_greedy_from_prompts_of_unequal_length(cell):
    config, task, params = make(cell)
    prompts = [[3, 7, 9], [5], [8, 1, 20, 22, 11, 2]]
    new = generate(task, params, prompts, 6, Sampling(temperature=0), seed=0)
    for prompt, tokens in zip(prompts, new, strict=True):
        expected = list(prompt)
        for _ in range(6):
            likeliest = int(oracle_logits(config, params, expected)[-1].argmax())
            if likeliest == 0:
                break
            expected.append(likeliest)
        assert tokens == expected[len(prompt) :]


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_truncated_gradients_stop_at_windows_and_the_state_goes_on(name):
    """The oracle goes window by window, the state before each being a constant."""
    _, task, params = make(name, truncate=4)
    _, untruncated, _ = make(name)
    batch = random_batch()
    tokens = batch["tokens"]

    def by_windows(params):
        cache, total = task.cache(3, SEQ_LEN), 0.0
        for start in range(0, SEQ_LEN, 4):
            window = tokens[:, start : start + 4]
            logits, cache = task.decode(params, cache, window, jnp.full(3, start))
            labels = tokens[:, start + 1 : start + 5]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            total += losses.sum()
            cache = jax.lax.stop_gradient(cache)
        return total

    def loss(task):
        return jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, None)[0]))(params)

    (value, grads), (whole_value, whole_grads) = loss(task), loss(untruncated)
    expected_value, expected = jax.jit(jax.value_and_grad(by_windows))(params)
    np.testing.assert_allclose([value, whole_value], expected_value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grads, expected
    )
    assert not np.allclose(
        grads["layers"][0]["input"]["kernel"],
        whole_grads["layers"][0]["input"]["kernel"],
        rtol=1e-2,
    )


def test_dropout_is_per_row_and_off_without_key():
    _, task, params = make(dropout=0.5)
    batch = random_batch(rows=4)
    loss = jax.jit(task.loss)
    whole = loss(params, batch, jax.random.key(3))[0]
    halves = [
        loss(params, jax.tree.map(lambda x, s=s: x[s], batch), jax.random.key(3))[0]
        for s in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(whole, sum(halves), rtol=1e-5)
    assert abs(whole - loss(params, batch, jax.random.key(4))[0]) > 1e-3
    losses = [
        jax.jit(each.loss, static_argnums=2)(params, batch, None)[0]
        for each in (task, make()[1])
    ]
    np.testing.assert_allclose(*losses)


def test_each_gate_is_initialised_alone():
    def gates(name):
        init = each_gate(INITIALIZERS[name], 4)
        return np.split(np.asarray(init(jax.random.key(0), (64, 256), jnp.float32)), 4, 1)

    for name, variance in [("naive", 1e-4), ("xavier", 1 / 64), ("he", 2 / 64)]:
        for gate in gates(name):
            assert gate.var() == pytest.approx(variance, rel=0.1)
    one, other, *_ = gates("orthogonal")
    np.testing.assert_allclose(one.T @ one, np.eye(64), atol=1e-5)
    assert not np.allclose(one, other)
    bias = open_forget_gate(jax.random.key(0), (12,), jnp.float32)
    np.testing.assert_array_equal(bias, [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_overfits_a_tiny_batch():
    _, task, params = make("gru", width=32, dropout=0.0)
    overfit(task, params, random_batch(rows=2), rate=1e-2)


@pytest.mark.parametrize("name, compute", [("lstm", "bfloat16"), ("gru", "float16")])
def test_sixteen_bits_stay_near_and_decode(name, compute):
    _, task, params = make(name, dropout=0.1)
    half = mixed_precision(task, PrecisionConfig(compute=compute))
    batch = random_batch(segments=PACKED)
    loss, expected = (
        jax.jit(t.loss)(params, batch, jax.random.key(0))[0] for t in (half, task)
    )
    np.testing.assert_allclose(loss, expected, rtol=2e-2)
    assert loss != expected
    generate(half, params, [[3, 4], [5]], 3, Sampling(), seed=0)
