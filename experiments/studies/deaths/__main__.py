"""Kill processes of a parameter server on Ray, and audit what is left of the run.

python -m experiments.studies.deaths --config=configs/tiny.py --workdir=runs/deaths \
    --config.steps=400 --instants=50

Trains with workers and shards in processes of Ray. At random updates (--seed) one of them,
or the process that trains, is killed with SIGKILL. If that was the one that trains, the
same command starts again. At the end the run is audited and replayed. Adds a line to
results/deaths.jsonl and fills in the table of its page; fails if a number was lost or
repeated, or if the replay differs.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

from absl import flags

from experiments.processes.children import die_with_parent
from experiments.processes.descendants import SERVER as SERVED
from experiments.processes.descendants import descendants
from experiments.processes.files import json_line
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.run.log import OF_SCHEDULE, SCHEDULE, read_metrics
from experiments.studies.deaths.tables import deaths_table
from experiments.sweeps import pages
from experiments.sweeps.results import read, write

CONFIG = startup.define_config()
WORKDIR = startup.define_workdir()
INSTANTS = flags.DEFINE_integer("instants", 50, "Kills in the run.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the instants and of who is killed.")
RESULTS = flags.DEFINE_string(
    "results", "results/deaths.jsonl", "File of results, to which a line is added."
)
PAGE = pages.define_page("docs/questions/how-do-parameter-servers-work.md")
SERVER = {
    "strategy": "parameter_server",
    "server.mode": "async",
    "server.pool": "ray",
    "data": "1",
}
POLL_SECONDS = 0.05


def main() -> None:
    with user_errors():
        config = startup.load_config(CONFIG)
        folder = startup.workdir(WORKDIR)
        if INSTANTS.value >= config.steps:
            raise ValueError(
                f"--instants={INSTANTS.value} needs more steps than --config.steps "
                f"{config.steps}; change one of them"
            )
    given = [x for x in sys.argv[1:] if x.startswith(("--config", "-config"))]
    served = [f"--config.parallel.{name}={value}" for name, value in SERVER.items()]
    command = [sys.executable, "-m", "experiments.train", *given, *served]
    rng = random.Random(SEED.value)
    instants = sorted(rng.sample(range(1, config.steps), INSTANTS.value))
    began = time.perf_counter()
    killed = killing(rng, instants, [*command, f"--workdir={folder}"], folder)
    audit = [sys.executable, "-m", "experiments.audit", f"--workdir={folder}", "--replay"]
    found = subprocess.run(audit, stdout=subprocess.PIPE, encoding="utf-8")
    line = {
        "killed": killed,
        "steps": config.steps,
        "seconds": time.perf_counter() - began,
        **json.loads(found.stdout),
    }
    write(pathlib.Path(RESULTS.value), line)
    if PAGE.value:
        table = deaths_table(read(pathlib.Path(RESULTS.value)))
        pages.fill(pathlib.Path(PAGE.value), {"deaths": table})
    say(json_line(line).strip())
    sys.exit(found.returncode)


def killing(
    rng: random.Random, instants: list[int], command: list[str], folder: pathlib.Path
) -> dict[str, int]:
    """Train, and kill at these updates; return how many of which kind were killed."""
    killed: Counter[str] = Counter()
    ends_with_us = partial(die_with_parent, signal.SIGKILL)
    driver = subprocess.Popen(command, preexec_fn=ends_with_us)
    while driver.poll() is None or driver.returncode < 0:
        if driver.returncode is not None:
            driver = subprocess.Popen(command, preexec_fn=ends_with_us)
        time.sleep(POLL_SECONDS)
        if not instants or last_update(folder) < instants[0]:
            continue
        kind = rng.choice([*SERVED, "driver"])
        victims = (
            [driver.pid] if kind == "driver" else descendants(driver.pid, SERVED[kind])
        )
        if not victims:  # they are being started; the next look will find them
            continue
        say(f"kill -9 of a {kind} at update {instants.pop(0)}")
        kill(rng.choice(victims))
        killed[kind] += 1
        if kind == "driver":
            driver.wait()
    if driver.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {driver.returncode}")
    return dict(killed)


def last_update(folder: pathlib.Path) -> int:
    lines = read_metrics(folder / SCHEDULE, names=OF_SCHEDULE)
    return lines[-1]["update"] if lines else 0


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    startup.run(main)
