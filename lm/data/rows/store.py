"""Rows on disk: written once, read by memory map."""

import contextlib
import pathlib
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

import numpy as np

from lm.data.rows.buckets import bucket_of
from lm.data.rows.checked import RowsFile, checked_rows
from lm.data.rows.packing import Row
from lm.data.rows.weights import effective_size


class Rows(NamedTuple):
    tokens: np.ndarray  # [R, T + 1], memory-mapped
    segments: np.ndarray  # [R, T + 1], 0: padding
    classes: np.ndarray | None = None  # [R, T + 1], only if a caller asked for them
    weights: np.ndarray | None = None  # float32[R, T + 1], only if some differ from 1
    documents: np.ndarray | None = None  # int32[R, T + 1], of held-out rows
    # The numbers of rows of each shard and in it of each stratum (lm/data/rows/shards.py);
    # (): all rows are of one.
    parts: tuple[tuple[int, ...], ...] = ()
    strata: tuple[str, ...] = ()  # their names; (): all rows are of one without a name
    # The label of each source of a mixture, and how many documents of the split it has;
    # the documents are numbered in this order.
    sources: tuple[tuple[str, int], ...] = ()
    buckets: np.ndarray | None = None  # uint8[R], only if batches are of equal tokens


class Weights:
    """Writes the weights of rows to a file, if there is one other than 1; sums them."""

    def __init__(self, file: pathlib.Path):
        self.file, self.stream = file, None
        self.num_rows, self.weight, self.squares = 0, 0.0, 0.0
        self.fractional = False  # some weight is neither 0 nor 1

    def add(self, weights: np.ndarray, segments: np.ndarray, held: contextlib.ExitStack):
        """Add those of a row; `held` closes the file at the end."""
        weights = np.where(segments > 0, weights, np.float32(1))
        if self.stream is None and (weights != 1).any():
            self.stream = held.enter_context(RowsFile(self.file))
            for _ in range(self.num_rows):
                self.stream.write(np.ones_like(weights).tobytes())
        if self.stream is not None:
            self.stream.write(weights.tobytes())
            self.fractional |= bool(((weights != 0) & (weights != 1)).any())
        counted = weights[1:][targets(segments)].astype(np.float64)
        self.num_rows += 1
        self.weight += counted.sum()
        self.squares += np.square(counted).sum()

    def told(self) -> dict[str, float | bool]:
        """Return the sum, and the targets of equal weight that they are worth; {} if 1."""
        if self.stream is None:
            return {}
        return {
            "weight": self.weight,
            "effective_targets": effective_size(self.weight, self.squares),
            "fractional_weights": self.fractional,
        }


def write_rows(
    rows: Iterable[Row],
    folder: pathlib.Path,
    split: str,
    meta: dict,
) -> dict[str, float]:
    """Write rows to the files of a split; return their number and the share of padding.

    Rows of training keep their weights, and others the documents that they are from. A row
    of ids alone is a document, all of weight 1. If `meta` has lengths, a file says in which
    bucket each training row is (lm/data/rows/buckets.py).
    """
    num_rows = num_targets = 0
    lengths = meta.get("lengths", ())
    buckets = [0] * len(lengths)
    weights = Weights(folder / f"{split}.weights")
    with contextlib.ExitStack() as held:

        def open_file(kind: str) -> BinaryIO:
            return held.enter_context((folder / f"{split}.{kind}").open("wb"))

        def open_rows(kind: str) -> RowsFile:
            return held.enter_context(RowsFile(folder / f"{split}.{kind}"))

        tokens_file, segments_file = open_rows("tokens"), open_rows("segments")
        trains = split.partition("-")[0] == "train"  # perhaps a shard, "train-3"
        documents_file = None if trains else open_rows("documents")
        buckets_file = open_file("buckets") if trains and lengths else None
        for row, segments in rows:
            plain = row.dtype.names is None
            ids = row if plain else row["id"]
            tokens_file.write(ids.astype(meta["dtype"]).tobytes())
            if meta["segments"]:
                segments_file.write(segments.astype(np.uint16).tobytes())
            if documents_file:
                numbers = np.full(len(row), num_rows) if plain else row["document"]
                documents_file.write(numbers.astype(np.int32).tobytes())
            elif not plain:
                weights.add(row["weight"], segments, held)
            if buckets_file:
                bucket = bucket_of(ids, segments, meta["source_len"], lengths)
                buckets_file.write(bytes([bucket]))
                buckets[bucket] += 1
            num_rows += 1
            num_targets += np.count_nonzero(targets(segments))
    size = num_rows * (meta["row_len"] - 1)
    return {
        "rows": num_rows,
        "targets": int(num_targets),
        # The share of positions without a target: padding, and the last of each piece.
        "padding": 1 - num_targets / size if size else 0.0,
        "buckets": buckets,
    } | weights.told()


def read_rows(folder: pathlib.Path, split: str, meta: dict) -> Rows:
    shape = (meta[split]["rows"], meta["row_len"])

    def mapped(kind: str, dtype: str) -> np.ndarray:
        return checked_rows(folder / f"{split}.{kind}", dtype, shape)

    def if_there(kind: str, dtype: str) -> np.ndarray | None:
        return mapped(kind, dtype) if (folder / f"{split}.{kind}").exists() else None

    segments = np.broadcast_to(np.uint16(1), shape)
    buckets = folder / f"{split}.buckets"
    return Rows(
        mapped("tokens", meta["dtype"]),
        mapped("segments", "uint16") if meta["segments"] else segments,
        weights=if_there("weights", "float32"),
        documents=if_there("documents", "int32"),
        buckets=np.fromfile(buckets, np.uint8) if buckets.exists() else None,
    )


def read_batch(rows: Rows, index, places: np.ndarray) -> dict[str, np.ndarray]:
    batch = {
        "tokens": rows.tokens[index].astype(np.int32),
        "segments": rows.segments[index].astype(np.int32),
        "row": places,
    }
    if rows.classes is not None:
        batch["classes"] = rows.classes[index].astype(np.int32)
    if rows.weights is not None:
        batch["weights"] = np.asarray(rows.weights[index])
    if rows.documents is not None:
        batch["documents"] = np.asarray(rows.documents[index])
    return batch


def targets(segments: np.ndarray) -> np.ndarray:
    """Return bool[..., T], true where a token is in the segment of the one before it."""
    before, here = segments[..., :-1], segments[..., 1:]
    return (here == before) & (here > 0)


def target_bytes(batch: dict[str, np.ndarray], lengths: np.ndarray) -> int:
    """Count the bytes of text that a batch's targets stand for."""
    return int(lengths[batch["tokens"][:, 1:]][targets(batch["segments"])].sum())
