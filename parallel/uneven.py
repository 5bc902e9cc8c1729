"""Replicas that take different numbers of microbatches of a step.

A step has M microbatches. The loop over them has no collective inside, so the replicas,
which run one program, may go round it different numbers of times: the number is data. They
wait for each other once, where the sums are exchanged. Only sums cross, so any numbers that
sum to M give the same step, up to rounding.

Numbers are given by the speeds of the config, or found: then each process measures how long
its replicas compute, all learn of all, and the policy `reverse` moves microbatches away
from the slowest.
"""

import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from parallel.balance.online import reverse
from parallel.balance.view import NONE, View
from parallel.program import Batch, Metrics
from parallel.readings import COMPUTE

Turns = tuple[jax.Array, jax.Array]  # the first microbatch, and the one after the last
RECENT = 0.5  # weight of the newest step in a replica's seconds for a microbatch


class Deal(NamedTuple):
    """How many microbatches each replica takes, and who measures; None: nobody."""

    counts_W: tuple[int, ...]
    dealer: "Dealer | None" = None

    @property
    def num_microbatches(self) -> int:
        return sum(self.counts_W)

    def begin(self, batch: Batch, axes: tuple[str, ...]) -> tuple[Batch, Turns]:
        """Return the rows of all replicas, and this replica's microbatches of them.

        Rows are token ids, few bytes beside gradients.
        """
        batch = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), batch)
        replica = jax.lax.axis_index(axes)
        if self.dealer is None:
            ends_W = jnp.cumsum(jnp.array(self.counts_W))
            return batch, (
                ends_W[replica] - jnp.array(self.counts_W)[replica],
                ends_W[replica],
            )
        # The time begins once the rows are there, and the loop begins after that.
        shape = jax.ShapeDtypeStruct((2,), jnp.int32)
        turns = io_callback(self.dealer.begin, shape, replica, batch["row"][0])
        return batch, (turns[0], turns[1])

    def end(self, sums: Metrics, axes: tuple[str, ...]) -> Metrics:
        """Add to the sums of a replica the seconds that it has computed, float32[W]."""
        if self.dealer is None:
            return sums
        replica = jax.lax.axis_index(axes)
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        seconds = io_callback(self.dealer.end, shape, replica, sums["loss"])
        seconds_W = jnp.zeros(len(self.counts_W)).at[replica].set(seconds)
        return sums | {COMPUTE: seconds_W}

    def learn(self, step: jax.Array, metrics: Metrics) -> Metrics:
        """Tell the dealer the seconds of all replicas, once they are summed."""
        if self.dealer is None:
            return metrics
        shape = jax.ShapeDtypeStruct((), jnp.int32)
        moved = io_callback(self.dealer.learn, shape, step, metrics[COMPUTE])
        return metrics | {"moved_microbatches": moved}


class Dealer:
    """Measures the replicas of this process; knows how many microbatches each takes.

    All processes learn the same seconds, and so deal in the same way.
    """

    def __init__(self, counts_W: tuple[int, ...], moves: bool):
        self.counts_W, self.moves = np.array(counts_W), moves
        self.began: dict[int, float] = {}  # replica -> the time at which its loop began
        self.seconds_W: np.ndarray | None = None  # for a microbatch
        self.step, self.moved = -1, 0
        self.learning = threading.Lock()  # each device calls from a thread of its own

    def begin(self, replica: Any, _: Any) -> np.ndarray:
        replica = int(replica)
        end = self.counts_W[: replica + 1].sum()
        self.began[replica] = time.perf_counter()
        return np.array([end - self.counts_W[replica], end], np.int32)

    def end(self, replica: Any, _: Any) -> np.float32:
        return np.float32(time.perf_counter() - self.began[int(replica)])

    def learn(self, step: Any, compute_W: Any) -> np.int32:
        """Take in the seconds of a step; return how many microbatches have moved.

        Each replica of this process calls it; the first call of a step counts.
        """
        with self.learning:
            if int(step) != self.step:
                self.step = int(step)
                self.moved = self.deal(np.asarray(compute_W, float)) if self.moves else 0
            return np.int32(self.moved)

    def deal(self, compute_W: np.ndarray) -> int:
        # A replica without microbatches keeps what is known of it, with one it is measured.
        seconds_W = compute_W / np.maximum(self.counts_W, 1)
        if self.seconds_W is None:
            self.seconds_W = seconds_W
        new_W = self.seconds_W + RECENT * (seconds_W - self.seconds_W)
        self.seconds_W = np.where(self.counts_W > 0, new_W, self.seconds_W)
        before_W, self.counts_W = self.counts_W, moved_counts(self.counts_W, self.seconds_W)
        return int(np.abs(self.counts_W - before_W).sum()) // 2


def moved_counts(counts_W: np.ndarray, seconds_W: np.ndarray) -> np.ndarray:
    """Return the numbers of equal pieces after the policy `reverse`; each keeps one.

    `seconds_W` are those of a piece on each worker. A worker without a piece would not be
    measured any more, and could not come back.
    """
    ends = np.cumsum(counts_W)
    queues = [tuple(range(end - n + 1, end)) for n, end in zip(counts_W, ends, strict=True)]
    view = View(
        np.broadcast_to(seconds_W, (ends[-1], len(counts_W))),
        pool=(),
        queues=tuple(queues),
        running=tuple(
            int(end - n) if n else NONE for n, end in zip(counts_W, ends, strict=True)
        ),
        ready_M=np.where(counts_W > 0, seconds_W, 0.0),
    )
    kept = (counts_W > 0).astype(int)
    return kept + [len(queue) for queue in reverse(view)]
