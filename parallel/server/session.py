"""A run on a pool: who works on what, and what was applied.

A step of the training loop is

  sync         an update, of the pushes of all workers, which share the rows of a number
  async, ssp   an update, of one push of one number
  islands      a number. An island pushes after several steps, each of a number of its own,
               and a merge of pushes is one update. A merge is made in the step that tells
               of the last of its numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from parallel.program import Metrics, Params, TrainState, divisor, weight_of
from parallel.readings import APPLIED
from parallel.server.attendance import attended, present
from parallel.server.desk import Desk, give_back, hand, lag, leave, may_start, take
from parallel.server.kinds import Parts
from parallel.server.merging import local_steps, weights, window
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


class Merge(NamedTuple):
    """Pushes that make one update, and the metrics of their numbers yet to be told."""

    told: dict[int, Told]
    untold: list[Metrics]


class Kept(NamedTuple):
    """What is saved of shards and workers."""

    params: Params
    opt: Any  # of the Learner's optimizer; where each worker has its own, the mean
    scale: Any  # of the loss; where each worker has its own, the mean
    outer: Any  # of the shards' optimizer, where each worker has the Learner's
    privates: list[Private]


class Session:
    """One run on a pool: who works on what, and what was applied."""

    def __init__(self, parts: Parts, pool: Pool):
        self.parts, self.pool = parts, pool
        self.config, self.learner = parts.config, parts.learner
        self.workers: Sequence[int] = range(self.config.workers)  # that are here
        self.orders: dict[int, Order] = {}
        self.lags: dict[int, int] = {}
        self.speeds: dict[int, float] = {}  # worker -> numbers a second, of its last push
        self.merge: Merge | None = None

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

    def launch(self, worker: int, numbers: tuple[int, ...], rows: Rows) -> None:
        order = Order(worker, numbers, self.updates, worker in self.bare, self.scale)
        self.bare.discard(worker)
        self.orders[worker] = order
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

    def steps_of(self, worker: int) -> int:
        """Return how many steps a worker takes before it pushes."""
        if self.parts.merging is None:
            return 1
        config, every = self.parts.merging
        return local_steps(worker, self.speeds, every, config.by_speed)

    def died(self, worker: int) -> None:
        """Take back what a worker was given that died."""
        self.desk = give_back(self.desk, worker)
        self.bare.add(worker)
        del self.orders[worker]

    def step(self, step: int, rows: Rows) -> Metrics:
        """Take the step after `step` of the training loop."""
        if self.parts.merging is not None:
            return self.tell(step, rows)
        return (self.together if self.config.synchronous else self.alone)(rows)

    def together(self, rows: Rows) -> Metrics:
        """Let all workers push their rows of one number, and make one update of it."""
        number = self.desk.next
        for worker in self.workers:
            self.launch(worker, (number,), rows)
        told: dict[int, Told] = {}
        while len(told) < len(self.workers):
            worker, found = self.pool.finished()
            if found is None:
                self.bare.add(worker)
                self.launch(worker, (number,), rows)
            else:
                told[worker] = found
        self.desk = self.desk._replace(next=number + 1)
        return self.update(told)

    def alone(self, rows: Rows) -> Metrics:
        """Wait for the next push, and make an update of it."""
        while True:
            self.hand_out(rows)
            worker, told = self.pool.finished()
            if told is not None:
                break
            self.died(worker)
        metrics = self.update({worker: told})
        self.desk = take(self.desk, worker)
        return metrics | {"worker": np.int32(worker)}

    def update(self, told: dict[int, Told]) -> Metrics:
        """Make an update of the gradients of these workers, in their order."""
        workers = sorted(told)
        sums = jax.tree.map(lambda *xs: np.sum(xs, 0), *(told[w].sums for w in workers))
        weight = float(divisor(weight_of(sums)))
        orders = [self.orders.pop(worker) for worker in workers]
        staleness = self.updates - orders[0].version
        inverse = self.config.weigh == "inverse"
        factor = 1 / max(1, staleness) if inverse else 1.0
        shares = [
            float(weight_of(told[w].sums)) / weight if len(told) > 1 else 1.0
            for w in workers
        ]
        loss = float(sums["loss"]) / weight
        square, rate = self.apply(orders, shares, factor, loss)
        finite = math.isfinite(square) and math.isfinite(loss)
        shown = self.learner.scaling.told(self.scale)
        scaled = self.learner.scaling.update(self.scale, np.bool_(finite), sums)
        self.scale = jax.device_get(scaled)
        own = self.parts.own_optimizer
        rate = told[workers[0]].learning_rate if own else rate
        return {
            **sums,
            **shown,
            "grad_norm": np.float32(math.sqrt(square) if square >= 0 else math.nan),
            "finite": np.bool_(finite),
            "learning_rate": np.float32(rate),
            "number": np.int32(orders[0].numbers[0]),
            "staleness": np.int32(staleness),
            "filled": np.float32(max(each.filled for each in told.values())),
            APPLIED: self.lines(orders, self.updates),
        }

    def apply(
        self, orders: list[Order], shares: list[float], factor: float, loss: float
    ) -> tuple[float, float]:
        """Let the shards merge and apply the pushes of these orders.

        Return the square of the norm of what was merged, and the learning rate.
        """
        pushes = [
            Push(order.worker, order.numbers[0], share)
            for order, share in zip(orders, shares, strict=True)
        ]
        self.updates += 1
        # In the order of the shards.
        square = math.fsum(self.pool.merge(self.updates, pushes))
        return square, self.pool.apply(self.updates, square, factor, loss)

    def lines(self, orders: list[Order], step: int) -> list[Line]:
        """Return the lines of the last update, which was made in this step of the loop."""
        return [
            Line(
                self.updates, order.worker, number, order.version, order.whole,
                self.lags.get(order.worker, 0), self.config.shards, step,
            )
            for order in orders
            for number in order.numbers
        ]  # fmt: skip

    def tell(self, step: int, rows: Rows) -> Metrics:
        """Return the metrics of the next number of a merge, and make it after its last.

        A checkpoint between them has none of the merge, and the numbers that the run
        before told of are trained on again: the first ones are not told of twice.
        """
        lines: list[Line] = []
        while True:
            if self.merge is None:
                self.merge = self.gathered(rows)
                del self.merge.untold[: step - self.desk.applied]
            metrics = self.merge.untold.pop(0) if self.merge.untold else None
            if not self.merge.untold:
                lines += self.merged(self.merge.told, step + 1)
            if metrics is not None:
                return metrics | {APPLIED: lines}

    def gathered(self, rows: Rows) -> Merge:
        """Wait for a quorum of pushes, and then for those that come within the window."""
        config, told = self.parts.merging.config, {}
        self.hand_out(rows)
        began, until = self.pool.now, None
        while len(told) < len(self.orders):
            if len(told) >= min(config.quorum, len(self.orders)) and until is None:
                if not config.grace:
                    break
                until = window(began, self.pool.now, config.grace)
            waiting = self.pool.finished(until)
            if waiting is None:
                break
            worker, found = waiting
            if found is None:
                self.died(worker)
                self.hand_out(rows)
            else:
                told[worker] = found
        for worker, found in told.items():
            if found.seconds:
                numbers = self.orders[worker].numbers
                self.speeds[worker] = len(numbers) / found.seconds
        return Merge(told, self.metrics(told))

    def metrics(self, told: dict[int, Told]) -> list[Metrics]:
        """Return those of each number that the workers learnt from, in their order."""
        found = []
        for worker in sorted(told):
            order, sums = self.orders[worker], told[worker].sums
            found += [
                {name: x[i] for name, x in sums.items()}
                | {
                    "number": np.int32(number),
                    "worker": np.int32(worker),
                    "staleness": np.int32(self.updates - order.version),
                    "filled": np.float32(told[worker].filled),
                }
                for i, number in enumerate(order.numbers)
            ]
        return found

    def merged(self, told: dict[int, Told], step: int) -> list[Line]:
        """Make an update of the moves of these workers; return its lines.

        Where nothing was learnt, there is no mean loss, and the shards change nothing.
        """
        workers, config = sorted(told), self.parts.merging.config
        tokens, steps, loss = [], [], 0.0
        for worker in workers:
            sums = told[worker].sums
            fine = sums["finite"]
            tokens.append(float(np.sum(weight_of(sums), where=fine)))
            steps.append(int(np.sum(fine)))
            loss += float(np.sum(sums["loss"], where=fine))
        orders = [self.orders.pop(worker) for worker in workers]
        shares = weights(tokens, steps, config.weigh)
        self.apply(orders, shares, 1.0, loss / sum(tokens) if sum(tokens) else math.nan)
        for worker in workers:
            self.desk = take(self.desk, worker)
        self.merge = None
        return self.lines(orders, step)

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


def mean(trees: list[Any]) -> Any:
    """Average floats; integers (counts of steps) are those that are furthest."""

    def one(*xs: np.ndarray) -> np.ndarray:
        floats = np.issubdtype(np.asarray(xs[0]).dtype, np.floating)
        return np.mean(xs, 0, dtype=np.asarray(xs[0]).dtype) if floats else np.max(xs, 0)

    return jax.tree.map(one, *trees)
