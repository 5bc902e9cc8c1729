"""Measure the bubble and the memory of pipelines, and compare with the schedules.

python -m experiments.studies.pipeline_bubble --devices=4 [--time]

Adds lines of JSON to --output, then fills in the pipelines' tables of docs/strategies.md
from all lines there. The bubble is computed in two ways: as in the compiled program, where
every tick waits for its slowest stage; and as in the papers, without that wait. A forward
pass costs 1 and a backward pass 3, because it computes the forward pass again. Memory is
what the compiler reports: the temporaries of one device, and their growth from the fewest
microbatches on, in units of one stashed input.

--time also times real steps in two processes of one device each (experiments.launch). For
one schedule and microbatch size, t(m) = a + b m, so the bubble at m is a / (a + b m).
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from configs.base import Experiment
from experiments.processes import join
from experiments.processes.messages import is_main_process, say, user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.run.trial import build_trial
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.pipeline_tables import pipeline_tables
from experiments.sweeps.results import read, write
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from parallel.config import ParallelConfig
from parallel.pipeline.schedules import (
    ORDERS,
    bubble,
    build_schedule,
    free_running_bubble,
    ideal_bubble,
    promised_inputs,
)

join.define_flags()
OUTPUT = flags.DEFINE_string(
    "output", "results/pipeline.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/strategies.md")
STAGES = flags.DEFINE_list("stages", ["2", "4"], "Numbers of stages to measure.")
MICROBATCHES = flags.DEFINE_list(
    "microbatches", ["4", "8", "16"], "Numbers of microbatches in a step."
)
ROWS = flags.DEFINE_integer("rows", 2, "Number of rows in a microbatch.", lower_bound=1)
CHUNKS = flags.DEFINE_integer(
    "chunks", 2, "Chunks of each interleaved stage.", lower_bound=1
)
LAYERS = flags.DEFINE_integer("layers", 8, "Number of layers of the model.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 64, "Width of the model.", lower_bound=8)
SEQ_LEN = flags.DEFINE_integer(
    "seq_len", 128, "Number of positions in a row.", lower_bound=1
)
TIME = flags.DEFINE_bool("time", False, "Also time steps of two real processes.")
STEPS = flags.DEFINE_integer(
    "timed_steps", 10, "Number of timed steps of each point.", lower_bound=1
)
WORKER = flags.DEFINE_bool("worker", False, "Be a timed process; set by --time itself.")

VOCAB = 512
FORWARD_COST, BACKWARD_COST = 1.0, 3.0


def experiment(strategy: str, num_stages: int, num_microbatches: int) -> Experiment:
    return Experiment(
        data=DataConfig(
            vocab_size=VOCAB,
            seq_len=SEQ_LEN.value,
            batch_size=ROWS.value * num_microbatches,
        ),
        model=TransformerConfig(
            width=WIDTH.value, num_layers=LAYERS.value, num_heads=WIDTH.value // 8
        ),
        parallel=ParallelConfig(
            strategy=strategy,
            data=1,
            stage=num_stages,
            chunks=CHUNKS.value,
            accumulation=num_microbatches,
        ),
    )


def points(stages: list[int]) -> list[tuple[str, int, int]]:
    """List (strategy, stages, microbatches). Interleaving takes multiples of the stages."""
    return [
        (name, p, m)
        for name in ORDERS
        for p in stages
        for m in map(int, MICROBATCHES.value)
        if name != "interleaved" or m % p == 0
    ]


def by_schedule(name: str, p: int, m: int) -> dict[str, Any]:
    v = CHUNKS.value if name == "interleaved" else 1
    schedule = build_schedule(name, p, m, v)
    return {
        "schedule": name,
        "stages": p,
        "microbatches": m,
        "chunks": v,
        "ticks": schedule.num_ticks,
        "bubble_slots": bubble(schedule),
        "bubble_in_step": bubble(schedule, FORWARD_COST, BACKWARD_COST),
        "bubble_free": free_running_bubble(schedule, FORWARD_COST, BACKWARD_COST),
        "bubble_theory": ideal_bubble(p, m, v),
        "stashed_inputs": schedule.num_inputs,
        "promised_inputs": promised_inputs(name, p, m, v),
    }


def temporaries(config: Experiment) -> int:
    """Compile the step; return the bytes of one device's temporaries."""
    trial = build_trial(config, VOCAB, check(config))
    return trial.step.memory_analysis().temp_size_in_bytes


