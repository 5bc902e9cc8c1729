"""Check a config against itself, the devices and the prepared data."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from configs.base import FAMILIES, Experiment, embeddings_file
from experiments.costs.machine import memory_bytes
from experiments.processes.messages import size
from experiments.run.build import (
    build_optimizer,
    build_task,
    plain_task,
    setting,
    whole_bytes,
)
from experiments.run.ngram_counts import check_counting
from experiments.run.phases.phase import Phase, phases_of
from experiments.run.steps import row_order
from lm.compress.config import CompressConfig
from lm.data.embeddings import read_header
from lm.data.prepare import Data
from lm.data.sources.table import DOCUMENT_SOURCES, PAIR_SOURCES
from lm.optimizers import MAXIMIZERS
from lm.robust import RobustConfig
from lm.task import Task
from parallel.config import Having
from parallel.layout import validate_tensor_dims
from parallel.mesh import process_rows
from parallel.program import TENSOR
from parallel.server.parts import check_shards
from parallel.strategies import STRATEGIES


def check(config: Experiment, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Validate a config against itself and the devices; return the mesh of its first phase.

    `devices` are absent ones that the program is only compiled for; None: those here.
    Raises ValueError for anything that could not work; allocates nothing.
    """
    return check_phases(config, devices)[0]


def check_phases(
    config: Experiment, devices: Sequence[jax.Device] | None = None
) -> list[Mesh]:
    """Check as `check` does; return the mesh of each phase."""
    config.validate()
    return [
        within(phase, partial(check_phase, phase, devices)) for phase in phases_of(config)
    ]


def within(phase: Phase, function: Callable[[], Any]) -> Any:
    """Call a function; if it raises ValueError in a later phase, name the phase."""
    try:
        return function()
    except ValueError as error:
        if not phase.index:
            raise
        raise ValueError(f"{phase.field} ({phase.told}): {error}") from None


def check_phase(phase: Phase, devices: Sequence[jax.Device] | None) -> Mesh:
    """Check what a phase makes of the config; return its mesh."""
    config = phase.config
    config.validate()
    mesh = config.parallel.mesh(devices)
    for rows in phase.batch_sizes:
        grown = rows != config.data.batch_size
        name = "data.growth: a batch of" if grown else "data.batch_size"
        config.parallel.validate(rows, mesh, name)
    process_rows(mesh)
    if file := embeddings_file(config):
        read_header(file, config.model.width)
    check_texts(config)
    check_optimizer(config)
    check_plateau(config)
    check_alone(config)
    if config.model.trained_by == "counts":
        check_counting(config)
        if config.robust != RobustConfig():
            raise ValueError(
                f"robust.weights is {config.robust.weights!r}, but a model of counts has "
                "no loss in training; unset it, or choose another family of models"
            )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # the kernels' platform
        config.model.validate(setting(config, config.data.vocab_size))
        for length in config.data.lengths:
            check_length(config, length)
    if config.trace_norms:
        check_trace(config)
    check_augment(config)
    check_compress(config)
    task = build_task(config, config.data.vocab_size)
    check_task(config, task, mesh)
    check_memory(config, task, mesh, phase.batch_sizes[-1])
    return mesh


def check_length(config: Experiment, length: int) -> None:
    """Raise ValueError if the model cannot read rows that are cut to this length."""
    whole = setting(config, config.data.vocab_size)
    source_len = whole.source_part(length)
    try:
        config.model.validate(whole._replace(seq_len=length, source_len=source_len))
    except ValueError as error:
        raise ValueError(
            f"data.equal_tokens cuts rows to {', '.join(map(str, config.data.lengths))} "
            f"tokens, and of {length}: {error}"
        ) from None


def check_task(config: Experiment, task: Task, mesh: Mesh) -> None:
    """Check that the model can be split and cut, and has what is optimised; ValueError."""
    validate_tensor_dims(task.tensor_dims, mesh.shape.get(TENSOR, 1))
    config.parallel.validate_layers(task.stages and task.stages.num_layers, mesh)
    build_optimizer(config, task)
    if not config.parallel.row.synchronous:
        check_server(config, task)


