"""The FLOP/s and the memory of this machine, and the peak memory of a process."""

import functools
import os
import re
import resource
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallel.mesh import is_absent

PRODUCT_SECONDS = 0.5  # how long products are repeated to find the limit


def product_limit() -> float:
    """Measure the FLOP/s of one device in products of two large matrices.

    They are float32 on a CPU, and bfloat16 on an accelerator, whose units are made for it,
    whatever a model computes in. One emulated device already uses every core, so the result
    is that of all of them.
    """
    # Cores are busy with less than an accelerator, and would take seconds for its product.
    on_cpu = jax.default_backend() == "cpu"
    width, dtype = (2048, "float32") if on_cpu else (8192, "bfloat16")
    a = jax.random.normal(jax.random.key(0), (width, width), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    rates, began = [], time.perf_counter()
    while time.perf_counter() - began < PRODUCT_SECONDS or len(rates) < 3:
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        rates.append(2 * width**3 / (time.perf_counter() - start))
    return max(rates)


def are_emulated() -> bool:
    """Tell whether devices share this process's cores, so that more are not faster."""
    return jax.default_backend() == "cpu" and jax.local_device_count() > 1


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def peak_memory_bytes() -> int:
    """Return the peak memory of a GPU or TPU; on a CPU, that of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes(mesh: Mesh) -> int:
    """Return the memory of all devices together; on a CPU, that of the machine."""
    if is_absent(mesh):
        return chip_memory_bytes(mesh.devices.flat[0]) * mesh.size
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] * jax.device_count()
    one = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return one * jax.process_count()


@functools.cache
def chip_memory_bytes(device: jax.Device) -> int:
    """Return an absent device's memory, which the compiler names as it refuses more."""
    one = NamedSharding(Mesh([device], "x"), PartitionSpec())
    huge = jax.ShapeDtypeStruct((1 << 45,), jnp.int8, sharding=one)
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        number, unit = re.search(r"available HBM \(([\d.]+)([GT])\)", str(error)).groups()
        return int(float(number) * {"G": 1 << 30, "T": 1 << 40}[unit])
    raise RuntimeError(f"the compiler gives no limit to the memory of {device}")
