"""The costs of a step: bytes from its compiled program, FLOPs from its model."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh

from experiments.costs.machine import chip_memory_bytes
from lm.task import Task
from parallel.cost.ledger import Entry
from parallel.layout import bytes_per_device
from parallel.program import SLICE, TrainState


def compiled_costs(
    compiled: jax.stages.Compiled, entries: list[Entry], state: TrainState
) -> dict[str, int | float]:
    """Read what a step sends and holds on one device, in bytes; nothing is run.

    `entries` are the step's ledger; `slice_bytes` cross the slow links between slices, and
    are part of `sent_bytes`. `state` gives shapes and shardings. The peak is the
    compiled program's: arguments, results and temporaries together.
    """
    memory = compiled.memory_analysis()
    return {
        "sent_bytes": sum(entry.sent_bytes for entry in entries),
        "slice_bytes": sum(entry.sent_bytes for entry in entries if SLICE in entry.axes),
        "collectives": sum(entry.count for entry in entries),
        "state_bytes": bytes_per_device(state),
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def absent_costs(compiled: jax.stages.Compiled, mesh: Mesh) -> dict[str, int | float]:
    """Read what the compiler of an absent device says: memory by kind, FLOPs, bytes moved.

    `result_bytes` are those of results that do not lie where the arguments lay. The peak is
    the smaller of two bounds: the total, in which the temporaries of a loop count up to a
    fifth more than lie there at once, and what the compiler says, in which arrays count
    that never leave the core. In `compiled_flops` and `accessed_bytes`, the body of a loop
    counts once.
    """
    memory, counts = compiled.memory_analysis(), compiled.cost_analysis() or {}
    kinds = {
        "argument_bytes": memory.argument_size_in_bytes,
        "result_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }
    total, most = sum(kinds.values()), memory.peak_memory_in_bytes + kinds["code_bytes"]
    return kinds | {
        "total_bytes": total,
        "peak_bytes": min(total, most),
        "chip_bytes": chip_memory_bytes(mesh.devices.flat[0]),
        "compiled_flops": counts.get("flops", math.nan),
        "accessed_bytes": counts.get("bytes accessed", math.nan),
    }


def flops_per_token(task: Task, seq_len: int) -> float:
    """Count the FLOPs of one target token's forward and backward pass.

    This is three times the products of the forward pass. Attention counts in full, though
    half of it is masked; recomputation does not count. For a transformer the sum is
    6 N + 12 L T D (Chowdhery et al. 2022, appendix B), where N leaves out embedding tables
    that are only looked up.
    """
    tokens = jax.ShapeDtypeStruct((1, seq_len + 1), jnp.int32)
    row = {"tokens": tokens, "segments": tokens}
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
    """Return the programs inside an operation; for a custom gradient, the forward pass."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found
