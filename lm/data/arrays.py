"""Arrays with a row for each document: in memory, or on disk where there are very many."""

import tempfile

import numpy as np

IN_MEMORY = 1 << 28  # bytes of an array; a larger one lies in a file


def empty(num: int, width: int, dtype: type) -> np.ndarray:
    """Return an array [num, width] of any content; its file is gone when it is."""
    if num * width * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.empty((num, width), dtype)
    return np.memmap(tempfile.TemporaryFile(), dtype, "w+", shape=(num, width))
