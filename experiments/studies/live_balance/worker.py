"""One of several processes that train together at set speeds; live_balance starts it.

A microbatch lasts at least --floor seconds over the speed of the process, however short its
computing is. So a few cores hold processes of any speeds. Process 0 adds to --output a line
of JSON: the seconds of each step, the loss after the last, and how many of its own loops
computed for longer than their floor.
"""

import json
import pathlib
import time

import jax
import numpy as np
from absl import flags

from experiments.processes import join
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.build import build_task, learner_of
from experiments.run.check import check
from experiments.run.steps import compile_for, row_order
from experiments.studies.balance.live import Paced
from lm.data.prepare import prepare
from lm.data.rows.order import train_batches
from parallel.mesh import process_rows
from parallel.readings import read
from parallel.replicas import shard_map_program
from parallel.uneven import Deal

join.define_flags()
CONFIG = startup.define_config()
SPEEDS = flags.DEFINE_list("speeds", None, "Speed of each process.", required=True)
COUNTS = flags.DEFINE_list("counts", None, "Microbatches of each process.", required=True)
MOVES = flags.DEFINE_bool("moves", False, "Move microbatches from slow processes.")
FLOOR = flags.DEFINE_float("floor", 0.2, "Least seconds of a microbatch at speed 1.")
OUTPUT = flags.DEFINE_string("output", None, "File that gets the line.", required=True)


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        mesh = check(config)
        data = prepare(config.data)
    floors_W = FLOOR.value / np.array([float(x) for x in SPEEDS.value])
    counts_W = tuple(int(x) for x in COUNTS.value)
    dealer = Paced(counts_W, MOVES.value, floors_W)
    task = build_task(config, data.tokenizer.get_vocab_size())
    program = shard_map_program(learner_of(config, task), mesh, deal=Deal(counts_W, dealer))
    state, step, seconds, loss = program.init(jax.random.key(config.seed)), None, [], 0.0
    part = process_rows(mesh)
    for batch in train_batches(data.train, row_order(config), 0, config.steps, *part):
        placed = program.place(batch)
        step = step or compile_for(program, placed)
        began = time.perf_counter()
        state, metrics = step(state, placed)
        values = read(metrics).values
        seconds.append(time.perf_counter() - began)
        loss = values["loss"] / values["tokens"]
    if is_main_process():
        line = {"seconds": seconds, "loss": loss, "late": int(dealer.late)}
        line["counts"] = dealer.counts_W.tolist()
        pathlib.Path(OUTPUT.value).write_text(json.dumps(line), encoding="utf-8")


if __name__ == "__main__":
    startup.run(main)
