"""What watches over a run while it trains, at the points that the loop tells it of."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from experiments.processes.faults import Fault
from experiments.processes.messages import is_main_process
from experiments.run.build import Run
from experiments.run.survival.clock import Clock
from experiments.run.survival.copies import Copies
from experiments.run.survival.goodput import Journal
from experiments.run.survival.heart import Heart
from experiments.run.survival.injection import (
    Injector,
    Targets,
    keep_setting,
    setting_of,
)
from experiments.run.survival.replicas import agreement_check, check_norms
from experiments.run.survival.saving import Saves
from lm.data.prepare import rows_folder
from lm.data.rows.shards import shard_name
from parallel.program import Program, TrainState


class Guard(NamedTuple):
    heart: Heart
    journal: Journal
    faults: Injector
    saves: Saves
    copies: Copies
    agree: Callable[[int, TrainState], None]
    clock: Clock
    check_every: int  # 0: never
    outlier: float  # 0: no gradient is one

    def begin(self, step: int, program: Program) -> None:
        """Begin after the state of `step`, with a program whose steps are compiled."""
        self.clock.been.clear()
        self.heart.program = program
        self.heart.step, self.heart.watches = step, True
        self.saves.begin(step)
        self.journal.begin(step)
        self.faults.begin()

    def finished(self, step: int, norms: Sequence[float]) -> None:
        """Take note of a finished step; raise Damage if a replica's gradient stands out."""
        self.heart.step = max(step, self.heart.step)
        if self.outlier:
            check_norms(step, norms, self.outlier)

    def saved(self, step: int) -> None:
        """The state of this step is on its way to the disk."""
        self.journal.mark("saved", step)
        self.saves.saved(step)

    def copied(self, step: int, state: TrainState) -> None:
        """Begin to send a copy of the state to the memory of another host."""
        with self.clock("copy"):
            self.copies.keep(step, state)
        self.journal.mark("copied", step)

    def done(self, step: int) -> None:
        """All steps are taken and evaluated; what is left is each process's own."""
        self.heart.watches = False
        self.journal.mark("done", step)

    def check(self, step: int, state: TrainState, saves: bool) -> None:
        """Raise Damage if replicas have parted; a state that is saved is checked, too."""
        if self.check_every and (saves or step % self.check_every == 0):
            with self.clock("check"):
                self.agree(step, state)


@contextlib.contextmanager
def guarded(run: Run, faults: Sequence[Fault]) -> Iterator[Guard]:
    """Beat and watch while it is entered; `faults` will happen to the run."""
    config, workdir, clock = run.config, run.workdir, run.clock
    index, count = jax.process_index(), jax.process_count()
    journal = Journal(workdir, clock, is_main_process())  # reads what Heart writes over
    if faults and is_main_process():
        keep_setting(workdir, setting_of(config, run.program.mesh, run.data))
    injector = Injector(faults, workdir, index, targets(run))
    saves = Saves(config.save_every, workdir, clock)
    agree, every = agreement_check(run.program), config.check_every
    outlier = config.parallel.outlier
    with (
        Heart(workdir, clock, config.deadline, index, count) as heart,
        Copies(index, injector.before_frame) as copies,
    ):
        guard = Guard(heart, journal, injector, saves, copies, agree, clock, every, outlier)
        try:
            yield guard
        except BaseException:
            journal.mark("last", heart.step)
            raise
        finally:
            injector.end()
        journal.mark("end", heart.step)


def targets(run: Run) -> Targets:
    meta, num = run.data.meta, run.config.data.shards
    folder = rows_folder(run.config.data, meta["fingerprint"])
    shards = meta["train"].get("shards", [meta["train"]])
    files = [folder / f"{shard_name('train', i, num)}.tokens" for i in range(len(shards))]
    counts = [shard["rows"] for shard in shards]
    return Targets(run.program.mesh, list(zip(files, counts, strict=True)))
