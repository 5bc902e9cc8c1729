"""Replicas that are islands of devices: the laws of local strategies, one level up."""

import jax
import numpy as np
import optax
import pytest

from parallel.exchange.config import ExchangeConfig
from parallel.local import LocalConfig
from tests.parallel.toy import assert_equal, oracle, toy_learner, toy_program, train, weighted_batches

SGD = optax.sgd(0.3)
PLAIN = {"every": 1, "learning_rate": 1.0, "momentum": 0.0, "fragments": 1, "overlap": 0, "mix": 0.0}


def islands(strategy, inner, learner, exchange=ExchangeConfig(), **config):
    degrees = {k: config.pop(k) for k in ("slice", "data", "tensor", "stage", "accumulation") if k in config}
    return toy_program(
        strategy, learner, **{"slice": 2} | degrees, exchange=exchange,
        local=LocalConfig(inner=inner, **PLAIN | config),
    )

@pytest.mark.parametrize("inner, degrees", [("shard_map", {}), ("fsdp", {}), ("tensor", {"data": 2, "tensor": 2})])
def test_meeting_after_every_sgd_step_is_synchronous(inner, degrees):
    program = islands("local_sgd", inner, toy_learner(SGD), **degrees)
    _, params, _ = train(program, 5, weighted_batches)
    assert_equal(params, oracle(SGD, 5, weighted_batches)[0])
