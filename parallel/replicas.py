"""Replica strategies: every device runs the whole step, with each collective visible.

One function is the step as one replica sees it; `shard_map` or `pmap` runs it on every
device. A small table (`placement`) says for each field of the state whether it exists once,
the same on every replica, or once for each replica. The table becomes P() and P(axes) for
shard_map, None and 0 for pmap. Strategies whose replicas differ for a while
(parallel/local.py) only have another table.

`check_vma=False`: under the default, autodiff already sums the gradient of replicated
parameters over the axis, and the psum below would sum it again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import psum_in_one
from parallel.exchange.transforms import Exchange, all_reduce
from parallel.mesh import batch_axes, batch_degree, place_rows
from parallel.program import (
    Batch,
    Key,
    Learner,
    Metrics,
    Params,
    Program,
    TrainState,
    divided,
    divisor,
    gradients,
    split_rows,
    total_weight,
    update,
    weight_of,
)
from parallel.readings import NORMS
from parallel.regroup import dealt, num_given

ONCE, EACH = "once", "each"
PLACEMENT = TrainState(step=ONCE, params=ONCE, opt=ONCE, comm=EACH, scale=ONCE)
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def exchanged_gradients(
    learner: Learner,
    exchange: Exchange,
    state: TrainState,
    batch: Batch,
    accumulation: int,
    every: int,
    axes: tuple[str, ...],
    measure_noise: bool,
    watch_norms: bool,
) -> tuple[Params, Metrics, Any]:
    """Return the mean gradient, the sums over replicas, and the exchange's new state.

    `watch_norms` adds the norm of each replica's own gradient to the sums.

    The gradients of `every` microbatches are added up before they are exchanged (delayed
    update, Ott et al. 2018, 3.2). `every` divides `accumulation`.
    """
    key, scale = learner.step_key(state.step), state.scale.value

    def one(batch: Batch, comm: Any, index):
        grads, sums = gradients(
            learner.task.loss,
            state.params,
            batch,
            key,
            scale,
            every,
            measure_noise=measure_noise,
        )
        if watch_norms:
            sums |= {NORMS: own_norm(grads, sums, axes)}
        sums = psum_in_one(sums, axes)
        means, comm = exchange.update(
            grads,
            comm,
            state.params,
            weight=total_weight(sums, state.scale),
            key=jax.random.fold_in(learner.exchange_key(state.step), index),
        )
        return (means, sums), comm

    if every == accumulation:
        (means, sums), comm = one(batch, state.comm, 0)
        return means, sums, comm

    num_groups = accumulation // every
    groups = jax.tree.map(partial(split_rows, num=num_groups), batch)
    first = jax.tree.map(lambda x: x[0], groups)
    zeros = jax.tree.map(
        jnp.zeros_like, jax.eval_shape(one, first, state.comm, jnp.int32(0))[0]
    )

    def body(carry, numbered):
        (total, comm), (group, index) = carry, numbered
        (means, sums), comm = one(group, comm, index)
        # Groups have different numbers of tokens: their means are weighted by them.
        part = divided(means, 1.0 / total_weight(sums, state.scale)), sums
        return (jax.tree.map(jnp.add, total, part), comm), None

    ((total, sums), comm), _ = jax.lax.scan(
        body, (zeros, state.comm), (groups, jnp.arange(num_groups))
    )
    return divided(total, total_weight(sums, state.scale)), sums, comm


def own_norm(grads: Params, sums: Metrics, axes: tuple[str, ...]) -> jax.Array:
    """Return float32[W], the norm of this replica's mean gradient in its own place."""
    norm = optax.tree.norm(grads) / divisor(weight_of(sums))
    places = jnp.arange(jax.lax.axis_size(axes))
    return jnp.where(places == jax.lax.axis_index(axes), norm, 0.0)


