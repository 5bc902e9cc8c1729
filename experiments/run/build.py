"""From a config to the four values: where lm and parallel meet."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.costs.step import flops_per_token
from experiments.run.log import Clock
from experiments.run.ngram_counts import ngram_counting
from lm.data.config import PAIR_SOURCES, SOURCES
from lm.data.prepare import Data
from lm.models.attention import choose_kernel
from lm.models.hmm import HmmConfig, hmm_task
from lm.models.ngram.model import NgramConfig, ngram_task
from lm.models.recurrent import RecurrentConfig, recurrent_task
from lm.models.seq2seq.task import Seq2SeqConfig, seq2seq_task
from lm.models.transformer.config import TransformerConfig
from lm.models.transformer.model import transformer_task
from lm.norms import gradient_norms
from lm.optim import MAXIMIZERS, learning_rate, needs_hidden, optimizer
from lm.precision import DTYPES, PrecisionConfig, loss_scaling, mixed_precision
from lm.task import Task
from parallel.counting.program import STRATEGIES as COUNTING
from parallel.counting.program import Counting, counting_program
from parallel.exchange.config import ExchangeConfig
from parallel.layout import validate_tensor_dims
from parallel.local import PLANS
from parallel.mesh import process_rows
from parallel.pipeline.schedules import ORDERS
from parallel.program import TENSOR, Learner, Program, no_metrics
from parallel.strategies import EXACT, build_program


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
    # (config, vocabulary size, rows of an epoch, mesh); None: gradients and an optimizer
    program: Callable[[Experiment, int, int, Mesh], Program] | None = None


def check(config: Experiment) -> Mesh:
    """Validate a config against itself and the devices; return its mesh.

    Raises ValueError for anything that could not work; allocates nothing.
    """
    config.validate()
    mesh = config.parallel.mesh()
    config.parallel.validate(config.data.batch_size, mesh)
    process_rows(mesh)
    FAMILY_OF[type(config.model)].check(config, mesh)
    if needs_hidden(config.optim):
        task = build_task(config, config.data.vocab_size)
        optimizer(config.optim, config.steps, task.hidden)
    if config.trace_norms:
        check_trace(config)
    return mesh


def check_trace(config: Experiment) -> None:
    """Check that there is one sum of gradients, and layers whose outputs leave the loss."""
    strategy, model = config.parallel.strategy, type(config.model)
    if strategy in PLANS or strategy in ORDERS:
        able = [name for name in EXACT if name not in ORDERS]
        raise ValueError(
            f"trace_norms is set, but strategy {strategy!r} has no step in which the "
            f"whole gradient and all activations meet; choose one of {', '.join(able)}, or "
            "unset it"
        )
    if model not in TRACED:
        raise ValueError(
            f"trace_norms is set, but a {model.__name__} has no stack of layers to trace; "
            f"choose one of {', '.join(cls.__name__ for cls in TRACED)}, or unset it"
        )


def check_texts(config: Experiment) -> None:
    """Check that the family takes what the data has, documents or pairs."""
    takes_pairs = isinstance(config.model, Seq2SeqConfig)
    if takes_pairs != (config.data.source in PAIR_SOURCES):
        fitting = PAIR_SOURCES if takes_pairs else set(SOURCES) - set(PAIR_SOURCES)
        raise ValueError(
            f"data.source is {config.data.source!r}, but a {type(config.model).__name__} "
            f"learns from {'pairs' if takes_pairs else 'documents'}; choose one of "
            f"{', '.join(sorted(fitting))}, or another family of models"
        )


def check_transformer(config: Experiment, mesh: Mesh) -> None:
    check_texts(config)
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
    """Check a model of which no single layer is split over devices."""
    check_texts(config)
    validate_tensor_dims((), mesh.shape.get(TENSOR, 1))
    config.parallel.validate_layers(getattr(config.model, "num_layers", None), mesh)


def check_hmm(config: Experiment, mesh: Mesh) -> None:
    check_whole(config, mesh)
    training, optimizer = config.model.training, config.optim.name
    if (training == "em") != (optimizer in MAXIMIZERS):
        raise ValueError(
            f"model.training={training} and optim.name={optimizer} do not go together: em "
            f"is done by {', '.join(MAXIMIZERS)}, gradient by the other optimizers"
        )


def check_counts(config: Experiment, mesh: Mesh) -> None:
    check_whole(config, mesh)
    strategy, compute = config.parallel.strategy, config.precision.compute
    if strategy not in COUNTING:
        raise ValueError(
            f"parallel.strategy={strategy} has no meaning for a model of counts; choose "
            f"one of {', '.join(COUNTING)}"
        )
    if config.parallel.accumulation != 1 or config.parallel.exchange != ExchangeConfig():
        raise ValueError(
            "a model of counts sums integers: unset parallel.accumulation and "
            "parallel.exchange"
        )
    if compute != "float32":
        raise ValueError(
            f"precision.compute is {compute}; a model of counts computes in float32"
        )


def ngram_program(
    config: Experiment, vocab_size: int, num_rows: int, mesh: Mesh
) -> Program:
    counting = config_counting(config, vocab_size, num_rows)
    return counting_program(counting, config.parallel.strategy, mesh)


def config_counting(config: Experiment, vocab_size: int, num_rows: int = 0) -> Counting:
    """Say what a run counts; `num_rows` is that of an epoch, 0: none is seen twice."""
    return ngram_counting(
        config.model,
        vocab_size,
        config.data.seq_len,
        config.data.batch_size,
        config.steps,
        num_rows,
    )


FAMILY_OF = {
    TransformerConfig: Family(
        lambda config, vocab_size: transformer_task(
            config.model, vocab_size, config.data.seq_len, config.trace_norms
        ),
        check_transformer,
    ),
    RecurrentConfig: Family(
        lambda config, vocab_size: recurrent_task(
            config.model, vocab_size, config.trace_norms
        ),
        check_whole,
    ),
    HmmConfig: Family(
        lambda config, vocab_size: hmm_task(config.model, vocab_size, config.data.seq_len),
        check_hmm,
    ),
    NgramConfig: Family(
        lambda config, vocab_size: ngram_task(
            config.model, vocab_size, config.data.seq_len
        ),
        check_counts,
        ngram_program,
    ),
    Seq2SeqConfig: Family(
        lambda config, vocab_size: seq2seq_task(
            config.model, vocab_size, config.data.source_len
        ),
        check_whole,
    ),
}

TRACED = TransformerConfig, RecurrentConfig  # families that take trace_norms


def build_task(config: Experiment, vocab_size: int) -> Task:
    task = FAMILY_OF[type(config.model)].task(config, vocab_size)
    return mixed_precision(task, config.precision)


def model_flops(config: Experiment, vocab_size: int) -> float:
    """Count the model's own FLOPs of one target token, in training."""
    model = config.model
    if hasattr(model, "attention"):  # kernels of platforms skip or hide products
        model = dataclasses.replace(model, attention="xla")
    plain = dataclasses.replace(config, model=model, precision=PrecisionConfig())
    return flops_per_token(build_task(plain, vocab_size), config.data.seq_len)


