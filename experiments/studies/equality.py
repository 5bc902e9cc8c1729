"""Train the same batches under each data-parallel strategy, degree and precision.

python -m experiments.studies.equality --config=configs/tiny.py --devices=8 --num_steps=8

Trains under the exact strategies that use all devices as parallel.data. A run's difference
is the largest relative difference between the loss of a step and that of the same step on
one device under `jit` in the same precision. Adds lines to results/equality.jsonl, then
fills in the table of docs/questions/is-it-exact.md from all lines there.
"""

import dataclasses
import functools
import itertools
import pathlib

import jax
from absl import flags

from configs.base import Experiment
from experiments.processes import join
from experiments.processes.messages import is_main_process, user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.run.trial import build_trial
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read
from experiments.sweeps.tables import markdown
from lm.data.prepare import Data, prepare
from lm.precision import DTYPES
from parallel.strategies import EXACT, STRATEGIES

join.define_flags()
CONFIG = startup.define_config()
RESULTS = flags.DEFINE_string(
    "results",
    "results/equality.jsonl",
    "File of results, to which lines of JSON are added.",
)
PAGE = define_page("docs/questions/is-it-exact.md")
NUM_STEPS = flags.DEFINE_integer(
    "num_steps", 10, "Number of steps of each run.", lower_bound=1
)
DATA_PARALLEL = [name for name in EXACT if set(STRATEGIES[name].axes) <= {"slice", "data"}]


def train_losses(config: Experiment, data: Data, num_steps: int) -> list[float]:
    trial = build_trial(config, data.tokenizer.get_vocab_size(), check(config), data.train)
    state, losses = trial.begin(), []
    for batch in trial.batches(data.train, num_steps):
        state, metrics = trial.step(state, batch)
        losses.append(float(metrics["loss"] / metrics["tokens"]))
    return losses


def variant(config: Experiment, compute: str, strategy: str, degree: int) -> Experiment:
    replace = dataclasses.replace
    return replace(
        config,
        precision=replace(config.precision, compute=compute),
        parallel=replace(config.parallel, strategy=strategy, data=degree),
    )


def table(lines: list[Line]) -> str:
    """Tabulate the differences, one column for each degree; the last measurement counts."""
    found = {(x["precision"], x["strategy"], x["degree"]): x["difference"] for x in lines}
    degrees = sorted({degree for _, _, degree in found})
    body = []
    for precision, strategy in dict.fromkeys(key[:2] for key in found):
        cells = [found.get((precision, strategy, degree)) for degree in degrees]
        body.append([precision, strategy, *(x if x is None else f"{x:.1e}" for x in cells)])
    return markdown(["precision", "strategy", *degrees], body)


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        join.start_jax()
        check(config)
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"equality"})
        data = prepare(config.data)
    heads = [
        {
            "member": f"{strategy}, {compute}, {degree} devices",
            "precision": compute,
            "strategy": strategy,
            "degree": degree,
            "num_steps": NUM_STEPS.value,
        }
        for compute, strategy in itertools.product(DTYPES, DATA_PARALLEL)
        for degree in (1, 2, 4, 8)
        if degree <= len(jax.devices())
    ]

    def losses(compute: str, strategy: str, degree: int) -> list[float]:
        here = variant(config, compute, strategy, degree)
        return train_losses(here, data, NUM_STEPS.value)

    one_device = functools.cache(lambda compute: losses(compute, "jit", 1))

    def measure(head: Line) -> Line:
        here = losses(head["precision"], head["strategy"], head["degree"])
        one = one_device(head["precision"])
        worst = max(abs(a - b) / b for a, b in zip(here, one, strict=True))
        return {"difference": worst, "first_loss": here[0], "last_loss": here[-1]}

    file = pathlib.Path(RESULTS.value)
    measure_missing(file, heads, measure)
    if PAGE.value and is_main_process():
        with user_errors():
            fill(pathlib.Path(PAGE.value), {"equality": table(read(file))})


if __name__ == "__main__":
    startup.run(main)
