"""Which workers are slower than the others, from the seconds that each computes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RECENT = 0.2  # weight of the newest step in a worker's running mean
FACTOR = 1.5  # a straggler's running mean is so many times the median worker's
STEPS = 10  # for so many steps


class Watch(NamedTuple):
    """What is remembered of the steps so far."""

    means_W: np.ndarray  # running means of each worker's seconds; NaN: none is known
    above_W: np.ndarray  # for how many steps its mean has been above FACTOR x the median
    # The largest multiple of the median that each was at as a straggler; 0: it was none.
    worst_W: np.ndarray

    @property
    def ratios_W(self) -> np.ndarray:
        """Return each running mean over the median one: of an even number, the lower.

        So one of two workers can straggle.
        """
        known = np.sort(self.means_W[np.isfinite(self.means_W)])
        return self.means_W / (known[(len(known) - 1) // 2] if len(known) else 1.0)

    @property
    def worst(self) -> dict[int, float]:
        """Return all workers that have straggled, each with its largest multiple."""
        return {int(w): float(self.worst_W[w]) for w in np.flatnonzero(self.worst_W)}

    @property
    def stragglers(self) -> dict[int, float]:
        """Return the workers that straggle now, and how many times the median they need."""
        late = np.flatnonzero(self.above_W >= STEPS)
        return {int(w): float(self.ratios_W[w]) for w in late}


def watched(watch: Watch | None, seconds_W: Sequence[float]) -> Watch:
    """Return the watch after one more step; None: it is the first.

    `seconds_W` are above 0 and without the time that a worker waits for others. A worker
    that tells nothing in a step (NaN or None) keeps its mean.
    """
    seconds_W = np.asarray(seconds_W, float)
    if watch is None:
        zeros = np.zeros(len(seconds_W))
        watch = Watch(seconds_W, zeros.astype(int), zeros)
    before_W = np.where(np.isfinite(watch.means_W), watch.means_W, seconds_W)
    after_W = before_W + RECENT * (seconds_W - before_W)
    watch = watch._replace(means_W=np.where(np.isfinite(seconds_W), after_W, before_W))
    above_W = np.where(watch.ratios_W > FACTOR, watch.above_W + 1, 0)
    late_W = np.where(above_W >= STEPS, watch.ratios_W, 0.0)
    return watch._replace(above_W=above_W, worst_W=np.maximum(watch.worst_W, late_W))
