"""Train in several processes on this machine, joined over loopback.

python -m experiments.launch --processes=2 --devices_per_process=4 -- \
    --config=configs/tiny.py --workdir=runs/two

Prints what process 0 prints; if another process fails first, prints its output too. One
process that fails ends all of them. A TPU pod, SLURM, Kubernetes and MPI need no launcher:
start experiments.train once for each process there, and JAX finds the others.
"""

import importlib.util
import pathlib
import subprocess
import sys
import tempfile
from functools import partial

from absl import app, flags

from experiments.processes.children import (
    GRACE_SECONDS,
    describe,
    end,
    free_port,
    settle,
    wait,
)
from experiments.processes.messages import user_errors

MOST_PROCESSES = 256

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


def start(index: int, port: int, arguments: list[str], output) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", MODULE.value, *arguments),
        f"--devices={DEVICES.value}",
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={PROCESSES.value}",
        f"--process_id={index}",
    ]
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        preexec_fn=partial(settle, index, PROCESSES.value, CORES.value)
        if sys.platform == "linux"
        else None,
    )


def explain(failed: int, code: int, log: str) -> None:
    """Say which process failed first, and why; `log` is its output, not yet shown."""
    if code == 2:  # an error of use: its own message is enough
        sys.stderr.write(log[max(log.rfind("error: "), 0) :])
        return
    sys.stderr.write(log[-3000:])
    print(
        f"error: process {failed} of {PROCESSES.value} {describe(code)}; ended the "
        "others. The same command goes on from the last complete checkpoint",
        file=sys.stderr,
    )


def main(argv: list[str]) -> None:
    with user_errors():
        check_module(MODULE.value)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        # Process 0 prints to the terminal. The output of another is shown only if it fails.
        files = [pathlib.Path(folder) / f"{i}.log" for i in range(PROCESSES.value)]
        outputs = [None, *(file.open("wb") for file in files[1:])]
        processes = [start(i, port, argv[1:], out) for i, out in enumerate(outputs)]
        try:
            failed = wait(processes)
        except KeyboardInterrupt:
            end(processes, GRACE_SECONDS)
            raise SystemExit(130) from None
        if failed is None:
            return
        code = processes[failed].returncode
        end(processes, GRACE_SECONDS)
        is_new = failed and processes[0].returncode != code
        log = files[failed].read_text(encoding="utf-8", errors="replace") if is_new else ""
        explain(failed, code, log)
        raise SystemExit(2 if code == 2 else 1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
