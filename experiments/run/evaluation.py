"""Evaluate parameters on held-out rows: loss, accuracy, classes, calibration."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm.data.classes import CLASSES, usual_classes
from lm.data.cleaning.clean import clean
from lm.data.config import DataConfig
from lm.data.prepare import Data
from lm.data.rows.order import validation_batches
from lm.data.rows.store import Rows, target_bytes
from lm.data.sources.files import list_files, read_text
from lm.data.texts import held_out_texts, pack_texts, sample, training_texts
from lm.data.tokenizer import token_bytes
from lm.metrics import metrics, perplexity, prediction_sums
from lm.task import Batch, Params, Sums, Task, targets_mask
from parallel.mesh import (
    batch_degree,
    knowing,
    place_rows,
    process_rows,
)

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
