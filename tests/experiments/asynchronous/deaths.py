"""What is asked of the Ray pool while Ray runs (in processes/test_ray_tasks.py)."""

import os
import pathlib
import signal

import jax
import numpy as np

from configs import fields
from configs.base import Experiment
from configs.tiny import get_config
from experiments.asynchronous.bodies import Setup
from experiments.asynchronous.pool import RayPool
from experiments.run.build import build_task, learner_of
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
        },
    )  # fmt: skip


def kill(actor) -> None:
    import ray

    os.kill(ray.get(actor.ping.remote()), signal.SIGKILL)


def check_deaths(corpus: pathlib.Path) -> None:
    """Kill workers and shards with kill -9, and let a new pool go on from a cut.

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
    found = audit(lines, STEPS, [], parallel.serving)
    assert (found.applied, found.lost, found.repeated) == (STEPS, 0, 0)
    assert found.max_lag <= 3
    params = jax.device_get(program.params(state))
    program.close()
    rows, key = batch_reader(data.train, row_order(config)), jax.random.key(config.seed)
    again = replay(made, mesh, lines, rows, key)
    jax.tree.map(np.testing.assert_array_equal, again, params)
