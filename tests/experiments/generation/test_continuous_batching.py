"""Texts over devices and refilled slots: those of one full pass, and of one batch."""

import functools

import jax
import numpy as np
import pytest

from experiments.generation.continuous_batching import (
    Batching,
    Slots,
    generate_spread,
    trimmed,
)
from lm.decoding import Sampling, generate
from lm.models.hmm import HmmConfig
from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Setting
from lm.models.transformer.config import TransformerConfig
from parallel.mesh import data_mesh
from tests.lm.models.greedy import assert_greedy

VOCAB, SEQ_LEN, SOURCE_LEN = 40, 24, 6
SMALL = {"width": 16, "num_layers": 2, "num_heads": 4}
MODELS = {
    "rotary": lambda: TransformerConfig(**SMALL, positions="rotary", num_kv_heads=2).task(
        Setting(VOCAB, SEQ_LEN)
    ),
    "learned": lambda: TransformerConfig(**SMALL).task(Setting(VOCAB, SEQ_LEN)),
    "lstm": lambda: RecurrentConfig(width=16).task(Setting(VOCAB, 0)),
    "hmm": lambda: HmmConfig(num_states=5).task(Setting(VOCAB, SEQ_LEN)),
}
PROMPTS = [[3, 7, 9], [5], [8, 1, 30, 22, 11, 2], [4, 4], [17], [9, 2, 2, 31, 6], [12, 1]]
SHAPES = [(1, Batching(1, 4, 3)), (2, Batching(2, 2, 1)), (8, Batching(1, 32, 16))]


@functools.cache
def model(name: str):
    task = MODELS[name]()
    params = jax.device_get(jax.jit(task.init)(jax.random.key(2)))
    # Larger, so that the likeliest token is not the same everywhere.
    return task, jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)


def spread_over(degree: int, batching: Batching):
    return functools.partial(generate_spread, mesh=data_mesh(degree), batching=batching)


@pytest.mark.parametrize("degree, batching", SHAPES, ids=["1", "2", "8"])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_texts_are_those_of_the_full_pass(name, degree, batching):
    write = spread_over(degree, batching)
    assert_greedy(*model(name), PROMPTS, 9, write=write)


@pytest.mark.parametrize("degree, batching", SHAPES, ids=["1", "2", "8"])
def test_sampled_texts_are_those_of_one_batch(degree, batching):
    task, params = model("rotary")
    write = spread_over(degree, batching)
    expected = generate(task, params, PROMPTS, 9, Sampling(1.0), 5)
    assert write(task, params, PROMPTS, 9, Sampling(1.0), 5) == expected


@pytest.mark.parametrize("refill", [True, False])
def test_each_text_may_have_a_length_of_its_own(refill):
    task, params = model("rotary")
    limits = [1, 12, 3, 7, 2, 9, 5]
    whole = generate(task, params, PROMPTS, 12, Sampling(0.0), 0)
    new = spread_over(2, Batching(1, 4, 4, refill))(
        task, params, PROMPTS, limits, Sampling(0.0), 0
    )
    assert new == [text[:limit] for text, limit in zip(whole, limits, strict=True)]
    assert max(map(len, new)) > 1


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_sources_go_with_their_texts(kind):
    config = Seq2SeqConfig(
        kind="transformer" if kind == "transformer" else "recurrent", width=16, num_layers=1
    )
    task = config.task(Setting(VOCAB, 0, SOURCE_LEN))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + rng.normal(0, 0.4, x.shape).astype(np.float32),
        jax.device_get(jax.jit(task.init)(jax.random.key(1))),
    )
    source_BS = np.random.default_rng(0).integers(1, VOCAB, (5, SOURCE_LEN), np.int32)
    given = task, params, [[0]] * 5, 6, Sampling(0.0), 0
    expected = generate(*given, source_BS)
    new = spread_over(2, Batching(1, 4, 4))(*given, source_BS=source_BS)
    assert new == expected and len(set(map(tuple, new))) > 1


def test_slots_and_chunks_that_no_text_fills_are_left_out():
    task, params = model("rotary")
    huge = Batching(10**12, 10**12, 10**12)
    expected = generate(task, params, PROMPTS, 9, Sampling(1.0, 5, 0.9), 5)
    write = spread_over(2, huge)
    assert write(task, params, PROMPTS, 9, Sampling(1.0, 5, 0.9), 5) == expected
    assert trimmed(huge, 4, 64) == Batching(4, 64, 64)
    assert [trimmed(huge, n, 64).slots for n in (1, 2, 3, 5)] == [1, 2, 4, 8]
    assert trimmed(Batching(2, 3, 4), 99, 64) == Batching(2, 3, 4)


def test_devices_get_the_longest_first_and_equally_many():
    slots = Slots(work=[3, 9, 4, 7, 1], limits=[2] * 5, num_devices=2)
    assert slots.choose(2) == {0: (0, 1), 1: (0, 3)}
    assert slots.choose(2) == {0: (1, 2), 1: (1, 0)}
    assert slots.choose(2) == {}
    # The second text of device 0 ends at once; nothing else has.
    tokens = np.full((2, 2, 1), 5)
    tokens[0, 1] = 0
    assert slots.take(tokens) == 1 and slots.texts == [[5], [5], [], [5], []]
    assert slots.choose(2) == {0: (1, 4)}
    assert slots.take(np.full((2, 2, 3), 6)) == 4 and not slots.holds
    assert slots.texts == [[5, 6], [5, 6], [], [5, 6], [6, 6]]


@pytest.mark.parametrize(
    "prompts, num_new, batching, words",
    [
        ([[1], []], 4, Batching(), r"2 prompts .* \[1\] have no token"),
        ([], 4, Batching(), "0 prompts were given"),
        ([[1], [2]], [4, 0], Batching(), "num_new is 0"),
        ([[VOCAB]], 4, Batching(), f"token {VOCAB} is unknown"),
        ([[1] * 9, [1]], [16, 3], Batching(), "25 tokens together, .* context is 24"),
        ([[1]], 4, Batching(slots=0), "slots is 0"),
        ([[1]], 4, Batching(chunk=-1), "chunk is -1"),
    ],
)
def test_nothing_to_go_on_is_refused(prompts, num_new, batching, words):
    with pytest.raises(ValueError, match=words):
        spread_over(1, batching)(*model("rotary"), prompts, num_new, Sampling(), 0)
