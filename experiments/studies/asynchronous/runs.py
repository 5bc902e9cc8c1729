"""Runs of the studies of workers that are not equal: train, and evaluate at the end."""

import time
from collections.abc import Collection
from typing import NamedTuple

import jax

from configs.base import Experiment
from experiments.asynchronous.pool import pool_of
from experiments.run.build import build
from experiments.run.check import check
from experiments.run.evaluation import Evaluator
from experiments.run.steps import row_order
from lm.data.prepare import prepare
from lm.data.rows.order import Numbered
from parallel.program import Params
from parallel.server.session import Session


class Point(NamedTuple):
    """How far a run had come after a step."""

    step: int
    updates: int  # of the shards
    now: float  # of the pool's clock
    loss: float  # on all held-out rows


class Trained(NamedTuple):
    loss: float  # at the end
    updates: int
    now: float  # of the pool's clock, at the end
    numbers_per_second: float  # after the warm-up
    most_filled: float  # the largest share of its least duration in which a step computed
    curve: list[Point]


class Bench:
    """Trains configs of one model and text, which it compiles the evaluation of once."""

    def __init__(self, config: Experiment):
        self.mesh, self.data = check(config), prepare(config.data)
        self.evaluate: Evaluator | None = None
        self.batch_size = config.data.batch_size

    def train(
        self, config: Experiment, warm_up: int = 0, points: Collection[int] = ()
    ) -> Trained:
        """Train, and evaluate on all held-out rows, also after the steps `points`.

        Processes compile in the first `warm_up` steps, and their seconds do not count.
        """
        vocab_size = self.data.tokenizer.get_vocab_size()
        pool = pool_of(config, vocab_size, self.mesh)
        task, program = build(config, vocab_size, self.mesh, new_pool=pool)
        rows = Numbered(self.data.train, row_order(config), 0, config.steps)
        self.evaluate = self.evaluate or Evaluator(
            task, self.data.tokenizer, self.data.validation, self.batch_size, self.mesh
        )
        state, began, most, kept = program.init(jax.random.key(config.seed)), 0.0, 0.0, []
        session: Session = state.comm
        try:
            for step in range(config.steps):
                if step == warm_up:
                    began = time.perf_counter()
                state, metrics = program.step(state, program.draw(rows, step))
                if step >= warm_up:
                    most = max(most, float(metrics["filled"]))
                if step + 1 in points:
                    place = step + 1, session.updates, session.pool.now
                    kept.append((place, program.params(state)))
            seconds = time.perf_counter() - began
            end, params = (session.updates, session.pool.now), program.params(state)
        finally:
            program.close()
        curve = [Point(*place, self.loss(params)) for place, params in kept]
        speed = (config.steps - warm_up) / seconds
        return Trained(self.loss(params), *end, speed, most, curve)

    def loss(self, params: Params) -> float:
        return self.evaluate(params)["loss"]
