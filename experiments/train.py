"""Train a language model, data-parallel.

python -m experiments.train --config=configs/tiny.py --workdir=runs/tiny --devices=8
    [--config.parallel.strategy=fsdp --config.optim.learning_rate=3e-4 ...]

Prints the losses and, at the end, a block of results; writes the run into the workdir
(experiments/run/workdir.py lists its files). configs/tiny.py takes about two minutes on 2
CPU cores. The same command again continues from the last complete checkpoint, on any number
of devices and under any strategy; parallel.phases in a config file change these on the way.
With larger --config.steps, a complete run trains on.
"""

import contextlib
import pathlib
from functools import partial

import jax
from absl import flags
from jax.sharding import Mesh

from experiments.asynchronous.pool import pool_of
from experiments.planning.absent import compiled, start_devices
from experiments.planning.dry_run import dry_run
from experiments.planning.out_of_memory import (
    explained,
    is_out_of_memory,
    settled,
    start_again,
)
from experiments.processes import join, topology
from experiments.processes.faults import Fault
from experiments.processes.messages import is_main_process, say, user_errors
from experiments.run import startup
from experiments.run.build import given_vectors
from experiments.run.check import check_compiles, check_data, check_phases, within
from experiments.run.compression.teacher import check_teacher
from experiments.run.extension import new_end
from experiments.run.phases.builder import Builder
from experiments.run.phases.driver import train_phases
from experiments.run.phases.phase import Phase, phases_of
from experiments.run.summary import print_summary, read_summary, sample_inputs
from experiments.run.survival.clock import Clock
from experiments.run.survival.copies import check_copies
from experiments.run.survival.injection import define_faults, gradient_flips, read_faults
from experiments.run.survival.replicas import DAMAGED, Damage
from experiments.run.workdir import claimed
from lm.data.prepare import Data, prepare
from lm.data.rows.checked import CorruptRows
from parallel.mesh import batch_degree

join.define_flags()
CONFIG = startup.define_config()
WORKDIR = startup.define_workdir()
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print memory and bytes on the wire; train nothing."
)
TOPOLOGY = topology.define_flag()
ON_OOM = flags.DEFINE_enum(
    "on_oom",
    "stop",
    ["stop", "accumulate"],
    "Without memory: stop with the part that is the largest, or start again with twice as "
    "many microbatches, which gives the same losses.",
)
STOP_AT = flags.DEFINE_integer(
    "stop_at",
    None,
    "Save and end after this step; without it, the same command continues the run.",
    lower_bound=1,
)
FAULTS = define_faults()
PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "START:STOP: trace the steps after START up to STOP, for TensorBoard and XProf.",
)


def main() -> None:
    clock = Clock()
    with contextlib.ExitStack() as held:
        with user_errors():
            config = startup.load_config(CONFIG)
            folder = None if DRY_RUN.value else startup.workdir(WORKDIR)
            profiled = profiled_steps(PROFILE.value)
            if TOPOLOGY.value and not DRY_RUN.value:
                raise ValueError("--topology compiles and runs nothing; add --dry_run")
            devices = start_devices(TOPOLOGY.value, config)
            config = settled(config, devices)
            phases, meshes = phases_of(config), check_phases(config, devices)
            if folder is None:
                dry_runs(phases, meshes)
                return
            with clock("prepare"):
                data = prepare(config.data)
            # Checked here, before the workdir is claimed.
            check_data(config, data, *meshes)
            check_teacher(config, data)
            sample_inputs(config, data.tokenizer)
            given = given_vectors(config, data.tokenizer)
            vocab_size = data.tokenizer.get_vocab_size()
            pools = [
                pool_of(phase.config, vocab_size, mesh)
                for phase, mesh in zip(phases, meshes, strict=True)
            ]
            for phase in phases:
                within(phase, partial(check_copies, phase.config))
            faults = phase_faults(phases, meshes, data, folder)[0]
            change = new_end(folder, config, data)
            held.enter_context(join.leaving_at_once())
            held.enter_context(claimed(folder, config, data, write=is_main_process()))
            if summary := read_summary(folder):
                say(f"{folder} is complete; give more --config.steps to train on")
                print_summary(summary)
                return
        if change:
            say(change)
        if given:
            say(f"{len(given.ids)} of {vocab_size} tokens begin with given vectors")
        flips = gradient_flips(faults, folder, config.seed)
        builder = Builder(folder, data, clock, meshes, pools, given, flips)
        try:
            with (
                user_errors(OSError, FloatingPointError, CorruptRows),
                user_errors(Damage, code=DAMAGED),
            ):
                train_phases(phases, folder, builder, STOP_AT.value, profiled, faults)
            return
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            message = explained(error, builder.phase.config, builder.mesh)
    # Here the workdir is free again.
    with user_errors():
        if ON_OOM.value == "accumulate":
            start_again(builder.phase, batch_degree(builder.mesh))
        raise ValueError(message)


def phase_faults(
    phases: list[Phase], meshes: list[Mesh], data: Data, folder: pathlib.Path
) -> list[list[Fault]]:
    """Return the faults as each phase reads them; all phases must be able to have them."""
    return [
        within(phase, partial(read_faults, FAULTS.value, phase.config, mesh, data, folder))
        for phase, mesh in zip(phases, meshes, strict=True)
    ]


def dry_runs(phases: list[Phase], meshes: list[Mesh]) -> None:
    """Print what each phase needs."""
    for phase in phases:
        within(phase, partial(check_compiles, phase.config))
    for phase, mesh in zip(phases, meshes, strict=True):
        if phase.count > 1:
            print("\n" * bool(phase.index) + phase.told)
        with topology.compiler_errors(compiled(phase.config, "tpu")):
            dry_run(phase, mesh)


def profiled_steps(flag: str | None) -> range:
    """Return the steps that --profile asks for; ValueError if it is not START:STOP."""
    if flag is None:
        return range(0)
    start, _, stop = flag.partition(":")
    if not (start.isdigit() and stop.isdigit() and int(start) < int(stop)):
        raise ValueError(f"--profile={flag}: expected START:STOP, two steps, as in 10:15")
    return range(int(start) + 1, int(stop) + 1)


if __name__ == "__main__":
    startup.run(main)
