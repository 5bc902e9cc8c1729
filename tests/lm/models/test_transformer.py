"""Law 8 for the transformer: causal, segment-aware, equal to a plain formulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lm.models.rotary import RotaryScaling, positions_in_segment, rotate
from lm.models.setting import Setting
from lm.models.transformer import model as transformer
from lm.models.transformer.config import TransformerConfig
from lm.models.transformer.model import initializer
from lm.task import num_parameters
from tests.lm.models.drawn import drawn
from tests.lm.models.overfit import overfit

VOCAB, SEQ_LEN = 50, 12
SHAPES = {
    "gpt2": {},
    "llama": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "positions": "rotary",
        "num_kv_heads": 2,
        "tied": False,
        "bias": False,
    },
    "relu_he": {"activation": "relu", "init": "he", "num_kv_heads": 1},
    "scanned": {"scan_layers": True, "num_kv_heads": 2},
    "windowed": {
        "norm": "rmsnorm",
        "norm_epsilon": 0.1,
        "activation": "gelu_exact",
        "positions": "rotary",
        # Wavelengths of 6, 29 and 136 tokens: kept, between, and lowered whole.
        "rotary_base": 100.0,
        "rotary_scaling": RotaryScaling("llama3", 4.0, 1.0, 4.0, 64),
        "head_width": 6,
        "head_norm": True,
        "window": 4,
        "window_from": 1,
        "attention_bias": "inputs",
        "bias": False,
        "vocab_rows": VOCAB + 3,
        "context": 2 * SEQ_LEN,
        "scan_layers": True,
        "num_kv_heads": 2,
    },
}


@functools.cache
def make(name="gpt2", **changes):
    config = TransformerConfig(
        **{"width": 16, "num_layers": 2, "num_heads": 4, **SHAPES[name], **changes}
    )
    config.validate(Setting(VOCAB, SEQ_LEN))
    task = config.task(Setting(VOCAB, SEQ_LEN))
    # Larger weights than at the start, so that every path matters to the result.
    return config, task, drawn(task, 0.1)


@functools.cache
def logits_of(name):
    return jax.jit(make(name)[1].logits)


def random_batch(seed=0, rows=3, segments=1):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, SEQ_LEN + 1), np.int32)
    return {
        "tokens": tokens,
        "segments": np.broadcast_to(np.int32(segments), tokens.shape),
        "row": np.arange(rows, dtype=np.int32),
    }


def one_of(stack, index):
    return jax.tree.map(lambda x: x[index], stack)


def lowered(frequency, scaling):
    """Return a frequency as the configs of Llama 3 say it: by three ranges of lengths."""
    length = 2 * np.pi / frequency
    if length < scaling.context / scaling.fastest:
        return frequency
    if length > scaling.context / scaling.slowest:
        return frequency / scaling.factor
    kept = (scaling.context / length - scaling.slowest) / (
        scaling.fastest - scaling.slowest
    )
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def oracle_logits(config, params, tokens):
    """Compute one document's logits in NumPy, position by position, head by head."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    heads = config.num_heads
    head_width = config.head_width or config.width // heads
    groups = config.num_kv_heads or heads

    def linear(x, w):
        return x @ w["kernel"] + w.get("bias", 0.0)

    def norm(x, w):
        if config.norm == "rmsnorm":
            epsilon = config.norm_epsilon or 1e-6
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w["scale"]
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return y * w["scale"] + w.get("bias", 0.0)

    def spin(x):  # rotary as a complex rotation of the two halves
        if config.positions != "rotary":
            return x
        half = head_width // 2
        z = x[..., :half] + 1j * x[..., half:]
        frequency = config.rotary_base ** (-np.arange(half) / half)
        if config.rotary_scaling.kind == "llama3":
            frequency = np.array([lowered(f, config.rotary_scaling) for f in frequency])
        z *= np.exp(1j * np.arange(len(x))[:, None] * frequency)
        return np.concatenate([z.real, z.imag], -1)

    x = p["embedding"][tokens]
    if config.positions == "learned":
        x = x + p["position_embedding"][: len(tokens)]
    for i in range(config.num_layers):
        layer = p["layers"][i] if "layers" in p else one_of(p["scanned_layers"], i)
        h = norm(x, layer["attention_norm"])
        q, k, v = (linear(h, layer["attention"][n]) for n in ("query", "key", "value"))
        outputs = []
        for head in range(heads):
            own = slice(head * head_width, (head + 1) * head_width)
            group = head // (heads // groups)
            shared = slice(group * head_width, (group + 1) * head_width)
            query, key = q[:, own], k[:, shared]
            if config.head_norm:
                query = norm(query, layer["attention"]["query_norm"])
                key = norm(key, layer["attention"]["key_norm"])
            scores = spin(query) @ spin(key).T / np.sqrt(head_width)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            if config.window and i >= config.window_from:
                scores[np.tril_indices(len(tokens), -config.window)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            outputs.append(weights @ v[:, shared])
        x = x + linear(np.concatenate(outputs, -1), layer["attention"]["out"])
        h = norm(x, layer["mlp_norm"])
        up = linear(h, layer["mlp"]["up"])
        if config.activation == "swiglu":
            gate = linear(h, layer["mlp"]["gate"])
            up = gate / (1 + np.exp(-gate)) * up
        elif config.activation == "relu":
            up = np.maximum(up, 0)
        elif config.activation == "gelu_exact":
            up = up * scipy.stats.norm.cdf(up)
        else:
            up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + linear(up, layer["mlp"]["down"])
    x = norm(x, p["final_norm"])
    return x @ (p["embedding"].T if config.tied else p["output"]["kernel"])


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_a_plain_formulation(name):
    config, task, params = make(name)
    batch = random_batch()
    logits = logits_of(name)(params, batch)
    for row in range(3):
        expected = oracle_logits(config, params, np.asarray(batch["tokens"])[row, :-1])
        np.testing.assert_allclose(logits[row], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_documents_do_not_see_each_other(name):
    config, task, params = make(name)
    segments = [1] * 5 + [2] * 6 + [0] * 2
    batch = random_batch(segments=segments)
    logits = logits_of(name)(params, batch)
    tokens = np.asarray(batch["tokens"])[0]
    for part in (slice(0, 5), slice(5, 11)):
        expected = oracle_logits(config, params, tokens[part])
        np.testing.assert_allclose(logits[0, part], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_no_future_token_changes_a_logit(name):
    _, task, params = make(name)
    batch = random_batch()
    changed = dict(batch, tokens=batch["tokens"].copy())
    changed["tokens"][:, 7] = (changed["tokens"][:, 7] + 1) % VOCAB
    a, b = (logits_of(name)(params, x) for x in (batch, changed))
    np.testing.assert_array_equal(a[:, :7], b[:, :7])
    assert not np.allclose(a[:, 7:], b[:, 7:])


def test_loss_counts_targets_inside_documents_only():
    config, task, params = make()
    segments = [1] * 5 + [2] * 6 + [0] * 2
    batch = random_batch(segments=segments)
    loss_sum, sums = jax.jit(task.loss, static_argnums=2)(params, batch, None)
    expected = 0.0
    for row in np.asarray(batch["tokens"]):
        for start, end in ((0, 5), (5, 11)):
            logits = oracle_logits(config, params, row[start : end - 1])
            norm = np.log(np.exp(logits).sum(-1))
            picked = logits[np.arange(end - 1 - start), row[start + 1 : end]]
            expected += (norm - picked).sum()
    assert sums["tokens"] == 3 * (4 + 5)
    np.testing.assert_allclose(loss_sum, expected, rtol=1e-4)


def test_chunked_loss_and_remat_change_nothing():
    def grads(**changes):
        _, task, params = make(**changes)
        batch = random_batch(segments=[1] * 9 + [2] * 4)
        return jax.jit(jax.grad(lambda p: task.loss(p, batch, None)[0]))(params)

    plain = grads()
    for changes in ({"loss_chunk": 4}, {"remat": "full"}, {"remat": "dots"}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            grads(**changes),
            plain,
        )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_layers_as_calls_are_the_layers(remat, monkeypatch):
    found = []
    for calls in (True, False):
        monkeypatch.setattr(transformer, "one_core_a_device", lambda calls=calls: calls)
        _, task, params = make("llama", dropout=0.1, remat=remat, num_layers=2)
        batch = random_batch(segments=[1] * 9 + [2] * 4)

        def loss(params, task=task, batch=batch):
            return task.loss(params, batch, jax.random.key(5))[0]

        grad = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        assert ("to_apply=%xla_metadata_call" in grad.as_text()) == calls
        found.append(grad(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found
    )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_layers_are_the_layers(remat):
    config, task, apart = make("llama", dropout=0.1, remat=remat, num_layers=3)
    scanned_task = make(
        "llama", dropout=0.1, remat=remat, num_layers=3, scan_layers=True
    )[1]  # fmt: skip
    stacked = {name: child for name, child in apart.items() if name != "layers"} | {
        "scanned_layers": jax.tree.map(lambda *x: np.stack(x), *apart["layers"].values())
    }
    batch = random_batch(segments=[1] * 9 + [2] * 4)

    def loss_and_grads(task, params):
        grad = jax.value_and_grad(lambda p: task.loss(p, batch, jax.random.key(5))[0])
        return jax.jit(grad)(params)

    loss, grads = loss_and_grads(task, apart)
    scanned_loss, scanned_grads = loss_and_grads(scanned_task, stacked)
    np.testing.assert_allclose(scanned_loss, loss, rtol=1e-6)
    for i in range(config.num_layers):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            one_of(scanned_grads["scanned_layers"], i),
            grads["layers"][i],
        )


def test_scanned_layers_begin_as_the_layers():
    apart, stacked = (
        jax.jit(make("llama", scan_layers=scanned)[1].init)(jax.random.key(0))
        for scanned in (False, True)
    )
    np.testing.assert_array_equal(apart["embedding"], stacked["embedding"])
    for i, layer in apart["layers"].items():
        np.testing.assert_array_equal(
            layer["mlp"]["gate"]["kernel"],
            stacked["scanned_layers"]["mlp"]["gate"]["kernel"][i],
        )


def test_a_scanned_program_is_as_long_with_more_layers():
    def length(num_layers):
        _, task, params = make(scan_layers=True, num_layers=num_layers)
        grad = jax.jit(jax.grad(lambda p, b: task.loss(p, b, None)[0]))
        return grad.lower(params, random_batch()).as_text().count("\n")

    assert length(2) == length(6)


def test_chunked_loss_never_holds_all_logits():
    def temporaries(chunk):
        config = TransformerConfig(width=16, num_layers=1, num_heads=2, loss_chunk=chunk)
        task = config.task(Setting(8192, 64))
        params = jax.eval_shape(task.init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((4, 65), jnp.int32)
        batch = {"tokens": tokens, "segments": tokens}
        grad = jax.jit(jax.grad(lambda p, b: task.loss(p, b, None)[0]))
        return grad.lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 64 * 8192 * 4
    assert temporaries(0) > logits
    assert temporaries(8) < logits / 2


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
    other = loss(params, batch, jax.random.key(4))[0]
    assert abs(whole - other) > 1e-3
    _, no_dropout, _ = make()
    off, plain = (
        jax.jit(lambda p, b, t=t: t.loss(p, b, None)[0])(params, batch)
        for t in (task, no_dropout)
    )
    np.testing.assert_allclose(off, plain)


def test_positions_restart_in_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0]])
    positions = positions_in_segment(segments, segments)
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1, 0, 0, 1]])


