"""Laws 1 and 2 for what is exchanged: exact ways are exact, limits are the identity."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import fields
from lm.task import row_keys
from parallel.config import ParallelConfig
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.exchange.transforms import (
    Exchange,
    all_reduce,
    bucketed,
    clipped,
    compressed,
    delayed,
)
from parallel.mesh import data_mesh
from parallel.replicas import shard_map_program
from parallel.strategies import STRATEGIES
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


@pytest.mark.parametrize("clip", [0.3, 100.0])
def test_shares_are_clipped_as_by_hand(clip):
    """Each of 4 replicas to clip / 2, before the codec; random_k sends everything here."""
    params, _ = trained(tx=optax.sgd(RATE), codec="random_k", keep=1.0, clip=clip)
    task = toy_task()

    @jax.jit
    def sums_of(params, rows):
        return jax.grad(task.loss, has_aux=True)(params, rows, None)

    expected = jax.device_get(jax.jit(task.init)(jax.random.key(1)))
    shortened = 0
    for batch in batches(STEPS):
        found = [
            sums_of(expected, {k: v[4 * w : 4 * w + 4] for k, v in batch.items()})
            for w in range(4)
        ]
        tokens = sum(float(sums["tokens"]) for _, sums in found)
        for grads, _ in found:
            norm = float(optax.tree.norm(grads)) / tokens
            shortened += norm > clip / 2
            step = RATE * min(1, clip / 2 / norm) / tokens
            expected = optax.tree.add_scale(expected, -step, grads)
    assert_equal(params, expected)
    assert (shortened > 0) == (clip < 1)


def test_a_clipped_spike_does_not_come_again():
    """A gradient 1000 times too large at exchange 10; sign sends what it kept for long."""
    rng = np.random.default_rng(0)
    # Elements of very unequal size, as those of a language model.
    sizes = np.exp(2 * rng.normal(size=1000))
    gradients = (rng.normal(size=(60, 4, 1000)) * sizes).astype(np.float32)
    usual = np.linalg.norm(gradients.sum(1), axis=1).mean()
    gradients[9] *= 1000
    last = {}
    for clip in (0.0, usual / 4):
        exchange = compressed(CODECS["sign"](ExchangeConfig()), ("data",))
        exchange = clipped(clip, exchange, ("data",)) if clip else exchange

        def one_replica(xs, exchange=exchange):
            def step(comm, x):
                means, comm = exchange.update(x, comm, weight=4.0, key=jax.random.key(0))
                return comm, jnp.linalg.norm(means)

            return jax.lax.scan(step, exchange.init(xs[0]), xs)[1]

        norms = jax.jit(jax.vmap(one_replica, 1, axis_name="data"))(gradients)[0]
        last[clip] = norms[50:].mean() / norms[:9].mean()
    plain, bounded = last.values()
    assert bounded < 2 and plain > 10, last  # without the clip, it fills all steps


def test_no_row_draws_from_the_key_of_an_exchange():
    """Replica w folds w into the exchange's key, a row its number into the step's."""

    def update(sums, comm, params=None, *, weight, key):
        own = jax.random.fold_in(key, jax.lax.axis_index("data"))
        keys = jax.random.key_data(jnp.stack([key, own]))
        return all_reduce().update(sums, (), weight=weight)[0], keys

    exchange = Exchange(lambda params: jnp.zeros((2, 2), jnp.uint32), update)
    learner = toy_learner(SGD)
    program = shard_map_program(learner, data_mesh(4), exchange=exchange)
    state, drawn = program.init(jax.random.key(1)), set()
    for step, batch in enumerate(batches(2)):
        state, _ = program.step(state, program.place(batch))
        drawn |= {tuple(k) for k in np.array(state.comm).reshape(-1, 2).tolist()}
        key = learner.step_key(jnp.int32(step))
        rows = row_keys(batch, key)
        layers = jax.vmap(lambda row: jax.vmap(partial(jax.random.fold_in, row))(
            jnp.arange(8)
        ))(rows)  # fmt: skip
        for keys in (key[None], rows, layers.ravel()):
            known = {tuple(k) for k in np.array(jax.random.key_data(keys)).tolist()}
            assert not drawn & known
    assert len(drawn) == 2 * (4 + 1)


def test_a_stack_of_layers_is_one_in_a_bucket_too():
    """PowerSGD takes each layer for a matrix, wherever a bucket puts the stack."""
    params = {"out": jnp.zeros((30, 20)), "scanned_layers": {"w": jnp.zeros((2, 30, 20))}}
    exchange = bucketed(1, compressed(CODECS["power_sgd"](ExchangeConfig(rank=2))))
    shapes = [x.shape for x in jax.tree.leaves(jax.eval_shape(exchange.init, params))]
    assert (2, 30, 2) in shapes and (1, 30, 2) in shapes


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 2, "compensation": 50.0},
        {"codec": "dgc", "keep": 0.1, "momentum": 0.5, "bucket_bytes": 8192},
    ],
)
def test_another_number_of_replicas_keeps_what_is_on_its_way(options):
    """Queues as they are, the sums of what is not sent yet; a delay goes on exactly."""
    exchange = ExchangeConfig(**options)
    before, after = (
        toy_program("shard_map", toy_learner(SGD), data=data, exchange=exchange)
        for data in (4, 2)
    )
    state = before.init(jax.random.key(1))
    for batch in batches(STEPS)[:3]:
        state, _ = before.step(state, before.place(batch))
    kept = jax.device_get(state)
    begun = after.adopt(kept)
    found = jax.device_get(begun.comm)
    moved = 0
    for (path, old), new in zip(
        jax.tree.leaves_with_path(kept.comm), jax.tree.leaves(found), strict=True
    ):
        names = jax.tree_util.keystr(path)
        if any(name in names for name in ("residual", "momentum", "unsent")):
            np.testing.assert_allclose(old.sum(0), new.sum(0), 1e-5, 1e-7, err_msg=names)
        else:
            assert (new == old[0]).all(), names
        moved += np.abs(new).max()
    assert moved > 0
    for batch in batches(STEPS)[3:]:
        begun, _ = after.step(begun, after.place(batch))
    if exchange.codec == "none":
        uninterrupted, _ = trained(**options)
        assert_equal(jax.device_get(begun.params), uninterrupted)


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
    ("shard_map", {"codec": "majority_vote", "error_feedback": "on"}, "vote: .*no size"),
    ("shard_map", {"codec": "ternary", "error_feedback": "on"}, "ternary: .*unbiased"),
    ("shard_map", {"codec": "dgc", "error_feedback": "on"}, "dgc: it keeps by itself"),
    ("shard_map", {"codec": "int8", "clip": -1.0}, "clip .*-1.0"),
    ("shard_map", {"clip": 1.0}, "clip is 1.0, .*codec is 'none'"),
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


@pytest.mark.parametrize("exchange", [{"delay": 2}, {"codec": "dgc"}])
def test_what_counts_steps_is_refused_where_a_step_exchanges_often(exchange):
    config = ParallelConfig("shard_map", data=4, accumulation=4)
    config.exchange = ExchangeConfig(every=4, **exchange)
    config.validate(BATCH, config.mesh())
    config.exchange.every = 2
    with pytest.raises(
        ValueError, match="every 2 makes 2 exchanges of the 4 .* counts steps"
    ):
        config.validate(BATCH, config.mesh())


def test_slices_need_a_strategy_that_has_the_axis():
    able = [name for name, strategy in STRATEGIES.items() if "slice" in strategy.axes]
    assert "shard_map" in able and "fsdp" not in able
    with pytest.raises(ValueError, match="parallel.slice .*2, .*'fsdp'"):
        toy_program("fsdp", toy_learner(SGD), data=4, slice=2)


def test_buckets_are_exchanged_last_leaf_first():
    seen = []

    def update(sums, comm, params=None, *, weight, key=None):
        seen.append([x.size for x in jax.tree.leaves(sums)])
        return sums, comm

    tree = {"a": jnp.zeros(10), "b": jnp.zeros(20), "c": jnp.zeros(5), "d": jnp.zeros(3)}
    exchange = bucketed(4 * 8, Exchange(lambda params: (), update))
    result, _ = exchange.update(tree, exchange.init(tree), weight=1.0)
    assert seen == [[5, 3], [20], [10]]
    assert jax.tree.map(jnp.shape, result) == jax.tree.map(jnp.shape, tree)
