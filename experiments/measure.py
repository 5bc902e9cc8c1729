"""Measure what a training step costs: time, tokens/s, FLOP/s, memory, bytes on the wire.

python -m experiments.measure --config=configs/tiny.py --devices=8 [--num_steps=20]
    [--config.parallel.strategy=fsdp ...] [--output=measured.json]
    [--topology=tpu-v5e:2x4]

Prints a table of the figures, and writes them to --output. The command

1. compiles the step, and prints the seconds apart from those of the steps;
2. takes --warm_up steps that it does not measure;
3. takes --num_steps steps and waits for the end of each; it prints the median and the
   quartiles of their seconds, and how busy the CPU cores were;
4. takes a few more steps in a profiler's trace, without waiting between them, as training
   does; it prints how busy the accelerators were (their duty cycle).

With --topology the command only compiles, for TPUs that are absent, and prints what their
compiler says: memory by kind, FLOPs, bytes moved and sent.

FLOPs are the model's own, without recomputation (experiments/costs/step.py). Model FLOPs
utilisation (MFU, Chowdhery et al. 2022, appendix B) is their share of a limit: the FLOP/s
of this machine in a product of two large matrices (of float32 on a CPU, of bfloat16 on
an accelerator), measured in the same process.
"""

import itertools
import json
import math
import pathlib
import statistics
import time
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.costs.duty_cycle import traced_duty_cycle
from experiments.costs.machine import are_emulated, cores, peak_memory_bytes, product_limit
from experiments.costs.step import absent_costs, compiled_costs
from experiments.planning.absent import compiled, start_devices
from experiments.planning.explanation import expected_bytes
from experiments.planning.out_of_memory import settled
from experiments.processes import join, topology
from experiments.processes.files import write_whole
from experiments.processes.messages import human, is_main_process, user_errors
from experiments.run import startup
from experiments.run.build import model_flops
from experiments.run.check import check, check_compiles
from experiments.run.trial import build_trial
from lm.data.prepare import prepare
from parallel.cost.ledger import step_ledger
from parallel.readings import read

join.define_flags()
CONFIG = startup.define_config()
TOPOLOGY = topology.define_flag()
NUM_STEPS = flags.DEFINE_integer(
    "num_steps", 20, "Number of steps to measure.", lower_bound=2
)
WARM_UP = flags.DEFINE_integer(
    "warm_up", 3, "Number of steps to take before measuring.", lower_bound=1
)
TRACED = 5  # steps, for the duty cycle
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the figures to.")


def measure(config: Experiment) -> dict[str, Any]:
    mesh = check(config)
    data = prepare(config.data)
    vocab_size = data.tokenizer.get_vocab_size()
    trial = build_trial(config, vocab_size, mesh, data.train)
    num_steps = WARM_UP.value + NUM_STEPS.value
    batches = trial.batches(data.train, num_steps + TRACED)
    state, seconds, tokens, cpu = trial.begin(), [], 0, 0.0
    for step, batch in enumerate(itertools.islice(batches, num_steps)):
        jax.block_until_ready(batch)
        start, cpu_start = time.perf_counter(), time.process_time()
        state, metrics = jax.block_until_ready(trial.step(state, batch))
        if step >= WARM_UP.value:
            seconds.append(time.perf_counter() - start)
            cpu += time.process_time() - cpu_start
            tokens += int(read(metrics).values["tokens"])

    def go_on():
        last, before = state, ()
        for batch in batches:
            last, metrics = trial.step(last, batch)
            jax.block_until_ready(before)
            before = metrics
        return last

    rate = tokens / sum(seconds)
    flops = rate * model_flops(config, vocab_size)
    limit = product_limit() * (1 if are_emulated() else mesh.size)
    low, median, high = statistics.quantiles(seconds, n=4)
    figures = {
        "step_seconds": median,
        "step_seconds_quartiles": [low, high],
        "tokens_per_second": rate,
        "model_flops_per_second": flops,
        "product_limit": limit,
        "mfu": flops / limit,
        "compile_seconds": trial.compile_seconds,
        "core_share": cpu / sum(seconds) / cores(),
        "observed_peak_bytes": peak_memory_bytes(),
    }
    if jax.default_backend() != "cpu" and (busy := traced_duty_cycle(go_on)) is not None:
        figures["duty_cycle"] = busy
    if hasattr(trial.step, "memory_analysis"):
        entries = step_ledger(trial.step, mesh)
        figures |= compiled_costs(trial.step, entries, trial.program.abstract)
    return figures


def measure_absent(config: Experiment, mesh: Mesh) -> dict[str, Any]:
    trial = build_trial(config, config.data.vocab_size, mesh)
    entries = step_ledger(trial.step, mesh)
    figures = {"compile_seconds": trial.compile_seconds}
    figures |= compiled_costs(trial.step, entries, trial.program.abstract)
    figures["expected_bytes"] = expected_bytes(config, trial, mesh) or math.nan
    hidden = [entry for entry in entries if entry.overlap]
    figures["overlapping_collectives"] = sum(entry.count for entry in hidden)
    figures["overlapping_bytes"] = sum(entry.sent_bytes for entry in hidden)
    return figures | absent_costs(trial.step, mesh)


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        devices = start_devices(TOPOLOGY.value, config)
        config = settled(config, devices)
        check_compiles(config)
        mesh = check(config, devices)
    with topology.compiler_errors(compiled(config, "tpu")):
        figures = measure_absent(config, mesh) if devices else measure(config)
    if not is_main_process():
        return
    for name, value in figures.items():
        values = value if isinstance(value, list) else [value]
        shown = " to ".join(f"{x:.3g}" if x < 1 else human(x) for x in values)
        print(f"{name.replace('_', ' '):26} {shown}")
    if OUTPUT.value:
        write_whole(pathlib.Path(OUTPUT.value), json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    startup.run(main)
