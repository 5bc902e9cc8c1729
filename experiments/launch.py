"""Train in several processes on this machine, joined over loopback.

python -m experiments.launch --processes=2 --devices_per_process=4 -- \
    --config=configs/tiny.py --workdir=runs/two

On a TPU pod, SLURM, Kubernetes or MPI no launcher is needed: start experiments.train once
a process there, and JAX finds the others.
"""

import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial

from absl import app, flags

PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
DEVICES = flags.DEFINE_integer(
    "devices_per_process", 1, "Emulated CPU devices of each.", lower_bound=1
)
CORES = flags.DEFINE_integer(
    "cores_per_process", 0, "CPU cores of each; 0: an equal share of all.", lower_bound=0
)
MODULE = flags.DEFINE_string("module", "experiments.train", "What each one runs.")

GRACE_SECONDS = 2.0  # for the others to end by themselves with their own message
PR_SET_PDEATHSIG = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_cores(index: int, num_processes: int, num_cores: int = 0) -> set[int]:
    """Return a process's share of the cores, or as many; all where there are too few.

    Unshared, each would start a thread for every core, and they would wait for each other
    in turns: 2 processes on 2 cores take 1.03 to 1.05 times as long.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = num_cores or len(cores) // num_processes
    mine = cores[index * share : (index + 1) * share]
    return set(mine if len(mine) == share > 0 else cores)


def settle(index: int, num_processes: int, num_cores: int = 0) -> None:
    """In the child: keep to its cores, and die when the launcher dies."""
    os.sched_setaffinity(0, own_cores(index, num_processes, num_cores))
    die_with_parent(signal.SIGKILL)


def die_with_parent(number: int) -> None:
    """In a child: take this signal when the parent dies, however it dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


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


def wait(processes: list[subprocess.Popen]) -> int | None:
    """Wait for all to succeed (None), or for the first to fail (its index)."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [index for index, code in enumerate(codes) if code]
        if failed:
            return failed[0]
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def end(processes: list[subprocess.Popen], grace: float) -> None:
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def describe(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def main(argv: list[str]) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        # Process 0 speaks; what the others say is shown if they are the ones that fail.
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
        if failed and processes[0].returncode != code:
            sys.stderr.write(files[failed].read_text(errors="replace")[-3000:])
        print(
            f"error: process {failed} of {PROCESSES.value} {describe(code)}; ended the "
            "others. The same command goes on from the last complete checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(2 if code == 2 else 1)


if __name__ == "__main__":
    app.run(main)
