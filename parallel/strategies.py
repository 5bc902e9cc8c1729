"""The table of strategies: a name -> a constructor of a Program."""

from dataclasses import dataclass
from functools import partial

from jax.sharding import Mesh

from parallel.layout import FSDP, REPLICATED, ZERO1, ZERO2
from parallel.program import Learner, Program
from parallel.replicas import pmap_program, shard_map_program
from parallel.sharded import jit_program, zero_program

STRATEGIES = {
    "jit": partial(jit_program, layout=REPLICATED),
    "pmap": pmap_program,
    "shard_map": shard_map_program,
    "zero1": partial(zero_program, layout=ZERO1),
    "zero2": partial(zero_program, layout=ZERO2),
    "fsdp": partial(zero_program, layout=FSDP),
}


@dataclass
class ParallelConfig:
    strategy: str = "jit"  # jit | pmap | shard_map | zero1 | zero2 | fsdp
    data: int = -1  # the data-parallel degree, in devices; -1: all
    accumulation: int = 1  # microbatches that a device's rows are taken in

    def validate(self, batch_size: int, degree: int) -> None:
        """Check against the global batch size and the degree that the mesh has."""
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"parallel.strategy is {self.strategy!r}; "
                f"choose one of {', '.join(STRATEGIES)}"
            )
        if self.accumulation < 1:
            raise ValueError(
                f"parallel.accumulation is {self.accumulation}; it must be at least 1"
            )
        if batch_size % (degree * self.accumulation):
            raise ValueError(
                f"data.batch_size {batch_size} is not divisible by data degree {degree}"
                f" x accumulation {self.accumulation} = {degree * self.accumulation}"
            )


def build_program(config: ParallelConfig, learner: Learner, mesh: Mesh) -> Program:
    return STRATEGIES[config.strategy](learner, mesh, config.accumulation)
