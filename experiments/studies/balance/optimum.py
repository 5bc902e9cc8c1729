"""The least possible makespan of an instance, by integer programming.

A piece goes to one worker. With C the end of all, a worker may have C seconds of work; one
that needs `factor` times as long after `at` may have min(C, at + (C - at) / factor),
and one that dies then may have `at`. The optimum knows all of it in advance, so no policy
can be better.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from parallel.balance.simulate import Trouble

GAP = 0.01  # an optimum counts as proven if its bounds differ by no more


class Optimum(NamedTuple):
    lower: float  # no makespan is below
    upper: float  # one that is possible; inf: none was found in time

    @property
    def proven(self) -> bool:
        return self.upper - self.lower <= GAP * self.upper


def fractional(seconds_NM: np.ndarray, troubles: Mapping[int, Trouble]) -> float:
    """Return the least makespan if pieces could be cut: a lower bound."""
    return solved(seconds_NM, troubles, whole=False, seconds=60.0).fun


def optimum(
    seconds_NM: np.ndarray, troubles: Mapping[int, Trouble], seconds: float
) -> Optimum:
    """Return bounds of the least makespan, after at most so many seconds of search."""
    found = solved(seconds_NM, troubles, whole=True, seconds=seconds)
    lower, upper = found.mip_dual_bound, found.fun
    if lower is None or upper is None:
        return Optimum(fractional(seconds_NM, troubles), np.inf)
    return Optimum(max(lower, fractional(seconds_NM, troubles)), upper)


def solved(
    seconds_NM: np.ndarray, troubles: Mapping[int, Trouble], whole: bool, seconds: float
):
    """Minimise C over x [N, M] and C; the variables are x, row by row, and C."""
    n, m = seconds_NM.shape
    pieces = sparse.kron(sparse.eye(n), np.ones((1, m)))
    once = sparse.hstack([pieces, sparse.csr_matrix((n, 1))])
    work = sparse.hstack([sparse.diags(row) for row in seconds_NM])  # [M, N M]
    # Each row: so many times the work, minus so many times C, is at most a constant.
    rows = [(worker, 1.0, 1.0, 0.0) for worker in range(m)]
    for worker, (at, factor) in troubles.items():
        share = 1 / factor  # 0: it dies
        rows.append((worker, 1.0, share, at * (1 - share)))
    loads = sparse.vstack([times * work.tocsr()[w] for w, times, _, _ in rows])
    ends = np.array([[-share] for _, _, share, _ in rows])
    limits = np.array([limit for *_, limit in rows])
    return milp(
        np.append(np.zeros(n * m), 1.0),
        constraints=[
            LinearConstraint(once.tocsc(), 1, 1),
            LinearConstraint(sparse.hstack([loads, ends]).tocsc(), -np.inf, limits),
        ],
        integrality=np.append(np.full(n * m, int(whole)), 0),
        bounds=Bounds(0, np.append(np.ones(n * m), np.inf)),
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )
