"""Train a run whose strategy or degree changes on the way.

A change of phase is a stop and a new start within one process. The state is saved in the
form that every strategy has (`portable`). The program of the old phase is closed and its
arrays are given up. Then the program of the new phase is built, and restores the state into
its own layout (`adopt`). So there are never two states on the devices, an array that is
split is never whole, and what a strategy cannot take over is said as at a restart.
"""

import pathlib
from collections.abc import Callable, Sequence

from experiments.processes.faults import Fault
from experiments.processes.messages import say
from experiments.run.build import Run
from experiments.run.loop import train
from experiments.run.phases.phase import Phase, phase_at
from experiments.run.workdir import saved_steps


def train_phases(
    phases: list[Phase],
    workdir: pathlib.Path,
    begin: Callable[[Phase], Run],
    stop_at: int | None = None,
    profiled: range = range(0),
    faults: Sequence[Fault] = (),
) -> None:
    """Run, or continue, the phases of a run in its workdir; `begin` builds each.

    Raises what `train` raises.
    """
    step, over = max(saved_steps(workdir), default=0), False
    while not over:
        run = begin(phase_at(phases, step))
        if run.phase.count > 1:
            say(run.phase.told)
        try:
            step, over = train(run, stop_at, profiled, faults)
        finally:
            run.program.close()
        del run  # and with it what the program holds on the devices
