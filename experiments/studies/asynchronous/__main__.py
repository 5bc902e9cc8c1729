"""Asynchronous training measured: what staleness costs, and what uneven workers cost.

python -m experiments.studies.asynchronous --parts=staleness,speed [--seeds=1]

staleness   loss at equal tokens of pushes that are 0 to 8 updates late, plain and under
            remedies, each at its best of four learning rates; in this process
speed       numbers a second of sync, async and ssp with one of four workers four times
            slower; workers are processes of Ray (requirements-ray.txt), and a step lasts
            at least --floor seconds, so that few cores can hold them

Adds a line for each run to results/asynchronous.jsonl, skips those that are there, and
fills in the tables of the page.
"""

import copy
import pathlib
import time

import jax
from absl import flags

from configs import fields
from configs.base import Experiment
from configs.sweeps.combine import Member
from experiments.asynchronous.pool import pool_of
from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.build import build, check
from experiments.run.evaluation import Evaluator
from experiments.run.steps import row_order
from experiments.studies.asynchronous.members import (
    METHODS,
    MODES,
    RATES,
    STALENESS,
    base_config,
    stale,
    uneven,
)
from experiments.studies.asynchronous.tables import speed_table, staleness_table
from experiments.sweeps import pages
from experiments.sweeps.results import Line, measure_missing, read
from lm.data.prepare import prepare
from lm.data.rows.order import Numbered

join.define_flags()
PARTS = flags.DEFINE_list("parts", ["staleness", "speed"], "Parts of the study.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds of each member: 0, 1, ...", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 400, "Updates of a run.", lower_bound=20)
ONLY = flags.DEFINE_list("only", [], "Names of members, as the results have them; all.")
FLOOR = flags.DEFINE_float("floor", 0.5, "Seconds of a fast worker for a number.")
RESULTS = flags.DEFINE_string(
    "results", "results/asynchronous.jsonl", "File of results, to which lines are added."
)
PAGE = pages.define_page("docs/questions/how-does-asynchronous-training-work.md")
WARM_UP = 8  # updates before seconds count: processes compile


def heads() -> list[Line]:
    """Return what tells each run from the others."""
    found: list[Line] = []
    for seed in range(SEEDS.value):
        for staleness in STALENESS:
            for method in METHODS:
                found += [
                    {"part": "staleness", "member": f"{method} {staleness} {rate}"}
                    | {"method": method, "staleness": staleness, "rate": rate}
                    | {"seed": seed, "steps": STEPS.value}
                    for rate in RATES
                ]
        found += [
            {"part": "speed", "member": mode, "mode": mode, "floor": FLOOR.value}
            | {"seed": seed, "steps": STEPS.value}
            for mode in MODES
        ]
    chosen = [head for head in found if head["part"] in PARTS.value]
    return [x for x in chosen if not ONLY.value or x["member"] in ONLY.value]


def member_config(head: Line) -> Experiment:
    if head["part"] == "staleness":
        member = stale(head["staleness"], head["method"], head["rate"])
    else:
        member = uneven(head["mode"], head["floor"])
    given: Member = {"seed": head["seed"], "steps": head["steps"]}
    return fields.override(copy.deepcopy(base_config()), member | given)


def measure(head: Line) -> Line:
    """Train, and evaluate on all held-out rows."""
    config = member_config(head)
    mesh, data = check(config), prepare(config.data)
    vocab_size = data.tokenizer.get_vocab_size()
    pool = pool_of(config, vocab_size, mesh)
    task, program = build(config, vocab_size, mesh, new_pool=pool)
    rows = Numbered(data.train, row_order(config), 0, config.steps)
    state, began, most = program.init(jax.random.key(config.seed)), 0.0, 0.0
    try:
        for step in range(config.steps):
            if step == WARM_UP:
                began = time.perf_counter()
            state, metrics = program.step(state, program.draw(rows, step))
            if step >= WARM_UP:
                most = max(most, float(metrics["filled"]))
        seconds = time.perf_counter() - began
        params = program.params(state)
    finally:
        program.close()
    size = config.data.batch_size
    evaluate = Evaluator(task, data.tokenizer, data.validation, size, mesh)
    line = {"loss": evaluate(params)["loss"]}
    if head["part"] == "speed":
        line["numbers_per_second"] = (config.steps - WARM_UP) / seconds
        line["most_filled"] = most
    return line


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        if unknown := set(PARTS.value) - {"staleness", "speed"}:
            raise ValueError(f"--parts={','.join(unknown)}: choose staleness, speed")
        join.start_jax()
        if PAGE.value:
            pages.check_names(pathlib.Path(PAGE.value), {"staleness", "speed"})
        for head in heads():
            check(member_config(head))
    measure_missing(file, heads(), measure)
    if PAGE.value:
        found = read(file)
        tables = {"staleness": staleness_table(found), "speed": speed_table(found)}
        pages.fill(pathlib.Path(PAGE.value), tables)


if __name__ == "__main__":
    startup.run(main)
