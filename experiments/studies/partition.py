"""What the processes of a run do when a link between them is cut.

python -m experiments.studies.partition [--cuts='1 and 2'] [--seconds=120] -- \
    --config=configs/tiny.py --config.parallel.strategy=shard_map

Needs Linux and root. Flags after -- are those of experiments.train. Three processes, each
in a network namespace, train; after some steps a link is cut. Adds a line for each cut to
results/partition.jsonl: when each process ended, and what it said.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from functools import partial

import jax
from absl import app, flags

from experiments.processes import namespaces
from experiments.processes.children import end, settle
from experiments.processes.messages import user_errors
from experiments.processes.network.emulator import Network, network
from experiments.studies.links.tables import partition_table
from experiments.sweeps.pages import check_names, define_page, fill
from experiments.sweeps.results import Line, read, write

HOSTS, PORT = 3, 7777
# name -> the directions that are cut, and seconds until they are mended (0: never)
CUTS: dict[str, tuple[list[tuple[int, int]], float]] = {
    "0 and 1": ([(0, 1), (1, 0)], 0),  # process 0 is the coordinator of JAX
    "1 and 2": ([(1, 2), (2, 1)], 0),
    "1 to 2 alone": ([(1, 2)], 0),
    "2 and all others": ([(0, 2), (2, 0), (1, 2), (2, 1)], 0),
    "1 and 2, mended after 5 s": ([(1, 2), (2, 1)], 5),
}
CHOSEN = flags.DEFINE_list("cuts", list(CUTS), "Which links to cut, each in its own run.")
SECONDS = flags.DEFINE_integer(
    "seconds", 120, "Seconds after the cut to wait for the processes.", lower_bound=10
)
RESULTS = flags.DEFINE_string(
    "results", "results/partition.jsonl", "File of results, to which lines are added."
)
PAGE = define_page("docs/links.md")
START_SECONDS = 600  # for the first steps; on a busy machine compiling takes long
FIRST_STEPS = 3
# What tells why a process ended, if no error of our own does: JAX's words, then any.
SIGNS = ("heartbeat", "Terminating process", "Error")


def start(index: int, arguments: list[str], folder: pathlib.Path) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "experiments.train", *arguments),
        *(f"--workdir={folder}/run", "--devices=1", f"--num_processes={HOSTS}"),
        *(f"--coordinator={namespaces.address(0)}:{PORT}", f"--process_id={index}"),
    ]
    with (folder / f"{index}.log").open("wb") as log:
        return subprocess.Popen(
            namespaces.inside(index, command),
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(settle, index, HOSTS),
        )


def steps(folder: pathlib.Path) -> int:
    """Return how many steps the run has logged."""
    file = folder / "run/metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    # The last line may be half written.
    return max([json.loads(x)["step"] for x in lines if x.endswith("}")], default=0)


def wait_for_steps(folder: pathlib.Path, processes: list[subprocess.Popen]) -> None:
    """Wait until the run trains; ValueError, with its own message, if it ends before."""
    deadline = time.monotonic() + START_SECONDS
    while steps(folder) < FIRST_STEPS:
        ended = [i for i, process in enumerate(processes) if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            said = last_words(folder / f"{(ended or [0])[0]}.log")
            raise ValueError(f"the run did not come to step {FIRST_STEPS}: {said}")
        time.sleep(0.2)


def last_words(log: pathlib.Path) -> str:
    """Return the line that says why a process ended: its error, or the last it wrote."""
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    own = [line for line in lines if line.startswith("error: ")]
    signed = [line for sign in SIGNS for line in lines if sign in line]
    said = (own or signed or lines[-1:] or [""])[0]
    return said.rpartition("] ")[2][:300]  # without the place in C++


def cut(net: Network, name: str, processes: list[subprocess.Popen]) -> list[float | None]:
    """Cut and perhaps mend links; return after how many seconds each process has ended."""
    directions, mended = CUTS[name]
    for a, b in directions:
        net.cut(a, b, one_way=True)
    began = time.monotonic()
    ended: list[float | None] = [None] * HOSTS
    is_cut = True
    while None in ended and time.monotonic() - began < SECONDS.value:
        if mended and is_cut and time.monotonic() - began > mended:
            for a, b in directions:
                net.mend(a, b, one_way=True)
            is_cut = False
        for i, process in enumerate(processes):
            if ended[i] is None and process.poll() is not None:
                ended[i] = round(time.monotonic() - began, 1)
        time.sleep(0.05)
    return ended


def measure(name: str, arguments: list[str]) -> Line:
    with tempfile.TemporaryDirectory() as held, network(HOSTS) as net:
        folder, processes = pathlib.Path(held), []
        try:
            processes += [start(i, arguments, folder) for i in range(HOSTS)]
            wait_for_steps(folder, processes)
            before = steps(folder)
            ended = cut(net, name, processes)
            codes = [process.poll() for process in processes]
            more = steps(folder) - before
            said = [
                "" if seconds is None else last_words(folder / f"{i}.log")
                for i, seconds in enumerate(ended)
            ]
        finally:
            end(processes, 0)
    return {"ended": ended, "codes": codes, "said": said, "more_steps": more}


def given(arguments: list[str], field: str) -> str:
    """Return what the flags say of a field of the config; empty: nothing."""
    start = f"--config.{field}="
    found = [x.removeprefix(start) for x in arguments if x.startswith(start)]
    return found[-1] if found else ""


def main(argv: list[str]) -> None:
    file, arguments = pathlib.Path(RESULTS.value), argv[1:]
    with user_errors():
        for name in CHOSEN.value:
            if name not in CUTS:
                raise ValueError(f"--cuts={name}: choose among {', '.join(CUTS)}")
        namespaces.require()
        if PAGE.value:
            check_names(pathlib.Path(PAGE.value), {"partition"})
    for name in CHOSEN.value:
        head = {
            "strategy": given(arguments, "parallel.strategy"),
            "deadline": given(arguments, "deadline"),
            "cut": name,
            "jax": jax.__version__,
        }
        if any(head.items() <= line.items() for line in read(file)):
            continue
        with user_errors():
            line = measure(name, arguments)
        write(file, head | line)
        print(json.dumps(head | line), flush=True)
    if PAGE.value:
        with user_errors():
            fill(pathlib.Path(PAGE.value), {"partition": partition_table(read(file))})


if __name__ == "__main__":
    app.run(main)
