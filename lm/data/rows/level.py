"""An order of a batch's rows in which devices have about the same number of tokens.

A device takes rows that follow each other. The order is balanced for every number of
devices that is a power of two: each half of the rows has about half of the tokens, and so
has each half of a half. So it does not depend on the devices, and is the same for all.
"""

import numpy as np


def level(tokens_B: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows in an order that levels their tokens, int[B]."""
    if len(tokens_B) < 2:
        return np.arange(len(tokens_B))
    first = halved(tokens_B)
    halves = np.flatnonzero(first), np.flatnonzero(~first)
    return np.concatenate([half[level(tokens_B[half])] for half in halves])


def halved(tokens_B: np.ndarray) -> np.ndarray:
    """Return which rows are in the first half, bool[B].

    The longest row left goes to the half with fewer tokens, until one half is full. Then
    rows change places between the halves while that makes them more alike.
    """
    first, room = np.zeros(len(tokens_B), bool), [len(tokens_B) - len(tokens_B) // 2]
    room.append(len(tokens_B) - room[0])
    sums = [0, 0]
    for row in np.argsort(-tokens_B, kind="stable"):
        half = int(not room[0] or (room[1] > 0 and sums[1] < sums[0]))
        first[row] = half == 0
        sums[half] += int(tokens_B[row])
        room[half] -= 1
    while True:
        ones, others = np.flatnonzero(first), np.flatnonzero(~first)
        excess = tokens_B[ones].sum() - tokens_B[others].sum()
        left = np.abs(excess - 2 * np.subtract.outer(tokens_B[ones], tokens_B[others]))
        one, other = np.unravel_index(np.argmin(left), left.shape)
        if left[one, other] >= abs(excess):
            return first
        first[ones[one]], first[others[other]] = False, True
