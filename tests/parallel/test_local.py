"""Law 2 for the strategies that meet rarely, and each against replicas trained by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import fields
from parallel.local import PLANS, LocalConfig, fragment_of_leaves
from parallel.strategies import ParallelConfig
from tests.parallel.toy import (
    BATCH,
    assert_equal,
    batches,
    oracle,
    toy_learner,
    toy_program,
    toy_task,
    train,
    weighted_batches,
)

STEPS = 5
RATE = 0.3
SGD = optax.sgd(RATE)
MOMENTUM = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE, momentum=0.9))
PLAIN = LocalConfig(every=1, learning_rate=1.0, momentum=0.0, overlap=0, mix=0.0)


def changed(**fields) -> LocalConfig:
    return LocalConfig(**vars(PLAIN) | fields)


@pytest.mark.parametrize("strategy", PLANS)
def test_meeting_after_every_sgd_step_is_synchronous(strategy):
    local = changed(fragments=1)
    program = toy_program(strategy, toy_learner(SGD), data=8, local=local)
    _, params, _ = train(program, STEPS, weighted_batches)
    assert_equal(params, oracle(SGD, STEPS, weighted_batches)[0])


def test_post_local_sgd_is_synchronous_before_its_first_step_alone():
    """With momentum and clipping too, which local steps would change."""
    local = changed(every=4, first=STEPS)
    program = toy_program("post_local_sgd", toy_learner(MOMENTUM), data=4, local=local)
    state, params, losses = train(program, STEPS)
    expected, expected_losses = oracle(MOMENTUM, STEPS)
    assert_equal(params, expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    state, metrics = program.step(state, program.place(batches(1)[0]))
    kernel = np.asarray(state.params["output"]["kernel"])
    assert not np.array_equal(kernel[0], kernel[1])  # then they part


def by_hand(num_replicas: int, num_steps: int, meet):
    """Train replicas one after the other on one device; `meet(step, replicas, tokens)`."""
    task = toy_task()

    @jax.jit
    def sgd(params, rows):
        grads, sums = jax.grad(task.loss, has_aux=True)(params, rows, None)
        tokens = sums["tokens"]
        step = RATE / jnp.maximum(tokens, 1.0)
        return jax.tree.map(lambda p, g: p - step * g, params, grads), tokens

    start = jax.device_get(jax.jit(task.init)(jax.random.key(1)))
    replicas = [start] * num_replicas
    meet = meet(replicas[0])
    seen = np.zeros(num_replicas)
    for step, batch in enumerate(batches(num_steps), 1):
        share = BATCH // num_replicas
        for w in range(num_replicas):
            rows = {k: v[w * share : (w + 1) * share] for k, v in batch.items()}
            replicas[w], tokens = jax.device_get(sgd(replicas[w], rows))
            seen[w] += tokens
        replicas, seen = meet(step, replicas, seen)
    return jax.tree.map(lambda *xs: np.mean(xs, 0), *replicas)


def diloco_by_hand(every: int, rate: float, momentum: float):
    """Algorithm 1 of Douillard et al. 2023, moves weighted by tokens."""

    def begin(params):
        agreed, velocity = params, jax.tree.map(np.zeros_like, params)

        def meet(step, replicas, seen):
            nonlocal agreed, velocity
            if step % every:
                return replicas, seen
            share = seen / seen.sum()
            move = jax.tree.map(
                lambda a, *xs: sum(s * (a - x) for s, x in zip(share, xs, strict=True)),
                agreed,
                *replicas,
            )
            velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, move)
            agreed = jax.tree.map(
                lambda a, v, g: a - rate * (momentum * v + g), agreed, velocity, move
            )
            return [agreed] * len(replicas), np.zeros_like(seen)

        return meet

    return begin


@pytest.mark.parametrize(
    "strategy, rate, momentum",
    [("local_sgd", 1.0, 0.0), ("post_local_sgd", 1.0, 0.0), ("diloco", 0.7, 0.9)],
)
def test_replicas_train_as_by_hand(strategy, rate, momentum):
    steps, every = 8, 3  # ends between two meetings
    local = LocalConfig(every=every, first=0)
    program = toy_program(strategy, toy_learner(SGD), data=4, local=local)
    state, params, _ = train(program, steps)
    assert_equal(params, by_hand(4, steps, diloco_by_hand(every, rate, momentum)))
    own = np.asarray(state.params["embedding"])
    assert not np.allclose(own[0], own[1])


def streaming_by_hand(every: int, num_fragments: int, overlap: int, mix: float):
    """Section 2 of Douillard et al. 2025, leaf by leaf."""

    def begin(params):
        leaves, structure = jax.tree.flatten(params)
        chosen = fragment_of_leaves(params, num_fragments)
        agreed, velocity = list(leaves), [np.zeros_like(x) for x in leaves]
        arriving, seen_by = [None] * len(leaves), [0] * len(leaves)
        total_seen = 0

        def meet(step, replicas, seen):
            nonlocal total_seen
            total_seen = total_seen + seen
            own = [jax.tree.leaves(replica) for replica in replicas]
            for i, fragment in enumerate(chosen):
                turn = (fragment + 1) * every // num_fragments
                if (step - turn) % every == 0:
                    share = total_seen - seen_by[i]
                    share = share / share.sum()
                    seen_by[i] = total_seen
                    arriving[i] = sum(
                        s * (agreed[i] - x[i]) for s, x in zip(share, own, strict=True)
                    )
                if step >= turn + overlap and (step - turn - overlap) % every == 0:
                    velocity[i] = 0.9 * velocity[i] + arriving[i]
                    agreed[i] = agreed[i] - 0.7 * (0.9 * velocity[i] + arriving[i])
                    for x in own:
                        x[i] = mix * x[i] + (1 - mix) * agreed[i]
            return [structure.unflatten(x) for x in own], np.zeros_like(seen)

        return meet

    return begin


@pytest.mark.parametrize("overlap, mix", [(0, 0.0), (2, 0.5)])
def test_streaming_diloco_as_by_hand(overlap, mix):
    steps, every, fragments = 11, 4, 3
    local = LocalConfig(every=every, fragments=fragments, overlap=overlap, mix=mix)
    program = toy_program("streaming_diloco", toy_learner(SGD), data=2, local=local)
    _, params, _ = train(program, steps)
    hand = streaming_by_hand(every, fragments, overlap, mix)
    assert_equal(params, by_hand(2, steps, hand))


def test_fragments_are_of_even_size():
    params = {str(i): np.zeros(size) for i, size in enumerate([5, 1, 4, 3, 3, 2])}
    chosen = fragment_of_leaves(params, 3)
    sizes = [x.size for x in params.values()]
    filled = [
        sum(s for s, f in zip(sizes, chosen, strict=True) if f == index)
        for index in range(3)
    ]
    assert filled == [6, 6, 6]


@pytest.mark.parametrize("strategy", PLANS)
def test_the_state_is_saved_and_taken_back_whole(strategy):
    local = changed(every=2, fragments=2, overlap=1, mix=0.5, momentum=0.9)
    program = toy_program(strategy, toy_learner(MOMENTUM), data=4, local=local)
    state, params, _ = train(program, 3)
    saved = program.portable(state)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), program.saved)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), saved) == expected
    assert_equal(saved.params, params, rtol=0)
    back = program.adopt(saved)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(back), jax.device_get(state))


def test_another_strategy_begins_from_the_average():
    local = changed(every=4)
    before = toy_program("local_sgd", toy_learner(MOMENTUM), data=4, local=local)
    state, params, _ = train(before, 3)
    saved = before.portable(state)._replace(comm=())
    for strategy in ("shard_map", "diloco"):
        after = toy_program(strategy, toy_learner(MOMENTUM), data=2, local=local)
        host = jax.device_get(saved)
        begun = after.adopt(jax.device_put(host, jax.tree.map(lambda _: None, host)))
        assert_equal(jax.device_get(after.params(begun)), params, rtol=0)
        begun, metrics = after.step(begun, after.place(batches(1)[0]))
        assert metrics["finite"] and int(begun.step) == 4


def test_an_overflow_on_one_replica_is_its_own():
    learner = toy_learner(SGD, compute="float16", loss_scale=2.0**24)
    program = toy_program("diloco", learner, data=4, local=changed(every=2))
    state = program.init(jax.random.key(1))
    before = jax.device_get(state)
    state, _ = program.step(state, program.place(batches(1)[0]))
    after = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    np.testing.assert_array_equal(after.scale.value, before.scale.value / 2)
    for _ in range(27):
        state, _ = program.step(state, program.place(batches(1)[0]))
    assert np.isfinite(state.params["embedding"]).all()
    assert not np.array_equal(state.params["embedding"], before.params["embedding"])


@pytest.mark.parametrize(
    "strategy, local, words",
    [
        ("diloco", {"every": 0}, "local.every .*0.* 1"),
        ("diloco", {"momentum": 1.0}, "local.momentum .*1.0"),
        ("diloco", {"learning_rate": 0.0}, "local.learning_rate .*0.0"),
        ("streaming_diloco", {"every": 3}, "fragments 4 .*every 3"),
        ("streaming_diloco", {"every": 5}, "overlap 5 .*every 5"),
    ],
)
def test_bad_config_is_refused(strategy, local, words):
    with pytest.raises(ValueError, match=words):
        config = ParallelConfig(strategy, data=4, local=LocalConfig(**local))
        fields.check(config, "parallel.")
        config.validate(BATCH, config.mesh())
