"""A worker: it keeps a copy of the parameters, and makes a push of a number's rows.

`parallel.server.optimizer` names two algorithms. server: the push is the mean gradient over
the worker's tokens. worker: the worker has an optimizer of its own, and the push is the
update that this makes of the gradient; the shards add updates up.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.mesh import batch_axes, knowing, place_rows
from parallel.program import (
    Batch,
    Key,
    Learner,
    Metrics,
    Params,
    TrainState,
    divided,
    divisor,
    gradients,
    total_weight,
    weight_of,
)
from parallel.server.packing import Wire
from parallel.server.parts import cut, join
from parallel.server.shard import Pulled, patched, pull_key, push_key

Rows = Callable[[int], dict[str, np.ndarray]]  # number -> its rows


class Order(NamedTuple):
    """One piece of work of a worker."""

    worker: int
    numbers: tuple[int, ...]  # several where a worker takes steps by itself
    version: int  # updates that had been applied when the worker pulled
    whole: bool  # the worker had no copy before
    scale: Any  # of the loss
    piece: int = 0  # of the number's rows, where an update has several


class Private(NamedTuple):
    """What a worker keeps for itself from push to push."""

    residual: Any  # a tree for each shard, what the codec lost; () without feedback
    opt: Any  # () if the shards have the optimizer
    scale: Any = ()  # of the loss, if the worker keeps its own


class Told(NamedTuple):
    """What a worker tells of a push, on the host."""

    # Of its rows: loss, tokens, ...; of an island: the metrics of each of its steps, [H].
    sums: dict[str, np.ndarray]
    learning_rate: float  # of its own optimizer; NaN without one
    seconds: float = 0.0  # from pull to push, in the pool's unit of time
    filled: float = 0.0  # share of its least duration in which it computed; 0: has none


class Works(Protocol):
    """A worker of a pool, whatever it pushes."""

    def compute(
        self,
        order: Order,
        pulled: Sequence[Pulled | None],
        rows_of: Rows,
        private: Private,
    ) -> tuple[Told, Private, list[Any]]:
        """Return what is told, what is kept, and the payload for each shard.

        `pulled` is what each shard sent, `private` what the worker kept of its last push.
        """


class Spread(NamedTuple):
    """How a Learner is spread over workers and shards."""

    learner: Learner
    num_pieces: int  # into which the rows of a number are cut
    num_shards: int
    accumulation: int
    wire: Wire
    own_optimizer: bool  # each worker has one
    most: float = 0.0  # norm of a gradient before it is compressed; 0: any

    def first_private(self, state: TrainState) -> Private:
        residual = first_residual(self.wire, state.params, self.num_shards)
        return Private(residual, state.opt if self.own_optimizer else ())


def first_residual(wire: Wire, params: Params, num_shards: int) -> Any:
    parts = cut(params, num_shards)
    return jax.tree.map(jnp.zeros_like, parts) if wire.feedback else ()


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


class Copy:
    """A worker's copy of the parameters, which it pulls from the shards."""

    def __init__(self, like: Params, num_shards: int, seed: int, index: int):
        self.like, self.seed, self.index = like, seed, index
        self.parts: list[Params] = [None] * num_shards

    def pull(self, pulled: Sequence[Pulled | None], patch: Callable) -> Params:
        """Bring the copy up to date with what the shards sent; return the whole."""
        for i, found in enumerate(pulled):
            if found is None:
                continue
            if found.difference:
                key = pull_key(self.seed, found.version, self.index)
                self.parts[i] = patch(self.parts[i], found.payload, key)
            else:
                self.parts[i] = jax.tree.map(jnp.asarray, found.payload)
        return join(self.parts, self.like)


class Worker:
    def __init__(self, trade: Trade, index: int):
        self.spread, self.trade, self.index = trade.spread, trade, index
        learner = self.spread.learner
        like = jax.eval_shape(learner.task.init, jax.random.key(0))
        self.copy = Copy(like, self.spread.num_shards, learner.seed, index)

    def compute(
        self,
        order: Order,
        pulled: Sequence[Pulled | None],
        rows_of: Rows,
        private: Private,
    ) -> tuple[Told, Private, list[Any]]:
        params, rows = self.copy.pull(pulled, self.trade.patch), rows_of(order.numbers[0])
        num = self.spread.num_pieces
        rows = {k: np.split(x, num)[order.piece] for k, x in rows.items()}
        batch = place_rows(self.trade.mesh, rows)
        number, worker = np.uint32(order.numbers[0]), np.uint32(self.index)
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
    if spread.most:  # what is left of a huge gradient would come again, push by push
        factor = jnp.minimum(1, spread.most / optax.tree.norm(means))
        means = jax.tree.map(lambda x: x * factor, means)
    key = push_key(learner.seed, number, worker)
    payloads, lost = packed(spread.wire, means, private.residual, spread.num_shards, key)
    new = Private(lost, opt)
    # What a push that is left out brought is not to be remembered.
    kept = jax.tree.map(partial(jnp.where, finite), new, private)
    return (sums, rate), kept, payloads


def packed(
    wire: Wire, tree: Params, residual: Any, num_shards: int, key: Key
) -> tuple[list[Any], Any]:
    """Cut what is pushed for the shards; return the payloads, and what they lost."""
    parts = cut(tree, num_shards)
    payloads, lost = [], []
    for part, kept in zip(parts, residual or parts, strict=True):
        payload, left = wire.push(part, kept, key)
        payloads.append(payload)
        lost.append(left)
    return payloads, lost if residual else ()
