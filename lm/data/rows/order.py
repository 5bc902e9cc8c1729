"""The batch of step k as a pure function of (seed, k).

Grain computes the row number at any position of a permutation. So the position in the data
follows from the step alone, and a run resumes on any number of devices without the saved
state of an iterator.

With N shards, place p of a batch of B rows belongs to shard p N // B, whatever the devices.
Each shard has its own order, and each stratum in it (lm/data/rows/strata.py).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import grain
import numpy as np

from lm.data.rows.augment import AugmentConfig, damaged
from lm.data.rows.buckets import Buckets, cut
from lm.data.rows.growth import Growth, rows_at, rows_before
from lm.data.rows.level import level
from lm.data.rows.parts import Part, parts_of, strata_of
from lm.data.rows.sampling import SamplingConfig
from lm.data.rows.spans import SpansConfig, another
from lm.data.rows.store import Rows, read_batch
from lm.data.rows.strata import Draw, another_seed


class Order(NamedTuple):
    """What decides which rows a step reads, and how."""

    seed: int
    batch_size: int
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    source_weights: Mapping[str, float] = {}  # of data.sources, by their labels
    growth: Growth = ()
    lengths: tuple[int, ...] = ()  # of rows in batches of equal tokens; (): all are whole
    source_len: int = 0  # of pairs
    spans: SpansConfig | None = None  # of pairs that are corrupted anew in each epoch
    level: bool = False  # devices have about the same number of tokens

    def parts(self, rows: Rows) -> list[list[Part]]:
        return parts_of(rows, self.sampling, self.source_weights)

    def check_strata(self, rows: Rows) -> None:
        """Raise ValueError if there is one stratum, or not one that is to be damaged."""
        known, by = strata_of(rows)[1], self.sampling.strata
        if by != "none" and len(known) == 1 and not self.source_weights:
            raise ValueError(
                f"data.sampling.strata={by} finds the one stratum {known[0]!r}, so there "
                "is nothing to draw from at another rate; unset it, or give text of "
                "several"
            )
        if unknown := [name for name in self.augment.names if name not in known]:
            raise ValueError(
                f"data.augment.strata names {unknown[0]!r}; the strata of the text are "
                f"{', '.join(map(repr, known))}"
            )


class Place(NamedTuple):
    row: int
    epoch: int
    weight: float
    stratum: int


class Places:
    """(step, place in the batch) -> what stands there; and the shape of a step's batch."""

    def __init__(self, rows: Rows, order: Order):
        self.parts, self.order = order.parts(rows), order
        self.length = rows.tokens.shape[1] - 1
        self.draws = [
            Draw(
                [part.num_rows for part in parts],
                another_seed(order.seed, shard),
                [part.rate for part in parts],
                order.sampling.batches == "resampled",
            )
            for shard, parts in enumerate(self.parts)
        ]
        sizes = [sum(draw.num_rows) for draw in self.draws]
        self.starts = np.cumsum([0, *sizes]).tolist()

    def shape(self, step: int) -> tuple[int, int]:
        """Return the rows in the global batch of a step, and their length (T)."""
        return rows_at(self.order.batch_size, self.order.growth, step), self.length

    def __call__(self, step: int, place: int) -> Place:
        num_shards, order = len(self.parts), self.order
        shard, index = divmod(place, self.shape(step)[0] // num_shards)
        before = rows_before(order.batch_size, order.growth, step) // num_shards
        drawn = self.draws[shard](before + index)
        weight = self.parts[shard][drawn.stratum].weight
        row = self.starts[shard] + drawn.row
        return Place(row, drawn.epoch, weight, drawn.stratum)


class BucketPlaces:
    """The same for batches of equal tokens."""

    def __init__(self, rows: Rows, order: Order):
        args = rows.buckets, order.lengths, order.batch_size, order.seed
        self.buckets = Buckets(*args)
        self.shape = self.buckets.shape

    def __call__(self, step: int, place: int) -> Place:
        return Place(*self.buckets(step, place), weight=1.0, stratum=0)


def places_of(rows: Rows, order: Order) -> Places | BucketPlaces:
    return BucketPlaces(rows, order) if order.lengths else Places(rows, order)


def extra_arrays(rows: Rows, order: Order) -> set[str]:
    """Return the arrays of a batch besides those that each batch has."""
    weights = {part.weight for shard in order.parts(rows) for part in shard}
    weighted = rows.weights is not None or weights - {1.0}
    found = {"weights"} if weighted else set()
    return found | ({"inputs"} if order.augment.kind != "none" else set())


def step_rows(rows: Rows, order: Order, step: int) -> list[int]:
    """Return the row numbers of the global batch of a step."""
    places = places_of(rows, order)
    return [places(step, place).row for place in range(places.shape(step)[0])]


def batch_reader(
    rows: Rows, order: Order, process: int = 0, num_processes: int = 1
) -> Callable[[int], dict[str, np.ndarray]]:
    """Return the function from a step, from 0, to this process's rows of its batch.

    A process loads only its own contiguous part of each global batch. `row` is the place of
    a row in the global batch before rows are levelled; dropout depends on it. `inputs`, if
    it is there, is what the model reads instead of `tokens`.
    """
    places, extra = places_of(rows, order), extra_arrays(rows, order)
    damages = [order.augment.acts_on(name) for name in strata_of(rows)[1]]

    def varied(vary: Callable, batch: dict, found: list[Place]) -> np.ndarray:
        """Return a variant of the rows that each epoch has for itself."""
        each = zip(batch["tokens"], found, strict=True)
        return np.stack([vary(x, order.seed, at.row, at.epoch) for x, at in each])

    def batch(step: int) -> dict[str, np.ndarray]:
        num_rows, length = places.shape(step)
        local = num_rows // num_processes
        every = np.arange(num_rows, dtype=np.int32)
        if order.level:
            index = [places(step, place).row for place in every.tolist()]
            every = every[level(np.count_nonzero(rows.segments[index], axis=1))]
        mine = every[process * local : (process + 1) * local]
        found = [places(step, place) for place in mine.tolist()]
        batch = read_batch(rows, [each.row for each in found], mine)
        if "weights" in extra:
            factors = np.array([each.weight for each in found], np.float32)[:, None]
            ones = np.ones(batch["tokens"].shape, np.float32)
            batch["weights"] = batch.get("weights", ones) * factors
        if "inputs" in extra:
            inputs = varied(partial(damaged, order.augment), batch, found)
            chosen = np.array([damages[at.stratum] for at in found])[:, None]
            batch["inputs"] = np.where(chosen, inputs, batch["tokens"])
        if order.spans and rows.weights is None:
            redraw = partial(another, order.spans, order.source_len)
            batch["tokens"] = varied(redraw, batch, found)
        if order.lengths:
            rows_of = batch.pop("row")
            batch = {k: cut(x, order.source_len, length) for k, x in batch.items()}
            batch["row"] = rows_of
        return batch

    return batch


def train_batches(
    rows: Rows,
    order: Order,
    start: int,
    stop: int,
    process: int = 0,
    num_processes: int = 1,
) -> grain.IterDataset[dict[str, np.ndarray]]:
    """Return this process's rows of the batches of steps start, ..., stop - 1."""
    read = batch_reader(rows, order, process, num_processes)
    steps = grain.MapDataset.range(start, stop).map(read)
    return steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))


class Numbered:
    """A function from numbers to batches: number n is the batch of step n, from 0.

    Numbers that come in turn are read ahead of time. A number that is passed over is kept
    for a while, and any other one is read when it is asked for.
    """

    AHEAD = 64

    def __init__(self, rows: Rows, order: Order, start: int, stop: int, *part: int):
        self.read = batch_reader(rows, order, *part)
        self.batches = iter(train_batches(rows, order, start, stop, *part))
        self.next, self.stop = start, stop
        self.kept: dict[int, dict[str, np.ndarray]] = {}

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        if number in self.kept:
            return self.kept.pop(number)
        if not self.next <= number < min(self.next + self.AHEAD, self.stop):
            return self.read(number)
        while self.next <= number:
            self.kept[self.next] = next(self.batches)
            self.next += 1
        return self.kept.pop(number)


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
