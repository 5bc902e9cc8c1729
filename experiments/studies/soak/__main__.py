"""Let many faults of a seed happen to two runs, and see what is left of them.

python -m experiments.studies.soak --seed=1 --faults=300 [--workdir=runs/soak]
    [--config=configs/tiny.py --config.model.width=64 ...]

Half of the faults hit synchronous training in two processes, joined by links where this
machine has them (Linux and root); half a parameter server with workers and shards in
processes of Ray. The synchronous run is trained without faults as well, and must end with
the same bits; the other is audited and replayed. Each run has rows and a folder of its own
below --workdir, and a tiny model of its own, unless flags say otherwise. The same command
goes on where it was interrupted. Writes soak.json there: the kinds of faults, rows lost or
repeated, damage that was accepted, the seconds of recovery, and the goodput beside Daly's
prediction.
"""

import functools
import importlib.util
import json
import pathlib
import shutil
import signal
import subprocess
import sys

from absl import flags

from experiments.processes import namespaces
from experiments.processes.fault_plans import check_kinds, planned
from experiments.processes.faults import KINDS, OF_LINKS, OF_SERVER, AtStep, Drawn, Setting
from experiments.processes.files import write_whole
from experiments.processes.messages import say, user_errors
from experiments.run import startup
from experiments.run.workdir import read_config
from experiments.studies.soak.table import soak_table
from experiments.studies.soak.tell import output_of, tell_server, tell_sync, together
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write

ROOT = pathlib.Path(__file__).parents[3]
TINY = ROOT / "configs/tiny.py"
startup.define_config()
WORKDIR = startup.define_workdir()
SEED = flags.DEFINE_integer("seed", 0, "Seed of the faults.", lower_bound=0)
FAULTS = flags.DEFINE_integer(
    "faults", 20, "How many faults happen, over all runs.", lower_bound=2
)
ONLY = flags.DEFINE_list("kinds", list(KINDS), "Kinds of faults, equally often.")
RUNS = flags.DEFINE_list("runs", ["sync", "server"], "Which runs meet them.")
EVERY = flags.DEFINE_integer(
    "every", 10, "Steps between two faults, in the mean.", lower_bound=1
)
RESULTS = flags.DEFINE_string(
    "results", "", "File of results, to which lines of JSON are added; empty: none."
)
PAGE = define_page("")
PROCESSES = 2
COPIES = 15  # steps between copies in memory; of the checkpoints, some are newer
AFTER = 20  # steps after the last fault, so that each has met a save
DAMAGED_ROWS = "its CRC-32C is not the one that was written"

TEXT = "text"  # a copy of these pages, which may change while the soak goes on
PAGES = ROOT / "docs/questions"
SMALL = {
    "data.source": "text", "data.vocab_size": 512,
    "data.seq_len": 32, "data.batch_size": 16, "model.width": 32, "model.num_layers": 2,
    "model.num_heads": 2, "optim.warmup_steps": 10,
}  # fmt: skip
# Every second evaluated, compared and saved is one that no fault hits.
USUAL = {
    "check_every": 5, "deadline": 8, "save_every": 10, "eval_every": 0, "eval_batches": 2
}  # fmt: skip
SERVER = {
    "parallel.strategy": "parameter_server", "parallel.data": 1,
    "parallel.server.mode": "async", "parallel.server.pool": "ray",
    "parallel.server.workers": 2, "parallel.server.shards": 2,
}  # fmt: skip
SPEC = """from experiments.processes.faults import AtStep, Drawn


def get_faults():
    return [Drawn({kinds!r}, {number}, AtStep({every}), {seed})]
"""
LINKS = """from experiments.processes.network.changes import Change
from experiments.processes.network.link import Link


def get_links():
    return [Change(Link())]
"""


@functools.cache
def kinds_of(run: str) -> tuple[str, ...]:
    """Return the kinds of faults that a run can meet on this machine.

    The flip of a low bit of a gradient is not noticed: experiments.studies.flips has
    figures.
    """
    not_here = {"flipped_gradient"}
    of_links = {name for name, kind in KINDS.items() if kind in OF_LINKS}
    of_server = {name for name, kind in KINDS.items() if kind in OF_SERVER}
    if run == "server":
        # A process that trains alone has nobody who waits for it, and no copies.
        not_here |= of_links | {"stop", "flipped_parameter", "flipped_frame"}
    else:
        not_here |= of_server | (of_links if namespaces.lacking() else set())
    return tuple(kind for kind in ONLY.value if kind not in not_here)


def share(run: str) -> int:
    """Return how many of the faults a run meets."""
    runs = RUNS.value
    return FAULTS.value // len(runs) + (runs.index(run) < FAULTS.value % len(runs))


def spec(run: str) -> Drawn:
    return Drawn(kinds_of(run), share(run), AtStep(EVERY.value), SEED.value)


def num_steps(run: str) -> int:
    """Return the steps of a run that meets all faults; what they hit changes no time."""
    setting = Setting(PROCESSES, PROCESSES, 1, 1)
    return planned([spec(run)], setting)[-1].at.step + AFTER


