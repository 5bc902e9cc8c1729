"""Replica strategies: every device runs the whole step, with each collective visible.

One function of one replica's view, spread by `shard_map` or by `pmap`. A small table says
which fields of the state exist once (the same on every replica) and which exist once per
replica; it becomes P() / P(axis) for shard_map and None / 0 for pmap.

`check_vma=False`: under the default, the gradient of replicated parameters is already
summed over the axis by autodiff, and the psum below would count it again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import psum_in_one
from parallel.exchange import all_reduce
from parallel.mesh import place_rows
from parallel.program import (
    AXIS,
    Batch,
    Key,
    Learner,
    Metrics,
    Program,
    TrainState,
    abstract,
    gradients,
    update,
)

ONCE, EACH = "once", "each"
PLACEMENT = TrainState(step=ONCE, params=ONCE, opt=ONCE, comm=EACH, scale=ONCE)
STATE_SPECS = TrainState(*[P(AXIS) if field == EACH else P() for field in PLACEMENT])
STATE_AXES = TrainState(*[0 if field == EACH else None for field in PLACEMENT])


def replica_step(
    learner: Learner, exchange: optax.GradientTransformation, accumulation: int
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return the step as one replica sees it: its rows in, the common update out."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = learner.step_key(state.step)
        grads, sums = gradients(
            learner.loss, state.params, batch, key, state.scale.value, accumulation
        )
        grads, comm = exchange.update(grads, state.comm)
        sums = psum_in_one(sums)
        state = state._replace(comm=comm)
        return update(learner, state, state.params, grads, sums)

    return step


def shard_map_program(
    learner: Learner,
    mesh: Mesh,
    accumulation: int = 1,
    exchange: optax.GradientTransformation | None = None,
) -> Program:
    exchange = exchange or all_reduce()
    one_replica = replica_step(learner, exchange, accumulation)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # shard_map keeps the replica dim of per-replica fields, at size 1.
        comm = jax.tree.map(lambda x: x[0], state.comm)
        state, metrics = one_replica(state._replace(comm=comm), batch)
        comm = jax.tree.map(lambda x: x[None], state.comm)
        return state._replace(comm=comm), metrics

    spread = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(STATE_SPECS, P(AXIS)),
        out_specs=(STATE_SPECS, P()),
        check_vma=False,
    )
    init, state = initial(learner, exchange, mesh)
    return Program(
        init=init,
        step=jax.jit(spread, donate_argnums=0),
        params=lambda state: state.params,
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=state,
    )


def pmap_program(
    learner: Learner,
    mesh: Mesh,
    accumulation: int = 1,
    exchange: optax.GradientTransformation | None = None,
) -> Program:
    exchange = exchange or all_reduce()
    step = jax.pmap(
        replica_step(learner, exchange, accumulation),
        axis_name=AXIS,
        in_axes=(STATE_AXES, 0),
        out_axes=(STATE_AXES, None),
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    num_local = len(mesh.local_devices)

    def place(batch: dict[str, np.ndarray]) -> Batch:
        """Stack the rows as pmap wants them, [devices, rows per device, ...]."""
        stacked = {
            name: rows.reshape(num_local, -1, *rows.shape[1:])
            for name, rows in batch.items()
        }
        return place_rows(mesh, stacked)

    def global_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Join what pmap leaves as this process's own arrays, without copying."""
        state, metrics = step(state, batch)
        return multihost_utils.host_local_array_to_global_array(
            state, mesh, STATE_SPECS
        ), metrics

    init, state = initial(learner, exchange, mesh)
    return Program(
        init=init,
        step=step if jax.process_count() == 1 else global_step,
        params=lambda state: state.params,
        place=place,
        mesh=mesh,
        abstract=state,
    )


def initial(
    learner: Learner, exchange: optax.GradientTransformation, mesh: Mesh
) -> tuple[Callable[[Key], TrainState], TrainState]:
    """Return a jitted init, laid out as PLACEMENT says, and its abstract result."""

    def init(key: Key) -> TrainState:
        state = learner.initial_state(key)
        comm = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (mesh.size, *x.shape)),
            exchange.init(state.params),
        )
        return state._replace(comm=comm)

    def named(spec: P, field):
        return jax.tree.map(lambda _: NamedSharding(mesh, spec), field)

    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = TrainState(*map(named, STATE_SPECS, shapes))
    return jax.jit(init, out_shardings=shardings), abstract(init, shardings)
