"""Score all policies on instances of one kind and condition."""

import numpy as np

from experiments.studies.balance.instances import instance
from experiments.studies.balance.optimum import optimum
from parallel.balance.policies import POLICIES
from parallel.balance.simulate import makespan, simulate


def score(head: dict, seconds: float) -> dict[str, float]:
    """Return of each policy the mean and the largest ratio of makespan to optimum.

    The optimum is the proven lower bound, so that no ratio is too small. `proven` counts
    the instances on which it is within 1 % of a possible makespan, after at most `seconds`
    of search; `bounds` is the mean of that makespan over the bound.
    """
    ratios = {name: [] for name in POLICIES}
    bounds, proven = [], 0
    size = head["pieces"], head["workers"]
    for number in range(head["instances"]):
        case = instance(head["kind"], head["condition"], *size, head["seed"], number)
        best = optimum(case.actual_NM, case.troubles, seconds)
        proven += best.proven
        if np.isfinite(best.upper):
            bounds.append(best.upper / best.lower)
        for name, policy in POLICIES.items():
            ran = simulate(policy, case.told_NM, case.actual_NM, case.troubles)
            ratios[name].append(makespan(ran) / best.lower)
    line = {"proven": proven, "bounds": float(np.mean(bounds or [np.nan]))}
    for name, found in ratios.items():
        line |= {name: round(float(np.mean(found)), 4)}
        line |= {f"{name}, worst": round(float(np.max(found)), 4)}
    return line
