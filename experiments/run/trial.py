"""A config built and compiled, for whatever takes a few of its steps and measures them."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from configs.base import Experiment
from experiments.run.build import build
from experiments.run.phases.phase import first_phase
from experiments.run.steps import at_its_largest, compile_step, row_order
from lm.data.rows.order import extra_arrays, train_batches
from lm.data.rows.store import Rows
from lm.task import Batch, Task
from parallel.mesh import process_rows
from parallel.program import Metrics, Program, TrainState


class Trial(NamedTuple):
    config: Experiment
    task: Task
    program: Program
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]  # compiled
    compile_seconds: float  # of the step

    def begin(self) -> TrainState:
        """Return the state before the first step."""
        return self.program.init(jax.random.key(self.config.seed))

    def batches(self, rows: Rows, num_steps: int) -> Iterator[Batch]:
        """Yield the batches of the first steps of training, on the devices."""
        part = process_rows(self.program.mesh)
        for batch in train_batches(rows, row_order(self.config), 0, num_steps, *part):
            yield self.program.place(batch)

    def train(self, rows: Rows) -> Iterator[tuple[int, TrainState]]:
        """Train from the beginning; yield each step's number, from 1, and its state.

        A state is gone when the next one is asked for.
        """
        state = self.begin()
        batches = self.batches(rows, self.config.steps)
        shown = tqdm(batches, total=self.config.steps, leave=False)
        for step, batch in enumerate(shown, 1):
            state, metrics = self.step(state, batch)
            # Emulated devices share the cores: without this wait, some delay the others.
            jax.block_until_ready(metrics)
            yield step, state

    def place(self, tokens_BT: np.ndarray) -> Batch:
        """Return a batch of tokens that come from nowhere, on the devices.

        Every process gives the same global batch; each row is one document.
        """
        index, count = process_rows(self.program.mesh)
        batch = {
            "tokens": tokens_BT,
            "segments": np.ones_like(tokens_BT),
            "row": np.arange(len(tokens_BT), dtype=np.int32),
        }
        return self.program.place({k: np.split(x, count)[index] for k, x in batch.items()})


def build_trial(
    config: Experiment, vocab_size: int, mesh: Mesh, rows: Rows | None = None
) -> Trial:
    """Build and compile; neither a state nor data need exist. The config is checked.

    Of several phases, the trial is of the first.
    A batch that grows has its largest size from the first step on. If the batches will come
    from `rows`, give these: perhaps they have weights.
    """
    config = at_its_largest(first_phase(config))
    task, program = build(config, vocab_size, mesh)
    began = time.perf_counter()
    extra = () if rows is None else extra_arrays(rows, row_order(config))
    step = compile_step(config, program, extra)
    return Trial(config, task, program, step, time.perf_counter() - began)
