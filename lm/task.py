"""A Task: what is learnt, as pure functions over plain pytrees.

A Task is all that the rest of the code sees of a model. Strategies, optimizers and
checkpoints know only a nested dict of arrays, the parameters, and functions of them. Models
written in Flax NNX become such functions here, and only here: `next_token_task` splits a
module once into its graph and its parameters.

Only sums leave a Task. `loss` returns the loss summed over the target tokens of a batch,
and the other sums that are of use (`sums["loss"]`, `sums["tokens"]`, ...). The division by
the number of tokens happens once, where the sums of the whole batch meet.

A batch may have `weights`, one for each token as a target. Then every term of the loss, and
of `sums["loss"]`, is multiplied by the weight of its token, and `sums["weight"]`, the sum
of the weights, is the divisor. `sums["tokens"]` stays a count.

A batch may have the logits of a teacher (lm/compress/distil.py). Then the returned loss is
a mixture with the divergence from them; `sums["loss"]` stays that of the targets.

Shapes: B batch, T time, D model width, V vocabulary, S cache length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.losses import Teacher, cross_entropy
from lm.norms import activation_squares, square

Params = Any  # nested dict of arrays
# tokens_BT+1, segments_BT+1 (0: padding) and row_B; weighted, also weights_BT+1 (float32)
Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]
Cache = Any
Key = jax.Array


class Stages(NamedTuple):
    """The loss of a Task in pieces, so that a pipeline can put its layers on other devices.

    `embed`, then `layer` for each layer in turn, then `loss` give together what the Task's
    own `loss` gives. A pytree of arrays, the carry, goes from one piece to the next; it has
    the same shapes between all layers. All pieces also see the batch.

    The parameters of the layers lie in {"layers": {0: ..., 1: ...}}, or stacked, [L, ...],
    in {"scanned_layers": ...}. All layers have parameters of the same shapes. The other
    parameters are the outer ones; `embed` and `loss` may share some of them.
    """

    num_layers: int  # L
    embed: Callable[[Params, Batch, Key | None], Any]  # (outer, batch, key) -> carry
    # (one layer's parameters, carry, batch, its index int32[], key) -> carry
    layer: Callable[[Params, Any, Batch, jax.Array, Key | None], Any]
    loss: Callable[[Params, Any, Batch], tuple[jax.Array, Sums]]  # (outer, carry, batch)


class Task(NamedTuple):
    """The pure functions of one learning problem.

    A change of the problem, such as another precision, is a function Task -> Task.

    `key` is one key for the whole step. Each row draws its random numbers from `key` and
    its own number in the global batch, `batch["row"]`, so they do not depend on how rows
    are spread over devices. A key of None means no randomness (no dropout).
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Batch, Key | None], tuple[jax.Array, Sums]]
    logits: Callable[[Params, Batch], jax.Array]  # logits_BTV
    cache: Callable[[int, int], Cache]  # (batch size, length) -> empty cache
    decode: Callable[..., tuple[jax.Array, Cache]]  # (params, cache, tokens_BT, start_B)
    # (params, cache, source_BS) -> the cache with which `decode` begins; None: no encoder.
    encode: Callable[[Params, Cache, jax.Array], Cache] | None = None
    # The types in which the functions above use the parameters, leaf by leaf. They cast by
    # themselves; a strategy that casts first moves fewer bytes.
    cast: Callable[[Params], Params] = lambda params: params
    # How parameters are split over devices that share a layer: (regular expression of the
    # path, the dim counted from the end, the number of parts that it can be cut into, the
    # name of that number for error messages).
    tensor_dims: tuple[tuple[str, int, int, str], ...] = ()
    stages: Stages | None = None  # None: the Task cannot be cut
    # The top-level names of the parameters inside layers. The matrices there map features
    # to features, and optimizers call them hidden. Embeddings and the head lie elsewhere.
    hidden: tuple[str, ...] = ()
    context: int | None = None  # the most tokens that a text may have; None: any number


