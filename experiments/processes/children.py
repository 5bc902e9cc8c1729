"""Child processes of a launcher: cores, waiting for their end, ports."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE_SECONDS = 2.0  # after one fails, the others may print a message and end
PR_SET_PDEATHSIG = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_cores(index: int, num_processes: int, num_cores: int = 0) -> set[int]:
    """Return the cores of a process: an equal share, or `num_cores`; all if too few.

    Without shares, each process starts a thread for every core, and threads wait for each
    other: 2 processes on 2 cores take 1.03 to 1.05 times as long.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = num_cores or len(cores) // num_processes
    mine = cores[index * share : (index + 1) * share]
    return set(mine if len(mine) == share > 0 else cores)


def settle(index: int, num_processes: int, num_cores: int = 0) -> None:
    """In the child: stay on its own cores, and die when the launcher dies."""
    os.sched_setaffinity(0, own_cores(index, num_processes, num_cores))
    die_with_parent(signal.SIGKILL)


def die_with_parent(number: int) -> None:
    """In a child: take this signal when the parent dies, however it dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def wait(processes: list[subprocess.Popen], terminated: Sequence[int] = ()) -> int | None:
    """Wait for all to succeed (None), or for the first to fail (its index).

    SIGTERM is passed on when `terminated`, which a handler fills, is no longer empty.
    """
    passed_on = False
    while True:
        if terminated and not passed_on:
            passed_on = True
            for process in processes:
                process.terminate()
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


def fewer(count: int) -> int:
    """Return how many processes go on without one: the largest number that divides."""
    return max(n for n in range(1, max(count, 2)) if count % n == 0)
