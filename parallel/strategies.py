"""The table of strategies: a name -> the axes of its mesh and a Program's constructor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from parallel.exchange.config import ExchangeConfig, build_exchange
from parallel.layout import (
    FSDP,
    REPLICATED,
    ZERO1,
    ZERO2,
    Layout,
    validate_tensor_dims,
)
from parallel.local import PLANS, LocalConfig, local_program
from parallel.mesh import batch_degree, device_mesh
from parallel.pipeline.program import check_cut, pipeline_program
from parallel.pipeline.schedules import ORDERS, build_schedule
from parallel.program import AXIS, STAGE, TENSOR, Learner, Program
from parallel.replicas import pmap_program, shard_map_program
from parallel.sharded import jit_program, zero_program


@dataclass
class ParallelConfig:
    strategy: str = "jit"  # one of STRATEGIES
    data: int = -1  # the data-parallel degree, in devices; -1: all
    slice: int = 1  # groups of `data` replicas, joined by links slower than those inside
    fsdp: int = 1  # the degree that shards the state, for `data` replicas of it; -1: rest
    tensor: int = 1  # the degree that splits single layers; -1: rest
    stage: int = 1  # the stages of a pipeline
    chunks: int = 2  # interleaved only: the parts of the layers that each stage has
    accumulation: int = 1  # microbatches that a device's rows are taken in
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    local: LocalConfig = field(default_factory=LocalConfig)

    def mesh(self) -> Mesh:
        """Make the mesh of the strategy's axes; ValueError if the devices do not fit."""
        if self.strategy not in STRATEGIES:
            raise ValueError(
                f"parallel.strategy is {self.strategy!r}; "
                f"choose one of {', '.join(STRATEGIES)}"
            )
        axes = STRATEGIES[self.strategy].axes
        for axis in sorted(ALL_AXES - set(axes)):
            if getattr(self, axis) not in (1, -1):
                able = [name for name, other in STRATEGIES.items() if axis in other.axes]
                raise ValueError(
                    f"parallel.{axis} is {getattr(self, axis)}, but strategy "
                    f"{self.strategy!r} has no axis {axis}; set it to 1, or choose one of "
                    f"{', '.join(able)}"
                )
        degrees = {axis: getattr(self, axis) for axis in axes}
        return device_mesh(
            {axis: n for axis, n in degrees.items() if axis != "slice" or n != 1}
        )

    def validate(self, batch_size: int, mesh: Mesh) -> None:
        """Check against the global batch size, in rows, and the mesh."""
        if self.accumulation < 1:
            raise ValueError(
                f"parallel.accumulation is {self.accumulation}; it must be at least 1"
            )
        if STRATEGIES[self.strategy].exchanges:
            self.exchange.validate(mesh, self.accumulation)
        elif self.exchange != ExchangeConfig():
            able = [name for name, strategy in STRATEGIES.items() if strategy.exchanges]
            raise ValueError(
                f"parallel.exchange is set, but strategy {self.strategy!r} leaves its "
                f"collectives to its layout; choose one of {', '.join(able)}, or unset it"
            )
        if self.strategy in ORDERS:
            if self.chunks < 1:
                raise ValueError(f"parallel.chunks is {self.chunks}; it must be at least 1")
            build_schedule(self.strategy, mesh.shape[STAGE], self.accumulation, self.chunks)
        if self.strategy in PLANS:
            self.local.validate(self.strategy)
        tensor, local = mesh.shape.get(TENSOR, 1), jax.local_device_count()
        if jax.process_count() > 1 and local % tensor:
            raise ValueError(
                f"parallel.tensor {tensor} does not divide the {local} devices of a "
                "process; the devices that share a layer must be in one process"
            )
        degree = batch_degree(mesh)
        if batch_size % (degree * self.accumulation):
            raise ValueError(
                f"data.batch_size {batch_size} is not divisible by data degree {degree}"
                f" x accumulation {self.accumulation} = {degree * self.accumulation}"
            )

    def validate_layers(self, num_layers: int | None, mesh: Mesh) -> None:
        """Check that a pipeline can cut this many layers; None: the model has none."""
        if STAGE in mesh.shape:
            check_cut(num_layers, mesh.shape[STAGE], self.num_chunks(mesh))

    def num_chunks(self, mesh: Mesh) -> int:
        """Return the chunks of each stage; one stage alone has nothing to interleave."""
        interleaves = self.strategy == "interleaved" and mesh.shape[STAGE] > 1
        return self.chunks if interleaves else 1


class Strategy(NamedTuple):
    program: Callable[[Learner, Mesh, ParallelConfig], Program]
    axes: tuple[str, ...] = (AXIS,)  # of its mesh, the slowest links first
    exchanges: bool = False  # what crosses goes through an Exchange


def replicas(constructor: Callable[..., Program], axes: tuple[str, ...]) -> Strategy:
    def program(learner: Learner, mesh: Mesh, config: ParallelConfig) -> Program:
        return constructor(
            learner,
            mesh,
            config.accumulation,
            build_exchange(config.exchange, mesh),
            config.exchange.every,
            measure_noise=config.exchange.exact,
        )

    return Strategy(program, axes, exchanges=True)


def local(name: str) -> Strategy:
    def program(learner: Learner, mesh: Mesh, config: ParallelConfig) -> Program:
        exchange = build_exchange(config.exchange, mesh)
        plan = PLANS[name](config.local)
        return local_program(learner, mesh, config.accumulation, exchange, plan)

    return Strategy(program, ("slice", AXIS), exchanges=True)


def sharded(
    constructor: Callable[..., Program], layout: Layout, axes: tuple[str, ...] = (AXIS,)
) -> Strategy:
    return Strategy(
        lambda learner, mesh, config: constructor(
            learner, mesh, config.accumulation, layout
        ),
        axes,
    )


def pipeline(name: str) -> Strategy:
    return Strategy(
        lambda learner, mesh, config: pipeline_program(
            learner, mesh, config.accumulation, name, config.num_chunks(mesh)
        ),
        (AXIS, STAGE),
    )


STRATEGIES = {
    "jit": sharded(jit_program, REPLICATED),
    "pmap": replicas(pmap_program, (AXIS,)),
    "shard_map": replicas(shard_map_program, ("slice", AXIS)),
    "zero1": sharded(zero_program, ZERO1),
    "zero2": sharded(zero_program, ZERO2),
    "fsdp": sharded(zero_program, FSDP),
    "hsdp": sharded(zero_program, FSDP, (AXIS, "fsdp")),
    "tensor": sharded(zero_program, REPLICATED, (AXIS, TENSOR)),
    "hybrid": sharded(zero_program, FSDP, (AXIS, "fsdp", TENSOR)),
}
STRATEGIES |= {name: pipeline(name) for name in ORDERS}
STRATEGIES |= {name: local(name) for name in PLANS}

EXACT = [name for name in STRATEGIES if name not in PLANS]  # equal to one device
ALL_AXES = {axis for strategy in STRATEGIES.values() for axis in strategy.axes}


def build_program(config: ParallelConfig, learner: Learner, mesh: Mesh) -> Program:
    validate_tensor_dims(learner.tensor_dims, mesh.shape.get(TENSOR, 1))
    return STRATEGIES[config.strategy].program(learner, mesh, config)
