"""Train the same batches under many strategies and codecs, and compare losses and costs.

python -m experiments.studies.strategies --config=configs/tiny.py --devices=8 \
    --config.steps=200 [--measure=loss|program|time] [--seeds=3] [--only=int8,diloco-50]
python -m experiments.studies.strategies --measure=   # only fill in the page

Adds lines to results/strategies.jsonl, then fills in the tables of docs/strategies.md from
all lines there. A line is a run (its validation losses), a program (a device's memory, and
the bytes that it sends in a step, read from the compiled program) or a timing. The command
skips what the file already holds, so it can be stopped at any time and given again. `time`
takes steps in turns with float32 all-reduce; it needs an idle machine.
"""

import copy
import pathlib
import statistics
import time
from collections.abc import Iterator

import jax
from absl import flags
from tqdm import tqdm

from configs import fields
from configs.base import Experiment
from configs.sweeps.strategies import BASE, MEMBERS
from experiments.costs.step import compiled_costs
from experiments.processes import join
from experiments.processes.messages import is_main_process, say, user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.run.evaluation import Evaluator
from experiments.run.trial import build_trial
from experiments.sweeps.members import known
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read, write
from experiments.sweeps.strategy_tables import draw_all, strategy_tables, table_names
from lm.data.prepare import Data, prepare
from parallel.cost.ledger import step_ledger

join.define_flags()
CONFIG = startup.define_config()
MEASURE = flags.DEFINE_enum(
    "measure", "loss", ["loss", "program", "time", ""], "What to measure; empty: nothing."
)
SEEDS = flags.DEFINE_integer(
    "seeds", 3, "Number of seeds of each run: 0, 1, ...", lower_bound=1
)
ONLY = flags.DEFINE_list("only", list(MEMBERS), "Names of the members to measure.")
RESULTS = flags.DEFINE_string(
    "results",
    "results/strategies.jsonl",
    "File of results, to which lines of JSON are added.",
)
PAGE = define_page("docs/strategies.md")
EVAL_EVERY = flags.DEFINE_integer("eval_every", 20, "Number of steps between evaluations.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of turns of --measure=time.")
STEPS_OF_A_TURN = 5


def member_config(config: Experiment, name: str, seed: int = 0) -> Experiment:
    member = fields.override(copy.deepcopy(config), MEMBERS[name])
    member.seed = seed
    return member


def losses(config: Experiment, data: Data) -> Line:
    """Train from the config's seed; return the validation losses during and after it."""
    mesh = check(config)
    trial = build_trial(config, data.tokenizer.get_vocab_size(), mesh, data.train)
    evaluate = Evaluator(
        trial.task, data.tokenizer, data.validation, config.data.batch_size, mesh
    )
    curve, params = [], trial.program.params
    for step, state in trial.train(data.train):
        if step % EVAL_EVERY.value == 0 and step < config.steps:
            loss = evaluate(params(state), config.eval_batches)["loss"]
            curve.append([step, round(loss, 5)])
    return {"loss": evaluate(params(state))["loss"], "curve": curve}


def costs(config: Experiment, data: Data) -> Line:
    """Read what a step sends and holds from the compiled program; nothing is run."""
    mesh = check(config)
    trial = build_trial(config, data.tokenizer.get_vocab_size(), mesh, data.train)
    entries = step_ledger(trial.step, mesh)
    return compiled_costs(trial.step, entries, trial.program.abstract)


def time_in_turns(config: Experiment, data: Data, names: list[str]) -> Iterator[Line]:
    """Yield each member's ratio to the base: the median of the ratios within a round."""
    sides = {}
    for name in {BASE: None} | dict.fromkeys(names):
        member = member_config(config, name)
        trial = build_trial(
            member, data.tokenizer.get_vocab_size(), check(member), data.train
        )
        sides[name] = [trial.step, trial.begin(), *trial.batches(data.train, 1)]

    def turn(name: str) -> float:
        step, state, batch = sides[name]
        state, _ = jax.block_until_ready(step(state, batch))  # not timed
        start = time.perf_counter()
        for _ in range(STEPS_OF_A_TURN):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        sides[name][1] = state
        return time.perf_counter() - start

    rounds = [{name: turn(name) for name in sides} for _ in tqdm(range(ROUNDS.value))]
    for name in sides:
        ratio = statistics.median(r[name] / r[BASE] for r in rounds)
        yield {"measure": "time", "member": name, "ratio": ratio, "rounds": len(rounds)}


def check_members(config: Experiment) -> None:
    """Raise ValueError for a member that is unknown or cannot run on these devices."""
    for name in known(ONLY.value):
        check(member_config(config, name))
    if PAGE.value and MEASURE.value == "loss":
        check_names(pathlib.Path(PAGE.value), table_names(config.steps, ONLY.value))


def measure(config: Experiment, data: Data, file: pathlib.Path) -> None:
    about = {"steps": config.steps, "devices": len(jax.devices())}
    if MEASURE.value == "time":
        for line in time_in_turns(config, data, ONLY.value):
            write(file, line | about)
            say(f"{line['member']}: {line['ratio']:.2f} times a step of {BASE}")
    elif MEASURE.value == "program":
        measure_missing(
            file,
            [{"measure": "program", "member": name} for name in ONLY.value],
            lambda head: costs(member_config(config, head["member"]), data),
        )
    else:
        measure_missing(
            file,
            [
                {"measure": "loss", "member": name, "seed": seed} | about
                for seed in range(SEEDS.value)
                for name in ONLY.value
            ],
            lambda head: losses(member_config(config, head["member"], head["seed"]), data),
        )


def fill_page(file: pathlib.Path, page: pathlib.Path) -> None:
    lines = read(file)
    if not lines:
        raise ValueError(f"{file} holds no results; give --measure=loss first")
    fill(page, strategy_tables(lines))
    draw_all(lines, page)


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    if MEASURE.value:
        with user_errors():
            config = startup.load_config(CONFIG)
            join.start_jax()
            check_members(config)
            data = prepare(config.data)
        measure(config, data, file)
    if PAGE.value and is_main_process():
        with user_errors():
            fill_page(file, pathlib.Path(PAGE.value))


if __name__ == "__main__":
    startup.run(main)
