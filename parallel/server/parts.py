"""Which shard has which leaf, and states of parameters and optimizer cut and joined by it.

A shard has whole leaves: the largest leaf goes first, to the shard with the least
(parallel/balance.py). Its optimizer sees these leaves at their own paths. The optimizer
state of a leaf lies under the leaf's path, so paths tell which shard has what; a value that
belongs to no leaf, such as a count of updates, is the same on all shards.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.tree_util import DictKey

from parallel.balance.lists import balanced
from parallel.forms.fragments import subtree
from parallel.pipeline.stacking import OUTSIDE
from parallel.program import Params

Path = tuple


def check_shards(params: Params, num_shards: int) -> None:
    """Raise ValueError if some shard would have no leaf."""
    num_leaves = len(jax.tree.leaves(params))
    if num_shards > num_leaves:
        raise ValueError(
            f"parallel.server.shards {num_shards} is more than the {num_leaves} arrays of "
            f"parameters of the model; give at most {num_leaves}"
        )


def cut(params: Params, num_shards: int) -> list[Params]:
    """Return the leaves of each shard, as trees; those of equal shapes are cut alike."""
    leaves = jax.tree.leaves_with_path(params)
    owners = balanced([x.size * x.dtype.itemsize for _, x in leaves], num_shards)
    pairs = list(zip(owners, leaves, strict=True))
    return [subtree(at for own, at in pairs if own == i) for i in range(num_shards)]


def plain(path: Path) -> Path:
    """Return a path without the word that only optimizers of stacked layers have."""
    return tuple(entry for entry in path if entry != DictKey(OUTSIDE))


def join(parts: Sequence[Any], like: Any) -> Any:
    """Put the leaves of all parts at their places in the whole."""
    found = {
        plain(path): leaf
        for part in parts
        for path, leaf in jax.tree.leaves_with_path(part)
    }
    return jax.tree.map_with_path(lambda path, _: found[plain(path)], like)


def part_of(whole: Any, like: Any) -> Any:
    """Return the part of a whole that has the leaves of `like`.

    Leaves that the whole lacks stay as they are in `like`.
    """
    found = {plain(path): leaf for path, leaf in jax.tree.leaves_with_path(whole)}
    return jax.tree.map_with_path(lambda path, x: found.get(plain(path), x), like)
