"""Distillation: a student learns from the distribution of a trained teacher.

The teacher's logits come with the batch, as weights do, and the loss reads them where it
has the student's logits (lm/losses.py). So a student has dropout, chunks of positions,
microbatches and pipelines as without a teacher, under every strategy, and the teacher may
be in the process or on disk: `Cache` keeps what it said of a row.

Shapes: B batch, T time, V vocabulary, K logits of the teacher at a position, I tokens that
are named there.
"""

import hashlib
import json
import pathlib
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.task import Batch, Params, Task

READS = ("tokens", "segments", "inputs")  # what a teacher sees of a row


@dataclass
class DistilConfig:
    # folder of the run whose best checkpoint teaches, with the same tokenizer; "": none
    teacher: str = ""
    # share of the teacher in the objective; the labels have the rest
    share: float = field(default=0.5, metadata={"at_least": 0, "at_most": 1})
    # both distributions are softmax(logits / temperature)
    temperature: float = field(default=2.0, metadata={"above": 0})
    # largest logits of the teacher that are used at a position; 0: all
    top_k: int = field(default=0, metadata={"at_least": 0})
    # folder that keeps the teacher's logits for the next epoch or run; "": none
    cache: str = field(default="", metadata={"decides": False})

    def validate(self, vocab_size: int) -> None:
        """Raise ValueError for what does not fit together."""
        if self.teacher and self.top_k > vocab_size:
            raise ValueError(
                f"compress.distil.top_k {self.top_k} is more than the {vocab_size} tokens "
                "of the vocabulary; give at most that, or 0 for all"
            )
        usual = DistilConfig()
        for name in ("share", "temperature", "top_k", "cache"):
            if not self.teacher and getattr(self, name) != getattr(usual, name):
                raise ValueError(
                    f"compress.distil.{name} is {getattr(self, name)!r}, but it has no "
                    "effect without compress.distil.teacher; unset it, or give a teacher"
                )


Shape = tuple[int, int, int]  # what a teacher says of a row: T, I, K


class Said(NamedTuple):
    """What a teacher says of rows: its largest logits, in falling order, and their tokens.

    All of its logits are in the order of their tokens, and no token is named.
    """

    ids_BTI: np.ndarray  # int32; I is K, or 0
    logits_BTK: np.ndarray  # float32


def top_logits(
    task: Task, params: Params, batch: Batch, top_k: int, vocab_size: int
) -> Said:
    """Return the `top_k` largest logits of tokens at each position; 0: all of them.

    A teacher may have rows that are no token, and its student other ones.
    """
    logits_BTV = task.logits(params, batch)[..., :vocab_size]
    if not top_k:  # to sort them would take longer than to train
        return Said(jnp.zeros((*logits_BTV.shape[:2], 0), jnp.int32), logits_BTV)
    values, ids = jax.lax.top_k(logits_BTV, top_k)
    return Said(ids, values)


def taught(rows: dict[str, np.ndarray], said: Said, config: DistilConfig) -> dict:
    """Return the rows of a batch with what the loss reads of the teacher."""
    ones_B = np.ones(len(said.logits_BTK), np.float32)
    return rows | {
        "teacher_ids": said.ids_BTI,
        "teacher_logits": said.logits_BTK,
        "teacher_share": np.float32(config.share) * ones_B,
        "teacher_temperature": np.float32(config.temperature) * ones_B,
    }


class Cache:
    """What a teacher said of rows, in a folder; a row is known by its content.

    A file for each shape has records of one size: a hash, ids, logits. Records are only
    added. A record that a killed process left unfinished, the last one, is cut off.
    """

    def __init__(self, folder: pathlib.Path, teacher: str):
        """Raise ValueError if the folder has another teacher's logits."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.teacher = folder, teacher
        self.files: dict[tuple[int, ...], tuple[pathlib.Path, dict[bytes, int]]] = {}
        file = folder / "teacher.json"
        if not file.exists():
            file.write_text(json.dumps({"teacher": teacher}) + "\n", encoding="utf-8")
        there = json.loads(file.read_text(encoding="utf-8"))["teacher"]
        if there != teacher:
            raise ValueError(
                f"compress.distil.cache {folder} has the logits of the teacher {there}, "
                f"and this one is {teacher}; give another folder"
            )

    def opened(self, shape: Shape) -> tuple[pathlib.Path, dict[bytes, int]]:
        if shape not in self.files:
            name = "x".join(map(str, shape)) + ".bin"
            file, kind = self.folder / name, record(shape)
            file.touch()
            whole = file.stat().st_size // kind.itemsize
            with file.open("r+b") as stream:
                stream.truncate(whole * kind.itemsize)
            known = np.memmap(file, kind, "r", shape=whole)["key"] if whole else []
            self.files[shape] = file, {key.tobytes(): i for i, key in enumerate(known)}
        return self.files[shape]

    def read(self, keys: list[bytes], shape: Shape) -> Said | None:
        """Return what is known of all these rows; None if one of them is new."""
        file, places = self.opened(shape)
        if any(key not in places for key in keys):
            return None
        found = np.memmap(file, record(shape), "r", shape=len(places))
        chosen = found[[places[key] for key in keys]]
        return Said(chosen["ids"], chosen["logits"])

    def write(self, keys: list[bytes], said: Said) -> None:
        """Add the rows that are new."""
        shape = shape_of(said)
        file, places = self.opened(shape)
        new = {key: i for i, key in enumerate(keys) if key not in places}
        records = np.zeros(len(new), record(shape))
        for at, (key, i) in enumerate(new.items()):
            records[at] = np.void(key), said.ids_BTI[i], said.logits_BTK[i]
        with file.open("ab") as stream:
            stream.write(records.tobytes())
        places.update({key: len(places) + at for at, key in enumerate(new)})


def shape_of(said: Said) -> Shape:
    """Return the positions of a row, and the tokens and logits at each."""
    return *said.ids_BTI.shape[1:], said.logits_BTK.shape[2]


def record(shape: Shape) -> np.dtype:
    positions, ids, logits = shape
    return np.dtype(
        [
            ("key", "V16"),
            ("ids", "<i4", (positions, ids)),
            ("logits", "<f4", (positions, logits)),
        ]
    )


def row_hashes(rows: dict[str, np.ndarray]) -> list[bytes]:
    """Return 16 bytes for each row, of all that a teacher sees of it."""
    arrays = [rows[name] for name in READS if name in rows]
    return [
        hashlib.blake2b(b"".join(x[i].tobytes() for x in arrays), digest_size=16).digest()
        for i in range(len(arrays[0]))
    ]
