"""Prepared rows with a checksum each, which is compared when a row is read.

A disk that flips a bit says nothing. Each row has a CRC-32C, kept in a file beside that of
the rows: 4 bytes a row, so that a row read at random costs no other reads. It finds each
damage of up to 32 bits in a row, and all but one in 2**32 of longer ones.
"""

import pathlib
from collections.abc import Sequence

import google_crc32c
import numpy as np

ENDING = ".crc32c"


class CorruptRows(ValueError):
    """A row on the disk is not the one that was written."""


class CheckedRows(np.memmap):
    """An array [R, T + 1] on the disk. Rows that are read from it are checked.

    Only what indexing gives is checked, not what an operation on the whole array reads.
    Rows that were prepared before there were checksums have none, and are not checked.
    """

    sums: np.ndarray | None = None  # uint32[R]; not inherited by what is derived from it

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if self.sums is not None:
            self.check(index[0] if isinstance(index, tuple) else index)
        return np.asarray(found) if isinstance(found, CheckedRows) else found

    def check(self, index: slice | int | Sequence[int] | np.ndarray) -> None:
        """Raise CorruptRows for the first of these rows whose sum is another."""
        if isinstance(index, slice):
            numbers = np.arange(*index.indices(len(self)))
        else:
            numbers = np.atleast_1d(np.asarray(index))
        if numbers.dtype == bool:
            numbers = np.flatnonzero(numbers)
        for number in (numbers % len(self)).tolist():
            row = super().__getitem__(number)
            if row_sum(row) != self.sums[number]:
                raise CorruptRows(
                    f"record {number} of {self.filename} (its {row.nbytes} bytes from byte "
                    f"{number * row.nbytes}) is damaged: its CRC-32C is not the one that "
                    "was written. Put back a copy of the file, or remove the folder "
                    f"{pathlib.Path(self.filename).parent}, and it is made anew"
                )


def row_sum(row: np.ndarray) -> int:
    return google_crc32c.value(row.tobytes())


def checked_rows(file: pathlib.Path, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    """Map an array of rows, with its checksums if it has them."""
    rows = CheckedRows(file, dtype, "r", shape=shape)
    sums = file.with_name(file.name + ENDING)
    if sums.exists():
        rows.sums = np.memmap(sums, "<u4", "r", shape=shape[:1])
    return rows


class RowsFile:
    """Writes rows to a file, and their checksums to one beside it."""

    def __init__(self, file: pathlib.Path):
        self.rows = file.open("wb")
        self.sums = file.with_name(file.name + ENDING).open("wb")

    def __enter__(self) -> "RowsFile":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.rows.close()
        self.sums.close()

    def write(self, row: bytes) -> None:
        self.rows.write(row)
        self.sums.write(np.uint32(google_crc32c.value(row)).astype("<u4").tobytes())
