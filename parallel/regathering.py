"""FSDP's loss: the parameters of a layer are whole only while that layer runs.

Each device holds a shard of each large parameter. A piece of the model (the embedding, a
layer, the loss) casts its shards to the compute type, gathers them and runs. For the
backward pass it keeps what the model's own autodiff and rematerialisation keep, but shards
in the place of gathered parameters. The backward pass gathers them again (Zhao et al. 2023,
FSDP, 3.2).

The last piece keeps its gathered parameters, because its backward pass comes at once. A
task without stages is one piece, the last. The backward pass of an embedding reads no
parameters. A tied embedding is gathered for the first piece and again for the last, so that
it need not stay whole in between.

Gathers carry the compute type. Gradients are summed in the type of the parameters, float32,
as under the other strategies.
"""

from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from parallel.collectives import gather_in_one, on_tensor, scatter_in_one
from parallel.layout import only, shard_axis, sharded_dim
from parallel.pipeline.stacking import LAYERS, STACK, outer_of
from parallel.program import TENSOR, Batch, Key, Metrics, Params

Loss = Callable[[Params, Batch, Key], tuple[jax.Array, Metrics]]
Carry = Any  # the output of a piece and the input of the next
Piece = Callable[..., Any]  # (parameters, carry, batch, ...) -> carry
Arrays = list[jax.Array]


def regathering_loss(task: Any, mesh: Mesh, specs: Params) -> Loss:
    """Return the task's loss as a function of the shards that `specs` describe.

    It runs under shard_map. Its gradient is summed over the shard axis where a parameter is
    sharded, and is this device's own where it is not.
    """
    piece = partial(on_shards, mesh=mesh, cast=task.cast)
    if task.stages is None:
        whole = piece(
            lambda params, _, batch, key: last(task.loss(params, batch, key)), specs
        )
        return lambda shards, batch, key: whole(shards, (), batch, key)

    num_layers, embed, layer, loss = task.stages
    outer = outer_of(specs)
    enter = piece(
        lambda params, _, batch, key: embed(params, batch, key), outer, again=True
    )
    # Under jit, so that all layers are traced once. XLA's partitioner (JAX 0.10, for TPUs)
    # aborts on a kernel that is split over `tensor` inside a function that is called twice.
    apart = mesh.shape.get(TENSOR, 1) > 1 and mesh.devices.flat[0].platform != "cpu"
    one = jax.jit(piece(layer, layer_specs(specs), again=True), inline=apart)
    leave = piece(lambda params, carry, batch: last(loss(params, carry, batch)), outer)

    def staged_loss(shards: Params, batch: Batch, key: Key):
        def body(carry: Carry, numbered):
            params, index = numbered
            return one(params, carry, batch, index, key), None

        outer = outer_of(shards)
        carry = enter(outer, (), batch, key)
        if STACK in shards:
            numbered = shards[STACK], jnp.arange(num_layers)
            carry, _ = jax.lax.scan(body, carry, numbered)
        else:
            for index in range(num_layers):
                carry, _ = body(carry, (shards[LAYERS][index], jnp.int32(index)))
        return leave(outer, carry, batch)

    return staged_loss


def last(result: tuple[jax.Array, Metrics]) -> tuple[jax.Array, Metrics]:
    """Tell the backward pass that the sums have no gradient of their own."""
    loss_sum, sums = result
    return loss_sum, jax.lax.stop_gradient(sums)


def layer_specs(specs: Params) -> Params:
    """Return the specs of one layer; a stack is never sharded along its first dim."""
    if STACK not in specs:
        return specs[LAYERS][0]
    return jax.tree.map(lambda spec: P(*spec[1:]), specs[STACK], is_leaf=is_spec)


def is_spec(x: Any) -> bool:
    return isinstance(x, P)


