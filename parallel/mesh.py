"""Meshes and the placing of host rows on them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.program import AXIS, Batch


def data_mesh(degree: int) -> Mesh:
    """Make the one-axis mesh of `degree` devices (-1: all of them).

    Axes are Auto: under JAX's default, Explicit, a model must annotate its own sharding.
    """
    devices = jax.devices()
    if degree == -1:
        degree = len(devices)
    if not 1 <= degree <= len(devices):
        raise ValueError(
            f"parallel.data is {degree}, but there are {len(devices)} "
            f"{devices[0].platform} devices; give 1 to {len(devices)}, or -1 for all"
            + (", or more with --devices=N" if devices[0].platform == "cpu" else "")
        )
    if jax.process_count() > 1 and degree != len(devices):
        raise ValueError(
            f"parallel.data is {degree}, but {jax.process_count()} processes hold "
            f"{len(devices)} devices; give {len(devices)}, or -1 for all"
        )
    return jax.make_mesh(
        (degree,), (AXIS,), devices=devices[:degree], axis_types=(AxisType.Auto,)
    )


def place_rows(mesh: Mesh, batch: dict[str, np.ndarray]) -> Batch:
    """Turn this process's rows into global arrays split over the mesh by row."""
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def knowing(mesh: Mesh, function: Callable) -> Callable:
    """Tell what `function` traces under jit about the mesh.

    Kernels that the compiler cannot partition split themselves by it.
    """

    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced
