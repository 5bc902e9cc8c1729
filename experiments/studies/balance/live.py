"""Deals that run in real processes at set speeds, and what the simulator expects."""

import time
from typing import Any, NamedTuple

import numpy as np

from parallel.balance.policies import policy_named
from parallel.balance.simulate import makespan, simulate
from parallel.balance.view import NONE, View
from parallel.uneven import Dealer

EACH = 4  # microbatches of a process on average
# The deal -> the policy, and what it is told: that speeds are equal, the true ones, or
# those of the neighbour.
DEALS = {
    "equal": ("static", "equal"),
    "by speed": ("by_speed", "true"),
    "by wrong speeds": ("by_speed", "wrong"),
    "as measured": ("reverse", "equal"),
}


class Expected(NamedTuple):
    counts: list[int]  # microbatches that each process takes at first
    moves: bool  # microbatches move as measured
    simulated: float  # seconds of a step, once they have moved
    ideal: float  # seconds, if microbatches could be cut


def expected(deal: str, num_workers: int, slow: float, floor: float) -> Expected:
    """Plan a deal for workers of which the last is `slow` times slower than the others."""
    speeds = np.append(np.ones(num_workers - 1), 1 / slow)
    actual_NM = seconds_of(speeds, floor)
    tellings = {
        "equal": seconds_of(np.ones(num_workers), floor),
        "true": actual_NM,
        "wrong": seconds_of(np.roll(speeds, 1), floor),
    }
    policy, telling = DEALS[deal]
    told_NM = tellings[telling]
    counts = first_counts(policy, told_NM)
    moves = policy == "reverse"  # after the first step it knows the true speeds
    ran = simulate(policy_named(policy), actual_NM if moves else told_NM, actual_NM)
    ideal = len(actual_NM) * floor / speeds.sum()
    return Expected(counts, moves, makespan(ran), float(ideal))


def seconds_of(speeds: np.ndarray, floor: float) -> np.ndarray:
    """Return the seconds of each of a step's equal microbatches on each worker, [N, M]."""
    return np.broadcast_to(floor / speeds, (EACH * len(speeds), len(speeds)))


def first_counts(policy: str, told_NM: np.ndarray) -> list[int]:
    """Return how many pieces a policy deals to each worker before anything ran."""
    num_pieces, num_workers = told_NM.shape
    nothing, idle = ((),) * num_workers, (NONE,) * num_workers
    ready_M = np.zeros(num_workers)
    view = View(told_NM, tuple(range(num_pieces)), nothing, idle, ready_M)
    if policy == "reverse":  # told that all are equal, it begins as static does
        policy = "static"
    return [len(queue) for queue in policy_named(policy)(view)]


class Paced(Dealer):
    """A Dealer whose replicas are as slow as they are told to be.

    `floors_W` are the least seconds of a microbatch. `late` counts loops of this process
    that computed for longer.
    """

    def __init__(self, counts_W: tuple[int, ...], moves: bool, floors_W: np.ndarray):
        super().__init__(counts_W, moves)
        self.floors_W, self.late = floors_W, 0

    def end(self, replica: Any, loss: Any) -> np.float32:
        floor = self.counts_W[int(replica)] * self.floors_W[int(replica)]
        left = floor - float(super().end(replica, loss))
        self.late += left < 0
        time.sleep(max(left, 0))
        return super().end(replica, loss)
