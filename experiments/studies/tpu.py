"""Compile models for absent TPUs under every strategy: memory, bytes sent, does it fit.

python -m experiments.studies.tpu [--only=fsdp,tensor] [--models=gpt2_small]
    [--topologies=tpu-v5e:2x4] [--again]

Needs requirements-aot.txt. Each cell is `experiments.measure --topology` in a process of
its own, one after the other; a cell of a large model takes minutes. Adds lines to
results/tpu.jsonl as it goes. A cell that is there is not compiled again, except with
--again, so the command may be stopped and started again. Then it fills in the tables of
docs/questions/will-it-run-on-my-tpu.md.
"""

import pathlib
import platform
import sys

import jax
from absl import flags

from configs.sweeps.combine import Member
from configs.sweeps.strategies import MEMBERS
from experiments.planning.compiled import measure_absent
from experiments.processes import join
from experiments.processes.messages import say, user_errors
from experiments.processes.topology import check_libtpu, check_machine, topology_name
from experiments.run import startup
from experiments.sweeps.members import known
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write
from experiments.sweeps.tpu_tables import (
    CONFIGS,
    SLICES,
    STRATEGIES,
    latest,
    place,
    shown,
    tables,
)

ONLY = flags.DEFINE_list("only", STRATEGIES, "Names of the members to compile.")
MODELS = flags.DEFINE_list("models", CONFIGS, "Names of files in configs/.")
TOPOLOGIES = flags.DEFINE_list("topologies", SLICES, "Topologies of 8 chips.")
AGAIN = flags.DEFINE_bool("again", False, "Compile also the cells that are there.")
RESULTS = flags.DEFINE_string(
    "results", "results/tpu.jsonl", "File of results, to which lines of JSON are added."
)
PAGE = define_page("docs/questions/will-it-run-on-my-tpu.md")
MICROBATCHES = "parallel.accumulation"


def cells() -> list[Line]:
    return [
        {"model": m, "topology": t, "member": member, "jax": jax.__version__}
        for t in TOPOLOGIES.value
        for m in MODELS.value
        for member in ONLY.value
    ]


def overrides(cell: Line) -> Member:
    """Return the member's overrides; a model that needs more microbatches keeps its own."""
    member = dict(MEMBERS[cell["member"]])
    own = startup.read_config_file(f"configs/{cell['model']}.py").parallel.accumulation
    return member | {MICROBATCHES: max(own, member.get(MICROBATCHES, 1))}


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    with user_errors():
        check_machine(sys.platform, platform.machine())
        check_libtpu()
        known(ONLY.value)
        for topology in TOPOLOGIES.value:
            topology_name(topology)
        for model in MODELS.value:
            startup.read_config_file(f"configs/{model}.py")
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), set(map(place, SLICES)))
    join.leave_libtpu()
    there = latest(read(file))
    for cell in cells():
        key = (cell["topology"], cell["model"], cell["member"])
        if AGAIN.value or there.get(key, {}).get("jax") != cell["jax"]:
            line = measure_absent(cell["model"], cell["topology"], overrides(cell))
            write(file, cell | line)
            say(f"{' '.join(key)}: {shown(line)}")
    if PAGE.value:
        fill(pathlib.Path(PAGE.value), tables(read(file)))


if __name__ == "__main__":
    startup.run(main)
