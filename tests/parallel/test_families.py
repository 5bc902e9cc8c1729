"""Law 1 for each family of models: every strategy at every degree trains as one device."""

import functools

import numpy as np
import optax
import pytest

from lm.models.recurrent import RecurrentConfig, recurrent_task
from parallel.exchange_config import ExchangeConfig
from tests.parallel.toy import (
    VOCAB,
    assert_equal,
    batches,
    learner_of,
    oracle_of,
    toy_program,
    train,
)

STEPS = 3
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))


def recurrent(**model):
    config = RecurrentConfig(width=32, dropout=0.2, truncate=8, **model)
    return recurrent_task(config, VOCAB)


FAMILIES = {  # name -> (the task's maker, its batches)
    "lstm": (lambda: recurrent(cell="lstm"), batches),
    "gru": (lambda: recurrent(cell="gru", num_layers=1), batches),
    "rnn": (lambda: recurrent(cell="rnn", num_layers=1), batches),
}
EVERYWHERE = [
    *[(strategy, n) for strategy in ("jit", "pmap", "shard_map") for n in (1, 2, 8)],
    *[("fsdp", n) for n in (2, 8)],
]
WHOLLY = ("lstm",)
# Of one kind, one member is tried everywhere and the others in the widest spread.
CASES = [(family, *case) for family in WHOLLY for case in EVERYWHERE]
CASES += [(family, "shard_map", 8) for family in ("gru", "rnn")]


@functools.cache
def task_of(family):
    return FAMILIES[family][0]()


@functools.cache
def one_device(family):
    return oracle_of(task_of(family), SGD, STEPS, FAMILIES[family][1])


@pytest.mark.parametrize("family, strategy, degree", CASES)
def test_parameters_equal_one_device(family, strategy, degree):
    program = toy_program(strategy, learner_of(task_of(family), SGD), data=degree)
    _, params, losses = train(program, STEPS, FAMILIES[family][1])
    expected, expected_losses = one_device(family)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


@pytest.mark.parametrize("family", WHOLLY)
def test_compressed_exchange_stays_near_one_device(family):
    exchange = ExchangeConfig(codec="int8", error_feedback=True)
    learner = learner_of(task_of(family), SGD)
    program = toy_program("shard_map", learner, data=8, exchange=exchange)
    losses = train(program, STEPS, FAMILIES[family][1])[2]
    expected_losses = one_device(family)[1]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-2)
    assert losses != expected_losses
