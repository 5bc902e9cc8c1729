"""The memory of a device, part by part, from shapes as numbers.

The state (parameters, optimizer, exchange) is exact: the shapes and the Layout tell it. The
temporaries of a step follow from what the programs of parallel/ keep, and from how XLA for
TPUs compiles them; docs/planner.md has the errors. All sizes are bytes of one device.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
from jax.sharding import Mesh

from parallel.cost.saved import activation_bytes
from parallel.exchange.config import build_exchange
from parallel.layout import Rule, replicate, shard_axis, specs
from parallel.local import PLANS
from parallel.meetings import first_fragments
from parallel.mesh import batch_degree
from parallel.pipeline.schedules import promised_inputs
from parallel.pipeline.stacking import LAYERS, STACK
from parallel.program import STAGE, TENSOR

PARTS = (
    "parameters",
    "optimizer",
    "exchange",
    "gradients",
    "activations",
    "gathered",
    "logits",
    "workspace",
    "program",
)


def layers_in_flight(
    schedule: str, num_layers: int, stages: int, microbatches: int, chunks: int = 1
) -> float:
    """Return the layers whose activations the first stage holds at once.

    A layer counts as often as microbatches wait in it. gpipe: all microbatches; 1f1b: as
    many as there are stages; interleaved: a little more (Narayanan et al. 2021b, 2.2;
    Korthikanti et al. 2022, 4.2.3).
    """
    p, m, v = stages, microbatches, chunks
    if schedule == "gpipe":
        return num_layers / p * m
    layers = num_layers / p * min(p, m)
    return layers if schedule == "1f1b" else layers * (1 + (p - 1) / (p * v))


def held_bytes(
    tree: Any, specs: Any, degrees: Mapping[str, int], num_layers: int = 1
) -> float:
    """Return the bytes of a device's shards: shapes, and the PartitionSpec of each.

    A leaf of a numbered layer counts `num_layers` times.
    """
    leaves, structure = jax.tree.flatten_with_path(tree)
    total = 0.0
    for (path, x), spec in zip(leaves, structure.flatten_up_to(specs), strict=True):
        parts = math.prod(degrees.get(axis, 1) for axis in spec if axis)
        times = num_layers if is_numbered(path) else 1
        total += times * x.size * x.dtype.itemsize / parts
    return total


def in_layers(path: tuple, *names: str) -> bool:
    return any(getattr(entry, "key", None) in names for entry in path)


def is_numbered(path: tuple) -> bool:
    """Tell whether a leaf is that of one layer, and not of a stack of layers."""
    keys = [getattr(entry, "key", None) for entry in path]
    return any(key == LAYERS and type(n) is int for key, n in pairwise(keys))


def first_of_layers(tree: Any) -> Any:
    """Return the tree with the first of its layers alone, if it has any."""

    def has_layers(node: Any) -> bool:
        # An optimizer names one layer of a stack so too, which has no numbers.
        return isinstance(node, dict) and 0 in node.get(LAYERS, ())

    def first(node: Any) -> Any:
        return node | {LAYERS: {0: node[LAYERS][0]}} if has_layers(node) else node

    return jax.tree.map(first, tree, is_leaf=has_layers)


def state_bytes(model: Any, config: Any, mesh: Mesh) -> dict[str, float]:
    """Return the bytes of the parts of the state on a device.

    `model` is a Model (parallel/cost/plan.py), `config` a ParallelConfig.
    """
    layout = config.row.layout
    return {
        "parameters": lying_bytes(model, model.params, layout.params, mesh),
        "optimizer": lying_bytes(model, model.opt, layout.opt, mesh),
        "exchange": exchange_state_bytes(model.params, config, mesh),
    }


def lying_bytes(model: Any, tree: Any, rule: Rule, mesh: Mesh) -> float:
    """Return the bytes of a tree of the model's on a device, if it lies by this rule."""
    if STAGE in mesh.shape:
        return staged_bytes(tree, mesh.shape[STAGE])
    # All layers lie alike, so that one of them stands for all.
    tree = first_of_layers(tree)
    over = specs(rule, tree, mesh.shape, model.tensor_dims)
    return held_bytes(tree, over, mesh.shape, model.num_layers)


def update_bytes(model: Any, config: Any, mesh: Mesh, optimizer: float) -> float:
    """Return what an update reads and writes: parameters and the optimizer's state, and
    the gradients, which it only reads. A device updates what it has the state of.
    """
    updated = lying_bytes(model, model.params, config.row.layout.opt, mesh)
    return 3 * updated + 2 * optimizer


def staged_bytes(tree: Any, stages: int) -> float:
    """Return the bytes of a stage: its share of the layers, and all that is outside."""
    return sum(
        x.size * x.dtype.itemsize / (stages if in_layers(path, LAYERS, STACK) else 1)
        for path, x in jax.tree.leaves_with_path(tree)
    )


def exchange_state_bytes(params: Any, config: Any, mesh: Mesh) -> float:
    """Return what a replica keeps of the exchange: residuals, late sums, agreed copies."""
    if not config.row.exchanges:
        return 0.0
    exchange = build_exchange(config.exchange, config.exchanging(mesh))
    if config.row.exact or not config.row.synchronous:
        return whole_bytes(jax.eval_shape(exchange.init, params))
    plan = PLANS[config.strategy](config.local)
    return whole_bytes(jax.eval_shape(lambda x: first_fragments(x, exchange, plan), params))


def whole_bytes(tree: Any) -> float:
    return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)))


