"""Let many faults of a seed happen to a run of two processes, and see what is left of it.

python -m experiments.studies.soak --seed=1 --faults=30 --workdir=runs/soak \
    [--config=configs/tiny.py --config.model.width=64 ...]

Trains once without faults and once with them, each in a folder of its own below --workdir,
from rows of its own. The same command goes on where it was interrupted. Writes soak.json
there: the kinds of faults, rows lost or repeated, what was named, whether both runs end
with the same bits, the seconds of recovery, and the goodput beside Daly's prediction.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

from absl import flags

from experiments.processes.faults import KINDS, AtStep, Drawn, Setting, check_kinds, planned
from experiments.processes.files import write_whole
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.studies.soak.table import soak_table
from experiments.studies.soak.tell import tell
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import read, write

CONFIG = startup.define_config()
WORKDIR = startup.define_workdir()
SEED = flags.DEFINE_integer("seed", 0, "Seed of the faults.", lower_bound=0)
FAULTS = flags.DEFINE_integer("faults", 20, "How many faults happen.", lower_bound=1)
# The flip of a low bit of a gradient is not noticed: experiments.studies.flips has figures.
USUAL = [kind for kind in KINDS if kind != "flipped_gradient"]
ONLY = flags.DEFINE_list("kinds", USUAL, "Kinds of faults, equally often.")
EVERY = flags.DEFINE_integer(
    "every", 30, "Steps between two faults, in the mean.", lower_bound=1
)
RESULTS = flags.DEFINE_string(
    "results", "", "File of results, to which a line of JSON is added; empty: none."
)
PAGE = define_page("")
PROCESSES = 2
CHECK_EVERY = 5
DEADLINE = 20  # seconds
AFTER = 20  # steps after the last fault, so that each has met a save
DAMAGED_ROWS = "its CRC-32C is not the one that was written"

SPEC = """from experiments.processes.faults import AtStep, Drawn


def get_faults():
    return [Drawn({kinds!r}, {number}, AtStep({every}), {seed})]
"""


def num_steps() -> int:
    """Return the steps of a run that meets all faults; what they hit changes no time."""
    spec = Drawn(tuple(ONLY.value), FAULTS.value, AtStep(EVERY.value), SEED.value)
    return planned([spec], Setting(PROCESSES, PROCESSES, 1, 1))[-1].at.step + AFTER


def given_overrides() -> list[str]:
    """Return the flags that name the config and change it."""
    return [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]


def launch(workdir: pathlib.Path, cache: pathlib.Path, steps: int, *more: str) -> int:
    """Train to the end, or to a failure; add its output to a file and return its code."""
    command = [
        *(sys.executable, "-m", "experiments.launch", f"--processes={PROCESSES}"),
        *(f"--restarts={FAULTS.value}", "--", *given_overrides()),
        *(f"--workdir={workdir}", f"--config.data.cache={cache}"),
        *(f"--config.steps={steps}", f"--config.check_every={CHECK_EVERY}"),
        *(f"--config.deadline={DEADLINE}", "--config.save_every=10", *more),
    ]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with output_of(workdir).open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            process.terminate()  # if this command was interrupted


def output_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_suffix(".log")


def survive(workdir: pathlib.Path, cache: pathlib.Path, steps: int, *more: str) -> None:
    """Train to the end; do what the message says where rows are damaged.

    Raises RuntimeError if the run ends otherwise.
    """
    while launch(workdir, cache, steps, *more):
        said = output_of(workdir).read_text(encoding="utf-8", errors="replace")
        last = said[said.rfind("error: ") :]
        if DAMAGED_ROWS not in last:
            raise RuntimeError(f"{workdir} ended, see {output_of(workdir)}: {last[:500]}")
        say("prepared rows were damaged; they are made anew")
        shutil.rmtree(cache / "rows")


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        folder = startup.workdir(WORKDIR)
        check_kinds(ONLY.value)
        steps = num_steps()
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"soak"})
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder.mkdir(parents=True, exist_ok=True)
    spec = folder / "get_faults.py"
    values = {"kinds": tuple(ONLY.value), "number": FAULTS.value, "every": EVERY.value}
    write_whole(spec, SPEC.format(**values, seed=SEED.value))
    plain, faulty = folder / "plain", folder / "faulty"
    say(f"{steps} steps without faults")
    survive(plain, folder / "rows-plain", steps)
    say(f"{steps} steps with {FAULTS.value} faults; {output_of(faulty)} tells them")
    survive(faulty, folder / "rows-faulty", steps, f"--faults={spec}")
    said = output_of(faulty).read_text(encoding="utf-8", errors="replace")
    found = {"seed": SEED.value, "steps": steps} | tell(
        faulty, plain, said, config.data.batch_size
    )
    write_whole(folder / "soak.json", json.dumps(found, indent=2) + "\n")
    if RESULTS.value:
        write(pathlib.Path(RESULTS.value), found)
    if PAGE.value:
        lines = read(pathlib.Path(RESULTS.value)) if RESULTS.value else [found]
        fill(pathlib.Path(PAGE.value), {"soak": soak_table(lines)})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    startup.run(main)