def analyse() -> Iterator[dict[str, Any]]:
    """Compile every point; grown_inputs is the growth of memory since the first."""
    input_bytes = ROWS.value * SEQ_LEN.value * WIDTH.value * 4
    fewest = {}
    for name, p, m in points([int(p) for p in STAGES.value]):
        record = by_schedule(name, p, m)
        record["temp_bytes"] = temporaries(experiment(name, p, m))
        base = fewest.setdefault((name, p), record)
        record["grown_inputs"] = (record["temp_bytes"] - base["temp_bytes"]) / input_bytes
        record["promised_growth"] = record["stashed_inputs"] - base["stashed_inputs"]
        yield record


def step_seconds(config: Experiment) -> float:
    """Return the median time of a step, after one that is not counted."""
    trial = build_trial(config, VOCAB, check(config))
    shape = (config.data.batch_size, config.data.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, VOCAB, shape, np.int32)
    state, seconds = trial.begin(), []
    for _ in range(1 + STEPS.value):
        batch = trial.place(tokens)
        began = time.perf_counter()
        state, metrics = trial.step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def work() -> None:
    for name, p, m in points([2]):
        seconds = step_seconds(experiment(name, p, m))
        line = {"schedule": name, "stages": p, "microbatches": m, "seconds": seconds}
        if is_main_process():
            print(json.dumps(line), flush=True)


def timed() -> list[dict[str, Any]]:
    """Time steps over two stages in two processes; add the bubble from the fit."""
    given = [STEPS, MICROBATCHES, ROWS, CHUNKS, LAYERS, WIDTH, SEQ_LEN]
    command = [
        *(sys.executable, "-m", "experiments.launch", "--processes=2"),
        *("--module=experiments.studies.pipeline_bubble", "--", "--worker"),
        *(flags.FLAGS[flag.name].serialize() for flag in given),
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    # Gloo also writes to standard output.
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    records = [json.loads(line) for line in lines]
    for name in ORDERS:
        mine = [record for record in records if record["schedule"] == name]
        if len(mine) < 2:
            continue  # no line through one point
        m = np.array([record["microbatches"] for record in mine])
        slope, start = np.polyfit(m, [record["seconds"] for record in mine], 1)
        for record in mine:
            v = CHUNKS.value if name == "interleaved" else 1
            record["bubble_theory"] = ideal_bubble(2, record["microbatches"], v)
            fitted = start + slope * record["microbatches"]
            record["bubble_measured"] = float(start / fitted)
    return records


def keep(records: Iterable[dict[str, Any]], file: pathlib.Path) -> None:
    """Add each record to the file, and print it, as soon as it is measured."""
    for record in records:
        write(file, record)
        say(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                      for k, v in record.items()))  # fmt: skip


def main() -> None:
    with user_errors():
        join.start_jax()
        if WORKER.value:
            work()
            return
        if PAGE.value:
            wanted = {"pipeline", *(["pipeline-timed"] if TIME.value else [])}
            check_names(pathlib.Path(PAGE.value), wanted)
        for name, p, m in points([int(p) for p in STAGES.value]):
            check(experiment(name, p, m))
    file = pathlib.Path(OUTPUT.value)
    keep(analyse(), file)
    if TIME.value:
        keep(timed(), file)
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), pipeline_tables(read(file)))


if __name__ == "__main__":
    startup.run(main)
