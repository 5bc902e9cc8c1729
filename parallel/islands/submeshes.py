"""Arrays of islands: joined into arrays over all islands, and parted again, without a copy.

A mesh with the axis `slice` in front has an island at each place along it; an island is a
mesh of its own, with the other axes. Arrays of islands that differ are joined along their
first dim, [W a, ...] of W times [a, ...], and scalars become [W]. Each device keeps the
part that it has.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.mesh import is_absent
from parallel.program import SLICE


def islands_of(mesh: Mesh) -> list[Mesh]:
    """Return the islands of which this process has devices; the first of an absent mesh."""
    islands = [submesh(devices, mesh.axis_names[1:]) for devices in mesh.devices]
    if is_absent(mesh):
        return islands[:1]
    own = jax.process_index()
    return [each for each in islands if each.devices.flat[0].process_index == own]


def submesh(devices: Any, names: tuple[str, ...]) -> Mesh:
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def first_along(mesh: Mesh, kept: set[str]) -> Mesh:
    """Return the mesh of the devices that are the first along all axes but `kept`."""
    kept = kept | {SLICE}
    index = tuple(slice(None if axis in kept else 1) for axis in mesh.axis_names)
    return submesh(mesh.devices[index], mesh.axis_names)


def one_of_each(mesh: Mesh) -> Mesh:
    """Return the mesh of the first device of each island, with the axis `slice` alone."""
    return submesh(mesh.devices.reshape(mesh.shape[SLICE], -1)[:, 0], (SLICE,))


def without_slices(mesh: Mesh) -> Mesh:
    """Return the mesh of all devices as one island: the axis after `slice` has them all."""
    devices = mesh.devices.reshape(-1, *mesh.devices.shape[2:])
    return submesh(devices, mesh.axis_names[1:])


def axes_of(spec: P) -> set[str]:
    return {axis for entry in spec for axis in as_axes(entry)}


def as_axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def each_spec(spec: P) -> P:
    """Return the spec of arrays that are joined, from that of an island's array."""
    first, *rest = tuple(spec) or (None,)
    return P((SLICE, *as_axes(first)), *rest)


def island_spec(spec: P) -> P:
    """Return the spec of an island's part, from that of an array over all islands."""
    inside = [tuple(a for a in as_axes(entry) if a != SLICE) for entry in spec]
    return P(*[axes if len(axes) > 1 else axes[0] if axes else None for axes in inside])


def join(mesh: Mesh, parts: list[Any], each: bool = True) -> Any:
    """Join trees of arrays or shapes, one of each island of this process.

    Of an island's devices, those that are in the mesh give their part. `each`: the islands
    differ; else the array is the same on all of them, and stays what it is.
    """
    own = {d for d in mesh.devices.flat if d.process_index == jax.process_index()}

    def one(*xs: jax.Array | jax.ShapeDtypeStruct):
        spec, shape = xs[0].sharding.spec, xs[0].shape
        is_scalar = not shape
        if each:
            first, *rest = shape or (1,)
            shape, spec = (mesh.shape[SLICE] * first, *rest), each_spec(spec)
        sharding = NamedSharding(mesh, spec)
        if isinstance(xs[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, xs[0].dtype, sharding=sharding)
        found = [s.data for x in xs for s in x.addressable_shards if s.device in own]
        if each and is_scalar:
            found = [x.reshape(1) for x in found]
        return jax.make_array_from_single_device_arrays(shape, sharding, found)

    return jax.tree.map(one, *parts)


def part(tree: Any, islands: list[Mesh]) -> list[Any]:
    """Undo `join`: return the tree of each of these islands, arrays or their shapes.

    Scalars that were joined remain arrays [1].
    """

    def one(x: jax.Array | jax.ShapeDtypeStruct, island: Mesh):
        spec, shape = x.sharding.spec, x.shape
        sharding = NamedSharding(island, island_spec(spec))
        if SLICE in axes_of(spec):
            shape = (shape[0] // x.sharding.mesh.shape[SLICE], *shape[1:])
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
        devices = set(island.devices.flat)
        found = [s.data for s in x.addressable_shards if s.device in devices]
        return jax.make_array_from_single_device_arrays(shape, sharding, found)

    return [jax.tree.map(lambda x, at=island: one(x, at), tree) for island in islands]


def carry(tree: Any, source: list[Mesh], islands: list[Mesh]) -> list[Any]:
    """Part a tree over `source`, and copy what the devices of `islands` lack, inside each.

    Both name the same islands, perhaps with only some of their devices.
    """

    def to(island: Mesh, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(island, x.sharding.spec)), tree
        )

    return [to(*pair) for pair in zip(islands, part(tree, source), strict=True)]


def move(tree: Any, source: list[Mesh], islands: list[Mesh], mesh: Mesh) -> Any:
    """Carry arrays over all islands to other devices of the same ones, and join them."""

    def one(x: jax.Array) -> jax.Array:
        each = SLICE in axes_of(x.sharding.spec)
        return join(mesh, carry(x, source, islands), each)

    return jax.tree.map(one, tree)


def shaped(tree: Any, like: Any) -> Any:
    """Give arrays [1] that stand for scalars the shapes of `like`."""
    return jax.tree.map(
        lambda x, y: x if x.shape == y.shape else x.reshape(y.shape), tree, like
    )


def shard_shapes(tree: Any) -> Any:
    """Return the shapes of what one device holds of a tree of arrays with shardings."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype), tree
    )
