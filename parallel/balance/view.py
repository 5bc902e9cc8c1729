"""What a policy sees and what it answers; the one signature of all policies.

A policy is a pure function from a View to Queues. It is called whenever a worker has
nothing to do, has finished a piece, or has died, and answers who does what next. A
simulator (parallel/balance/simulate.py) and live servers call the same policies.

In array names N stands for pieces of work, K for those of them that are dealt now, M for
workers.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

NONE = -1  # of a worker that runs no piece
Queues = tuple[tuple[int, ...], ...]  # for each worker, the pieces it runs next, in order


def living(ready_M: np.ndarray) -> list[int]:
    """Return the workers that are free after a finite time; ValueError if there is none."""
    alive = np.flatnonzero(np.isfinite(ready_M)).tolist()
    if not alive:
        raise ValueError(f"all of the {len(ready_M)} workers are dead")
    return alive


class View(NamedTuple):
    """What is known at one moment."""

    seconds_NM: np.ndarray  # expected seconds of each piece on each worker
    pool: tuple[int, ...]  # pieces that no worker has, in the order of their numbers
    queues: Queues  # pieces that a worker has, and has not begun
    running: tuple[int, ...]  # the piece that each worker runs, or NONE
    ready_M: np.ndarray  # expected seconds until each worker is free; inf: it is dead

    @property
    def alive(self) -> list[int]:
        return living(self.ready_M)

    @property
    def idle(self) -> list[int]:
        """Return the living workers that run nothing and have nothing to begin."""
        return [w for w in self.alive if self.running[w] == NONE and not self.queues[w]]

    @property
    def loads_M(self) -> np.ndarray:
        """Return the expected seconds until each worker has emptied its queue."""
        own = [self.seconds_NM[list(q), w].sum() for w, q in enumerate(self.queues)]
        return self.ready_M + np.array(own)


Policy = Callable[[View], Queues]
# (expected seconds [K, M], seconds until each worker is free [M]) -> in the order in which
# they go to their queues: (piece of the K, worker)
Plan = Callable[[np.ndarray, np.ndarray], list[tuple[int, int]]]


def appended(queues: Queues, dealt: Iterable[tuple[int, int]]) -> Queues:
    """Add (piece, worker) to the ends of the queues."""
    longer = [list(queue) for queue in queues]
    for piece, worker in dealt:
        longer[worker].append(piece)
    return tuple(map(tuple, longer))


def planned(plan: Plan) -> Policy:
    """Return the policy that deals all pieces at once, and does not change its mind.

    It is asked again only if a worker dies: then the pieces of the dead are dealt to the
    living in the same way, who first finish what they have.
    """

    def policy(view: View) -> Queues:
        if not view.pool:
            return view.queues
        dealt = plan(view.seconds_NM[list(view.pool)], view.loads_M)
        return appended(view.queues, ((view.pool[k], worker) for k, worker in dealt))

    return policy
