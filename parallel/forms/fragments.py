"""Parts of the parameters that meet by themselves: whole layers, and the leaves outside.

A fragment is the tree of the parameters without the leaves of the others. Layers are
params["layers"][i], or lie stacked, [L, ...], in params["scanned_layers"]
(parallel/pipeline/stacking.py). Of a stack, a fragment has the slices of its own layers.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import jax
import numpy as np
from jax.tree_util import DictKey

from parallel.balance.lists import balanced
from parallel.pipeline.stacking import LAYERS, is_stacked
from parallel.program import Params

Path = tuple  # keys of jax.tree_util


def subtree(leaves: Iterable[tuple[Path, Any]]) -> dict:
    """Return the nested dict that has these leaves alone, at their paths."""
    root: dict = {}
    for path, leaf in leaves:
        node = root
        for entry in path[:-1]:
            node = node.setdefault(entry.key, {})
        node[path[-1].key] = leaf
    return root


def unit_of(path: Path) -> Hashable:
    """Return what a leaf outside of a stack meets with: its layer, or itself."""
    if DictKey(LAYERS) in path:
        return path[: path.index(DictKey(LAYERS)) + 2]
    return path


def fragment_of_units(params: Params, num_fragments: int) -> dict[Hashable, int]:
    """Map each layer, and each leaf outside of layers, to a fragment of even size.

    A stacked layer is known by its number.
    """
    sizes: dict[Hashable, int] = {}
    for path, x in jax.tree.leaves_with_path(params):
        if is_stacked(path):
            for layer in range(x.shape[0]):
                sizes[layer] = sizes.get(layer, 0) + x.size // x.shape[0]
        else:
            sizes[unit_of(path)] = sizes.get(unit_of(path), 0) + x.size
    chosen = balanced(list(sizes.values()), num_fragments)
    return dict(zip(sizes, chosen, strict=True))


def layers_of(units: dict[Hashable, int], num_layers: int, index: int) -> np.ndarray:
    return np.array([i for i in range(num_layers) if units[i] == index], int)


def split(params: Params, num_fragments: int) -> list[Params]:
    """Return the fragments of the parameters."""
    units = fragment_of_units(params, num_fragments)
    parts: list[list[tuple[Path, jax.Array]]] = [[] for _ in range(num_fragments)]
    for path, x in jax.tree.leaves_with_path(params):
        if not is_stacked(path):
            parts[units[unit_of(path)]].append((path, x))
            continue
        for index, part in enumerate(parts):
            layers = layers_of(units, x.shape[0], index)
            if len(layers):
                part.append((path, x[layers]))
    return [subtree(part) for part in parts]


def join(params: Params, num_fragments: int, index: int, new: Params) -> Params:
    """Put one fragment back among the others."""
    units = fragment_of_units(params, num_fragments)
    fresh = dict(jax.tree.leaves_with_path(new))

    def one(path: Path, x: jax.Array) -> jax.Array:
        if path not in fresh:
            return x
        if not is_stacked(path):
            return fresh[path]
        return x.at[layers_of(units, x.shape[0], index)].set(fresh[path])

    return jax.tree.map_with_path(one, params)
