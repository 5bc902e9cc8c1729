"""A stage's gradients: one program for all stages, that goes through a schedule's ticks.

Each stage looks up in the tables what it has to do in a tick. Activations go to the next
stage and their gradients to the one before; these collectives lie outside of the choice,
so that every stage meets in them, and an idle one computes nothing.

The backward pass of a stage computes its forward pass again from the stashed input (Huang
et al. 2019, 2.3), so all that waits at a stage are inputs and gradients of one microbatch
each. Embedding and head belong to the first and last stage; each stage has a copy of these
outer parameters, and the sum over stages of their gradients serves tied ones too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from parallel.collectives import psum_in_one
from parallel.pipeline.schedules import Schedule
from parallel.pipeline.stacking import STACK, outer_of
from parallel.program import STAGE, Batch, Key, Learner, Metrics, Params, split_rows

Carry = Any  # what goes from layer to layer


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
    outer = outer_of(params)
    layers = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), params[STACK])
    microbatches = jax.tree.map(partial(split_rows, num=schedule.num_microbatches), batch)
    work = stage_work(learner, schedule, outer, layers, microbatches, key, scale)
    (outer_grads, layer_grads), sums = run(
        learner, schedule, work, outer, layers, microbatches, key
    )
    layer_grads = jax.tree.map(lambda g, x: g.reshape(x.shape), layer_grads, params[STACK])
    outer_grads, sums = psum_in_one((outer_grads, sums), (*axes, STAGE))
    return outer_grads | {STACK: psum_in_one(layer_grads, axes)}, sums


def run(
    learner: Learner,
    schedule: Schedule,
    work: Callable,
    outer: Params,
    layers: Params,
    microbatches: Batch,
    key: Key,
) -> tuple[tuple[Params, Params], Metrics]:
    """Go through the ticks; return this stage's (outer, layers) gradients and sums."""
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


def stage_work(
    learner: Learner,
    schedule: Schedule,
    outer: Params,
    layers: Params,
    microbatches: Batch,
    key: Key,
    scale: jax.Array,
) -> Callable:
    """Return what a stage does in a tick.

    (row of the tables, input, gradient of the output, totals) -> what it sends onward and
    back, and the new totals: ((outer, layers) gradients, sums).
    """
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
