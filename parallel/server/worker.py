"""A worker: it keeps a copy of the parameters, and makes a push of a number's rows.

`parallel.server.optimizer` names two algorithms. server: the push is the mean gradient over
the worker's tokens. worker: the worker has an optimizer of its own, and the push is the
update that this makes of the gradient; the shards add updates up.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.mesh import batch_axes, knowing, place_rows
from parallel.program import (
    Batch,
    Learner,
    Metrics,
    Params,
    divided,
    divisor,
    gradients,
    total_weight,
    weight_of,
)
from parallel.server.packing import Wire
from parallel.server.parts import cut, join
from parallel.server.shard import Pulled, patched, pull_key, push_key


class Order(NamedTuple):
    """One piece of work of a worker."""

    worker: int
    number: int
    version: int  # updates that had been applied when the worker pulled
    whole: bool  # the worker had no copy before
    scale: Any  # of the loss


class Private(NamedTuple):
    """What a worker keeps for itself from push to push."""

    residual: Any  # a tree for each shard, what the codec lost; () without feedback
    opt: Any  # () if the shards have the optimizer


class Told(NamedTuple):
    """What a worker tells of a push, on the host."""

    sums: dict[str, np.ndarray]  # of its rows: loss, tokens, ...
    learning_rate: float  # of its own optimizer; NaN without one
    filled: float = 0.0  # share of its least duration in which it computed; 0: has none


class Spread(NamedTuple):
    """How a Learner is spread over workers and shards."""

    learner: Learner
    num_workers: int
    num_shards: int
    accumulation: int
    wire: Wire
    own_optimizer: bool  # each worker has one
    splits: bool  # the rows of a number are split over the workers

    def first_private(self, params: Params, opt: Any) -> Private:
        residual = jax.tree.map(jnp.zeros_like, cut(params, self.num_shards))
        return Private(
            residual if self.wire.feedback else (), opt if self.own_optimizer else ()
        )


class Trade(NamedTuple):
    """The jitted functions of workers, compiled once for all of a process."""

    spread: Spread
    mesh: Mesh  # of one worker
    push: Callable
    patch: Callable


def trade(spread: Spread, mesh: Mesh) -> Trade:
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(batch_axes(mesh)))
    each = (everywhere, everywhere, rows, everywhere, everywhere, everywhere)
    pushes = jax.jit(
        knowing(mesh, partial(push, spread)), in_shardings=each, out_shardings=everywhere
    )
    return Trade(spread, mesh, pushes, jax.jit(partial(patched, spread.wire)))


class Worker:
    def __init__(self, trade: Trade, index: int):
        self.spread, self.trade, self.index = trade.spread, trade, index
        self.copies: list[Params] = [None] * self.spread.num_shards
        self.like = jax.eval_shape(self.spread.learner.task.init, jax.random.key(0))

    def pull(self, pulled: Sequence[Pulled | None]) -> None:
        """Bring the copy up to date with what the shards sent."""
        seed = self.spread.learner.seed
        for i, found in enumerate(pulled):
            if found is None:
                continue
            if found.difference:
                key = pull_key(seed, found.version, self.index)
                self.copies[i] = self.trade.patch(self.copies[i], found.payload, key)
            else:
                self.copies[i] = jax.tree.map(jnp.asarray, found.payload)

    def compute(
        self,
        order: Order,
        pulled: Sequence[Pulled | None],
        rows: dict[str, np.ndarray],
        private: Private,
    ) -> tuple[Told, Private, list[Any]]:
        """Return what is told, what is kept, and the payload for each shard.

        `rows` are those of the whole number.
        """
        self.pull(pulled)
        if self.spread.splits:
            rows = {
                k: np.split(x, self.spread.num_workers)[self.index] for k, x in rows.items()
            }
        batch = place_rows(self.trade.mesh, rows)
        number, worker = np.uint32(order.number), np.uint32(self.index)
        params = join(self.copies, self.like)
        found = self.trade.push(params, private, batch, order.scale, number, worker)
        (sums, rate), private, payloads = jax.device_get(found)
        return Told(sums, float(rate)), private, payloads


def push(
    spread: Spread,
    params: Params,
    private: Private,
    batch: Batch,
    scale: Any,
    number: jax.Array,
    worker: jax.Array,
) -> tuple[tuple[Metrics, jax.Array], Private, list[Any]]:
    learner = spread.learner
    key = learner.step_key(number)
    grads, sums = gradients(
        learner.task.loss, params, batch, key, scale.value, spread.accumulation
    )
    means = divided(grads, total_weight(sums, scale))
    finite = jnp.isfinite(sum(jnp.sum(x) for x in jax.tree.leaves(means)))
    opt, rate = private.opt, jnp.float32(jnp.nan)
    if spread.own_optimizer:
        loss = sums["loss"] / divisor(weight_of(sums))
        means, opt = learner.optimizer.update(means, opt, params, value=loss)
        rate = learner.learning_rate(opt)
        # Not finite on the shards either, so that all of them leave this push out.
        means = jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), means)
    parts = cut(means, spread.num_shards)
    residuals = private.residual or parts
    payloads, lost = [], []
    for part, residual in zip(parts, residuals, strict=True):
        key = push_key(learner.seed, number, worker)
        payload, left = spread.wire.push(part, residual, key)
        payloads.append(payload)
        lost.append(left)
    new = Private(lost if private.residual else (), opt)
    # What a push that is left out brought is not to be remembered.
    kept = jax.tree.map(partial(jnp.where, finite), new, private)
    return (sums, rate), kept, payloads
