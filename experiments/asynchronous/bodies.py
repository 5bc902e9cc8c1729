"""What runs in the processes of Ray: a worker, and a server shard.

Each builds its own part of the run from the config, on JAX devices of its own. Rows do not
travel: a worker reads those of a number from the prepared data, which is in the cache of
its machine, or is prepared there. The arrays that travel are sealed (sealed.py).
"""

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax

from configs.base import Experiment
from experiments.asynchronous.sealed import Sealed, opened, sealed
from experiments.processes.programs import use_cache
from experiments.run.build import build_task, learner_of
from experiments.run.steps import row_order
from lm.data.prepare import prepare
from lm.data.rows.order import batch_reader
from parallel.server.kinds import Parts
from parallel.server.pool import duration
from parallel.server.shard import Pulled, Push, Shard, Snapshot
from parallel.server.worker import Order, Private


class Setup(NamedTuple):
    """What a process needs to know of the run."""

    config: Experiment
    vocab_size: int
    devices: int  # of each worker
    platform: str

    def parts(self) -> Parts:
        """Start JAX on the devices of a worker; return what this process computes with."""
        jax.config.update("jax_platforms", self.platform)
        if self.platform == "cpu":
            jax.config.update("jax_num_cpu_devices", self.devices)
            jax.config.update("jax_cpu_enable_async_dispatch", False)
        use_cache()
        parallel = self.config.parallel
        learner = learner_of(self.config, build_task(self.config, self.vocab_size))
        return parallel.row.parts(learner, parallel.mesh(), parallel)


class WorkerProcess:
    def __init__(self, setup: Setup, index: int):
        self.config = setup.config.parallel.serving
        self.worker = setup.parts().new_worker(index)
        rows = prepare(setup.config.data).train
        self.rows = batch_reader(rows, row_order(setup.config))
        self.seed = setup.config.seed

    def compute(self, order: Order, private: Sealed, *pulled: Sealed) -> tuple[Sealed, ...]:
        """Return what is told, what is kept, and each shard's payload.

        It lasts as long as the config says: two cores can have four workers of known
        speeds, if each sleeps for most of the time.
        """
        began = time.perf_counter()
        found: list[Pulled | None] = [
            opened(each, f"what shard {i} sent to worker {order.worker}")
            for i, each in enumerate(pulled)
        ]
        kept: Private = opened(private, f"what worker {order.worker} kept")
        told, kept, payloads = self.worker.compute(order, found, self.rows, kept)
        computed = time.perf_counter() - began
        least = self.config.floor * duration(self.config, self.seed, order)
        time.sleep(max(0.0, least - computed))
        told = told._replace(
            seconds=max(least, computed), filled=least and computed / least
        )
        return sealed(told), sealed(kept), *map(sealed, payloads)

    def ping(self) -> int:
        return os.getpid()


class ShardProcess:
    def __init__(self, setup: Setup, snapshot: Sealed):
        # A shard computes on its first device: it adds and lets the optimizer act.
        begins: Snapshot = opened(snapshot, "the snapshot of a shard")
        self.shard = Shard(setup.parts().arithmetic, begins)

    def pull(self, worker: int, whole: bool) -> Sealed:
        return sealed(self.shard.pull(worker, whole))

    def merge(self, update: int, pushes: Sequence[Push], *payloads: Sealed) -> float:
        given = [
            opened(payload, f"the push of worker {push.worker}")
            for push, payload in zip(pushes, payloads, strict=True)
        ]
        return self.shard.merge(update, pushes, given)

    def apply(self, update: int, square: float, factor: float, loss: float) -> float:
        return self.shard.apply(update, square, factor, loss)

    def snapshot(self) -> Sealed:
        return sealed(self.shard.snapshot())

    def ping(self) -> int:
        return os.getpid()
