"""Law 1 for the families that are not plain transformers: cut by layers, trained as one."""

import functools

import jax
import numpy as np
import optax
import pytest

from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Setting
from lm.optim import OptimConfig, optimizer
from parallel.pipeline.stacking import build_stacking
from tests.parallel.pipeline.test_pipeline import assert_round_trip
from tests.parallel.test_families import SOURCE_LEN, pair_batches
from tests.parallel.toy import (
    SEQ_LEN,
    VOCAB,
    assert_equal,
    batches,
    drawn_at_once,
    learner_of,
    oracle_state,
    toy_program,
    train,
)

STEPS, SIZE = 3, 0.2
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))


def lstm():
    config = RecurrentConfig(width=16, num_layers=4, dropout=0.2, truncate=8)
    return config.task(Setting(VOCAB, 0))


def seq2seq(kind, num_layers):
    config = Seq2SeqConfig(
        kind=kind, width=16, num_layers=num_layers, num_heads=2, dropout=0.2
    )
    return config.task(Setting(VOCAB, SEQ_LEN, SOURCE_LEN))


FAMILIES = {  # name -> (the task's maker, its batches)
    "lstm": (lstm, batches),
    "seq2seq lstm": (lambda: seq2seq("recurrent", 4), pair_batches),
    "seq2seq transformer": (lambda: seq2seq("transformer", 2), pair_batches),
}
# strategy, data, stage, microbatches. What a schedule does to a plain transformer it does
# to all (test_pipeline.py); here what is cut differs.
CASES = [
    ("lstm", "gpipe", 1, 4, 4),
    ("lstm", "interleaved", 1, 2, 4),
    ("seq2seq lstm", "gpipe", 1, 4, 4),
    ("seq2seq transformer", "1f1b", 2, 2, 4),
]


@functools.cache
def task_of(family):
    task = FAMILIES[family][0]()
    # Large enough that the lowest layer's gradient does not vanish.
    return task._replace(init=drawn_at_once(task.init, SIZE))


@functools.cache
def one_device(family):
    return oracle_state(task_of(family), SGD, STEPS, FAMILIES[family][1])


def program(family, strategy, data=1, stage=2, accumulation=4, tx=SGD):
    learner = learner_of(task_of(family), tx)
    return toy_program(strategy, learner, data=data, stage=stage, accumulation=accumulation)


@pytest.mark.parametrize("family, strategy, data, stage, accumulation", CASES)
def test_parameters_equal_one_device(family, strategy, data, stage, accumulation):
    pipeline = program(family, strategy, data, stage, accumulation)
    state, params, losses = train(pipeline, STEPS, FAMILIES[family][1])
    expected, moments, expected_losses = one_device(family)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)
    # Gradients vanish on the way down, and parameters show little of them; moments do.
    assert_equal(jax.device_get(pipeline.portable(state).opt), moments)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_goes_to_the_ordinary_tree_and_back(family):
    for name in ("muon", "adafactor"):
        task = task_of(family)
        tx = optimizer(OptimConfig(name=name, clip_adaptive=0.1), STEPS, task.hidden)
        learner = learner_of(task, tx)
        order = np.roll(np.arange(task.stages.num_layers), 1)
        assert_round_trip(build_stacking(learner, order))
