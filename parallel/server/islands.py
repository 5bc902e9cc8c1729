"""A run of islands: a step tells of a number, and a merge of pushes is an update.

An island pushes after several steps, each of a number of its own. A merge is made in the
step that tells of the last of its numbers.
"""

import math
from typing import NamedTuple

import numpy as np

from parallel.program import Metrics, weight_of
from parallel.readings import APPLIED, COMPUTE
from parallel.server.desk import take
from parallel.server.kinds import Parts
from parallel.server.merging import local_steps, weights, window
from parallel.server.pool import Pool
from parallel.server.session import Line, Session
from parallel.server.worker import Rows, Told


class Merge(NamedTuple):
    """Pushes that make one update, and the metrics of their numbers yet to be told."""

    told: dict[int, Told]
    untold: list[Metrics]


class Islands(Session):
    def __init__(self, parts: Parts, pool: Pool):
        super().__init__(parts, pool)
        self.merge: Merge | None = None

    def steps_of(self, worker: int) -> int:
        """Return how many steps a worker takes before it pushes."""
        config, every = self.parts.merging
        return local_steps(worker, self.speeds, every, config.by_speed)

    def step(self, step: int, rows: Rows) -> Metrics:
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
            order = self.orders[worker]
            if found.seconds and not order.whole:  # in its first push a worker compiles
                self.speeds[worker] = len(order.numbers) / found.seconds
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
                    COMPUTE: self.seconds([(order, told[worker])]),
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
