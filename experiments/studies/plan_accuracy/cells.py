"""What each cell of the benchmark predicts and measures."""

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

from jax.sharding import AbstractMesh

from configs import fields
from configs.base import Experiment
from configs.sweeps.strategies import MEMBERS
from experiments.costs.step import compiled_costs
from experiments.planning.compiled import measure_absent
from experiments.planning.shapes import model_of
from experiments.processes import namespaces
from experiments.processes.linked import workers
from experiments.run.build import check
from experiments.run.startup import read_config_file
from experiments.run.trial import build_trial
from experiments.studies.plan_accuracy.grid import config_of, overrides
from experiments.sweeps.members import as_flags
from experiments.sweeps.results import Line
from parallel.cost.ledger import step_ledger
from parallel.cost.machine import Hardware, Link, Machine, parse
from parallel.cost.plan import Candidate, Model, candidates
from parallel.mesh import batch_degree

HOSTS = 2
WARMUP, MOST_STEPS, MOST_SECONDS = 3, 12, 10.0


def compiled(cell: Line) -> Line:
    """Compile a cell on emulated devices: bytes sent, state and temporaries."""
    config = config_of(cell)
    mesh = check(config)
    model = model_of(config, "cpu")
    planned = of_mesh(model, config, mesh, Hardware(nothing_known(), (mesh.size,)))
    trial = build_trial(config, config.data.vocab_size, mesh)
    costs = compiled_costs(
        trial.step, step_ledger(trial.step, mesh), trial.program.abstract
    )
    return {
        "planned_sent": planned.sent_bytes,
        "sent": costs["sent_bytes"],
        "planned_state": state_of(planned),
        "state": costs["state_bytes"],
        "planned_temporary": planned.memory_bytes - state_of(planned),
        "temporary": costs["temporary_bytes"],
    }


def state_of(planned: Candidate) -> float:
    return sum(planned.memory[name] for name in ("parameters", "optimizer", "exchange"))


def nothing_known() -> Machine:
    """Return a machine of which no seconds are asked."""
    return Machine("none", {"float32": ((0.0, 1.0),)}, 1e12, 1.0, Link(1.0, 0.0), None)


def of_mesh(model: Model, config: Experiment, mesh, hardware: Hardware) -> Candidate:
    """Return the plan of exactly this config on this mesh."""
    remat = getattr(config.model, "remat", "none")
    found = candidates(model, hardware, config.parallel, mesh, remat)
    return next(x for x in found if x.accumulation == config.parallel.accumulation)


def timed(cells: list[Line], machine: Machine) -> Iterator[tuple[Line, Line]]:
    """Time the cells of one program between two processes, at each rate of the link."""
    config = config_of(cells[0])
    model = model_of(config, "cpu")
    mesh = AbstractMesh((HOSTS,), ("data",))
    command = ["--config=configs/tiny.py", *as_flags(overrides(cells[0]))]
    with namespaces.network(HOSTS), workers(HOSTS, command) as (started, sent):
        started.turn(WARMUP)
        for cell in cells:
            rate = cell["rate"]
            namespaces.set_rate(HOSTS, rate or None)
            hardware = Hardware(limited(machine, rate), (HOSTS,))
            planned = of_mesh(model, config, mesh, hardware)
            wire = sent * 8 / (rate * 1e6) if rate else 0.0
            steps = max(2, min(MOST_STEPS, int(MOST_SECONDS / (wire + 0.1))))
            seconds = started.turn(steps)[0]["seconds"]
            yield (
                cell,
                {
                    "planned_seconds": planned.seconds,
                    "seconds": statistics.median(seconds),
                    "bound": planned.bound,
                },
            )


def limited(machine: Machine, megabits: float) -> Machine:
    """Return the machine with links of this rate; 0: its own."""
    if not megabits:
        return machine
    rate = megabits * 1e6 / 8

    def slower(link: Link) -> Link:
        return link._replace(bandwidth=min(link.bandwidth, rate))

    collectives = {kind: slower(link) for kind, link in machine.collectives.items()}
    return machine._replace(inner=slower(machine.inner), collectives=collectives)


def tpu_lines(lines: list[Line], hardware: Hardware) -> Iterator[Line]:
    """Yield a line for each cell of results/tpu.jsonl: memory, and does it fit."""
    models: dict[str, tuple[Experiment, Model]] = {}
    for line in lines:
        if "total_bytes" not in line and "does not fit" not in line.get("error", ""):
            continue
        name = line["model"]
        if name not in models:
            config = read_config_file(f"configs/{name}.py")
            models[name] = config, model_of(config, "tpu")
        config, model = models[name]
        own = fields.override(
            dataclasses.replace(config, parallel=dataclasses.replace(config.parallel)),
            microbatches(MEMBERS[line["member"]], config),
        )
        mesh = absent_mesh(own, hardware.num_devices)
        if model.rows % (batch_degree(mesh) * own.parallel.accumulation):
            continue
        planned = of_mesh(model, own, mesh, hardware)
        yield {
            "part": "tpu", "model": name, "topology": line["topology"],
            "member": line["member"], "planned_bytes": planned.memory_bytes,
            "bytes": line.get("total_bytes"), "planned_fits": planned.fits,
            "fits": line.get("total_bytes", float("inf")) <= hardware.machine.memory,
            "limit": hardware.machine.memory,
        }  # fmt: skip


def absent(cell: Line) -> Line:
    """Compile a cell for absent TPUs; give the plan beside the compiler's figures."""
    figures = measure_absent(cell["model"], cell["topology"], cell["overrides"])
    return figures if "error" in figures else beside_plan(cell, figures)


def beside_plan(cell: Line, figures: dict[str, Any]) -> Line:
    """Return the compiler's memory and the plan's."""
    config = fields.override(
        read_config_file(f"configs/{cell['model']}.py"),
        cell["overrides"] | {"precision.compute": "bfloat16"},
    )
    hardware = parse(cell["topology"])
    mesh = absent_mesh(config, hardware.num_devices)
    planned = of_mesh(model_of(config, "tpu"), config, mesh, hardware)
    return {
        "bytes": figures["total_bytes"],
        "planned_bytes": planned.memory_bytes,
        "state": figures["state_bytes"],
        "planned_state": state_of(planned),
        "sent": figures["sent_bytes"],
        "planned_sent": planned.sent_bytes,
        "fits": True,
        "planned_fits": planned.fits,
        "limit": hardware.machine.memory,
    }


def microbatches(member: dict[str, Any], config: Experiment) -> dict[str, Any]:
    """Return the member's overrides as experiments.studies.tpu has them."""
    name = "parallel.accumulation"
    return member | {name: max(config.parallel.accumulation, member.get(name, 1))}


def absent_mesh(config: Experiment, num_devices: int) -> AbstractMesh:
    """Return the mesh of a config over so many devices that are not here."""
    axes = [axis for axis in config.parallel.axes if axis != "slice"]
    degrees = {axis: getattr(config.parallel, axis) for axis in axes}
    rest = num_devices
    for n in degrees.values():
        rest //= n if n > 0 else 1
    degrees = {axis: rest if n == -1 else n for axis, n in degrees.items()}
    return AbstractMesh(tuple(degrees.values()), tuple(degrees))
