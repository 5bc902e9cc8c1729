"""The constants of the machine that a process runs on, measured in seconds."""

import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.costs.machine import memory_bytes
from parallel.mesh import data_mesh
from parallel.program import AXIS


class Sizes(NamedTuple):
    """What is large enough to measure a kind of device with."""

    widths: tuple[int, ...]  # of products
    rows: int  # of the left matrix: the tokens of a microbatch
    copied: int  # bytes
    repeats: int  # inside one program, so that its start does not count


CPU = Sizes((32, 64, 128, 256, 512, 1024, 2048), 4096, 1 << 26, 1)
ACCELERATOR = Sizes((128, 256, 512, 1024, 2048, 4096, 8192), 16_384, 1 << 30, 16)
SENT = (1 << 12, 1 << 16, 1 << 19, 1 << 22, 1 << 24)  # bytes of a device's array
FEWEST = 3  # repetitions


def measure(seconds: float) -> dict[str, Any]:
    """Measure everything, about `seconds` for each point; all processes call it together.

    Returns what experiments/planning/hardware.py reads.
    """
    platform, mesh = jax.default_backend(), data_mesh(-1)
    types = ("float32",) if platform == "cpu" else ("float32", "bfloat16")
    sizes = CPU if platform == "cpu" else ACCELERATOR
    found: dict[str, Any] = {
        "platform": platform,
        "device_kind": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "processes": jax.process_count(),
        "flops": {dtype: product_rates(dtype, sizes, seconds) for dtype in types},
        "memory": own_memory(mesh),
        "memory_bandwidth": copy_bandwidth(sizes, seconds),
        "overlaps": platform != "cpu",
        "cache": core_cache() if platform == "cpu" else 0,
        "collectives": {},
    }
    if mesh.size > 1:
        for kind, (run, sends, share) in collectives(mesh.size).items():
            times = [(b, collective_time(run, mesh, b, seconds)) for b in SENT]
            found["collectives"][kind] = fit_link(times, sends, share)
    return found


def check_request(file: pathlib.Path, seconds: float) -> None:
    """Raise ValueError for what would fail after a minute of measuring."""
    if not file.parent.is_dir():
        raise ValueError(f"--out={file}: there is no folder {file.parent}")
    if file.is_dir():
        raise ValueError(f"--out={file} is a folder; give a file, as {file}/hardware.json")
    if not math.isfinite(seconds):
        raise ValueError(f"--seconds={seconds}: expected a number of seconds, from 0")


def own_memory(mesh) -> float:
    """Return the memory that one device may use; CPU processes share the machine's."""
    whole = memory_bytes(mesh)
    shared = jax.process_count() if jax.default_backend() == "cpu" else 1
    return whole / mesh.size / shared


def core_cache() -> int:
    """Return the bytes of a core's own second-level cache; 0: not known."""
    name = "SC_LEVEL2_CACHE_SIZE"
    return max(0, os.sysconf(name)) if name in os.sysconf_names else 0


def repeated(run: Callable[[], Any], seconds: float) -> float:
    """Return the median seconds of a call, which is warm."""
    jax.block_until_ready(run())
    times, began = [], time.perf_counter()
    while len(times) < FEWEST or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def product_rates(dtype: str, sizes: Sizes, seconds: float) -> list[tuple[float, float]]:
    """Return (width, FLOP/s) of products [rows, width] x [width, width]."""
    found = []
    for width in sizes.widths:
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (sizes.rows, width), dtype)
        # A product has the size of its left matrix, and the next one multiplies it.
        weights = jax.random.normal(keys[1], (width, width), dtype) / width**0.5
        took = repeated(partial(chained(jnp.matmul, sizes.repeats), x, weights), seconds)
        found.append((width, 2 * sizes.rows * width**2 * sizes.repeats / took))
    return found


def copy_bandwidth(sizes: Sizes, seconds: float) -> float:
    """Return the bytes/s of reading and writing arrays that no cache holds."""
    x, one = jnp.ones(sizes.copied // 4), jnp.ones(())
    took = repeated(partial(chained(jnp.add, sizes.repeats), x, one), seconds)
    return 2 * sizes.copied * sizes.repeats / took


def chained(function: Callable, repeats: int) -> Callable:
    """Return a program that applies a function of (x, y) to its own result."""
    if repeats == 1:
        return jax.jit(function)
    return jax.jit(
        lambda x, y: jax.lax.fori_loop(0, repeats, lambda _, x: function(x, y), x)
    )


def collectives(n: int) -> dict[str, tuple[Callable, float, float]]:
    """Return each kind's function of a device's flat array, its sends and bytes sent.

    The bytes are those of a ring, as a share of the whole array's.
    """
    onwards = [(i, (i + 1) % n) for i in range(n)]
    share = (n - 1) / n
    return {
        "all-reduce": (lambda x: jax.lax.psum(x, AXIS), 2 * (n - 1), 2 * share),
        "all-gather": (
            lambda x: jax.lax.all_gather(x[: x.size // n], AXIS, tiled=True),
            n - 1,
            share,
        ),
        "reduce-scatter": (
            lambda x: jax.lax.psum_scatter(x, AXIS, tiled=True),
            n - 1,
            share,
        ),
        "collective-permute": (lambda x: jax.lax.ppermute(x, AXIS, onwards), 1, 1.0),
    }


def collective_time(run: Callable, mesh, num_bytes: int, seconds: float) -> float:
    """Return the seconds of a collective; every process repeats it equally often."""
    spread = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)
    )
    size = num_bytes // 4
    x = jax.make_array_from_callback(
        (mesh.size * size,),
        NamedSharding(mesh, P(AXIS)),
        lambda index: np.ones(size, np.float32),
    )
    jax.block_until_ready(spread(x))
    # From the bytes alone, so that all processes take the same number of turns.
    turns = max(FEWEST, int(200 * seconds / (1 + num_bytes / (1 << 20))))
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        jax.block_until_ready(spread(x))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fit_link(
    times: Iterable[tuple[float, float]], sends: float, share: float
) -> dict[str, float]:
    """Fit seconds = sends x latency + share x bytes / bandwidth, by relative errors.

    `times` are (bytes of the array, seconds). A latency below 0 is taken as 0.
    """
    rows = np.array([(sends, share * size) for size, _ in times])
    took = np.array([seconds for _, seconds in times])
    latency, each = np.linalg.lstsq(rows / took[:, None], np.ones(len(took)), rcond=None)[0]
    if latency < 0:
        latency, each = 0.0, float(np.mean(took / rows[:, 1]))
    return {"latency": float(latency), "bandwidth": 1 / max(float(each), 1e-15)}
