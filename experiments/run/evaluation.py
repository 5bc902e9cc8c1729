"""Evaluate parameters on held-out rows: loss, accuracy, classes, calibration."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tokenizers import Tokenizer

from lm.data.classes import CLASSES, usual_classes
from lm.data.config import DataConfig
from lm.data.prepare import Data, prepared_documents
from lm.data.rows.order import validation_batches
from lm.data.rows.store import Rows, target_bytes, targets
from lm.data.sources.corpus import Document
from lm.data.sources.listing import list_files
from lm.data.sources.reading import read_text
from lm.data.texts import clean_alone, head, pack_texts
from lm.data.tokenizer import token_bytes
from lm.metrics import bootstrap_interval, metrics, perplexity, prediction_sums
from lm.task import Batch, Params, Sums, Task, targets_mask
from parallel.mesh import (
    batch_degree,
    knowing,
    place_rows,
    process_rows,
)

LOGITS = 1 << 24  # about so many exist at once on a device
USUAL_CHARACTERS = 2_000_000  # training text from which a token's usual class is counted


class Documents(NamedTuple):
    """The sums of the loss by document, n documents."""

    numbers: np.ndarray  # int[n]
    loss: np.ndarray  # float64[n]
    tokens: np.ndarray  # int[n]


class BatchSums(NamedTuple):
    sums: dict[str, np.ndarray]
    num_bytes: int  # of text that the targets stand for
    documents: Documents | None  # None: the rows do not say from which they are


class Evaluator:
    """Sums over held-out rows on the devices, one division at the end."""

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        rows: Rows,
        batch_size: int,
        mesh: Mesh,
        more_sums: Callable[[Params, Batch], Sums] = lambda params, batch: {},
        tick: Callable[[], None] = lambda: None,  # called after each batch
    ):
        self.rows, self.tick = rows, tick
        self.token_bytes = token_bytes(tokenizer)
        degree = batch_degree(mesh)
        self.batch_size = -(-batch_size // degree) * degree
        self.mesh = mesh

        def sums(params: Params, batch: Batch) -> tuple[Sums, jax.Array]:
            def loss(weights: jax.Array) -> tuple[jax.Array, Sums]:
                found = task.loss(params, batch | {"weights": weights}, None)[1]
                return found["loss"], found

            # Every target weighs 1. The derivative with respect to the weight of a target
            # is the loss that the weight multiplies, for any Task.
            ones = jnp.ones(batch["tokens"].shape, jnp.float32)
            losses, found = jax.grad(loss, has_aux=True)(ones)
            return found | more_sums(params, batch), losses[:, 1:]

        # Every process gets the losses of all rows.
        everywhere = NamedSharding(mesh, P())
        self.sums = jax.jit(knowing(mesh, sums), out_shardings=everywhere)

    def __call__(
        self, params: Params, num_batches: int = 0, rows: Rows | None = None
    ) -> dict[str, float]:
        """Evaluate on `num_batches` batches (0: all) of `rows`, or of its own rows."""
        batches = self.batches(params, num_batches, rows)
        return likelihood(batches) | interval(batches, self.rows if rows is None else rows)

    def batches(
        self, params: Params, num_batches: int = 0, rows: Rows | None = None
    ) -> list[BatchSums]:
        """Return each batch's sums; the first ones are the same for any `num_batches`."""
        index, count = process_rows(self.mesh)
        local = self.batch_size // count
        mine = slice(index * local, (index + 1) * local)
        rows = self.rows if rows is None else rows
        running: collections.deque = collections.deque()
        done: list[BatchSums] = []
        for batch in validation_batches(rows, self.batch_size, num_batches):
            read = {k: v[mine] for k, v in batch.items() if k != "documents"}
            running.append((batch, self.sums(params, place_rows(self.mesh, read))))
            # Emulated devices that run far ahead of each other starve those that wait.
            if len(running) == 2:
                done.append(self.finished(*running.popleft()))
        return done + [self.finished(*last) for last in running]

    def finished(self, batch: dict[str, np.ndarray], launched: Any) -> BatchSums:
        """Wait for a batch, and sum the loss of its targets by document."""
        sums, losses_BT = jax.device_get(launched)
        self.tick()
        num_bytes, documents = target_bytes(batch, self.token_bytes), None
        if "documents" in batch:
            inside = targets(batch["segments"])
            numbers = batch["documents"][:, 1:][inside]
            loss = losses_BT[inside].astype(np.float64)
            documents = by_document(numbers, loss, np.ones_like(numbers))
        return BatchSums(sums, num_bytes, documents)

    def num_rows(self, num_batches: int) -> int:
        """Return how many rows an evaluation of `num_batches` batches has."""
        whole = len(self.rows.tokens)
        return min(num_batches * self.batch_size, whole) if num_batches else whole


def total(batches: list[BatchSums]) -> dict[str, np.ndarray]:
    def add(*parts: np.ndarray) -> np.ndarray:
        whole = np.issubdtype(parts[0].dtype, np.integer)
        return np.sum(parts, 0, dtype=np.int64 if whole else np.float64)

    return jax.tree.map(add, *(batch.sums for batch in batches))


