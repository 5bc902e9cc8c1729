"""Runs whose parallelism changes on the way, beside one that never changes.

python -m experiments.studies.phases --devices=8 [--steps=300] [--seeds=1]

Each run has three phases of equal length, on the same batches as the others. Adds a line
for each run to results/phases.jsonl, skips those that are there, fills in the table of the
page and draws its picture.
"""

import pathlib
import tempfile

import jax
from absl import flags

from experiments.processes import join
from experiments.processes.messages import user_errors
from experiments.run import startup
from experiments.run.check import check_phases
from experiments.run.log import read_metrics
from experiments.run.phases.builder import Builder
from experiments.run.phases.driver import train_phases
from experiments.run.phases.phase import phases_of
from experiments.run.summary import read_summary
from experiments.run.survival.clock import Clock
from experiments.studies.phases.members import MEMBERS, member_config
from experiments.studies.phases.tables import change_table, picture
from experiments.sweeps import pages
from experiments.sweeps.results import Line, measure_missing, read
from lm.data.prepare import prepare

join.define_flags()
STEPS = flags.DEFINE_integer("steps", 300, "Updates of a run.", lower_bound=30)
SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds of each run: 0, 1, ...", lower_bound=1)
RESULTS = flags.DEFINE_string(
    "results", "results/phases.jsonl", "File of results, to which lines are added."
)
PAGE = pages.define_page("docs/questions/how-does-parallelism-change-during-a-run.md")
PICTURE = "phases.png"  # in docs/


def measure(head: Line) -> Line:
    """Train; return the loss of each step, and that of all held-out rows."""
    config = member_config(head)
    phases, meshes, data = phases_of(config), check_phases(config), prepare(config.data)
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        builder = Builder(workdir, data, Clock(), meshes, [None] * len(phases))
        train_phases(phases, workdir, builder)
        records = read_metrics(workdir / "metrics.jsonl")
        loss = read_summary(workdir)["val_loss"]
    curve = [record["loss"] for record in records if record["split"] == "train"]
    return {"loss": loss, "curve": curve}


def main() -> None:
    file = pathlib.Path(RESULTS.value)
    heads = [
        {"member": member, "seed": seed, "steps": STEPS.value}
        for seed in range(SEEDS.value)
        for member in MEMBERS
    ]
    with user_errors():
        join.start_jax()
        if jax.device_count() % 8:
            raise ValueError(
                f"this study needs 8 devices, and there are {jax.device_count()}; give "
                "--devices=8"
            )
        if PAGE.value:
            pages.check_names(pathlib.Path(PAGE.value), {"changes"})
        for head in heads:
            check_phases(member_config(head))
    measure_missing(file, heads, measure)
    if PAGE.value:
        page, lines = pathlib.Path(PAGE.value), read(file)
        shown = f"![Losses by step, and their distances](../{PICTURE})"
        pages.fill(page, {"changes": f"{change_table(lines)}\n\n{shown}"})
        (page.parents[1] / PICTURE).write_bytes(picture(lines))


if __name__ == "__main__":
    startup.run(main)
