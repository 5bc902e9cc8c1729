"""What each cell of the benchmark predicts and measures."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from jax.sharding import AbstractMesh

from configs import fields
from configs.base import Experiment
from configs.sweeps.strategies import MEMBERS
from experiments.costs.step import compiled_costs
from experiments.planning.compiled import measure_absent
from experiments.planning.shapes import model_of
from experiments.run.check import check
from experiments.run.startup import read_config_file
from experiments.run.trial import build_trial
from experiments.studies.plan_accuracy.grid import config_of
from experiments.studies.plan_accuracy.limits import limit_overrides
from experiments.sweeps.results import Line
from parallel.cost.ledger import step_ledger
from parallel.cost.machine import Hardware, Link, Machine, parse
from parallel.cost.plan import Candidate, Model, candidates
from parallel.mesh import batch_degree

DEVICES = 8
NO_ROOM = "does not fit"  # of experiments.measure --topology


def compiled(cell: Line) -> Line:
    """Compile a cell on emulated devices: bytes sent, state and temporaries."""
    config = config_of(cell)
    mesh = check(config)
    trial = build_trial(config, config.data.vocab_size, mesh)
    costs = compiled_costs(
        trial.step, step_ledger(trial.step, mesh), trial.program.abstract
    )
    names = ("sent", "state", "temporary")
    return {name: costs[f"{name}_bytes"] for name in names}


def compiled_plan(cell: Line) -> Line:
    """Return the plan of a cell for emulated devices."""
    config = config_of(cell)
    mesh = absent_mesh(config, DEVICES)
    planned = of_mesh(
        shape_model(cell["part"], cell["shape"]),
        config,
        mesh,
        Hardware(nothing_known(), (DEVICES,)),
    )
    return {
        "planned_sent": planned.sent_bytes,
        "planned_state": state_of(planned),
        "planned_temporary": planned.memory_bytes - state_of(planned),
    }


@functools.cache
def shape_model(part: str, shape: int) -> Model:
    """Return the model of a shape; strategy and microbatches do not change it."""
    first = {"part": part, "shape": shape, "plan": "psum"}
    return model_of(config_of(first | {"strategy": "jit", "accumulation": 1}), "cpu")


def state_of(planned: Candidate) -> float:
    return sum(planned.memory[name] for name in ("parameters", "optimizer", "exchange"))


def nothing_known() -> Machine:
    """Return a machine of which no seconds are asked."""
    return Machine("none", {"float32": ((0.0, 1.0),)}, 1e12, 1.0, Link(1.0, 0.0), None, 1.0)


def of_mesh(model: Model, config: Experiment, mesh, hardware: Hardware) -> Candidate:
    """Return the plan of exactly this config on this mesh."""
    remat = getattr(config.model, "remat", "none")
    found = candidates(model, hardware, config.parallel, mesh, remat)
    return next(x for x in found if x.accumulation == config.parallel.accumulation)


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
            "fits": "total_bytes" in line,
            "limit": hardware.machine.memory, "parameters": model.param_bytes / 4,
        }  # fmt: skip


def absent(cell: Line) -> Line:
    """Compile a cell for absent TPUs: what the compiler says it takes, and does it fit.

    `bytes` is None where it does not fit, for then the compiler gives no total.
    """
    name, changed = absent_overrides(cell)
    figures = measure_absent(name, cell["topology"], changed)
    if NO_ROOM in figures.get("error", ""):
        return {"bytes": None, "fits": False, "said": figures["error"]}
    if "error" in figures:
        return figures
    names = {"bytes": "total", "peak": "peak", "state": "state", "sent": "sent"}
    return {key: figures[f"{x}_bytes"] for key, x in names.items()} | {"fits": True}


def absent_overrides(cell: Line) -> tuple[str, dict[str, Any]]:
    """Return the cell's file in configs/, and what the cell changes in it."""
    if cell["part"] == "limit":
        return limit_overrides(cell)
    return cell["model"], cell["overrides"]


def absent_plan(cell: Line) -> Line:
    """Return the plan of a cell for absent TPUs."""
    name, changed = absent_overrides(cell)
    config = fields.override(
        read_config_file(f"configs/{name}.py"),
        changed | {"precision.compute": "bfloat16"},
    )
    hardware = parse(cell["topology"])
    mesh = absent_mesh(config, hardware.num_devices)
    model = model_of(config, "tpu")
    planned = of_mesh(model, config, mesh, hardware)
    return {
        "parameters": model.param_bytes / 4,
        "planned_bytes": planned.memory_bytes,
        "planned_state": state_of(planned),
        "planned_sent": planned.sent_bytes,
        "planned_fits": planned.fits,
        "limit": hardware.machine.memory,
    }


def replanned(lines: list[Line]) -> list[Line]:
    """Return the lines with what is planned now."""
    plans = {"compiled": compiled_plan, "absent": absent_plan, "limit": absent_plan}
    return [
        line | plans[line["part"]](line) if line["part"] in plans else line
        for line in lines
    ]


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
