"""Seconds of steps between two real processes, whose links an emulator limits.

Everything is measured over the same emulated network: first the constants of the machine
(experiments.calibrate), then the cells, whose shapes the calibration does not see.
"""

import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

from jax.sharding import AbstractMesh

from experiments.planning.hardware import machine_of
from experiments.processes import namespaces
from experiments.processes.children import GRACE_SECONDS, end, settle, wait
from experiments.processes.linked import PORT, workers
from experiments.processes.network.emulator import network
from experiments.studies.plan_accuracy.cells import of_mesh, shape_model
from experiments.studies.plan_accuracy.grid import config_of, overrides
from experiments.sweeps.members import as_flags
from experiments.sweeps.results import Line
from parallel.cost.machine import Hardware, Link, Machine

HOSTS = 2
MTU = 9000  # bytes of a packet; with smaller ones the emulator would need more of a core
PAYLOAD = (MTU - 52) / MTU  # 20 bytes of IP's header, 32 of TCP's
# How often a link between two processes carries the bytes of a collective, one direction
# after the other. In Gloo, a process that arrives later finds the other one ready, sends at
# once, and its own word that it is ready to receive waits behind its data. So the other one
# sends when the data have arrived: all of a permute, and of a gather, which has two halves,
# the first (pair.cc and allgather.cc of Gloo, gloo_communicator.cc of XLA). A sum says that
# it is ready before it sends. Links without a limit are bound by the cores, not by this.
TURNS = {"collective-permute": 2.0, "all-gather": 1.5}
FIRST, FEWEST, MOST_STEPS, MOST_SECONDS = 2, 3, 12, 1.2


def calibrated(seconds: float) -> Line:
    """Run experiments.calibrate in the hosts of a network; RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as folder, network(HOSTS, mtu=MTU):
        file = pathlib.Path(folder, "hardware.json")
        processes = []
        try:
            for index in range(HOSTS):
                command = [
                    *(sys.executable, "-m", "experiments.calibrate", f"--out={file}"),
                    *(f"--seconds={seconds}", "--devices=1"),
                    f"--coordinator={namespaces.address(0)}:{PORT}",
                    *(f"--num_processes={HOSTS}", f"--process_id={index}"),
                ]
                processes.append(
                    subprocess.Popen(
                        namespaces.inside(index, command),
                        stdout=subprocess.DEVNULL,
                        preexec_fn=partial(settle, index, HOSTS),
                    )
                )
            failed = wait(processes)
        finally:
            end(processes, GRACE_SECONDS)
        if failed is not None:
            raise RuntimeError("experiments.calibrate failed; its message stands above")
        return {"part": "machine"} | json.loads(file.read_text(encoding="utf-8"))


def timed(cells: list[Line]) -> Iterator[tuple[Line, Line]]:
    """Time the cells of one program between two processes, at each rate of the link."""
    command = ["--config=configs/tiny.py", *as_flags(overrides(cells[0]))]
    with network(HOSTS, mtu=MTU) as net, workers(HOSTS, command) as (started, sent):
        started.turn(FIRST)
        for cell in cells:
            net.set_rate(cell["rate"] * 1e6 or math.inf)
            took = started.turn(1)[0]["seconds"][-1]
            steps = max(FEWEST, min(MOST_STEPS, int(MOST_SECONDS / took)))
            seconds = started.turn(steps)[0]["seconds"]
            yield cell, {"seconds": statistics.median(seconds), "sent": sent}


def timed_plan(cell: Line, found: dict[str, Any]) -> Line:
    """Return the plan of a cell on the machine that was found, with its links limited."""
    config = config_of(cell)
    hardware = Hardware(limited(machine_of(found), cell["rate"]), (HOSTS,))
    model = shape_model(cell["part"], cell["shape"])
    planned = of_mesh(model, config, AbstractMesh((HOSTS,), ("data",)), hardware)
    return {
        "planned_seconds": planned.seconds,
        "planned_sent": planned.sent_bytes,
        "planned_k": planned.accumulation,
        "bound": planned.bound,
    }


def limited(machine: Machine, megabits: float) -> Machine:
    """Return the machine with links of this rate; 0: its own."""
    rate = megabits * 1e6 / 8 * PAYLOAD or math.inf

    def slower(link: Link, turns: float = 1.0) -> Link:
        return link._replace(bandwidth=min(link.bandwidth, rate / turns))

    collectives = {
        kind: slower(link, TURNS.get(kind, 1.0))
        for kind, link in machine.collectives.items()
    }
    return machine._replace(inner=slower(machine.inner), collectives=collectives)


def with_seconds(lines: list[Line]) -> list[Line]:
    """Return the lines, those that were timed with the plan of the machine of that time.

    That is the machine that was measured last before them.
    """
    found, machine = [], {}
    for line in lines:
        if line["part"] == "machine":
            machine = line
        if line["part"] == "timed":
            line = line | timed_plan(line, machine)
        found.append(line)
    return found
