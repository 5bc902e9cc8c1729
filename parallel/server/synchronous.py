"""A synchronous run: a step is an update, of the pushes of all workers.

They share the rows of a number. These are cut into pieces, and a policy says who computes
which. What each piece adds is added in the order of the pieces: the sum has the same bits,
whoever computes them.
"""

import numpy as np

from parallel.balance.policies import POLICIES
from parallel.balance.simulate import RECENT, Workers
from parallel.program import Metrics
from parallel.server.kinds import Parts
from parallel.server.pool import Pool
from parallel.server.session import Session
from parallel.server.worker import Rows


class Synchronous(Session):
    def __init__(self, parts: Parts, pool: Pool):
        super().__init__(parts, pool)
        self.takes: dict[int, float] = {}  # worker -> seconds of a piece, a running mean

    def step(self, step: int, rows: Rows) -> Metrics:
        """Let workers push the pieces of one number, and make one update of all of them.

        Who still runs a copy of a piece that another one pushed first ends it later.
        """
        number, began = self.desk.next, self.pool.now
        workers, pushes = self.dealt(began), {}
        policy = POLICIES[self.config.policy]
        while workers.left:
            workers.queues = list(policy(workers.view()))
            for worker, piece in workers.begin(self.orders):
                self.launch(worker, (number,), rows, piece)
            worker, told = self.pool.finished()
            order = self.orders.pop(worker)
            workers.now = self.pool.now - began
            if told is None:
                self.bare.add(worker)
            elif not order.whole:
                self.takes[worker] = recent(self.takes.get(worker), told.seconds)
            if order.version < self.updates:  # a copy, of the number before
                workers.free_M[worker] = workers.now
                continue
            if told is None:
                workers.lost(worker)
            else:
                if order.piece in workers.left:
                    pushes[order.piece] = order, told
                workers.ended(worker)
        self.desk = self.desk._replace(next=number + 1)
        return self.update([pushes[piece] for piece in sorted(pushes)])

    def dealt(self, now: float) -> Workers:
        """Return the workers before the pieces of the next number are dealt to them."""
        known = sorted(self.takes.values())
        usual = known[len(known) // 2] if known else 1.0
        seconds_W = np.array([self.takes.get(worker, usual) for worker in self.workers])
        num_pieces = self.config.num_pieces
        workers = Workers(np.broadcast_to(seconds_W, (num_pieces, len(seconds_W))), {})
        for worker in self.orders:
            workers.free_M[worker] = max(self.began[worker] + seconds_W[worker] - now, 0.0)
        return workers


def recent(mean: float | None, seconds: float) -> float:
    return seconds if mean is None else mean + RECENT * (seconds - mean)
