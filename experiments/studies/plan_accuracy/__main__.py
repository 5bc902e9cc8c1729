"""Measure how wrong plans are: bytes, memory, seconds, the choice, and published runs.

python -m experiments.studies.plan_accuracy [--quick] [--seconds=0.5]
    [--parts=timed,speed,compiled,tpu,limit,absent,maxtext,device]

compiled  100 small configs under ten strategies on eight emulated devices: bytes against
          the ledger, state and temporaries against the compiled program
tpu       the cells of results/tpu.jsonl: memory, and whether it fits
timed     seconds of a step between two processes over links of four rates, of nine
          programs and four shapes, and how much slower the planned choice is than the best;
          needs Linux and root, and a machine on which nothing else runs. Each time, it
          measures the machine's constants first (experiments.calibrate), with --seconds for
          each point; the cells that follow are planned by them.
          By the plan it takes half an hour; every 72 cells, a shape, make a table
speed     seconds of planning, and of the command experiments.plan
limit     six models of four layers in a loop, compiled for absent TPUs, many of them
          within 15 % of a chip's memory; one or two minutes of a core for each, and needs
          requirements-aot.txt
absent    models of a few layers that are written out, for eight absent TPU v5e chips;
          minutes a cell
maxtext   published runs on TPU v5e
device    the GPU or TPU that is here: its constants by experiments.calibrate, then
          seconds and memory of ten configs, in about five minutes; not in the default

Adds lines to results/plan_accuracy.jsonl; a cell that is there is not measured again, so
the command may be stopped and started again. Then it makes the plans of all lines anew, and
fills in the tables of docs/planner.md. --quick takes one of seven cells.
"""

import itertools
import pathlib
import platform
import sys

from absl import flags

from experiments.processes import join, namespaces
from experiments.processes.files import json_line, write_whole
from experiments.processes.messages import say, user_errors
from experiments.processes.topology import check_libtpu, check_machine
from experiments.run import startup
from experiments.studies.plan_accuracy import maxtext
from experiments.studies.plan_accuracy.accelerator import (
    calibrated_device,
    device_cells,
    device_kind,
    on_device,
    sheet_of,
    with_devices,
)
from experiments.studies.plan_accuracy.cells import absent, compiled, replanned, tpu_lines
from experiments.studies.plan_accuracy.grid import (
    absent_cells,
    compiled_cells,
    timed_cells,
)
from experiments.studies.plan_accuracy.limits import limit_cells
from experiments.studies.plan_accuracy.speed import speed, speed_cells
from experiments.studies.plan_accuracy.tables import NAMES, PARTS, tables
from experiments.studies.plan_accuracy.timed import calibrated, timed, with_seconds
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write
from parallel.cost.machine import parse

CELLS = {
    "compiled": compiled_cells,
    "timed": timed_cells,
    "speed": speed_cells,
    "limit": limit_cells,
    "absent": absent_cells,
    "device": device_cells,
}
ONE_BY_ONE = {
    "speed": speed,
    "compiled": compiled,
    "limit": absent,
    "absent": absent,
    "device": on_device,
}
ANEW = ("tpu", "maxtext")  # arithmetic: their old lines are replaced
CHOSEN = flags.DEFINE_list("parts", list(PARTS), "Parts to measure.")
QUICK = flags.DEFINE_bool("quick", False, "Take one of seven cells.")
SECONDS = flags.DEFINE_float("seconds", 0.5, "Seconds of each point of the calibration.")
RESULTS = flags.DEFINE_string(
    "results", "results/plan_accuracy.jsonl", "File to which lines of JSON are added."
)
TPU = flags.DEFINE_string("tpu", "results/tpu.jsonl", "Results of experiments.studies.tpu.")
PAGE = define_page("docs/planner.md")
FEW = 7


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        for part in CHOSEN.value:
            if part not in CELLS and part not in ANEW:
                known = ", ".join([*CELLS, *ANEW])
                raise ValueError(f"--parts={part}: choose among {known}")
        if {"absent", "limit"}.intersection(CHOSEN.value):
            check_machine(sys.platform, platform.machine())
            check_libtpu()
        if "timed" in CHOSEN.value:
            namespaces.require()
        if "device" in CHOSEN.value:
            sheet_of(device_kind())
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), set(NAMES))
    join.leave_libtpu()
    join.use_eight_devices()
    for part in CHOSEN.value:
        measure(part, file)
    if PAGE.value:
        with user_errors():
            replace(file, with_devices(with_seconds(replanned(read(file)))))
            fill(pathlib.Path(PAGE.value), tables(read(file)))


def measure(part: str, file: pathlib.Path) -> None:
    """Measure what is missing of a part."""
    if part in ANEW:
        others = [x for x in read(file) if x["part"] != part]
        replace(file, [*others, *(maxtext.lines() if part == "maxtext" else tpu())])
        return
    cells = CELLS[part]()[:: FEW if QUICK.value else 1]
    if part == "device":
        kind = {"device": device_kind()}
        cells = [cell | kind for cell in cells]
        if not is_there({"part": "device machine"} | kind, read(file)):
            write(file, calibrated_device(SECONDS.value) | kind)
    missing = [cell for cell in cells if not is_there(cell, read(file))]
    if part == "timed":
        measure_seconds(missing, file)
        return
    for cell in missing:
        found = ONE_BY_ONE[part](cell)
        write(file, cell | found)
        say(f"{cell}: {found}")


def replace(file: pathlib.Path, lines: list[Line]) -> None:
    write_whole(file, "".join(map(json_line, lines)))


def measure_seconds(missing: list[Line], file: pathlib.Path) -> None:
    if missing:  # the machine of today, for these cells
        write(file, calibrated(SECONDS.value))
    for _, group in itertools.groupby(missing, lambda c: (c["shape"], c["plan"])):
        for cell, found in timed(list(group)):
            write(file, cell | found)
            say(f"{cell}: {found['seconds']:.3f} s")


def tpu() -> list[Line]:
    """Return the lines of the TPU cells of both slices."""
    every = read(pathlib.Path(TPU.value))
    found = []
    for topology in dict.fromkeys(x["topology"] for x in every):
        lines = {x["model"] + x["member"]: x for x in every if x["topology"] == topology}
        found += tpu_lines(list(lines.values()), parse(topology))
    return found


def is_there(cell: Line, lines: list[Line]) -> bool:
    return any(cell.items() <= line.items() for line in lines)


if __name__ == "__main__":
    startup.run(main)
