"""The devices that a command compiles for: those here, or the absent ones of --topology."""

import jax
from absl import flags

from configs.base import Experiment
from experiments.processes import join, topology
from experiments.run.build import setting

flags.disclaim_key_flags()  # --help then lists them as the command's own flags


def start_devices(flag: str | None, config: Experiment) -> list[jax.Device] | None:
    """Start JAX. Return the absent devices that --topology names; None: run on those here.

    With --topology, this function returns in a child process only.
    """
    if flag is None:
        join.start_jax()
        return None
    config.validate()
    if flags.FLAGS.coordinator:
        raise ValueError(
            f"--topology={flag} compiles in one process; leave out --coordinator"
        )
    return topology.absent_devices(flag, compiled(config, "tpu"))


def compiled(config: Experiment, platform: str) -> str:
    """Name what is compiled in messages: the strategy and the kernel of attention."""
    name = f"strategy {config.parallel.strategy}"
    if not hasattr(config.model, "kernel"):
        return name
    kernel = config.model.kernel(setting(config, config.data.vocab_size), platform)
    return f"{name}, attention kernel {kernel}"
