"""Islands that push what they moved: the rules by hand, and the limits of the whole."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from parallel.exchange.config import ExchangeConfig, build_exchange
from parallel.layout import REPLICATED
from parallel.local import LocalConfig, local_program
from parallel.meetings import Plan
from parallel.mesh import data_mesh
from parallel.server.config import ServerConfig
from parallel.server.kinds import Merging, Parts, island_parts
from parallel.server.merging import (
    MergeConfig,
    delayed_nesterov,
    local_steps,
    weights,
    window,
)
from parallel.server.program import server_program
from parallel.server.replay import audit, replay
from parallel.sharded import jit_program
from tests.parallel.server.line import (
    assert_near,
    assert_same,
    learner,
    mean_gradient,
    rows,
    start,
    take,
)
from tests.parallel.toy import (
    SGD,
    assert_equal,
    oracle,
    toy_learner,
    toy_program,
    train,
)

KEY, RATE = jax.random.key(1), 0.5


def test_delayed_nesterov_by_hand():
    """Algorithm 3 of Liu et al. 2024, for a number, in Python's arithmetic."""
    rate, decay, every, activation = 0.7, 0.9, 3, 0.1
    tx = delayed_nesterov(rate, decay, every, activation)
    found, state = jnp.float32(2.0), tx.init(jnp.float32(2.0))
    theta, m, delta = 2.0, 0.0, 0.0
    for t, g in enumerate([1.0, -2.0, 4.0, 0.5, 3.0, -1.0, 2.0]):
        delta += g
        if (t + 1) % every == 0:
            m = decay * m + delta / every
            share = 1 - activation * every + activation
            theta -= rate * (share * decay * m + g / every)
            delta = 0.0
        else:
            theta -= rate * (activation * decay * m + g / every)
        updates, state = tx.update(jnp.float32(g), state)
        found = optax.apply_updates(found, updates)
        np.testing.assert_allclose(found, theta, rtol=1e-6)


def test_delayed_nesterov_is_nesterov_once_in_n_updates():
    gradients = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    usual = optax.sgd(0.7, 0.9, nesterov=True)
    for every in (1, 4):
        delayed = delayed_nesterov(0.7, 0.9, every, 0.0)
        a = b = jnp.zeros(3)
        states = usual.init(a), delayed.init(b)
        for g in gradients:
            move, first = usual.update(g, states[0])
            a, second = a + move, states[1]
            for _ in range(every):
                move, second = delayed.update(g, second)
                b = b + move
            states = first, second
            np.testing.assert_allclose(b, a, rtol=1e-5)


def test_steps_by_speed_shares_and_the_window():
    speeds = {0: 2.0, 1: 0.5, 2: 2 / 3, 3: 1e-9}
    assert [local_steps(w, speeds, 6, True) for w in range(5)] == [6, 1, 2, 1, 6]
    assert [local_steps(w, speeds, 6, False) for w in range(5)] == [6] * 5
    assert weights([30, 10], [3, 1], "tokens") == [0.75, 0.25]
    assert weights([30, 10], [3, 2], "tokens_per_step") == [300 / 350, 50 / 350]
    assert weights([0, 0], [0, 0], "tokens_per_step") == [0.0, 0.0]
    assert window(10.0, 14.0, 0.5) == 16.0


def made(
    tx, merge=None, every=1, outer=None, num_steps=0, exchange=None, **server
) -> Parts:
    """Return islands of one device, with the usual outer step: all that was moved."""
    config = MergeConfig(**(merge or {}))
    server = ServerConfig(mode="async", **server)
    config.validate(server.workers)
    learn = learner(tx, num_steps)
    inner = jit_program(learn, data_mesh(1), 1, REPLICATED)
    outer = outer or delayed_nesterov(1.0, 0.0, config.momentum_every, 0.0)
    exchange = ExchangeConfig(**(exchange or {}))
    return island_parts(learn, inner, server, exchange, Merging(config, every), outer)


def test_one_island_that_pushes_each_step_is_plain_sgd():
    p = server_program(made(optax.sgd(RATE), workers=1), data_mesh(1))
    _, params, lines = take(p, p.init(KEY), 6)
    expected = start()
    for batch in rows(64)[:6]:
        grads = jax.device_get(mean_gradient(expected, batch))
        expected = jax.tree.map(lambda w, g: w - RATE * g, expected, grads)
    assert_near(params, expected, 2e-6)
    assert [(line.update, line.number) for line in lines] == [(i + 1, i) for i in range(6)]