def test_rotary_scores_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(m, n):
        a = rotate(q, jnp.array([[m]]), 100.0)
        b = rotate(k, jnp.array([[n]]), 100.0)
        return float(jnp.sum(a * b))

    assert score(7, 3) == pytest.approx(score(104, 100), rel=1e-3)
    assert score(7, 3) != pytest.approx(score(8, 3), rel=1e-2)


@pytest.mark.parametrize("name, variance", [("he", 2 / 256), ("gpt2", 0.02**2)])
def test_initializers_have_their_variance(name, variance):
    init = initializer(TransformerConfig(init=name))
    weights = init(jax.random.key(0), (256, 512))
    assert float(jnp.var(weights)) == pytest.approx(variance, rel=0.02)


def test_xavier_and_residual_scaling():
    xavier = initializer(TransformerConfig(init="xavier"))(jax.random.key(0), (256, 512))
    assert float(jnp.var(xavier)) == pytest.approx(2 / (256 + 512), rel=0.02)
    residual = initializer(TransformerConfig(num_layers=8), residual=True)
    weights = residual(jax.random.key(0), (256, 512))
    assert float(jnp.std(weights)) == pytest.approx(0.02 / 4, rel=0.02)


def test_gpt2_and_llama_have_their_published_sizes():
    from configs import gpt2_small, llama_1b

    for module, millions in [(gpt2_small, 124.4), (llama_1b, 1235.8)]:
        c = module.get_config()
        task = c.model.task(Setting(c.data.vocab_size, c.data.seq_len))
        # GPT-2's vocabulary is padded from 50,257 to 50,304.
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        assert num_parameters(shapes) / 1e6 == pytest.approx(millions, abs=0.1)


