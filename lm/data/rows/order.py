"""The batch of step k as a pure function of (seed, k).

Grain computes the row number at any position of a permutation. So the position in the data
follows from the step alone, and a run resumes on any number of devices without the saved
state of an iterator.
"""

from collections.abc import Iterator

import grain
import numpy as np

from lm.data.rows.store import Rows, read_batch


def row_order(num_rows: int, seed: int) -> grain.MapDataset:
    """Return position -> row number; each epoch is a new permutation of all rows."""
    return grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat()


def step_rows(num_rows: int, seed: int, batch_size: int, step: int) -> list[int]:
    """Return the row numbers of the global batch of a step."""
    order = row_order(num_rows, seed)
    return [order[i] for i in range(step * batch_size, (step + 1) * batch_size)]


def train_batches(
    rows: Rows,
    seed: int,
    batch_size: int,
    start: int,
    stop: int,
    process: int = 0,
    num_processes: int = 1,
) -> grain.IterDataset[dict[str, np.ndarray]]:
    """Return this process's rows of the batches of steps start, ..., stop - 1.

    A process loads only its own contiguous part of each global batch. `row` is the place of
    a row in the global batch; dropout depends on it.
    """
    order = row_order(len(rows.tokens), seed)
    local = batch_size // num_processes

    def batch(step: int) -> dict[str, np.ndarray]:
        places = np.arange(process * local, (process + 1) * local, dtype=np.int32)
        index = [order[int(i)] for i in step * batch_size + places.astype(np.int64)]
        return read_batch(rows, index, places)

    steps = grain.MapDataset.range(start, stop).map(batch)
    return steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


def validation_batches(
    rows: Rows, batch_size: int, num_batches: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield `num_batches` global batches (0: all rows once), always in the same order.

    The last batch is filled up with empty rows, which count for nothing.
    """
    order = np.random.default_rng(0).permutation(len(rows.tokens))
    order = order[: num_batches * batch_size or None]
    places = np.arange(batch_size, dtype=np.int32)
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        batch = read_batch(rows, index, places)
        missing = ((0, batch_size - len(index)), (0, 0))
        padded = {k: np.pad(x, missing) for k, x in batch.items() if k != "row"}
        yield padded | {"row": places}
