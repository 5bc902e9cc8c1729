"""Checks of replicas against each other, and how a run ends if one of them is wrong."""

import math
import statistics
from collections.abc import Callable, Sequence

from parallel.agreement import Parting, find_parting
from parallel.program import Program, TrainState

DAMAGED = 3  # the exit code of a run that has stopped for it


class Damage(RuntimeError):
    """The state in memory is wrong, and no later step would put it right."""


def agreement_check(program: Program) -> Callable[[int, TrainState], None]:
    """Return what raises Damage if copies of the state differ; all processes call it."""
    found: list[Callable[[TrainState], Parting | None]] = []

    def check(step: int, state: TrainState) -> None:
        if not found:  # compiled when first needed
            found.append(find_parting(program.abstract))
        if parting := found[0](state):
            raise Damage(
                f"step {step}: {told(parting)}. This state is not saved; the "
                "same command goes back to the last checkpoint, whose copies agreed"
            )

    return check


def told(parting: Parting) -> str:
    devices = ", ".join(
        f"device {device.id} (process {device.process_index})" for device in parting.devices
    )
    more = parting.num_leaves - 1
    if len(parting.devices) == parting.num_copies:
        where = f"the {parting.num_copies} copies differ, on {devices}"
    else:
        where = (
            f"of {parting.num_copies} copies, the one on {devices} differs from the rest"
        )
    return f"replicas have parted in {parting.leaf}: {where}" + (
        f"; {more} more leaves differ" if more else ""
    )


def outlying(norms: Sequence[float], factor: float) -> list[int]:
    """Return the replicas whose gradient's norm stands out of those of the others.

    It is more than `factor` times the median of the others, or is not finite where most of
    the others are.
    """
    found = []
    for replica, norm in enumerate(norms):
        others = [x for i, x in enumerate(norms) if i != replica]
        finite = [x for x in others if math.isfinite(x)]
        if 2 * len(finite) <= len(others):
            continue
        if not math.isfinite(norm) or norm > factor * statistics.median(finite):
            found.append(replica)
    return found


def check_norms(step: int, norms: Sequence[float], factor: float) -> None:
    """Raise Damage if the gradient of a replica stands out."""
    if found := outlying(norms, factor):
        told = ", ".join(f"replica {i} ({norms[i]:.3g})" for i in found)
        usual = statistics.median(norms)
        raise Damage(
            f"step {step}: the norm of the gradient of {told} stands out; the median of "
            f"all {len(norms)} is {usual:.3g}, and parallel.outlier is {factor:g}. The "
            "same command goes back to the last checkpoint"
        )