def check_server(config: Experiment, task: Task) -> None:
    """Raise ValueError if a parameter server cannot train the model in this way."""
    if config.model.trained_by != "gradient":
        raise ValueError(
            f"strategy {config.parallel.strategy!r} pushes gradients, but this "
            f"{type(config.model).__name__} is trained by {config.model.trained_by}; "
            f"choose one of {', '.join(Having(exact=True))}"
        )
    num_shards, optim = config.parallel.server.shards, config.optim
    check_shards(jax.eval_shape(task.init, jax.random.key(0)), num_shards)
    if config.parallel.row.apart:
        return  # an island clips its whole gradient by itself
    for name in ("clip_value", "clip_adaptive"):
        if getattr(optim, name) and optim.clip_norm and num_shards > 1:
            raise ValueError(
                f"optim.{name} {getattr(optim, name)} changes the norm that "
                f"optim.clip_norm {optim.clip_norm} is compared with, and each of "
                f"parallel.server.shards {num_shards} sees a part of the gradient; set one "
                "of the two clips to 0, or shards to 1"
            )


def check_compiles(config: Experiment) -> None:
    """Raise ValueError if a step is not one program, whose costs could be read."""
    if not config.parallel.row.synchronous:
        raise ValueError(
            f"a step of strategy {config.parallel.strategy!r} is not one program but those "
            "of workers and shards, each with its own: nothing is known of it before it "
            f"runs; choose one of {', '.join(Having(synchronous=True))}"
        )


def check_compress(config: Experiment) -> None:
    """Raise ValueError if the family, the strategy or the shapes do not suit."""
    compress, row = config.compress, config.parallel.row
    if compress == CompressConfig():
        return
    if config.model.trained_by != "gradient":
        raise ValueError(
            f"config.compress changes what is trained by gradients, but a "
            f"{type(config.model).__name__} is trained by {config.model.trained_by}; unset "
            "it, or choose another family of models"
        )
    prunes = compress.prune.kind != "none"
    if (prunes or compress.low_rank.kind == "lora") and not (row.named and row.exact):
        able = [n for n, each in STRATEGIES.items() if each.named and each.exact]
        given = "prune.kind" if prunes else "low_rank.kind"
        raise ValueError(
            f"compress.{given} is set, but under strategy {config.parallel.strategy!r} no "
            "optimizer sees the one model with its parameters under their names; choose "
            f"one of {', '.join(able)}"
        )
    task = plain_task(config, config.data.vocab_size)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    compress.validate(shapes, config.steps, config.data.vocab_size)


def check_memory(config: Experiment, task: Task, mesh: Mesh, batch_size: int) -> None:
    """Raise ValueError if a lower bound of the memory is more than the devices have.

    The bound counts the parameters, the optimizer's state, the rows of a microbatch and the
    output of one layer, each once over all devices. A run needs more: copies of parameters,
    gradients, and activations for the backward pass.
    """
    rows = batch_size // config.parallel.accumulation
    positions = rows * config.data.seq_len
    parts = {"the rows of a microbatch": positions * 2 * 4}
    if width := getattr(config.model, "width", 0):
        parts["the output of one layer"] = positions * width * 4
    if config.model.trained_by != "counts":
        params = jax.eval_shape(task.init, jax.random.key(0))
        tx = build_optimizer(config, task)
        opt = jax.eval_shape(tx.init, params)
        parts["parameters"] = whole_bytes(params)
        parts["the optimizer's state"] = whole_bytes(opt)
    available = memory_bytes(mesh)
    if sum(parts.values()) > available:
        told = ", ".join(f"{name} {size(number)}" for name, number in parts.items())
        raise ValueError(
            f"the run needs {size(sum(parts.values()))} at least ({told}), and the "
            f"devices have {size(available)} together; make the "
            "largest of them smaller"
        )


def check_data(config: Experiment, data: Data, *meshes: Mesh) -> None:
    """Check what only the prepared data tells: its strata, weights and vocabulary.

    `meshes` are those of the phases.
    """
    order = row_order(config)
    order.check_strata(data.train)
    weights = {part.weight for shard in order.parts(data.train) for part in shard}
    fractional = data.meta["train"].get("fractional_weights") or weights - {0.0, 1.0}
    if config.model.trained_by == "counts" and fractional:
        raise ValueError(
            "the training text has weights other than 0 and 1, and a model of counts "
            "counts whole tokens; mask or drop text where it is down-weighted, unset "
            "data.sampling.reweigh, or choose another family of models"
        )
    vocab_size = data.tokenizer.get_vocab_size()
    for phase, mesh in zip(phases_of(config), meshes, strict=False):
        within(phase, partial(check_learned, phase.config, vocab_size, mesh))


