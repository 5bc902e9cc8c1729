"""Laws 1 and 2 for what is exchanged: exact ways are exact, limits are the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import fields
from parallel.exchange.config import ExchangeConfig
from parallel.exchange.transforms import Exchange, all_reduce, bucketed, delayed
from parallel.strategies import STRATEGIES, ParallelConfig
from tests.parallel.toy import (
    BATCH,
    SGD,
    assert_equal,
    batches,
    one_device,
    toy_learner,
    toy_program,
    toy_task,
    train,
    weighted_batches,
)

STEPS = 5
RATE = 0.3


def trained(strategy="shard_map", degree=4, tx=SGD, accumulation=1, slices=1, **exchange):
    """Return the parameters and the losses after some steps."""
    several = accumulation > 1
    dropout = 0.2 if several else 0.0
    program = toy_program(
        strategy, toy_learner(tx, dropout=dropout), data=degree, slice=slices,
        accumulation=accumulation, exchange=ExchangeConfig(**exchange),
    )  # fmt: skip
    return train(program, STEPS, weighted_batches if several else batches)[1:]


@pytest.mark.parametrize(
    "strategy, algorithm, slices",
    [("shard_map", "ring", 1), ("pmap", "all_to_all", 1), ("shard_map", "hierarchical", 2)],
)
def test_other_algorithms_equal_one_device(strategy, algorithm, slices):
    params, losses = trained(strategy, 4 // slices, slices=slices, algorithm=algorithm)
    np.testing.assert_allclose(losses, one_device()[1], rtol=1e-5)
    assert_equal(params, one_device()[0])


EXACT = {
    "all rows of random_k": {"codec": "random_k", "keep": 1.0},
    "buckets by ring": {"bucket_bytes": 8192, "algorithm": "ring"},
    "all rows of top_k, a bucket a leaf": {
        "codec": "top_k", "keep": 1.0, "bucket_bytes": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_limits_are_exact(name):
    params, _ = trained(**EXACT[name])
    assert_equal(params, one_device()[0])


@pytest.mark.parametrize("codec, every", [("none", 1), ("random_k", 2)])
def test_exchanging_between_microbatches_is_exact(codec, every):
    keep = 1.0  # random_k then sends everything
    params, losses = trained(accumulation=4, every=every, codec=codec, keep=keep)
    expected, expected_losses = one_device(weighted_batches, dropout=0.2)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_equal(params, expected)


def late_by_hand(delay: int, compensation: float):
    """Plain SGD on one device with gradients of `delay` steps ago."""
    task = toy_task()

    @jax.jit
    def mean_gradient(params, batch):
        grads, sums = jax.grad(task.loss, has_aux=True)(params, batch, None)
        return jax.tree.map(lambda g: g / sums["tokens"], grads)

    params = jax.device_get(jax.jit(task.init)(jax.random.key(1)))
    past = []
    for batch in batches(STEPS):
        past.append((jax.device_get(mean_gradient(params, batch)), params))
        if len(past) > delay:
            grads, then = past[-1 - delay]
            late = jax.tree.map(
                lambda g, now, old: g + compensation * g * g * (now - old),
                grads, params, then,
            )  # fmt: skip
            params = jax.tree.map(lambda p, g: p - RATE * g, params, late)
    return params


@pytest.mark.parametrize(
    "strategy, delay, compensation",
    [("shard_map", 2, 50.0), ("pmap", 1, 0)],
)
def test_delayed_gradients_as_by_hand(strategy, delay, compensation):
    tx = optax.sgd(RATE)
    params, _ = trained(strategy, tx=tx, delay=delay, compensation=compensation)
    assert_equal(params, late_by_hand(delay, compensation))
    if compensation:
        plain, corrected = late_by_hand(delay, 0), late_by_hand(delay, compensation)
        assert np.abs(plain["embedding"] - corrected["embedding"]).max() > 1e-4


def test_no_delay_is_the_exchange_itself():
    exchange = all_reduce()
    assert delayed(0, exchange) is exchange


# What each of the codecs sums is held in test_codecs.py. Here: one of each way to travel,
# and with a state of its own.
@pytest.mark.parametrize(
    "strategy, codec",
    [("shard_map", c) for c in ("int8", "majority_vote", "dgc", "power_sgd")]
    + [("pmap", "top_k")],
)
def test_codecs_learn_and_replicas_never_drift_apart(strategy, codec):
    """Parameters are stored once for all, so each device must compute the same bits."""
    exchange = ExchangeConfig(codec=codec, keep=0.1, rank=2)
    learner = toy_learner(optax.adam(0.01))
    program = toy_program(strategy, learner, data=4, exchange=exchange)
    state, losses = program.init(jax.random.key(1)), []
    for step in range(40):
        state, metrics = program.step(state, program.place(batches(4)[step % 4]))
        losses.append(float(metrics["loss"] / metrics["tokens"]))
    for leaf in jax.tree.leaves(state.params):
        for shard in leaf.addressable_shards[1:]:
            np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)
    assert np.mean(losses[:4]) > 4  # a model that knows nothing has log 64 = 4.16
    assert np.mean(losses[-4:]) < (2 if codec == "int8" else 3.5)


@pytest.mark.parametrize("codec", ["int8", "dgc"])
def test_an_overflow_leaves_no_trace(codec):
    learner = toy_learner(SGD, compute="float16", loss_scale=2.0**24)
    exchange = ExchangeConfig(codec=codec, delay=1, keep=0.1)
    program = toy_program("shard_map", learner, data=4, exchange=exchange)
    state = program.init(jax.random.key(1))
    before = jax.device_get(state)
    state, metrics = program.step(state, program.place(batches(1)[0]))
    after = jax.device_get(state)
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.comm, before.comm)


def test_the_residual_does_not_depend_on_the_loss_scale():
    residuals = []
    for scale in (64.0, 1024.0):  # one program: the scale is in the state
        learner = toy_learner(SGD, compute="float16", loss_scale=scale)
        exchange = ExchangeConfig(codec="int8")
        program = toy_program("shard_map", learner, data=4, exchange=exchange)
        state, _, _ = train(program, 1)
        residuals.append(np.abs(state.comm["residual"]["embedding"]).max())
    assert residuals[0] > 0
    np.testing.assert_allclose(*residuals, rtol=0.2)


BAD = [
    ("fsdp", {"codec": "int8"}, "exchange.codec is 'int8', .* 'fsdp'"),
    ("shard_map", {"algorithm": "rng"}, "algorithm .*'rng'.* auto, psum"),
    ("shard_map", {"codec": "int7"}, "codec .*'int7'.* none, bfloat16"),
    ("shard_map", {"codec": "int8", "algorithm": "ring"}, "int8 .*ring"),
    ("shard_map", {"codec": "top_k", "algorithm": "psum"}, "top_k .*psum"),
    ("shard_map", {"algorithm": "hierarchical"}, "hierarchical .*parallel.slice"),
    ("shard_map", {"error_feedback": "of"}, "error_feedback .*'of'.* auto"),
    ("shard_map", {"every": 3}, "every 3 .*accumulation 1"),
    ("shard_map", {"codec": "top_k", "keep": 0.0}, "keep is 0.0; .*above 0"),
    ("shard_map", {"codec": "power_sgd", "rank": 0}, "rank is 0; .*at least 1"),
    ("shard_map", {"delay": -1}, "delay .*-1"),
    ("shard_map", {"compensation": 0.1}, "compensation .*0.1 .*delay"),
]


@pytest.mark.parametrize("strategy, exchange, words", BAD)
def test_bad_config_is_refused(strategy, exchange, words):
    config = ParallelConfig(strategy, data=4, exchange=ExchangeConfig(**exchange))
    with pytest.raises(ValueError, match=words):
        fields.check(config, "parallel.")
        config.validate(BATCH, config.mesh())


def test_slices_need_a_strategy_that_has_the_axis():
    able = [name for name, strategy in STRATEGIES.items() if "slice" in strategy.axes]
    assert "shard_map" in able and "fsdp" not in able
    with pytest.raises(ValueError, match="parallel.slice .*2, .*'fsdp'"):
        toy_program("fsdp", toy_learner(SGD), data=4, slice=2)


def test_buckets_are_exchanged_last_leaf_first():
    seen = []

    def update(sums, comm, params=None, *, weight, key=None):
        seen.append([x.size for x in sums])
        return sums, comm

    tree = {"a": jnp.zeros(10), "b": jnp.zeros(20), "c": jnp.zeros(5), "d": jnp.zeros(3)}
    exchange = bucketed(4 * 8, Exchange(lambda params: (), update))
    result, _ = exchange.update(tree, exchange.init(tree), weight=1.0)
    assert seen == [[3, 5], [20], [10]]
    assert jax.tree.map(jnp.shape, result) == jax.tree.map(jnp.shape, tree)
