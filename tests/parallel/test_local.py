"""Law 2 for the strategies that meet rarely, and each against replicas trained by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import fields
from parallel.config import ParallelConfig
from parallel.cost.ledger import ledger, step_ledger
from parallel.exchange.config import ExchangeConfig
from parallel.forms.fragments import fragment_of_units, join, split, unit_of
from parallel.local import PLANS, LocalConfig
from parallel.readings import SKIPPED, read
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


def diloco_by_hand(every: int, rate: float, momentum: float, last=0, alone=0):
    """Algorithm 1 of Douillard et al. 2023, moves weighted by tokens.

    After `alone` steps all begin from the parameters of the first replica.
    """

    def begin(params):
        agreed, velocity = params, jax.tree.map(np.zeros_like, params)

        def meet(step, replicas, seen):
            nonlocal agreed, velocity
            if alone and step == alone:
                agreed = replicas[0]
                return [agreed] * len(replicas), np.zeros_like(seen)
            if ((step - alone) % every or step < alone) and step != last:
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
    "strategy, rate, momentum, last, alone",
    [
        ("local_sgd", 1.0, 0.0, 0, 0),
        ("post_local_sgd", 1.0, 0.0, 0, 0),
        ("diloco", 0.7, 0.9, 8, 4),
    ],
)
def test_replicas_train_as_by_hand(strategy, rate, momentum, last, alone):
    """Stopped between two meetings, or at the end of the run, where they meet again."""
    steps, every = 8, 3
    local = LocalConfig(every=every, first=0, alone=alone)
    learner = toy_learner(SGD)._replace(num_steps=last)
    program = toy_program(strategy, learner, data=4, local=local)
    state, params, _ = train(program, steps)
    hand = diloco_by_hand(every, rate, momentum, last, alone)
    assert_equal(params, by_hand(4, steps, hand))
    own = np.asarray(state.params["embedding"])
    assert np.allclose(own[0], own[1]) == (last == steps)


def test_a_warm_start_is_one_broadcast():
    """Bitwise the parameters of the first replica; each keeps its own moments."""
    alone = 2
    local = LocalConfig(every=3, alone=alone)
    program = toy_program("diloco", toy_learner(MOMENTUM), data=4, local=local)
    placed = list(map(program.place, batches(alone)))
    step = program.step.lower(program.abstract, placed[0]).compile()

    state = program.init(jax.random.key(1))
    for batch in placed[:-1]:
        state, _ = step(state, batch)
    before = jax.tree.map(jnp.copy, state)
    state, _ = jax.device_get(step(state, placed[-1]))
    apart, _ = jax.device_get(step.own(before, placed[-1]))
    for new, own in zip(*map(jax.tree.leaves, (state.params, apart.params)), strict=True):
        np.testing.assert_array_equal(new, np.broadcast_to(own[0], own.shape))
    assert not np.array_equal(apart.params["embedding"][0], apart.params["embedding"][1])
    jax.tree.map(np.testing.assert_array_equal, state.opt, apart.opt)
    agreed = state.comm.fragments[0].agreed
    jax.tree.map(lambda a, x: np.testing.assert_array_equal(a, x[0]), agreed, state.params)
    assert not any(x.any() for x in state.comm.tally.tokens)

    # Three of four replicas send all parameters on, once in the run.
    (broadcast,) = step_ledger(step, program.mesh, warm=True)
    assert broadcast.kind == "collective-permute" and broadcast.count == 3
    assert broadcast.sent_bytes == 4 * elements(agreed) * 3 / 4
    steady = step_ledger(step, program.mesh)
    assert {e.count for e in steady if e.kind == "collective-permute"} == {0}
    meetings = [n for n in range(1, 9) if step.plan.meets(0, n)]
    assert meetings == [5, 8] and step.plan.num_meetings(0, 8) == 2


def streaming_by_hand(every: int, num_fragments: int, overlap: int, mix: float):
    """Section 2 of Douillard et al. 2025, leaf by leaf."""

    def begin(params):
        leaves, structure = jax.tree.flatten(params)
        units = fragment_of_units(params, num_fragments)
        chosen = [units[unit_of(path)] for path, _ in jax.tree.leaves_with_path(params)]
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


def elements(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_fragments_are_of_even_size():
    params = {str(i): np.zeros(size) for i, size in enumerate([5, 1, 4, 3, 3, 2])}
    assert list(map(elements, split(params, 3))) == [6, 6, 6]


def test_a_layer_meets_as_a_whole_stacked_or_not():
    rng = np.random.default_rng(0)
    layers = {i: {"a": rng.normal(size=(3, 5)), "b": rng.normal(size=7)} for i in range(6)}
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *layers.values())
    outer = {"embedding": rng.normal(size=(4, 5)), "output": rng.normal(size=30)}
    apart = split(outer | {"layers": layers}, 4)
    together = split(outer | {"scanned_layers": stacked}, 4)
    numbers = [sorted(part.get("layers", {})) for part in apart]
    assert sorted(sum(numbers, [])) == list(range(6))
    for one, other, mine in zip(apart, together, numbers, strict=True):
        assert all(layer.keys() == {"a", "b"} for layer in one.get("layers", {}).values())
        assert elements(one) == elements(other)
        for place, layer in enumerate(mine):
            jax.tree.map(
                lambda x, y, place=place: np.testing.assert_allclose(x[place], y, 1e-6),
                other["scanned_layers"], layers[layer],
            )  # fmt: skip
    params = outer | {"scanned_layers": stacked}
    joined = jax.tree.map(jnp.zeros_like, params)
    for index, part in enumerate(together):
        joined = join(joined, 4, index, part)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


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
        assert read(metrics).values["finite"] and int(begun.step) == 4


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


def poisoned(replica: int):
    """Return a learner whose loss is NaN on one of 4 replicas, always."""
    learner = toy_learner(SGD)
    task, share = learner.task, BATCH // 4

    def loss(params, batch, key):
        total, sums = task.loss(params, batch, key)
        bad = jnp.where((batch["row"] // share == replica).any(), jnp.nan, 1.0)
        return total * bad, sums | {"loss": sums["loss"] * bad}

    return learner._replace(task=task._replace(loss=loss))


def test_a_replica_that_is_never_finite_is_named_and_does_not_count():
    """The others train as if it was not there: it has no weight at the meeting."""
    every, steps = 3, 6
    local = LocalConfig(every=every, learning_rate=1.0, momentum=0.0)
    program = toy_program("diloco", poisoned(2), data=4, local=local)
    state, told = program.init(jax.random.key(1)), {}
    for step, batch in enumerate(batches(steps), 1):
        state, metrics = program.step(state, program.place(batch))
        assert metrics["finite"].shape == metrics["loss"].shape == (4,)
        assert metrics["finite"].sharding.spec == jax.P("data")
        assert (SKIPPED in metrics) == (step % every == 0)
        if SKIPPED in metrics:
            assert metrics[SKIPPED].sharding.is_fully_replicated
        reading = read(metrics)
        assert reading.skipping == [2] and not reading.values["finite"]
        assert np.isfinite(reading.values["loss"])
        if reading.told:
            told[step] = reading.told
    assert told == {3: {2: (3, 3)}, 6: {2: (3, 6)}}

    def begin(params):
        agreed = params

        def meet(step, replicas, seen):
            nonlocal agreed
            if step % every:
                return replicas, seen
            share = np.delete(seen, 2) / np.delete(seen, 2).sum()
            fine = [x for w, x in enumerate(replicas) if w != 2]
            agreed = jax.tree.map(
                lambda *xs: sum(s * x for s, x in zip(share, xs, strict=True)), *fine
            )
            return [agreed] * 4, np.zeros_like(seen)

        return meet

    assert_equal(jax.device_get(program.params(state)), by_hand(4, steps, begin))


def test_replicas_follow_one_loss_and_exchange_nothing_between_meetings():
    """The loss that a schedule is told is that of all tokens since the last meeting."""
    every = 2
    told = optax.GradientTransformationExtraArgs(
        lambda params: jnp.float32(0),
        lambda updates, state, params=None, *, value, **extra: (updates, value),
    )
    learner = toy_learner(optax.chain(told, SGD))
    program = toy_program("diloco", learner, data=4, local=LocalConfig(every=every))
    placed = list(map(program.place, batches(5)))
    step = program.step.lower(program.abstract, placed[0]).compile()
    own, meeting = (ledger(p.as_text(), mesh) for p, mesh in step.programs)
    assert own == [] and {e.count for e in meeting} == {1 / every}
    state, losses, seen = program.init(jax.random.key(1)), [], []
    for batch in placed:
        state, metrics = step(state, batch)
        values = read(metrics).values
        losses.append((values["loss"], values["tokens"]))
        seen.append(np.asarray(jax.tree.leaves(state.opt)[0]))
    for rates in seen:
        assert (rates == rates[0]).all()
    for meeting in (2, 4):
        loss, tokens = np.sum(losses[meeting - every : meeting], 0)
        np.testing.assert_allclose(seen[meeting], loss / tokens, rtol=1e-5)


def same_sums(new, old):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.sum(0), b.sum(0), 1e-5, 1e-7), new, old
    )


def test_another_number_of_replicas_keeps_the_outer_state_and_the_sums():
    exchange = ExchangeConfig(codec="top_k", keep=0.1)
    local = LocalConfig(every=2, fragments=2, overlap=1)

    def program(data):
        return toy_program(
            "streaming_diloco", toy_learner(SGD), data=data, local=local, exchange=exchange
        )

    before, after = program(4), program(2)
    state, params, _ = train(before, 3)
    saved = before.portable(state)
    begun = jax.device_get(after.adopt(jax.device_get(saved)))
    state = jax.device_get(state)
    assert_equal(jax.tree.map(lambda x: x[0], begun.params), params, rtol=1e-6)
    for old, new in zip(state.comm.fragments, begun.comm.fragments, strict=True):
        for kept in ("agreed", "outer", "arriving"):
            assert_equal(getattr(new, kept), getattr(old, kept), rtol=0)
        same_sums(new.comm, old.comm)
    same_sums(begun.comm.tally.tokens, state.comm.tally.tokens)
    assert max(np.abs(x).max() for x in jax.tree.leaves(begun.comm.fragments[0].outer)) > 0
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(begun.comm.fragments[0].comm))


@pytest.mark.parametrize(
    "exchange, words",
    [
        ({"delay": 1}, "exchange.delay is 1, .*'diloco' .*moves.* whole round"),
        ({"every": 1}, "exchange.every is 1, .*parallel.local.every"),
        ({"delay": 1, "compensation": 0.1}, "exchange.delay is 1"),
        ({"codec": "top_k", "clip": 1.0}, "exchange.clip is 1.0"),
        ({"codec": "dgc"}, "codec=dgc .*moves.* top_k"),
    ],
)
def test_what_makes_no_sense_for_moves_is_refused(exchange, words):
    config = ParallelConfig("diloco", data=4, exchange=ExchangeConfig(**exchange))
    with pytest.raises(ValueError, match=words):
        config.validate(BATCH, config.mesh())


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
