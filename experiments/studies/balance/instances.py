"""Seeded instances: how long each piece takes on each worker, and what goes wrong.

Kinds, after Braun et al. 2001, with pieces of 1 to 10 and speeds of 1 to 10:

  speeds            a worker is as many times faster for all pieces
  consistent        a worker that is faster for one piece is so for all, by various factors
  semi-consistent   that holds between half of the workers
  inconsistent      it holds between none

Conditions:

  as told           all takes as long as the policy is told
  noise             each piece takes longer or shorter, log-normal with sigma 0.3
  degrades          in the middle of the work a worker becomes 5 times slower
  dies              in the middle of the work a worker dies
  wrong speeds      the policy is told each worker's seconds as those of another worker
"""

import math
from typing import NamedTuple

import numpy as np

from experiments.studies.balance.optimum import fractional
from parallel.balance.simulate import Trouble

KINDS = ("speeds", "consistent", "semi-consistent", "inconsistent")
CONDITIONS = ("as told", "noise", "degrades", "dies", "wrong speeds")
SIGMA, DEGRADES = 0.3, 5.0


class Instance(NamedTuple):
    told_NM: np.ndarray  # seconds, as a policy is told
    actual_NM: np.ndarray  # seconds, as they are
    troubles: dict[int, Trouble]


def seconds_of(kind: str, rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    lengths_N = rng.uniform(1, 10, (n, 1))
    if kind == "speeds":
        return 10 * lengths_N / rng.uniform(1, 10, (1, m))
    seconds_NM = lengths_N * rng.uniform(1, 10, (n, m))
    if kind == "consistent":
        return np.sort(seconds_NM, axis=1)
    if kind == "semi-consistent":
        seconds_NM[:, ::2] = np.sort(seconds_NM[:, ::2], axis=1)
    return seconds_NM


def instance(kind: str, condition: str, n: int, m: int, seed: int, number: int) -> Instance:
    """Draw an instance of n pieces and m workers; it depends on nothing else."""
    key = seed, KINDS.index(kind), CONDITIONS.index(condition), n, m, number
    rng = np.random.default_rng(key)
    told_NM = seconds_of(kind, rng, n, m)
    if condition == "noise":
        return Instance(told_NM, told_NM * rng.lognormal(0, SIGMA, told_NM.shape), {})
    if condition == "wrong speeds":
        return Instance(np.roll(told_NM, 1, axis=1), told_NM, {})
    if condition == "as told":
        return Instance(told_NM, told_NM, {})
    factor = DEGRADES if condition == "degrades" else math.inf
    at = rng.uniform(0.3, 0.7) * fractional(told_NM, {})
    return Instance(told_NM, told_NM, {int(rng.integers(m)): Trouble(at, factor)})
