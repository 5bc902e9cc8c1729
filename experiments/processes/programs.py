"""Compiled programs: kept from run to run, for all processes of a machine."""

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
    """Keep programs in the user's cache, if there is one that can be written."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        cache = pathlib.Path("~/.cache/lockstep/xla").expanduser()
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return
    if os.access(cache, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(cache))


def share_cache() -> None:
    """Let all processes of this machine read the programs that process 0 has kept.

    JAX lets process 0 alone write to the cache. A program's key holds a fingerprint of the
    machine, and among CPUs each process has its own, so that the others never find what is
    kept and compile everything at each start. Here all take the fingerprint of process 0.
    (jax_share_binary_between_hosts would spare the first compilation too, but a process
    that misses the cache just before another run fills it would wait for its program in
    vain; and each process has its own cores to compile with.)
    """
    devices = jax.devices()  # in all: they tell each other of theirs
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
