"""What staleness costs, and how much each remedy wins back.

python -m experiments.studies.staleness --devices=1 [--seeds=3] [--quick]

Workers take turns in this process, so that each push is 0, 1, 2, 4 or 8 updates late:
plain, divided by its staleness, corrected to first order (DC-ASGD), and with less momentum.
Each is tuned by itself: five learning rates, each twice the one before, on the first seed,
and further ones while the best is at an edge. Then the other seeds train at the best rate.

Adds a line for each run to results/staleness.jsonl, skips those that are there, and fills
in the tables of the page. --quick tries two remedies at short runs, keeps nothing, and
prints the tables.
"""

import contextlib
import pathlib
import tempfile
from functools import partial

from absl import flags

from configs import fields
from configs.base import Experiment
from experiments.processes import join
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.studies.asynchronous.rates import TRIALS, tune
from experiments.studies.asynchronous.runs import Bench
from experiments.studies.staleness.members import (
    PLAIN,
    RATE,
    middle,
    pairs,
    short_config,
    stale,
)
from experiments.studies.staleness.tables import loss_table, won_table
from experiments.sweeps import pages
from experiments.sweeps.results import Line, read

join.define_flags()
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each member: 0, 1, ...", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 300, "Updates of a run.", lower_bound=20)
QUICK = flags.DEFINE_bool("quick", False, "Small runs, which are not kept.")
RESULTS = flags.DEFINE_string(
    "results", "results/staleness.jsonl", "File of results, to which lines are added."
)
PAGE = pages.define_page("docs/questions/how-does-asynchronous-training-work.md")
QUICK_STEPS, QUICK_TRIALS = 30, 3


def head(method: str, staleness: int, rate: float, seed: int) -> Line:
    """Return what tells a run from the others."""
    steps = QUICK_STEPS if QUICK.value else STEPS.value
    return {"member": f"{method}, staleness {staleness}, rate {rate:g}, seed {seed}"} | {
        "method": method, "staleness": staleness, "rate": rate, "seed": seed,
        "steps": steps,
    }  # fmt: skip


def member_config(head: Line) -> Experiment:
    member = stale(head["staleness"], head["method"], head["rate"])
    given = {"seed": head["seed"], "steps": head["steps"]}
    return fields.override(short_config(), member | given)


def chosen() -> list[tuple[str, int]]:
    if QUICK.value:
        return [(PLAIN, 0), (PLAIN, 2), ("DC-ASGD, lambda 500", 2)]
    return pairs()


def main() -> None:
    with user_errors():
        join.start_jax()
        page = pathlib.Path(PAGE.value) if PAGE.value and not QUICK.value else None
        if page:
            pages.check_names(page, {"staleness", "won-back"})
        for method, staleness in chosen():
            check(member_config(head(method, staleness, RATE, 0)))
    bench = Bench(short_config())

    def measure(head: Line) -> Line:
        return {"loss": bench.train(member_config(head)).loss}

    sizes = (1, QUICK_TRIALS) if QUICK.value else (SEEDS.value, TRIALS)
    with contextlib.ExitStack() as held:
        file = pathlib.Path(RESULTS.value)
        if QUICK.value:
            file = pathlib.Path(held.enter_context(tempfile.TemporaryDirectory())) / "lines"
        for method, staleness in chosen():
            of, start = partial(head, method, staleness), middle(method, staleness)
            tune(file, of, measure, start, *sizes)
        lines = read(file)
    tables = {"staleness": loss_table(lines), "won-back": won_table(lines)}
    if page:
        pages.fill(page, tables)
    else:
        say("\n\n".join(tables.values()))


if __name__ == "__main__":
    startup.run(main)
