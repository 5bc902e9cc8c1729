"""Child processes of a launcher: cores, starting, waiting for their end, ports."""

import contextlib
import ctypes
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

GRACE_SECONDS = 2.0  # after one fails, the others may print a message and end
END_SECONDS = 60.0  # until the kernel has ended what was killed
PR_SET_PDEATHSIG = 1


def free_port() -> int:
    """Return a port below those that a system hands out: nobody gets it meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


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


class Kept:
    """A process that a keeper has forked, with those methods of Popen that are used."""

    def __init__(self, keeper: "Keeper"):
        self.keeper, self.pid, self.returncode = keeper, 0, None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self.keeper.line], [], [], left)[0]:
                raise subprocess.TimeoutExpired("a kept process", timeout)
            said = self.keeper.answers.readline()
            if not said:  # the keeper has died, and its child with it
                self.returncode = self.keeper.process.wait() or 1
            elif self.pid:
                self.returncode = int(said)
            else:
                self.pid = int(said)
        return self.returncode

    def send(self, number: int) -> None:
        self.poll()
        if self.returncode is None:  # it is not yet reaped, or not yet forked
            os.kill(self.pid or self.keeper.process.pid, number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        self.send(signal.SIGKILL)


class Keeper:
    """A process that has imported what a module imports, and becomes it at once.

    Linux only. `inside` makes the command line that runs it in a network namespace.
    """

    def __init__(
        self, module: str, inside: Callable[[list[str]], list[str]], output: BinaryIO | None
    ):
        self.line, theirs = socket.socketpair()
        self.answers = self.line.makefile("rb", buffering=0)
        with theirs:
            self.process = subprocess.Popen(
                inside([sys.executable, "-m", "experiments.processes.keeper", module]),
                stdin=theirs,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def begin(self, arguments: Sequence[str], cores: set[int]) -> Kept:
        with contextlib.suppress(BrokenPipeError):  # the next answer will tell
            self.line.sendall(json.dumps([list(arguments), sorted(cores)]).encode() + b"\n")
        return Kept(self)

    def close(self) -> None:
        """End it, and with it what it has begun."""
        self.process.kill()
        self.process.wait()
        self.answers.close()
        self.line.close()


def wait(
    processes: list[subprocess.Popen | Kept], terminated: Sequence[int] = ()
) -> int | None:
    """Wait for all to succeed (None), or for the first to fail (its index).

    Of several that have failed since the last look, one that was killed is the first: the
    others failed for want of it, within milliseconds.

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
            return min(failed, key=lambda index: codes[index] != -signal.SIGKILL)
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def end(processes: list[subprocess.Popen | Kept], grace: float) -> None:
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_SECONDS)


def describe(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def fewer(count: int) -> int:
    """Return how many processes go on without one: the largest number that divides."""
    return max(n for n in range(1, max(count, 2)) if count % n == 0)
