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
    inside_bytes,
    regathered,
    replica_bytes,
    split_sizes,
    stream_bytes,
    stream_sums,
)
from parallel.cost.step_time import Collective, sends
from parallel.layout import replicate
from parallel.mesh import batch_axes, batch_degree
from parallel.program import AXIS, FSDP, SLICE, STAGE, TENSOR


def traffic(
    config: Any,
    params: Any,
    mesh: Mesh,
    cut: Cut | None,
    norms: int = 0,
    joins: bool = True,
) -> list[Collective]:
    """Return the collectives of a step; `config` is a ParallelConfig, params are shapes.

    `norms` are taken of the whole gradient in a step. `joins`: the compiler joins arrays
    that it sums at one place; XLA for CPUs sends them one after the other. A part that
    sends nothing is left out, but for those of single numbers (`scalars`, `metrics`), whose
    bytes do not count.
    """
    total = config.row.sent_bytes(config, params, mesh, cut)
    if total is None and config.row.uneven:  # but for the rows that replicas gather
        total = replica_bytes(config, params, mesh, cut)
    total = total or 0.0
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
    times = rounds(config) if joins else arrays_summed(config, params, cut)
    found += exchange_parts(config, params, mesh, over, rest, times)
    found = [one for one in found if one.sent_bytes > 0]
    return found + scalar_parts(config, params, mesh, norms, joins)


def exchange_parts(
    config: Any, params: Any, mesh: Mesh, over: tuple[str, ...], sent: float, times: float
) -> list[Collective]:
    """Return the sums of gradients or moves, which send so many bytes."""
    exchange, sizes = config.exchange, tuple(mesh.shape[axis] for axis in over)
    algorithm = "psum" if exchange.algorithm == "auto" else exchange.algorithm
    if config.row.exchanges and algorithm == "hierarchical" and len(over) > 1:
        *slow, fast = over
        inside = rounds(config) * inside_bytes(exchange, params, sizes)
        across = sends("psum", math.prod(sizes[:-1]))
        return [
            Collective(
                "gradients inside", (fast,), inside, times, sends("psum", sizes[-1])
            ),
            Collective("gradients", tuple(slow), sent - inside, times, across),
        ]
    kinds = exchange_kinds(config) if config.row.exchanges else {"all-reduce"}
    kind = next(iter(kinds)) if len(kinds) == 1 else "all-reduce"
    steps = sends(algorithm, math.prod(sizes))
    return [Collective("gradients", over, sent, times, steps, kind)]


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
    return 1 if config.row.written else config.accumulation


def arrays_summed(config: Any, params: Any, cut: Cut | None) -> float:
    """Return how many arrays are summed one by one, as XLA for CPUs does.

    It sums the gradient of a tied embedding twice (jit_bytes). All other strategies join
    their arrays by hand (parallel/collectives.py).
    """
    if config.row.written:
        return rounds(config)
    tied = sum(map(all, zip(*cut.reads, strict=True))) if cut else 0
    return rounds(config) * (len(jax.tree.leaves(params)) + tied)


def scalar_parts(
    config: Any, params: Any, mesh: Mesh, norms: int, joins: bool
) -> list[Collective]:
    """Return the sums of single numbers: norms of gradients that are split, and metrics.

    A norm adds up a number of each split array. Metrics travel with the gradients, except
    on CPUs: in an exchange as one array, and under `jit` as two numbers of each microbatch.
    Numbers that are summed over `tensor` or over stages are not counted.
    """
    axis, axes = FSDP if FSDP in mesh.shape else AXIS, batch_axes(mesh)
    degree, singles = batch_degree(mesh), 0.0
    if config.row.layout.opt is not replicate and mesh.shape.get(axis, 1) > 1:
        sizes = split_sizes(jax.tree.leaves(params), mesh.shape[axis])
        singles += norms * (1 if joins else sum(size > 0 for size in sizes))
    if not joins and not config.row.written:
        singles += 2 * config.accumulation
    # Accelerators sum little along a tree. Gloo cuts an array into two segments for each
    # process; a single number is one segment, which is sent round the ring alone.
    algorithm, kind = ("tree", "all-reduce") if joins else ("ring", "collective-permute")
    steps, arrays = sends(algorithm, degree), 0.0
    if not joins and config.row.exchanges:
        arrays = rounds(config)
    found = [
        Collective("scalars", axes, 0.0, singles, steps, kind),
        Collective("metrics", axes, 0.0, arrays, sends("psum", degree)),
    ]
    return [one for one in found if one.count and degree > 1]


def gathering_parts(
    config: Any, params: Any, mesh: Mesh, cut: Cut | None
) -> list[Collective]:
    """Return the gathers and scatters of FSDP, layer by layer."""
    axis = FSDP if FSDP in mesh.shape else AXIS
    n, k, tensor = mesh.shape[axis], config.accumulation, mesh.shape.get(TENSOR, 1)
    moved = regathered(params, cut, n)
    share = k / tensor * (n - 1) / n
    return [
        Collective(
            "gathers", (axis,), moved.gathers * share, k * moved.num_gathers, n - 1,
            "all-gather", hides=True,
        ),
        Collective(
            "scatters", (axis,), moved.scatters * share, k * moved.num_scatters, n - 1,
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