def next_token_task(
    build: Callable[[Key], nnx.Module],
    loss_chunk: int,
    smoothing: float = 0.0,
    trace_norms: bool = False,
) -> Task:
    """Return the Task of predicting each token from the tokens before it.

    `build(key)` makes an NNX module with the methods `hidden`, `head`, `cache` and
    `decode`. It takes long to trace; under `jax.jit` this happens once. A module with an
    encoder has `encode` too. `trace_norms` needs `outputs`, and adds the sums of
    lm/norms.py to those of the loss. lm/models/recurrent.py and
    lm/models/seq2seq/recurrent.py are examples of such modules.

    A target counts if it lies in the same document as the token before it. If `hidden`
    returns only the last positions of a row, only their targets are predicted.
    `loss_chunk` is the number of positions whose logits exist at once (0: all).
    """
    abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
    graph, encodes = nnx.graphdef(abstract), hasattr(abstract, "encode")

    @jax.jit  # traced once, however often its shapes are asked for
    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def hidden(params: Params, batch: Batch, key: Key | None):
        module = nnx.merge(graph, params)
        return module, module.hidden(*inputs(batch), row_keys(batch, key))

    def loss(params: Params, batch: Batch, key: Key | None):
        traced = {}
        if trace_norms:
            module, measure = nnx.merge(graph, params), partial(square, targets_mask(batch))
            arrays = *inputs(batch), row_keys(batch, key)
            x_BTD, squares_L = module.outputs(*arrays, measure)
            traced = activation_squares(squares_L)
        else:
            module, x_BTD = hidden(params, batch, key)
        loss_sum, sums = next_token_loss(x_BTD, module.head, batch, loss_chunk, smoothing)
        return loss_sum, sums | traced

    def logits(params: Params, batch: Batch) -> jax.Array:
        module, x_BTD = hidden(params, batch, None)
        return module.head(x_BTD)

    def cache(batch_size: int, length: int) -> Cache:
        return nnx.merge(graph, jax.eval_shape(init, jax.random.key(0))).cache(
            batch_size, length
        )

    def decode(params: Params, cache: Cache, tokens_BT, start_B):
        return nnx.merge(graph, params).decode(cache, tokens_BT, start_B)

    def encode(params: Params, cache: Cache, source_BS) -> Cache:
        return nnx.merge(graph, params).encode(cache, source_BS)

    return Task(init, loss, logits, cache, decode, encode if encodes else None)


def with_params(task: Task, change: Callable[[Params], Params]) -> Task:
    """Let every function of a task see `change` of the parameters that it is given.

    A piece of the task (`Stages`) is given a part of them: one layer's, or the outer ones.
    So `change` takes any part, and treats a leaf by its place inside its layer.
    """
    stages = task.stages and task.stages._replace(
        embed=lambda outer, batch, key: task.stages.embed(change(outer), batch, key),
        layer=lambda layer, carry, batch, index, key: task.stages.layer(
            change(layer), carry, batch, index, key
        ),
        loss=lambda outer, carry, batch: task.stages.loss(change(outer), carry, batch),
    )
    encode = task.encode and (
        lambda params, cache, source: task.encode(change(params), cache, source)
    )
    return task._replace(
        stages=stages,
        encode=encode,
        loss=lambda params, batch, key: task.loss(change(params), batch, key),
        logits=lambda params, batch: task.logits(change(params), batch),
        decode=lambda params, cache, tokens, start: task.decode(
            change(params), cache, tokens, start
        ),
    )


def with_embeddings(task: Task, ids: np.ndarray, vectors: np.ndarray) -> Task:
    """Let rows `ids` of the embedding begin as `vectors` [n, D], the others as usual.

    One factor scales all vectors, so that their elements have the root mean square of the
    embedding that `init` draws. Directions and relative lengths stay, and the layers get
    inputs of the size that they are initialised for.
    """

    def init(key: Key) -> Params:
        params = task.init(key)
        table_VD = params["embedding"]
        size = jnp.sqrt(jnp.mean(table_VD**2)) / np.sqrt(np.mean(vectors**2))
        scaled = (vectors * size).astype(table_VD.dtype)
        return params | {"embedding": table_VD.at[ids].set(scaled)}

    return task._replace(init=init)


