"""Train in several processes on this machine, joined over loopback or emulated links.

python -m experiments.launch --processes=2 --devices_per_process=4 -- \
    --config=configs/tiny.py --workdir=runs/two

Prints what process 0 prints; if another process fails first, prints its output too. One
process that fails ends all of them; with --restarts they are started again, and go on from
the last checkpoint. SIGTERM lets all of them save at the same step and end.

--copies=10 keeps a copy of the state of each 10th step in memory, on the host of the next
process, so that a restart need not go back to the last checkpoint.

--links=FILE.py joins them by links that are far, slow, lossy or cut, as the file says
(experiments/processes/network/changes.py). That needs Linux and root.

A TPU pod, SLURM, Kubernetes and MPI need no launcher: start experiments.train once for each
process there, and JAX finds the others.
"""

import contextlib
import importlib.util
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

from absl import app, flags

from experiments.processes import namespaces
from experiments.processes.channel.holder import holding
from experiments.processes.children import (
    GRACE_SECONDS,
    Keeper,
    Kept,
    describe,
    end,
    fewer,
    free_port,
    own_cores,
    settle,
    wait,
)
from experiments.processes.messages import user_errors
from experiments.processes.network.changes import Change, check, played
from experiments.processes.network.emulator import network
from experiments.processes.network.orders import obeying
from experiments.run.python_file import call_function

MOST_PROCESSES = 256
WRONG_USE = 2  # the exit code of what would fail again
LONGEST = 3000  # characters to show of the output of a process

PROCESSES = flags.DEFINE_integer(
    "processes",
    2,
    "Number of processes to start.",
    lower_bound=1,
    upper_bound=MOST_PROCESSES,
)
DEVICES = flags.DEFINE_integer(
    "devices_per_process", 1, "Emulated CPU devices of each process.", lower_bound=1
)
CORES = flags.DEFINE_integer(
    "cores_per_process",
    0,
    "CPU cores of each process; 0: an equal share of all cores.",
    lower_bound=0,
)
RESTARTS = flags.DEFINE_integer(
    "restarts",
    0,
    "How often all processes are started again after one has failed, or waited longer "
    "than config.deadline for another.",
    lower_bound=0,
)
ELASTIC = flags.DEFINE_bool(
    "elastic",
    False,
    "Start fewer processes again: the largest number that divides the one before. What "
    "the run computes then differs by rounding.",
)
LINKS = flags.DEFINE_string(
    "links",
    None,
    "Python file whose get_links() says what the links between the processes are like, and "
    "when they change. Needs Linux and root.",
)
LINKS_SEED = flags.DEFINE_integer(
    "links_seed", 0, "Seed of what the links do to packets.", lower_bound=0
)
COPIES = flags.DEFINE_integer(
    "copies",
    0,
    "Steps between copies of the state in the memory of the launcher's holders, one on "
    "each host; a restart goes on from the newest one, or from a checkpoint that is newer. "
    "0: none.",
    lower_bound=0,
)
MODULE = flags.DEFINE_string(
    "module", "experiments.train", "Command that each process runs."
)


def parse_flags(argv: list[str]) -> list[str]:
    with user_errors(flags.Error):
        try:
            return flags.FLAGS(argv)
        except flags.UnrecognizedFlagError as error:
            raise flags.Error(f"{error}; flags of what it starts come after --") from None


def check_module(name: str) -> None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # no such package, or not the name of a module
        found = None
    if found is None:
        raise ValueError(
            f"--module={name}: there is no such module; for example experiments.train"
        )


class Starter:
    """Starts the processes of one job after the other.

    Those that may be started again come from keepers, which have the imports behind them.
    """

    def __init__(self, arguments: list[str], folder: pathlib.Path):
        self.arguments, self.folder = arguments, folder
        self.keepers: dict[int, Keeper] = {}

    def log(self, index: int) -> pathlib.Path:
        return self.folder / f"{index}.log"

    def start(self, index: int, count: int, port: int) -> subprocess.Popen | Kept:
        """Process 0 prints to the terminal; the others into files."""
        host = namespaces.address(0) if LINKS.value else "127.0.0.1"
        flags_of_it = [
            *(*self.arguments, f"--devices={DEVICES.value}"),
            *(f"--coordinator={host}:{port}", f"--num_processes={count}"),
            f"--process_id={index}",
        ]
        with contextlib.ExitStack() as held:
            # A keeper writes on where the file ends, which is where it begins for a job.
            out = held.enter_context(self.log(index).open("ab")) if index else None
            if out:
                out.truncate(0)
            if RESTARTS.value and sys.platform == "linux":
                cores = own_cores(index, count, CORES.value)
                return self.keeper(index, out).begin(flags_of_it, cores)
            return subprocess.Popen(
                inside(index, [sys.executable, "-m", MODULE.value, *flags_of_it]),
                stdout=out,
                stderr=subprocess.STDOUT if out else None,
                preexec_fn=partial(settle, index, count, CORES.value)
                if sys.platform == "linux"
                else None,
            )

    def keeper(self, index: int, out: BinaryIO | None) -> Keeper:
        if index not in self.keepers or self.keepers[index].is_over():
            self.keepers[index] = Keeper(MODULE.value, partial(inside, index), out)
        return self.keepers[index]

    def close(self) -> None:
        for keeper in self.keepers.values():
            keeper.close()


