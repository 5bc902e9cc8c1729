"""A codec: how one replica's tree of gradients is summed over replicas in fewer bytes.

`sum` returns (total, residual, state). The total is nearly the sum over replicas, with the
same bits on each replica. The residual is the part of this replica's input that the total
lacks, so that

    total + sum over replicas of residual = sum over replicas of input

up to float32 rounding. Error feedback adds the last residual to the next input (Seide et
al. 2014). By the law above it loses nothing; some of the gradient only comes later.
Arithmetic is in float32, and the leaves keep their types.

Fed back, residuals stay bounded only if the codec contracts: what it loses must be shorter
than its input (Karimireddy et al. 2019, definition 1). Else each residual makes the next
one longer. A codec that does not contract says why, in `no_feedback`, and is then used
without error feedback.

A codec runs where the mesh axes are bound, inside shard_map(check_vma=False) or pmap. If
any replica's input has a NaN or an infinity, the total has one, too.
Letters: n elements of the whole tree, W replicas, k elements kept.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from parallel.exchange.algorithms import ALGORITHMS
from parallel.program import Key, Params

State = Any
Axes = tuple[str, ...]

# The ways in which a codec's bytes can travel. A sum of linear codes is the code of the
# sum, so any algorithm for sums carries them; the other codes have to be decoded first.
LINEAR = ALGORITHMS
BY_OWNERS = ("all_to_all", "hierarchical")
BY_GATHERING = ("all_gather", "hierarchical")
SHARD = "shard"  # the name of a state that a device keeps for its own part of the vector


class Across(NamedTuple):
    """The mesh axes to sum over, the slowest first, and how linear codes are summed."""

    axes: Axes
    all_reduce: Callable[[jax.Array, Axes], jax.Array] = jax.lax.psum


class Packing(NamedTuple):
    """A codec between one sender and one receiver, who share a key.

    The payload is an array, or a tuple of arrays, in as few bytes as the codec sends.
    """

    pack: Callable[[jax.Array, Key], Any]  # x_n -> payload
    unpack: Callable[[Any, int, Key], jax.Array]  # payload, n -> x_n


class Codec(NamedTuple):
    init: Callable[[Params], State]  # of params or their shapes; differs per replica later
    # (tree, state, key, across) -> (total, residual, state); the key differs from step to
    # step and is the same on every replica.
    sum: Callable[[Any, State, Key, Across], tuple[Any, Any, State]]
    sent_bytes: Callable[[Params, int], float]  # (params, degree): by a device, in a step
    algorithms: Collection[str]  # LINEAR, BY_OWNERS, ...
    no_feedback: str = ""  # why its losses must not be fed back; "": it contracts
    packing: Packing | None = None  # None: it needs a collective

    @property
    def linear(self) -> bool:
        return self.algorithms is LINEAR


def stateless(params: Params) -> tuple:
    return ()


def num_elements(params: Params) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def flatten(tree) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """Join a tree into one float32 vector; return also what cuts such a vector again."""
    types = jax.tree.map(lambda x: x.dtype, tree)
    x_n, cut = ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float32), tree))
    return x_n, lambda y_n: jax.tree.map(lambda x, t: x.astype(t), cut(y_n), types)


def ring_bytes(num_bytes: float, degree: int) -> float:
    """Return what each device sends in an all-reduce that wastes nothing."""
    return 2 * num_bytes * (degree - 1) / degree


def hierarchical(codec: Codec, fast_degree: int) -> Codec:
    """Use a codec between groups of devices alone, on sums that are exact within a group.

    The last of the axes, of `fast_degree` devices, is the group: float32 is scattered and
    summed over it, each device sums its shard over the other axes by the codec, and the
    totals are gathered. The holder of a shard has its residual.
    """
    if codec.linear:
        raise ValueError(
            "a linear codec has no hierarchical form of its own; give it a hierarchical "
            "all_reduce"
        )

    def shard_size(params: Params) -> int:
        return -(-num_elements(params) // fast_degree)

    def shard(params: Params) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((shard_size(params),), jnp.float32)

    def total(tree, state, key, across: Across):
        *slow, fast = across.axes
        x_n, unflatten = flatten(tree)
        num, size = x_n.size, shard_size(tree)
        padded = jnp.pad(x_n, (0, size * fast_degree - num))
        mine = jax.lax.psum_scatter(padded, fast, tiled=True)
        index = jax.lax.axis_index(fast)
        total, residual, state = codec.sum(
            mine,
            state[SHARD],
            jax.random.fold_in(key, index),
            across._replace(axes=tuple(slow)),
        )
        total_n = jax.lax.all_gather(total, fast, tiled=True)[:num]
        residual_n = jax.lax.dynamic_update_slice(
            jnp.zeros_like(padded), residual, (index * size,)
        )[:num]
        return unflatten(total_n), unflatten(residual_n), {SHARD: state}

    def sent_bytes(params: Params, degree: int) -> float:
        within = ring_bytes(4 * shard_size(params) * fast_degree, fast_degree)
        return within + codec.sent_bytes(shard(params), degree // fast_degree)

    def init(params: Params) -> State:
        return {SHARD: codec.init(shard(params))}

    return codec._replace(
        init=init, sum=total, sent_bytes=sent_bytes, algorithms=("hierarchical",)
    )


def to_words(x: jax.Array, dtype) -> jax.Array:
    """Read the last dim's bits as words of a type no wider than x's."""
    words = jax.lax.bitcast_convert_type(x, dtype)
    return words.reshape(*x.shape[:-1], -1)


def from_words(words: jax.Array, dtype) -> jax.Array:
    """Undo to_words: read the last dim's bits as elements of a type as wide or wider."""
    per_element = jnp.dtype(dtype).itemsize // words.dtype.itemsize
    if per_element > 1:
        words = words.reshape(*words.shape[:-1], -1, per_element)
    return jax.lax.bitcast_convert_type(words, dtype)
