"""The bytes that each strategy should send, on paper; the ledger has what it does send.

Bytes that one device sends in a step, for P parameters of 4 bytes, N devices and k
microbatches. Each function is the closed form of a row of parallel/strategies.py; the
formulas stand beside the code that sends (parallel/sharded.py,
parallel/exchange/algorithms.py, the codecs' `sent_bytes`). Metrics, and scales of
gradients' norms, are not counted.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from parallel.exchange.algorithms import ALGORITHMS, owned
from parallel.exchange.codec import hierarchical
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.forms.dealing import fill
from parallel.islands.submeshes import islands_of, shard_shapes
from parallel.layout import shard_largest
from parallel.mesh import batch_axes, batch_degree
from parallel.pipeline.stacking import LAYERS, STACK, outer_of
from parallel.program import FSDP, SLICE, STAGE, TENSOR, Batch, Params, TensorDims
from parallel.regathering import leaves_read


class Cut(NamedTuple):
    """What must be known of a task to split its layers, or to cut between them."""

    num_layers: int
    outer: float  # bytes of the parameters outside the layers
    layers: float  # bytes of those of all layers
    carry: float  # bytes that go from layer to layer, for all rows of a batch
    # Which leaves of the outer parameters the embedding reads, and which the loss reads.
    reads: tuple[tuple[bool, ...], tuple[bool, ...]]
    compute: float  # bytes of a parameter in the compute type, as a share of the 4
    hidden: tuple[str, ...] = ()  # top-level names of the parameters inside layers
    split: int = 0  # matrices of a layer that are split over `tensor`
    alone: float = 0.0  # bytes of the parameters that are not: the norms
    platform: str = "tpu"  # whose compiler makes the program


def cut_of(task: Any, params: Params, batch: Batch, platform: str = "tpu") -> Cut | None:
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
    cast = jax.tree.leaves(jax.eval_shape(task.cast, params))
    return Cut(
        num_layers,
        outer=num_bytes(outer),
        layers=num_bytes(params) - num_bytes(outer),
        carry=num_bytes(carry),
        reads=tuple(map(tuple, reads)),
        compute=sum(x.size * x.dtype.itemsize for x in cast) / num_bytes(params),
        hidden=task.hidden,
        split=split_matrices(task.tensor_dims, params),
        alone=sum(
            num_bytes(x)
            for path, x in jax.tree.leaves_with_path(params)
            if not is_split(task.tensor_dims, path)
        ),
        platform=platform,
    )


def split_matrices(table: TensorDims, params: Params) -> int:
    """Count the matrices of a layer that are split over `tensor`."""
    layer = params[STACK] if STACK in params else params[LAYERS][0]
    dims = 3 if STACK in params else 2
    return sum(
        is_split(table, path) and len(x.shape) == dims
        for path, x in jax.tree.leaves_with_path(layer)
    )


def is_split(table: TensorDims, path: tuple) -> bool:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return any(re.search(entry[0], name) for entry in table)


def num_bytes(tree: Any) -> float:
    return 4.0 * sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def by_layout(formula: Callable[[float, int, int], float]) -> Callable:
    """Make a closed form of one of (4 P, N, k)."""

    def sent(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float:
        return formula(num_bytes(params), batch_degree(mesh), config.accumulation)

    return sent


class Regathered(NamedTuple):
    """What FSDP moves in a microbatch, in bytes of whole arrays of float32."""

    gathers: float
    scatters: float
    whole: float  # parameters too small to split: their gradients are summed once a step
    num_gathers: int = 1  # a layer's arrays are gathered together
    num_scatters: int = 1


def regathered(params: Params, cut: Cut | None, n: int) -> Regathered:
    """Return what FSDP gathers and scatters over n devices.

    Layers are gathered forward and backward, outer parameters where they are read. A task
    without stages is gathered once. XLA for CPUs drops the barriers between equal gathers
    of one microbatch, and runs them once; a stack of layers has two loops, and so two.
    """
    if cut is None:
        split = sum(split_sizes(jax.tree.leaves(params), n))
        return Regathered(split, split, num_bytes(params) - split)
    outer = split_sizes(jax.tree.leaves(outer_of(params)), n)
    # Pairs of a leaf's number and its bytes, so that equal sizes are not equal leaves.
    entering, leaving = (
        [(i, size) for i, size in enumerate(outer) if read[i] and size]
        for read in cut.reads
    )
    first, num_layers = layer_leaves(params)
    layers, ends = (
        num_layers * sum(split_sizes(first, n)),
        sum(size for _, size in entering + leaving),
    )
    passes, gathered, num_ends = 2, ends, bool(entering) + bool(leaving)
    num_gathered = num_ends
    if cut.platform == "cpu":
        passes = 1 if LAYERS in params else 2
        if entering == leaving:
            gathered, num_gathered = ends / 2, min(num_ends, 1)
    return Regathered(
        gathers=cut.compute * (passes * layers + gathered),
        scatters=layers + ends,
        whole=cut.outer + cut.layers - layers - sum(outer),
        num_gathers=passes * num_layers + num_gathered,
        num_scatters=num_layers + num_ends,
    )


def layer_leaves(params: Params) -> tuple[list, int]:
    """Return the shapes of a layer's parameters, and how many layers there are."""
    if STACK not in params:
        return jax.tree.leaves(params[LAYERS][0]), len(params[LAYERS])
    stack = jax.tree.leaves(params[STACK])
    layer = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in stack]
    return layer, stack[0].shape[0]