def inside(index: int, command: list[str]) -> list[str]:
    return namespaces.inside(index, command) if LINKS.value else command


def load_links(count: int) -> list[Change]:
    """Return the changes of --links; ValueError for a file or a machine without them."""
    if not LINKS.value:
        return []
    namespaces.require()
    if count < 2:
        raise ValueError(f"--links joins processes, and --processes is {count}")
    return check(LINKS.value, call_function(LINKS.value, "get_links"), count)


@contextlib.contextmanager
def linked(count: int, changes: list[Change]) -> Iterator[None]:
    """Make the links of --links, if it is given."""
    if not changes:
        yield
        return
    with network(count, seed=LINKS_SEED.value) as net, played(net, changes), obeying(net):
        yield


@contextlib.contextmanager
def held(count: int) -> Iterator[None]:
    """Hold copies of the states of all processes, if --copies is given."""
    if not COPIES.value:
        yield
        return
    hosts = [namespaces.address(i) if LINKS.value else "127.0.0.1" for i in range(count)]
    with holding(COPIES.value, [(host, free_port()) for host in hosts], inside):
        yield


class Ended(NamedTuple):
    """How a job ended."""

    failed: int | None  # the process that failed first; None: all succeeded
    code: int = 0  # its exit code
    log: str = ""  # its output, as far as it is not yet shown


def explain(count: int, ended: Ended) -> None:
    """Say which process failed first, and why."""
    if ended.code == WRONG_USE:  # an error of use: its own message is enough
        sys.stderr.write(ended.log[max(ended.log.rfind("error: "), 0) :])
        return
    sys.stderr.write(ended.log[-LONGEST:])
    print(
        f"error: process {ended.failed} of {count} {describe(ended.code)}; ended the "
        "others. The same command goes on from the last complete checkpoint",
        file=sys.stderr,
    )


def run_job(starter: Starter, count: int, terminated: list[int]) -> Ended:
    """Run `count` processes to their end; the first that fails ends all."""
    port = free_port()
    processes = [starter.start(i, count, port) for i in range(count)]
    try:
        failed = wait(processes, terminated)
    except KeyboardInterrupt:
        end(processes, GRACE_SECONDS)
        raise SystemExit(130) from None
    if failed is None:
        return Ended(None)
    end(processes, GRACE_SECONDS)
    codes = [process.returncode for process in processes]
    # One that says what is wrong is the cause; others then fail for want of it.
    failed = codes.index(WRONG_USE) if WRONG_USE in codes else failed
    code, log = codes[failed], ""
    if failed and codes[0] != code:
        log = starter.log(failed).read_text(encoding="utf-8", errors="replace")
    return Ended(failed, code, log)


def run_jobs(starter: Starter) -> None:
    """Run the job, and again after failures as --restarts allows."""
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
    count = PROCESSES.value
    for restarts_left in range(RESTARTS.value, -1, -1):
        ended = run_job(starter, count, terminated)
        if ended.failed is None:
            return
        explain(count, ended)
        if ended.code == WRONG_USE or terminated or not restarts_left:
            raise SystemExit(WRONG_USE if ended.code == WRONG_USE else 1)
        count = fewer(count) if ELASTIC.value else count
        print(
            f"starting {count} process(es) again; {restarts_left - 1} restarts are left",
            file=sys.stderr,
        )


def main(argv: list[str]) -> None:
    with user_errors():
        check_module(MODULE.value)
        changes = load_links(PROCESSES.value)
    with (
        linked(PROCESSES.value, changes),  # a cut link stays cut when all start again
        held(PROCESSES.value),
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Starter(argv[1:], pathlib.Path(folder))) as starter,
    ):
        run_jobs(starter)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
