"""Microbatches from the plan, and what to do when a device has no memory left."""

import copy
import dataclasses
import os
import sys
from collections.abc import Sequence
from functools import partial

import jax

from configs import fields
from configs.base import Experiment
from experiments.costs.machine import memory_bytes
from experiments.planning.advice import (
    ERROR,
    LOWERED_BY,
    largest_part,
    named,
    nothing_fits,
)
from experiments.planning.shapes import model_of
from experiments.processes.messages import say, size
from experiments.run.check import within
from experiments.run.phases.phase import Phase, phases_of
from parallel.cost.machine import Hardware, Link, Machine
from parallel.cost.plan import Candidate, Model, candidates
from parallel.mesh import is_absent

EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


def settled(config: Experiment, devices: Sequence[jax.Device] | None = None) -> Experiment:
    """Replace parallel.accumulation=auto by the fewest microbatches that fit.

    `devices` are absent ones; None: those here. ValueError if no number fits. A family that
    counts tuples has one microbatch.
    """
    for phase in phases_of(config):
        if not phase.config.parallel.accumulation:
            number = within(phase, partial(fewest, phase.config, devices))
            name = f"{phase.field}.accumulation"
            config = fields.override(copy.deepcopy(config), {name: number})
    return config


def fewest(config: Experiment, devices: Sequence[jax.Device] | None) -> int:
    """Return the fewest microbatches of a config with one phase that fit."""
    if config.model.trained_by == "counts":
        return 1
    parallel = dataclasses.replace(config.parallel, accumulation=1)
    one = dataclasses.replace(config, parallel=parallel)
    one.validate()
    mesh = one.parallel.mesh(devices)
    hardware, model = these(mesh), model_of(one, mesh.devices.flat[0].platform)
    remat = getattr(config.model, "remat", "none")
    found = candidates(model, hardware, one.parallel, mesh, remat)
    if not found:
        raise ValueError(
            f"parallel.accumulation=auto: data.batch_size {model.rows} cannot be split "
            f"over the mesh {dict(mesh.shape)}; change one of them"
        )
    fitting = [each for each in found if each.memory_bytes <= (1 - ERROR) * each.limit]
    if not fitting:
        found.sort(key=lambda each: each.memory_bytes)
        raise ValueError(f"parallel.accumulation=auto: {nothing_fits(found, hardware)}")
    best = min(fitting, key=lambda each: each.accumulation)
    say(
        f"parallel.accumulation=auto: {best.accumulation}, for {size(best.memory_bytes)} "
        f"of a device's {size(best.limit)} by the plan"
    )
    return best.accumulation


def these(mesh: jax.sharding.Mesh) -> Hardware:
    """Return the devices of a mesh as hardware whose memory alone is known."""
    memory = memory_bytes(mesh) / mesh.size
    if not is_absent(mesh) and jax.default_backend() != "cpu":
        memory = memory_bytes(mesh) / jax.device_count()
    unknown = {"float32": ((0.0, 1.0),)}
    machine = Machine(
        "this", unknown, memory, 1.0, Link(1.0, 0.0), None, 1.0, efficiency=1.0
    )
    return Hardware(machine, (mesh.size,))


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether a device, or XLA's allocator, had too little memory."""
    return any(words in str(error) for words in EXHAUSTED)


def explained(error: Exception, config: Experiment, mesh: jax.sharding.Mesh) -> str:
    """Return an error of one line: the largest part of the memory, and what lowers it."""
    said = str(error).strip().splitlines()[0].rstrip(".")
    model: Model = model_of(config, mesh.devices.flat[0].platform)
    remat = getattr(config.model, "remat", "none")
    hardware, own = these(mesh), config.parallel
    found = [
        each
        for each in candidates(model, hardware, own, mesh, remat)
        if each.accumulation == own.accumulation
    ]
    if not found:
        return f"out of memory: {said}"
    one: Candidate = found[0]
    part = largest_part(one)
    return (
        f"out of memory: {said}. By the plan {named(one)} takes "
        f"{size(one.memory_bytes)} of a device's {size(one.limit)}; the largest part is "
        f"{part}, {size(one.memory[part])}: {LOWERED_BY[part]}; --on_oom=accumulate starts "
        "again with twice as many microbatches"
    )


def next_command(argv: Sequence[str], phase: Phase, degree: int) -> list[str]:
    """Return the command with twice the microbatches; ValueError if rows are too few.

    `degree` is the number of parts that the mesh splits a batch into.
    """
    config, flag = phase.config, flag_of(phase)
    number = 2 * config.parallel.accumulation
    if config.data.batch_size % (degree * number):
        raise ValueError(
            f"--on_oom=accumulate: data.batch_size {config.data.batch_size} over "
            f"{degree} devices cannot be cut into {number} microbatches; give a larger "
            "batch, more devices, or another strategy"
        )
    kept, skipped = [], False
    for argument in argv:
        if skipped:
            skipped = False
            continue
        name, equals, _ = argument.partition("=")
        if name.lstrip("-") == flag.lstrip("-"):
            skipped = not equals
            continue
        kept.append(argument)
    return [*kept, f"{flag}={number}"]


def flag_of(phase: Phase) -> str:
    return f"--config.{phase.field}.accumulation"


def start_again(phase: Phase, degree: int) -> None:
    """Replace this process by a fresh one, whose memory is empty, with more microbatches.

    The losses are the same up to rounding: microbatches only change the order of sums.
    ValueError in a run of several processes, whose others would wait for this one.
    """
    if jax.process_count() > 1:
        raise ValueError(
            "--on_oom=accumulate starts one process again, and this run has "
            f"{jax.process_count()}; give a larger {flag_of(phase)} to all of them"
        )
    command = next_command(sys.orig_argv[1:], phase, degree)
    say(f"out of memory; starting again with {command[-1].removeprefix('--config.')}")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *command], os.environ)
