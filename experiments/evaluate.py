"""Evaluate a run's checkpoint on its validation rows, and on text of another kind.

python -m experiments.evaluate --workdir=runs/a [--checkpoint=best|latest|STEP]
"""

import json
import math
import pathlib

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.base import Experiment
from experiments import startup
from experiments.build import build_task
from experiments.checkpoint import Checkpoints
from experiments.log import perplexity
from experiments.workdir import read_config
from lm.data.pipeline import Data, Rows, prepare, target_bytes, validation_batches
from lm.data.tokenizer import load_tokenizer, token_bytes
from lm.task import Params, Task
from parallel.mesh import (
    batch_degree,
    data_mesh,
    knowing,
    place_rows,
    process_rows,
)

CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest or a step.")


class Evaluator:
    """Sums over the validation rows on the devices, one division at the end."""

    def __init__(self, task: Task, data: Data, batch_size: int, mesh: Mesh):
        self.rows = data.validation
        self.token_bytes = token_bytes(data.tokenizer)
        degree = batch_degree(mesh)
        self.batch_size = -(-batch_size // degree) * degree
        self.mesh = mesh
        self.sums = jax.jit(
            knowing(mesh, lambda params, batch: task.loss(params, batch, None)[1])
        )

    def __call__(
        self, params: Params, num_batches: int = 0, rows: Rows | None = None
    ) -> dict[str, float]:
        """Evaluate on `num_batches` batches (0: all rows) of validation, or other rows."""
        index, count = process_rows(self.mesh)
        local = self.batch_size // count
        mine = slice(index * local, (index + 1) * local)
        sums, num_bytes = [], 0
        rows = self.rows if rows is None else rows
        for batch in validation_batches(rows, self.batch_size, num_batches):
            num_bytes += target_bytes(batch, self.token_bytes)
            placed = place_rows(self.mesh, {k: v[mine] for k, v in batch.items()})
            sums.append(self.sums(params, placed))
            # Emulated devices that run far ahead of each other starve those that wait.
            jax.block_until_ready(sums[-2:][0])
        sums = jax.device_get(sums)
        nats = math.fsum(float(s["loss"]) for s in sums)
        tokens = math.fsum(float(s["tokens"]) for s in sums)
        loss = nats / tokens
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_byte": nats / math.log(2) / num_bytes,
            "tokens": int(tokens),
        }


def load_run(
    workdir: pathlib.Path, checkpoint: str
) -> tuple[Experiment, Task, Params, int, Mesh]:
    """Load a checkpoint's parameters, whole on every device.

    Raises ValueError if the run or the checkpoint is not there.
    """
    config = read_config(workdir)
    mesh = data_mesh(-1)
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    task = build_task(config, tokenizer.get_vocab_size())
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    replicated = NamedSharding(mesh, P())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes
    )
    with Checkpoints(workdir / "checkpoints", config.keep, write=False) as checkpoints:
        step = choose_step(checkpoints, checkpoint)
        params = checkpoints.load(step, {"params": abstract})["params"]
        return config, task, params, step, mesh


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


def main() -> None:
    with startup.user_errors():
        workdir = startup.workdir()
        startup.start_jax()
        config, task, params, step, mesh = load_run(workdir, CHECKPOINT.value)
        data = prepare(config.data)
    evaluate = Evaluator(task, data, config.data.batch_size, mesh)
    result = {"step": step, **evaluate(params), "bigram_loss": data.meta["bigram_loss"]}
    if data.shifted:
        result["shifted_loss"] = evaluate(params, rows=data.shifted)["loss"]
    if startup.is_main_process():
        for name, value in result.items():
            print(f"{name:14} {np.format_float_positional(value, 4, trim='-')}")
        (workdir / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    startup.run(main)
