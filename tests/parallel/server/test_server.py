"""Laws of the parameter server, against a textbook's loop over the same schedule."""

import functools

import jax
import numpy as np
import optax
import pytest

from parallel.mesh import data_mesh
from parallel.program import begin
from parallel.server import desk
from parallel.server.config import ServerConfig
from parallel.server.kinds import Parts
from parallel.server.program import server_program
from parallel.server.replay import audit, by_update, replay
from parallel.server.session import Line
from tests.parallel.server.line import (
    assert_near,
    assert_same,
    mean_gradient,
    parts,
    program,
    rows,
    start,
    take,
)
from tests.parallel.toy import assert_equal, one_device, sgd_program, train

CLIPPED = optax.chain(optax.clip_by_global_norm(0.2), optax.adam(0.05))
RATE = 0.5
SLOW = (1, 1, 3)


def minus(params, factor, grads):
    return jax.tree.map(lambda w, g: w - factor * g, params, grads)


def test_sync_equals_one_device_and_itself():
    """On unequal token counts, with a clip over the leaves of both shards."""
    server = sgd_program("parameter_server", 1, dropout=0.2)
    _, params, losses = train(server)
    expected, expected_losses = one_device(dropout=0.2)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    assert_equal(params, expected, rtol=2e-6)
    _, again, _ = train(server)
    assert_same(again, params)


def test_clipping_by_the_global_norm_does_not_depend_on_the_shards():
    whole, other = [
        take(p, p.init(jax.random.key(1)), 6)[1]
        for p in (program(CLIPPED, workers=2, shards=n) for n in (1, 3))
    ]
    unclipped = program(optax.adam(0.05), workers=2, shards=3)
    assert not np.allclose(
        take(unclipped, unclipped.init(jax.random.key(1)), 6)[1]["table"], whole["table"]
    )
    assert_near(other, whole, 2e-6)


def by_hand(lines: list[Line], compensation: float, weigh: str):
    """Apply a schedule with plain SGD, in NumPy, from the versions that it names."""
    params, versions = start(), [start()]
    for line in lines:
        then = versions[line.version]
        grads = jax.device_get(mean_gradient(then, rows(64)[line.number]))
        late = jax.tree.map(
            lambda g, w, old: g + compensation * g * g * (w - old), grads, params, then
        )
        staleness = line.update - 1 - line.version
        factor = 1 / max(staleness, 1) if weigh == "inverse" else 1
        params = minus(params, RATE * factor, late)
        versions.append(params)
    return params


@functools.cache
def compiled(compensation: float, optimizer: str) -> Parts:
    """Return parts of three workers; who is how late is no part of their programs."""
    server = {"compensation": compensation, "optimizer": optimizer}
    return parts(optax.sgd(RATE), mode="async", workers=3, **server)


@pytest.mark.parametrize(
    "server",
    [
        {},
        {"compensation": 2.0},
        {"weigh": "inverse"},
        {"optimizer": "worker"},
        {"mode": "ssp", "staleness": 1, "jitter": 0.5},
    ],
)
def test_late_pushes_as_by_hand(server):
    server = {"mode": "async", "workers": 3, "slow": SLOW} | server
    made = compiled(server.get("compensation", 0.0), server.get("optimizer", "server"))
    p = server_program(made._replace(config=ServerConfig(**server)), data_mesh(1))
    _, params, lines = take(p, p.init(jax.random.key(1)), 14)
    compensation, weigh = server.get("compensation", 0.0), server.get("weigh", "none")
    assert_near(params, by_hand(lines, compensation, weigh), 1e-5)
    plain = by_hand(lines, 0.0, "none")
    changed = compensation or weigh == "inverse"
    assert changed != np.allclose(params["table"], plain["table"], rtol=1e-4)
    assert max(line.update - 1 - line.version for line in lines) > 2
    found = audit(lines, *position(p, lines), ServerConfig(**server))
    assert (found.applied, found.lost, found.repeated) == (14, 0, 0)
    assert found.max_lag == max(line.lag for line in lines)
    if server["mode"] == "ssp":
        assert found.max_lag == 1
    else:
        assert found.max_lag > 1


def position(p, lines):
    """Return the position that a list of pushes stands for."""
    applied = {line.number for line in lines}
    end = max(applied) + 1
    return end, sorted(set(range(end)) - applied)


def joined_by(num: int, numbers):
    """Return batches of the rows of `num` numbers each."""
    return [
        {k: np.concatenate([x[k] for x in numbers[i : i + num]]) for k in numbers[0]}
        for i in range(0, len(numbers), num)
    ]