def test_overfits_a_tiny_batch():
    _, task, params = make("llama")
    overfit(task, params, random_batch(rows=2), rate=3e-3, steps=250)


@pytest.mark.parametrize("name", SHAPES)
def test_decoding_with_a_cache_equals_the_full_pass(name):
    _, task, params = make(name)
    tokens = random_batch()["tokens"][:, :-1]
    full = logits_of(name)(params, random_batch())
    cache = task.cache(3, SEQ_LEN)
    decode = jax.jit(task.decode)
    prompt, cache = decode(params, cache, tokens[:, :5], jnp.zeros(3, jnp.int32))
    parts = [prompt]
    for i in range(5, SEQ_LEN):
        logits, cache = decode(params, cache, tokens[:, i : i + 1], jnp.full(3, i))
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, rtol=1e-3, atol=1e-4)


def by_stages(task, params, batch):
    """Return the loss as a pipeline computes it."""
    embed, layer, loss = task.stages[1:]
    outer = {name: part for name, part in params.items() if name != "layers"}
    x_BTD = embed(outer, batch, None)
    for index, part in params["layers"].items():
        x_BTD = layer(part, x_BTD, batch, index, None)
    return loss(outer, x_BTD, batch)[0]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_one_segment_a_row_needs_no_mask(positions):
    config = TransformerConfig(width=16, num_layers=2, num_heads=2, positions=positions)
    packed, unpacked = (
        config.task(Setting(VOCAB, SEQ_LEN, packed=packed)) for packed in (True, False)
    )
    params, batch = drawn(packed, 0.02), random_batch()

    def of(task):
        grad = jax.value_and_grad(lambda params: task.loss(params, batch, None)[0])
        return jax.jit(grad)(params)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
                 of(unpacked), of(packed))  # fmt: skip
    # Attention and positions heed the segments of packed rows alone, in a pipeline too.
    several = random_batch(segments=[1] * 9 + [2] * 4)
    logits = jax.jit(unpacked.logits)
    assert np.array_equal(logits(params, several), logits(params, batch))
    logits = jax.jit(packed.logits)
    assert not np.allclose(logits(params, several), logits(params, batch))
    for task in (packed, unpacked):
        whole, staged = (
            jax.jit(of)(params)
            for of in (
                lambda params, task=task: task.loss(params, several, None)[0],
                lambda params, task=task: by_stages(task, params, several),
            )
        )
        np.testing.assert_allclose(staged, whole, rtol=1e-5)
