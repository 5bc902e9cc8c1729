"""What a strategy sends in a step, collective by collective.

The total is the strategy's closed form (parallel/cost/closed_forms.py); the parts of it
that have a count, an axis or an overlap of their own are told apart here.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from parallel.cost.closed_forms import (
    Cut,
    crossings,
    exchange_kinds,
    regathered,
    split_sizes,
    stream_bytes,
    stream_sums,
)
from parallel.cost.step_time import Collective, sends
from parallel.layout import replicate
from parallel.mesh import batch_axes, batch_degree
from parallel.program import AXIS, FSDP, SLICE, STAGE, TENSOR


def traffic(config: Any, params: Any, mesh: Mesh, cut: Cut | None) -> list[Collective]:
    """Return the collectives of a step; `config` is a ParallelConfig, params are shapes.

    A part that sends nothing is left out.
    """
    total = config.row.sent_bytes(config, params, mesh, cut) or 0.0
    found = pipeline_parts(config, mesh, cut) if STAGE in mesh.shape else []
    if config.row.layout.params is not replicate:
        found += gathering_parts(config, params, mesh, cut)
    if mesh.shape.get(TENSOR, 1) > 1:
        found.append(stream_part(config, mesh, cut))
    over = batch_axes(mesh) if FSDP not in mesh.shape else (AXIS,)
    degree = math.prod(mesh.shape[axis] for axis in over)
    layout = config.row.layout
    if layout.opt is not replicate and layout.params is replicate:
        found += updating_parts(config, params, over, degree)
    rest = total - sum(one.sent_bytes for one in found)
    exchange = config.exchange
    algorithm = "psum" if exchange.algorithm == "auto" else exchange.algorithm
    kinds = exchange_kinds(config) if config.row.exchanges else {"all-reduce"}
    kind = next(iter(kinds)) if len(kinds) == 1 else "all-reduce"
    steps = sends(algorithm, degree)
    found.append(Collective("gradients", over, rest, rounds(config), steps, kind))
    return [one for one in found if one.sent_bytes > 0]


def updating_parts(
    config: Any, params: Any, over: tuple[str, ...], degree: int
) -> list[Collective]:
    """Return what ZeRO-1 and 2 send of the parameters that they split."""
    split = sum(split_sizes(jax.tree.leaves(params), degree))
    share = split * (degree - 1) / degree
    times = 1 if config.row.layout.grads is replicate else config.accumulation
    return [
        Collective(
            "scatters", over, times * share, times, degree - 1, "reduce-scatter"
        ),
        Collective("updated parameters", over, share, 1, degree - 1, "all-gather"),
    ]  # fmt: skip


def rounds(config: Any) -> float:
    """Return how often gradients or moves are summed in a step."""
    if not config.row.exact:
        return 1 / config.local.every
    if config.row.exchanges:
        return config.accumulation // (config.exchange.every or config.accumulation)
    return 1


def gathering_parts(
    config: Any, params: Any, mesh: Mesh, cut: Cut | None
) -> list[Collective]:
    """Return the gathers and scatters of FSDP, layer by layer."""
    axis = FSDP if FSDP in mesh.shape else AXIS
    n, k, tensor = mesh.shape[axis], config.accumulation, mesh.shape.get(TENSOR, 1)
    moved, layers = regathered(params, cut, n), cut.num_layers if cut else 0
    share = k / tensor * (n - 1) / n
    return [
        Collective(
            "gathers", (axis,), moved.gathers * share, k * (2 * layers + 2), n - 1,
            "all-gather", hides=True,
        ),
        Collective(
            "scatters", (axis,), moved.scatters * share, k * (layers + 2), n - 1,
            "reduce-scatter", hides=True,
        ),
    ]  # fmt: skip


def stream_part(config: Any, mesh: Mesh, cut: Cut) -> Collective:
    """Return the sums of the residual stream over the devices that share a layer."""
    tensor = mesh.shape[TENSOR]
    sent = stream_bytes(cut, batch_degree(mesh), tensor)
    times = config.accumulation * stream_sums(cut)
    return Collective("stream", (TENSOR,), sent, times, 2 * (tensor - 1))


def pipeline_parts(config: Any, mesh: Mesh, cut: Cut) -> list[Collective]:
    """Return what stages send on, and the sum of what all of them hold."""
    stages, k = mesh.shape[STAGE], config.accumulation
    times = crossings(stages, k, config.num_chunks(mesh))
    sent = times * cut.compute * cut.carry / batch_degree(mesh) / k
    outer = 2 * cut.outer * (mesh.size - 1) / mesh.size
    every = tuple(axis for axis in (SLICE, AXIS, STAGE) if axis in mesh.shape)
    return [
        Collective(
            "stages", (STAGE,), sent, times, 1,
            "collective-permute",
        ),
        Collective("outer gradients", every, outer, 1, 2 * (mesh.size - 1)),
    ]  # fmt: skip
