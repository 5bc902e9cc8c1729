"""The alpha-beta model of a step: c + k x round trip + bytes x 8 / rate.

Hockney 1994 gives a message the time alpha + beta x bytes. A step is k / 2 messages after
each other, so alpha x messages is k x round trip. c is what does not depend on the links.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from experiments.studies.links.cells import Cell


class AlphaBeta(NamedTuple):
    seconds: float  # c
    round_trips: float  # k
    sent_bytes: float

    def step(self, cell: Cell) -> float:
        """Return the seconds of a step over the links of a cell."""
        return float(np.dot(self, terms(cell)))


def terms(cell: Cell) -> list[float]:
    per_byte = 8 / (cell.rate * 1e6) if cell.rate else 0.0
    return [1.0, cell.rtt / 1000, per_byte]


def fit(seconds: Mapping[Cell, float]) -> AlphaBeta:
    """Fit the three numbers, none below 0, to the relative errors of measured cells."""
    weights = 1 / np.array(list(seconds.values()))
    matrix = np.array([terms(cell) for cell in seconds]) * weights[:, None]
    scale = np.maximum(matrix.max(0), 1e-300)  # the terms differ by orders of magnitude
    found, _ = nnls(matrix / scale, np.ones(len(weights)))
    return AlphaBeta(*(found / scale))


def pays_at(one: AlphaBeta, steps: float, base: AlphaBeta, base_steps: float) -> str:
    """Say at which rates, Mbit/s, so many steps of one take less time than the base's.

    Without delays, where both sides are steps x (c + bytes x 8 / rate).
    """
    slower = steps * one.seconds - base_steps * base.seconds
    fewer = base_steps * base.sent_bytes - steps * one.sent_bytes
    if slower * fewer <= 0:
        return "all" if slower < 0 or fewer > 0 else "none"
    return f"{'below' if fewer > 0 else 'above'} {fewer * 8 / slower / 1e6:.3g}"
