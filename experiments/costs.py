"""What a step costs, read from its compiled program, its model, and the machine."""

import dataclasses
import math
import os
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from configs.base import Experiment
from experiments.build import build_task
from lm.precision import PrecisionConfig
from parallel.layout import bytes_per_device
from parallel.ledger import ledger
from parallel.program import TrainState

PARTS = ("prepare", "compile", "data", "step", "eval", "checkpoint")  # of a run's seconds
PRODUCT_SECONDS = 0.5  # how long products are repeated to find the limit


def compiled_costs(
    compiled: jax.stages.Compiled, mesh: Mesh, state: TrainState
) -> dict[str, int | float]:
    """Read what a step sends and holds on one device, in bytes; nothing is run.

    `state` tells shapes and shardings. The peak is that of the compiled program: arguments,
    results and temporaries together.
    """
    entries = ledger(compiled.as_text(), mesh)
    memory = compiled.memory_analysis()
    return {
        "sent_bytes": sum(entry.sent_bytes for entry in entries),
        "collectives": sum(entry.count for entry in entries),
        "state_bytes": bytes_per_device(state),
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def model_flops(config: Experiment, vocab_size: int) -> float:
    """Count the FLOPs of one target token's forward and backward pass.

    Three times the products of the forward pass, as the model is written: attention in
    full, though half of it is masked; no recomputation. For a transformer that is
    6 N + 12 L T D (Chowdhery et al. 2022, appendix B), N without a lookup's table.
    """
    model = config.model
    if hasattr(model, "attention"):  # kernels of platforms skip or hide products
        model = dataclasses.replace(model, attention="xla")
    plain = dataclasses.replace(config, model=model, precision=PrecisionConfig())
    task = build_task(plain, vocab_size)
    seq_len = config.data.seq_len
    row = {"tokens": jax.ShapeDtypeStruct((1, seq_len + 1), jnp.int32)}
    row["row"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(task.init, jax.random.key(0))
    forward = jax.make_jaxpr(lambda params, row: task.loss(params, row, None))
    return 3 * product_flops(forward(params, row).jaxpr) / seq_len


def product_flops(jaxpr: Jaxpr) -> float:
    """Sum 2 m n k over a program's products; a loop's body counts as often as it runs."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            shape = eqn.invars[0].aval.shape
            depth = math.prod(shape[dim] for dim in contracted)
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * depth
            continue
        inner = [product_flops(j) for j in inner_programs(eqn.params)]
        if inner:
            one = max(inner) if eqn.primitive.name == "cond" else sum(inner)
            total += one * eqn.params.get("length", 1)
    return total


def inner_programs(params: dict[str, Any]) -> list[Jaxpr]:
    """Return the programs inside an operation; of a custom gradient, the forward one."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def product_limit(width: int = 4096) -> float:
    """Measure the FLOP/s of one device in products of float32 matrices.

    Of all emulated devices together, for one already takes every core.
    """
    a = jax.random.normal(jax.random.key(0), (width, width))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    rates, began = [], time.perf_counter()
    while time.perf_counter() - began < PRODUCT_SECONDS or len(rates) < 3:
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        rates.append(2 * width**3 / (time.perf_counter() - start))
    return max(rates)


def are_emulated() -> bool:
    """Whether this process's devices share its cores, so that more are not faster."""
    return jax.default_backend() == "cpu" and jax.local_device_count() > 1


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def peak_memory_bytes() -> int:
    """Return a device's peak where it tells (GPU, TPU), else this process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
