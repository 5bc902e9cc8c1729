"""How much of a run's time is work, by the rate of faults, with and without copies.

python -m experiments.studies.goodput --config=configs/tiny.py --workdir=runs/goodput \
    [--between=60,300] [--copies=0,10] [--faults=6]

Trains in two processes that are killed at random instants (seeded, exponential gaps) and
started again. Checkpoints are as far apart as Daly's formula says (save_every=-1). With
copies, the state of each so many steps is held in memory as well, and a restart goes on
from there. A run ends after its last fault has been recovered from. Adds a line for each to
results/goodput.jsonl, skips those that are there, and fills in the table of its page.
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from absl import flags

from experiments.processes.fault_plans import planned
from experiments.processes.faults import AtSeconds, Drawn, Setting
from experiments.processes.files import whole_records, write_whole
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.run.survival import goodput
from experiments.run.survival.injection import LOG
from experiments.studies.soak.table import goodput_table
from experiments.studies.soak.tell import output_of, recovery
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write

CONFIG = startup.define_config()
WORKDIR = startup.define_workdir()
BETWEEN = flags.DEFINE_list("between", ["60", "300"], "Mean seconds between two faults.")
COPIES = flags.DEFINE_list("copies", ["0", "10"], "Steps between copies; 0: none.")
FAULTS = flags.DEFINE_integer("faults", 6, "Faults of each run.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the faults.", lower_bound=0)
RESULTS = flags.DEFINE_string(
    "results", "results/goodput.jsonl", "File of results, to which lines are added."
)
PAGE = define_page("docs/questions/how-are-failures-survived.md")
PROCESSES = 2
ENDLESS = 10**7  # steps: the run is ended by a signal
AFTER_SECONDS = 30.0  # of work after the last recovery
POLL_SECONDS = 0.5
USUAL = {"steps": ENDLESS, "eval_every": 0, "save_every": -1, "deadline": 60}
SPEC = """from experiments.processes.faults import AtSeconds, Drawn


def get_faults():
    return [Drawn(("kill",), {number}, AtSeconds({between}), {seed})]
"""


def command(head: Line, workdir: pathlib.Path, spec: pathlib.Path) -> list[str]:
    given = [a for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    usual = [f"--config.{name}={value}" for name, value in USUAL.items()]
    return [
        *(sys.executable, "-m", "experiments.launch", f"--processes={PROCESSES}"),
        *(f"--restarts={2 * head['faults']}", f"--copies={head['copies']}", "--"),
        *(*given, *usual, f"--workdir={workdir}", f"--faults={spec}"),
    ]


def measure(head: Line, folder: pathlib.Path) -> Line:
    """Train until all faults are over. A run that was interrupted begins anew."""
    workdir = folder / "-".join(f"{name}{x:g}" for name, x in head.items())
    shutil.rmtree(workdir, ignore_errors=True)
    spec = workdir.with_suffix(".py")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(
        spec, SPEC.format(number=head["faults"], between=head["between"], seed=head["seed"])
    )
    with output_of(workdir).open("ab") as out:
        process = subprocess.Popen(
            command(head, workdir, spec), stdout=out, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None and not is_over(workdir, head):
                time.sleep(POLL_SECONDS)
        finally:
            process.terminate()
            code = process.wait()
    if code:
        raise ValueError(f"{workdir} ended with {code}; see {output_of(workdir)}")
    return figures(workdir)


def is_over(workdir: pathlib.Path, head: Line) -> bool:
    """Tell whether the last fault has happened, and some work was done after it."""
    if len(whole_records(workdir / LOG)) < head["faults"]:
        return False
    spec = Drawn(("kill",), head["faults"], AtSeconds(head["between"]), head["seed"])
    last = planned([spec], Setting(PROCESSES, PROCESSES, 1, 1))[-1].at.seconds
    lives = goodput.lives_of(whole_records(workdir / goodput.FILE))
    began = lives[0].began + lives[0].marks[0]["elapsed"]
    life = lives[-1]
    start = life.began + life.marks[0]["elapsed"]
    return start > began + last and time.time() > start + AFTER_SECONDS


def figures(workdir: pathlib.Path) -> Line:
    found = recovery(workdir)
    restarts = max(found["restarts"], 1)
    return found | {"lost_each": round(found["seconds"].get("lost", 0.0) / restarts, 2)}


def main() -> None:
    with user_errors():
        startup.load_config(CONFIG)
        folder = startup.workdir(WORKDIR)
        heads = [
            {
                "between": float(between), "copies": int(copies), "faults": FAULTS.value,
                "seed": SEED.value,
            }
            for between in BETWEEN.value
            for copies in COPIES.value
        ]  # fmt: skip
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"goodput"})
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    file = pathlib.Path(RESULTS.value)
    for head in heads:
        if any(head.items() <= line.items() for line in read(file)):
            continue
        with user_errors():
            line = head | measure(head, folder)
        write(file, line)
        say(json.dumps(line))
    if PAGE.value:
        fill(pathlib.Path(PAGE.value), {"goodput": goodput_table(read(file))})


if __name__ == "__main__":
    startup.run(main)
