"""Laws 1 and 2 for what is exchanged: exact ways are exact, limits are the identity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.strategies import STRATEGIES
from tests.parallel.toy import (
    assert_equal,
    batches,
    oracle,
    toy_learner,
    toy_program,
    toy_task,
    train,
)

STEPS = 5
RATE = 0.3
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE, momentum=0.9))
ONE_AXIS = [name for name in ALGORITHMS if name != "hierarchical"]


@functools.cache
def one_device(dropout: float = 0.0):
    return oracle(SGD, STEPS, dropout)


def trained(strategy="shard_map", degree=4, tx=SGD, accumulation=1, slices=1, **exchange):
    dropout = 0.2 if accumulation > 1 else 0.0
    program = toy_program(
        strategy, toy_learner(tx, dropout=dropout), data=degree, slice=slices,
        accumulation=accumulation, exchange=ExchangeConfig(**exchange),
    )  # fmt: skip
    return train(program, STEPS)


@pytest.mark.parametrize("algorithm", ONE_AXIS)
def test_every_algorithm_equals_one_device(algorithm):
    _, params, losses = trained(degree=8, algorithm=algorithm)
    np.testing.assert_allclose(losses, one_device()[1], rtol=1e-5)
    assert_equal(params, one_device()[0])


@pytest.mark.parametrize("algorithm", ["ring", "all_to_all"])
def test_algorithms_under_pmap(algorithm):
    _, params, _ = trained("pmap", 4, algorithm=algorithm)
    assert_equal(params, one_device()[0])


@pytest.mark.parametrize(
    "algorithm, slices",
    [("psum", 4), ("ring", 2), ("hierarchical", 2), ("hierarchical", 4)],
)
def test_algorithms_over_slices(algorithm, slices):
    _, params, _ = trained(degree=8 // slices, slices=slices, algorithm=algorithm)
    assert_equal(params, one_device()[0])


NEAR = ("identity", "bfloat16", "int8", "int4")  # 4 bits an element and more

EXACT = {
    "one bucket": {"bucket_bytes": 1 << 30},
    "a bucket a leaf": {"bucket_bytes": 1},
    "buckets by ring": {"bucket_bytes": 8192, "algorithm": "ring"},
    "all rows of top_k in buckets": {"bucket_bytes": 8192, "codec": "top_k", "keep": 1.0},
    "all rows of top_k": {"codec": "top_k", "keep": 1.0},
    "all rows of random_k": {"codec": "random_k", "keep": 1.0},
}


@pytest.mark.parametrize("name", EXACT)
def test_limits_are_exact(name):
    _, params, _ = trained(**EXACT[name])
    assert_equal(params, one_device()[0])


@pytest.mark.parametrize("codec, every", [("none", 1), ("none", 4), ("random_k", 2)])
def test_exchanging_between_microbatches_is_exact(codec, every):
    _, params, losses = trained(accumulation=4, every=every, codec=codec)
    np.testing.assert_allclose(losses, one_device(0.2)[1], rtol=1e-5)
    assert_equal(params, one_device(0.2)[0])


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
    [("shard_map", 0, 0), ("shard_map", 2, 0), ("shard_map", 2, 50.0), ("pmap", 1, 0)],
)
def test_delayed_gradients_as_by_hand(strategy, delay, compensation):
    tx = optax.sgd(RATE)
    _, params, _ = trained(strategy, tx=tx, delay=delay, compensation=compensation)
    assert_equal(params, late_by_hand(delay, compensation))
    if compensation:
        plain, corrected = late_by_hand(delay, 0), late_by_hand(delay, compensation)
        assert np.abs(plain["embedding"] - corrected["embedding"]).max() > 1e-4


WITH_PMAP = [("pmap", codec) for codec in ("int8", "top_k", "power_sgd")]


@pytest.mark.parametrize(
    "strategy, codec", [*[("shard_map", codec) for codec in CODECS], *WITH_PMAP]
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
    assert np.mean(losses[-4:]) < (2 if codec in NEAR else 3.5)


@pytest.mark.parametrize("codec", ["int8", "majority_vote", "top_k", "dgc", "power_sgd"])
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
    for scale in (64.0, 1024.0):
        learner = toy_learner(SGD, compute="float16", loss_scale=scale)
        exchange = ExchangeConfig(codec="int8")
        program = toy_program("shard_map", learner, data=4, exchange=exchange)
        state, _, _ = train(program, 1)
        residuals.append(np.abs(state.comm["residual"]["embedding"]).max())
    np.testing.assert_allclose(*residuals, rtol=0.2)


BAD = [
    ("fsdp", {"codec": "int8"}, "exchange is set, but strategy 'fsdp' leaves"),
    ("shard_map", {"algorithm": "rng"}, "algorithm is 'rng'; choose one of auto, psum"),
    ("shard_map", {"codec": "int7"}, "codec is 'int7'; choose one of none, identity"),
    ("shard_map", {"codec": "int8", "algorithm": "ring"}, "int8 cannot travel by .*ring"),
    ("shard_map", {"codec": "top_k", "algorithm": "psum"}, "top_k cannot travel by"),
    ("shard_map", {"algorithm": "hierarchical"}, "needs a fast and a slow axis"),
    ("shard_map", {"error_feedback": "of"}, "error_feedback is 'of'; choose one of auto"),
    ("shard_map", {"every": 3}, "every 3 does not divide parallel.accumulation 1"),
    ("shard_map", {"codec": "top_k", "keep": 0.0}, "top_k keeps a share of 0.0"),
    ("shard_map", {"codec": "power_sgd", "rank": 0}, "power_sgd has rank 0"),
    ("shard_map", {"delay": -1}, "delay is -1; it must not be negative"),
    ("shard_map", {"compensation": 0.1}, "corrects a delay"),
]


@pytest.mark.parametrize("strategy, exchange, words", BAD)
def test_bad_config_is_refused(strategy, exchange, words):
    with pytest.raises(ValueError, match=words):
        toy_program(strategy, toy_learner(SGD), data=4, exchange=ExchangeConfig(**exchange))


def test_slices_need_a_strategy_that_has_the_axis():
    able = [name for name, strategy in STRATEGIES.items() if "slice" in strategy.axes]
    assert "shard_map" in able and "fsdp" not in able
    with pytest.raises(ValueError, match="parallel.slice is 2, but strategy 'fsdp'"):
        toy_program("fsdp", toy_learner(SGD), data=4, slice=2)


def test_buckets_are_exchanged_last_leaf_first():
    from parallel.exchange.transforms import Exchange, bucketed

    seen = []

    def update(grads, comm, params=None, *, weight=None, key=None):
        seen.append([x.size for x in grads])
        return grads, comm

    tree = {"a": jnp.zeros(10), "b": jnp.zeros(20), "c": jnp.zeros(5), "d": jnp.zeros(3)}
    exchange = bucketed(4 * 8, Exchange(lambda params: (), update))
    result, _ = exchange.update(tree, exchange.init(tree))
    assert seen == [[3, 5], [20], [10]]
    assert jax.tree.map(jnp.shape, result) == jax.tree.map(jnp.shape, tree)