def temporary_bytes(model: Any, config: Any, mesh: Mesh, remat: str) -> dict[str, float]:
    """Return the bytes of what a step holds beside the state, at its fullest moment.

    That is the backward pass of the loss, or of a layer that is computed again: all
    activations are there, and the gradients of the microbatches before.
    """
    if STAGE in mesh.shape:
        return staged_temporaries(model, config, mesh, remat)
    tensor = mesh.shape.get(TENSOR, 1)
    rows = model.rows / batch_degree(mesh) / config.accumulation
    tokens = rows * model.seq_len
    looped, gathers = model.looped, config.row.layout.params is not replicate
    kept = activation_bytes(
        model.saved[remat], tokens, model.num_layers, tensor, traced=looped, padded=looped
    )
    logits = logits_bytes(model, rows, tensor)
    beside = workspace_bytes(model, tokens, tensor, remat, looped)
    stream = model.carry * tokens
    if looped:
        # In a loop over many chunks, the gradient of logits lies beside them.
        if not gathers and model.seq_len > 2 * model.loss_chunk:
            logits *= 1 + compute_bytes(model) / 4
        # The loss has the last layer's output and its gradient, and ends before the
        # backward pass of layers begins.
        kept += 2 * stream
        beside = max(0.0, beside - logits - 2 * stream)
    elif gathers:
        # A gather waits for the gradient of its layer, so no layer runs beside the loss.
        beside = 0.0
    return {
        "activations": kept + stream,
        "logits": logits,
        "gradients": gradient_bytes(model, config, mesh, tensor),
        "gathered": weight_bytes(model, config, mesh, tensor),
        "workspace": beside,
    }


def compute_bytes(model: Any) -> int:
    return 4 if model.compute == "float32" else 2


def logits_bytes(model: Any, rows: float, tensor: int) -> float:
    """Return the logits of a chunk of positions, in float32."""
    return 4 * rows * model.loss_chunk * model.vocab_size / tensor


def gradient_bytes(model: Any, config: Any, mesh: Mesh, tensor: int) -> float:
    """Return the sums over microbatches, a microbatch's own, and their sum over devices.

    The latter does not lie where its operand lay, unless layers are split over `tensor`.
    Where layers run in a loop, a replicated gradient of theirs is not there at the fullest
    moment.
    """
    layout, size = config.row.layout, compute_bytes(model)
    whole, several = model.param_bytes / tensor, config.accumulation > 1
    outer = (model.cut.outer if model.cut else 0.0) / tensor
    n, devices = mesh.shape[shard_axis(mesh.shape)], batch_degree(mesh)
    if layout.params is not replicate:  # scattered layer by layer, but for the head's
        apart = devices > n and tensor == 1
        return whole / n * (1 + several + apart) + outer
    if layout.grads is not replicate:  # whole ones in the compute type, then scattered
        return whole / n + whole * size / 4
    if model.looped:
        return whole * several + outer
    apart = layout.opt is replicate and several and devices > 1 and tensor == 1
    return whole * (1 + apart) + outer * size / 4


def weight_bytes(model: Any, config: Any, mesh: Mesh, tensor: int) -> float:
    """Return the parameters in the compute type, or what FSDP holds of them: the head.

    Where layers are written out, the barrier before a gather copies a shard, in float32
    and in the compute type, and the head's gradient is there in both types.
    """
    size, whole = compute_bytes(model), model.param_bytes / tensor
    if config.row.layout.params is replicate:
        return 0.0 if size == 4 else whole * size / 4
    if model.cut is None:
        return whole * (1 + size / 4)
    head = model.cut.outer / tensor * size / 4
    if model.looped:
        return head
    return whole / mesh.shape[shard_axis(mesh.shape)] * (1 + size / 4) + 2 * head


def again(model: Any, remat: str) -> bool:
    """Tell whether layers are computed again; the first policy is that of not doing so."""
    return remat != next(iter(model.saved))


def workspace_bytes(
    model: Any, tokens: float, tensor: int, remat: str, looped: bool
) -> float:
    """Return what a layer needs that is computed again: all that its backward pass reads,
    its widest array in float32, and that array's gradient.

    In a loop, the layer's input lies in the stack of all, and a gradient takes the place of
    an array that is not read again. A gated MLP has two wide gradients, and one such place;
    it has none if the wide products lie in the stack, too.
    """
    if not again(model, remat):
        return 0.0
    everything = next(iter(model.saved.values()))
    layer = activation_bytes(everything, tokens, 1, tensor, padded=looped)
    size, wide = compute_bytes(model), model.wide * tokens / tensor
    if looped:
        more = model.gated + (len(model.saved[remat]) > 1)
        return layer - model.carry * tokens + more * size * wide
    return layer + (4 + size) * wide


def staged_temporaries(model: Any, config: Any, mesh: Mesh, remat: str) -> dict[str, float]:
    """Return what a stage of a pipeline holds: the inputs of its chunks, and one chunk.

    The backward pass of a chunk runs its forward pass again.
    """
    stages, size = mesh.shape[STAGE], compute_bytes(model)
    chunks, num = config.num_chunks(mesh), config.accumulation
    rows = model.rows / batch_degree(mesh) / num
    tokens = rows * model.seq_len
    inputs = promised_inputs(config.strategy, stages, num, chunks)
    layers = model.num_layers / stages
    kept = activation_bytes(
        model.saved[remat], tokens, layers / chunks, traced=True, padded=True
    )
    held = staged_bytes(model.params, stages)
    return {
        "activations": (inputs + 2) * model.carry * tokens + kept,
        # Inside the branch of the last stage, the gradient does not take their place.
        "logits": 2 * logits_bytes(model, rows, 1),
        "gradients": 2 * held,
        "gathered": held * size / 4 if size < 4 else 0.0,
        "workspace": 2 * 4 * model.wide * tokens
        + workspace_bytes(model, tokens, 1, remat, looped=False),
    }
