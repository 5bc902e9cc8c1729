"""The loss that all islands know, told to the optimizer inside each of them.

A schedule that follows the loss must be at the same rate on every island, but the program
of an island sees the loss of its own rows alone. So the loss that was told at the last
meeting goes into an island's step beside the loss scale, which every strategy hands on as
it is, and the optimizer is told that one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallel.meetings import UNKNOWN_LOSS
from parallel.program import Batch, Learner, Metrics


class Following(NamedTuple):
    """The state of the loss scale inside an island."""

    own: Any  # as the learner has it
    loss: jax.Array  # float32[], told at the last meeting

    @property
    def value(self) -> jax.Array:
        return self.own.value


def following(learner: Learner) -> Learner:
    """Return the learner whose optimizer is told the loss of the last meeting."""
    scaling = learner.scaling

    def init() -> Following:
        return Following(scaling.init(), jnp.float32(UNKNOWN_LOSS))

    def update(scale: Following, finite: jax.Array, sums: Metrics) -> Following:
        return scale._replace(own=scaling.update(scale.own, finite, sums))

    def mark(scale: Following, batch: Batch) -> Batch:
        return scaling.mark(scale.own, batch)

    def told(scale: Following) -> Metrics:
        return scaling.told(scale.own)

    return learner._replace(
        scaling=scaling._replace(init=init, update=update, mark=mark, told=told),
        told_loss=lambda state, loss: state.scale.loss,
    )
