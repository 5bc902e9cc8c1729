"""What a strategy sends in a step, collective by collective.

The total is the strategy's closed form (parallel/cost/closed_forms.py); the parts of it
that have a count, an axis or an overlap of their own are told apart here.
"""

import math
from typing import Any

from jax.sharding import Mesh

from parallel.cost.closed_forms import Cut, num_bytes
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
    rest = total - sum(one.sent_bytes for one in found)
    over = batch_axes(mesh) if FSDP not in mesh.shape else (AXIS,)
    degree = math.prod(mesh.shape[axis] for axis in over)
    exchange = config.exchange
    algorithm = "psum" if exchange.algorithm == "auto" else exchange.algorithm
    found.append(
        Collective("gradients", over, rest, rounds(config), sends(algorithm, degree))
    )
    return [one for one in found if one.sent_bytes > 0]


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
    gathers = scatters = num_bytes(params)
    layers = 0
    if cut is not None:
        gathers = cut.compute * (2 * cut.layers + cut.reads)
        scatters, layers = cut.layers + cut.reads, cut.num_layers
    share = k / tensor * (n - 1) / n
    return [
        Collective(
            "gathers", (axis,), gathers * share, k * (2 * layers + 2), n - 1,
            "all-gather", hides=True,
        ),
        Collective(
            "scatters", (axis,), scatters * share, k * (layers + 2), n - 1,
            "reduce-scatter", hides=True,
        ),
    ]  # fmt: skip


def stream_part(config: Any, mesh: Mesh, cut: Cut) -> Collective:
    """Return the sums of the residual stream over the devices that share a layer."""
    tensor, count = mesh.shape[TENSOR], 4 * cut.num_layers + 2
    sent = count * 2 * cut.carry / batch_degree(mesh) * (tensor - 1) / tensor
    times = config.accumulation * count
    steps = 2 * (tensor - 1)
    return Collective("stream", (TENSOR,), sent, times, steps, narrows=True)


def pipeline_parts(config: Any, mesh: Mesh, cut: Cut) -> list[Collective]:
    """Return what stages send on, and the sum of what all of them hold."""
    stages, chunks = mesh.shape[STAGE], config.num_chunks(mesh)
    crossings = (stages * chunks - 1) / stages
    sent = 2 * cut.carry / batch_degree(mesh) * crossings
    outer = 2 * cut.outer * (mesh.size - 1) / mesh.size
    every = tuple(axis for axis in (SLICE, AXIS, STAGE) if axis in mesh.shape)
    return [
        Collective(
            "stages", (STAGE,), sent, 2 * config.accumulation * crossings, 1,
            "collective-permute",
        ),
        Collective("outer gradients", every, outer, 1, 2 * (mesh.size - 1)),
    ]  # fmt: skip