def on_shards(
    piece: Piece, specs: Params, mesh: Mesh, cast: Callable, again: bool = False
) -> Piece:
    """Return the piece as a function of the shards of its parameters.

    With `again` the backward pass gathers again; without, gathered parameters are kept.
    """
    spec_list, structure = jax.tree.flatten(specs, is_leaf=is_spec)

    def run(shards: Params, carry: Carry, *rest) -> Carry:
        every = structure.flatten_up_to(shards)
        shapes = jax.eval_shape(partial(gathered, mesh, cast, spec_list), every)
        reads = leaves_read(piece, structure.unflatten(shapes), carry, *rest)

        def of_read(params: Arrays, carry: Carry, *rest) -> Carry:
            given = iter(params)
            leaves = [
                next(given) if read else jnp.zeros(x.shape, x.dtype)
                for x, read in zip(shapes, reads, strict=True)
            ]
            return piece(structure.unflatten(leaves), carry, *rest)

        read_specs, arrays = (list(compress(xs, reads)) for xs in (spec_list, every))
        gather = partial(gathered, mesh, cast, read_specs)
        scatter = partial(scattered, mesh, read_specs)
        return regathered(of_read, gather, scatter, again)(arrays, carry, rest)

    return run


def leaves_read(piece: Piece, params: Params, *rest) -> list[bool]:
    """Tell which parameters the piece reads; the loss, say, reads no positions."""
    jaxpr = jax.make_jaxpr(piece)(params, *rest).jaxpr
    live = set(variables(jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if live.intersection(eqn.outvars):
            live.update(variables(eqn.invars))
    return [var in live for var in jaxpr.invars[: len(jax.tree.leaves(params))]]


def variables(atoms: list) -> list:
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def regathered(function: Piece, gather: Callable, scatter: Callable, again: bool) -> Piece:
    """Return `function` of gathered parameters as one of shards; see `on_shards`.

    The barriers let no gather begin before the input of its piece is there. A compiler
    would otherwise gather all layers at once, before the loop over microbatches, or would
    find that the backward pass gathers what the forward pass did, and keep that.
    """

    @jax.custom_vjp
    def run(shards: Arrays, carry: Carry, rest: tuple) -> Carry:
        return function(gather(shards), carry, *rest)

    def forward(shards: Arrays, carry: Carry, rest: tuple):
        batch, *others = rest
        if jax.tree.leaves(carry):
            now, carry = jax.lax.optimization_barrier((shards, carry))
        else:
            now, batch = jax.lax.optimization_barrier((shards, batch))

        def of_gathered(params: Arrays, carry: Carry) -> Carry:
            return function(params, carry, batch, *others)

        y, pull = jax.vjp(of_gathered, gather(now), carry)
        if again:  # VJP.args_res: the parameters that the backward pass reads
            pull.args_res[0] = [
                shard if isinstance(x, jax.Array) else x
                for shard, x in zip(shards, pull.args_res[0], strict=True)
            ]
        return y, pull

    def backward(pull: Callable, dy: Carry):
        if again:
            now, dy = jax.lax.optimization_barrier((pull.args_res[0], dy))
            pull.args_res[0] = gather(now)
        d_params, d_carry = pull(dy)
        # A compiler would otherwise add up whole gradients over microbatches, and scatter
        # their sum once: fewer bytes, but the memory of a whole float32 gradient.
        return jax.lax.optimization_barrier(scatter(d_params)), d_carry, None

    run.defvjp(forward, backward)
    return run


def gathered(mesh: Mesh, cast: Callable, specs: list[P], shards: Arrays) -> Arrays:
    """Cast the shards, then gather those that are shards; some may be absent."""
    return over_shards(gather_in_one, mesh, specs, cast(shards))


def scattered(mesh: Mesh, specs: list[P], grads: Arrays) -> Arrays:
    """Reduce-scatter the gradients of gathered parameters, in float32."""
    grads = [grad.astype(jnp.float32) for grad in grads]
    return over_shards(scatter_in_one, mesh, specs, grads)


def over_shards(collective: Callable, mesh: Mesh, specs: list[P], leaves: list) -> list:
    """Apply a collective over the shard axis; parts over `tensor` stay apart."""
    axis = shard_axis(mesh.shape)
    dims = [sharded_dim(spec, axis) for spec in specs]
    chosen = [
        i for i, x in enumerate(leaves) if dims[i] is not None and isinstance(x, jax.Array)
    ]
    ends = [only({TENSOR}, specs[i]) for i in chosen]
    of_chosen = partial(collective, dims=[dims[i] for i in chosen], axis=axis)
    changed = on_tensor(mesh, of_chosen, (ends,), ends)([leaves[i] for i in chosen])
    leaves = list(leaves)
    for i, leaf in zip(chosen, changed, strict=True):
        leaves[i] = leaf
    return leaves
