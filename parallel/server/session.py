"""A run on a pool: who works on what, and what was applied.

What a step of the training loop is, the kinds of sessions say: synchronous.py,
asynchronous.py and islands.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from parallel.program import Metrics, Params, TrainState, divisor, weight_of
from parallel.readings import APPLIED, COMPUTE
from parallel.server.attendance import attended, present
from parallel.server.desk import Desk, give_back, hand, lag, leave, may_start
from parallel.server.kinds import Parts
from parallel.server.parts import cut, join, part_of
from parallel.server.pool import Pool
from parallel.server.shard import Push, Snapshot, first_opt
from parallel.server.worker import Order, Private, Rows, Told


class Line(NamedTuple):
    """A number whose push was applied: a line of schedule.jsonl."""

    update: int  # the number of the update, from 1
    worker: int
    number: int
    version: int  # updates that all shards had applied when the worker pulled
    whole: bool  # the worker pulled everything, for it had no copy
    lag: int  # pushes that the worker was ahead of the slowest when it pulled
    shards: int
    step: int  # of the training loop, in which the update was made
    piece: int = 0  # of the number's rows, where an update has several


Pushed = tuple[Order, Told]


class Kept(NamedTuple):
    """What is saved of shards and workers."""

    params: Params
    opt: Any  # of the Learner's optimizer; where each worker has its own, the mean
    scale: Any  # of the loss; where each worker has its own, the mean
    outer: Any  # of the shards' optimizer, where each worker has the Learner's
    privates: list[Private]


class Session(ABC):
    """One run on a pool: who works on what, and what was applied."""

    def __init__(self, parts: Parts, pool: Pool):
        self.parts, self.pool = parts, pool
        self.config, self.learner = parts.config, parts.learner
        self.workers: Sequence[int] = range(self.config.workers)  # that are here
        self.orders: dict[int, Order] = {}
        self.began: dict[int, float] = {}  # by the pool's clock
        self.lags: dict[int, int] = {}
        self.speeds: dict[int, float] = {}  # worker -> numbers a second, of its last push

    @abstractmethod
    def step(self, step: int, rows: Rows) -> Metrics:
        """Take the step after `step` of the training loop."""

    def steps_of(self, worker: int) -> int:
        """Return how many steps a worker takes before it pushes."""
        return 1

    def start(
        self,
        state: TrainState,
        privates: list[Private],
        desk: Desk,
        updates: int,
        outer: Any = (),
    ) -> None:
        """Begin from a whole state on the host, after so many updates.

        `outer` is what the shards' optimizer has kept, if each worker has the Learner's;
        (): it begins.
        """
        self.scale, self.updates = state.scale, updates
        self.bare = set(self.workers)  # workers without a copy of the parameters
        self.workers = present(self.config.attendance, self.config.workers, updates)
        self.desk = desk._replace(clocks=self.clocks(desk))
        snapshots, kept = [], outer if self.parts.own_optimizer else state.opt
        for params in cut(state.params, self.config.shards):
            opt = part_of(kept, first_opt(self.parts.rules.optimizer, params))
            opt = jax.device_get(opt)
            snapshots.append(Snapshot(updates, updates, params, opt, {}, {}))
        self.pool.start(snapshots, privates, self.workers)

    def clocks(self, desk: Desk) -> dict[int, int]:
        """Return the clocks of those that are here now."""
        events, num = self.config.attendance, self.config.workers
        return attended(desk.clocks, events, num, self.updates)

    def attend(self) -> None:
        """Let workers join and leave whose turn it is after so many updates."""
        clocks = self.clocks(self.desk)
        for worker in self.desk.clocks.keys() - clocks.keys():
            self.desk = leave(self.desk, worker)
            self.orders.pop(worker, None)
            self.speeds.pop(worker, None)
            self.bare.add(worker)
            self.pool.leave(worker)
        for worker in sorted(clocks.keys() - self.desk.clocks.keys()):
            self.pool.join(worker)
        self.workers = sorted(clocks)
        self.desk = self.desk._replace(clocks=clocks)

    def launch(
        self, worker: int, numbers: tuple[int, ...], rows: Rows, piece: int = 0
    ) -> None:
        whole = worker in self.bare
        order = Order(worker, numbers, self.updates, whole, self.scale, piece)
        self.bare.discard(worker)
        self.orders[worker], self.began[worker] = order, self.pool.now
        self.pool.launch(order, rows)

    def hand_out(self, rows: Rows) -> None:
        """Give work to all that may start, before the next push changes the parameters."""
        self.attend()
        end = self.learner.num_steps or None
        for worker in self.workers:
            if may_start(self.desk, worker, self.config.bound, end):
                self.lags[worker] = lag(self.desk, worker)
                count = self.steps_of(worker)
                self.desk, numbers = hand(self.desk, worker, count, end)
                self.launch(worker, numbers, rows)

    def died(self, worker: int) -> None:
        """Take back what a worker was given that died."""
        self.desk = give_back(self.desk, worker)
        self.bare.add(worker)
        del self.orders[worker]

    def update(self, pushes: list[Pushed]) -> Metrics:
        """Make an update of these pushes of gradients, in their order."""
        orders, told = [order for order, _ in pushes], [told for _, told in pushes]
        sums = jax.tree.map(lambda *xs: np.sum(xs, 0), *(each.sums for each in told))
        weight = float(divisor(weight_of(sums)))
        staleness = self.updates - orders[0].version
        inverse = self.config.weigh == "inverse"
        factor = 1 / max(1, staleness) if inverse else 1.0
        shares = [
            float(weight_of(each.sums)) / weight if len(told) > 1 else 1.0 for each in told
        ]
        loss = float(sums["loss"]) / weight
        square, rate = self.apply(orders, shares, factor, loss)
        fine = finite(square, loss)
        shown = self.learner.scaling.told(self.scale)
        scaled = self.learner.scaling.update(self.scale, np.bool_(fine), sums)
        self.scale = jax.device_get(scaled)
        own = self.parts.own_optimizer
        rate = told[0].learning_rate if own else rate
        return {
            **sums,
            **shown,
            "grad_norm": np.float32(math.sqrt(square) if square >= 0 else math.nan),
            "finite": np.bool_(fine),
            "learning_rate": np.float32(rate),
            "number": np.int32(orders[0].numbers[0]),
            "staleness": np.int32(staleness),
            "filled": np.float32(max(each.filled for each in told)),
            COMPUTE: self.seconds(pushes),
            APPLIED: self.lines(orders, self.updates),
        }

    def seconds(self, pushes: list[Pushed]) -> np.ndarray:
        """Return the seconds that each worker took for a number, or a piece, float32[W].

        NaN: it has told nothing now, or of its first push, in which it compiles.
        """
        found: dict[int, list[float]] = {
            worker: [] for worker in range(self.config.workers)
        }
        for order, told in pushes:
            if not order.whole:
                found[order.worker].append(told.seconds / len(order.numbers))
        return np.array([np.mean(x) if x else np.nan for x in found.values()], np.float32)

    def apply(
        self, orders: list[Order], shares: list[float], factor: float, loss: float
    ) -> tuple[float, float]:
        """Let the shards merge and apply the pushes of these orders.

        Return the square of the norm of what was merged, and the learning rate.
        """
        pushes = [
            Push(order.worker, order.numbers[0], share, order.piece)
            for order, share in zip(orders, shares, strict=True)
        ]
        self.updates += 1
        # In the order of the shards.
        square = math.fsum(self.pool.merge(self.updates, pushes))
        # An update that is left out leaves no trace with any of its workers. An island has
        # taken its steps in any case.
        counts = self.parts.merging is not None or finite(square, loss)
        return square, self.pool.apply(self.updates, square, factor, loss, counts)

    def lines(self, orders: list[Order], step: int) -> list[Line]:
        """Return the lines of the last update, which was made in this step of the loop."""
        return [
            Line(
                self.updates, order.worker, number, order.version, order.whole,
                self.lags.get(order.worker, 0), self.config.shards, step, order.piece,
            )
            for order in orders
            for number in order.numbers
        ]  # fmt: skip

    def params(self, like: Params) -> Params:
        return join([each.params for each in self.pool.snapshots()], like)

    def kept(self, like: TrainState, outer: Any) -> Kept:
        """Return what is saved of shards and workers, after one update."""
        snapshots, privates = self.pool.snapshots(), self.pool.privates()
        params = join([each.params for each in snapshots], like.params)
        own = self.parts.own_optimizer
        opt = join([each.opt for each in snapshots], outer if own else like.opt)
        if not own:
            return Kept(params, opt, self.scale, (), privates)
        scales = [each.scale for each in privates]
        scale = mean(scales) if jax.tree.leaves(scales) else self.scale
        return Kept(params, mean([each.opt for each in privates]), scale, opt, privates)


def finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))


def mean(trees: list[Any]) -> Any:
    """Average floats; integers (counts of steps) are those that are furthest."""

    def one(*xs: np.ndarray) -> np.ndarray:
        floats = np.issubdtype(np.asarray(xs[0]).dtype, np.floating)
        return np.mean(xs, 0, dtype=np.asarray(xs[0]).dtype) if floats else np.max(xs, 0)

    return jax.tree.map(one, *trees)
