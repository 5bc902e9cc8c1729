"""Simulate who does what next under every policy, against the proven optimum.

python -m experiments.studies.balance [--instances=1000 --seed=0 --quick]

Adds lines to results/balance.jsonl: one for each kind of instance and condition, and one
for the tokens of devices on each kind of rows. Then fills in the tables of docs/balance.md
from all lines there, and draws its Gantt pictures. The search for optima takes most of the
time: about 3 seconds an instance on a quiet core. --quick is for trying it: few and small
instances, into no page.
"""

import pathlib

from absl import flags

from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.studies.balance.instances import CONDITIONS, KINDS
from experiments.studies.balance.lengths import CASES, measure_lengths
from experiments.studies.balance.pictures import gantt
from experiments.studies.balance.score import score
from experiments.studies.balance.tables import LENGTHS, SCORE, balance_tables
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, measure_missing, read

INSTANCES = flags.DEFINE_integer(
    "instances", 1000, "Instances, over all kinds and conditions together.", lower_bound=1
)
PIECES = flags.DEFINE_integer("pieces", 32, "Pieces of an instance.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 8, "Workers of an instance.", lower_bound=2)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the instances.")
SECONDS = flags.DEFINE_float(
    "seconds", 20.0, "Seconds after which the search for an optimum ends.", lower_bound=0
)
QUICK = flags.DEFINE_bool("quick", False, "2 small instances of each, into no page.")
RESULTS = flags.DEFINE_string(
    "results", "results/balance.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/balance.md")
PICTURES = {"balance-as-told": "as told", "balance-degrades": "degrades"}


def heads() -> list[Line]:
    cells = [(kind, condition) for condition in CONDITIONS for kind in KINDS]
    size = {"pieces": PIECES.value, "workers": WORKERS.value}
    each = -(-INSTANCES.value // len(cells))
    if QUICK.value:
        each, size = 2, {"pieces": 10, "workers": 3}
    scores = [
        {"study": SCORE, "member": f"{kind}, {condition}", "kind": kind}
        | {"condition": condition, **size, "instances": each, "seed": SEED.value}
        for kind, condition in cells
    ]
    lengths = [{"study": LENGTHS, "member": case} for case in CASES]
    return scores if QUICK.value else scores + lengths


def measure(head: Line) -> dict[str, float]:
    if head["study"] == LENGTHS:
        return measure_lengths(head["member"])
    return score(head, SECONDS.value)


def main() -> None:
    page = None if QUICK.value or not PAGE.value else pathlib.Path(PAGE.value)
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        if page:
            check_names(page, {"kinds", "conditions", "optimum", "live", "lengths"})
    measure_missing(file, heads(), measure)
    if page:
        with user_errors():
            fill(page, balance_tables(read(file)))
        for name, condition in PICTURES.items():
            (page.parent / f"{name}.png").write_bytes(gantt(condition, SEED.value))


if __name__ == "__main__":
    startup.run(main)
