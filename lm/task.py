"""A Task: what is learnt, as pure functions over plain pytrees.

This is the one place where Flax NNX is left: a module is split once into its graph and
its parameters, and everything outside (strategies, optimizers, checkpoints) sees a plain
nested dict of arrays and plain functions of it.

Only sums leave a Task. `loss` returns the loss summed over the batch's target tokens
together with every other sum worth keeping (`sums["loss"]`, `sums["tokens"]`, ...); who
holds the whole batch divides once.

Shapes: B batch, T time, D model width, V vocabulary, S cache length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx

from lm.losses import cross_entropy
from lm.norms import activation_squares, square

Params = Any  # nested dict of arrays
Batch = dict[str, jax.Array]  # tokens_BT+1, segments_BT+1 (0: padding) and row_B
Sums = dict[str, jax.Array]
Cache = Any
Key = jax.Array


class Stages(NamedTuple):
    """A Task cut between its layers, all of one shape; None of it where it cannot be cut.

    embed, every layer in turn, then loss are together the Task's `loss`. What goes from
    layer to layer, the carry, is a pytree of arrays; everything else about the rows is in
    `batch`.

    The layers lie in the parameters as {"layers": {0: ..., 1: ...}}, or stacked, [L, ...],
    as {"scanned_layers": ...}. All other parameters are the outer ones; embed and loss may
    share some.
    """

    num_layers: int  # L
    embed: Callable[[Params, Batch, Key | None], Any]  # (outer, batch, key) -> carry
    # (one layer's parameters, carry, batch, its index int32[], key) -> carry
    layer: Callable[[Params, Any, Batch, jax.Array, Key | None], Any]
    loss: Callable[[Params, Any, Batch], tuple[jax.Array, Sums]]  # (outer, carry, batch)


class Task(NamedTuple):
    """Pure functions of one learning problem; a transformation of it is Task -> Task.

    `key` is one key for the whole step: randomness inside is drawn per row (from
    `batch["row"]`), so it does not depend on how rows are spread over devices. A key of
    None means deterministic (no dropout).
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Batch, Key | None], tuple[jax.Array, Sums]]
    logits: Callable[[Params, Batch], jax.Array]
    cache: Callable[[int, int], Cache]  # (batch size, length) -> empty cache
    decode: Callable[..., tuple[jax.Array, Cache]]  # (params, cache, tokens_BT, start_B)
    # (params, cache, source_BS) -> the cache from which `decode` begins; None: no encoder.
    encode: Callable[[Params, Cache, jax.Array], Cache] | None = None
    # The checkpoint policy of what the backward pass may keep; None: everything. A strategy
    # that wraps the loss in jax.checkpoint must pass it on, for an outer policy replaces
    # those inside.
    saveable: Callable[..., bool] | None = None
    # How parameters are split over devices that share a layer: (pattern of the path, dim
    # from the last, into how many parts it may be cut, the name of that number).
    tensor_dims: tuple[tuple[str, int, int, str], ...] = ()
    stages: Stages | None = None
    # The top-level names of the parameters inside layers. A matrix there is hidden: it maps
    # features to features. Tables (embeddings, the head) lie outside.
    hidden: tuple[str, ...] = ()
    context: int | None = None  # the most tokens of a text; None: any number


def next_token_task(
    build: Callable[[nnx.Rngs], nnx.Module],
    loss_chunk: int,
    saveable: Callable[..., bool] | None = None,
    smoothing: float = 0.0,
    trace_norms: bool = False,
) -> Task:
    """The Task of predicting each token from those before it.

    `build(rngs)` makes a module with `hidden`, `head`, `cache` and `decode`, and `encode`
    if it has an encoder; `loss_chunk` is the number of positions whose logits exist at once
    (0: all). A target counts where it lies in the same document as the token before it.
    Where `hidden` covers the last positions of a row alone, those are predicted. With
    `trace_norms` the loss's sums also hold those of lm/norms.py; it takes a module with
    `outputs`.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, encodes = nnx.graphdef(abstract), hasattr(abstract, "encode")

    @jax.jit  # traced once, however often its shapes are asked for
    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

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

    return Task(init, loss, logits, cache, decode, encode if encodes else None, saveable)


def next_token_loss(
    x_BTD: jax.Array, head: Callable, batch: Batch, loss_chunk: int, smoothing: float = 0.0
) -> tuple[jax.Array, Sums]:
    """Sum the loss of the last T targets of each row; see `cross_entropy`."""
    last = slice(-x_BTD.shape[1], None)
    labels_BT, mask_BT = batch["tokens"][:, last], targets_mask(batch)[:, last]
    return cross_entropy(x_BTD, head, labels_BT, mask_BT, loss_chunk, smoothing)


def inputs(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return tokens_BT and segments_BT, all but each row's last."""
    return batch["tokens"][:, :-1], batch["segments"][:, :-1]


def row_keys(batch: Batch, key: Key | None) -> jax.Array | None:
    """Return each row's own key; None for none."""
    if key is None:
        return None
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])


def targets_mask(batch: Batch) -> jax.Array:
    """Return bool_BT, true where a target counts."""
    segments = batch["segments"]
    return (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)


def without_layers(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """Return the graph of the module that `build` makes, with its layers taken out."""

    def outer() -> nnx.Module:
        module = build(nnx.Rngs(0))
        for name in {"layers", "scanned_layers"} & set(vars(module)):
            setattr(module, name, None)
        return module

    return nnx.graphdef(nnx.eval_shape(outer))


def num_parameters(params: Params) -> int:
    """Count the elements of parameters, or of their shapes."""
    return sum(x.size for x in jax.tree.leaves(params))
