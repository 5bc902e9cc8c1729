"""Train a language model, data-parallel.

python -m experiments.train --config=configs/tiny.py --workdir=runs/tiny --devices=8
    [--config.parallel.strategy=fsdp --config.optim.learning_rate=3e-4 ...]

The same command goes on from the last complete checkpoint, on any number of devices and
under any strategy. --dry_run prints what the run would take; --stop_at ends it early, to be
continued.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
from absl import flags

from experiments import startup
from experiments.build import Run, build, check, compile_step
from experiments.checkpoint import Checkpoints
from experiments.dry_run import dry_run
from experiments.evaluate import Evaluator
from experiments.log import Clock, Log, human
from experiments.startup import is_main_process, say
from experiments.summary import print_summary, read_summary, sample_inputs, summarize
from experiments.workdir import claim
from lm.data.pipeline import prepare, step_rows, train_batches
from lm.task import num_parameters
from parallel.mesh import process_rows
from parallel.program import TrainState

CONFIG = startup.define_config()
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print size and memory, and end.")
STOP_AT = flags.DEFINE_integer("stop_at", None, "Save and end after this step.")
PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "START:STOP: trace the steps after START up to STOP, for TensorBoard and XProf.",
)


def main() -> None:
    clock = Clock()
    with startup.user_errors():
        config = startup.load_config(CONFIG)
        folder = None if DRY_RUN.value else startup.workdir()
        profiled = profiled_steps(PROFILE.value)
        startup.start_jax()
        mesh = check(config)
        if folder is None:
            dry_run(config, mesh)
            return
        with clock("prepare"):
            data = prepare(config.data)
        sample_inputs(config, data.tokenizer)  # rather now than at the end
        lock = claim(folder, config, data, write=is_main_process())
        if summary := read_summary(folder):
            say(f"{folder} is complete; give another --workdir to train again")
            print_summary(summary)
            return
    num_rows = len(data.train.tokens)
    task, program = build(config, data.tokenizer.get_vocab_size(), mesh, num_rows)
    run = Run(config, folder, data, task, program, clock)
    with startup.user_errors(OSError, FloatingPointError):
        train(run, STOP_AT.value, profiled)
    if lock:
        lock.release()


def train(run: Run, stop_at: int | None = None, profiled: range = range(0)) -> TrainState:
    """Run, or go on with, the experiment in its workdir; return the state at the end.

    The steps in `profiled` are traced into the workdir.

    Raises OSError if a disk is full or no checkpoint is whole, FloatingPointError if a
    step is not finite and the config says to stop there.
    """
    config, program, clock = run.config, run.program, run.clock
    evaluate = Evaluator(run.task, run.data, config.data.batch_size, program.mesh)
    with (
        Checkpoints(run.workdir / "checkpoints", config.keep, write=True) as checkpoints,
        ThreadPoolExecutor(1) as pool,
    ):
        # Beside the restoring or the making of the state.
        compiled = pool.submit(compile_step, config, program)
        with clock("checkpoint"):
            state = checkpoints.restore(program)
        start = int(state.step) if state else 0
        with clock("compile"):
            if state is None:
                state = program.init(jax.random.key(config.seed))
            run = run._replace(program=program._replace(step=compiled.result()))
        announce(run, start)
        try:
            log = Log(
                run.workdir, start, config.steps, config.spike_sigmas, is_main_process()
            )
            with log, stop_signal() as stopped:
                last = min(config.steps, stop_at or config.steps)
                state, final = loop(
                    run, state, start, last, evaluate, checkpoints, log, stopped, profiled
                )
            step = int(state.step)
            with clock("checkpoint"):
                checkpoints.wait()
            if step not in checkpoints.steps:
                raise OSError(f"step {step}, where this run ends, could not be saved")
        except OSError as error:
            raise OSError(
                f"{error}. The complete checkpoints in {checkpoints.folder} are of steps "
                f"{checkpoints.steps}; make room, and the same command goes on from there"
            ) from error
    if step < config.steps:
        say(f"stopped at step {step}; the same command goes on from there")
        return state
    with clock("eval"):
        params = program.params(state)
        if final is None:  # killed after the last save: only the end is missing
            final = evaluate(params)
        shifted = run.data.shifted and evaluate(params, rows=run.data.shifted)
    summarize(run, state, final, shifted, log)
    return state


def loop(
    run: Run,
    state: TrainState,
    start: int,
    last: int,
    evaluate: Evaluator,
    checkpoints: Checkpoints,
    log: Log,
    stopped: Callable[[], bool],
    profiled: range,
) -> tuple[TrainState, dict[str, float] | None]:
    """Take the steps after `start` up to `last`; return the state and the last evaluation.

    A step is followed by its evaluation and then its save, so a restored run repeats
    neither. The evaluation is None unless the last step of the config was reached here.
    """
    config, program, clock = run.config, run.program, run.clock
    batches = iter(
        train_batches(
            run.data.train,
            config.seed,
            config.data.batch_size,
            start,
            last,
            *process_rows(program.mesh),
        )
    )
    val = None
    for step in range(start + 1, last + 1):
        if step == max(profiled.start, start + 1) and step in profiled:
            jax.profiler.start_trace(run.workdir / "profile")
        began = time.perf_counter()
        with clock("data"):
            batch = program.place(next(batches))
        waited = time.perf_counter() - began
        with clock("step"):
            state, metrics = program.step(state, batch)
            handle(log.train(step, metrics, began, waited), run, log)

        ends, val = step == last or stopped(), None
        if step in profiled and (ends or step + 1 not in profiled):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            log.say(f"the trace is in {run.workdir / 'profile'}")
        evaluates = step == config.steps or is_due(step, config.eval_every)
        saves = ends or is_due(step, config.save_every)
        if evaluates or saves:
            with clock("step"):
                handle(log.flush(), run, log)
        if evaluates:
            with clock("eval"):
                num_batches = 0 if step == config.steps else config.eval_batches
                val = evaluate(program.params(state), num_batches)
            log.write({"split": "eval", "step": step, **val})
            log.say(f"step {step}: validation loss {val['loss']:.4f}")
        if saves:
            with clock("checkpoint"):
                checkpoints.save(step, program, state, val and val["loss"])
        if ends:
            break
    return state, val if int(state.step) == config.steps else None


def handle(nonfinite: list[int], run: Run, log: Log) -> None:
    """Name the step and the rows of a non-finite loss or gradient; stop if so wished."""
    config = run.config
    for step in nonfinite:
        rows = step_rows(
            len(run.data.train.tokens), config.seed, config.data.batch_size, step - 1
        )
        line = (
            f"step {step}: the loss or a gradient is not finite; the update was skipped "
            f"on every device. Rows: {rows}"
        )
        if config.on_nonfinite == "stop":
            raise FloatingPointError(f"{line}. on_nonfinite=stop ends the run here")
        log.say(f"warning: {line}")


def announce(run: Run, start: int) -> None:
    program, train_meta = run.program, run.data.meta["train"]
    device = program.mesh.devices.flat[0]
    parameters = num_parameters(program.abstract_portable.params)
    say(
        f"{human(parameters)} parameters, {run.config.parallel.strategy} over "
        f"{program.mesh.size} x {device.device_kind} in {jax.process_count()} process(es)"
    )
    say(
        f"{human(train_meta['targets'])} training tokens in {train_meta['rows']} rows, "
        f"{train_meta['padding']:.2%} padding"
    )
    if start:
        say(f"going on from the checkpoint at step {start}")


def profiled_steps(flag: str | None) -> range:
    """Return the steps that --profile asks for; ValueError if it does not tell."""
    if flag is None:
        return range(0)
    start, _, stop = flag.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise ValueError(f"--profile={flag}: expected START:STOP, two steps, as in 10:15")
    return range(int(start) + 1, int(stop) + 1)


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
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
