"""Load what a run was trained with: its config, tokenizer and data, and a checkpoint."""

import pathlib
from collections.abc import Callable
from functools import partial

import jax
from absl import flags
from jax.sharding import Mesh, NamedSharding

from configs.base import Experiment
from experiments.run.build import build_task, plain_task
from experiments.run.checkpoint import Checkpoints
from experiments.run.ngram_counts import config_counting, model_of, saved_counts
from experiments.run.workdir import read_config, read_description, read_tokenizer
from lm.compress.config import finished
from lm.data.prepare import Data, current_fingerprint, load_prepared, prepare, rows_folder
from lm.task import Params, Task
from parallel.layout import Rule, replicate, specs
from parallel.mesh import data_mesh

flags.disclaim_key_flags()  # --help then lists it as the command's own flag


def define_checkpoint() -> flags.FlagHolder:
    return flags.DEFINE_string(
        "checkpoint", "best", "Checkpoint to load: best, latest or a step."
    )


def load_run(
    workdir: pathlib.Path, checkpoint: str
) -> tuple[Experiment, Task, Params, int, Mesh]:
    """Load a checkpoint's parameters, whole on every device; see `load_params`."""
    mesh = data_mesh(-1)
    return *load_params(workdir, checkpoint, mesh, replicate), mesh


def load_params(
    workdir: pathlib.Path, checkpoint: str, mesh: Mesh, rule: Rule
) -> tuple[Experiment, Task, Params, int]:
    """Load a checkpoint's parameters, split by the rule, the plain Task of them, the step.

    Compressed parameters are multiplied out and dequantised. Raises ValueError if the run
    or the checkpoint is not there.
    """
    config = read_config(workdir)
    vocab_size = read_tokenizer(workdir).get_vocab_size()
    folder = workdir / "checkpoints"
    if not folder.is_dir():  # Orbax would make it
        raise ValueError(f"{folder} holds no checkpoint yet")
    task = plain_task(config, vocab_size)
    shapes, finish = saved_params(config, vocab_size, mesh)
    abstract = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
        ),
        shapes,
        specs(rule, shapes, mesh.shape),
    )
    with Checkpoints(folder, config.keep, write=False) as checkpoints:
        step = choose_step(checkpoints, checkpoint)
        params = finish(checkpoints.load(step, {"params": abstract})["params"])
        return config, task, params, step


def run_data(workdir: pathlib.Path, config: Experiment) -> Data:
    """Return the prepared rows and the tokenizer that the run was trained with.

    They come from the cache, even if the text has changed since. Without a cache they are
    prepared again from the text; ValueError if that gives other data.
    """
    fingerprint = read_description(workdir)["fingerprint"]
    data = load_prepared(config.data, fingerprint) if fingerprint else None
    if data is None:
        if fingerprint:
            check_text(workdir, config, fingerprint)
        data = prepare(config.data)
    if data.tokenizer.to_str() != read_tokenizer(workdir).to_str():
        raise ValueError(
            f"{workdir / 'tokenizer.json'} is not the tokenizer in "
            f"{rows_folder(config.data, fingerprint)}, which another version of what "
            "prepares text has made; put back the data that the run was trained with"
        )
    return data


def check_text(workdir: pathlib.Path, config: Experiment, fingerprint: str) -> None:
    """Raise ValueError if the text now gives other rows than the run was trained on."""
    folder = rows_folder(config.data, fingerprint)
    remedy = f"put the text back as it was, or a copy of {folder}"
    try:
        found = current_fingerprint(config.data)
    except ValueError as error:
        raise ValueError(f"{error}; {workdir} was trained on it: {remedy}") from None
    if found != fingerprint:
        raise ValueError(
            f"{workdir} was trained on the prepared data {fingerprint}, but its text now "
            f"gives {found} (files were added, changed or removed, or the version of "
            f"Python, the dataset or this code is another); {remedy}"
        )


def saved_params(
    config: Experiment, vocab_size: int, mesh: Mesh
) -> tuple[Params, Callable[[Params], Params]]:
    """Return the shapes in a checkpoint, and a function from its arrays to parameters."""
    if config.model.trained_by != "counts":
        task = build_task(config, vocab_size)
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        if not config.compress.changes_task:
            return shapes, lambda params: params
        return shapes, jax.jit(lambda params: finished(params, config.compress))
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
