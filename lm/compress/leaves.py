"""Which arrays of a model are compressed: matrices whose names match a pattern.

The name of an array is its path inside its layer, such as attention/query/kernel, or its
whole path outside of layers, such as embedding. All layers have the same names, so that all
are treated alike: a model may keep its layers stacked, or lie on the stages of a pipeline.
"""

import re
from collections.abc import Callable
from typing import Any

import jax

from lm.task import Params

STACK = "scanned_layers"  # the parameters of layers that are stacked, [L, ...]
FACTORS = ("left", "right")
Path = tuple  # keys of jax.tree_util
Names = tuple[Any, ...]  # the keys of a path, plain
Leaves = dict[Names, jax.Array]


def names(path: Path) -> Names:
    return tuple(entry.key for entry in path)


def is_stacked(keys: Names) -> bool:
    return keys[0] == STACK


def local_name(keys: Names) -> str:
    """Return the name inside the layer: without layers/0, encoder/0 or scanned_layers.

    The factors of a matrix (lm/compress/low_rank.py) have its name.
    """
    keys = keys[:-1] if keys[-1] in FACTORS else keys
    if is_stacked(keys):
        keys = keys[1:]
    elif len(keys) > 1 and isinstance(keys[1], int):
        keys = keys[2:]
    return "/".join(map(str, keys))


def flat(params: Params) -> Leaves:
    return {names(path): x for path, x in jax.tree.leaves_with_path(params)}


def nested(leaves: Leaves) -> Params:
    """Undo `flat`."""
    tree: Params = {}
    for (*groups, last), x in leaves.items():
        group = tree
        for key in groups:
            group = group.setdefault(key, {})
        group[last] = x
    return tree


def matrices(params: Params, pattern: str) -> Leaves:
    """Return the arrays of two dims inside a layer, or outside, whose names match."""
    return {
        keys: x
        for keys, x in flat(params).items()
        if x.ndim - is_stacked(keys) == 2 and re.search(pattern, local_name(keys))
    }


def changed(
    params: Params, pattern: str, change: Callable[[Names, jax.Array], Any]
) -> Params:
    """Replace the matrices that match by `change` of their names and values."""
    chosen = matrices(params, pattern)
    return nested(flat(params) | {keys: change(keys, x) for keys, x in chosen.items()})


def check_pattern(name: str, pattern: str, params: Params) -> Leaves:
    """Return the matrices that match; ValueError if none does, or it is no pattern."""
    try:
        found = matrices(params, pattern)
    except re.error as error:
        raise ValueError(
            f"{name} is {pattern!r}, no regular expression ({error})"
        ) from None
    if not found:
        every = sorted({local_name(keys) for keys in matrices(params, "")})
        raise ValueError(
            f"{name} is {pattern!r}, which matches no matrix of this model; it has "
            f"{', '.join(every)}"
        )
    return found
