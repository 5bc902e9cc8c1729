"""What each strategy should send, on paper: to be held beside the ledger of what it does.

Bytes that one device sends in a step, for P parameters of 4 bytes, N devices and k
microbatches; the formulas stand beside the strategies (parallel/sharded.py,
parallel/algorithms.py, the codecs' `sent_bytes`).
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from parallel.algorithms import sent_elements
from parallel.codec import hierarchical
from parallel.exchange_config import CODECS, ExchangeConfig
from parallel.local import PLANS
from parallel.mesh import batch_axes, batch_degree
from parallel.program import Params
from parallel.strategies import ParallelConfig

LAYOUTS: dict[str, Callable[[float, int, int], float]] = {  # (4 P, N, k) -> bytes
    "jit": lambda size, n, k: 2 * k * size * (n - 1) / n,
    "zero1": lambda size, n, k: 2 * size * (n - 1) / n,
    "zero2": lambda size, n, k: (k + 1) * size * (n - 1) / n,
    "fsdp": lambda size, n, k: 3 * k * size * (n - 1) / n,
}
BY_ALGORITHM = {
    "psum": {"all-reduce"},
    "all_to_all": {"all-to-all", "all-gather"},
    "all_gather": {"all-gather"},
    "hierarchical": {"reduce-scatter", "all-reduce", "all-gather"},
}  # the others send from device to device


def expected_bytes(config: ParallelConfig, params: Params, mesh: Mesh) -> float | None:
    """Return the bytes of a strategy's closed form; None where it has none.

    `params` are shapes. Metrics, and scales of gradients' norms, are not counted.
    """
    name, degree = config.strategy, batch_degree(mesh)
    size = 4.0 * sum(math.prod(x.shape) for x in jax.tree.leaves(params))
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
    if config.strategy == "jit":
        return {"all-reduce"}
    if config.strategy in LAYOUTS:
        return {"reduce-scatter", "all-gather"}
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
