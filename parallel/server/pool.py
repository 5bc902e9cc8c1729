"""Workers and shards in this process, in turn: deterministic, and the seam for other pools.

A pool runs what a session (parallel/server/program.py) orders. All shards get the same
commands in the same order, so a pull sees all shards after the same updates, and so does a
snapshot. Another pool has the same functions and its workers elsewhere (Pool).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from parallel.server.config import ServerConfig
from parallel.server.shard import Push, Shard, Snapshot
from parallel.server.worker import Order, Private, Rows, Told, Works

Place = tuple[int, int]  # a worker, and the piece of rows that it pushed


class Pool(Protocol):
    now: float  # seconds of the pool's own clock

    def start(
        self, shards: Sequence[Snapshot], privates: Sequence[Private], here: Sequence[int]
    ) -> None:
        """Begin from these states of the shards and of all workers; some are `here`."""

    def join(self, worker: int) -> None:
        """Let a worker join, which begins with what it kept when it left."""

    def leave(self, worker: int) -> None:
        """Let a worker leave at once; what it works on is lost."""

    def launch(self, order: Order, rows: Rows) -> None:
        """Let a worker pull, and then compute; return at once."""

    def finished(self, until: float | None = None) -> tuple[int, Told | None] | None:
        """Wait for a worker, at most until that time; None: none has finished by then.

        It may have died, or a shard that it pulled from; then it tells nothing (None). What
        it worked on is lost, and it has no copy of the parameters any more.
        """

    def merge(self, update: int, pushes: Sequence[Push]) -> list[float]:
        """Merge these pushes on all shards, in their order; return the squares.

        All others that have come until they are applied are forgotten.
        """

    def apply(
        self, update: int, square: float, factor: float, loss: float, counts: bool
    ) -> float:
        """Apply what was merged on all shards; return the learning rate.

        `counts`: workers go on with what they kept of these pushes; else with what they had
        before.
        """

    def snapshots(self) -> list[Snapshot]:
        """Return all shards after the last update, while workers go on."""

    def privates(self) -> list[Private]:
        """Return what each worker keeps, after its last push that was applied."""

    def close(self) -> None: ...


def duration(config: ServerConfig, seed: int, order: Order) -> float:
    """Return how long a worker's push lasts, where a fast worker has 1 for a number.

    Under `sync` a push is of a piece of the number's rows, and takes as much less time.
    """
    numbers = 1 / config.num_pieces if config.synchronous else len(order.numbers)
    slow = config.slowness[order.worker] * numbers
    if not config.jitter:
        return slow
    seeds = (seed, order.worker, order.numbers[0])
    noise = np.random.default_rng(seeds).standard_normal()
    return slow * math.exp(config.jitter * noise)


class Doing(NamedTuple):
    began: float
    end: float
    order: Order
    pulled: list
    rows: Rows


class LocalPool:
    """Workers take turns as if each ran by itself and took the time that the config says.

    Nothing is timed: `now` is a clock of whole steps, in the unit of the fastest worker.
    """

    def __init__(
        self,
        config: ServerConfig,
        seed: int,
        workers: Sequence[Works],
        new_shard: Callable[[Snapshot], Shard],
    ):
        self.config, self.seed = config, seed
        self.workers, self.new_shard = workers, new_shard
        self.now = 0.0

    def start(
        self, shards: Sequence[Snapshot], privates: Sequence[Private], here: Sequence[int]
    ) -> None:
        self.shards = [self.new_shard(snapshot) for snapshot in shards]
        self.private = list(privates)
        self.doing: dict[int, Doing] = {}
        self.done: dict[Place, tuple[Private, list[Any]]] = {}
        self.merged: list[Place] = []

    def join(self, worker: int) -> None: ...

    def leave(self, worker: int) -> None:
        self.doing.pop(worker, None)

    def launch(self, order: Order, rows: Rows) -> None:
        pulled = [shard.pull(order.worker, order.whole) for shard in self.shards]
        end = self.now + duration(self.config, self.seed, order)
        self.doing[order.worker] = Doing(self.now, end, order, pulled, rows)

    def finished(self, until: float | None = None) -> tuple[int, Told | None] | None:
        worker = min(self.doing, key=lambda worker: (self.doing[worker].end, worker))
        if until is not None and self.doing[worker].end > until:
            self.now = max(self.now, until)
            return None
        return worker, self.finish(worker)

    def finish(self, worker: int) -> Told:
        """Let this worker be the next that finishes."""
        began, end, order, pulled, rows = self.doing.pop(worker)
        self.now = max(self.now, end)
        told, private, payloads = self.workers[worker].compute(
            order, pulled, rows, self.private[worker]
        )
        self.done[worker, order.piece] = private, payloads
        return told._replace(seconds=end - began)

    def merge(self, update: int, pushes: Sequence[Push]) -> list[float]:
        self.merged = [(push.worker, push.piece) for push in pushes]
        return [
            shard.merge(update, pushes, [self.done[place][1][i] for place in self.merged])
            for i, shard in enumerate(self.shards)
        ]

    def apply(
        self, update: int, square: float, factor: float, loss: float, counts: bool
    ) -> float:
        rates = [shard.apply(update, square, factor, loss) for shard in self.shards]
        for worker, piece in self.merged if counts else ():
            self.private[worker], _ = self.done[worker, piece]
        self.done.clear()
        return rates[0]

    def snapshots(self) -> list[Snapshot]:
        return [shard.snapshot() for shard in self.shards]

    def privates(self) -> list[Private]:
        return self.private

    def close(self) -> None:
        self.doing = {}