def test_equal_islands_that_wait_for_all_are_synchronous_diloco():
    """On unequal token counts, which weigh a push in both, with Adam inside."""
    num, every, rounds = 4, 3, 3
    tx = optax.chain(optax.clip_by_global_norm(0.2), optax.adam(0.05))
    numbers = rows(num * every * rounds)
    # Island w takes the numbers w H to w H + H - 1 of each round, one in each step.
    joined = [
        {
            k: np.concatenate([numbers[(r * num + w) * every + h][k] for w in range(num)])
            for k in numbers[0]
        }
        for r, h in itertools.product(range(rounds), range(every))
    ]
    mesh = data_mesh(num)
    plan = Plan(every, optax.sgd(0.7, 0.9, nesterov=True))
    exchange = build_exchange(ExchangeConfig(), mesh)
    sync = local_program(learner(tx), mesh, 1, exchange, plan)
    state = sync.init(KEY)
    for batch in joined:
        state, _ = sync.step(state, sync.place(batch))
    outer = delayed_nesterov(0.7, 0.9, 1, 0.0)
    p = server_program(made(tx, {"quorum": num}, every, outer, workers=num), data_mesh(1))
    _, params, lines = take(p, p.init(KEY), num * every * rounds, numbers)
    assert_near(params, jax.device_get(sync.params(state)), 1e-5)
    assert {line.update - 1 - line.version for line in lines} == {0}


def test_a_pipeline_inside_goes_on_with_its_own_optimizer():
    """One island with the usual outer step is one device, whatever is inside."""
    local = LocalConfig(inner="gpipe", every=1, learning_rate=1.0, momentum=0.0)
    program = toy_program(
        "async_diloco", toy_learner(SGD, num_layers=2), data=1, stage=2, accumulation=2,
        local=local, server=ServerConfig(workers=1),
    )  # fmt: skip
    _, params, losses = train(program, 2)
    expected, expected_losses = oracle(SGD, 2, num_layers=2)
    assert_equal(params, expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


UNEVEN = {"workers": 3, "slow": (1, 1, 3), "shards": 2}
MERGES = {"quorum": 2, "grace": 0.6, "momentum_every": 2, "by_speed": True}
STEPS, EVERY = 60, 4


@functools.cache
def uneven() -> Parts:
    outer = delayed_nesterov(0.7, 0.5, 2, 0.2)
    tx, exchange = optax.adam(0.03), {"codec": "int8"}
    return made(tx, MERGES, EVERY, outer, STEPS, exchange, **UNEVEN)


def test_uneven_islands_stop_between_merges_and_lose_and_repeat_nothing():
    """The checkpoint is between two numbers of a merge, which is then made anew."""
    p = server_program(uneven(), data_mesh(1))
    state, _, lines = take(p, p.init(KEY), 17)
    session = state.comm
    assert session.merge is not None and session.desk.applied < 17
    saved = jax.device_get(p.portable(state))
    take(p, state, 2)  # islands run on, and what they do is lost
    state, params, more = take(p, p.adopt(saved), STEPS - 17)
    lines += more
    config = ServerConfig(mode="async", **UNEVEN)
    found = audit(lines, STEPS, [], config)
    assert (found.applied, found.lost, found.repeated) == (STEPS, 0, 0)
    assert [line.step for line in lines] == sorted(line.step for line in lines)
    assert lines[-1].step == STEPS and state.comm.desk.missing == []
    pushes = {}
    for line in lines:
        pushes.setdefault((line.update, line.worker), []).append(line.number)
    sizes = {w: {len(x) for (_, v), x in pushes.items() if v == w} for w in range(3)}
    assert EVERY in sizes[0] and EVERY // 3 in sizes[2]  # by speed
    counts = [sum(u == v for v, _ in pushes) for u in range(1, lines[-1].update)]
    assert min(counts[:-1]) == 2 and max(counts) == 3  # a quorum, and with grace all
    again = replay(uneven(), data_mesh(1), lines, rows(64).__getitem__, KEY)
    assert_same(again, params)
    other = [line._replace(number=line.number ^ 1) for line in lines]
    again = replay(uneven(), data_mesh(1), other, rows(64).__getitem__, KEY)
    assert not np.array_equal(again["table"], params["table"])


def test_a_push_of_which_nothing_was_learnt_changes_nothing():
    batches = [dict(each) for each in rows(64)]
    for number in (1, 2, 3):
        batches[number]["row"] = batches[number]["row"] - 99
    outer = delayed_nesterov(1.0, 0.9, 1, 0.0)
    p = server_program(made(optax.sgd(RATE), {}, 2, outer, workers=1), data_mesh(1))
    state, params, _ = take(p, p.init(KEY), 2, batches)  # the second step is skipped
    grads = jax.device_get(mean_gradient(start(), batches[0]))
    moved = jax.tree.map(lambda w, g: w - 1.9 * RATE * g, start(), grads)
    assert_near(params, moved, 2e-6)
    state, again, lines = take(p, state, 2, batches)  # not even by its momentum
    assert_same(again, params)
    assert [line.number for line in lines] == [2, 3]


@pytest.mark.parametrize(
    "merge, words",
    [
        ({"quorum": 3}, "quorum 3 is more than parallel.server.workers 2"),
        ({"activation": 0.6, "momentum_every": 2}, "activation 0.6 is more than 1 / "),
    ],
)
def test_what_does_not_fit_together(merge, words):
    with pytest.raises(ValueError, match=words):
        MergeConfig(**merge).validate(2)
