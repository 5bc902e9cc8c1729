"""Strata: groups of rows, each drawn from at a rate of its own.

A rate above the stratum's share of the rows is oversampling, a rate below it undersampling.
The rates follow from a temperature T: they are proportional to rows^(1/T), or to the
weights of sources to the same power. T = 1 keeps the shares of the text or the weights, and
a very large T draws equally from all strata (Conneau et al. 2020, XLM-R, 3.1; Raffel et al.
2020, T5, 3.5.2).

Positions are numbered 0, 1, 2, ... `Draw` says which row stands at a position; it needs no
position before it, so a run resumes from a number. A period of PERIOD positions holds each
stratum as often as its rate says. Inside a period the strata are spread evenly
(`stratified`) or shuffled (`resampled`). Each stratum has epochs of its own, each a new
permutation of its rows.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

PERIOD = 4096  # positions; a rate is a multiple of 1 / PERIOD


def rates(sizes: Sequence[float], temperature: float) -> np.ndarray:
    """Return the rate of each stratum, float64, which sum to 1.

    The sizes are numbers of rows, or weights; they are not all 0.
    """
    sizes = np.array(sizes, np.float64)
    powers = (sizes / sizes.max()) ** (1 / temperature)
    return powers / powers.sum()


def times_in_period(wanted: np.ndarray) -> np.ndarray:
    """Return how often a period holds each stratum, by the largest remainders."""
    exact = wanted * PERIOD
    times = np.floor(exact).astype(np.int64)
    missing = PERIOD - int(times.sum())
    times[np.argsort(times - exact, kind="stable")[:missing]] += 1
    return times


def check_rates(names: Sequence[str], wanted: Sequence[float]) -> None:
    """Raise ValueError for a stratum that has a rate, but no place in a period."""
    times = times_in_period(np.array(wanted))
    for name, rate, number in zip(names, wanted, times.tolist(), strict=True):
        if rate and not number:
            raise ValueError(
                f"the stratum {name!r} has the rate {rate:.2g}, less than one row in "
                f"{PERIOD}; raise data.sampling.temperature, or its weight, or leave its "
                "text out"
            )


def spread_evenly(times: np.ndarray) -> np.ndarray:
    """Return int[PERIOD], the stratum at each position, each in even distances."""
    strata = np.repeat(np.arange(len(times)), times)
    places = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in times])
    return strata[np.argsort(places, kind="stable")]


class Drawn(NamedTuple):
    row: int
    epoch: int  # how often the stratum has been gone through before
    stratum: int


class Draw:
    """Position -> what is drawn, from rows of which each stratum is a run."""

    def __init__(
        self, num_rows: Sequence[int], seed: int, rates: Sequence[float], shuffled: bool
    ):
        self.num_rows, self.seed, self.shuffled = num_rows, seed, shuffled
        self.starts = np.cumsum([0, *num_rows])[:-1]
        self.times = times_in_period(np.array(rates))
        self.even = spread_evenly(self.times)
        self.orders = [
            row_order(n, another_seed(seed, i)) if n else None
            for i, n in enumerate(num_rows)
        ]
        self.counted = functools.lru_cache(8)(self.count)

    def count(self, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the stratum at each position of a period, and its occurrences before."""
        strata = self.even
        if self.shuffled:
            strata = np.random.default_rng((self.seed, period)).permutation(strata)
        before = np.zeros(PERIOD, np.int64)
        for stratum in range(len(self.times)):
            here = strata == stratum
            before[here] = np.arange(here.sum())
        return strata, before

    def __call__(self, position: int) -> Drawn:
        period, place = divmod(position, PERIOD)
        strata, before = self.counted(period if self.shuffled else 0)
        stratum = int(strata[place])
        index = period * int(self.times[stratum]) + int(before[place])
        row = int(self.starts[stratum]) + self.orders[stratum][index]
        return Drawn(row, index // self.num_rows[stratum], stratum)


def row_order(num_rows: int, seed: int) -> grain.MapDataset:
    """Return position -> row number; each epoch is a new permutation of all rows.

    Grain computes any position of a permutation by itself.
    """
    return grain.MapDataset.range(num_rows).seed(seed).shuffle().repeat()


def another_seed(seed: int, number: int) -> int:
    """Return a seed for each of several orders; the first has the seed itself."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