def check_learned(config: Experiment, vocab_size: int, mesh: Mesh) -> None:
    """Check the learned vocabulary, which may be smaller than the config asks for."""
    if vocab_size == config.data.vocab_size:
        return
    try:
        check_task(config, build_task(config, vocab_size), mesh)
    except ValueError as error:
        raise ValueError(
            f"the text gives a vocabulary of {vocab_size} tokens where data.vocab_size "
            f"allows {config.data.vocab_size}: {error}"
        ) from None


def check_trace(config: Experiment) -> None:
    """Raise ValueError if the strategy or the family cannot trace norms by layer."""
    model = type(config.model)
    if not config.parallel.row.traces:
        able = [name for name, row in STRATEGIES.items() if row.traces]
        raise ValueError(
            f"trace_norms is set, but strategy {config.parallel.strategy!r} has no step in "
            "which the whole gradient and all activations meet; choose one of "
            f"{', '.join(able)}, or unset it"
        )
    if not model.traces:
        able = [cls.__name__ for cls in FAMILIES.values() if cls.traces]
        raise ValueError(
            f"trace_norms is set, but a {model.__name__} has no stack of layers to trace; "
            f"choose one of {', '.join(able)}, or unset it"
        )


def check_augment(config: Experiment) -> None:
    """Raise ValueError if the family's input cannot differ from its targets."""
    kind, model = config.data.augment.kind, type(config.model)
    if kind != "none" and not model.augments:
        able = [cls.__name__ for cls in FAMILIES.values() if cls.augments]
        raise ValueError(
            f"data.augment.kind is {kind!r}, but what a {model.__name__} reads is also "
            f"what it predicts; unset it, or choose one of {', '.join(able)}"
        )


def check_texts(config: Experiment) -> None:
    """Raise ValueError if the family cannot read the data: documents, or pairs."""
    has = "pairs" if config.data.pairs else "documents"
    reads = config.model.reads
    if reads != has:
        fitting = PAIR_SOURCES if reads == "pairs" else DOCUMENT_SOURCES
        raise ValueError(
            f"data.source is {config.data.source!r} and data.packing "
            f"{config.data.packing!r}, but a {type(config.model).__name__} learns from "
            f"{reads}; choose one of {', '.join(sorted(fitting))}, "
            + ("data.packing=spans, " if reads == "pairs" else "another packing, ")
            + "or another family of models"
        )


def check_optimizer(config: Experiment) -> None:
    """Raise ValueError if the optimizer does not fit the model's way of training."""
    trained_by, name = config.model.trained_by, config.optim.name
    if trained_by != "counts" and (trained_by == "expectation") != (name in MAXIMIZERS):
        raise ValueError(
            f"model.training={getattr(config.model, 'training', 'gradient')} and "
            f"optim.name={name} do not go together: em is done by "
            f"{', '.join(MAXIMIZERS)}, gradient by the other optimizers"
        )


def check_plateau(config: Experiment) -> None:
    """Raise ValueError if replicas that train apart could not follow one loss."""
    window, local, row = config.optim.window, config.parallel.local, config.parallel.row
    if config.optim.schedule != "plateau" or not row.apart:
        return
    if not row.synchronous:
        raise ValueError(
            "optim.schedule=plateau follows the loss of its own island under strategy "
            f"{config.parallel.strategy!r}, so rates would differ from island to island; "
            "choose another schedule"
        )
    if window < local.alone + local.every:
        alone = f"parallel.local.alone {local.alone} + " if local.alone else ""
        raise ValueError(
            f"optim.window {window} is less than {alone}parallel.local.every "
            f"{local.every}: between meetings the replicas know no common loss, and the "
            "schedule would take that for a plateau; give a longer window, or more meetings"
        )


def check_alone(config: Experiment) -> None:
    """Raise ValueError if a run ends before the replicas begin from one of them."""
    alone = config.parallel.local.alone
    if alone >= config.steps:
        raise ValueError(
            f"parallel.local.alone is {alone}, but the run has {config.steps} steps, and "
            "what the other replicas learn before is dropped; give fewer, or more steps"
        )