def test_ssp_without_staleness_is_sync_with_a_part_of_the_rate():
    """W numbers of a clock are one batch of sync; rows are full, so means are alike."""
    num, clocks = 4, 3
    numbers = rows(num * clocks, full=True)
    joined = joined_by(num, numbers)
    server = {"workers": num, "shards": 2}
    sync = program(optax.sgd(RATE), **server)
    _, together, _ = take(sync, sync.init(jax.random.key(1)), clocks, joined)
    apart = program(
        optax.sgd(RATE / num), mode="ssp", staleness=0, slow=(1, 2, 1, 1), **server
    )
    _, one_by_one, lines = take(
        apart, apart.init(jax.random.key(1)), num * clocks, [*numbers, *numbers]
    )
    assert_near(one_by_one, together, 2e-6)
    assert {line.lag for line in lines} == {0}
    expected = start()
    for batch in joined:
        expected = minus(expected, RATE, jax.device_get(mean_gradient(expected, batch)))
    assert_near(together, expected, 2e-6)


def test_pushes_of_a_clock_that_are_applied_together_are_sync_for_any_optimizer():
    """On unequal token counts: pushes are weighted by them."""
    num, clocks = 4, 3
    server, numbers = {"workers": num, "shards": 2}, rows(num * clocks)
    joined = joined_by(num, numbers)
    sync = program(CLIPPED, **server)
    _, together, _ = take(sync, sync.init(jax.random.key(1)), clocks, joined)
    p = program(CLIPPED, mode="ssp", staleness=0, **server)
    session = p.init(jax.random.key(1)).comm
    for clock in range(clocks):
        assert session.updates == clock
        session.hand_out(numbers.__getitem__)
        session.update(
            [(session.orders.pop(w), session.pool.finish(w)) for w in range(num)]
        )
        for worker in range(num):
            session.desk = desk.take(session.desk, worker)
    assert_near(session.params(together), together, 2e-6)


def test_a_run_that_began_with_given_parameters_is_replayed_from_them():
    made, mesh, key = compiled(0.0, "server"), data_mesh(1), jax.random.key(1)
    p = server_program(made, mesh)
    given = jax.tree.map(lambda x: x / 2, start())
    state, params, lines = take(p, p.adopt(begin(made.learner, p, given)), 6)
    draw = rows(64).__getitem__
    assert_same(replay(made, mesh, lines, draw, key, given), params)
    assert not np.array_equal(
        replay(made, mesh, lines, draw, key)["table"], params["table"]
    )


KEPT = [
    {"exchange": {"codec": "top_k", "keep": 0.2}},
    {"exchange": {"codec": "int8"}, "compress_pulls": True},
    {"optimizer": "worker"},
]


@pytest.mark.parametrize("server", KEPT, ids=["top_k", "int8 both ways", "own optimizer"])
def test_a_run_that_stops_goes_on_and_replays_to_the_bit(server):
    """What was out is handed out first; residuals and workers' optimizers go on."""
    exchange = server.get("exchange", {})
    server = {k: x for k, x in server.items() if k != "exchange"}
    server |= {"mode": "async", "workers": 3, "slow": SLOW}
    p = program(CLIPPED, 16, exchange, **server)
    state, _, lines = take(p, p.init(jax.random.key(1)), 7)
    saved = jax.device_get(p.portable(state))
    missing = [n for n in saved.comm["missing"].tolist() if n >= 0]
    assert position(p, lines) != (saved.comm["next"], missing)  # some are out above
    taken = {line.number for line in lines}
    assert taken == set(range(int(saved.comm["next"]))) - set(missing) and missing
    take(p, state, 2)  # workers run on, and what they do is lost
    state, _, more = take(p, p.adopt(saved), 2)
    assert {line.number for line in more} <= set(missing)
    state, params, rest = take(p, state, 7)
    lines = [*lines, *more, *rest]
    assert audit(lines, 16, [], ServerConfig(**server))[:3] == (16, 0, 0)
    made, mesh = parts(CLIPPED, 16, exchange, **server), data_mesh(1)
    key, draw = jax.random.key(1), rows(64).__getitem__
    assert_same(replay(made, mesh, lines, draw, key), params)
    other = [line._replace(number=line.number ^ 1) for line in lines]
    again = replay(made, mesh, other, draw, key)
    assert not np.array_equal(again["table"], params["table"])