def likelihood(batches: list[BatchSums]) -> dict[str, float]:
    """Divide the sums over all batches by their tokens and by their bytes of text."""
    sums, num_bytes = total(batches), sum(batch.num_bytes for batch in batches)
    loss = float(sums["loss"] / sums["tokens"])
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": float(sums["loss"]) / math.log(2) / num_bytes,
        "tokens": int(sums["tokens"]),
    }


def by_document(numbers: np.ndarray, loss: np.ndarray, tokens: np.ndarray) -> Documents:
    """Add up what belongs to the same document."""
    found, index = np.unique(numbers, return_inverse=True)
    counts = np.bincount(index, tokens, len(found)).astype(np.int64)
    return Documents(found, np.bincount(index, loss, len(found)), counts)


def interval(batches: list[BatchSums], rows: Rows) -> dict[str, Any]:
    """Return the loss's 95 % interval over the documents, if the rows tell documents.

    With a mixture, also the loss of each source that the batches have text of.
    """
    parts = [batch.documents for batch in batches]
    if None in parts:
        return {}
    whole = by_document(*(np.concatenate(x) for x in zip(*parts, strict=True)))
    found = {
        "loss_interval": bootstrap_interval(whole.loss, whole.tokens),
        "documents": len(whole.numbers),
    }
    if rows.sources:
        found["loss_by_source"] = by_source(whole, rows.sources)
    return found


def by_source(documents: Documents, sources: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Return the loss of each source; its documents are numbered after one another."""
    ends = np.cumsum([number for _, number in sources])
    index = np.searchsorted(ends, documents.numbers, side="right")
    loss = np.bincount(index, documents.loss, len(sources))
    tokens = np.bincount(index, documents.tokens, len(sources))
    return {
        label: float(loss[i] / tokens[i])
        for i, (label, _) in enumerate(sources)
        if tokens[i]
    }


def told_sources(result: dict[str, Any]) -> str:
    """Return the loss of each source in words; "" without sources."""
    losses = result.get("loss_by_source") or {}
    return ", ".join(f"{label} {loss:.4f}" for label, loss in losses.items())


def told_interval(result: dict[str, Any]) -> str:
    """Return words for the interval of a loss, to stand after it; "" without one."""
    if not result.get("loss_interval"):
        return ""
    low, high = result["loss_interval"]
    return f" [{low:.2f}, {high:.2f}] over {result['documents']} documents"


def score(
    task: Task,
    params: Params,
    tokenizer: Tokenizer,
    rows: Rows,
    usual: np.ndarray | None,
    mesh: Mesh,
) -> dict[str, Any]:
    """Evaluate everything on `rows`; `usual` is each token's usual class, if any."""
    length, vocab_size = rows.tokens.shape[1], tokenizer.get_vocab_size()
    batch_size = batch_degree(mesh) * max(LOGITS // (length * vocab_size), 1)

    def predictions(params: Params, batch: Batch) -> Sums:
        logits_BTV = task.logits(params, batch)
        last = slice(-logits_BTV.shape[1], None)  # encoder-decoders: of targets only
        classes = batch.get("classes")
        return prediction_sums(
            logits_BTV,
            batch["tokens"][:, last],
            targets_mask(batch)[:, last],
            None if classes is None else classes[:, last],
            usual,
            len(CLASSES),
        )

    evaluate = Evaluator(task, tokenizer, rows, batch_size, mesh, predictions)
    batches = evaluate.batches(params)
    found = likelihood(batches) | interval(batches, rows)
    return found | metrics(total(batches), CLASSES)


def held_out_rows(
    config: DataConfig, data: Data, split: str
) -> tuple[Rows, np.ndarray | None]:
    """Return a split's rows and, for the embedded corpus, each token's usual class.

    ValueError if the run has no such rows.
    """
    rows = getattr(data, split)
    if rows is None:
        raise ValueError(f"--on={split}: the data of this run has no text of another kind")
    if config.source != "stdlib" or config.sources or config.pairs:
        return rows, None
    fingerprint = data.meta["fingerprint"]
    usual = usual_in_training(config, data.tokenizer, fingerprint)
    texts = [each.text for each in prepared_documents(config, fingerprint, split)]
    return pack_texts(config, data.tokenizer, texts, classes=True), usual


def file_rows(
    config: DataConfig, tokenizer: Tokenizer, fingerprint: str, pattern: str
) -> tuple[Rows, np.ndarray | None]:
    """Return the rows of files and, for Python files, each token's usual class.

    `fingerprint` identifies the run's data. ValueError if the files cannot be read.
    """
    if config.pairs:
        raise ValueError(
            f"--on={pattern}: a run that learnt from pairs is not evaluated on files; give "
            "--on=validation"
        )
    files = list_files("--on", pattern)
    read = (Document(read_text(file), str(file)) for file in files)
    texts = [document.text for document in clean_alone(config, read)]
    usual = None
    if all(file.suffix == ".py" for file in files):
        usual = usual_in_training(config, tokenizer, fingerprint)
    return pack_texts(config, tokenizer, texts, classes=usual is not None), usual


def usual_in_training(
    config: DataConfig, tokenizer: Tokenizer, fingerprint: str
) -> np.ndarray:
    """Count each token's usual class in the training text of the run's data."""
    documents = prepared_documents(config, fingerprint, "train")
    texts = (document.text for document in head(documents, USUAL_CHARACTERS))
    return usual_classes(texts, tokenizer)