def split_sizes(leaves: list, n: int) -> list[float]:
    """Return the bytes of the leaves that n devices split, and 0 for the others."""
    return [num_bytes(x) * (shard_largest(x.shape, n) is not None) for x in leaves]


def fsdp_bytes(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float:
    n, k = batch_degree(mesh), config.accumulation
    moved = regathered(params, cut, n)
    return (k * (moved.gathers + moved.scatters) + 2 * moved.whole) * (n - 1) / n


zero1_bytes = by_layout(lambda size, n, k: 2 * size * (n - 1) / n)


def jit_bytes(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float:
    """Return what the compiler's all-reduce of each microbatch sends.

    On CPUs it sums the gradients of a tied embedding apart, once where it is read first and
    once in the head.
    """
    n, size = batch_degree(mesh), num_bytes(params)
    if cut is not None and cut.platform == "cpu":
        outer = map(num_bytes, jax.tree.leaves(outer_of(params)))
        size += sum(x for x, *reads in zip(outer, *cut.reads, strict=True) if all(reads))
    return 2 * config.accumulation * size * (n - 1) / n


def zero2_bytes(config: Any, params: Params, mesh: Mesh, cut: Cut | None) -> float:
    """Return k scatters and a gather; what is too small to split is summed once."""
    n = batch_degree(mesh)
    split = sum(split_sizes(jax.tree.leaves(params), n))
    whole = num_bytes(params) - split
    return ((config.accumulation + 1) * split + 2 * whole) * (n - 1) / n


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

    Over fsdp it sends as `fsdp` does, over data an all-reduce of what is left, over tensor
    sums of the carry. Three numbers for each token in the loss do not count.
    """
    fsdp, tensor = (mesh.shape.get(axis, 1) for axis in (FSDP, TENSOR))
    if tensor > 1 and cut is None:
        return None
    degree = batch_degree(mesh)
    moved, share = regathered(params, cut, fsdp), (fsdp - 1) / fsdp
    sent = config.accumulation * (moved.gathers + moved.scatters) * share
    sent += 2 * moved.whole * (degree - 1) / degree
    data = degree // fsdp
    sent += 2 * (num_bytes(params) - moved.whole) / fsdp * (data - 1) / data
    sent /= tensor
    if tensor > 1:
        sent += stream_bytes(cut, degree, tensor)
        sent += 2 * cut.alone * (1 - 1 / tensor) * (degree - 1) / degree
    return sent


def stream_sums(cut: Cut) -> int:
    """Return the sums of the carry: those of layers, after the embedding, of the head.

    In each layer two forward and two backward (Shoeybi et al. 2019, 3). XLA for CPUs sums
    apart what each product sends back.
    """
    return (cut.split if cut.platform == "cpu" else 4) * cut.num_layers + 2


def stream_bytes(cut: Cut, degree: int, tensor: int) -> float:
    """Return what these sums send: float32 on CPUs, elsewhere the compute type."""
    compute = 1.0 if cut.platform == "cpu" else cut.compute
    share = (tensor - 1) / tensor
    return stream_sums(cut) * 2 * compute * cut.carry / degree * share


def pipeline_bytes(mesh: Mesh, cut: Cut | None, k: int, num_chunks: int) -> float | None:
    """Return what a stage sends on average: the carry and its gradient, and sums.

    The gradients of layers are summed over data, all other gradients over all devices.
    """
    if cut is None:
        return None
    stages, data = mesh.shape[STAGE], batch_degree(mesh)
    sent = crossings(stages, k, num_chunks) * cut.compute * cut.carry / data / k
    sent += 2 * cut.layers / stages * (data - 1) / data
    return sent + 2 * cut.outer * (mesh.size - 1) / mesh.size


def crossings(stages: int, k: int, num_chunks: int) -> float:
    """Return how many microbatches' carries a stage sends on or back, on average.

    In each of 2 (chunks k + stages - 1) ticks every stage sends in both directions, even if
    it is idle; with one chunk, the ends send in one direction only.
    """
    ticks = 2 * (num_chunks * k + stages - 1)
    return 2 * ticks * (1 if num_chunks > 1 else (stages - 1) / stages)


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


def inside_bytes(config: ExchangeConfig, params: Params, sizes: tuple[int, ...]) -> float:
    """Return what a hierarchical exchange sends over its last axis: the scatter and the
    gather of all elements, in float32, or of a linear codec's numbers.
    """
    num = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    inside = 4 * owned(num, sizes[-1])
    if config.codec == "none" or not (codec := CODECS[config.codec](config)).linear:
        return inside
    ring = ALGORITHMS["ring"].sent_elements(num, sizes)
    return codec.sent_bytes(params, math.prod(sizes)) * inside / 4 / ring


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