def layered_stages(
    num_layers: int, embed: Callable, layer: Callable, loss: Callable, trace_norms: bool
) -> Stages:
    """Return the Stages of a model whose `layer` returns (its output, the next carry).

    The output is what `trace_norms` measures; the carry may differ from it, by dropout. The
    sums of lm/norms.py then go along with the carry, and join those of the loss.
    """

    def plain_layer(params, carry, batch, index, key):
        return layer(params, carry, batch, index, key)[1]

    if not trace_norms:
        return Stages(num_layers, embed, plain_layer, loss)

    def traced_embed(outer, batch, key):
        return embed(outer, batch, key), jnp.zeros(num_layers)

    def traced_layer(params, carry, batch, index, key):
        carry, squares_L = carry
        output, carry = layer(params, carry, batch, index, key)
        return carry, squares_L.at[index].set(square(targets_mask(batch), output))

    def traced_loss(outer, carry, batch):
        carry, squares_L = carry
        loss_sum, sums = loss(outer, carry, batch)
        return loss_sum, sums | activation_squares(squares_L)

    return Stages(num_layers, traced_embed, traced_layer, traced_loss)


def next_token_loss(
    x_BTD: jax.Array, head: Callable, batch: Batch, loss_chunk: int, smoothing: float = 0.0
) -> tuple[jax.Array, Sums]:
    """Return what `cross_entropy` does for the last T targets of each row."""
    last = slice(-x_BTD.shape[1], None)
    labels_BT, mask_BT = batch["tokens"][:, last], targets_mask(batch)[:, last]
    weights_BT = batch["weights"][:, last] if "weights" in batch else None
    return cross_entropy(
        x_BTD, head, labels_BT, mask_BT, loss_chunk, smoothing, weights_BT,
        teacher_of(batch, x_BTD.shape[1]),
    )  # fmt: skip


def teacher_of(batch: Batch, num_positions: int) -> Teacher | None:
    """Return what a teacher says of the last positions; None without a teacher."""
    if "teacher_ids" not in batch:
        return None
    said = (batch[name][:, -num_positions:] for name in ("teacher_ids", "teacher_logits"))
    return Teacher(*said, batch["teacher_share"], batch["teacher_temperature"])


def inputs(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return tokens_BT and segments_BT, without the last of each row, a mere target.

    A batch with `inputs` gives these to the model; `tokens` are then the targets alone.
    """
    return batch.get("inputs", batch["tokens"])[:, :-1], batch["segments"][:, :-1]


def row_keys(batch: Batch, key: Key | None) -> jax.Array | None:
    """Return a key for each row of the batch; None if there is no key."""
    if key is None:
        return None
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])


def targets_mask(batch: Batch) -> jax.Array:
    """Return bool_BT, true where a target counts."""
    segments = batch["segments"]
    return (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)


def cut_graphs(build: Callable[[Key], nnx.Module]) -> tuple[nnx.GraphDef, nnx.GraphDef]:
    """Return the graph of what `build` makes with its layers taken out, and of a layer."""

    def cut() -> tuple[nnx.Module, nnx.Module]:
        module = build(jax.random.key(0))
        if getattr(module, "scanned_layers", None) is not None:
            layer, module.scanned_layers = module.scanned_layers, None
        else:
            layer, module.layers = module.layers[0], None
        return module, layer

    outer, layer = nnx.eval_shape(cut)
    return nnx.graphdef(outer), nnx.graphdef(layer)


def num_parameters(params: Params) -> int:
    """Count the elements of parameters, or of their shapes."""
    return sum(x.size for x in jax.tree.leaves(params))
