"""The bytes that each strategy should send, on paper; the ledger has what it does send.

Bytes that one device sends in a step, for P parameters of 4 bytes, N devices and k
microbatches. Each function is the closed form of a row of parallel/strategies.py; the
formulas stand beside the code that sends (parallel/sharded.py,
parallel/exchange/algorithms.py, the codecs' `sent_bytes`). Metrics, and scales of
gradients' norms, are not counted.
"""

import math
from collections.abc import Callable
from itertools import compress
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from parallel.exchange.algorithms import ALGORITHMS
from parallel.exchange.codec import hierarchical
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.forms.dealing import fill
from parallel.islands.submeshes import islands_of, shard_shapes
from parallel.mesh import batch_axes, batch_degree
from parallel.pipeline.stacking import outer_of
from parallel.program import FSDP, SLICE, STAGE, TENSOR, Batch, Params
from parallel.regathering import leaves_read


class Cut(NamedTuple):
    """What must be known of a task to split its layers, or to cut between them."""

    num_layers: int
    outer: float  # bytes of the parameters outside the layers
    layers: float  # bytes of those of all layers
    carry: float  # bytes that go from layer to layer, for all rows of a batch
    # Bytes of the outer parameters that the embedding reads, plus those that the loss
    # reads: a tied embedding counts twice.
    reads: float
    compute: float  # bytes of a parameter in the compute type, as a share of the 4
    hidden: tuple[str, ...] = ()  # top-level names of the parameters inside layers


def cut_of(task: Any, params: Params, batch: Batch) -> Cut | None:
    """Measure a task; params and batch may be shapes, of all devices.

    None: the task has no stages.
    """
    if task.stages is None:
        return None
    num_layers, embed, _, loss = task.stages
    outer = outer_of(params)

    def enter(outer: Params, batch: Batch) -> Any:
        return embed(outer, batch, None)

    carry = jax.eval_shape(enter, outer, batch)
    reads = leaves_read(enter, outer, batch), leaves_read(loss, outer, carry, batch)
    leaves = jax.tree.leaves(outer)
    cast = jax.tree.leaves(jax.eval_shape(task.cast, params))
    return Cut(
        num_layers,
        outer=num_bytes(outer),
        layers=num_bytes(params) - num_bytes(outer),
        carry=num_bytes(carry),
        reads=sum(num_bytes(list(compress(leaves, read))) for read in reads),
        compute=sum(x.size * x.dtype.itemsize for x in cast) / num_bytes(params),
        hidden=task.hidden,
    )


