"""Collectives over a list of arrays, joined where that is faster.

Compilers for accelerators join the collectives of a program by themselves. On a CPU each
collective waits for every process, so there the arrays are joined by hand
(docs/performance.md has the gain).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from parallel.program import AXIS, TENSOR

Arrays = list[jax.Array]


def joins() -> bool:
    """Tell whether the program is for CPUs: its mesh's devices, or else this process's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.platform if device else jax.default_backend()) == "cpu"


def psum_in_one(tree, axes: tuple[str, ...] = (AXIS,)):
    """Sum a tree over replicas."""
    if not joins():
        return jax.lax.psum(tree, axes)
    flat, unflatten = ravel_pytree(tree)
    return unflatten(jax.lax.psum(flat, axes))


def scatter_in_one(arrays: Arrays, dims: list[int], axis: str = AXIS) -> Arrays:
    """Reduce-scatter each array along its dim: partial sums in, parts of the sums out."""
    if not arrays or not joins():
        return [
            jax.lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)
            for x, dim in zip(arrays, dims, strict=True)
        ]
    num = jax.lax.axis_size(axis)
    parts = []  # of each array [num, ...], in the order of the devices
    for x, dim in zip(arrays, dims, strict=True):
        split = x.reshape(*x.shape[:dim], num, -1, *x.shape[dim + 1 :])
        parts.append(jnp.moveaxis(split, dim, 0))
    joined = jnp.concatenate([part.reshape(num, -1) for part in parts], axis=1)
    mine = jax.lax.psum_scatter(joined, axis)
    shapes = [part.shape[1:] for part in parts]
    return [
        flat.reshape(shape).astype(x.dtype)
        for flat, shape, x in zip(split_flat(mine, shapes), shapes, arrays, strict=True)
    ]


def gather_in_one(arrays: Arrays, dims: list[int], axis: str = AXIS) -> Arrays:
    """Gather each array along its dim: takes parts, returns whole arrays."""
    if not arrays or not joins():
        return [
            jax.lax.all_gather(x, axis, axis=dim, tiled=True)
            for x, dim in zip(arrays, dims, strict=True)
        ]
    num = jax.lax.axis_size(axis)
    gathered = jax.lax.all_gather(jnp.concatenate([x.ravel() for x in arrays]), axis)
    whole = []
    flats = split_flat(gathered, [x.shape for x in arrays])
    for flat, x, dim in zip(flats, arrays, dims, strict=True):
        parts = jnp.moveaxis(flat.reshape(num, *x.shape), 0, dim)
        joined = parts.reshape(*x.shape[:dim], -1, *x.shape[dim + 1 :])
        whole.append(joined.astype(x.dtype))
    return whole


def on_tensor(mesh: Mesh, function: Callable, in_specs, out_specs) -> Callable:
    """Run `function`, under shard_map, on the device's part over `tensor` as well."""
    if mesh.shape.get(TENSOR, 1) == 1:
        return function
    return jax.shard_map(
        function,
        axis_names={TENSOR},
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )


def split_flat(flat: jax.Array, shapes: list[tuple[int, ...]]) -> Arrays:
    """Cut the last dim into pieces of the sizes of these shapes."""
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
    return jnp.split(flat, ends[:-1], axis=-1)
