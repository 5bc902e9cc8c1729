"""Pieces of a number's rows under every policy; pushes that are clipped, or left out."""

from dataclasses import replace

import jax
import numpy as np
import optax

from parallel.mesh import data_mesh
from parallel.readings import COMPUTE
from parallel.server.config import LIVE
from parallel.server.program import server_program
from parallel.server.replay import audit, replay
from tests.parallel.server.line import (
    ROWS,
    assert_near,
    assert_same,
    mean_gradient,
    parts,
    program,
    rows,
    start,
    take,
)

KEY, RATE, STEPS = jax.random.key(1), 0.5, 4
PIECES = ROWS  # a row in each
UNEVEN = {"workers": 3, "slow": (1, 1, 4), "pieces": PIECES}


def minus(params, factor, grads):
    return jax.tree.map(lambda w, g: w - factor * g, params, grads)


def by_hand():
    """Plain SGD on whole batches."""
    expected = start()
    for batch in rows(64)[:STEPS]:
        expected = minus(expected, RATE, jax.device_get(mean_gradient(expected, batch)))
    return expected


def test_who_computes_a_piece_changes_the_time_and_no_bit():
    made, first, ends = parts(optax.sgd(RATE), **UNEVEN), by_hand(), {}
    for policy in LIVE:
        config = replace(made.config, policy=policy)
        p = server_program(made._replace(config=config), data_mesh(1))
        state, params, lines = take(p, p.init(KEY), STEPS)
        (assert_near if policy == LIVE[0] else assert_same)(params, first)
        first, ends[policy] = params, state.comm.pool.now
        found = audit(lines, STEPS, [], config)
        assert found[:3] == (STEPS * PIECES, 0, 0), policy
        if policy == "backup":
            draw = rows(64).__getitem__
            assert_same(replay(made, data_mesh(1), lines, draw, KEY), params)
    # The slow worker takes 4/8 for a piece, of which equal parts give it two.
    assert ends["static"] == STEPS
    # A number must be seen before speeds are known; then the fast ones take four each.
    assert ends["by_speed"] == 1 + (STEPS - 1) / 2
    assert ends["best"] == STEPS / 2  # plans anew within the first number
    assert ends["backup"] == STEPS / 2  # the last worker is spare, and nobody waits for it
    ideal = STEPS / (1 + 1 + 1 / 4)
    assert min(ends.values()) >= ideal and ends["dynamic"] < ends["static"]


def test_a_piece_of_a_worker_that_died_is_computed_again():
    made = parts(optax.sgd(RATE), **UNEVEN, policy="by_speed")
    p = server_program(made, data_mesh(1))
    state = p.init(KEY)
    pool, calls = state.comm.pool, 0
    finished = pool.finished

    def dying():
        nonlocal calls
        calls += 1
        worker, told = finished()
        return worker, None if calls in (2, 3, PIECES + 5) else told

    pool.finished = dying
    _, params, lines = take(p, state, STEPS)
    assert_near(params, by_hand())
    assert audit(lines, STEPS, [], made.config)[:3] == (STEPS * PIECES, 0, 0)
    assert calls == STEPS * PIECES + 3
    assert sum(line.whole for line in lines) > len(UNEVEN["slow"])


def test_an_update_that_is_left_out_leaves_no_trace_with_any_worker():
    """The first worker's rows are fine, and the second one's have no loss."""
    exchange = {"codec": "top_k", "keep": 0.2}
    made = parts(optax.adam(0.05), exchange=exchange, workers=2)
    p = server_program(made, data_mesh(1))
    good, bad = rows(64), dict(rows(64)[1])
    bad["row"] = bad["row"] - 99 * (np.arange(ROWS) >= ROWS // 2)
    seen = [good[0], bad, good[2]]
    state, params, lines = take(p, p.init(KEY), 3, seen)
    other, expected, _ = take(p, p.init(KEY), 2, [good[0], good[2]])
    assert_same(params, expected)
    kept, wanted = (x.comm.pool.privates() for x in (state, other))
    assert_same(kept, wanted)
    assert all(np.abs(each.residual[0]["table"]).max() > 0 for each in kept)
    assert_same(replay(made, data_mesh(1), lines, seen.__getitem__, KEY), params)


def test_pushes_are_clipped_before_they_are_compressed():
    """Here random_k sends everything. In `sync` a push is a mean of a W-th of the rows."""
    clip = 0.2
    exchange = {"codec": "random_k", "keep": 1.0, "clip": clip}
    for mode, workers in (("sync", 2), ("async", 1)):
        p = program(optax.sgd(RATE), exchange=exchange, mode=mode, workers=workers)
        _, params, _ = take(p, p.init(KEY), STEPS)
        expected, shortened = start(), 0
        for batch in rows(64)[:STEPS]:
            halves = [
                {k: np.split(x, workers)[w] for k, x in batch.items()}
                for w in range(workers)
            ]
            counts = [(half["segments"][:, 1:] > 0).sum() for half in halves]
            before = expected
            for half, count in zip(halves, counts, strict=True):
                grads = jax.device_get(mean_gradient(before, half))
                norm = float(optax.tree.norm(grads))
                shortened += norm > clip * workers**0.5
                factor = min(1, clip * workers**0.5 / norm) * count / sum(counts)
                expected = minus(expected, RATE * factor, grads)
        assert_near(params, expected, 1e-5)
        assert shortened


def test_the_seconds_of_a_number_are_told_but_for_a_first_push():
    """In its first push a worker compiles."""
    slow, pushed = (1, 4), set()
    p = program(optax.sgd(RATE), mode="async", workers=2, slow=slow)
    state = p.init(KEY)
    for _ in range(11):
        state, metrics = p.step(state, rows(64).__getitem__)
        worker, expected = int(metrics["worker"]), np.full(2, np.nan)
        if worker in pushed:
            expected[worker] = slow[worker]
        np.testing.assert_array_equal(metrics[COMPUTE], expected)
        pushed.add(worker)
    assert pushed == {0, 1} and np.isfinite(expected).any()
