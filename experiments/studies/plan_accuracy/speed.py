"""How long planning takes: the arithmetic alone, and the whole command."""

import subprocess
import sys
import time

from experiments.planning.search import planned, strategies_of
from experiments.planning.shapes import model_of
from experiments.run.startup import read_config_file
from experiments.sweeps.results import Line
from parallel.cost.machine import parse

CELLS = (
    ("tiny", "h100:8"),
    ("gpt2_small", "h100:8x2"),
    ("llama_1b", "tpu-v5e:4x8"),
    ("llama_1b", "4*tpu-v5e:16x16"),
)


def speed_cells() -> list[Line]:
    return [
        {"part": "speed", "model": name, "hardware": hardware} for name, hardware in CELLS
    ]


def speed(cell: Line) -> Line:
    """Plan a config once in this process, and once by the command."""
    config, hardware = read_config_file(f"configs/{cell['model']}.py"), cell["hardware"]
    devices = parse(hardware)
    config.data.batch_size = max(config.data.batch_size, devices.num_devices)
    model = model_of(config, devices.machine.platform)
    start = time.perf_counter()
    found = planned(model, devices, config, strategies_of(None, config))
    middle = time.perf_counter()
    subprocess.run(
        [
            sys.executable, "-m", "experiments.plan", f"--hardware={hardware}",
            f"--config=configs/{cell['model']}.py",
            f"--config.data.batch_size={config.data.batch_size}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return {
        "candidates": len(found),
        "planning": middle - start,
        "command": time.perf_counter() - middle,
    }
