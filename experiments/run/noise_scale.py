"""The gradient noise scale of a run, from the estimates of its steps.

Each step logs unbiased estimates of |G|^2 and of tr S, the variance of a token's gradient
(parallel/program.py:noise). Both vary much from step to step, |G|^2 may even be negative,
so the noise scale tr S / |G|^2 is the ratio of their means over the last steps (McCandlish
et al. 2018, appendix A.1). It is a number of tokens: with batches larger than this, more
tokens in a batch save few steps.
"""

import collections
import math
from typing import Any

WINDOW = 50  # steps whose estimates are averaged
MIN_STEPS = 10


class NoiseScale:
    """Averages the estimates of the last WINDOW steps into a noise scale."""

    def __init__(self, records: list[dict[str, Any]] = ()):
        self.recent: collections.deque = collections.deque(maxlen=WINDOW)
        for record in records:
            self.add(record.get("grad_variance"), record.get("grad_square"))

    def add(self, grad_variance: float | None, grad_square: float | None) -> float | None:
        """Return tokens; None for too few steps, or if their mean |G|^2 is not positive."""
        if grad_variance is None or not math.isfinite(grad_variance + grad_square):
            return None
        self.recent.append((grad_variance, grad_square))
        return self.value

    @property
    def value(self) -> float | None:
        if len(self.recent) < MIN_STEPS:
            return None
        variances, squares = (sum(column) for column in zip(*self.recent, strict=True))
        return variances / squares if variances > 0 and squares > 0 else None
