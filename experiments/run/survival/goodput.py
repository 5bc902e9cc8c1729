"""Where all seconds of a run went, its restarts included.

A run is a chain of processes: each goes on from the last checkpoint of the one before it.
Process 0 of each adds lines to time.jsonl:

  start   it has restored `step` and begins to train, or to train in another phase
  saved   the state of `step` is on its way to the disk
  done    all steps are taken and evaluated
  end     it ends by itself
  last    it ended otherwise

Each line has the wall clock at which the process began (`wall`), how many seconds it has
run since (`elapsed`), and the seconds of each part. A killed process cannot write its last
line; the next one writes it from the last heartbeat, which is at most a second old.
"""

import contextlib
import json
import pathlib
from typing import Any, NamedTuple

from experiments.processes.files import json_line, whole_records
from experiments.run.survival.clock import Clock

FILE = "time.jsonl"
# What the whole run has besides the parts of a process.
LOST, RESTART, OTHER = "lost", "restart", "other"
NONE: dict[str, float] = {}

Event = dict[str, Any]


class Life(NamedTuple):
    """One process: the marks that it has left, the last of them at its end."""

    marks: list[Event]

    @property
    def began(self) -> float:
        return self.marks[0]["wall"]

    @property
    def last(self) -> Event:
        return self.marks[-1]

    @property
    def ended(self) -> float:
        return self.began + self.last["elapsed"]

    @property
    def is_over(self) -> bool:
        return self.last["event"] in ("end", "last")

    @property
    def restored(self) -> int:
        return self.marks[0]["step"]


class Journal:
    """Adds the lines of this process; `write` is true in process 0 alone."""

    def __init__(self, workdir: pathlib.Path, clock: Clock, write: bool):
        self.file, self.clock, self.write = workdir / FILE, clock, write
        beat = workdir / "heartbeats" / "0.json"  # the last one of the process before
        self.beat = beat.read_text(encoding="utf-8") if beat.exists() else ""

    def begin(self, step: int) -> None:
        """Begin after the state of `step`."""
        if not self.write:
            return
        lives = lives_of(whole_records(self.file))
        with contextlib.suppress(ValueError):
            last = json.loads(self.beat)
            if lives and not lives[-1].is_over and last["wall"] == lives[-1].began:
                # It may have left a mark after its last heartbeat.
                last = max(last, lives[-1].last, key=lambda each: each["elapsed"])
                self.add("last", last["step"], last)
        self.mark("start", step)

    def mark(self, event: str, step: int) -> None:
        if self.write:
            self.add(event, step, {"wall": self.clock.wall} | self.clock.told())

    def add(self, event: str, step: int, told: Event) -> None:
        kept = {name: told[name] for name in ("wall", "elapsed", "seconds")}
        # Without room on the disk, the run goes on and its account has a gap.
        with contextlib.suppress(OSError), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json_line({"event": event, "step": step} | kept))


def lives_of(events: list[Event]) -> list[Life]:
    lives: list[Life] = []
    for event in events:
        same = lives and lives[-1].began == event["wall"]  # another phase of it begins
        if event["event"] == "start" and not same:
            lives.append(Life([event]))
        elif lives:
            lives[-1].marks.append(event)
    return lives


def account(events: list[Event]) -> dict[str, float]:
    """Return the seconds of each part; they sum to those of the whole run.

    The seconds that a process spent after the checkpoint that the run went on from are
    lost, whatever it did in them. From the end of a process that did not end by itself
    until the next one has restored its state is restart. After one that did, nothing ran.
    """
    lives = lives_of(events)
    spent: dict[str, float] = {}

    def add(part: str, seconds: float) -> None:
        spent[part] = spent.get(part, 0.0) + seconds

    for number, life in enumerate(lives):
        first, last = life.marks[0], life.last
        if number:
            add(RESTART, first["elapsed"])
            before = lives[number - 1]
            if before.last["event"] != "end":
                add(RESTART, life.began - before.ended)
        # A later process may have gone back further than the one right after this.
        kept, later = last, [each.restored for each in lives[number + 1 :]]
        if later:
            marks = [m for m in life.marks[1:] if m["event"] != "last"]
            kept = [first, *(m for m in marks if m["step"] <= min(later))][-1]
        add(LOST, last["elapsed"] - kept["elapsed"])
        since = first if number else {"elapsed": 0.0, "seconds": NONE}
        inside = {
            part: seconds - since["seconds"].get(part, 0.0)
            for part, seconds in kept["seconds"].items()
        }
        for part, seconds in inside.items():
            add(part, seconds)
        add(OTHER, kept["elapsed"] - since["elapsed"] - sum(inside.values()))
    return spent


def told(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the account of a run, and the share of its seconds in steps that count."""
    spent = account(whole_records(workdir / FILE))
    total = sum(spent.values())
    share = spent.get("step", 0.0) / total if total else 0.0
    return {"seconds": spent, "total": total, "step_share": share}
