"""What each strategy should send, on paper: to be held beside the ledger of what it does.

Bytes that one device sends in a step, for P parameters of 4 bytes, N devices and k
microbatches; the formulas stand beside the strategies (parallel/sharded.py,
parallel/exchange/algorithms.py, the codecs' `sent_bytes`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from parallel.exchange.algorithms import sent_elements
from parallel.exchange.codec import hierarchical
from parallel.exchange.config import CODECS, ExchangeConfig
from parallel.local import PLANS
from parallel.mesh import batch_axes, batch_degree
from parallel.pipeline.stacking import outer_of
from parallel.program import FSDP, STAGE, TENSOR, Batch, Params
from parallel.strategies import ParallelConfig

LAYOUTS: dict[str, Callable[[float, int, int], float]] = {  # (4 P, N, k) -> bytes
    "jit": lambda size, n, k: 2 * k * size * (n - 1) / n,
    "zero1": lambda size, n, k: 2 * size * (n - 1) / n,
    "zero2": lambda size, n, k: (k + 1) * size * (n - 1) / n,
    "fsdp": lambda size, n, k: 3 * k * size * (n - 1) / n,
}
WITH_STAGES = ("gpipe", "1f1b", "interleaved")
KINDS = {  # of collectives that may carry more than metrics
    "jit": {"all-reduce"},
    "tensor": {"all-reduce"},
    **dict.fromkeys(("zero1", "zero2", "fsdp"), {"reduce-scatter", "all-gather"}),
    **dict.fromkeys(("hsdp", "hybrid"), {"reduce-scatter", "all-gather", "all-reduce"}),
    **dict.fromkeys(WITH_STAGES, {"collective-permute", "all-reduce"}),
}
BY_ALGORITHM = {
    "psum": {"all-reduce"},
    "all_to_all": {"all-to-all", "all-gather"},
    "all_gather": {"all-gather"},
    "hierarchical": {"reduce-scatter", "all-reduce", "all-gather"},
}  # the others send from device to device


class Cut(NamedTuple):
    """What of a task is known to who splits its layers, or cuts between them."""

    num_layers: int
    outer: float  # bytes of the parameters outside the layers
    layers: float  # bytes of those of all layers
    carry: float  # bytes that go from layer to layer, for all rows of a batch


def cut_of(stages: Any, params: Params, batch: Batch) -> Cut:
    """Measure a task's `stages`; params and batch may be shapes, of all devices."""
    outer = outer_of(params)
    carry = jax.eval_shape(
        lambda outer, batch: stages.embed(outer, batch, None), outer, batch
    )
    layers = num_bytes(params) - num_bytes(outer)
    return Cut(stages.num_layers, num_bytes(outer), layers, num_bytes(carry))


def num_bytes(tree: Any) -> float:
    return 4.0 * sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def split_bytes(config: ParallelConfig, mesh: Mesh, size: float, cut: Cut | None) -> float:
    """Return what hsdp, tensor and hybrid send; `size` is 4 P.

    Over fsdp as ZeRO-3 does, an all-reduce over data of what is left, and over tensor two
    sums of the carry forward and two backward in each layer (Shoeybi et al. 2019, 3), one
    after the embedding and one before the head. Parameters of no split dim, norms, are
    taken as if they had one.
    """
    fsdp, tensor = (mesh.shape.get(axis, 1) for axis in (FSDP, TENSOR))
    degree = batch_degree(mesh)
    size /= tensor
    sent = LAYOUTS["fsdp"](size, fsdp, config.accumulation)
    data = degree // fsdp
    sent += 2 * size / fsdp * (data - 1) / data
    if cut and tensor > 1:
        sums = 4 * cut.num_layers + 2
        sent += sums * 2 * cut.carry / degree * (tensor - 1) / tensor
    return sent


def pipeline_bytes(mesh: Mesh, cut: Cut, num_chunks: int) -> float:
    """Return what a stage sends on average: the carry and its gradient, and sums.

    Every stage but the last hands on, in each of its chunks; layers are summed over data,
    what is outside them over all devices.
    """
    stages, data = mesh.shape[STAGE], batch_degree(mesh)
    crossings = (stages * num_chunks - 1) / stages
    sent = 2 * cut.carry / data * crossings
    sent += 2 * cut.layers / stages * (data - 1) / data
    return sent + 2 * cut.outer * (mesh.size - 1) / mesh.size


def expected_bytes(
    config: ParallelConfig, params: Params, mesh: Mesh, cut: Cut | None = None
) -> float | None:
    """Return the bytes of a strategy's closed form; None where it has none.

    `params` are shapes. Metrics, and scales of gradients' norms, are not counted. Without
    the task's `cut` pipelines have none, and so has what splits layers.
    """
    name, degree = config.strategy, batch_degree(mesh)
    size = num_bytes(params)
    if name == "hsdp" or (cut and name in ("tensor", "hybrid")):
        return split_bytes(config, mesh, size, cut)
    if cut and name in WITH_STAGES:
        return pipeline_bytes(mesh, cut, config.chunks if name == "interleaved" else 1)
    if name in LAYOUTS:
        return LAYOUTS[name](size, degree, config.accumulation)
    if name in PLANS:
        return exchange_bytes(config.exchange, params, mesh) / config.local.every
    if name in ("shard_map", "pmap"):
        every = config.exchange.every or config.accumulation
        times = config.accumulation // every
        return times * exchange_bytes(config.exchange, params, mesh)
    return None


def exchange_bytes(config: ExchangeConfig, params: Params, mesh: Mesh) -> float:
    axes, degree = batch_axes(mesh), batch_degree(mesh)
    sizes = tuple(mesh.shape[axis] for axis in axes)
    algorithm = "psum" if config.algorithm == "auto" else config.algorithm
    num = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    if config.codec == "none":
        return 4 * sent_elements(algorithm, num, sizes)
    codec = CODECS[config.codec](config)
    if not codec.linear:
        if algorithm == "hierarchical":
            codec = hierarchical(codec, sizes[-1])
        return codec.sent_bytes(params, degree)
    # The codec's own figure is that of a ring.
    against_ring = sent_elements(algorithm, num, sizes) / sent_elements("ring", num, sizes)
    return codec.sent_bytes(params, degree) * against_ring


def expected_kinds(config: ParallelConfig) -> set[str] | None:
    """Return the kinds of collectives that may carry more than metrics; None: not known."""
    if config.strategy in KINDS:
        return KINDS[config.strategy]
    if config.strategy not in (*PLANS, "shard_map", "pmap"):
        return None
    exchange = config.exchange
    algorithm = "psum" if exchange.algorithm == "auto" else exchange.algorithm
    if exchange.codec != "none":
        codec = CODECS[exchange.codec](exchange)
        if not codec.linear and exchange.algorithm == "auto":
            algorithm = codec.algorithms[0]
        elif not codec.linear:
            return BY_ALGORITHM[algorithm] | BY_ALGORITHM[codec.algorithms[0]]
    return BY_ALGORITHM.get(algorithm, {"collective-permute"})
