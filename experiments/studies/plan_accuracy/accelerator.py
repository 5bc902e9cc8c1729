"""Seconds and memory of steps on the one GPU or TPU that is here, and what was planned.

No constant of the planner was fitted to these cells. Each runs in a process of its own.
"""

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from configs import fields
from configs.base import Experiment
from experiments.planning.hardware import machine_of
from experiments.planning.shapes import model_of
from experiments.run.startup import read_config_file
from experiments.studies.plan_accuracy.cells import absent_mesh, of_mesh
from experiments.studies.plan_accuracy.grid import REMAT, ROWS, STRATEGY, K
from experiments.sweeps.members import as_flags
from experiments.sweeps.results import Line
from parallel.cost.machine import Hardware, parse

# What JAX calls a device -> what a plan calls it.
KINDS = {
    "H100": "h100:1",
    "H200": "h200:1",
    "A100": "a100:1",
    "TPU v5 lite": "tpu-v5e:1",
    "TPU v5": "tpu-v5p:1",
    "TPU v6 lite": "tpu-v6e:1",
}
CHUNK = "model.loss_chunk"
# The built corpus has enough text for a tokenizer of this size.
COMMON = {"data.vocab_size": 32_768, "data.seq_len": 1024, STRATEGY: "shard_map", K: 1}
CELLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gpt2_small", {ROWS: 16, CHUNK: 0}),
    ("gpt2_small", {ROWS: 16, CHUNK: 256}),
    ("llama_1b", {ROWS: 16}),
    ("llama_1b", {ROWS: 16, STRATEGY: "jit", "parallel.offload": "optimizer"}),
    ("gpt2_small", {ROWS: 16, CHUNK: 0, "model.attention": "xla"}),
    ("gpt2_small", {ROWS: 64, CHUNK: 0, K: 4}),
    ("gpt2_small", {ROWS: 32, CHUNK: 256, REMAT: "full"}),
    ("gpt2_small", {ROWS: 16, CHUNK: 0, STRATEGY: "fsdp"}),
    ("gpt2_small", {ROWS: 64, CHUNK: 0, "model.width": 256, "model.num_heads": 4}),
    ("llama_1b", {ROWS: 8, REMAT: "none", CHUNK: 0}),
)
WARM_UP, NUM_STEPS = 3, 10


def device_cells() -> list[Line]:
    return [{"part": "device", "model": name, "overrides": each} for name, each in CELLS]


def on_device(cell: Line) -> Line:
    """Take steps of a cell; CalledProcessError if they fail."""
    command = [
        *(sys.executable, "-m", "experiments.measure"),
        f"--config=configs/{cell['model']}.py",
        *as_flags(COMMON | cell["overrides"]),
        *(f"--warm_up={WARM_UP}", f"--num_steps={NUM_STEPS}"),
    ]
    found = told_by(command, "output")
    return {
        "seconds": found["step_seconds"],
        "quartiles": found["step_seconds_quartiles"],
        "tokens_per_second": found["tokens_per_second"],
        "product_limit": found["product_limit"],
        "bytes": found["peak_bytes"],
        "state": found["state_bytes"],
        "observed_bytes": found["observed_peak_bytes"],
    }


def calibrated_device(seconds: float) -> Line:
    """Measure the device's constants; CalledProcessError if experiments.calibrate fails."""
    command = [sys.executable, "-m", "experiments.calibrate", f"--seconds={seconds}"]
    return {"part": "device machine"} | told_by([*command, "--processes=1"], "out")


def told_by(command: list[str], flag: str) -> dict[str, Any]:
    """Run a command of ours and read the JSON that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "told.json")
        subprocess.run([*command, f"--{flag}={file}"], check=True)
        return json.loads(file.read_text(encoding="utf-8"))


@functools.cache
def device_kind() -> str:
    """Return the kind of the device, asked in a process that ends: one holds a TPU."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    said = subprocess.check_output([sys.executable, "-c", code])
    return said.decode("utf-8").strip()


def sheet_of(kind: str) -> Hardware:
    """Return the data sheet of a kind of device; ValueError if there is none."""
    for part, name in KINDS.items():
        if part in kind:
            return parse(name)
    raise ValueError(
        f"--parts=device: the device here is a {kind}, and plans know {', '.join(KINDS)}"
    )


def with_devices(lines: list[Line]) -> list[Line]:
    """Return the lines, those of this part with what is planned now."""
    machines = [line for line in lines if line["part"] == "device machine"]
    return [
        line | device_plan(line, machines) if line["part"] == "device" else line
        for line in lines
    ]


def device_plan(line: Line, machines: list[Line]) -> Line:
    """Return the plans of a cell: by the data sheet, and by what calibrate has measured."""
    config = device_config(line)
    sheet = sheet_of(line["device"])
    model = model_of(config, sheet.machine.platform)
    mesh = absent_mesh(config, 1)
    planned = of_mesh(model, config, mesh, sheet)
    found = {"planned_seconds": planned.seconds, "planned_bytes": planned.memory_bytes}
    for measured in machines:
        if measured["device"] == line["device"]:
            own = Hardware(machine_of(measured), (1,))
            found["calibrated_seconds"] = of_mesh(model, config, mesh, own).seconds
    return found


def device_config(cell: Line) -> Experiment:
    config = read_config_file(f"configs/{cell['model']}.py")
    return fields.override(config, COMMON | cell["overrides"])
