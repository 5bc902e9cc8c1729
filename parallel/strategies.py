"""The table of strategies: a name -> the axes of its mesh and a Program's constructor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jax.sharding import Mesh

from parallel.layout import FSDP, REPLICATED, ZERO1, ZERO2, Layout
from parallel.mesh import batch_degree, device_mesh
from parallel.program import AXIS, Learner, Program
from parallel.replicas import pmap_program, shard_map_program
from parallel.sharded import jit_program, zero_program


@dataclass
class ParallelConfig:
    strategy: str = "jit"  # jit | pmap | shard_map | zero1 | zero2 | fsdp
    data: int = -1  # the data-parallel degree, in devices; -1: all
    accumulation: int = 1  # microbatches that a device's rows are taken in

    def mesh(self) -> Mesh:
        """Make the mesh of the strategy's axes; ValueError if the devices do not fit."""
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"parallel.strategy is {self.strategy!r}; "
                f"choose one of {', '.join(STRATEGIES)}"
            )
        axes = STRATEGIES[self.strategy].axes
        return device_mesh({axis: getattr(self, axis) for axis in axes})

    def validate(self, batch_size: int, mesh: Mesh) -> None:
        """Check against the global batch size, in rows, and the mesh."""
        if self.accumulation < 1:
            raise ValueError(
                f"parallel.accumulation is {self.accumulation}; it must be at least 1"
            )
        degree = batch_degree(mesh)
        if batch_size % (degree * self.accumulation):
            raise ValueError(
                f"data.batch_size {batch_size} is not divisible by data degree {degree}"
                f" x accumulation {self.accumulation} = {degree * self.accumulation}"
            )


class Strategy(NamedTuple):
    program: Callable[[Learner, Mesh, ParallelConfig], Program]
    axes: tuple[str, ...] = (AXIS,)  # of its mesh, the slowest links first


def replicas(constructor: Callable[..., Program]) -> Strategy:
    return Strategy(
        lambda learner, mesh, config: constructor(learner, mesh, config.accumulation)
    )


def sharded(constructor: Callable[..., Program], layout: Layout) -> Strategy:
    return Strategy(
        lambda learner, mesh, config: constructor(
            learner, mesh, config.accumulation, layout
        )
    )


STRATEGIES = {
    "jit": sharded(jit_program, REPLICATED),
    "pmap": replicas(pmap_program),
    "shard_map": replicas(shard_map_program),
    "zero1": sharded(zero_program, ZERO1),
    "zero2": sharded(zero_program, ZERO2),
    "fsdp": sharded(zero_program, FSDP),
}


def build_program(config: ParallelConfig, learner: Learner, mesh: Mesh) -> Program:
    return STRATEGIES[config.strategy].program(learner, mesh, config)