def build(
    config: Experiment, vocab_size: int, mesh: Mesh, num_rows: int = 0
) -> tuple[Task, Program]:
    """Return the Task, and the Program that trains it on the mesh.

    `num_rows` is the number of rows of an epoch, 0 where it is not known.
    """
    task = build_task(config, vocab_size)
    if make_program := FAMILY_OF[type(config.model)].program:
        return task, make_program(config, vocab_size, num_rows, mesh)
    learner = Learner(
        init=task.init,
        loss=task.loss,
        optimizer=optimizer(config.optim, config.steps, task.hidden),
        scaling=loss_scaling(config.precision),
        learning_rate=learning_rate,
        seed=config.seed,
        saveable=task.saveable,
        tensor_dims=task.tensor_dims,
        stages=task.stages,
        measure=gradient_norms if config.trace_norms else no_metrics,
    )
    return task, build_program(config.parallel, learner, mesh)


def compile_step(config: Experiment, program: Program) -> jax.stages.Compiled:
    """Compile the program's step ahead of time; neither a state nor data need exist.

    Between processes pmap cannot do that: its step is returned as it is.
    """
    if not hasattr(program.step, "lower"):
        return program.step
    abstract_batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        program.place(empty_rows(config, process_rows(program.mesh)[1])),
    )
    return program.step.lower(program.abstract, abstract_batch).compile()


def empty_rows(config: Experiment, num_parts: int = 1) -> dict[str, np.ndarray]:
    """Return a batch, or one of equal parts of it, in which nothing is written yet."""
    local = config.data.batch_size // num_parts
    tokens = np.zeros((local, config.data.seq_len + 1), np.int32)
    batch = {"tokens": tokens, "row": np.zeros(local, np.int32)}
    if config.data.packing == "first_fit":
        batch["segments"] = tokens
    return batch