def replica_step(
    learner: Learner,
    exchange: Exchange,
    accumulation: int,
    every: int,
    axes: tuple[str, ...],
    measure_noise: bool,
    watch_norms: bool,
) -> Step:
    """Return the step as one replica sees it, from its rows to the common update."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = learner.scaling.mark(state.scale, batch)
        means, sums, comm = exchanged_gradients(
            learner, exchange, state, batch, accumulation, every, axes, measure_noise,
            watch_norms,
        )  # fmt: skip
        new, metrics = update(learner, state, state.params, means, sums)
        # What a skipped step brought is not to be remembered.
        keep = partial(jnp.where, metrics["finite"])
        return new._replace(comm=jax.tree.map(keep, comm, state.comm)), metrics

    return step


def shard_map_program(
    learner: Learner,
    mesh: Mesh,
    accumulation: int = 1,
    exchange: optax.GradientTransformation | None = None,
    every: int = 0,
    measure_noise: bool = True,
    watch_norms: bool = False,
) -> Program:
    exchange = optax.with_extra_args_support(exchange or all_reduce(axes=batch_axes(mesh)))
    every, axes = every or accumulation, batch_axes(mesh)
    one_replica = replica_step(
        learner, exchange, accumulation, every, axes, measure_noise, watch_norms
    )
    return Program(
        step=jax.jit(spread(one_replica, mesh, PLACEMENT), donate_argnums=0),
        params=lambda state: state.params,
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        **beginnings(learner, exchange, mesh),
    )


def spread(step: Step, mesh: Mesh, placement: TrainState, metrics: Any = ONCE) -> Step:
    """Run one replica's step on every device of the mesh, with the state as placed.

    `metrics` is the placement of the metrics: those of EACH are [W], one of each replica.
    """

    def each(change: Callable, places: Any, tree: Any) -> Any:
        """Apply a function to the fields that exist once for each replica."""
        return jax.tree.map(
            lambda place, field: jax.tree.map(change, field) if place == EACH else field,
            places,
            tree,
        )

    def with_replica_dim(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # shard_map keeps the replica dim of per-replica fields, at size 1.
        state, told = step(each(lambda x: x[0], placement, state), batch)
        return each(lambda x: x[None], (placement, metrics), (state, told))

    specs = placed_specs((placement, metrics), mesh)
    return jax.shard_map(
        with_replica_dim,
        mesh=mesh,
        in_specs=(specs[0], P(batch_axes(mesh))),
        out_specs=specs,
        check_vma=False,
    )


def pmap_program(
    learner: Learner,
    mesh: Mesh,
    accumulation: int = 1,
    exchange: optax.GradientTransformation | None = None,
    every: int = 0,
    measure_noise: bool = True,
    watch_norms: bool = False,
) -> Program:
    (axis,) = batch_axes(mesh)
    exchange = optax.with_extra_args_support(exchange or all_reduce(axes=(axis,)))
    every = every or accumulation
    one_replica = replica_step(
        learner, exchange, accumulation, every, (axis,), measure_noise, watch_norms
    )
    return Program(
        step=spread_pmap(one_replica, mesh, PLACEMENT),
        params=lambda state: state.params,
        place=partial(stack_rows, mesh),
        mesh=mesh,
        **beginnings(learner, exchange, mesh),
    )


def spread_pmap(step: Step, mesh: Mesh, placement: TrainState) -> Step:
    """Do what `spread` does with pmap; the batch is stacked by device (`stack_rows`)."""
    (axis,) = batch_axes(mesh)
    state_axes = jax.tree.map(lambda place: 0 if place == EACH else None, placement)
    spread_step = jax.pmap(
        step,
        axis_name=axis,
        in_axes=(state_axes, 0),
        out_axes=(state_axes, None),
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )

    def global_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Join the arrays that pmap leaves in this process, without copying."""
        state, metrics = spread_step(state, batch)
        return multihost_utils.host_local_array_to_global_array(
            state, mesh, placed_specs(placement, mesh)
        ), metrics

    return spread_step if jax.process_count() == 1 else global_step


def stack_rows(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """Stack this process's rows as pmap wants them, [devices, rows per device, ...]."""
    stacked = {
        name: rows.reshape(len(mesh.local_devices), -1, *rows.shape[1:])
        for name, rows in batch.items()
    }
    return place_rows(mesh, stacked)


def placed_specs(placement: Any, mesh: Mesh) -> Any:
    """Return the PartitionSpec of each entry of a placement."""
    return jax.tree.map(
        lambda place: P(batch_axes(mesh)) if place == EACH else P(), placement
    )


def beginnings(learner: Learner, exchange: Exchange, mesh: Mesh) -> dict[str, Any]:
    """Return the fields of a Program that make its first state."""
    num_replicas = batch_degree(mesh)

    def begin(state: TrainState) -> TrainState:
        comm = for_each(exchange.init(state.params), num_replicas)
        return state._replace(comm=comm)

    def init(key: Key) -> TrainState:
        return begin(learner.initial_state(key))

    def regrouped(state: TrainState) -> TrainState:
        return state._replace(comm=dealt(state.comm, num_replicas))

    abstract = placed(init, mesh, PLACEMENT)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    laid_out = jax.jit(begin, out_shardings=shardings, donate_argnums=0)
    regroup = jax.jit(regrouped, out_shardings=shardings)

    def adopt(state: TrainState) -> TrainState:
        if not jax.tree.leaves(state.comm):
            return laid_out(state)
        return state if num_given(state.comm) == num_replicas else regroup(state)

    return {
        "init": jax.jit(init, out_shardings=shardings),
        "abstract": abstract,
        "adopt": adopt,
    }


def for_each(tree, num_replicas: int):
    """Give each replica its own copy, in a new first dim."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_replicas, *x.shape)), tree)


def placed(
    init: Callable[[Key], TrainState], mesh: Mesh, placement: TrainState
) -> TrainState:
    """Return the shapes, types and shardings of what `init` makes; allocate nothing."""

    def field(spec: P, shapes):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )

    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(field, placed_specs(placement, mesh), shapes)
