"""The best plan of several, improved by moving and swapping single pieces."""

from collections.abc import Sequence

import numpy as np

from parallel.balance.view import Plan

LEAST_GAIN = 1e-9  # of the seconds until all end; less is rounding
NUM_KICKS, KICKED = 100, 4  # how often, and how many pieces


def ends_of(workers_K: np.ndarray, seconds_KM: np.ndarray, ready_M: np.ndarray):
    """Return when each worker ends, float[M]."""
    taken_K = seconds_KM[np.arange(len(workers_K)), workers_K]
    return ready_M + np.bincount(workers_K, taken_K, len(ready_M))


def until(workers_K: np.ndarray, seconds_KM: np.ndarray, ready_M: np.ndarray) -> float:
    """Return when the last of the living workers ends."""
    ends_M = ends_of(workers_K, seconds_KM, ready_M)
    return float(ends_M[np.isfinite(ends_M)].max())


def improved(
    workers_K: np.ndarray, seconds_KM: np.ndarray, ready_M: np.ndarray
) -> np.ndarray:
    """Return a better assignment, int[K], that no single move or swap makes better.

    Each round takes the worker that ends last. One of its pieces goes to another worker, or
    changes places with a piece of another, whichever lets the two end first. The sorted
    list of ends falls in each round, so that the rounds come to an end.
    """
    workers_K, everyone = workers_K.copy(), np.arange(len(workers_K))
    while True:
        ends_M = ends_of(workers_K, seconds_KM, ready_M)
        # A dead worker has no pieces. It is not the last.
        last = int(np.argmax(np.where(np.isfinite(ends_M), ends_M, -1)))
        (mine,) = np.nonzero(workers_K == last)
        if not len(mine):
            return workers_K
        less = ends_M[last] - seconds_KM[mine, last]
        moved = np.maximum(less[:, None], ends_M + seconds_KM[mine])
        moved[:, last] = np.inf
        given_K = ends_M[workers_K] - seconds_KM[everyone, workers_K]
        swapped = np.maximum(
            less[:, None] + seconds_KM[:, last],
            given_K + seconds_KM[mine[:, None], workers_K],
        )
        swapped[:, mine] = np.inf
        limit = ends_M[last] * (1 - LEAST_GAIN)
        if moved.min() < limit and moved.min() <= swapped.min():
            piece, worker = np.unravel_index(np.argmin(moved), moved.shape)
            workers_K[mine[piece]] = worker
        elif swapped.min() < limit:
            piece, other = np.unravel_index(np.argmin(swapped), swapped.shape)
            workers_K[mine[piece]] = workers_K[other]
            workers_K[other] = last
        else:
            return workers_K


def kicked(
    workers_K: np.ndarray, seconds_KM: np.ndarray, ready_M: np.ndarray
) -> np.ndarray:
    """Leave a local optimum: move a few pieces at random, improve, keep what is better.

    Random numbers have a fixed seed, so that equal arguments give equal results (iterated
    local search: Lourenco et al. 2003).
    """
    (alive,) = np.nonzero(np.isfinite(ready_M))
    rng = np.random.default_rng(0)
    least = until(workers_K, seconds_KM, ready_M)
    for _ in range(NUM_KICKS):
        tried_K = workers_K.copy()
        some = rng.choice(len(tried_K), min(KICKED, len(tried_K)), replace=False)
        tried_K[some] = rng.choice(alive, len(some))
        tried_K = improved(tried_K, seconds_KM, ready_M)
        end = until(tried_K, seconds_KM, ready_M)
        if end <= least:
            workers_K, least = tried_K, end
    return workers_K


def best_of(plans: Sequence[Plan]) -> Plan:
    """Return the plan that improves what each of `plans` gives, and kicks the best."""

    def plan(seconds_KM: np.ndarray, ready_M: np.ndarray) -> list[tuple[int, int]]:
        found = []
        for each in plans:
            dealt = each(seconds_KM, ready_M)
            workers_K = np.array([worker for _, worker in sorted(dealt)])
            workers_K = improved(workers_K, seconds_KM, ready_M)
            order = [k for k, _ in dealt]
            found.append((until(workers_K, seconds_KM, ready_M), order, workers_K))
        _, order, workers_K = min(found, key=lambda x: x[0])
        workers_K = kicked(workers_K, seconds_KM, ready_M)
        return [(k, int(workers_K[k])) for k in order]

    return plan
