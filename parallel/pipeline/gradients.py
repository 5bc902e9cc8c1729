"""The gradients of a pipeline: one program for all stages, which steps through a schedule.

In each tick a stage looks up its work in the tables of the schedule: run one microbatch
forward or backward through one of its chunks of layers, or do nothing. Then activations go
to the next stage, and gradients to the stage before.

A stage keeps only the inputs of its chunks. Its backward pass runs the forward pass again
from the stored input (Huang et al. 2019, 2.3).

The embedding belongs to the first stage and the head to the last. Every stage has a copy of
these outer parameters, and their gradients are summed over the stages. A tied embedding,
which both ends use, gets both of its contributions this way.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallel.collectives import psum_in_one
from parallel.pipeline.schedules import Schedule, Tables
from parallel.pipeline.stacking import STACK, outer_of
from parallel.program import STAGE, Batch, Key, Learner, Metrics, Params, split_rows

Carry = Any  # the output of a layer and the input of the next
Totals = Any  # ((gradients of outer, of layers), sums of the loss)


class Part(NamedTuple):
    """All that a stage reads during a step."""

    stages: Any  # Task.stages (lm.task.Stages)
    schedule: Schedule
    stage: jax.Array  # the number of the stage, int32[]
    outer: Params
    layers: Params  # those of this stage, [chunks, layers in a chunk, ...]
    microbatches: Batch
    key: Key
    scale: jax.Array  # factor of the loss, float32[]


def pipeline_gradients(
    learner: Learner,
    schedule: Schedule,
    axes: tuple[str, ...],
    params: Params,
    batch: Batch,
    key: Key,
    scale: jax.Array,
) -> tuple[Params, Metrics]:
    """Return `scale` * gradient and the sums of the loss; runs on each device.

    `params` holds the outer parameters and the layers of this device's stage. The gradient
    of the layers is that of this stage, summed over the batch. The gradient of the outer
    parameters and the sums are totals over all devices.
    """
    part = Part(
        learner.task.stages,
        schedule,
        jax.lax.axis_index(STAGE),
        outer_of(params),
        jax.tree.map(
            lambda x: x.reshape(schedule.num_chunks, -1, *x.shape[1:]), params[STACK]
        ),
        jax.tree.map(partial(split_rows, num=schedule.num_microbatches), batch),
        key,
        scale,
    )
    (outer_grads, layer_grads), sums = run(part)
    layer_grads = jax.tree.map(lambda g, x: g.reshape(x.shape), layer_grads, params[STACK])
    # Each stage has other layers, so their gradients are summed over the batch only.
    outer_grads, sums = psum_in_one((outer_grads, sums), (*axes, STAGE))
    return outer_grads | {STACK: psum_in_one(layer_grads, axes)}, sums


def run(part: Part) -> Totals:
    """Step through the ticks of the schedule; return the totals of this stage."""
    stages, schedule = part.stages, part.schedule
    first = jax.tree.map(lambda x: x[0], part.microbatches)
    carry = jax.eval_shape(stages.embed, part.outer, first, part.key)
    sums = jax.eval_shape(stages.loss, part.outer, carry, first)[1]
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype))

    def buffer(size: int) -> Carry:
        # At least one slot: a stage that receives nothing still reads.
        size = max(size, 1)
        return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), carry)

    def tick(held, row):
        # `inputs` and `grads` are buffers of slots. The tables name the slot that is read,
        # and the slot for the array that arrives.
        inputs, grads, totals = held
        mine = jax.tree.map(lambda column: column[part.stage], row)
        x, dy = read(inputs, mine.input), read(grads, mine.grad)
        work = [partial(one, part) for one in (idle, forward, backward)]
        onward, back, totals = jax.lax.switch(mine.op, work, mine, x, dy, totals)
        # Every stage sends and receives in every tick, even if it is idle. A collective in
        # a branch that some stages do not take would wait for ever.
        inputs = write(inputs, mine.input_arrives, send(onward, 1, schedule))
        grads = write(grads, mine.grad_arrives, send(back, -1, schedule))
        return (inputs, grads, totals), None

    totals = (zeros(part.outer), zeros(part.layers)), zeros(sums)
    held = buffer(schedule.num_inputs), buffer(schedule.num_grads), totals
    tables = jax.tree.map(jnp.asarray, schedule.tables)
    return jax.lax.scan(tick, held, tables)[0][2]


def read(buffer: Carry, slot: jax.Array) -> Carry:
    """Read a slot. If the table names none, the result is not used."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, jnp.maximum(slot, 0), 0, False), buffer
    )


