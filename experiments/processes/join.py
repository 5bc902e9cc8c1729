"""The devices of this process, and how it joins the others of a run."""

import os
import pathlib

import jax
from absl import flags

from experiments.processes import allocator
from experiments.processes.messages import say

flags.disclaim_key_flags()  # they are shown as those of the command that asks for them

# JAX's default of 100 s is long to wait for the news that a process has died.
HEARTBEAT_SECONDS = 30

# Emulated devices meet in threads, and XLA ends the process if one is 40 s late, as it may
# be on a busy machine.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=600"


def define_flags() -> None:
    """Define the flags of devices and processes, which `start_jax` reads."""
    flags.DEFINE_integer(
        "devices", 0, "Emulate this many CPU devices where there is no accelerator."
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "host:port of process 0. Needed only where JAX cannot find the processes itself: "
        "SLURM, MPI, Kubernetes and TPU pods are recognised.",
    )
    flags.DEFINE_integer("num_processes", None, "With --coordinator.")
    flags.DEFINE_integer("process_id", None, "With --coordinator.")
    flags.DEFINE_enum(
        "allocator",
        "mimalloc",
        ["mimalloc", "system"],
        "Of JAX on a CPU. experiments/processes/allocator.py reads it before all others.",
    )


def start_jax() -> None:
    """Set devices and the compilation cache; join the other processes if there are any."""
    devices = flags.FLAGS.devices
    if devices:
        jax.config.update("jax_num_cpu_devices", devices)
        os.environ["XLA_FLAGS"] = f"{PATIENCE} {os.environ.get('XLA_FLAGS', '')}"
    if devices <= 1:
        # One CPU device gains nothing from two steps at once, but would hold the buffers of
        # both. Other devices ignore this.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.config.jax_compilation_cache_dir is None:
        cache = pathlib.Path("~/.cache/lockstep/xla").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))
    join_processes()
    if allocator.is_loaded():
        say("mimalloc keeps freed memory; --allocator=system switches it off")


def join_processes() -> None:
    given = flags.FLAGS
    if given.coordinator:
        jax.distributed.initialize(
            given.coordinator,
            given.num_processes,
            given.process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        # JAX's way to say that it recognised no cluster: this is the only process.
        if "coordinator_address" not in str(error):
            raise


def use_eight_devices() -> None:
    """Emulate eight devices where there is no accelerator; before JAX is first used."""
    jax.config.update("jax_num_cpu_devices", 8)