def num_bytes(tree: Any) -> float:
    return 4.0 * sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def by_layout(formula: Callable[[float, int, int], float]) -> Callable:
    """Make a closed form of one of (4 P, N, k)."""

    def sent(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float:
        return formula(num_bytes(params), batch_degree(mesh), config.accumulation)

    return sent


def regathered_bytes(
    size: float, cut: Cut | None, n: int, k: int, tensor: int = 1
) -> float:
    """Return what FSDP sends to gather, in the compute type, and to scatter, in float32.

    Layers are gathered forward and backward, outer parameters where they are read. A task
    without stages is gathered once; its type is not known, and is taken as float32.
    """
    gathers, scatters = size, size
    if cut is not None:
        gathers = cut.compute * (2 * cut.layers + cut.reads)
        scatters = cut.layers + cut.reads
    return k * (gathers + scatters) / tensor * (n - 1) / n


def fsdp_bytes(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float:
    n, k = batch_degree(mesh), config.accumulation
    return regathered_bytes(num_bytes(params), cut, n, k)


jit_bytes = by_layout(lambda size, n, k: 2 * k * size * (n - 1) / n)
zero1_bytes = by_layout(lambda size, n, k: 2 * size * (n - 1) / n)
zero2_bytes = by_layout(lambda size, n, k: (k + 1) * size * (n - 1) / n)


def zero1_whole_bytes(
    config: Any, params: Params, mesh: Mesh, cut: Cut | None
) -> float | None:
    """Return what zero1 sends, with the zeros that fill up the arrays of matrices.

    None: no cut of the task is known, and so not which matrices lie inside layers.
    """
    if cut is None:
        return None
    n = batch_degree(mesh)
    size = num_bytes(params) + 4 * fill(params, cut.hidden, n)
    return 2 * size * (n - 1) / n


def split_bytes(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float | None:
    """Return what hsdp, tensor and hybrid send; None where a layer is split, but no cut
    of the task is known.

    Over fsdp it sends as `fsdp` does, over data an all-reduce of what is left. Over tensor
    it sums the carry twice forward and twice backward in each layer (Shoeybi et al. 2019,
    3), once after the embedding and once before the head. Parameters without a split dim,
    the norms, count as if they had one.
    """
    fsdp, tensor = (mesh.shape.get(axis, 1) for axis in (FSDP, TENSOR))
    if tensor > 1 and cut is None:
        return None
    degree = batch_degree(mesh)
    size = num_bytes(params) / tensor
    k = config.accumulation
    sent = regathered_bytes(num_bytes(params), cut, fsdp, k, tensor)
    data = degree // fsdp
    sent += 2 * size / fsdp * (data - 1) / data
    if tensor > 1:
        sums = 4 * cut.num_layers + 2
        sent += sums * 2 * cut.carry / degree * (tensor - 1) / tensor
    return sent


def pipeline_bytes(mesh: Mesh, cut: Cut | None, num_chunks: int) -> float | None:
    """Return what a stage sends on average: the carry and its gradient, and sums.

    Every stage but the last sends the carry on, in each of its chunks. The gradients of
    layers are summed over data, all other gradients over all devices.
    """
    if cut is None:
        return None
    stages, data = mesh.shape[STAGE], batch_degree(mesh)
    crossings = (stages * num_chunks - 1) / stages
    sent = 2 * cut.carry / data * crossings
    sent += 2 * cut.layers / stages * (data - 1) / data
    return sent + 2 * cut.outer * (mesh.size - 1) / mesh.size


def replica_bytes(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float:
    every = config.exchange.every or config.accumulation
    times = config.accumulation // every
    return times * exchange_bytes(config.exchange, params, mesh)


def local_bytes(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float | None:
    """Return the share of a meeting, and, of islands, what their inner strategy sends.

    Of islands, the parameters' shardings tell which part of them a device exchanges. The
    parameters of a pipeline do not lie as they are saved, so it has no closed form here.
    """
    inner, every = config.inner, config.local.every
    if inner is None:
        return exchange_bytes(config.exchange, params, mesh) / every
    if STAGE in mesh.shape:
        return None
    own_cut = cut and cut._replace(carry=cut.carry / mesh.shape[SLICE])
    inside = inner.row.sent_bytes(inner, params, islands_of(mesh)[0], own_cut)
    if inside is None:
        return None
    met = exchange_bytes(config.exchange, shard_shapes(params), config.exchanging(mesh))
    return inside + met / every


def exchange_bytes(config: ExchangeConfig, params: Params, mesh: Mesh) -> float:
    axes, degree = batch_axes(mesh), batch_degree(mesh)
    sizes = tuple(mesh.shape[axis] for axis in axes)
    algorithm = "psum" if config.algorithm == "auto" else config.algorithm
    num = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    if config.codec == "none":
        return 4 * ALGORITHMS[algorithm].sent_elements(num, sizes)
    codec = CODECS[config.codec](config)
    if not codec.linear:
        if algorithm == "hierarchical":
            codec = hierarchical(codec, sizes[-1])
        return codec.sent_bytes(params, degree)
    # The codec's own figure is that of a ring.
    own, ring = (ALGORITHMS[name].sent_elements(num, sizes) for name in (algorithm, "ring"))
    return codec.sent_bytes(params, degree) * (own / ring)


def exchange_kinds(config: Any) -> set[str]:
    """Return the kinds of collectives by which an exchange may travel."""
    exchange = config.exchange
    algorithm = "psum" if exchange.algorithm == "auto" else exchange.algorithm
    if exchange.codec != "none":
        codec = CODECS[exchange.codec](exchange)
        if not codec.linear and exchange.algorithm == "auto":
            algorithm = codec.algorithms[0]
        elif not codec.linear:
            return {*ALGORITHMS[algorithm].kinds, *ALGORITHMS[codec.algorithms[0]].kinds}
    return set(ALGORITHMS[algorithm].kinds)
