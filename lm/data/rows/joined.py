"""Arrays of several files as one; a file is opened when one of its rows is first read."""

from collections.abc import Callable, Sequence

import numpy as np


class Joined:
    """Arrays [R_i, width] one after the other, as an array [sum of R_i, width] to read."""

    def __init__(
        self, openers: Sequence[Callable[[], np.ndarray]], sizes: Sequence[int], width: int
    ):
        self.openers, self.ends = openers, np.cumsum(sizes)
        self.arrays: dict[int, np.ndarray] = {}
        self.shape = (int(self.ends[-1]), width)

    def __len__(self) -> int:
        return self.shape[0]

    def array(self, number: int) -> np.ndarray:
        if number not in self.arrays:
            self.arrays[number] = self.openers[number]()
        return self.arrays[number]

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the rows of a slice, or of a list of row numbers."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        numbers = np.searchsorted(self.ends, index, side="right")
        found = np.empty((len(index), self.shape[1]), self.array(int(numbers[0])).dtype)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            array = self.array(number)
            found[here] = array[index[here] - (self.ends[number] - len(array))]
        return found
