"""Strategies that are a Layout: GSPMD data parallelism, ZeRO stages 1 to 3 (FSDP), tensor.

The Layout says where the state lives. The optimizer runs on global arrays, and the compiler
adds the collectives that it needs. So any optimizer works on shards, even one with a global
norm or an orthogonalisation.

There are two ways to the gradients. `jit` leaves them to the compiler. ZeRO computes them
under shard_map with its gathers and scatters written out, because the compiler may choose
other collectives (on a CPU it turns a reduce-scatter into an all-reduce).

The axis `tensor` always stays with the compiler, which splits each layer as its parameters
are split. The collectives over the other axes go through `on_tensor`; without it, the
compiler would first gather their operands over `tensor`.

Elements per device and step, for P parameters, N devices, k microbatches:
  pmap, shard_map   all-reduce                                   2 P (N-1)/N
  jit     all-reduce each microbatch (the compiler's choice)     2 k P (N-1)/N
  zero1   reduce-scatter once, all-gather                        2 P (N-1)/N
  zero1_whole   as zero1; the matrices inside layers whole (parallel/forms/dealing.py), and
          zeros where N does not divide the number of matrices of a shape
  zero2   reduce-scatter each microbatch, all-gather             (k+1) P (N-1)/N
  fsdp    all-gather of layers forward and backward, of the embedding and the head where
          they are read (parallel/regathering.py); reduce-scatter of each. For layers of P
          elements                                               3 k P (N-1)/N
  hsdp    as fsdp over N = fsdp, and one all-reduce of P/N over data
  tensor  over data, an all-reduce of P/tensor. Over tensor, all-reduces of the residual
          stream: two in the forward pass of each layer (Megatron's), and in the backward
          pass one for each product that reads the stream (Megatron adds these up first and
          has two). In the loss, a few numbers per token
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.collectives import gather_in_one, on_tensor, psum_in_one, scatter_in_one
from parallel.forms.dealing import Form, usual, whole_matrices
from parallel.layout import (
    Layout,
    only,
    shard_axis,
    sharded_dims,
    specs,
    state_shardings,
)
from parallel.mesh import batch_axes, knowing, place_rows
from parallel.offload import fetching, hosted, saved_near
from parallel.program import (
    TENSOR,
    Batch,
    Key,
    Learner,
    Metrics,
    Params,
    Program,
    TrainState,
    abstract,
    divided,
    gradients,
    total_weight,
    update,
)
from parallel.regathering import regathering_loss

Gradients = Callable[[TrainState, Batch], tuple[Params, Metrics]]


def jit_program(learner: Learner, mesh: Mesh, accumulation: int, layout: Layout) -> Program:
    """Write the program of one device; GSPMD derives the collectives (pjit)."""

    def global_gradients(state: TrainState, batch: Batch) -> tuple[Params, Metrics]:
        key = learner.step_key(state.step)
        return gradients(
            learner.task.loss,
            state.params,
            batch,
            key,
            state.scale.value,
            accumulation,
            measure_noise=accumulation > 1,
        )

    return layout_program(learner, mesh, layout, knowing(mesh, global_gradients))


def zero_program(
    learner: Learner,
    mesh: Mesh,
    accumulation: int,
    layout: Layout,
    form: Form | None = None,
) -> Program:
    """Compute gradients under shard_map, with the collectives that the layout implies."""
    form = form or usual(learner)
    shapes = jax.eval_shape(learner.task.init, jax.random.key(0))
    param_specs, grad_specs, _ = layout_specs(learner, mesh, layout, shapes)
    _, formed_specs, opt_specs = layout_specs(
        learner, mesh, layout, jax.eval_shape(form.to, shapes)
    )
    shard, batch_over = shard_axis(mesh.shape), batch_axes(mesh)
    tensor_specs = only({TENSOR}, param_specs)

    gathers = any(dim is not None for dim in sharded_dims(param_specs, shapes, shard))
    loss = learner.task.loss
    if gathers:
        loss = regathering_loss(learner.task, mesh, param_specs)

    def microbatch_reduce(grads: Params) -> Params:
        # The backward pass has already scattered those of sharded parameters.
        scatter = partial(
            scatter_from_to, source=param_specs, target=grad_specs, axis=shard
        )
        grads = on_tensor(mesh, scatter, (tensor_specs,), tensor_specs)(grads)
        if layout.grads is layout.params:  # nothing is scattered here
            return grads
        # A compiler would otherwise add up whole gradients, and scatter their sum once.
        return jax.lax.optimization_barrier(grads)

    def last_reduce(grads: Params, sums: Metrics) -> tuple[Params, Metrics]:
        grads = scatter_from_to(form.to(grads), formed_specs, opt_specs, shard)
        return sum_replicated(grads, opt_specs, sums, shard, batch_over)

    def local(shards: Params, batch: Batch, key, scale):
        grads, sums = gradients(
            loss,
            shards,
            batch,
            key,
            scale,
            accumulation,
            microbatch_reduce,
            measure_noise=not gathers,  # else they are sums over devices already
        )
        ends = (tensor_specs, P()), (only({TENSOR}, opt_specs), P())
        return on_tensor(mesh, last_reduce, *ends)(grads, sums)

    spread = jax.shard_map(
        local,
        mesh=mesh,
        # Left to the compiler: `tensor`, if it has any work.
        axis_names={axis for axis, n in mesh.shape.items() if axis != TENSOR or n == 1},
        in_specs=(only(batch_over, param_specs), P(batch_over), P(), P()),
        out_specs=(only(batch_over, opt_specs), P()),
        check_vma=False,
    )

    def sharded_gradients(state: TrainState, batch: Batch) -> tuple[Params, Metrics]:
        key = learner.step_key(state.step)
        return spread(state.params, batch, key, state.scale.value)

    return layout_program(learner, mesh, layout, sharded_gradients, form)


def whole_matrix_program(
    learner: Learner, mesh: Mesh, accumulation: int, layout: Layout
) -> Program:
    """Deal the matrices inside layers to devices, whole; ValueError if there are none."""
    form = whole_matrices(learner, mesh.shape[shard_axis(mesh.shape)])
    return zero_program(learner, mesh, accumulation, layout, form)


def layout_specs(learner: Learner, mesh: Mesh, layout: Layout, shapes: Params) -> list:
    """Return the specs of trees of this shape: parameters, gradients, optimizer state."""
    dims = learner.task.tensor_dims
    return [specs(rule, shapes, mesh.shape, dims) for rule in layout]


def layout_program(
    learner: Learner,
    mesh: Mesh,
    layout: Layout,
    sum_gradients: Gradients,
    form: Form | None = None,
) -> Program:
    form = form or usual(learner)
    inner = form.learner
    shardings, saved_shardings = (
        state_shardings(
            layout,
            jax.eval_shape(each.initial_state, jax.random.key(0)),
            mesh,
            learner.task.tensor_dims,
        )
        for each in (inner, learner)
    )
    state_shapes = jax.eval_shape(inner.initial_state, jax.random.key(0))
    held = hosted(shardings, state_shapes) if learner.offload else shardings
    fetch, store = fetching(shardings, held)
    replicated = NamedSharding(mesh, P())
    shapes = jax.eval_shape(learner.task.init, jax.random.key(0))
    param_specs, _, opt_specs = layout_specs(
        learner, mesh, layout, jax.eval_shape(form.to, shapes)
    )
    formed_shardings, update_shardings = (
        jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree)
        for tree in (param_specs, opt_specs)
    )
    gather_updated = jax.shard_map(
        partial(
            gather_from_to,
            source=opt_specs,
            target=param_specs,
            axis=shard_axis(mesh.shape),
        ),
        mesh=mesh,
        in_specs=(opt_specs,),
        out_specs=param_specs,
        check_vma=False,
    )

    @partial(
        jax.jit,
        in_shardings=(held, NamedSharding(mesh, P(batch_axes(mesh)))),
        out_shardings=(held, replicated),
        donate_argnums=0,
    )
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, sums = sum_gradients(state, learner.scaling.mark(state.scale, batch))
        # Each device updates the shard whose optimizer state it holds.
        params = jax.lax.with_sharding_constraint(form.to(state.params), formed_shardings)
        params = jax.lax.with_sharding_constraint(params, update_shardings)
        means = divided(grads, total_weight(sums, state.scale))
        state = fetch(state, means)
        state, metrics = update(inner, state, params, means, sums)
        params = jax.lax.with_sharding_constraint(state.params, update_shardings)
        state = state._replace(params=form.back(gather_updated(params)))
        return store(state), metrics

    def init(key: Key) -> TrainState:
        return store(inner.initial_state(key))

    program = Program(
        init=jax.jit(init, out_shardings=held),
        step=step,
        params=lambda state: state.params,
        place=lambda batch: place_rows(mesh, batch),
        mesh=mesh,
        abstract=abstract(inner.initial_state, held),
    )
    if inner is not learner:
        program = program._replace(
            portable=jax.jit(form.portable, out_shardings=saved_shardings),
            adopt=jax.jit(form.adopt, out_shardings=shardings),
            saved=abstract(learner.initial_state, saved_shardings),
        )
    return program if held is shardings else saved_near(program, shardings, held)


def scatter_from_to(grads: Params, source, target, axis: str) -> Params:
    """Reduce-scatter this device's partial sums of the leaves that end up sharded."""
    pairs = zip(*(sharded_dims(s, grads, axis) for s in (source, target)), strict=True)
    dims = [after if before is None else None for before, after in pairs]
    return on_dims(scatter_in_one, grads, dims, axis)


