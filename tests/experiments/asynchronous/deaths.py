"""What is asked of the Ray pool while Ray runs (in processes/test_ray_tasks.py)."""

import os
import pathlib
import signal
from collections import Counter

import jax
import numpy as np

from configs import fields
from configs.base import Experiment
from configs.tiny import get_config
from experiments.asynchronous.bodies import Setup
from experiments.asynchronous.pool import RayPool, pool_of
from experiments.run.build import build, build_task, learner_of
from experiments.run.check import check
from experiments.run.steps import row_order
from lm.data.prepare import prepare
from lm.data.rows.order import batch_reader
from parallel.mesh import data_mesh
from parallel.server.program import server_program
from parallel.server.replay import audit, replay

STEPS = 15


def experiment(corpus: pathlib.Path) -> Experiment:
    return fields.override(
        get_config(),
        {
            "data.source": "text", "data.path": str(corpus / "corpus"),
            "data.cache": str(corpus / "cache"), "data.vocab_size": 300,
            "data.seq_len": 16, "data.batch_size": 4, "model.width": 16,
            "model.num_layers": 1, "model.num_heads": 2, "steps": STEPS,
            "optim.warmup_steps": 0, "parallel.data": 1,
            "parallel.strategy": "parameter_server", "parallel.exchange.codec": "top_k",
            "parallel.exchange.keep": 0.1, "parallel.server.mode": "ssp",
            "parallel.server.staleness": 3, "parallel.server.workers": 2,
            "parallel.server.pool": "ray", "parallel.server.compensation": 0.5,
            "parallel.server.snapshot_every": 2,
            "parallel.server.attendance": ((9, 1, "leaves"), (11, 1, "joins")),
        },
    )  # fmt: skip


def kill(actor) -> None:
    import ray

    os.kill(ray.get(actor.ping.remote()), signal.SIGKILL)


def check_deaths(corpus: pathlib.Path) -> None:
    """Kill workers and shards with kill -9, and let a new pool go on from a cut.

    In the new pool a worker leaves, and another process comes back in its place.
    No number is lost or repeated, and the schedule gives the same bits in this process.
    """
    config = experiment(corpus)
    config.validate()
    data = prepare(config.data)
    vocab_size = data.tokenizer.get_vocab_size()
    learner = learner_of(config, build_task(config, vocab_size))
    pools: list[RayPool] = []

    def new_pool(parts) -> RayPool:
        pools.append(RayPool(Setup(config, vocab_size, 1, "cpu")))
        return pools[-1]

    parallel, mesh = config.parallel, data_mesh(1)
    made = parallel.row.parts(learner, mesh, parallel)
    program = server_program(made, mesh, new_pool)

    def steps(state, num: int):
        lines = []
        for _ in range(num):
            state, metrics = program.step(state, None)  # workers read rows by themselves
            lines += metrics["applied"]
        return state, lines

    state, lines = steps(program.init(jax.random.key(config.seed)), 3)
    died = [pools[0].workers[0], pools[0].shards[1]]
    kill(died[0])
    state, more = steps(state, 3)
    lines += more
    kill(died[1])
    state, more = steps(state, 2)
    lines += more
    assert pools[0].workers[0] is not died[0] and pools[0].shards[1] is not died[1]
    saved = jax.device_get(program.portable(state))
    steps(state, 1)  # is lost with the process that has this pool
    pools[0].close()
    state, more = steps(program.adopt(saved), STEPS - 8)
    lines += more
    assert {x.worker for x in lines if x.update in (10, 11)} == {0}
    found = audit(lines, STEPS, [], parallel.serving)
    assert (found.applied, found.lost, found.repeated) == (STEPS, 0, 0)
    assert found.max_lag <= 3
    params = jax.device_get(program.params(state))
    program.close()
    rows, key = batch_reader(data.train, row_order(config)), jax.random.key(config.seed)
    again = replay(made, mesh, lines, rows, key)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def check_islands(corpus: pathlib.Path) -> None:
    """Let islands of unlike speed train in processes; replay what they pushed."""
    config = fields.override(
        experiment(corpus),
        {
            "steps": 14, "parallel.strategy": "async_diloco", "parallel.local.every": 4,
            "parallel.merge.by_speed": True, "parallel.exchange.codec": "int8",
            "parallel.exchange.keep": 0.01, "parallel.server.mode": "sync",
            "parallel.server.staleness": 2, "parallel.server.compensation": 0.0,
            "parallel.server.slow": (1, 4), "parallel.server.floor": 0.2,
            "parallel.server.attendance": (), "parallel.server.shards": 1,
        },
    )  # fmt: skip
    mesh, data = check(config), prepare(config.data)
    vocab_size = data.tokenizer.get_vocab_size()
    task, program = build(
        config, vocab_size, mesh, new_pool=pool_of(config, vocab_size, mesh)
    )
    state, lines = program.init(jax.random.key(config.seed)), []
    for _ in range(config.steps):
        state, metrics = program.step(state, None)
        lines += metrics["applied"]
    params = jax.device_get(program.params(state))
    program.close()
    found = audit(lines, config.steps, [], config.parallel.serving)
    assert (found.applied, found.lost, found.repeated) == (config.steps, 0, 0)
    pushes = Counter((x.update, x.worker) for x in lines)
    assert pushes[1, lines[0].worker] == 4 and {who for _, who in pushes} == {0, 1}
    made = config.parallel.row.parts(learner_of(config, task), mesh, config.parallel)
    rows, key = batch_reader(data.train, row_order(config)), jax.random.key(config.seed)
    again = replay(made, mesh, lines, rows, key)
    jax.tree.map(np.testing.assert_array_equal, again, params)