def test_other_workers_and_shards_take_over_what_was_kept():
    exchange = {"codec": "top_k", "keep": 0.2}
    server = {"mode": "async", "shards": 1}
    p = program(CLIPPED, 16, exchange, workers=3, slow=SLOW, **server)
    state, params, lines = take(p, p.init(jax.random.key(1)), 7)
    saved = jax.device_get(p.portable(state))
    after = program(CLIPPED, 16, exchange, workers=2, **server | {"shards": 3})
    state = after.adopt(saved)
    assert_same(jax.device_get(after.params(state)), params)
    again = jax.device_get(after.portable(state))
    assert_same(again.opt, saved.opt)
    old, new = saved.comm["private"].residual, again.comm["private"].residual
    assert_near(
        jax.tree.map(lambda x: x.sum(0), new), jax.tree.map(lambda x: x.sum(0), old)
    )
    assert np.abs(new["table"]).max() > 0
    _, _, more = take(after, state, 9)
    assert sorted(line.number for line in lines + more) == list(range(16))


def test_other_workers_begin_from_the_mean_of_the_optimizers():
    server = {"mode": "async", "optimizer": "worker", "slow": SLOW}
    p = program(optax.adam(0.05), workers=3, **server)
    state, _, _ = take(p, p.init(jax.random.key(1)), 5)
    saved = jax.device_get(p.portable(state))
    after = program(optax.adam(0.05), workers=2, **server | {"slow": ()})
    found = after.adopt(saved).comm.pool.privates()
    own = saved.comm["private"].opt[0]
    assert len(set(own.count.tolist())) > 1 and len(found) == 2
    for each in found:
        assert each.opt[0].count == own.count.max()
        assert_near(each.opt[0].mu, jax.tree.map(lambda x: x.mean(0), own.mu))


EVENTS = ((3, 2, "joins"), (5, 0, "leaves"), (9, 0, "joins"), (9, 1, "leaves"))


def test_workers_join_and_leave_a_live_run_and_nothing_is_lost():
    """Worker 2 comes late, worker 0 is away for a while, worker 1 goes for good."""
    for mode, worker in (("async", "server"), ("ssp", "worker")):
        server = {
            "mode": mode, "workers": 3, "slow": (2, 1, 1.5), "attendance": EVENTS,
            "optimizer": worker,
        }  # fmt: skip
        p = program(CLIPPED, 20, **server)
        state, _, lines = take(p, p.init(jax.random.key(1)), 7)
        saved = jax.device_get(p.portable(state))  # while worker 0 is away
        assert saved.comm["clocks"].tolist()[:4] == [
            -1,
            *[state.comm.desk.clocks[w] for w in (1, 2)],
            -1,
        ]
        state, params, more = take(p, p.adopt(saved), 13)
        lines += more
        found = audit(lines, 20, [], ServerConfig(**server))
        assert (found.applied, found.lost, found.repeated) == (20, 0, 0)
        assert found.max_lag == max(line.lag for line in lines)
        who = [line.worker for line in lines]  # of the updates 1, 2, ...
        assert set(who[:3]) == {0, 1} and set(who[3:5]) <= {0, 1, 2}
        assert set(who[5:9]) == {1, 2} and set(who[9:]) == {0, 2}
        # Who leaves pulls everything when it is back.
        assert next(x for x in lines[9:] if x.worker == 0).whole
        made, draw = parts(CLIPPED, 20, **server), rows(64).__getitem__
        assert_same(replay(made, data_mesh(1), lines, draw, jax.random.key(1)), params)


def test_an_audit_sees_what_is_lost_or_repeated():
    lines = [Line(u, u % 2, n, 0, False, 0, 1, u) for u, n in enumerate([0, 1, 1, 3], 1)]
    found = audit(lines, 5, [4], ServerConfig(mode="async", workers=2))
    assert (found.applied, found.lost, found.repeated, found.max_staleness) == (4, 1, 1, 3)
    both = [Line(1, w, 0, 0, True, 0, 1, 1, w) for w in (0, 1)]
    both.append(Line(2, 0, 1, 1, False, 0, 1, 2))
    found = audit(both, 2, [], ServerConfig(workers=2))
    assert (found.lost, found.repeated) == (1, 0)
    # The first steps of the run were those of another strategy.
    late = [line._replace(version=2) for line in lines[3:]]
    found = audit(late, 5, [4], ServerConfig(mode="async", workers=2), {0, 1})
    assert found == (1, 1, 0, 1, 0)
    # The position would hand out again what was applied.
    found = audit(both[:2], 1, [0], ServerConfig(workers=2))
    assert (found.lost, found.repeated) == (0, 2)
    with pytest.raises(ValueError, match="no push of update 2"):
        by_update([lines[0], lines[2]])
