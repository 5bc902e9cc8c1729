"""Seconds and bytes of a step over links that are far, slow and lossy.

python -m experiments.studies.links --config=configs/tiny.py [--quick] \
    [--only=shard_map,ring] [--batch_size=32] [--congestion=reno] [--check]

Needs Linux and root. Four processes, each in its own network namespace, take steps of each
member; the links between them change in between (experiments/processes/network). Adds a
line for each member and cell of the grid to results/links.jsonl, skips those that are
there, and fills in the tables of docs/links.md.

--quick takes a part of the grid. --check compares the emulated network with theory first,
and ends with exit code 1 if it does not keep its word. By default a host has one row a
step, so that the exchange is what is timed; on few cores, the computation of a large batch
would hide it.
"""

import pathlib
import sys

from absl import flags

from experiments.processes import namespaces
from experiments.processes.linked import workers
from experiments.processes.messages import say, user_errors
from experiments.processes.network.emulator import machine_congestion, network
from experiments.run import startup
from experiments.studies.links.cells import (
    GRID,
    HOSTS,
    QUICK,
    TIMED,
    TIMED_EVERY,
    Cell,
    apply,
)
from experiments.studies.links.check import check_all
from experiments.studies.links.tables import link_tables
from experiments.sweeps.members import as_flags
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write

CONFIG = flags.DEFINE_string("config", "configs/tiny.py", "Config file of all members.")
ONLY = flags.DEFINE_list("only", list(TIMED), "Names of the members to time.")
IS_QUICK = flags.DEFINE_bool("quick", False, "Time a part of the grid.")
IS_CHECKED = flags.DEFINE_bool("check", False, "Compare the network with theory first.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", HOSTS, "Rows of a step, of all hosts together.", lower_bound=HOSTS
)
CONGESTION = flags.DEFINE_string(
    "congestion", "", "TCP's control of congestion, such as reno; empty: the machine's."
)
RESULTS = flags.DEFINE_string(
    "results", "results/links.jsonl", "File of results, to which lines of JSON are added."
)
CURVES = flags.DEFINE_string(
    "curves",
    "results/two_devices.jsonl",
    "File of results with the members' losses by step (experiments.studies.strategies).",
)
PAGE = define_page("docs/links.md")
STEPS = 3  # that are timed; one before them is not
LONG = 10  # seconds of a step that is timed once


def measure(member: str, cells: list[Cell], file: pathlib.Path) -> None:
    """Time the steps of one member over the links of each cell; write each line."""
    overrides = TIMED[member] | {"data.batch_size": BATCH_SIZE.value}
    every = overrides.get("parallel.local.every", 0)
    if every:  # whole rounds of H steps, the last step with a meeting
        overrides |= {"parallel.local.every": TIMED_EVERY}
    untimed, usual = (TIMED_EVERY, TIMED_EVERY) if every else (1, STEPS)
    config_flags = [f"--config={CONFIG.value}", *as_flags(overrides)]
    with (
        network(HOSTS, congestion=CONGESTION.value) as net,
        workers(HOSTS, config_flags) as (started, ledger_bytes),
    ):
        started.turn(2 * untimed)
        for cell in cells:
            apply(net, cell)
            before = started.turn(untimed)[0]["seconds"]
            timed = 1 if not every and before[0] > LONG else usual
            net.lateness()
            turns = started.turn(timed)
            line = {
                **head(member, cell),
                "seconds": [round(x, 4) for x in turns[0]["seconds"]],
                "ledger_bytes": round(ledger_bytes),
                "sent": round(sum(turn["sent"] for turn in turns) / HOSTS / timed),
                "again": round(sum(turn["again"] for turn in turns) / HOSTS / timed, 1),
                "late_ms": round(net.lateness() * 1000, 2),
            }
            write(file, line)
            say(f"{member}, {cell}: {line['seconds']} s")


def head(member: str, cell: Cell) -> Line:
    return {
        "member": member,
        **cell._asdict(),
        "batch_size": BATCH_SIZE.value,
        "congestion": CONGESTION.value or machine_congestion(),
    }


def check_network(file: pathlib.Path) -> bool:
    """Compare the network with theory, write and print the lines; tell whether all fit."""
    lines = check_all()
    for line in lines:
        write(file, line)
        say(f"{line['check']}: {line['ideal']} asked for, {line['found']} found")
    return all(line["fits"] for line in lines)


def fill_page(file: pathlib.Path) -> None:
    if PAGE.value:
        with user_errors():
            tables = link_tables(read(file), read(pathlib.Path(CURVES.value)))
            fill(pathlib.Path(PAGE.value), tables)


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        for name in ONLY.value:
            if name not in TIMED:
                raise ValueError(f"--only={name}: choose among {', '.join(TIMED)}")
        namespaces.require()
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), set(link_tables([], [])))
    if IS_CHECKED.value and not check_network(file):
        fill_page(file)
        sys.exit(1)
    lines = read(file)
    for member in ONLY.value:
        cells = [
            cell
            for cell in (QUICK if IS_QUICK.value else GRID)
            if not any(head(member, cell).items() <= line.items() for line in lines)
        ]
        if cells:
            measure(member, cells, file)
    fill_page(file)


if __name__ == "__main__":
    startup.run(main)
