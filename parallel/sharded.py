"""Strategies that are a Layout: GSPMD data parallelism, and ZeRO stages 1 to 3 (FSDP).

The state is laid out by the Layout; the optimizer runs on global arrays, so any optimizer
works on shards (a global norm or an orthogonalisation included) and the compiler adds what
it needs. The gradients come from one of two places: `jit` leaves them to the compiler, and
ZeRO computes them under shard_map with its gathers and scatters written out, because the
compiler is free to choose others (on a CPU it turns a reduce-scatter into an all-reduce).

Elements per device and step, for P parameters, N devices, k microbatches:
  pmap, shard_map   all-reduce                                   2 P (N-1)/N
  jit     all-reduce each microbatch (the compiler's choice)     2 k P (N-1)/N
  zero1   reduce-scatter once, all-gather                        2 P (N-1)/N
  zero2   reduce-scatter each microbatch, all-gather             (k+1) P (N-1)/N
  fsdp    all-gather forward and backward, reduce-scatter        3 k P (N-1)/N
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import gather_in_one, psum_in_one, scatter_in_one
from parallel.layout import Layout, replicate, specs, state_shardings
from parallel.mesh import knowing, place_rows
from parallel.program import (
    AXIS,
    Batch,
    Learner,
    Metrics,
    Params,
    Program,
    TrainState,
    abstract,
    gradients,
    update,
)

Gradients = Callable[[TrainState, Batch], tuple[Params, Metrics]]


def jit_program(learner: Learner, mesh: Mesh, accumulation: int, layout: Layout) -> Program:
    """Write the global program and let GSPMD derive the collectives (pjit)."""

    def global_gradients(state: TrainState, batch: Batch) -> tuple[Params, Metrics]:
        key = learner.step_key(state.step)
        return gradients(
            learner.loss, state.params, batch, key, state.scale.value, accumulation
        )

    return layout_program(learner, mesh, layout, knowing(mesh, global_gradients))


def zero_program(
    learner: Learner, mesh: Mesh, accumulation: int, layout: Layout
) -> Program:
    """Compute gradients under shard_map, with the collectives that the layout implies."""
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    param_specs = specs(layout.params, shapes, mesh.size)
    grad_specs = specs(layout.grads, shapes, mesh.size)
    opt_specs = specs(layout.opt, shapes, mesh.size)

    def gathered_loss(shards: Params, batch: Batch, key):
        params = jax.tree.map(gather, shards, param_specs)
        return learner.loss(params, batch, key)

    def saveable(primitive, *args, **params) -> bool:
        """Keep what the task keeps, but gather whole parameters again."""
        keeps = learner.saveable is None or learner.saveable(primitive, *args, **params)
        return keeps and primitive.name != "all_gather"

    if layout.params is not replicate:
        gathered_loss = jax.checkpoint(gathered_loss, policy=saveable)

    def microbatch_reduce(grads: Params) -> Params:
        # The transpose of a gather has already scattered those of sharded parameters.
        return scatter_from_to(grads, param_specs, grad_specs)

    def local(shards: Params, batch: Batch, key, scale):
        grads, sums = gradients(
            gathered_loss, shards, batch, key, scale, accumulation, microbatch_reduce
        )
        grads = scatter_from_to(grads, grad_specs, opt_specs)
        return sum_replicated(grads, opt_specs, sums)

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(param_specs, P(AXIS), P(), P()),
        out_specs=(opt_specs, P()),
        check_vma=False,
    )

    def sharded_gradients(state: TrainState, batch: Batch) -> tuple[Params, Metrics]:
        key = learner.step_key(state.step)
        return spread(state.params, batch, key, state.scale.value)

    return layout_program(learner, mesh, layout, sharded_gradients)


def layout_program(
    learner: Learner, mesh: Mesh, layout: Layout, sum_gradients: Gradients
) -> Program:
    shapes = jax.eval_shape(learner.initial_state, jax.random.key(0))
    shardings = state_shardings(layout, shapes, mesh)
    replicated = NamedSharding(mesh, P())
    param_specs = specs(layout.params, shapes.params, mesh.size)
    opt_specs = specs(layout.opt, shapes.params, mesh.size)
    update_shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), opt_specs)
    gather_updated = jax.shard_map(
        partial(gather_from_to, source=opt_specs, target=param_specs),
        mesh=mesh,
        in_specs=(opt_specs,),
        out_specs=param_specs,
        check_vma=False,
    )

    @partial(
        jax.jit,
        in_shardings=(shardings, NamedSharding(mesh, P(AXIS))),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, sums = sum_gradients(state, batch)
        # Each device updates the shard whose optimizer state it holds.
        params = jax.lax.with_sharding_constraint(state.params, update_shardings)
        state, metrics = update(learner, state, params, grads, sums)
        params = jax.lax.with_sharding_constraint(state.params, update_shardings)
        return state._replace(params=gather_updated(params)), metrics

    return Program(
        init=jax.jit(learner.initial_state, out_shardings=shardings),
        step=step,
        params=lambda state: state.params,
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract(learner.initial_state, shardings),
    )


def sharded_dim(spec: P) -> int | None:
    return next((dim for dim, axis in enumerate(spec) if axis == AXIS), None)


def sharded_dims(specs, tree) -> list[int | None]:
    leaves = jax.tree.structure(tree).flatten_up_to(specs)
    return [sharded_dim(spec) for spec in leaves]


def gather(x: jax.Array, spec: P) -> jax.Array:
    if (dim := sharded_dim(spec)) is None:
        return x
    return jax.lax.all_gather(x, AXIS, axis=dim, tiled=True)


def scatter_from_to(grads: Params, source, target) -> Params:
    """Reduce-scatter this device's partial sums where the target is sharded at last."""
    pairs = zip(sharded_dims(source, grads), sharded_dims(target, grads), strict=True)
    return on_dims(scatter_in_one, grads, [None if a is not None else b for a, b in pairs])


def gather_from_to(params: Params, source, target) -> Params:
    """Gather this device's shards where the target is whole."""
    pairs = zip(sharded_dims(source, params), sharded_dims(target, params), strict=True)
    return on_dims(gather_in_one, params, [a if b is None else None for a, b in pairs])


def on_dims(collective: Callable, tree, dims: list[int | None]):
    """Apply a collective over a list of arrays to those leaves that have a dim."""
    leaves, structure = jax.tree.flatten(tree)
    chosen = [i for i, dim in enumerate(dims) if dim is not None]
    changed = collective([leaves[i] for i in chosen], [dims[i] for i in chosen])
    for i, leaf in zip(chosen, changed, strict=True):
        leaves[i] = leaf
    return structure.unflatten(leaves)


def sum_replicated(grads: Params, specs, sums: Metrics) -> tuple[Params, Metrics]:
    """Sum over replicas what no reduce-scatter has summed: whole gradients, the metrics."""
    leaves, structure = jax.tree.flatten(grads)
    dims = sharded_dims(specs, grads)
    whole = [i for i, dim in enumerate(dims) if dim is None]
    summed, sums = psum_in_one(([leaves[i] for i in whole], sums))
    for i, leaf in zip(whole, summed, strict=True):
        leaves[i] = leaf
    return structure.unflatten(leaves), sums
