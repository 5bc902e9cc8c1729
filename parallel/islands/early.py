"""One program for the first steps, and another one after them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from parallel.local import numbered
from parallel.program import (
    Batch,
    Metrics,
    Params,
    Program,
    TrainState,
    divisor,
    same,
    weight_of,
)


class EarlySteps(NamedTuple):
    """Steps of two programs; traced, lowered and compiled as a jitted function is.

    What is told of its programs and its memory is that of the later ones.
    """

    first: int
    early: Callable
    late: Callable
    abstract: TrainState  # of the early program
    begin: Callable[[TrainState], TrainState]  # the first state of the later program

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if state.step >= self.first:
            return self.late(state, batch)
        step = np.int32(state.step + 1)
        state, metrics = self.early(state, batch)
        state = state._replace(step=step)
        return (told(self.begin(state), metrics) if step == self.first else state), metrics

    def lower(self, state: TrainState, batch: Batch) -> "EarlySteps":
        early = self.early.lower(self.abstract, batch)
        return self._replace(early=early, late=self.late.lower(state, batch))

    def compile(self) -> "EarlySteps":
        return self._replace(early=self.early.compile(), late=self.late.compile())

    @property
    def programs(self) -> list[tuple[Any, Mesh]]:
        return self.late.programs

    def memory_analysis(self) -> Any:
        return self.late.memory_analysis()

    def cost_analysis(self) -> dict[str, float]:
        return self.late.cost_analysis()


def told(state: TrainState, metrics: Metrics) -> TrainState:
    """Tell all islands the loss of the last step that they took together.

    A schedule that follows the loss is told that one until they have met.
    """
    loss = np.float32(metrics["loss"] / divisor(weight_of(metrics)))
    if not np.isfinite(loss):
        return state
    tally = [
        each._replace(
            loss=jax.device_put(np.full(each.loss.shape, loss), each.loss.sharding)
        )
        for each in state.comm.tally
    ]
    return state._replace(comm=state.comm._replace(tally=tally))


def early_program(first: int, early: Program, late: Program) -> Program:
    """Take the first steps by one program, and those after them by another.

    Both run on the same devices, and the number of a step is known to the host. A state
    that is saved early is saved as the later program would begin from it.
    """

    def laid(program: Program) -> Callable[[TrainState], TrainState]:
        """Return what lays a state out as the program saves it."""
        like = program.abstract_portable._replace(comm=())
        return jax.jit(same, out_shardings=jax.tree.map(lambda x: x.sharding, like))

    as_early, as_late = laid(early), laid(late)

    def plain(state: TrainState) -> TrainState:
        return as_late(early.portable(state)._replace(comm=()))

    def begin(state: TrainState) -> TrainState:
        return late.adopt(plain(state))

    def params(state: TrainState) -> Params:
        return (early if state.step < first else late).params(state)

    def portable(state: TrainState) -> TrainState:
        if state.step >= first:
            return late.portable(state)
        # Not the average of equal copies, which may be rounded.
        return plain(state)._replace(comm=late.portable(begin(state)).comm)

    def adopt(state: TrainState) -> TrainState:
        if state.step >= first:
            return late.adopt(state)
        return numbered(early.adopt(as_early(state._replace(comm=()))))

    return late._replace(
        init=lambda key: numbered(early.init(key)),
        step=EarlySteps(first, early.step, late.step, early.abstract, begin),
        params=params,
        portable=portable,
        adopt=adopt,
    )
