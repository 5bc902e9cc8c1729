"""Evaluate a run's checkpoint on held-out text: loss, accuracy, classes, calibration.

python -m experiments.evaluate --workdir=runs/a [--checkpoint=best|latest|STEP]
    [--on=validation|shifted|'notes/*.txt']

Prints a table and writes evaluation.json into the workdir. Classes of tokens are told where
the text is Python: the embedded corpus, or files that end in .py.
"""

import json
import math
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs.base import Experiment
from experiments import startup
from experiments.build import FAMILY_OF, build_task, config_counting
from experiments.checkpoint import Checkpoints
from experiments.counts import model_of, saved_counts
from experiments.log import perplexity
from experiments.workdir import read_config
from lm.data.classes import CLASSES, usual_classes
from lm.data.clean import clean
from lm.data.corpus import list_files, read_text
from lm.data.pipeline import (
    Data,
    DataConfig,
    Rows,
    held_out_texts,
    pack_texts,
    prepare,
    sample,
    target_bytes,
    training_texts,
    validation_batches,
)
from lm.data.tokenizer import load_tokenizer, token_bytes
from lm.metrics import metrics, prediction_sums
from lm.task import Batch, Params, Sums, Task, targets_mask
from parallel.mesh import (
    batch_degree,
    data_mesh,
    knowing,
    place_rows,
    process_rows,
)

ON = flags.DEFINE_string("on", "validation", "validation, shifted, or files of text.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best, latest or a step.")


LOGITS = 1 << 24  # that exist at once on a device, about
USUAL_CHARACTERS = 2_000_000  # of training text, that tell a token's usual class


class Evaluator:
    """Sums over the validation rows on the devices, one division at the end."""

    def __init__(
        self,
        task: Task,
        data: Data,
        batch_size: int,
        mesh: Mesh,
        more_sums: Callable[[Params, Batch], Sums] = lambda params, batch: {},
    ):
        self.rows = data.validation
        self.token_bytes = token_bytes(data.tokenizer)
        degree = batch_degree(mesh)
        self.batch_size = -(-batch_size // degree) * degree
        self.mesh = mesh

        def sums(params: Params, batch: Batch) -> Sums:
            return task.loss(params, batch, None)[1] | more_sums(params, batch)

        self.sums = jax.jit(knowing(mesh, sums))

    def __call__(
        self, params: Params, num_batches: int = 0, rows: Rows | None = None
    ) -> dict[str, float]:
        """Evaluate on `num_batches` batches (0: all rows) of validation, or other rows."""
        sums, num_bytes = self.totals(params, num_batches, rows)
        return likelihood(sums, num_bytes)

    def totals(
        self, params: Params, num_batches: int = 0, rows: Rows | None = None
    ) -> tuple[dict[str, np.ndarray], int]:
        """Return the sums over the batches, and the bytes of text of their targets."""
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

        def add(*parts: np.ndarray) -> np.ndarray:
            whole = np.issubdtype(parts[0].dtype, np.integer)
            return np.sum(parts, 0, dtype=np.int64 if whole else np.float64)

        return jax.tree.map(add, *jax.device_get(sums)), num_bytes


def likelihood(sums: dict[str, np.ndarray], num_bytes: int) -> dict[str, float]:
    """Divide the sums of an evaluation whose targets stand for `num_bytes` bytes."""
    loss = float(sums["loss"] / sums["tokens"])
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": float(sums["loss"]) / math.log(2) / num_bytes,
        "tokens": int(sums["tokens"]),
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
    if not FAMILY_OF[type(config.model)].program:
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


def main() -> None:
    with startup.user_errors():
        workdir = startup.workdir()
        startup.start_jax()
        config, task, params, step, mesh = load_run(workdir, CHECKPOINT.value)
        data = prepare(config.data)
        rows, usual = scored_rows(config.data, data, ON.value)
    result = {"step": step, "on": ON.value}
    result |= score(task, params, data, rows, usual, mesh)
    if ON.value == "validation":
        result["bigram_loss"] = data.meta["bigram_loss"]
    if startup.is_main_process():
        print_scores(result)
        (workdir / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")


def score(
    task: Task, params: Params, data: Data, rows: Rows, usual: np.ndarray | None, mesh: Mesh
) -> dict[str, Any]:
    """Evaluate everything on `rows`; `usual` is each token's usual class, if any."""
    length, vocab_size = rows.tokens.shape[1], data.tokenizer.get_vocab_size()
    batch_size = batch_degree(mesh) * max(LOGITS // (length * vocab_size), 1)

    def predictions(params: Params, batch: Batch) -> Sums:
        logits_BTV = task.logits(params, batch)
        last = slice(-logits_BTV.shape[1], None)  # an encoder-decoder's are its targets'
        classes = batch.get("classes")
        return prediction_sums(
            logits_BTV,
            batch["tokens"][:, last],
            targets_mask(batch)[:, last],
            None if classes is None else classes[:, last],
            usual,
            len(CLASSES),
        )

    evaluate = Evaluator(task, data, batch_size, mesh, predictions)
    sums, num_bytes = evaluate.totals(params, rows=rows)
    return likelihood(sums, num_bytes) | metrics(sums, CLASSES)


def scored_rows(
    config: DataConfig, data: Data, source: str
) -> tuple[Rows, np.ndarray | None]:
    """Return the rows to score and, of Python text, the class of each token usually.

    ValueError if the run has no such rows, or the files cannot be read.
    """
    if source == "shifted" and data.shifted is None:
        raise ValueError("--on=shifted: the data of this run has no text of another kind")
    if source in ("validation", "shifted"):
        if config.source != "stdlib":
            return getattr(data, source), None
        texts = held_out_texts(config, source)
    else:
        files = list_files("--on", source)
        texts = [clean(read_text(file)) for file in files]
        if not all(file.suffix == ".py" for file in files):
            return pack_texts(config, data.tokenizer, texts), None
    usual = usual_classes(sample(training_texts(config), USUAL_CHARACTERS), data.tokenizer)
    return pack_texts(config, data.tokenizer, texts, classes=True), usual


def print_scores(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name != "classes":
            shown = (
                value if isinstance(value, str) else f"{value:.4f}".rstrip("0").rstrip(".")
            )
            print(f"{name.replace('_', ' '):18} {shown}")
    if classes := result.get("classes"):
        print(f"\n{'class':18} precision  recall      f1   targets")
        for name, one in classes.items():
            values = "  ".join(f"{one[n]:8.4f}" for n in ("precision", "recall", "f1"))
            print(f"{name:18}{values}  {one['targets']:8}")


if __name__ == "__main__":
    startup.run(main)
