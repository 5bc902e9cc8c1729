"""Law 1 for the families that are not plain transformers: cut by layers, trained as one."""

import functools

import jax
import numpy as np
import optax
import pytest

from lm.models.recurrent import RecurrentConfig, recurrent_task
from lm.models.seq2seq.task import Seq2SeqConfig, seq2seq_task
from lm.optim import OptimConfig, optimizer
from parallel.pipeline.stacking import build_stacking
from tests.parallel.pipeline.test_pipeline import assert_round_trip, shardings_of
from tests.parallel.test_families import SOURCE_LEN, pair_batches
from tests.parallel.toy import (
    VOCAB,
    assert_equal,
    batches,
    drawn_at_once,
    learner_of,
    oracle_of,
    toy_program,
    train,
)

STEPS, LAYERS, SIZE = 3, 4, 0.2
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))


def recurrent(cell):
    config = RecurrentConfig(
        cell=cell, width=16, num_layers=LAYERS, dropout=0.2, truncate=8
    )
    return recurrent_task(config, VOCAB)


def seq2seq(kind, cell="lstm"):
    config = Seq2SeqConfig(
        kind=kind, cell=cell, width=16, num_layers=LAYERS, num_heads=2, dropout=0.2
    )
    return seq2seq_task(config, VOCAB, SOURCE_LEN)


FAMILIES = {  # name -> (the task's maker, its batches)
    "rnn": (lambda: recurrent("rnn"), batches),
    "lstm": (lambda: recurrent("lstm"), batches),
    "gru": (lambda: recurrent("gru"), batches),
    "seq2seq lstm": (lambda: seq2seq("recurrent"), pair_batches),
    "seq2seq transformer": (lambda: seq2seq("transformer"), pair_batches),
}
# strategy, data, stage, microbatches; each stage of `interleaved` has one layer a chunk
FOUR, TWO, CHUNKS = ("gpipe", 1, 4, 4), ("1f1b", 2, 2, 4), ("interleaved", 1, 2, 4)
WHOLLY = ("lstm", "seq2seq lstm", "seq2seq transformer")
# Cells differ in nothing that is cut: one is tried in all ways, the others in one.
CASES = [(family, *case) for family in WHOLLY for case in (FOUR, TWO, CHUNKS)]
CASES += [("gru", "1f1b", 1, 4, 4), ("rnn", *CHUNKS)]


@functools.cache
def task_of(family):
    task = FAMILIES[family][0]()
    # Large enough that the lowest layer's gradient does not vanish.
    return task._replace(init=drawn_at_once(task.init, SIZE))


@functools.cache
def one_device(family):
    return oracle_of(task_of(family), SGD, STEPS, FAMILIES[family][1])


def program(family, strategy, data=1, stage=2, accumulation=4, tx=SGD):
    return toy_program(
        strategy, learner_of(task_of(family), tx), data=data, stage=stage,
        accumulation=accumulation, chunks=LAYERS // stage,
    )  # fmt: skip


@pytest.mark.parametrize("family, strategy, data, stage, accumulation", CASES)
def test_parameters_equal_one_device(family, strategy, data, stage, accumulation):
    pipeline = program(family, strategy, data, stage, accumulation)
    _, params, losses = train(pipeline, STEPS, FAMILIES[family][1])
    expected, expected_losses = one_device(family)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


def test_a_pipeline_takes_over_and_hands_back():
    """From one device, through a pipeline, to one device: the moments go along."""
    family = "seq2seq lstm"
    tx = optimizer(OptimConfig(name="adamw", schedule="constant"), STEPS)
    pipeline = program(family, "gpipe", tx=tx)
    plain = toy_program("jit", learner_of(task_of(family), tx), data=1)
    state = plain.init(jax.random.key(1))
    first, second, third = pair_batches(STEPS)
    state, _ = plain.step(state, plain.place(first))
    copies = jax.device_get(state)
    state = pipeline.adopt(jax.device_put(copies, shardings_of(pipeline.saved)))
    state, _ = pipeline.step(state, pipeline.place(second))
    state = jax.device_put(
        jax.device_get(pipeline.portable(state)), shardings_of(plain.abstract)
    )
    state, metrics = plain.step(state, plain.place(third))
    _, losses = oracle_of(task_of(family), tx, STEPS, pair_batches)
    assert float(metrics["loss"] / metrics["tokens"]) == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize("family", WHOLLY)
def test_the_state_goes_to_the_ordinary_tree_and_back(family):
    for name in ("muon", "adafactor"):
        task = task_of(family)
        tx = optimizer(OptimConfig(name=name, clip_adaptive=0.1), STEPS, task.hidden)
        learner = learner_of(task, tx)
        assert_round_trip(build_stacking(learner, np.array([0, 2, 1, 3])))
