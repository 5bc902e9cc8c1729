"""The compiled steps of a program: one for each shape that its batches have."""

import dataclasses
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import numpy as np

from configs.base import Experiment
from experiments.run.phases.phase import Phase, phases_of
from lm.data.rows.order import Order
from lm.task import Batch
from parallel.mesh import abstract_rows, is_absent, process_rows
from parallel.program import Metrics, Program, TrainState


class Steps(NamedTuple):
    """A compiled step for each shape of a batch, the largest batch last."""

    compiled: dict[tuple[int, ...], jax.stages.Compiled]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.compiled[batch["tokens"].shape](state, batch)

    @property
    def largest(self) -> jax.stages.Compiled:
        return list(self.compiled.values())[-1]


def compile_steps(
    phase: Phase, program: Program, extra: Collection[str] = ()
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile the program's step for all shapes that the batches of a phase will have.

    pmap over several processes cannot compile ahead; its step is returned unchanged.
    """
    if not hasattr(program.step, "lower"):
        return program.step
    batches = [abstract_batch(program, *shape, extra) for shape in phase_shapes(phase)]
    return Steps({each["tokens"].shape: compile_for(program, each) for each in batches})


def compile_step(
    config: Experiment, program: Program, extra: Collection[str] = ()
) -> jax.stages.Compiled:
    """Compile the step of a run's first phase ahead of time, without a state or data.

    `extra` names the arrays that a batch has besides the usual ones. Where batches have
    several shapes, the step is that of the largest.
    """
    if not hasattr(program.step, "lower"):
        return program.step
    shape = batch_shapes(config)[-1]
    return compile_for(program, abstract_batch(program, *shape, extra))


def compile_for(program: Program, batch: Batch) -> jax.stages.Compiled:
    return program.step.lower(program.abstract, batch).compile()


def batch_shapes(config: Experiment) -> list[tuple[int, int]]:
    """Return the shapes of the batches of a run's first phase."""
    return phase_shapes(phases_of(config)[0])


def phase_shapes(phase: Phase) -> list[tuple[int, int]]:
    """Return the rows and the length (T) of each shape of a batch, the largest last."""
    data = phase.config.data
    if data.lengths:
        positions = data.batch_size * data.seq_len
        return [(positions // length, length) for length in reversed(data.lengths)]
    return [(rows, data.seq_len) for rows in phase.batch_sizes]


def at_its_largest(phase: Phase) -> Experiment:
    """Return the config of a phase with batches of one shape, its largest."""
    data, rows = phase.config.data, phase.batch_sizes[-1]
    data = dataclasses.replace(data, batch_size=rows, growth=(), equal_tokens=False)
    return dataclasses.replace(phase.config, data=data)


def abstract_batch(
    program: Program, rows: int, length: int, extra: Collection[str]
) -> Batch:
    if is_absent(program.mesh):
        return abstract_rows(program.mesh, empty_rows(rows, length, extra))
    local = rows // process_rows(program.mesh)[1]
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        program.place(empty_rows(local, length, extra)),
    )


def empty_rows(
    num_rows: int, length: int, extra: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Allocate rows without values."""
    tokens = np.zeros((num_rows, length + 1), np.int32)
    rows = {"tokens": tokens, "segments": tokens, "row": np.zeros(num_rows, np.int32)}
    types = {"weights": np.float32, "inputs": np.int32}
    return rows | {name: tokens.astype(types[name]) for name in extra}


def row_order(config: Experiment) -> Order:
    data = config.data
    return Order(
        config.seed,
        data.batch_size,
        data.sampling,
        data.augment,
        data.source_weights,
        data.growth,
        data.lengths,
        data.source_len,
        data.spans if data.packing == "spans" else None,
        data.level,
    )
