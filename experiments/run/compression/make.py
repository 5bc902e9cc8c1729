"""Make a new run of a trained one, with compressed parameters."""

import pathlib
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from configs import fields
from configs.base import Experiment
from experiments.processes.files import json_line, write_whole
from experiments.processes.messages import is_main_process
from experiments.run.build import build_task, plain_task
from experiments.run.check import check
from experiments.run.checkpoint import Checkpoints
from experiments.run.evaluation import Evaluator
from experiments.run.restore import load_run, run_data
from experiments.run.steps import row_order
from experiments.run.workdir import claimed, read_config
from lm.compress import stored
from lm.compress.config import compressed
from lm.compress.low_rank import factored
from lm.compress.prune import prune_now
from lm.compress.quantise import QuantiseConfig, calibrated
from lm.compress.structure import SIZES, narrowed, narrower
from lm.data.prepare import Data
from lm.data.rows.order import train_batches
from lm.models.transformer.config import TransformerConfig
from lm.task import Params, num_parameters
from parallel.config import ParallelConfig
from parallel.mesh import place_rows

CALIBRATIONS = ("largest", "error", "loss")
MODEL, RECORD = "compressed.safetensors", "compression.json"
# What may differ from the run that is compressed; the rest is that of its parameters.
FREE = ("compress.", "optim.", "parallel.", "steps", *(f"model.{name}" for name in SIZES))


def check_smaller(source: Experiment, config: Experiment) -> Experiment:
    """Return the config of the new run; ValueError if it is not one of the same model."""
    theirs, ours = fields.flatten(source), fields.flatten(config)
    names = fields.deciding(source) | fields.deciding(config)
    for name in sorted(names):
        if theirs.get(name) != ours.get(name) and not name.startswith(FREE):
            raise ValueError(
                f"{name} is {theirs.get(name)!r} in the run and {ours.get(name)!r} here; "
                "only compress, optim, parallel, steps and, of a transformer, "
                f"{', '.join(SIZES)} may differ: unset it"
            )
    if isinstance(source.model, TransformerConfig):
        config = replace(config, model=narrower(source.model, config.model))
    # This command needs no strategy; the training of the new run checks its own.
    check(replace(config, parallel=ParallelConfig()), jax.devices()[:1])
    return config


def make_smaller(
    workdir: pathlib.Path,
    to: pathlib.Path,
    config: Experiment,
    checkpoint: str,
    calibration: str = "largest",
    num_batches: int = 8,
) -> dict[str, Any]:
    """Write the new run, and return what compression.json says.

    Raises ValueError if there is no such run, or the folder is not free.
    """
    if (to / "config.json").exists():
        raise ValueError(f"--to={to} holds a run already; give another folder")
    source = read_config(workdir)
    _, _, plain, step, mesh = load_run(workdir, checkpoint)
    data = run_data(workdir, source)
    given = source, config, plain, data, mesh, calibration, num_batches
    params = smaller(*given)
    with claimed(to, config, data, write=is_main_process()):
        found = {
            "from": str(workdir.absolute()),
            "step": step,
            "calibration": calibration if config.compress.quantise.bits else "",
            "before": measured(source, plain_task, plain, data, mesh, QuantiseConfig()),
            "after": measured(
                config, build_task, params, data, mesh, config.compress.quantise
            ),
        }
        save(to, config, params)
        found["after"] |= stored.write(
            to / MODEL, jax.device_get(params), config.compress.quantise
        )
        write_whole(to / RECORD, json_line(found, indent=2))
    return found


def smaller(
    source: Experiment,
    config: Experiment,
    plain: Params,
    data: Data,
    mesh: Mesh,
    calibration: str = "largest",
    num_batches: int = 8,
) -> Params:
    """Return the plain parameters of one config in the form that another one trains."""
    if config.model != source.model:
        shrink = partial(narrowed, model=source.model, target=config.model)
        plain = jax.jit(shrink)(plain)
    params = jax.jit(lambda p: pruned_form(p, config))(plain)
    if calibration == "largest":
        return params
    quantise, importance = config.compress.quantise, None
    if calibration == "loss":
        importance = squared_gradients(config, params, data, mesh, num_batches)
    return jax.jit(lambda p, i: calibrated(p, quantise, i))(params, importance)


def pruned_form(plain: Params, config: Experiment) -> Params:
    """Return plain parameters in the form that is trained, with as many zeros as asked."""
    compress = config.compress
    form = factored(plain, compress.low_rank, jax.random.key(config.seed))
    return prune_now(form, compress.prune)


def squared_gradients(
    config: Experiment, params: Params, data: Data, mesh: Mesh, num_batches: int
) -> Params:
    """Add up the squares of the gradients of the loss of several batches."""
    vocab_size = data.tokenizer.get_vocab_size()
    float32 = replace(config.compress, quantise=QuantiseConfig())
    task = compressed(plain_task(config, vocab_size), float32)

    @jax.jit
    def add(total: Params, batch) -> Params:
        grads = jax.grad(lambda p: task.loss(p, batch, None)[0])(params)
        return jax.tree.map(lambda t, g: t + g * g, total, grads)

    total = jax.tree.map(jnp.zeros_like, params)
    for batch in train_batches(data.train, row_order(config), 0, num_batches):
        total = add(total, place_rows(mesh, batch))
    return total


def measured(
    config: Experiment, make, params: Params, data: Data, mesh: Mesh, how: QuantiseConfig
) -> dict[str, Any]:
    """Evaluate on all held-out rows, and count bytes and parameters."""
    task = make(config, data.tokenizer.get_vocab_size())
    evaluate = Evaluator(
        task, data.tokenizer, data.validation, config.data.batch_size, mesh
    )
    encoded, nonzero = stored.encoded(jax.device_get(params), how)
    return {
        "loss": evaluate(params)["loss"],
        "bytes": len(encoded),
        "parameters": num_parameters(params),
        "nonzero": nonzero,
    }


def save(to: pathlib.Path, config: Experiment, params: Params) -> None:
    with Checkpoints(to / "checkpoints", config.keep, write=True) as checkpoints:
        checkpoints.save_parts(0, {"params": params}, None)
        checkpoints.wait()
        if 0 not in checkpoints.steps:
            raise OSError(f"the checkpoint in {checkpoints.folder} could not be written")
