"""Train a language model, data-parallel.

python -m experiments.train --config=configs/tiny.py --workdir=runs/tiny --devices=8
    [--config.parallel.strategy=fsdp --config.optim.learning_rate=3e-4 ...]

The same command goes on from the last complete checkpoint, on any number of devices and
under any strategy. --dry_run prints what the run would take; --stop_at ends it early, to be
continued.
"""

import contextlib
import pathlib
import signal
import time
from collections.abc import Iterator

import jax
from absl import flags

from configs.base import Experiment
from experiments import startup
from experiments.build import build, check
from experiments.checkpoint import Checkpoints
from experiments.dry_run import dry_run
from experiments.evaluate import WORKDIR, Evaluator
from experiments.log import Clock, Log, human
from experiments.startup import is_main_process, say
from experiments.summary import print_summary, read_summary, summarize
from experiments.workdir import claim
from lm.data.pipeline import Data, prepare, step_rows, train_batches
from lm.task import Task
from parallel.program import Program, TrainState

CONFIG = startup.define_config()
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print size and memory, and end.")
STOP_AT = flags.DEFINE_integer("stop_at", None, "Save and end after this step.")


def main() -> None:
    clock = Clock()
    with startup.user_errors():
        config = startup.load_config(CONFIG)
        if not (WORKDIR.value or DRY_RUN.value):
            raise ValueError("no --workdir given; for example --workdir=runs/tiny")
        startup.start_jax()
        mesh = check(config)
        if DRY_RUN.value:
            dry_run(config, mesh)
            return
        workdir = pathlib.Path(WORKDIR.value)
        with clock("prepare"):
            data = prepare(config.data)
        lock = claim(workdir, config, data, write=is_main_process())
        if summary := read_summary(workdir):
            say(f"{workdir} is complete; give another --workdir to train again")
            print_summary(summary)
            return
    task, program = build(config, data.tokenizer.get_vocab_size(), mesh)
    with startup.user_errors(OSError, FloatingPointError):
        train(config, workdir, data, task, program, clock, STOP_AT.value)
    if lock:
        lock.release()


def train(
    config: Experiment,
    workdir: pathlib.Path,
    data: Data,
    task: Task,
    program: Program,
    clock: Clock,
    stop_at: int | None = None,
) -> TrainState:
    """Run, or go on with, the experiment in `workdir`; return the state at the end."""
    evaluate = Evaluator(task, data, config.data.batch_size, program.mesh)
    with (
        Checkpoints(workdir / "checkpoints", config.keep) as checkpoints,
        stop_signal() as stopped,
    ):
        with clock("checkpoint"):
            state = checkpoints.restore(program)
        start = int(state.step) if state else 0
        if state is None:
            with clock("compile"):
                state = program.init(jax.random.key(config.seed))
        announce(config, data, program, start)
        last = min(config.steps, stop_at or config.steps)
        log = Log(workdir, start, config.steps, config.spike_sigmas, is_main_process())
        batches = train_batches(
            data.train,
            config.seed,
            config.data.batch_size,
            start,
            last,
            jax.process_index(),
            jax.process_count(),
        )
        final = None
        for step in range(start + 1, last + 1):
            began = time.perf_counter()
            with clock("data"):
                batch = program.place(next(batches))
            waited = time.perf_counter() - began
            with clock("compile" if step == start + 1 else "step"):
                state, metrics = program.step(state, batch)
            if step == start + 1:
                began = time.perf_counter()
            with clock("step"):
                handle(log.train(step, metrics, began, waited), config, data, log)

            ends = step == last or stopped()
            evaluates = step == config.steps or is_due(step, config.eval_every)
            saves = ends or is_due(step, config.save_every)
            if not (evaluates or saves):
                continue
            with clock("step"):
                handle(log.flush(), config, data, log)
            val = None
            if evaluates:
                with clock("eval"):
                    num_batches = 0 if step == config.steps else config.eval_batches
                    val = evaluate(program.params(state), num_batches)
                log.write({"split": "eval", "step": step, **val})
                log.say(f"step {step}: validation loss {val['loss']:.4f}")
                final = val if step == config.steps else None
            if saves:
                with clock("checkpoint"):
                    checkpoints.save(step, state, val and val["loss"])
            if ends:
                break
        log.close()
        with clock("checkpoint"):
            checkpoints.wait()
    if int(state.step) < config.steps:
        say(f"stopped at step {int(state.step)}; the same command goes on from there")
        return state
    if final is None:  # killed after the last save: only the end is missing
        with clock("eval"):
            final = evaluate(program.params(state))
    summarize(config, workdir, data, task, program, state, final, clock, log)
    return state


def handle(nonfinite: list[int], config: Experiment, data: Data, log: Log) -> None:
    """Name the step and the rows of a non-finite loss or gradient; stop if so wished."""
    for step in nonfinite:
        rows = step_rows(
            len(data.train.tokens), config.seed, config.data.batch_size, step - 1
        )
        line = (
            f"step {step}: the loss or a gradient is not finite; the update was skipped "
            f"on every device. Rows: {rows}"
        )
        if config.on_nonfinite == "stop":
            raise FloatingPointError(f"{line}. on_nonfinite=stop ends the run here")
        log.say(f"warning: {line}")


def announce(config: Experiment, data: Data, program: Program, start: int) -> None:
    device = program.mesh.devices.flat[0]
    parameters = sum(x.size for x in jax.tree.leaves(program.abstract.params))
    train_meta = data.meta["train"]
    say(
        f"{human(parameters)} parameters, {config.parallel.strategy} over "
        f"{program.mesh.size} x {device.device_kind} in {jax.process_count()} process(es)"
    )
    say(
        f"{human(train_meta['targets'])} training tokens in {train_meta['rows']} rows, "
        f"{train_meta['padding']:.2%} padding"
    )
    if start:
        say(f"going on from the checkpoint at step {start}")


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def stop_signal() -> Iterator:
    """Yield a function that tells whether SIGTERM or SIGINT asked this run to end.

    A single process saves and ends after its step. Of several, one cannot end alone, so
    there the signal keeps its usual effect and the last checkpoint serves.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield lambda: False
        return
    previous = {
        number: signal.signal(number, lambda n, frame: received.append(n))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    startup.run(main)
