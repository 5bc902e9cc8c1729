"""An asynchronous run, with bounded staleness or not: a step is an update, of one push."""

import numpy as np

from parallel.program import Metrics
from parallel.server.desk import take
from parallel.server.session import Session
from parallel.server.worker import Rows


class Asynchronous(Session):
    def step(self, step: int, rows: Rows) -> Metrics:
        """Wait for the next push, and make an update of it."""
        while True:
            self.hand_out(rows)
            worker, told = self.pool.finished()
            if told is not None:
                break
            self.died(worker)
        metrics = self.update([(self.orders.pop(worker), told)])
        self.desk = take(self.desk, worker)
        return metrics | {"worker": np.int32(worker)}
