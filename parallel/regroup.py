"""What replicas kept, given to another number of replicas.

A run may go on over more or fewer devices. Residuals, late gradients and the like lie in
arrays [W, ...], one part of each replica; here they become those of another W.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, keystr

from parallel.exchange.codec import SHARD
from parallel.mesh import batch_axes, batch_degree


def num_given(tree: Any) -> int:
    """Return the number of replicas that a tree is of."""
    return jax.tree.leaves(tree)[0].shape[0]


# What replicas keep of their own gradients. Only the sum over replicas has a meaning.
SHARES = {"residual", "momentum", "unsent"}


def dealt(comm: Any, num_replicas: int) -> Any:
    """Give what the replicas kept to another number of replicas.

    Each gets an equal part of the sums; the rest is the same on every replica.
    """

    def one(path: tuple, x: jax.Array) -> jax.Array:
        names = {getattr(entry, "key", getattr(entry, "name", None)) for entry in path}
        mine = x.sum(0) / num_replicas if names & SHARES else x[0]
        return jnp.broadcast_to(mine, (num_replicas, *mine.shape)).astype(x.dtype)

    return jax.tree.map_with_path(one, comm)


def at_degree_of(comm: Any, found: dict[str, tuple[int, ...]], mesh: Mesh) -> Any:
    """Return the shapes of `comm` as another number of replicas saved it; () if not so.

    `comm` has this mesh's shapes, `found` maps paths to the shapes that were saved. These
    may differ in the number of replicas alone. Parts of gradients that belong to single
    devices (hierarchical codecs with a state) have no sum that could be dealt.
    """
    leaves, structure = jax.tree.flatten_with_path(comm)
    shapes = [found.get(keystr(path, simple=True, separator="/")) for path, _ in leaves]
    pairs = [(x.shape, shape) for (_, x), shape in zip(leaves, shapes, strict=True)]
    others = {old[:1] for new, old in pairs if old is not None and new != old}
    fits = (
        len(found) == len(leaves)
        and len(others) == 1
        and all(
            old is not None and (new == old or new[1:] == old[1:]) for new, old in pairs
        )
    )
    if not fits or any(DictKey(SHARD) in path for path, _ in leaves):
        return ()
    return structure.unflatten(
        jax.ShapeDtypeStruct(shape, x.dtype, sharding=spread_evenly(shape, mesh))
        for (_, x), shape in zip(leaves, shapes, strict=True)
    )


def spread_evenly(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Split the first dim that the replicas divide, if there is one."""
    degree = batch_degree(mesh)
    dims = [dim for dim, size in enumerate(shape) if size and size % degree == 0][:1]
    return NamedSharding(mesh, P(*[None] * dims[0], batch_axes(mesh)) if dims else P())
