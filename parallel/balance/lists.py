"""Who does which piece of work, so that all end at about the same time."""

from collections.abc import Sequence


def longest_first(work: Sequence[int]) -> list[int]:
    """Return the numbers of the pieces, the longest first, equal ones as they come."""
    return sorted(range(len(work)), key=lambda piece: -work[piece])


def balanced(work: Sequence[int], num_workers: int) -> list[int]:
    """Return each piece's worker: the longest goes first, to the one with the least.

    The most that a worker has is at most 4/3 - 1/(3 num_workers) times the least possible
    (Graham 1969, theorem 3).
    """
    loads, chosen = [0] * num_workers, [0] * len(work)
    for piece in longest_first(work):
        worker = loads.index(min(loads))
        chosen[piece] = worker
        loads[worker] += work[piece]
    return chosen
