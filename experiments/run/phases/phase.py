"""The phases of a run: strategies and degrees that take turns at given steps.

The first phase has the fields of `parallel`; each of `parallel.phases` follows after so
many steps. A phase has a config of its own, that of a run with this phase alone. So the
checks, the strategies and the training loop read `config.parallel` as in any other run.
"""

import dataclasses
from typing import NamedTuple

from configs.base import Experiment
from experiments.processes.messages import say
from lm.data.rows.growth import batch_sizes


class Phase(NamedTuple):
    whole: Experiment  # the config of the run
    config: Experiment  # the same, with the `parallel` of this phase alone
    index: int  # 0: the first
    first: int  # steps of the run before it
    last: int  # the step after which it ends

    @property
    def count(self) -> int:
        """The number of phases of the run."""
        return 1 + len(self.whole.parallel.phases)

    @property
    def field(self) -> str:
        """The name of the field that describes it."""
        return f"parallel.phases[{self.index - 1}]" if self.index else "parallel"

    @property
    def batch_sizes(self) -> list[int]:
        """The different numbers of rows that its batches have, the largest last."""
        data = self.config.data
        return batch_sizes(data.batch_size, data.growth, self.first, self.last)

    @property
    def told(self) -> str:
        """Say which phase it is, if there are several."""
        steps = f"steps {self.first + 1} to {self.last}"
        return f"phase {self.index + 1} of {self.count}, {steps}"


def phases_of(config: Experiment) -> list[Phase]:
    """Return the phases of a run, in their order; a run without `phases` has one."""
    parallel = config.parallel
    starts = [0, *(phase.after for phase in parallel.phases)]
    ends = [*starts[1:], config.steps]
    configs = [dataclasses.replace(config, parallel=each) for each in parallel.each_phase]
    return [
        Phase(config, own, index, first, last)
        for index, (own, first, last) in enumerate(zip(configs, starts, ends, strict=True))
    ]


def first_phase(config: Experiment) -> Phase:
    """Return the first phase, and say so if there are others."""
    phase = phases_of(config)[0]
    if phase.count > 1:
        say(f"the figures are of {phase.told}")
    return phase


def phase_at(phases: list[Phase], step: int) -> Phase:
    """Return the phase that goes on after `step`; after the last step, the last phase."""
    return [phase for phase in phases if phase.first <= step][-1]
