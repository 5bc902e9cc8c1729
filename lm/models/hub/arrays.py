"""Our arrays from their tensors, and their tensors from our arrays.

Every tokenizer here ends a text with token 0 (lm/vocabulary.py), so that the row of the end
token and row 0 change places in the embedding and in the head. Doing so twice changes
nothing.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.models.hub.shapes import Shape, Tensor
from lm.models.hub.tensors import Stored, check_type, read_slice
from lm.vocabulary import END_ID

Params = Any
ROWS = {"embedding": 0, "output/kernel": 1}  # our arrays with a dim of the vocabulary
SHOWN = 3  # names in an error


class Place(NamedTuple):
    """Where an array of ours, or that of one layer, is among theirs."""

    path: str  # of our leaf
    layer: int | None  # of a leaf that stacks all layers
    tensor: Tensor  # with the number of the layer in its name
    shape: tuple[int, ...]  # of ours

    @property
    def theirs(self) -> tuple[int, ...]:
        """The shape of their tensor."""
        *most, last = self.shape
        shape = (*most, last * self.tensor.parts)
        return shape[::-1] if self.tensor.transposed else shape


def places(shape: Shape, params: Params) -> list[Place]:
    """List where all arrays are; `params` may be shapes. Layers may be stacked."""
    found = []
    for keys, leaf in jax.tree.leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path.startswith("scanned_layers/"):
            tensor = shape.tensors[path.replace("scanned_layers", "layer", 1)]
            for i in range(leaf.shape[0]):
                named = tensor._replace(name=tensor.name.format(i))
                found.append(Place(path, i, named, leaf.shape[1:]))
            continue
        layer = re.match(r"layers/(\d+)/", path)
        tensor = shape.tensors[f"layer/{path[layer.end() :]}" if layer else path]
        named = tensor._replace(name=tensor.name.format(layer and layer[1]))
        found.append(Place(path, None, named, leaf.shape))
    return found


def check_tensors(
    shape: Shape, wanted: list[Place], stored: Mapping[str, Stored], tied: bool
) -> dict[str, Stored]:
    """Return the tensors by their whole names.

    ValueError for one that is missing, extra, or of another shape or type. Those that hold
    no weights may be of any.
    """
    stored = {
        name: each
        for name, each in stored.items()
        if not (shape.no_weights and re.search(shape.no_weights, name))
    }
    if not any(name.startswith(shape.prefix) for name in stored):
        stored = {
            name if name == "lm_head.weight" else shape.prefix + name: each
            for name, each in stored.items()
        }
    head = stored.get("lm_head.weight")
    if tied and head is not None and is_embedding(shape, stored, head):
        del stored["lm_head.weight"]
    shapes = {place.tensor.name: place.theirs for place in wanted}
    for kind, names in {
        "misses": sorted(shapes.keys() - stored.keys()),
        "has besides": sorted(stored.keys() - shapes.keys()),
    }.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ValueError(
                f"the model {kind} the tensors that a {shape.architecture} of its "
                f"config.json has: {', '.join(names[:SHOWN])}{more}"
            )
    for name, expected in shapes.items():
        check_type(stored[name])
        if stored[name].shape != expected:
            raise ValueError(
                f"{name} in {stored[name].file} has the shape {stored[name].shape}; by "
                f"config.json it is {expected}"
            )
    return stored


def is_embedding(shape: Shape, stored: Mapping[str, Stored], head: Stored) -> bool:
    """Tell whether a tied model's head is written besides the embedding, and equals it."""
    table = stored.get(shape.tensors["embedding"].name)
    if table is None or table.shape != head.shape:
        return False
    rows, width = head.shape
    step = max(1, (1 << 24) // width)
    parts = (slice(i, min(i + step, rows)) for i in range(0, rows, step))
    return all(
        np.array_equal(*(read_slice(x, (part, slice(0, width))) for x in (table, head)))
        for part in parts
    )


def read_params(
    shape: Shape, abstract: Params, stored: Mapping[str, Stored], end_id: int
) -> Params:
    """Read parameters into the shapes and shardings of `abstract`.

    Each device's part of an array is read by itself, one after the other.
    """
    by_path: dict[str, list[Place]] = {}
    for place in places(shape, abstract):
        by_path.setdefault(place.path, []).append(place)

    def leaf(keys, like: jax.ShapeDtypeStruct) -> jax.Array:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        read = partial(read_leaf, by_path[path], stored, end_id)
        made = jax.make_array_from_callback(like.shape, like.sharding, read)
        return jax.block_until_ready(made)  # only then is what was read given up

    return jax.tree.map_with_path(leaf, abstract)


def read_leaf(
    layers: list[Place], stored: Mapping[str, Stored], end_id: int, index: tuple[slice, ...]
) -> np.ndarray:
    """Read a part of a leaf: of one place, or of those of its layers, stacked."""
    if layers[0].layer is None:
        return read_place(layers[0], stored, end_id, index)
    chosen, *inside = index
    layers = layers[chosen]
    sizes = [
        len(range(*x.indices(n))) for x, n in zip(inside, layers[0].shape, strict=True)
    ]
    whole = np.empty((len(layers), *sizes), np.float32)
    for i, place in enumerate(layers):
        whole[i] = read_place(place, stored, end_id, tuple(inside))
    return whole


def read_place(
    place: Place, stored: Mapping[str, Stored], end_id: int, index: tuple[slice, ...]
) -> np.ndarray:
    tensor, shape = place.tensor, place.shape
    bounds = [x.indices(n)[:2] for x, n in zip(index, shape, strict=True)]

    def read(bounds: list[tuple[int, int]]) -> np.ndarray:
        shift = [0] * (len(shape) - 1) + [tensor.part * shape[-1]]
        index = tuple(slice(a + s, b + s) for (a, b), s in zip(bounds, shift, strict=True))
        if tensor.transposed:
            return read_slice(stored[tensor.name], index[::-1]).T
        return read_slice(stored[tensor.name], index)

    block = read(bounds)
    dim = ROWS.get(place.path)
    if dim is None or end_id == END_ID:
        return block
    start, end = bounds[dim]
    for ours, theirs in ((END_ID, end_id), (end_id, END_ID)):
        if start <= ours < end:
            one = read([*bounds[:dim], (theirs, theirs + 1), *bounds[dim + 1 :]])
            np.moveaxis(block, dim, 0)[ours - start] = np.moveaxis(one, dim, 0)[0]
    return block


def tensors_of(
    shape: Shape, params: Params, end_id: int, dtype: np.dtype
) -> tuple[dict[str, int], Callable[[str], np.ndarray]]:
    """Return the bytes of each of their tensors, and a function that makes one."""
    leaves = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree.leaves_with_path(params)
    }
    by_name: dict[str, list[Place]] = {}
    for place in places(shape, params):
        by_name.setdefault(place.tensor.name, []).append(place)

    def array(place: Place) -> np.ndarray:
        leaf = leaves[place.path]
        ours = np.asarray(leaf if place.layer is None else leaf[place.layer])
        if (dim := ROWS.get(place.path)) is not None and end_id != END_ID:
            order = np.arange(ours.shape[dim])
            order[[END_ID, end_id]] = end_id, END_ID
            ours = ours.take(order, dim)
        return ours

    def make(name: str) -> np.ndarray:
        parts = sorted(by_name[name], key=lambda place: place.tensor.part)
        theirs = np.concatenate([array(place) for place in parts], -1)
        transposed = parts[0].tensor.transposed
        return np.ascontiguousarray((theirs.T if transposed else theirs).astype(dtype))

    sizes = {
        name: math.prod(found[0].theirs) * dtype.itemsize for name, found in by_name.items()
    }
    return dict(sorted(sizes.items())), make
