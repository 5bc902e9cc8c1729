"""An island: a worker that takes several steps by itself, and pushes how far it moved.

Inside it is the Program of any synchronous strategy, on devices of its own: one device, or
a pipeline, or layers that are split. It begins from the parameters that it pulls. Its
optimizer and its loss scale are its own, and go on from push to push.

A step has the number of its batch, so what it draws (dropout) depends on the number alone,
whoever takes it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parallel.program import Key, Learner, Params, Program, TrainState
from parallel.server.packing import Wire
from parallel.server.shard import Pulled, patched, push_key
from parallel.server.worker import (
    Copy,
    Order,
    Private,
    Rows,
    Told,
    first_residual,
    packed,
)


class Inside(NamedTuple):
    """What islands are made of, compiled once for all of a process."""

    learner: Learner
    inner: Program
    num_shards: int
    wire: Wire
    push: Callable
    patch: Callable

    def first_private(self, state: TrainState) -> Private:
        residual = first_residual(self.wire, state.params, self.num_shards)
        return Private(residual, state.opt, state.scale)


def inside(learner: Learner, inner: Program, num_shards: int, wire: Wire) -> Inside:
    return Inside(
        learner,
        inner,
        num_shards,
        wire,
        jax.jit(partial(moved, wire, num_shards)),
        jax.jit(partial(patched, wire)),
    )


class Island:
    def __init__(self, inside: Inside, index: int):
        self.inside, self.index = inside, index
        self.like = inside.inner.abstract_portable._replace(comm=())
        seed, num_shards = inside.learner.seed, inside.num_shards
        self.copy = Copy(self.like.params, num_shards, seed, index)

    def compute(
        self,
        order: Order,
        pulled: Sequence[Pulled | None],
        rows_of: Rows,
        private: Private,
    ) -> tuple[Told, Private, list[Any]]:
        inner, told = self.inside.inner, []
        before = jax.device_get(self.copy.pull(pulled, self.inside.patch))
        state = self.begin(before, private)
        for number in order.numbers:
            state = state._replace(step=self.step(number))
            state, metrics = inner.step(state, inner.place(rows_of(number)))
            told.append(jax.device_get(metrics))
        metrics = {name: np.stack([each[name] for each in told]) for name in told[0]}
        state, learnt = inner.portable(state), np.bool_(metrics["finite"].any())
        number, worker = np.uint32(order.numbers[0]), np.uint32(self.index)
        key = push_key(self.inside.learner.seed, number, worker)
        found = self.inside.push(before, state.params, private.residual, learnt, key)
        (payloads, lost), opt, scale = jax.device_get((found, state.opt, state.scale))
        rate = float(metrics["learning_rate"][-1])
        return Told(metrics, rate), Private(lost, opt, scale), payloads

    def begin(self, params: Params, private: Private) -> TrainState:
        """Lay out what the inner program begins from; its steps may overwrite it."""
        whole = TrainState(np.int32(0), params, private.opt, (), private.scale)
        return self.inside.inner.adopt(
            jax.tree.map(
                lambda x, like: jax.device_put(np.array(x), like.sharding), whole, self.like
            )
        )

    def step(self, number: int) -> jax.Array:
        return jax.device_put(np.int32(number), self.inside.inner.abstract.step.sharding)


def moved(
    wire: Wire,
    num_shards: int,
    before: Params,
    after: Params,
    residual: Any,
    learnt: jax.Array,
    key: Key,
) -> tuple[list[Any], Any]:
    """Pack how far an island moved; return the payloads, and what they lost.

    The move is before - after, so that the outer optimizer takes it as a gradient. Where
    nothing was learnt, the push is left out of its merge, and what it lost is not kept.
    """
    moves = jax.tree.map(jnp.subtract, before, after)
    payloads, lost = packed(wire, moves, residual, num_shards, key)
    return payloads, jax.tree.map(partial(jnp.where, learnt), lost, residual)
