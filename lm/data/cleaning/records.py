"""Records on disk: written once in their order, then read one at a time by their number.

A record is a pickled value, compressed. The ends of the records stand in a second file,
which is written when all records are, so it also says that the first file is whole.
"""

import pathlib
import pickle
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def pack(value: Any, level: int = 1) -> bytes:
    """Pickle and compress a value; level 0 only adds a checksum."""
    return zlib.compress(pickle.dumps(value, protocol=5), level)


def unpack(record: bytes) -> Any:
    return pickle.loads(zlib.decompress(record))


class Writer:
    """Writes packed records, and on closing, without an error, their ends."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.stream = open(file, "wb")
        self.ends = open(f"{ends_file(file)}.partial", "wb")

    def add(self, record: bytes) -> None:
        self.stream.write(record)
        self.ends.write(self.stream.tell().to_bytes(8, "little"))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *_) -> None:
        self.stream.close()
        self.ends.close()
        if kind is None:
            pathlib.Path(self.ends.name).rename(ends_file(self.file))


class Records(Sequence):
    """The values of the records of a file, or of the records [start, stop) of it."""

    def __init__(self, file: pathlib.Path, start: int = 0, stop: int | None = None):
        ends = ends_file(file)
        size = ends.stat().st_size
        # An empty file cannot be mapped.
        self.ends = np.memmap(ends, "<i8", "r") if size else np.zeros(0, np.int64)
        self.file, self.stream = file, file.open("rb")
        self.start = start
        self.stop = len(self.ends) if stop is None else stop

    def __len__(self) -> int:
        return self.stop - self.start

    def record(self, index: int) -> bytes:
        """Return the packed record of a number."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        place = self.start + index
        first = int(self.ends[place - 1]) if place else 0
        self.stream.seek(first)
        return self.stream.read(int(self.ends[place]) - first)

    def __getitem__(self, index: int) -> Any:
        return unpack(self.record(index))


def ends_file(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(file.name + ".ends")
