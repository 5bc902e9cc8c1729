"""Meshes of devices, and how the rows of the hosts are placed on them."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.program import AXIS, BATCH_AXES, Batch


def device_mesh(
    degrees: dict[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Make a mesh of axis name -> degree, the axis of the slowest links first.

    One degree may be -1: as many as the devices allow. A run of one process may take fewer
    devices than there are, if their number divides that of all devices. Axes are Auto:
    under JAX's default, Explicit, a model must annotate its own sharding. `devices` are
    those of this run, or absent ones that a program is only compiled for.
    """
    devices = jax.devices() if devices is None else devices
    available, platform = len(devices), devices[0].platform
    wanted = ", ".join(f"parallel.{axis} {degree}" for axis, degree in degrees.items())
    if any(degree < 1 and degree != -1 for degree in degrees.values()):
        raise ValueError(f"{wanted}: each degree must be at least 1, or -1 for the rest")
    if list(degrees.values()).count(-1) > 1:
        raise ValueError(f"{wanted}: only one degree can be -1, the rest of the devices")
    fixed = math.prod(degree for degree in degrees.values() if degree != -1)
    rest = available // fixed if -1 in degrees.values() else 1
    size = fixed * rest
    if rest == 0 or available % size or (rest > 1 and size != available):
        raise ValueError(
            f"{wanted}: they multiply to {fixed}, but there are {available} {platform} "
            f"devices; give degrees whose product divides {available}, or -1 for the rest"
            + (", or more devices with --devices=N" if platform == "cpu" else "")
        )
    if jax.process_count() > 1 and size != available:
        raise ValueError(
            f"{wanted}: they multiply to {size}, but {jax.process_count()} processes hold "
            f"{available} devices; give a product of {available}, or one -1 for the rest"
        )
    sizes = tuple(rest if degree == -1 else degree for degree in degrees.values())
    kinds = (AxisType.Auto,) * len(sizes)
    if len({slice_index(device) for device in devices[:size]}) > 1:
        arranged = arrange_slices(devices[:size], sizes)
        return Mesh(arranged, tuple(degrees), axis_types=kinds)
    return jax.make_mesh(sizes, tuple(degrees), devices=devices[:size], axis_types=kinds)


def slice_index(device: jax.Device) -> int:
    """Return the slice of a device: the group of devices that fast links join."""
    return getattr(device, "slice_index", 0)


def arrange_slices(devices: list[jax.Device], sizes: tuple[int, ...]) -> np.ndarray:
    """Arrange devices of several slices so that only the first axis crosses slices.

    "The first axis" is the first one with more than one device. Raises ValueError if the
    number of slices does not divide it.
    """
    num_slices = len({slice_index(device) for device in devices})
    first = next(i for i, size in enumerate(sizes) if size > 1)
    if sizes[first] % num_slices:
        raise ValueError(
            f"the devices lie in {num_slices} slices, which do not divide the degree "
            f"{sizes[first]} of the first axis of the mesh {sizes}; give it a multiple of "
            f"{num_slices}, for the axes after it must stay inside a slice"
        )
    across = [num_slices if i == first else 1 for i in range(len(sizes))]
    inside = [size // n for size, n in zip(sizes, across, strict=True)]
    return create_hybrid_device_mesh(inside, across, devices)


def is_absent(mesh: Mesh) -> bool:
    """Tell whether programs can only be compiled for this mesh, not run on it."""
    return mesh.devices.flat[0] not in jax.devices()


def data_mesh(degree: int) -> Mesh:
    """Make the one-axis mesh of `degree` devices (-1: all of them)."""
    return device_mesh({AXIS: degree})


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in BATCH_AXES if axis in mesh.shape)


def batch_degree(mesh: Mesh) -> int:
    """Return the number of parts that the mesh splits a batch into."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def process_rows(mesh: Mesh) -> tuple[int, int]:
    """Return (index, count): a global batch has `count` equal parts, and this process takes
    part `index`, the rows of its own devices.

    Some axes do not split the batch, such as the stages of a pipeline. Processes whose
    devices differ only along such axes take the same part. Raises ValueError if the parts
    differ in size or overlap.
    """
    degree = batch_degree(mesh)
    sharding = NamedSharding(mesh, P(batch_axes(mesh)))
    places: dict[int, set[int]] = {}
    for device, (rows,) in sharding.devices_indices_map((degree,)).items():
        places.setdefault(device.process_index, set()).add(rows.start or 0)
    return part_of(places, jax.process_index(), degree)


def part_of(places: dict[int, set[int]], process: int, degree: int) -> tuple[int, int]:
    """Return the part (index, count) of `degree` places that is this process's.

    The places of a part need not lie together: along a TPU's links, the devices of a host
    come in turns with those of other hosts. The rows of a batch are summed, so it does not
    matter which of them a device has.
    """
    parts = sorted({tuple(sorted(mine)) for mine in places.values()})
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != degree:
        raise ValueError(
            f"the mesh gives {len(places)} processes the parts "
            f"{[sorted(mine) for mine in places.values()]} of the {degree} that a "
            "batch is split into; they must be equally large, and any two the same or "
            "without a common place: change the degrees, or the devices of a process"
        )
    return parts.index(tuple(sorted(places[process]))), len(parts)


def place_rows(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """Turn this process's rows into global arrays split over the mesh by row."""
    sharding = NamedSharding(mesh, P(batch_axes(mesh)))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def abstract_rows(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """Return the shapes and shardings of a whole batch's rows; allocate nothing."""
    sharding = NamedSharding(mesh, P(batch_axes(mesh)))
    return {
        name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=sharding)
        for name, rows in batch.items()
    }


def knowing(mesh: Mesh, function: Callable) -> Callable:
    """Trace `function` under jit with this mesh in force.

    Kernels that the compiler cannot partition read the mesh and split their own work.
    """

    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced
