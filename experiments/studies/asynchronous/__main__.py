"""Uneven workers measured: what it costs to wait for the slowest, and what not to.

python -m experiments.studies.asynchronous --devices=1 [--parts=speed,islands] [--seeds=1]

speed       numbers a second of sync, async and ssp with one of four workers four times
            slower; workers are processes of Ray (requirements-ray.txt), and a step lasts
            at least --floor seconds, so that few cores can hold them
islands     the loss of DiLoCo by tokens, by updates and by time, with one of four islands
            four times slower: all wait for all, or each push is an update, and what is
            between. Islands take turns in this process, on a clock of whole steps. The
            outer learning rate is tuned for each.
seconds     numbers a second of the same islands as processes of Ray, each at its best
            outer rate: after islands

Adds a line for each run to results/asynchronous.jsonl, skips those that are there, and
fills in the tables of the page. What staleness costs: experiments.studies.staleness.
"""

import copy
import pathlib
from functools import partial

from absl import flags

from configs import fields
from configs.base import Experiment
from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.check import check
from experiments.studies.asynchronous.members import (
    EVERY,
    MERGES,
    MODES,
    OUTER_RATE,
    SLOW,
    base_config,
    merged,
    outer_middle,
    timed,
    uneven,
)
from experiments.studies.asynchronous.rates import best_place, place, rate_of, tune, tuning
from experiments.studies.asynchronous.runs import Bench
from experiments.studies.asynchronous.tables import (
    islands_table,
    seconds_table,
    speed_table,
)
from experiments.sweeps import pages
from experiments.sweeps.results import Line, measure_missing, read

join.define_flags()
PARTS = flags.DEFINE_list("parts", ["speed", "islands", "seconds"], "Parts of the study.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds of each member: 0, 1, ...", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 400, "Numbers of a run.", lower_bound=20)
ONLY = flags.DEFINE_list("only", [], "Names of members, as the results have them; all.")
FLOOR = flags.DEFINE_float("floor", 0.5, "Seconds of a fast worker for a number.")
RESULTS = flags.DEFINE_string(
    "results", "results/asynchronous.jsonl", "File of results, to which lines are added."
)
PAGE = pages.define_page("docs/questions/how-does-asynchronous-training-work.md")
WARM_UP = 8  # updates before seconds count: processes compile
POINTS = 6  # of the curve of a run of islands


def speed_head(mode: str, seed: int) -> Line:
    return {"part": "speed", "member": mode, "mode": mode, "floor": FLOOR.value} | {
        "seed": seed, "steps": STEPS.value,
    }  # fmt: skip


def islands_head(merge: str, rate: float, seed: int) -> Line:
    """Return what tells a run of islands from the others, by its outer rate."""
    return {"part": "islands", "member": merge, "rate": rate, "seed": seed} | {
        "steps": STEPS.value
    }


def seconds_head(merge: str, rate: float) -> Line:
    head = islands_head(merge, rate, 0)
    return head | {"part": "seconds", "floor": FLOOR.value}


def member_config(head: Line) -> Experiment:
    if head["part"] == "speed":
        member = uneven(head["mode"], head["floor"])
    else:
        member = merged(head["member"], head["rate"])
        member |= timed(head["floor"]) if head["part"] == "seconds" else {}
    given = {"seed": head["seed"], "steps": head["steps"]}
    return fields.override(copy.deepcopy(base_config()), member | given)


def measure(bench: Bench, head: Line) -> Line:
    """Train, and evaluate on all held-out rows."""
    config, steps = member_config(head), head["steps"]
    if head["part"] == "islands":
        found = bench.train(config, points=[steps * i // POINTS for i in range(1, POINTS)])
        curve = [point._asdict() for point in found.curve]
        return {"loss": found.loss, "now": found.now, "updates": found.updates} | {
            "curve": curve
        }
    # An island compiles in its first push.
    warm_up = WARM_UP if head["part"] == "speed" else len(SLOW) * EVERY
    found = bench.train(config, warm_up)
    return {
        "loss": found.loss,
        "numbers_per_second": found.numbers_per_second,
        "most_filled": found.most_filled,
    }


def run_part(part: str, file: pathlib.Path, bench: Bench) -> None:
    """Make the runs of a part that the file does not hold yet."""
    of = partial(measure, bench)
    if part == "speed":
        heads = [speed_head(mode, seed) for seed in range(SEEDS.value) for mode in MODES]
        measure_missing(file, [x for x in heads if wanted(x["member"])], of)
    for merge in filter(wanted, MERGES):
        head = partial(islands_head, merge)
        if part == "islands":
            tune(file, head, of, place(outer_middle(merge)), SEEDS.value)
        if part == "seconds" and (tried := tuning(read(file), head)):
            rate = rate_of(best_place(tried))
            measure_missing(file, [seconds_head(merge, rate)], of)


def wanted(member: str) -> bool:
    return not ONLY.value or member in ONLY.value


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        if unknown := set(PARTS.value) - {"speed", "islands", "seconds"}:
            raise ValueError(
                f"--parts={','.join(sorted(unknown))}: choose speed, islands, seconds"
            )
        join.start_jax()
        if PAGE.value:
            names = {"speed", "islands", "seconds"}
            pages.check_names(pathlib.Path(PAGE.value), names)
        check(member_config(speed_head("async", 0)))
        check(member_config(islands_head("async", OUTER_RATE, 0)))
    bench = Bench(base_config())
    for part in PARTS.value:
        run_part(part, file, bench)
    if PAGE.value:
        found = read(file)
        tables = {"speed": speed_table(found), "islands": islands_table(found)}
        pages.fill(pathlib.Path(PAGE.value), tables | {"seconds": seconds_table(found)})


if __name__ == "__main__":
    startup.run(main)
