"""What this machine can do at best, and what a process of it holds."""

import os
import resource
import time

import jax
import jax.numpy as jnp

PRODUCT_SECONDS = 0.5  # how long products are repeated to find the limit


def product_limit(width: int = 4096) -> float:
    """Measure the FLOP/s of one device in products of float32 matrices.

    Of all emulated devices together, for one already takes every core.
    """
    a = jax.random.normal(jax.random.key(0), (width, width))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    rates, began = [], time.perf_counter()
    while time.perf_counter() - began < PRODUCT_SECONDS or len(rates) < 3:
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        rates.append(2 * width**3 / (time.perf_counter() - start))
    return max(rates)


def are_emulated() -> bool:
    """Whether this process's devices share its cores, so that more are not faster."""
    return jax.default_backend() == "cpu" and jax.local_device_count() > 1


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def peak_memory_bytes() -> int:
    """Return a device's peak where it tells (GPU, TPU), else this process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_bytes() -> int:
    """Return the memory of all devices together; of CPU devices, that of the machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] * jax.device_count()
    one = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return one * jax.process_count()
