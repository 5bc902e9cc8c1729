"""When a run saves: once in so many steps, or as often as its faults make it worth."""

import pathlib

import numpy as np
from jax.experimental import multihost_utils

from experiments.processes.files import whole_records
from experiments.run.survival import daly, goodput
from experiments.run.survival.clock import Clock

AUTO = -1
FIRST = 10  # steps before the first save, from which its cost is known
DAY = 86400.0  # seconds between the faults of a run that has met none


class Saves:
    """Says after which steps to save. `every` is in steps; 0: never; AUTO: by Daly."""

    def __init__(self, every: int, workdir: pathlib.Path, clock: Clock):
        self.every, self.file, self.clock = every, workdir / goodput.FILE, clock

    def begin(self, step: int) -> None:
        self.start, self.next, self.num_saves = step, step + FIRST, 0
        self.before = self.seconds()

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of this process, and of these the seconds of saving."""
        told = self.clock.told()
        return told["elapsed"], told["seconds"].get("checkpoint", 0.0)

    def due(self, step: int) -> bool:
        if self.every == AUTO:
            return step >= self.next
        return self.every > 0 and step % self.every == 0

    def saved(self, step: int) -> None:
        """Plan the next save; all processes take the plan of process 0."""
        if self.every != AUTO:
            return
        self.num_saves += 1
        steps = steps_between(
            *(now - then for now, then in zip(self.seconds(), self.before, strict=True)),
            step - self.start,
            self.num_saves,
            between_faults(whole_records(self.file)),
        )
        self.next = step + int(multihost_utils.broadcast_one_to_all(np.int32(steps)))


def steps_between(
    elapsed: float, saving: float, num_steps: int, num_saves: int, between: float
) -> int:
    """Return the steps between saves, from the seconds of steps and saves so far."""
    step_seconds = max(elapsed - saving, 1e-9) / max(num_steps, 1)
    seconds = daly.interval(saving / num_saves, between)
    return min(max(round(seconds / step_seconds), 1), 2**31 - 1)


def between_faults(events: list[goodput.Event]) -> float:
    """Return the mean seconds between faults, as this run has met them.

    A run that has met none is taken to meet one a day. From the first one on, its own
    account alone counts: to save too often costs less than to lose the work between saves.
    """
    lives = goodput.lives_of(events)
    faults = sum(life.last["event"] != "end" for life in lives[:-1])
    seconds = sum(goodput.account(events).values())
    return seconds / faults if faults else max(seconds, DAY)
