"""Join lm and parallel: from a config to a Task and a Program."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from configs.base import Experiment, embeddings_file
from experiments.costs.step import flops_per_token
from experiments.run.ngram_counts import config_counting
from experiments.run.phases.phase import Phase
from experiments.run.survival.clock import Clock
from experiments.run.survival.flips import Flip, flipping
from lm.compress.config import compressed, compressed_optimizer
from lm.data.embeddings import Vectors, read_vectors
from lm.data.prepare import Data
from lm.models.setting import Setting
from lm.norms import gradient_norms
from lm.optim import learning_rate, optimizer
from lm.precision import DTYPES, PrecisionConfig, loss_scaling, mixed_precision
from lm.robust import robust, robust_scaling
from lm.task import Task, with_embeddings
from parallel.counting.program import counting_program
from parallel.program import Learner, Program, no_metrics
from parallel.server.kinds import Parts
from parallel.server.pool import Pool
from parallel.server.program import server_program
from parallel.strategies import build_program


class Run(NamedTuple):
    """One experiment, ready to train."""

    phase: Phase
    workdir: pathlib.Path
    data: Data
    task: Task
    program: Program
    clock: Clock

    @property
    def config(self) -> Experiment:
        """The config of the phase."""
        return self.phase.config


def whole_bytes(tree: Any) -> int:
    """Return the bytes of one copy of a tree of shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def setting(config: Experiment, vocab_size: int) -> Setting:
    """Return the Setting of the model; the learned vocabulary may be below the config's."""
    return Setting(
        vocab_size=vocab_size,
        seq_len=config.data.seq_len,
        source_len=config.data.source_len,
        compute=DTYPES[config.precision.compute],
        trace_norms=config.trace_norms,
        packed=config.data.packing == "first_fit",
    )


def plain_task(config: Experiment, vocab_size: int) -> Task:
    """Return the Task of the model as others see it, without compression."""
    task = config.model.task(setting(config, vocab_size))
    return mixed_precision(task, config.precision)


def build_task(config: Experiment, vocab_size: int, given: Vectors | None = None) -> Task:
    """Return the Task that is trained. `given` are rows that the embedding begins with."""
    task = plain_task(config, vocab_size)
    if given:
        task = with_embeddings(task, *given)
    return compressed(task, config.compress)


def build_optimizer(
    config: Experiment, task: Task
) -> optax.GradientTransformationExtraArgs:
    steps = config.parallel.own_steps(config.steps)
    tx = optimizer(config.optim, steps, task.hidden)
    return compressed_optimizer(tx, config.compress)


def model_flops(config: Experiment, vocab_size: int) -> float:
    """Count the model's own FLOPs of one target token, in training."""
    model = config.model
    if hasattr(model, "attention"):  # other attention kernels skip products, or hide them
        model = dataclasses.replace(model, attention="xla")
    plain = dataclasses.replace(config, model=model, precision=PrecisionConfig())
    return flops_per_token(plain_task(plain, vocab_size), config.data.seq_len)


def given_vectors(config: Experiment, tokenizer: Tokenizer) -> Vectors | None:
    """Read the vectors that the embedding begins with, if the config names some."""
    if not (file := embeddings_file(config)):
        return None
    return read_vectors(file, tokenizer, config.model.width)


def build(
    config: Experiment,
    vocab_size: int,
    mesh: Mesh,
    num_rows: int = 0,
    given: Vectors | None = None,
    new_pool: Callable[[Parts], Pool] | None = None,
    flips: Sequence[Flip] = (),
    last: int = 0,
) -> tuple[Task, Program]:
    """Return the Task, and the Program that trains it on the mesh.

    `num_rows` is the number of rows of an epoch, 0 where it is not known. `given` are
    vectors that rows of the embedding begin with. `new_pool` makes the pool of a parameter
    server, if its workers are not in this process. `flips` will hit gradients. `last` is
    the step after which the program ends; 0: that of the run.
    """
    task = build_task(config, vocab_size, given)
    if config.model.trained_by == "counts":
        counting = config_counting(config, vocab_size, num_rows)
        return task, counting_program(counting, config.parallel.strategy, mesh)
    learner = learner_of(config, flipping(task, flips), last)
    parallel = config.parallel
    if new_pool:
        parts = parallel.row.parts(learner, mesh, parallel)
        return task, server_program(parts, mesh, new_pool)
    return task, build_program(parallel, learner, mesh)


def learner_of(config: Experiment, task: Task, last: int = 0) -> Learner:
    """Return what a strategy spreads, up to the step `last`; 0: that of the run."""
    return Learner(
        task=robust(task, config.robust),
        optimizer=build_optimizer(config, task),
        scaling=robust_scaling(loss_scaling(config.precision), config.robust),
        learning_rate=learning_rate,
        seed=config.seed,
        num_steps=last or config.steps,
        measure=gradient_norms if config.trace_norms else no_metrics,
    )
