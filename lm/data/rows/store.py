"""Rows on disk: written once, read by memory map."""

import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from lm.data.rows.packing import Row


class Rows(NamedTuple):
    tokens: np.ndarray  # [R, T + 1], memory-mapped
    segments: np.ndarray  # [R, T + 1], 0: padding
    classes: np.ndarray | None = None  # [R, T + 1], only if a caller asked for them


def write_rows(
    rows: Iterable[Row],
    folder: pathlib.Path,
    split: str,
    meta: dict,
) -> dict[str, float]:
    """Write rows to the files of a split; return their number and the share of padding."""
    num_rows = num_targets = 0
    with (
        (folder / f"{split}.tokens").open("wb") as tokens_file,
        (folder / f"{split}.segments").open("wb") as segments_file,
    ):
        for tokens, segments in rows:
            tokens_file.write(tokens.astype(meta["dtype"]).tobytes())
            if meta["segments"]:
                segments_file.write(segments.astype(np.uint16).tobytes())
            num_rows += 1
            num_targets += np.count_nonzero(
                (segments[1:] == segments[:-1]) & (segments[1:] > 0)
            )
    size = num_rows * (meta["row_len"] - 1)
    return {
        "rows": num_rows,
        "targets": int(num_targets),
        # The share of positions without a target: padding, and the last of each piece.
        "padding": 1 - num_targets / size if size else 0.0,
    }


def read_rows(folder: pathlib.Path, split: str, meta: dict) -> Rows:
    shape = (meta[split]["rows"], meta["row_len"])
    tokens = np.memmap(folder / f"{split}.tokens", meta["dtype"], "r", shape=shape)
    if not meta["segments"]:
        return Rows(tokens, np.broadcast_to(np.uint16(1), shape))
    return Rows(tokens, np.memmap(folder / f"{split}.segments", "uint16", "r", shape=shape))


def read_batch(rows: Rows, index, places: np.ndarray) -> dict[str, np.ndarray]:
    batch = {
        "tokens": rows.tokens[index].astype(np.int32),
        "segments": rows.segments[index].astype(np.int32),
        "row": places,
    }
    if rows.classes is not None:
        batch["classes"] = rows.classes[index].astype(np.int32)
    return batch


def target_bytes(batch: dict[str, np.ndarray], lengths: np.ndarray) -> int:
    """Count the bytes of text that a batch's targets stand for."""
    segments = batch["segments"]
    inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return int(lengths[batch["tokens"][:, 1:]][inside].sum())
