"""The time and the memory of a command and of all that it starts, as Linux tells them."""

import os
import pathlib
import signal
import subprocess
import time
from typing import NamedTuple

PAUSE = 0.1  # seconds between two looks
PROC = pathlib.Path("/proc")


class Watched(NamedTuple):
    seconds: float
    peak: int  # bytes in memory of the process itself, the most at any time
    workers: int  # of all processes below it together, at one look
    output: str


def watch(command: list[str], kill_after: float = float("inf")) -> Watched:
    """Run a command to its end, or kill it and what it started after so many seconds.

    Memory is what the process has to itself or shares with others in /dev/shm; pages of
    files that the kernel may drop at any time are left out. RuntimeError if it fails.
    """
    began, peak, workers = time.perf_counter(), 0, 0
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, encoding="utf-8",
        env=os.environ | {"TQDM_DISABLE": "1"},
    )  # fmt: skip
    while process.poll() is None and time.perf_counter() - began < kill_after:
        peak = max(peak, memory(process.pid))
        workers = max(workers, sum(map(memory, below(process.pid))))
        time.sleep(PAUSE)
    if process.poll() is None:
        others = below(process.pid)
        for each in (process.pid, *others):
            os.kill(each, signal.SIGKILL)
        process.communicate()
        return Watched(time.perf_counter() - began, peak, workers, "")
    output, errors = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {errors[-2000:]}")
    return Watched(seconds, peak, workers, output)


def memory(process: int) -> int:
    """Return the bytes of a process in memory, without pages of files; 0 if it ended."""
    try:
        lines = (PROC / str(process) / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    kinds = (fields.get(name, "0 kB") for name in ("RssAnon", "RssShmem"))
    return 1024 * sum(int(each.split()[0]) for each in kinds)


def below(process: int) -> list[int]:
    """Return the children of a process, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8")
            except OSError:  # it has ended
                continue
            # The name, in brackets, may hold spaces and brackets itself.
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, left = [], [process]
    while left:
        left += children.get(left.pop(), [])
        found += [each for each in left if each not in found]
    return found
