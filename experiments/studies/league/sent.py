"""The bytes of a whole run, from its compiled programs and how often each of them runs.

All are bytes that one island sends. An island of one device has no links inside.
"""

from typing import Any, NamedTuple

from jax.sharding import Mesh

from configs.base import Experiment
from parallel.cost.ledger import Entry, ledger
from parallel.exchange.sparse import WARMUP_STAGES
from parallel.mesh import batch_degree
from parallel.program import SLICE


class Sent(NamedTuple):
    bytes_slow: float  # over the links between islands; a message to many counts for each
    bytes_uploaded: float  # the same, but a message to many counts once
    bytes_fast: float  # inside the island
    bytes_warm: float  # the part of bytes_slow that belongs to a warm-up


def run_bytes(config: Experiment, step: Any, mesh: Mesh) -> Sent:
    """Add up what the compiled step of this config sends in all of its steps."""
    plan = getattr(step, "plan", None)
    programs = getattr(step, "programs", [(step, mesh)])
    warm_steps, warm_times = warm_up(config)
    slow = uploaded = fast = warm = 0.0
    for index, (program, on) in enumerate(programs):
        text, islands = program.as_text(), islands_on(config, on)
        times = float(config.steps)
        if plan and 0 < index <= plan.fragments:  # the ledger counts a meeting as 1 / H
            times = plan.every * plan.num_meetings(index - 1, config.steps)
        elif not plan:
            times -= warm_steps  # whose own branches do other things
        for entry in ledger(text, on):
            sent = times * entry.sent_bytes * on.size / islands
            if is_slow(config, entry):
                slow += sent
                uploaded += sent / copies(entry, on)
            else:
                fast += sent
        for entry in ledger(text, on, warm=True):
            sent = warm_times * busiest(config, entry, on) * on.size / islands
            warm += sent
            uploaded += sent / copies(entry, on)
    return Sent(slow + warm, uploaded, fast, warm)


def warm_up(config: Experiment) -> tuple[int, int]:
    """Return the steps of a warm-up, and how often each of its collectives runs in them."""
    parallel = config.parallel
    if parallel.exchange.codec == "dgc" and parallel.exchange.warmup_steps:
        each = -(-parallel.exchange.warmup_steps // WARMUP_STAGES)
        return WARMUP_STAGES * each, each
    if parallel.strategy == "post_local_sgd":
        if parallel.inner:
            raise ValueError(
                "the first steps of post_local_sgd are a program of their own where "
                f"parallel.local.inner={parallel.local.inner}, which is not counted here; "
                "choose another strategy, or unset inner"
            )
        return parallel.local.first, parallel.local.first
    return 0, 1


def islands_on(config: Experiment, mesh: Mesh) -> int:
    """Return the number of islands that a program's mesh has devices of."""
    if config.parallel.inner:
        return mesh.shape.get(SLICE, 1)
    return batch_degree(mesh)


def is_slow(config: Experiment, entry: Entry) -> bool:
    return SLICE in entry.axes or not config.parallel.inner


def copies(entry: Entry, mesh: Mesh) -> int:
    """Return to how many others a device sends the same."""
    if entry.kind != "all-gather":
        return 1
    degree = 1
    for axis in entry.axes:
        degree *= mesh.shape[axis]
    return degree - 1


def busiest(config: Experiment, entry: Entry, mesh: Mesh) -> float:
    """Return the bytes of a collective of the warm-up.

    In a broadcast each island but the last sends everything on, once. It counts as what
    these send, which is more than the average that the ledger has.
    """
    if config.parallel.local.alone and entry.count:
        islands = islands_on(config, mesh)
        return entry.sent_bytes * islands / entry.count
    return entry.sent_bytes
