"""Audit a run of a parameter server: was each number applied once, and can it be replayed?

python -m experiments.audit --workdir=runs/server [--replay]

Compares schedule.jsonl, the pushes in the order in which they were applied, with the
position in the last checkpoint. Prints a line of JSON: how many numbers were `applied`, how
many are `lost` or `repeated`, the largest staleness (updates between a pull and its
push) and the largest lag (pushes that a worker was ahead of the slowest). With --replay,
the schedule is applied again in this process, and `replay_equal` tells whether that gives
the checkpoint's parameters to the bit. If the run had more than one device for each worker,
give the same --devices.

The exit code is 1 if a number is lost or repeated, or the replay differs.
"""

import pathlib
import sys

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.processes import join
from experiments.processes.files import json_line
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.build import build_task, given_vectors, learner_of
from experiments.run.check import check
from experiments.run.checkpoint import Checkpoints
from experiments.run.log import OF_SCHEDULE, SCHEDULE, read_metrics
from experiments.run.restore import run_data
from experiments.run.steps import row_order
from experiments.run.workdir import read_config, read_tokenizer
from lm.data.rows.order import batch_reader
from lm.task import with_embeddings
from parallel.program import Learner, Params, TrainState
from parallel.server.replay import audit, replay
from parallel.server.session import Line
from parallel.strategies import build_program

join.define_flags()
WORKDIR = startup.define_workdir()
REPLAY = flags.DEFINE_bool("replay", False, "Apply the schedule again, and compare.")


def main() -> None:
    with user_errors():
        folder = startup.workdir(WORKDIR)
        config = read_config(folder)
        if config.parallel.phases:
            raise ValueError(
                f"{folder} was trained under {', '.join(config.parallel.strategies)} in "
                "turn, and its schedule has the pushes of some steps alone; give a run of "
                "parameter_server without parallel.phases"
            )
        if config.parallel.row.synchronous:
            raise ValueError(
                f"{folder} was trained under strategy {config.parallel.strategy!r}, which "
                "has no schedule; give a run of parameter_server or async_diloco"
            )
        join.start_jax()
        mesh = check(config)
        tokenizer = read_tokenizer(folder)
        task = build_task(config, tokenizer.get_vocab_size())
        if given := given_vectors(config, tokenizer):
            task = with_embeddings(task, *given)
        learner = learner_of(config, task)
        state = last_state(folder, config, learner, mesh)
        records = read_metrics(folder / SCHEDULE, int(state.step), OF_SCHEDULE)
        lines = [Line(**record) for record in records]
    missing = [n for n in state.comm["missing"].tolist() if n >= 0]
    server = config.parallel.serving
    found = audit(lines, int(state.comm["next"]), missing, server)._asdict()
    fine = not found["lost"] and not found["repeated"]
    if REPLAY.value:
        with user_errors():
            again = replayed(folder, config, learner, mesh, lines)
        found["replay_equal"] = same_bits(again, state.params)
        fine = fine and found["replay_equal"]
    updates = max((line.update for line in lines), default=0)
    print(json_line({"mode": server.mode, "updates": updates} | found), end="")
    sys.exit(0 if fine else 1)


def last_state(
    folder: pathlib.Path, config: Experiment, learner: Learner, mesh: Mesh
) -> TrainState:
    """Load what the last checkpoint holds; ValueError if there is none."""
    program = build_program(config.parallel, learner, mesh)
    with Checkpoints(folder / "checkpoints", config.keep, write=False) as checkpoints:
        if not checkpoints.steps:
            raise ValueError(f"{checkpoints.folder} holds no checkpoint yet")
        return jax.device_get(checkpoints.load_state(checkpoints.steps[-1], program))


def replayed(
    folder: pathlib.Path,
    config: Experiment,
    learner: Learner,
    mesh: Mesh,
    lines: list[Line],
) -> Params:
    rows = batch_reader(run_data(folder, config).train, row_order(config))
    parts = config.parallel.row.parts(learner, mesh, config.parallel)
    return replay(parts, mesh, lines, rows, jax.random.key(config.seed))


def same_bits(a: Params, b: Params) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


if __name__ == "__main__":
    startup.run(main)
