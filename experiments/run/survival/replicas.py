"""The check that replicas have not parted, and how a run ends if they have."""

from collections.abc import Callable

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
