"""The same workers as in parallel/balance/simulate.py, as processes of simpy."""

import math

import numpy as np
import simpy

from parallel.balance.view import NONE, View


class Plant:
    def __init__(self, policy, told_NM, actual_NM, troubles):
        self.policy, self.told, self.actual = policy, told_NM, actual_NM
        self.troubles, self.env = troubles, simpy.Environment()
        num_workers = told_NM.shape[1]
        self.queues = [[] for _ in range(num_workers)]
        self.at = {}  # worker -> (piece, start)
        self.dead, self.ended = set(), {}  # piece -> (worker, start, end)
        self.slow = [1.0] * num_workers
        self.wake = [self.env.event() for _ in range(num_workers)]
        self.workers = [self.env.process(self.work(w)) for w in range(num_workers)]
        for worker, (at, factor) in troubles.items():
            if math.isinf(factor):
                self.env.process(self.kill(worker, at))
        self.ask()
        self.env.run()

    def expected(self, piece, worker):
        return self.told[piece, worker] * self.slow[worker]

    def ready(self, worker):
        if worker in self.dead:
            return math.inf
        if worker not in self.at:
            return 0.0
        piece, start = self.at[worker]
        return abs(start + self.expected(piece, worker) - self.env.now)

    def ask(self):
        n, m = self.told.shape
        held = {p for queue in self.queues for p in queue} | {
            p for p, _ in self.at.values()
        }
        view = View(
            np.array([[self.expected(i, j) for j in range(m)] for i in range(n)]),
            tuple(i for i in range(n) if i not in held and i not in self.ended),
            tuple(map(tuple, self.queues)),
            tuple(self.at.get(w, (NONE,))[0] for w in range(m)),
            np.array([self.ready(w) for w in range(m)]),
        )
        self.queues = [list(queue) for queue in self.policy(view)]
        for worker in range(m):
            if self.queues[worker] and not self.wake[worker].triggered:
                self.wake[worker].succeed()

    def work(self, worker):
        env = self.env
        try:
            while True:
                while not self.queues[worker]:
                    self.wake[worker] = env.event()
                    yield self.wake[worker]
                piece, start = self.queues[worker].pop(0), env.now
                self.at[worker] = piece, start
                need = self.actual[piece, worker]
                at, factor = self.troubles.get(worker, (math.inf, 1))
                if start + need > at and not math.isinf(factor):
                    healthy = max(at - start, 0)
                    yield env.timeout(healthy)
                    need = (need - healthy) * factor
                yield env.timeout(need)
                del self.at[worker]
                ratio = (env.now - start) / self.told[piece, worker]
                self.slow[worker] = (self.slow[worker] + ratio) / 2
                self.ended.setdefault(piece, (worker, start, env.now))
                for queue in self.queues:
                    queue[:] = [p for p in queue if p not in self.ended]
                if len(self.ended) < len(self.told):
                    self.ask()
        except simpy.Interrupt:
            self.at.pop(worker, None)
            self.dead.add(worker)
            self.queues[worker] = []
            if len(self.ended) < len(self.told):
                self.ask()

    def kill(self, worker, at):
        yield self.env.timeout(at)
        self.workers[worker].interrupt()


def ends(policy, told_NM, actual_NM, troubles):
    """Return piece -> (worker, start, end) of the run that counts."""
    return Plant(policy, told_NM, actual_NM, troubles).ended
