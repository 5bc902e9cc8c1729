"""Heartbeats of the processes of a run, and the watchdog that reads them.

JAX notices a process that has died. It does not notice one that lives and does nothing: the
others would wait for it in a collective for ever. So each process writes a small file once
a second, with the last step that it has finished. A process that has waited longer than the
deadline reads the files of the others, says for whom it waits, and ends. Its launcher can
then start all of them again.

A thread does this, because a thread alone gets on while the main one waits in C++. It
cannot interrupt that wait, so it ends the process. Heartbeats are files, because the
coordination service of JAX lives in one of the processes, and that one may be stuck.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any, NamedTuple

from experiments.processes.files import json_line, write_whole
from experiments.run.survival.clock import Clock
from experiments.run.survival.waits import waited_for
from parallel.program import Program

STUCK = 4  # the exit code of a process that has waited in vain
BEAT_SECONDS = 1.0
FIRST_SECONDS = 600.0  # more, the first time in a part of a run, where it may compile


class Beat(NamedTuple):
    """What this process knows of another one, by its own clock."""

    step: int  # the last that it has finished
    part: str  # of the run, that it is in
    silent: float  # seconds since its file changed


class Heart:
    """Beats while it is entered. The loop tells it each step that is finished.

    `deadline` is in seconds; 0: nobody watches. A process alone has nobody to wait for.
    SIGUSR1 makes a process write the stacks of all its threads to stderr.
    """

    def __init__(
        self, workdir: pathlib.Path, clock: Clock, deadline: float, index: int, count: int
    ):
        self.folder, self.clock = workdir / "heartbeats", clock
        self.deadline = deadline if count > 1 else 0
        self.index, self.count = index, count
        self.step, self.watches = 0, False  # while a state is made, all may take long
        self.program: Program | None = None  # whose steps are compiled
        self.every = min(BEAT_SECONDS, (deadline or BEAT_SECONDS) / 5)
        self.seen: dict[int, tuple[str, float]] = {}  # process -> its file, since when
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.live, daemon=True)

    def __enter__(self) -> "Heart":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write()
        self.thread.start()
        if threading.current_thread() is threading.main_thread():
            faulthandler.register(signal.SIGUSR1, sys.__stderr__, all_threads=True)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.over.set()
        self.thread.join()
        self.write()

    def live(self) -> None:
        last = up = time.perf_counter()
        while not self.over.wait(self.every):
            now = time.perf_counter()
            if now - last > 3 * self.every + 1:  # this process itself was stopped
                up = now
            last = now
            self.write()
            self.look(now)
            waited = now - max(self.clock.since, up)
            if self.deadline and self.watches and waited > self.allowed():
                self.give_up(waited)

    def allowed(self) -> float:
        known = not self.clock.part or self.clock.part in self.clock.been
        return self.deadline + (0.0 if known else FIRST_SECONDS)

    def write(self) -> None:
        beat = {"step": self.step, "part": self.clock.part, "wall": self.clock.wall}
        with contextlib.suppress(OSError):  # the disk may be full; others then see silence
            write_whole(
                self.folder / f"{self.index}.json", json_line(beat | self.clock.told())
            )

    def look(self, now: float) -> None:
        for process in set(range(self.count)) - {self.index}:
            text = ""
            with contextlib.suppress(OSError):
                text = (self.folder / f"{process}.json").read_text(encoding="utf-8")
            if process not in self.seen or self.seen[process][0] != text:
                self.seen[process] = text, now

    def others(self, now: float) -> dict[int, Beat]:
        return {
            process: Beat(*position(text), now - since)
            for process, (text, since) in sorted(self.seen.items())
        }

    def give_up(self, waited: float) -> None:
        beats = self.others(time.perf_counter())
        lines = report(
            self.index, self.step, self.clock.part, waited, self.deadline, beats, self.every
        )
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        print(*lines, sep="\n", file=sys.stderr, flush=True)
        # To read a large program takes seconds, and the launcher may not wait for them.
        for line in waited_for(self.clock.part, self.program):
            print(line, file=sys.stderr, flush=True)
        os._exit(STUCK)


def position(text: str) -> tuple[int, str]:
    """Return the step and the part that a heartbeat tells."""
    try:
        beat: dict[str, Any] = json.loads(text)
        return int(beat["step"]), str(beat["part"])
    except (ValueError, KeyError):
        return 0, "not begun"


def report(
    index: int,
    step: int,
    part: str,
    waited: float,
    deadline: float,
    others: dict[int, Beat],
    every: float,
) -> list[str]:
    """Return lines that say for whom a process waits, and what is known of the others."""
    lines = [
        f"error: process {index} has waited {waited:.1f} s in the part {part!r} after step "
        f"{step}, longer than the deadline of {deadline:g} s; it waits for "
        f"{suspects(step, others, max(deadline / 2, 3 * every))}"
    ]
    for process, beat in others.items():
        lines.append(
            f"  process {process}: last finished step {beat.step}, in the part "
            f"{beat.part or 'between'!r}, last heartbeat {beat.silent:.1f} s ago"
        )
    return lines


def suspects(step: int, others: dict[int, Beat], quiet: float) -> str:
    """Name the processes that are silent; else those that are behind or do other things."""
    silent = [p for p, beat in others.items() if beat.silent > quiet]
    if silent:
        return f"process {listed(silent)}, which is stopped, dead or cut off"
    behind = [p for p, beat in others.items() if beat.step < step or beat.part == "data"]
    if behind:
        return f"process {listed(behind)}, which lives and does not get on"
    return "a link: all other processes live and have got as far as this one"


def listed(processes: list[int]) -> str:
    return ", ".join(map(str, processes))
