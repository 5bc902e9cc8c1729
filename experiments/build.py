"""From a config to the four values: where lm and parallel meet."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.log import Clock
from lm.data.pipeline import Data
from lm.models.attention import choose_kernel
from lm.models.recurrent import RecurrentConfig, recurrent_task
from lm.models.transformer import transformer_task
from lm.models.transformer_config import TransformerConfig
from lm.optim import learning_rate, optimizer
from lm.precision import DTYPES, loss_scaling, mixed_precision
from lm.task import Task
from parallel.layout import validate_tensor_dims
from parallel.mesh import process_rows
from parallel.program import TENSOR, Learner, Program
from parallel.strategies import build_program


class Run(NamedTuple):
    """One experiment, ready to train."""

    config: Experiment
    workdir: pathlib.Path
    data: Data
    task: Task
    program: Program
    clock: Clock


class Family(NamedTuple):
    """What one kind of model brings; it is found by the type of its config."""

    task: Callable[[Experiment, int], Task]  # (config, vocabulary size)
    check: Callable[[Experiment, Mesh], None]  # ValueError for what it could not do


def check(config: Experiment) -> Mesh:
    """Validate a config against itself and the devices; return its mesh.

    Raises ValueError for anything that could not work; allocates nothing.
    """
    config.validate()
    mesh = config.parallel.mesh()
    config.parallel.validate(config.data.batch_size, mesh)
    process_rows(mesh)
    FAMILY_OF[type(config.model)].check(config, mesh)
    return mesh


def check_transformer(config: Experiment, mesh: Mesh) -> None:
    model = config.model
    table = model.tensor_dims(config.data.vocab_size)
    validate_tensor_dims(table, mesh.shape.get(TENSOR, 1))
    config.parallel.validate_layers(model.num_layers, mesh)
    choose_kernel(
        model.attention,
        DTYPES[config.precision.compute],
        model.width // model.num_heads,
        config.data.seq_len,
        jax.default_backend(),
    )


def check_whole(config: Experiment, mesh: Mesh) -> None:
    """Check a model of which no layer and no stage is split over devices."""
    validate_tensor_dims((), mesh.shape.get(TENSOR, 1))
    config.parallel.validate_layers(None, mesh)


FAMILY_OF = {
    TransformerConfig: Family(
        lambda config, vocab_size: transformer_task(
            config.model, vocab_size, config.data.seq_len
        ),
        check_transformer,
    ),
    RecurrentConfig: Family(
        lambda config, vocab_size: recurrent_task(config.model, vocab_size), check_whole
    ),
}


def build_task(config: Experiment, vocab_size: int) -> Task:
    task = FAMILY_OF[type(config.model)].task(config, vocab_size)
    return mixed_precision(task, config.precision)


def build(config: Experiment, vocab_size: int, mesh: Mesh) -> tuple[Task, Program]:
    task = build_task(config, vocab_size)
    learner = Learner(
        init=task.init,
        loss=task.loss,
        optimizer=optimizer(config.optim, config.steps),
        scaling=loss_scaling(config.precision),
        learning_rate=learning_rate,
        seed=config.seed,
        saveable=task.saveable,
        tensor_dims=task.tensor_dims,
        stages=task.stages,
    )
    return task, build_program(config.parallel, learner, mesh)


def compile_step(config: Experiment, program: Program) -> jax.stages.Compiled:
    """Compile the program's step ahead of time; neither a state nor data need exist.

    Between processes pmap cannot do that: its step is returned as it is.
    """
    if not hasattr(program.step, "lower"):
        return program.step
    local = config.data.batch_size // process_rows(program.mesh)[1]
    tokens = np.zeros((local, config.data.seq_len + 1), np.int32)
    batch = {"tokens": tokens, "row": np.zeros(local, np.int32)}
    if config.data.packing == "first_fit":
        batch["segments"] = tokens
    abstract_batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        program.place(batch),
    )
    return program.step.lower(program.abstract, abstract_batch).compile()
