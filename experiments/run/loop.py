"""The training loop: steps, evaluations, saves, in that order."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax

from configs.base import Experiment
from experiments.processes.faults import Fault
from experiments.processes.messages import human, is_main_process, say, size
from experiments.run.build import Run, learner_of
from experiments.run.checkpoint import Checkpoints, Score
from experiments.run.evaluation import Evaluator, interval, likelihood
from experiments.run.log import Log, Skipped
from experiments.run.phases.phase import phase_at, phases_of
from experiments.run.steps import compile_steps, row_order
from experiments.run.summary import summarize
from experiments.run.survival.guard import Guard, guarded
from experiments.run.survival.stopping import stop_signal
from lm.data.rows.growth import batch_sizes, rows_before
from lm.data.rows.order import Numbered, extra_arrays, step_rows
from lm.data.rows.partition import ALIKE
from lm.data.rows.parts import parts_told, strata_of
from lm.data.rows.shards import shards_of
from lm.task import num_parameters
from parallel.mesh import process_rows
from parallel.program import Batch, TrainState, begin

# Up to here, repeated text is about as good as new text (Muennighoff et al. 2023).
MAX_EPOCHS = 4
NOISE = {"grad_variance", "grad_square"}


class Ended(NamedTuple):
    step: int  # of the state that was saved last
    over: bool  # False: another phase of the run goes on from there


def train(
    run: Run,
    stop_at: int | None = None,
    profiled: range = range(0),
    faults: Sequence[Fault] = (),
) -> Ended:
    """Run, or continue, the experiment in its workdir, up to the end of its phase.

    The steps in `profiled` are traced into the workdir. `faults` happen to the run.

    Raises OSError if a disk is full or no checkpoint is whole, FloatingPointError if a
    step is not finite and the config says to stop there, Damage if replicas have parted.
    """
    with guarded(run, faults) as guard:
        return guarded_train(run, stop_at, profiled, guard)


def guarded_train(run: Run, stop_at: int | None, profiled: range, guard: Guard) -> Ended:
    config, program, clock = run.config, run.program, run.clock
    tokenizer, rows = run.data.tokenizer, run.data.validation
    evaluate = Evaluator(
        run.task, tokenizer, rows, config.data.batch_size, program.mesh, tick=clock.tick
    )
    with (
        Checkpoints(run.workdir / "checkpoints", config.keep, write=True) as checkpoints,
        ThreadPoolExecutor(1) as pool,
    ):
        checkpoints.before_save = guard.faults.before_save
        # Compilation overlaps with making or restoring the state.
        extra = extra_arrays(run.data.train, row_order(config))
        compiled = pool.submit(compile_steps, run.phase, program, extra)
        with clock("checkpoint"):
            learner = learner_of(config, run.task)
            state = checkpoints.restore(program, partial(begin, learner, program))
            state = guard.copies.newer(program, state)
        start = int(state.step) if state else 0
        if phase_at(phases_of(run.phase.whole), start).index != run.phase.index:
            return Ended(start, over=False)  # later checkpoints were damaged
        with clock("compile"):
            if state is None:
                state = program.init(jax.random.key(config.seed))
            run = run._replace(program=program._replace(step=compiled.result()))
        announce(run, start, "copy in memory" if guard.copies.taken else "checkpoint")
        guard.begin(start, run.program)
        try:
            log = Log(
                run.workdir, start, config.steps, config.spike_sigmas,
                partial(epochs, run), is_main_process(),
            )  # fmt: skip
            with log, stop_signal() as stopped:
                last = min(run.phase.last, stop_at or run.phase.last)
                state, final, stops = loop(
                    run, state, start, last, evaluate, checkpoints, log, stopped, profiled,
                    guard,
                )  # fmt: skip
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
    if step == config.steps:
        finish(run, state, final, evaluate, log, guard)
        return Ended(step, over=True)
    over = stops or step != run.phase.last or step == stop_at
    if over:
        how = " without --stop_at" if step == stop_at else ""
        say(f"stopped at step {step}; the same command{how} goes on from there")
    return Ended(step, over)


def finish(
    run: Run,
    state: TrainState,
    final: dict[str, float] | None,
    evaluate: Evaluator,
    log: Log,
    guard: Guard,
) -> None:
    """Evaluate what is not yet evaluated after the last step, and write the summary."""
    step = int(state.step)
    with run.clock("eval"):
        params = run.program.params(state)
        if final is None:  # killed after the last save: only the last evaluation is missing
            final = evaluate(params)
        shifted = run.data.shifted and evaluate(params, rows=run.data.shifted)
    guard.done(step)
    try:
        summarize(run, state, final, shifted, log, epochs(run, step))
    except OSError as error:
        raise OSError(f"{error}; make room, and the same command writes it") from error


def loop(
    run: Run,
    state: TrainState,
    start: int,
    last: int,
    evaluate: Evaluator,
    checkpoints: Checkpoints,
    log: Log,
    stopped: Callable[[int], bool],
    profiled: range,
    guard: Guard,
) -> tuple[TrainState, dict[str, float] | None, bool]:
    """Take the steps after `start` up to `last`.

    Return the state, the last evaluation and whether a signal asks the run to stop.

    A step is followed by its evaluation and then its save, so a restored run repeats
    neither. The evaluation is None unless the last step of the config was reached here.
    """
    config, program, clock = run.config, run.program, run.clock
    part = process_rows(program.mesh)
    rows = Numbered(run.data.train, row_order(config), start, last, *part)

    def batches(number: int) -> Batch:
        return program.place(rows(number))

    val = score = None
    stops = False
    for step in range(start + 1, last + 1):
        if step == max(profiled.start, start + 1) and step in profiled:
            jax.profiler.start_trace(run.workdir / "profile")
        state = guard.faults.before(step, state)
        began = time.perf_counter()
        with clock("data"):
            batch = program.draw(batches, step - 1)
        waited = time.perf_counter() - began
        with clock("step"):
            state, metrics = program.step(state, batch)
            if not alike(config):  # the noise scale is that of rows drawn from one text
                metrics = {name: metrics[name] for name in metrics.keys() - NOISE}
            handle(log.train(step, metrics, began, waited), run, log)
        guard.finished(*log.norms)

        stops = stopped(step)
        ends, val, score = step == last or stops, None, None
        if step in profiled and (ends or step + 1 not in profiled):
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            log.say(f"the trace is in {run.workdir / 'profile'}")
        evaluates = step == config.steps or is_due(step, config.eval_every)
        saves, copies = ends or guard.saves.due(step), guard.copies.due(step)
        if evaluates or saves or copies:
            with clock("step"):
                handle(log.flush(), run, log)
            guard.finished(*log.norms)
        guard.check(step, state, saves or copies)
        if evaluates:
            with clock("eval"):
                val, score = evaluated(run, state, evaluate, whole=step == config.steps)
            log.write({"split": "eval", "step": step, **val})
            log.say(f"step {step}: validation loss {val['loss']:.4f}")
        if saves:
            with clock("checkpoint"):
                checkpoints.save(step, program, state, score)
            guard.saved(step)
        if copies:
            guard.copied(step, state)
        if ends:
            break
    return state, val if int(state.step) == config.steps else None, stops


def evaluated(
    run: Run, state: TrainState, evaluate: Evaluator, whole: bool
) -> tuple[dict[str, float], Score]:
    """Evaluate on `eval_batches` batches, or on the `whole`; return losses and score.

    The score is of the first `eval_batches` batches each time, so that the checkpoints of
    a run can be compared.
    """
    few = run.config.eval_batches
    batches = evaluate.batches(run.program.params(state), 0 if whole else few)
    compared = likelihood(batches[: few or None])["loss"]
    found = likelihood(batches) | (interval(batches, evaluate.rows) if whole else {})
    return found, Score(compared, evaluate.num_rows(few))


def handle(skipped: Skipped | None, run: Run, log: Log) -> None:
    """Report a skipped update: step, reason, rows; end the run if the config says so.

    A run ends only by what all processes know, so that none waits for one that has ended.
    """
    if skipped is None:
        return
    config, step = run.config, skipped.step
    number = step - 1 if skipped.number is None else skipped.number
    rows = step_rows(run.data.train, row_order(config), number)
    line = (
        f"step {step}: the loss or a gradient is not finite ({skipped.reason}); the update "
        f"was skipped {skipped.where}. "
        f"Rows of {'this step' if skipped.number is None else f'number {number}'}: {rows}"
    )
    if not skipped.known_to_all:
        log.say(f"warning: {line}")
        return
    if config.on_nonfinite == "stop":
        raise FloatingPointError(f"{line}. on_nonfinite=stop ends the run here")
    if skipped.in_a_row >= config.max_skipped:
        raise FloatingPointError(
            f"{line}. This is skipped step {skipped.in_a_row} in a row, and max_skipped "
            f"ends the run at {config.max_skipped}; lower the learning rate, or look at "
            f"the rows of step {step - skipped.in_a_row + 1}, the first"
        )
    log.say(f"warning: {line}")


def epochs(run: Run, steps: int) -> float:
    """Return how many epochs `steps` steps are: how often they see the whole text."""
    data = run.config.data
    if data.lengths:
        return steps * data.batch_size * data.seq_len / positions(run)
    return rows_before(data.batch_size, data.growth, steps) / len(run.data.train.tokens)


def positions(run: Run) -> int:
    """Return the positions in an epoch of batches of equal tokens."""
    numbers = run.data.meta["train"]["buckets"]
    lengths = run.config.data.lengths
    return sum(n * length for n, length in zip(numbers, lengths, strict=True))


def buckets_told(run: Run) -> str:
    """Return how many rows have which length, and what is still padding."""
    train, lengths = run.data.meta["train"], run.config.data.lengths
    parts = [f"{n} of {t}" for n, t in zip(train["buckets"], lengths, strict=True)]
    padding = 1 - train["targets"] / positions(run)
    return f"rows cut to lengths: {', '.join(parts)}; {padding:.2%} padding"


def alike(config: Experiment) -> bool:
    data = config.data
    return (data.shards == 1 or data.partition in ALIKE) and not data.equal_tokens


def shards_told(run: Run) -> str:
    """Return how large the shards are, and which of them each process reads."""
    data, meta = run.config.data, run.data.meta
    shards, count = meta["train"]["shards"], process_rows(run.program.mesh)[1]
    sizes = [each["rows"] for each in shards]
    lines = [f"{len(sizes)} shards by {data.partition}: {min(sizes)} to {max(sizes)} rows"]
    for process in range(count if count > 1 else 0):
        mine = shards_of(process, count, len(shards))
        read = sum(shards[shard]["bytes"] for shard in mine)
        lines.append(f"part {process} reads shards {mine[0]} to {mine[-1]}, {size(read)}")
    return "; ".join(lines)


def announce(run: Run, start: int, source: str) -> None:
    program = run.program
    device = program.mesh.devices.flat[0]
    parameters = num_parameters(program.abstract_portable.params)
    parallel = run.config.parallel
    inside = f" of {parallel.local.inner} islands" if parallel.inner else ""
    say(
        f"{human(parameters)} parameters, {parallel.strategy}{inside} over "
        f"{program.mesh.size} x {device.device_kind} in {jax.process_count()} process(es)"
    )
    if not run.phase.index or start != run.phase.first:  # a later phase has the same text
        announce_text(run)
    warn_of_spikes(run)
    if start:
        say(f"going on from the {source} at step {start}")


def announce_text(run: Run) -> None:
    """Say what is read, and in which batches."""
    train_meta = run.data.meta["train"]
    say(
        f"{human(train_meta['targets'])} training tokens in {train_meta['rows']} rows, "
        f"{train_meta['padding']:.2%} padding"
    )
    if run.config.data.lengths:
        say(buckets_told(run))
    if run.config.data.shards > 1:
        say(shards_told(run))
    if (sampling := run.config.data.sampling).strata != "none" or sampling.reweigh:
        parts = row_order(run.config).parts(run.data.train)
        data, steps = run.config.data, run.config.steps
        num_drawn = rows_before(data.batch_size, data.growth, steps)
        say(parts_told(parts, strata_of(run.data.train)[1], num_drawn))
    for steps, rows in run.config.data.growth:
        say(f"after {steps} steps a batch has {rows} rows")
    warn_of_repetition(run)


def warn_of_repetition(run: Run) -> None:
    seen, data = epochs(run, run.config.steps), run.config.data
    batch_size = batch_sizes(data.batch_size, data.growth)[-1]
    if seen > MAX_EPOCHS:
        say(
            f"warning: this run sees its text {seen:.3g} times. Beyond {MAX_EPOCHS} times, "
            "repeated text teaches less and less (Muennighoff et al. 2023); use more text, "
            "or fewer steps"
        )
    if batch_size > (num_rows := len(run.data.train.tokens)):
        say(
            f"warning: a batch of {batch_size} rows is more than the {num_rows} rows of "
            "the text, so that a step sees rows more than once"
        )


def warn_of_spikes(run: Run) -> None:
    """Warn where nothing bounds what an exchange keeps; moves are clipped steps already."""
    parallel, clip = run.config.parallel, run.config.optim.clip_norm
    if parallel.keeps_spikes:
        say(
            f"warning: parallel.exchange.codec={parallel.exchange.codec} keeps what it "
            "does not send, before the optimizer clips it. What is left of a single huge "
            "gradient would be sent in the steps after it; "
            f"parallel.exchange.clip={clip or 1.0} bounds it"
        )


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
