"""Compressed training under a strategy, at any degree, equals that on one device."""

import functools

import numpy as np
import optax
import pytest

from lm.compress.config import CompressConfig, compressed, compressed_optimizer
from lm.compress.distil import DistilConfig, Said, taught
from lm.compress.low_rank import LowRankConfig
from lm.compress.prune import PruneConfig
from lm.compress.quantise import QuantiseConfig
from tests.parallel.toy import (
    SGD,
    STEPS,
    VOCAB,
    assert_equal,
    batches,
    learner_of,
    oracle_of,
    toy_program,
    toy_task,
    train,
)

ADAM = optax.chain(
    optax.clip_by_global_norm(0.5), optax.adamw(1e-2, eps=1e-3, weight_decay=0.1)
)
CONFIGS = {
    # Thresholds of the whole model, which no device has to itself.
    "prune": CompressConfig(
        prune=PruneConfig(kind="magnitude", sparsity=0.6, begin=2, end=4, every=1)
    ),
    "straight_through": CompressConfig(
        quantise=QuantiseConfig(weights="int8", group=8),
        prune=PruneConfig(kind="n_m", straight_through=True),
    ),
    "lora": CompressConfig(
        quantise=QuantiseConfig(weights="int4"), low_rank=LowRankConfig(kind="lora", rank=2)
    ),
}


@functools.cache
def learner(name: str, num_layers: int):
    config = CONFIGS[name]
    task = compressed(toy_task(num_layers=num_layers), config)
    # Adam would turn a code that rounding has moved into steps of another sign.
    tx = ADAM if name == "prune" else SGD
    return task, compressed_optimizer(optax.with_extra_args_support(tx), config)


@functools.cache
def taught_batches(num: int):
    """Rows with the logits of a teacher, at unequal shares and a few of the tokens."""
    rng = np.random.default_rng(4)
    found = []
    for batch in batches(num):
        shape = (len(batch["tokens"]), batch["tokens"].shape[1] - 1, 5)
        ids = rng.permuted(
            np.broadcast_to(np.arange(VOCAB, dtype="i4"), (*shape[:2], VOCAB)), axis=-1
        )
        said = Said(ids[..., :5], rng.normal(size=shape).astype("f4"))
        found.append(taught(batch, said, DistilConfig(share=0.7, temperature=3.0)))
    return found


@functools.cache
def one_device(name: str, num_layers: int):
    return oracle_of(*learner(name, num_layers), STEPS, taught_batches)


@pytest.mark.parametrize(
    "name, strategy, degrees",
    [
        ("prune", "shard_map", {"data": 4}),
        ("prune", "fsdp", {"data": 8}),
        ("straight_through", "zero1", {"data": 8}),
        ("lora", "fsdp", {"data": 4, "accumulation": 2}),
    ],
)
def test_compressed_training_equals_one_device(name, strategy, degrees):
    task, tx = learner(name, layers := degrees.get("stage", 1))
    program = toy_program(strategy, learner_of(task, tx), **degrees)
    _, params, losses = train(program, batches=taught_batches)
    expected, expected_losses = one_device(name, layers)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)