def write(buffer: Carry, slot: jax.Array, value: Carry) -> Carry:
    """Write a slot. If the table names none, change nothing."""

    def one(x: jax.Array, new: jax.Array) -> jax.Array:
        index = jnp.maximum(slot, 0)
        old = jax.lax.dynamic_index_in_dim(x, index, 0, False)
        new = jnp.where(slot >= 0, new, old)
        return jax.lax.dynamic_update_index_in_dim(x, new, index, 0)

    return jax.tree.map(one, buffer, value)


def send(value: Carry, step: int, schedule: Schedule) -> Carry:
    """Send to the next stage (`step` +1) or to the stage before (`step` -1).

    With several chunks the last stage also sends to the first, and the first to the last. A
    stage to which nobody sends gets zeros.
    """
    num = schedule.num_stages
    pairs = [(stage, stage + step) for stage in range(num)]
    if schedule.num_chunks > 1:
        pairs = [(source, target % num) for source, target in pairs]
    pairs = [pair for pair in pairs if 0 <= pair[1] < num]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, STAGE, pairs), value)


# The three kinds of work, in the order of their numbers in the tables. Each returns the
# carry to send to the next stage, the gradient to send back, and the new totals.


def idle(part: Part, row: Tables, x: Carry, dy: Carry, totals: Totals):
    nothing = jax.tree.map(jnp.zeros_like, x)
    return nothing, nothing, totals


def forward(part: Part, row: Tables, x: Carry, dy: Carry, totals: Totals):
    parameters, x, batch = chunk_inputs(part, row, x)
    y = chunk_of_layers(part, row.chunk, batch, parameters, x)
    return y, jax.tree.map(jnp.zeros_like, y), totals


def backward(part: Part, row: Tables, x: Carry, dy: Carry, totals: Totals):
    (outer_grads, layer_grads), sums = totals
    parameters, x, batch = chunk_inputs(part, row, x)
    # Run the forward pass again: the first one kept only its input.
    y, pull = jax.vjp(partial(chunk_of_layers, part, row.chunk, batch), parameters, x)

    def scaled_loss(outer: Params, y: Carry):
        loss_sum, sums = part.stages.loss(outer, y, batch)
        return loss_sum * part.scale, sums

    def from_loss(outer_grads, sums):
        gradient = jax.grad(scaled_loss, (0, 1), has_aux=True)
        (d_outer, dy), found = gradient(part.outer, y)
        return dy, add(outer_grads, d_outer), add(sums, found)

    def into_embedding(dx, outer_grads):
        _, pull = jax.vjp(
            lambda outer: part.stages.embed(outer, batch, part.key), part.outer
        )
        return add(outer_grads, pull(dx)[0])

    # The last chunk gets dy from the loss, every other chunk from the next stage.
    dy, outer_grads, sums = jax.lax.cond(
        is_last(part, row), from_loss, lambda *same: (dy, *same), outer_grads, sums
    )
    grads, dx = pull(dy)
    layer_grads = jax.tree.map(
        lambda total, g: total.at[row.chunk].add(g), layer_grads, grads
    )
    # The dx of the first chunk goes into the embedding, every other to the stage before.
    outer_grads = jax.lax.cond(
        is_first(part, row), into_embedding, lambda _, same: same, dx, outer_grads
    )
    return jax.tree.map(jnp.zeros_like, y), dx, ((outer_grads, layer_grads), sums)


def chunk_inputs(part: Part, row: Tables, x: Carry) -> tuple[Params, Carry, Batch]:
    """Return the parameters, the input and the rows of the chunk in this row of tables."""
    batch = jax.tree.map(lambda rows: rows[row.microbatch], part.microbatches)
    # The first chunk receives nothing: the embedding makes its input from the rows.
    x = jax.lax.cond(
        is_first(part, row),
        lambda: part.stages.embed(part.outer, batch, part.key),
        lambda: x,
    )
    return jax.tree.map(lambda p: p[row.chunk], part.layers), x, batch


def chunk_of_layers(
    part: Part, chunk: jax.Array, batch: Batch, parameters: Params, x: Carry
) -> Carry:
    """Run the layers of a chunk; each is told its number in the whole model."""
    schedule = part.schedule
    per_chunk = part.stages.num_layers // (schedule.num_stages * schedule.num_chunks)
    start = (chunk * schedule.num_stages + part.stage) * per_chunk

    def body(x: Carry, numbered):
        layer, index = numbered
        return part.stages.layer(layer, x, batch, index, part.key), None

    return jax.lax.scan(body, x, (parameters, start + jnp.arange(per_chunk)))[0]


def is_first(part: Part, row: Tables) -> jax.Array:
    return (part.stage == 0) & (row.chunk == 0)


def is_last(part: Part, row: Tables) -> jax.Array:
    schedule = part.schedule
    return (part.stage == schedule.num_stages - 1) & (row.chunk == schedule.num_chunks - 1)


def add(a, b):
    return jax.tree.map(jnp.add, a, b)
