"""The share of flipped gradients that their norms give away, by the bit."""

from typing import NamedTuple

import numpy as np

from experiments.run.survival.replicas import outlying
from experiments.sweeps.results import Line
from experiments.sweeps.tables import markdown

REPLICAS, BITS = 8, 32


class Gradients(NamedTuple):
    values: np.ndarray  # float32[REPLICAS, P], sums over the rows of each replica
    tokens: np.ndarray  # float[REPLICAS]


def found_share(grads: Gradients, bit: int, factor: float, num: int, rng) -> float:
    """Flip one bit of `num` random elements, one at a time; return the share found."""
    squares = np.square(grads.values.astype(np.float64)).sum(1)
    found = 0
    for _ in range(num):
        replica = rng.integers(REPLICAS)
        value = grads.values[replica, rng.integers(grads.values.shape[1])]
        flipped = (value.view(np.uint32) ^ np.uint32(1 << bit)).view(np.float32)
        changed = squares.copy()
        changed[replica] += np.square(float(flipped)) - np.square(float(value))
        norms = np.sqrt(np.maximum(changed, 0)) / grads.tokens
        found += outlying(norms.tolist(), factor) == [replica]
    return found / num


def flips_table(lines: list[Line]) -> str:
    """Return the shares found, by the bit that was flipped; of each bit the last one."""
    last = {line["bit"]: line for line in lines}
    told = {31: "sign"} | {bit: "exponent" for bit in range(23, 31)}
    rows = [
        [str(line["bit"]), told.get(line["bit"], "mantissa"), f"{line['found']:.1%}"]
        for _, line in sorted(last.items(), reverse=True)
        if line["bit"] > 22 or line["found"] or line["bit"] in (0, 22)
    ]
    return markdown(["bit", "part of the float32", "found"], rows)
