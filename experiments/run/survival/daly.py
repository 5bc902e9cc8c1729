"""How often to save, by Daly's formula.

J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps,
2006. Faults come at random, `between` seconds apart in the mean; a save takes `save`
seconds, and a restart `restart` seconds.
"""

import math


def interval(save: float, between: float) -> float:
    """Return the seconds of work between saves that lose the least (Daly's eq. 37)."""
    if save >= 2 * between:
        return between
    root = math.sqrt(save / (2 * between))
    return math.sqrt(2 * save * between) * (1 + root / 3 + root**2 / 9) - save


def efficiency(work: float, save: float, between: float, restart: float) -> float:
    """Return the share of all seconds that is work that counts (Daly's eq. 20).

    There are `work` seconds of work between saves.
    """
    spent = between * math.exp(restart / between) * math.expm1((work + save) / between)
    return work / spent
