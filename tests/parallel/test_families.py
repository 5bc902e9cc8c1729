"""Law 1 for each family of models: every way to spread it trains as one device."""

import functools

import jax
import numpy as np
import pytest

from lm.models.recurrent import RecurrentConfig
from lm.models.seq2seq.task import Seq2SeqConfig
from lm.models.setting import Setting
from lm.vocabulary import END_ID
from parallel.cost.ledger import ledger
from parallel.exchange.config import ExchangeConfig
from tests.parallel.toy import (
    BATCH,
    SEQ_LEN,
    SGD,
    VOCAB,
    assert_equal,
    batches,
    drawn_at_once,
    learner_of,
    oracle_of,
    toy_program,
    train,
    weighted_batches,
)

STEPS = 3


def recurrent(**model):
    config = RecurrentConfig(width=32, dropout=0.2, truncate=8, **model)
    return config.task(Setting(VOCAB, 0))


SOURCE_LEN = 8


@functools.cache
def pair_batches(num: int) -> list[dict[str, np.ndarray]]:
    """Rows of sources and weighted targets of differing lengths, two of them empty."""
    rng = np.random.default_rng(1)
    result = []
    for batch in weighted_batches(num):
        position = np.arange(SEQ_LEN + 1)
        lengths = rng.integers(2, SEQ_LEN + 2 - SOURCE_LEN, BATCH)
        lengths[[5, 6]] = 0
        segments = (position >= SOURCE_LEN) & (position < SOURCE_LEN + lengths[:, None])
        tokens = batch["tokens"].copy()
        tokens[np.arange(BATCH), rng.integers(1, SOURCE_LEN, BATCH)] = END_ID
        result.append(batch | {"tokens": tokens, "segments": segments.astype(np.int32)})
    return result


def seq2seq(**model):
    config = Seq2SeqConfig(width=32, num_layers=1, dropout=0.2, **model)
    return config.task(Setting(VOCAB, SEQ_LEN, SOURCE_LEN))


FAMILIES = {  # name -> (the task's maker, its batches)
    "lstm": (lambda: recurrent(cell="lstm"), weighted_batches),
    "gru": (lambda: recurrent(cell="gru", num_layers=1), batches),
    "seq2seq transformer": (lambda: seq2seq(kind="transformer"), pair_batches),
    "seq2seq recurrent": (lambda: seq2seq(kind="recurrent", cell="gru"), pair_batches),
}
# A strategy sees only a task: each family is spread in some way, and each way spreads some.
CASES = [
    ("lstm", "jit"),
    ("lstm", "fsdp"),
    ("gru", "shard_map"),
    ("seq2seq transformer", "shard_map"),
    ("seq2seq transformer", "fsdp"),
    ("seq2seq recurrent", "jit"),
    ("seq2seq recurrent", "fsdp"),
]


@functools.cache
def task_of(family):
    task = FAMILIES[family][0]()
    return task._replace(init=drawn_at_once(task.init, 0.1))


@functools.cache
def one_device(family):
    return oracle_of(task_of(family), SGD, STEPS, FAMILIES[family][1])


@pytest.mark.parametrize("family, strategy", CASES)
def test_parameters_equal_one_device(family, strategy):
    program = toy_program(strategy, learner_of(task_of(family), SGD), data=8)
    _, params, losses = train(program, STEPS, FAMILIES[family][1])
    expected, expected_losses = one_device(family)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


def test_compressed_exchange_stays_near_one_device():
    family = "seq2seq transformer"
    exchange = ExchangeConfig(codec="int8", error_feedback="on")
    learner = learner_of(task_of(family), SGD)
    program = toy_program("shard_map", learner, data=8, exchange=exchange)
    losses = train(program, STEPS, FAMILIES[family][1])[2]
    expected_losses = one_device(family)[1]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-2)
    assert losses != expected_losses


def test_devices_do_not_meet_in_each_step_of_time():
    """GSPMD sums a gradient over devices wherever it is added up, in a scan included."""
    program = toy_program("jit", learner_of(task_of("lstm"), SGD), data=2)
    batch = program.place(batches(1)[0])
    compiled = program.step.lower(program.abstract, batch).compile()
    sent = sum(entry.elements for entry in ledger(compiled.as_text(), program.mesh))
    sizes = {k: x.size for k, x in flat(program.abstract.params).items()}
    # The tied embedding's two contributions are summed apart; a few scalars.
    assert 0 < sent - sum(sizes.values()) <= sizes["embedding"] + 100


def flat(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree.leaves_with_path(params)
    }
