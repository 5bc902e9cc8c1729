"""One trial or run of the league."""

import math
import time

import jax
from tqdm import tqdm

from configs.base import Experiment
from experiments.run.check import check
from experiments.run.evaluation import Evaluator
from experiments.run.noise_scale import NoiseScale
from experiments.run.trial import build_trial
from experiments.studies.league.members import EVAL_ROWS, ROWS, tokens_of
from experiments.studies.league.sent import run_bytes
from experiments.sweeps.results import Line
from lm.data.prepare import prepare
from parallel import readings


def trained(config: Experiment) -> tuple[Line, Line]:
    """Train and evaluate; return the loss, tokens and seconds, and the bytes of the run."""
    mesh = check(config)
    data = prepare(config.data)
    clocks = time.perf_counter, time.process_time
    began = [clock() for clock in clocks]
    trial = build_trial(config, data.tokenizer.get_vocab_size(), mesh, data.train)
    state, noise, noted = trial.begin(), NoiseScale(), []
    batches = tqdm(trial.batches(data.train, config.steps), total=config.steps, leave=False)
    for step, batch in enumerate(batches, 1):
        state, metrics = trial.step(state, batch)
        values = readings.read(metrics).values  # waits for the step
        noise.add(values.get("grad_variance"), values.get("grad_square"))
        if step % (config.steps // 6) == 0 and noise.value:
            noted.append([step, round(noise.value)])
    rows = config.data.batch_size
    evaluate = Evaluator(trial.task, data.tokenizer, data.validation, rows, mesh)
    loss = evaluate(trial.program.params(state), EVAL_ROWS // rows)["loss"]

    seconds, core_seconds = (
        round(clock() - start, 1) for clock, start in zip(clocks, began, strict=True)
    )
    figures = {
        "loss": round(loss, 5) if math.isfinite(loss) else None,
        "tokens": tokens_of(rows // ROWS, config.steps),
        "seconds": seconds,
        "core_seconds": core_seconds,
    }
    sizes = jax.tree.leaves(trial.program.abstract_portable.params)
    sent = run_bytes(config, trial.step, mesh)._asdict()
    return figures, {name: round(x) for name, x in sent.items()} | {
        "params": sum(x.size for x in sizes),
        "epochs": round(config.steps * rows / len(data.train.tokens), 2),
    } | ({"noise": noted} if noted else {})