def command(run: str, workdir: pathlib.Path, cache: pathlib.Path) -> list[str]:
    given = [a for a in sys.argv[1:] if a.startswith("--config.")]
    files = [a for a in sys.argv[1:] if a.startswith("--config=")]
    text = {"data.path": workdir.parent / TEXT}
    config = files or [f"--config={TINY}", *as_flags(SMALL | text)]
    processes = 1 if run == "server" else PROCESSES
    joined = run == "sync" and not namespaces.lacking()
    return [
        *(sys.executable, "-m", "experiments.launch", f"--processes={processes}"),
        *([f"--links={workdir.parent / 'links.py'}"] if joined else []),
        *([f"--copies={COPIES}"] if run == "sync" else []),
        *(f"--restarts={FAULTS.value}", "--", *config, *as_flags(USUAL), *given),
        *(as_flags(SERVER) if run == "server" else []),
        *(f"--workdir={workdir}", f"--config.data.cache={cache}"),
        f"--config.steps={num_steps(run)}",
    ]


def as_flags(values: dict[str, object]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in values.items()]


def launch(workdir: pathlib.Path, given: list[str]) -> int:
    """Train to the end, or to a failure; add its output to a file and return its code."""
    with output_of(workdir).open("ab") as out:
        process = subprocess.Popen(given, stdout=out, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            process.terminate()  # if this command was interrupted


def survive(run: str, workdir: pathlib.Path, *more: str) -> None:
    """Train to the end; do what the message says where rows are damaged.

    Raises RuntimeError if the run ends otherwise.
    """
    cache, log = cache_of(workdir), output_of(workdir)
    say(f"{workdir}: {num_steps(run)} steps; {log} has what it says")
    before = log.stat().st_size if log.exists() else 0
    while launch(workdir, [*command(run, workdir, cache), *more]):
        said = log.read_bytes()[before:].decode(errors="replace")
        before = log.stat().st_size
        if DAMAGED_ROWS not in said:
            raise RuntimeError(f"{workdir} ended, see {log}: {said[-500:]}")
        say("prepared rows were damaged; they are made anew")
        shutil.rmtree(cache / "rows")


def cache_of(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"rows-{workdir.name}")


def soak(run: str, folder: pathlib.Path) -> Line:
    """Let a run meet its faults; return its figures."""
    file = folder / f"faults_{run}.py"
    values = spec(run)
    write_whole(
        file,
        SPEC.format(
            kinds=values.kinds, number=values.number, every=EVERY.value, seed=values.seed
        ),
    )
    workdir = folder / run
    if run == "sync":
        survive(run, folder / "plain")
    survive(run, workdir, f"--faults={file}")
    rows = read_config(workdir).data.batch_size
    if run == "sync":
        found = tell_sync(workdir, folder / "plain", rows)
    else:
        # The replay reads rows that were damaged after the run had read them.
        shutil.rmtree(cache_of(workdir) / "rows", ignore_errors=True)
        audit = [sys.executable, "-m", "experiments.audit", f"--workdir={workdir}"]
        told = subprocess.run(
            [*audit, "--replay"], stdout=subprocess.PIPE, encoding="utf-8"
        )
        found = tell_server(workdir, json.loads(told.stdout), rows)
    return {"run": run, "seed": SEED.value, **found}


def check() -> pathlib.Path:
    """Raise ValueError for what cannot be; return the folder."""
    check_kinds(ONLY.value)
    for run in RUNS.value:
        if run not in ("sync", "server"):
            raise ValueError(f"--runs={run}: choose among sync, server")
        if not kinds_of(run):
            raise ValueError(f"--kinds={','.join(ONLY.value)}: none of them can hit {run}")
    if "server" in RUNS.value and not importlib.util.find_spec("ray"):
        raise ValueError("a server needs Ray: pip install -r requirements-ray.txt")
    if PAGE.value:
        check_names(pathlib.Path(PAGE.value), {"soak"})
    if WORKDIR.value:
        return startup.workdir(WORKDIR)
    return pathlib.Path(f"runs/soak-{SEED.value}-{FAULTS.value}")


def main() -> None:
    with user_errors():
        folder = check()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder.mkdir(parents=True, exist_ok=True)
    if namespaces.lacking():
        say(f"no fault of a link happens: that needs {namespaces.lacking()}")
    write_whole(folder / "links.py", LINKS)
    if not (folder / TEXT).exists():
        shutil.copytree(PAGES, folder / TEXT)
    lines = [soak(run, folder) for run in RUNS.value]
    found = together(lines) | {"seed": SEED.value, "runs": lines}
    write_whole(folder / "soak.json", json.dumps(found, indent=2) + "\n")
    if RESULTS.value:
        file = pathlib.Path(RESULTS.value)
        for line in lines:
            head = {name: line[name] for name in ("run", "seed", "faults")}
            if not any(head.items() <= other.items() for other in read(file)):
                write(file, line)
    if PAGE.value:
        lines = read(pathlib.Path(RESULTS.value)) if RESULTS.value else lines
        fill(pathlib.Path(PAGE.value), {"soak": soak_table(lines)})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    startup.run(main, config=str(TINY))
