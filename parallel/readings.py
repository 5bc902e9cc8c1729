"""The metrics of a step as numbers, on the host of each process.

Most metrics are of the whole global batch, and the same everywhere. Where replicas train
apart (parallel/local.py), a metric is an array [W] with a value for each replica, and a
process can read those of its own devices alone. No process can wait for the others to read
more: between meetings, that would be the exchange that local strategies leave out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from parallel.program import Metrics

# Metrics that all replicas are told at a meeting, float32[W], zeros between meetings:
SKIPPED = "skipped_by_replica"  # steps that each has skipped since it last told
IN_A_ROW = "skipped_in_a_row_by_replica"  # the last of them, and those before, in a row
# The pushes that an update was made of (parallel/server/program.py:Line); no numbers.
APPLIED = "applied"
# Seconds that each replica computed in the step, without waiting for others, float32[W];
# all replicas know all of them. NaN: of a worker of a server that has told nothing now.
COMPUTE = "compute_seconds_by_replica"
# The norm of each replica's own mean gradient, float32[W], known to all in every step.
NORMS = "gradient_norm_by_replica"


class Reading(NamedTuple):
    # Of the global batch. Where replicas train apart: sums (loss, tokens) in the proportion
    # of the replicas that this process knows, means of other metrics, over the replicas
    # whose step is finite.
    values: dict[str, float]
    skipping: list[int]  # the known replicas that skipped this step by themselves
    told: dict[int, tuple[int, int]]  # replica -> skipped steps, those in a row; if any
    seconds: Sequence[float] = ()  # that each replica computed; (): were not measured
    norms: Sequence[float] = ()  # of each replica's own gradient, where it is watched


def read(metrics: Metrics) -> Reading:
    """Wait for a step's metrics and read them."""
    metrics = {name: x for name, x in metrics.items() if name != APPLIED}
    own = {name for name, x in metrics.items() if x.ndim == 1} - {
        SKIPPED,
        IN_A_ROW,
        COMPUTE,
        NORMS,
    }
    common = jax.device_get({name: x for name, x in metrics.items() if name not in own})
    skipped, in_a_row = common.pop(SKIPPED, ()), common.pop(IN_A_ROW, ())
    seconds = [float(x) for x in common.pop(COMPUTE, ())]
    told = {
        replica: (int(steps), int(row))
        for replica, (steps, row) in enumerate(zip(skipped, in_a_row, strict=True))
        if steps
    }
    norms = common.pop(NORMS, np.zeros(0)).tolist()
    values = {name: x.item() for name, x in common.items()}
    if not own:
        return Reading(values, [], told, seconds, norms)
    found = {name: of_each(metrics[name]) for name in own}
    skipping = [replica for replica, finite in found["finite"].items() if not finite]
    fine = sorted(found["finite"].keys() - set(skipping))
    share = len(found["finite"]) / metrics["finite"].shape[0]
    weights = found.get("weight", found["tokens"])
    sums = {
        name: sum(found[name].values()) / share
        for name in ("tokens", "weight")
        if name in found
    }
    for name, each in found.items():
        mean = sum(each[r] for r in fine) / len(fine) if fine else np.nan
        values[name] = mean
    fine_weight = sum(weights[r] for r in fine) or 1.0
    loss = sum(found["loss"][r] for r in fine) / fine_weight if fine else np.nan
    loss *= sums.get("weight", sums["tokens"]) or 1.0
    values |= sums | {"loss": loss, "finite": not skipping}
    return Reading(values, skipping, told, seconds, norms)


def of_each(x: jax.Array) -> dict[int, float]:
    """Return the values of an array [W] that lie on this process's devices."""
    if x.is_fully_addressable:
        return dict(enumerate(np.asarray(x).tolist()))
    return {
        (shard.index[0].start or 0) + place: value.item()
        for shard in x.addressable_shards
        for place, value in enumerate(np.asarray(shard.data))
    }
