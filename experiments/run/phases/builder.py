"""Build the phases of a run, each when its turn comes."""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from experiments.run.build import Run, build
from experiments.run.compression.teacher import with_teacher
from experiments.run.phases.phase import Phase
from experiments.run.survival.clock import Clock
from experiments.run.survival.flips import Flip
from lm.data.embeddings import Vectors
from lm.data.prepare import Data
from parallel.server.pool import Pool
from parallel.server.program import Parts


@dataclass
class Builder:
    folder: pathlib.Path
    data: Data
    clock: Clock
    meshes: Sequence[Mesh]  # of each phase
    # What makes the pool of each phase; None: it has no server, or one in this process.
    pools: Sequence[Callable[[Parts], Pool] | None]
    given: Vectors | None = None
    flips: Sequence[Flip] = ()
    phase: Phase | None = None  # the one that was built last

    def __call__(self, phase: Phase) -> Run:
        self.phase = phase
        task, program = build(
            phase.config,
            self.data.tokenizer.get_vocab_size(),
            self.mesh,
            len(self.data.train.tokens),
            self.given,
            self.pools[phase.index],
            self.flips,
            phase.last,
        )
        program = with_teacher(program, phase.config)
        return Run(phase, self.folder, self.data, task, program, self.clock)

    @property
    def mesh(self) -> Mesh:
        """The mesh of the phase that was built last."""
        return self.meshes[self.phase.index]
