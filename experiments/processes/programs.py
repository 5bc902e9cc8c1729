"""The cache of compiled programs, shared by all processes of a machine."""

import os
import pathlib

import jax
import numpy as np
from jax._src import cache_key
from jax._src.distributed import global_state
from jax._src.lib import xla_client

KEY = "lockstep/topology"
PATIENCE_MS = 60_000


def use_cache() -> None:
    """Keep compiled programs in the user's cache folder, if it can be written."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        cache = pathlib.Path("~/.cache/lockstep/xla").expanduser()
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return
    if os.access(cache, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # By default only what takes a second to compile is kept. A process that is started
        # again compiles dozens of small programs, which together take longer than a step.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def share_cache() -> None:
    """Let all processes of this machine read the programs that process 0 has cached.

    JAX lets only process 0 write to the cache. A program's key holds a fingerprint of the
    devices. On CPUs the fingerprint differs between processes, so without this function the
    others never find a cached program and compile everything at each start. Here all
    processes use the fingerprint of process 0.

    jax_share_binary_between_hosts would save the first compilation too. But a process that
    misses the cache just before another run fills it would wait for a program that nobody
    sends; and each process has its own cores to compile with.
    """
    devices = jax.devices()  # every process must call this: they exchange their devices
    if global_state.process_id == 0:
        topology = xla_client.get_topology_for_devices(devices)
        global_state.client.key_value_set(KEY, str(topology.fingerprint()))
    first = global_state.client.blocking_key_value_get(KEY, PATIENCE_MS)
    usual = cache_key._hash_accelerator_config

    def hash_machine(hash_obj, devices: np.ndarray) -> None:
        if len({device.process_index for device in devices.flat}) > 1:
            hash_obj.update(first.encode())
        else:
            usual(hash_obj, devices)

    cache_key._hash_accelerator_config = hash_machine
