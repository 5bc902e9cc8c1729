"""How many equal pieces each worker takes, by its speed."""

import math
from collections.abc import Sequence

import numpy as np


def check_speeds(speeds: Sequence[float], num_workers: int, name: str) -> None:
    """Raise ValueError unless there is one speed above 0 for each worker.

    `name` is the field that holds the speeds.
    """
    if len(speeds) != num_workers:
        raise ValueError(
            f"{name} has {len(speeds)} speeds, and there are {num_workers} workers; give "
            "one for each"
        )
    for worker, speed in enumerate(speeds):
        if not isinstance(speed, (int, float)) or not 0 < speed < math.inf:
            raise ValueError(
                f"{name}[{worker}] is {speed!r}; a speed is a number above 0, in any unit: "
                "only the ratios of the speeds count"
            )


def shares(
    num_pieces: int, seconds_M: Sequence[float], ready_M: Sequence[float] | None = None
) -> np.ndarray:
    """Return how many of some equal pieces each worker takes, int[M].

    A piece takes `seconds_M` on each worker, which is free after `ready_M` (0). Each piece
    goes where it would end first. For equal pieces no other numbers end earlier: if all
    could end before the last one does here, its worker's place would have been taken.
    """
    seconds_M = np.asarray(seconds_M, float)
    end_M = np.zeros(len(seconds_M)) if ready_M is None else np.array(ready_M, float)
    end_M += seconds_M
    counts_M = np.zeros(len(seconds_M), int)
    for _ in range(num_pieces):
        worker = int(np.argmin(end_M))
        counts_M[worker] += 1
        end_M[worker] += seconds_M[worker]
    return counts_M
