"""Pipeline parallelism: GPipe, 1F1B and interleaved 1F1B over a `stage` mesh axis.

Each stage holds a part of the layers and runs the microbatches through it; activations go
to the next stage and their gradients to the one before. All stages run one program: a scan
over the ticks of a static schedule (parallel/schedules.py), in which each looks up what it
has to do. Collectives lie outside of that choice, so that every stage meets in them.

The backward pass of a stage computes its forward pass again from the stashed input (Huang
et al. 2019, 2.3), so all that waits at a stage are inputs and gradients of one microbatch
each. Embedding and head belong to the first and last stage; each stage has a copy of these
outer parameters, and the sum over stages of their gradients serves tied ones too.

The state has the layers stacked, [L, ...], split over stages, in the order of the devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import psum_in_one
from parallel.mesh import batch_axes, place_rows
from parallel.program import (
    STAGE,
    Batch,
    Key,
    Learner,
    Metrics,
    Params,
    Program,
    TrainState,
    abstract,
    split_rows,
    update,
)
from parallel.schedules import Schedule, build_schedule
from parallel.stacking import STACK, build_stacking

Carry = Any  # what goes from layer to layer


def pipeline_program(
    learner: Learner, mesh: Mesh, accumulation: int, name: str, num_chunks: int = 1
) -> Program:
    """Train over (data, stage), the batch in `accumulation` microbatches.

    `name` is one of schedules.ORDERS; `num_chunks` is taken by interleaving alone. Raises
    ValueError if the task cannot be cut into as many equal parts.
    """
    num_stages = mesh.shape[STAGE]
    schedule = build_schedule(name, num_stages, accumulation, num_chunks)
    num_layers = learner.stages and learner.stages.num_layers
    check_cut(num_layers, num_stages, schedule.num_chunks)
    order = device_order(num_layers, num_stages, schedule.num_chunks)
    stacking = build_stacking(learner, order)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), stacking.specs)
    saved_shardings = jax.tree.map(partial(spread_over_stages, mesh), stacking.saved)
    axes = batch_axes(mesh)
    spread = jax.shard_map(
        partial(pipeline_gradients, learner, schedule, axes),
        mesh=mesh,
        in_specs=(stacking.specs.params, P(axes), P(), P()),
        out_specs=(stacking.specs.params, P()),
        check_vma=False,
    )

    @partial(
        jax.jit,
        in_shardings=(shardings, NamedSharding(mesh, P(axes))),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = learner.step_key(state.step)
        grads, sums = spread(state.params, batch, key, state.scale.value)
        return update(learner, state, state.params, grads, sums)

    return Program(
        init=jax.jit(stacking.init, out_shardings=shardings),
        step=step,
        params=jax.jit(
            lambda state: stacking.portable(state).params,
            out_shardings=saved_shardings.params,
        ),
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract(stacking.init, shardings),
        portable=jax.jit(stacking.portable, out_shardings=saved_shardings),
        adopt=jax.jit(stacking.adopt, out_shardings=shardings),
        saved=abstract(learner.initial_state, saved_shardings),
    )


def check_cut(num_layers: int | None, num_stages: int, num_chunks: int) -> None:
    """Raise ValueError where the layers make no equal parts; None: there is no cutting."""
    if num_layers is None:
        raise ValueError(
            f"parallel.stage is {num_stages}, but this task cannot be cut into stages; "
            "choose a strategy without the axis stage, such as jit or fsdp"
        )
    parts = num_stages * num_chunks
    if num_layers % parts:
        chunks = f" x parallel.chunks {num_chunks} = {parts}" if num_chunks > 1 else ""
        raise ValueError(
            f"model.num_layers {num_layers} is not divisible by parallel.stage {num_stages}"
            f"{chunks}; change one of them"
        )


def device_order(num_layers: int, num_stages: int, num_chunks: int) -> np.ndarray:
    """Return the layers in the order of the devices: those of a stage lie together."""
    layers = np.arange(num_layers).reshape(num_chunks, num_stages, -1)
    return layers.swapaxes(0, 1).ravel()


def spread_over_stages(mesh: Mesh, x: jax.ShapeDtypeStruct) -> NamedSharding:
    """Split what is saved, where a dim allows it: no device need hold a whole model."""
    degree = mesh.shape[STAGE]
    dim = next((d for d, size in enumerate(x.shape) if size % degree == 0), None)
    axes = [STAGE if d == dim else None for d in range(len(x.shape))]
    return NamedSharding(mesh, P(*axes))


def pipeline_gradients(
    learner: Learner,
    schedule: Schedule,
    axes: tuple[str, ...],
    params: Params,
    batch: Batch,
    key: Key,
    scale: jax.Array,
) -> tuple[Params, Metrics]:
    """Return `scale` * gradient and the loss's sums, as one device sees it.

    The layers in `params` are its own; so are those of the gradient. The outer gradients
    and the sums are those of all devices.
    """
    chunks = schedule.num_chunks
    outer = {name: child for name, child in params.items() if name != STACK}
    layers = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), params[STACK])
    microbatches = jax.tree.map(partial(split_rows, num=schedule.num_microbatches), batch)
    work = stage_work(learner, schedule, outer, layers, microbatches, key, scale)
    (outer_grads, layer_grads), sums = run(learner, schedule, work, outer, layers,
                                           microbatches, key)  # fmt: skip
    layer_grads = jax.tree.map(lambda g, x: g.reshape(x.shape), layer_grads, params[STACK])
    outer_grads, sums = psum_in_one((outer_grads, sums), (*axes, STAGE))
    return outer_grads | {STACK: psum_in_one(layer_grads, axes)}, sums


def run(learner, schedule: Schedule, work: Callable, outer, layers, microbatches, key):
    """Go through the ticks; return this stage's gradients and sums."""
    first = jax.tree.map(lambda x: x[0], microbatches)
    carry = jax.eval_shape(learner.stages.embed, outer, first, key)
    sums = jax.eval_shape(learner.stages.loss, outer, carry, first)[1]
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype))

    def buffer(size: int) -> Carry:
        return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), carry)

    def tick(held, row):
        inputs, grads, totals = held
        mine = jax.tree.map(lambda column: column[jax.lax.axis_index(STAGE)], row)
        x, dy = read(inputs, mine.input), read(grads, mine.grad)
        onward, back, totals = work(mine, x, dy, totals)
        inputs = write(inputs, mine.input_arrives, send(onward, 1, schedule))
        grads = write(grads, mine.grad_arrives, send(back, -1, schedule))
        return (inputs, grads, totals), None

    held = (
        buffer(max(schedule.num_inputs, 1)),
        buffer(max(schedule.num_grads, 1)),
        ((zeros(outer), zeros(layers)), zeros(sums)),
    )
    return jax.lax.scan(tick, held, jax.tree.map(jnp.asarray, schedule.tables))[0][2]