def gather_from_to(params: Params, source, target, axis: str) -> Params:
    """Gather this device's shards of the leaves that end up whole."""
    pairs = zip(*(sharded_dims(s, params, axis) for s in (source, target)), strict=True)
    dims = [before if after is None else None for before, after in pairs]
    return on_dims(gather_in_one, params, dims, axis)


def on_dims(collective: Callable, tree, dims: list[int | None], axis: str):
    """Apply a collective over a list of arrays to those leaves that have a dim."""
    leaves, structure = jax.tree.flatten(tree)
    chosen = [i for i, dim in enumerate(dims) if dim is not None]
    changed = collective([leaves[i] for i in chosen], [dims[i] for i in chosen], axis)
    for i, leaf in zip(chosen, changed, strict=True):
        leaves[i] = leaf
    return structure.unflatten(leaves)


def sum_replicated(
    grads: Params, specs, sums: Metrics, shard: str, axes: tuple[str, ...]
) -> tuple[Params, Metrics]:
    """Sum over the axes of the batch whatever no reduce-scatter has summed.

    Whole gradients and metrics are summed over all axes, sharded gradients over all axes
    but `shard`.
    """
    leaves, structure = jax.tree.flatten(grads)
    dims = sharded_dims(specs, grads, shard)
    whole = [i for i, dim in enumerate(dims) if dim is None]
    parts = [i for i, dim in enumerate(dims) if dim is not None]
    others = tuple(axis for axis in axes if axis != shard)
    summed, sums = psum_in_one(([leaves[i] for i in whole], sums), axes)
    if parts and others:
        summed += psum_in_one([leaves[i] for i in parts], others)
    for i, leaf in zip(whole + parts, summed, strict=False):
        leaves[i] = leaf
    return structure.unflatten(leaves), sums
