"""Counting as a Program: each step adds a batch's tuples to a table spread over devices.

It trains models whose parameters are functions of counts. The table is in the `params` of
the state. The `params` of the Program are the model's: it makes them from the joined counts
of all devices. A checkpoint holds the joined table, so a run can continue under another
strategy and on other devices.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.counting.table import (
    Table,
    count_tuples,
    deal,
    empty_table,
    join,
    packing,
    part_capacity,
    unpack,
)
from parallel.mesh import batch_axes, batch_degree, place_rows
from parallel.program import Batch, Key, Metrics, Params, Program, TrainState
from parallel.replicas import EACH, ONCE, placed, spread, spread_pmap, stack_rows

PLACEMENT = TrainState(step=ONCE, params=EACH, opt=ONCE, comm=ONCE, scale=ONCE)


class Counting(NamedTuple):
    """The tuples that are counted, and the function that makes the model from counts."""

    # (batch, its step int32[]) -> int32[N, width], bool[N]: which of them count
    tuples: Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]
    finish: Callable[[np.ndarray, np.ndarray], Params]  # (distinct [M, width], counts [M])
    width: int  # integers in a tuple
    limit: int  # the integers are below it
    capacity: int  # the most distinct tuples, on all devices together


def counting_program(counting: Counting, strategy: str, mesh: Mesh) -> Program:
    """Return the Program that counts under `strategy`: jit, pmap or shard_map.

    Raises ValueError for tuples that cannot be packed.
    """
    axes = () if strategy == "jit" else batch_axes(mesh)
    degree = batch_degree(mesh) if axes else 1
    one_replica = partial(count_step, counting, axes)
    room = part_capacity(counting.capacity, degree)
    num_words = packing(counting.width, counting.limit)[2]

    def init(key: Key) -> TrainState:
        parts = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (degree, *x.shape)), empty_table(room, num_words)
        )
        return TrainState(jnp.int32(0), parts, (), (), ())

    def portable(state: TrainState) -> TrainState:
        return state._replace(params=join(state.params, counting.capacity))

    def adopt(state: TrainState) -> TrainState:
        return state._replace(params=deal(state.params, degree, room))

    everywhere = PLACEMENT._replace(params=ONCE)
    abstract = placed(init, mesh, PLACEMENT if axes else everywhere)
    saved = placed(lambda key: portable(init(key)), mesh, everywhere)
    laid_out, whole = (jax.tree.map(lambda x: x.sharding, s) for s in (abstract, saved))
    joined = jax.jit(portable, out_shardings=whole)
    steps = {
        "jit": lambda: jit_step(one_replica, mesh, laid_out),
        "pmap": lambda: spread_pmap(one_replica, mesh, PLACEMENT),
        "shard_map": lambda: jax.jit(
            spread(one_replica, mesh, PLACEMENT), donate_argnums=0
        ),
    }
    return Program(
        init=jax.jit(init, out_shardings=laid_out),
        step=steps[strategy](),
        params=lambda state: finish(counting, state.params),
        place=partial(stack_rows if strategy == "pmap" else place_rows, mesh),
        mesh=mesh,
        abstract=abstract,
        portable=joined,
        adopt=jax.jit(adopt, out_shardings=laid_out),
        saved=saved,
    )


def count_step(
    counting: Counting, axes: tuple[str, ...], state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """Add the tuples of one replica; the metrics are sums over all replicas."""
    tuples_Nn, valid_N = counting.tuples(batch, state.step)
    table = count_tuples(state.params, tuples_Nn, valid_N, counting.limit, axes)
    sums = {
        "tokens": jnp.sum(valid_N, dtype=jnp.int32),
        "distinct": jnp.sum(table.counts > 0, dtype=jnp.int32),
        "lost": table.lost,
    }
    sums = jax.lax.psum(sums, axes) if axes else sums
    return state._replace(step=state.step + 1, params=table), sums


def jit_step(one_replica: Callable, mesh: Mesh, laid_out: TrainState) -> Callable:
    """Count the global batch as one device would; the compiler adds the collectives."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        whole = state._replace(params=jax.tree.map(lambda x: x[0], state.params))
        new, metrics = one_replica(whole, batch)
        return new._replace(params=jax.tree.map(lambda x: x[None], new.params)), metrics

    rows = NamedSharding(mesh, P(batch_axes(mesh)))
    return jax.jit(
        step,
        in_shardings=(laid_out, rows),
        out_shardings=(laid_out, NamedSharding(mesh, P())),
        donate_argnums=0,
    )


def finish(counting: Counting, parts: Table) -> Params:
    """Make the model from the counts of all devices, on the host of every process.

    Only one device of a process joins the counts: the others would do the same work.
    """
    everywhere = multihost_utils.process_allgather(parts, tiled=True)
    table = jax.jit(join, static_argnums=1)(everywhere, counting.capacity)
    if lost := int(table.lost):
        raise ValueError(
            f"{lost} distinct tuples found no room in a table of {counting.capacity}; "
            "give a larger capacity"
        )
    num = int(jnp.sum(table.counts > 0))
    tuples = unpack(table.words[:num], counting.width, counting.limit)
    return counting.finish(np.asarray(tuples), np.asarray(table.counts[:num], np.int64))
