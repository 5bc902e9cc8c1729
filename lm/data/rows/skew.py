"""How unlike the shards of a corpus are: in what they hold, and in how much of it.

Shapes: N shards, V kinds of things that are counted (tokens of the vocabulary, kinds of
documents).
"""

from typing import NamedTuple

import numpy as np


class Skew(NamedTuple):
    divergence: float  # nats: Jensen-Shannon, the shards weighted by their counts
    floor: float  # nats that chance alone gives; see noise_floor
    multiple: float  # divergence / floor; about 1 for shards drawn alike, NaN without floor


class Imbalance(NamedTuple):
    max_over_mean: float  # a synchronous step waits for the largest shard
    variation: float  # coefficient of variation: standard deviation / mean
    gini: float  # 0: all equal; 1 - 1/N: one shard has all


def skew(counts_NV: np.ndarray) -> Skew:
    """Compare the distributions of shards by their counts; ValueError for negative ones."""
    value, floor = divergence(counts_NV), noise_floor(counts_NV)
    return Skew(value, floor, value / floor if floor else float("nan"))


def divergence(counts_NV: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence (Lin 1991) of N distributions, in nats.

    The weight of a shard is its share of all counts. The divergence is then the mutual
    information between the shard and the thing: 0 if all shards are alike, and at most
    log(N), if no two shards hold the same thing.
    """
    counts = checked(counts_NV)
    total = counts.sum()
    if not total:
        return 0.0
    of_shard = counts.sum(1, keepdims=True)
    of_kind = counts.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = counts * np.log(counts * total / (of_shard * of_kind))
    # Rounding may leave a sum of -1e-17 for shards that are alike.
    return max(0.0, float(terms[counts > 0].sum() / total))


def noise_floor(counts_NV: np.ndarray) -> float:
    """Return the divergence to expect of N shards drawn alike: (V - 1)(N - 1) / 2n nats.

    n is the number of things counted. 2n times the divergence is the G statistic of the
    test of independence, which has a chi-squared distribution with (V - 1)(N - 1) degrees
    of freedom for large n (Wilks 1938), and as its mean that number. V and N are of those
    kinds and shards that occur. With many kinds that are rarer than five in a shard, shards
    drawn alike give between 0.8 and 1.3 times this floor.
    """
    counts = checked(counts_NV)
    num_kinds, num_shards = ((counts.sum(dim) > 0).sum() for dim in (0, 1))
    total = counts.sum()
    return float((num_kinds - 1) * (num_shards - 1) / (2 * total)) if total else 0.0


def imbalance(sizes_N: np.ndarray) -> Imbalance:
    """Say how unequal the sizes of shards are; ValueError if there is nothing in them."""
    sizes = np.sort(checked(sizes_N))
    num, mean = len(sizes), sizes.mean() if len(sizes) else 0.0
    if not mean:
        raise ValueError(f"{num} shards hold nothing; expected a size above 0")
    # Of the sorted sizes: the mean difference of all pairs over twice the mean.
    ranks = 2 * np.arange(1, num + 1) - num - 1
    gini = float(ranks @ sizes / (num * num * mean))
    return Imbalance(float(sizes[-1] / mean), float(sizes.std() / mean), gini)


def checked(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts, np.float64)
    if (counts < 0).any():
        raise ValueError(f"counts must be at least 0; the least is {counts.min():g}")
    return counts
