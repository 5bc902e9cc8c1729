"""Load a run's checkpoint for use: its config, its task, its parameters."""

import pathlib
from collections.abc import Callable
from functools import partial

import jax
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.base import Experiment
from experiments.run.build import build_task
from experiments.run.checkpoint import Checkpoints
from experiments.run.ngram_counts import config_counting, model_of, saved_counts
from experiments.run.workdir import read_config
from lm.data.tokenizer import load_tokenizer
from lm.task import Params, Task
from parallel.mesh import (
    data_mesh,
)

flags.disclaim_key_flags()  # it is shown as that of the command that asks for it


def define_checkpoint() -> flags.FlagHolder:
    return flags.DEFINE_string("checkpoint", "best", "best, latest or a step.")


def load_run(
    workdir: pathlib.Path, checkpoint: str
) -> tuple[Experiment, Task, Params, int, Mesh]:
    """Load a checkpoint's parameters, whole on every device.

    Raises ValueError if the run or the checkpoint is not there.
    """
    config = read_config(workdir)
    mesh = data_mesh(-1)
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    vocab_size = tokenizer.get_vocab_size()
    task = build_task(config, vocab_size)
    shapes, finish = saved_params(config, task, vocab_size, mesh)
    replicated = NamedSharding(mesh, P())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes
    )
    with Checkpoints(workdir / "checkpoints", config.keep, write=False) as checkpoints:
        step = choose_step(checkpoints, checkpoint)
        params = finish(checkpoints.load(step, {"params": abstract})["params"])
        return config, task, params, step, mesh


def saved_params(
    config: Experiment, task: Task, vocab_size: int, mesh: Mesh
) -> tuple[Params, Callable[[Params], Params]]:
    """Return the shapes of what a checkpoint holds, and how the parameters come of it."""
    if config.model.trained_by != "counts":
        return jax.eval_shape(task.init, jax.random.key(0)), lambda params: params
    counting = config_counting(config, vocab_size)
    return saved_counts(counting, mesh), partial(model_of, counting)


def choose_step(checkpoints: Checkpoints, wanted: str) -> int:
    steps = checkpoints.steps
    if not steps:
        raise ValueError(f"{checkpoints.folder} holds no checkpoint yet")
    if wanted == "latest":
        return steps[-1]
    if wanted == "best":
        best = checkpoints.best_step()
        return steps[-1] if best is None else best
    if not wanted.isdigit() or int(wanted) not in steps:
        raise ValueError(
            f"--checkpoint={wanted}: give best, latest or one of "
            f"{', '.join(map(str, steps))}"
        )
    return int(wanted)
