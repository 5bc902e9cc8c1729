"""One of two processes that sum by every algorithm, under shard_map and under pmap.

Holds its devices' results to numpy, and prints a digest of the bits of each at the end,
when Gloo, which speaks too, has made all its connections. Each algorithm is a program of
its own: XLA for CPUs can hang where many different ones run side by side in one program
that comes out of the compilation cache, with several devices in a process.
"""

import hashlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from parallel.exchange.algorithms import ALGORITHMS
from parallel.mesh import device_mesh

PROCESSES, DEVICES, NUM = 2, 3, 41  # six devices are no power of two
ROWS_NX = np.random.default_rng(0).normal(size=(PROCESSES * DEVICES, NUM))
ONE_AXIS = [name for name in ALGORITHMS if name != "hierarchical"]


def digest(title: str, result: jax.Array, x: np.ndarray) -> str:
    """Return the digest of this process's rows, which must be alike and numpy's sum."""
    rows = [np.asarray(shard.data).ravel() for shard in result.addressable_shards]
    exact = np.asarray(x, np.float64)
    roundings = PROCESSES * DEVICES * float(jnp.finfo(x.dtype).eps) / 2
    for row in rows:
        assert row.dtype == x.dtype and row.tobytes() == rows[0].tobytes(), title
        error = np.abs(np.asarray(row, np.float64) - exact.sum(0))
        assert (error <= roundings * np.abs(exact).sum(0)).all(), title
    return f"sum {title} {hashlib.sha256(rows[0].tobytes()).hexdigest()}"


def under_shard_map(dtype: str) -> list[str]:
    mesh = device_mesh({"slice": PROCESSES, "data": DEVICES})
    axes = mesh.axis_names
    x = ROWS_NX.astype(jnp.dtype(dtype))
    rows = jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, P(axes)), lambda index: x[index]
    )

    def spread(sum_n):
        return jax.shard_map(
            lambda x: sum_n(x[0], axes)[None],
            mesh=mesh,
            in_specs=P(axes),
            out_specs=P(axes),
            check_vma=False,
        )

    return [
        digest(f"shard_map {name} {dtype}", jax.jit(spread(row.all_reduce))(rows), x)
        for name, row in ALGORITHMS.items()
    ]


def under_pmap() -> list[str]:
    x = ROWS_NX.astype(np.float32)
    mine = slice(jax.process_index() * DEVICES, (jax.process_index() + 1) * DEVICES)
    return [
        digest(
            f"pmap {name} float32",
            jax.pmap(
                partial(ALGORITHMS[name].all_reduce, axes=("data",)), axis_name="data"
            )(x[mine]),
            x,
        )
        for name in ONE_AXIS
    ]


if __name__ == "__main__":
    port, index = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, int(index))
    digests = under_shard_map("float32") + under_shard_map("bfloat16") + under_pmap()
    print("\n" + "\n".join(digests))