def read(buffer: Carry, slot: jax.Array) -> Carry:
    """Read a slot; of none, whatever lies in the first."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, jnp.maximum(slot, 0), 0, False), buffer
    )


def write(buffer: Carry, slot: jax.Array, value: Carry) -> Carry:
    """Write a slot; nothing where there is none."""

    def one(x: jax.Array, new: jax.Array) -> jax.Array:
        index = jnp.maximum(slot, 0)
        old = jax.lax.dynamic_index_in_dim(x, index, 0, False)
        new = jnp.where(slot >= 0, new, old)
        return jax.lax.dynamic_update_index_in_dim(x, new, index, 0)

    return jax.tree.map(one, buffer, value)


def send(value: Carry, step: int, schedule: Schedule) -> Carry:
    """Send to the stage `step` further; from one end to the other only between chunks."""
    num = schedule.num_stages
    pairs = [(stage, stage + step) for stage in range(num)]
    if schedule.num_chunks > 1:
        pairs = [(source, target % num) for source, target in pairs]
    pairs = [pair for pair in pairs if 0 <= pair[1] < num]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, STAGE, pairs), value)


def stage_work(learner, schedule: Schedule, outer, layers, microbatches, key, scale):
    """Return (row of the tables, input, gradient of the output, totals) -> what it sends
    onward and back, and the new totals ((outer, layers) gradients, sums)."""
    stages, stage = learner.stages, jax.lax.axis_index(STAGE)
    per_chunk = stages.num_layers // (schedule.num_stages * schedule.num_chunks)

    def chunk_of_layers(parameters, x: Carry, batch: Batch, chunk) -> Carry:
        start = (chunk * schedule.num_stages + stage) * per_chunk

        def body(x: Carry, numbered):
            layer, index = numbered
            return stages.layer(layer, x, batch, index, key), None

        return jax.lax.scan(body, x, (parameters, start + jnp.arange(per_chunk)))[0]

    def beginning(row, x: Carry):
        """Return the chunk's parameters, input and rows, and where it is in the whole."""
        batch = jax.tree.map(lambda rows: rows[row.microbatch], microbatches)
        first = (stage == 0) & (row.chunk == 0)
        last = (stage == schedule.num_stages - 1) & (row.chunk == schedule.num_chunks - 1)
        x = jax.lax.cond(first, lambda: stages.embed(outer, batch, key), lambda: x)
        return jax.tree.map(lambda p: p[row.chunk], layers), x, batch, first, last

    def idle(row, x: Carry, dy: Carry, totals):
        nothing = jax.tree.map(jnp.zeros_like, x)
        return nothing, nothing, totals

    def forward(row, x: Carry, dy: Carry, totals):
        parameters, x, batch, _, _ = beginning(row, x)
        y = chunk_of_layers(parameters, x, batch, row.chunk)
        return y, jax.tree.map(jnp.zeros_like, y), totals

    def backward(row, x: Carry, dy: Carry, totals):
        (outer_grads, layer_grads), sums = totals
        parameters, x, batch, first, last = beginning(row, x)
        y, pull = jax.vjp(
            lambda p, x: chunk_of_layers(p, x, batch, row.chunk), parameters, x
        )

        def scaled_loss(outer, y):
            loss_sum, sums = stages.loss(outer, y, batch)
            return loss_sum * scale, sums

        def from_loss(outer_grads, sums):
            (d_outer, dy), found = jax.grad(scaled_loss, (0, 1), has_aux=True)(outer, y)
            return dy, add(outer_grads, d_outer), add(sums, found)

        def into_embedding(dx, outer_grads):
            _, pull = jax.vjp(lambda outer: stages.embed(outer, batch, key), outer)
            return add(outer_grads, pull(dx)[0])

        dy, outer_grads, sums = jax.lax.cond(
            last, from_loss, lambda *same: (dy, *same), outer_grads, sums
        )
        grads, dx = pull(dy)
        layer_grads = jax.tree.map(
            lambda total, g: total.at[row.chunk].add(g), layer_grads, grads
        )
        outer_grads = jax.lax.cond(
            first, into_embedding, lambda _, same: same, dx, outer_grads
        )
        return jax.tree.map(jnp.zeros_like, y), dx, ((outer_grads, layer_grads), sums)

    def work(row, x: Carry, dy: Carry, totals):
        return jax.lax.switch(row.op, (idle, forward, backward), row, x, dy, totals)

    return work


def add(a, b):
    return jax.tree.map(jnp.add, a, b)
