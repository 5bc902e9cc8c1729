"""Audit a run of a parameter server: was each number applied once, and can it be replayed?

python -m experiments.audit --workdir=runs/server [--replay]

Compares schedule.jsonl, the pushes in the order in which they were applied, with the
position in the last whole checkpoint. Prints a line of JSON: how many numbers were
`applied`, how many are `lost` or `repeated`, the largest staleness (updates between a pull
and its push) and the largest lag (pushes that a worker was ahead of the slowest). In the
mode sync, pieces of numbers are counted. With --replay, the schedule is applied again in
this process, and `replay_equal` tells whether that gives the checkpoint's parameters to the
bit. If the run had more than one device for each worker, give the same --devices. A run
that began with parameters from elsewhere can be replayed as long as its first checkpoint,
which has them, is kept.

The exit code is 1 if a number is lost or repeated, or the replay differs.
"""

import pathlib
import sys

import jax
import numpy as np
from absl import flags

from configs.base import Experiment
from experiments.processes import join
from experiments.processes.files import json_line
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.run.build import build_task, given_vectors, learner_of
from experiments.run.check import check
from experiments.run.checkpoint import Checkpoints
from experiments.run.compression.teacher import with_teacher
from experiments.run.log import OF_SCHEDULE, SCHEDULE, read_metrics
from experiments.run.restore import run_data
from experiments.run.steps import row_order
from experiments.run.workdir import has_given, read_config, read_tokenizer, saved_steps
from lm.data.rows.order import batch_reader
from lm.task import with_embeddings
from parallel.program import Batch, Learner, Params, Program, TrainState
from parallel.server.config import ServerConfig
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
        program = build_program(config.parallel, learner, mesh)
        state = last_state(folder, config, program)
        server = config.parallel.serving
        lines = schedule_of(folder, int(state.step), server)
        others = taken_elsewhere(folder, int(state.step))
    missing = [n for n in state.comm["missing"].tolist() if n >= 0]
    position = int(state.comm["next"]), missing
    found = audit(lines, *position, server, others)._asdict()
    fine = not found["lost"] and not found["repeated"]
    if REPLAY.value:
        with user_errors():
            again = replayed(folder, config, learner, program, lines)
        found["replay_equal"] = same_bits(again, state.params)
        fine = fine and found["replay_equal"]
    updates = max((line.update for line in lines), default=0)
    print(json_line({"mode": server.mode, "updates": updates} | found), end="")
    sys.exit(0 if fine else 1)


def schedule_of(folder: pathlib.Path, last_step: int, server: ServerConfig) -> list[Line]:
    """Read the pushes of the steps up to this one; ValueError if they are none."""
    file, found = folder / SCHEDULE, []
    try:
        for record in read_metrics(file, last_step, OF_SCHEDULE):
            # Runs that began before there were pieces: each worker had its own.
            piece = record["worker"] if server.synchronous else 0
            found.append(Line(**{"piece": piece} | record))
        return found
    except TypeError as error:
        raise ValueError(
            f"{file} is no schedule of this version ({error}); it cannot be audited"
        ) from None


def taken_elsewhere(folder: pathlib.Path, last_step: int) -> set[int]:
    """Return the numbers of the steps that the run took under another strategy."""
    records = read_metrics(folder / "metrics.jsonl", last_step)
    return {x["step"] - 1 for x in records if x["split"] == "train" and "number" not in x}


def last_state(folder: pathlib.Path, config: Experiment, program: Program) -> TrainState:
    """Load the last whole checkpoint, from which the run would go on.

    Raises ValueError if it is none of this training, OSError if all are damaged.
    """
    # That of step 0 has the parameters that a run begins with, and no position.
    steps, damaged = [step for step in saved_steps(folder) if step], None
    if not steps:
        raise ValueError(f"{folder / 'checkpoints'} holds no checkpoint of training yet")
    with Checkpoints(folder / "checkpoints", config.keep, write=False) as checkpoints:
        for step in reversed(steps):
            try:
                state = jax.device_get(checkpoints.load_state(step, program))
            except OSError as error:
                say(f"warning: {error}")
                damaged = error
                continue
            if state.comm:
                return state
            raise ValueError(
                f"the last checkpoint of {folder}, at step {step}, is of another strategy "
                f"than {config.parallel.strategy!r}, which has saved none yet; let the run "
                "go on, and audit it then"
            )
    raise damaged


def replayed(
    folder: pathlib.Path,
    config: Experiment,
    learner: Learner,
    program: Program,
    lines: list[Line],
) -> Params:
    given = first_params(folder, config, program)
    read = batch_reader(run_data(folder, config).train, row_order(config))
    place = with_teacher(program, config).place  # adds what a teacher says, if there is one
    parts = config.parallel.row.parts(learner, program.mesh, config.parallel)

    def rows(number: int) -> Batch:
        return place(read(number))

    key = jax.random.key(config.seed)
    return replay(parts, program.mesh, lines, rows, key, given)


def first_params(
    folder: pathlib.Path, config: Experiment, program: Program
) -> Params | None:
    """Return the parameters from elsewhere with which a run began; None: it had none."""
    if 0 in saved_steps(folder):
        like = {"params": program.abstract_portable.params}
        with Checkpoints(folder / "checkpoints", config.keep, write=False) as checkpoints:
            return jax.device_get(checkpoints.load(0, like)["params"])
    if has_given(folder):
        raise ValueError(
            f"{folder} began with parameters from elsewhere, and their checkpoint, of step "
            f"0, is gone (--config.keep={config.keep} keeps the last ones); it cannot be "
            "replayed, but be audited without --replay"
        )
    return None


def same_bits(a: Params, b: Params) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


if __name__ == "__main__":
    startup.run(main)
