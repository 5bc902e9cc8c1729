"""The cells of the benchmark: configs that no constant of the planner was fitted to."""

import dataclasses
import itertools
from typing import Any

from configs import fields
from configs.base import Experiment
from experiments.run.startup import read_config_file
from experiments.sweeps.results import Line

# width, layers, heads, hidden, length, rows, vocabulary
SHAPES = (
    (64, 2, 4, 192, 64, 32, 512),
    (96, 4, 4, 384, 48, 64, 1024),
    (128, 2, 8, 256, 128, 32, 2048),
    (160, 4, 4, 640, 32, 64, 768),
    (192, 2, 4, 512, 96, 32, 1536),
)
NAMES = (
    "model.width", "model.num_layers", "model.num_heads", "model.mlp_width",
    "data.seq_len", "data.batch_size", "data.vocab_size",
)  # fmt: skip
MESHES: dict[str, dict[str, int]] = {
    "jit": {},
    "shard_map": {},
    "zero1": {},
    "zero2": {},
    "fsdp": {},
    "hsdp": {"parallel.data": 2, "parallel.fsdp": 4},
    "tensor": {"parallel.data": 4, "parallel.tensor": 2},
    "hybrid": {"parallel.data": 2, "parallel.fsdp": 2, "parallel.tensor": 2},
    "gpipe": {"parallel.data": 4, "parallel.stage": 2},
    "1f1b": {"parallel.data": 4, "parallel.stage": 2},
}
# Pipelines need as many microbatches as stages.
MICROBATCHES = {"gpipe": (2, 4), "1f1b": (2, 4)}
TIMED = ("shard_map", "zero1", "zero2", "fsdp", "jit")  # between two processes
TIMED_SHAPES = (
    (64, 2, 4, 256, 128, 16, 4096),  # much to send, little to compute
    (128, 4, 4, 352, 128, 32, 2048),
    (256, 2, 4, 512, 128, 16, 1024),
    (192, 4, 4, 512, 256, 16, 512),  # much to compute
)
RATES = (0.0, 1000.0, 100.0, 30.0)  # megabits a second; 0: no limit
TIMES = 2  # each cell is measured twice, which gives the noise

LAYERS, REMAT, ROWS = "model.num_layers", "model.remat", "data.batch_size"
STRATEGY, MICROBATCHES_OF = "parallel.strategy", "parallel.accumulation"
OF_FOUR = {"parallel.data": 2, "parallel.tensor": 4}
OF_EIGHT = {"parallel.data": 2, "parallel.fsdp": 2, "parallel.tensor": 2}
PIPED = {"parallel.data": 4, "parallel.stage": 2}
# Compiled for eight absent chips: models of a few layers, which compile in minutes. The
# first five were in sight when the formula was written, the others were not.
NUM_SEEN = 5
ABSENT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gpt2_small", {LAYERS: 2, STRATEGY: "fsdp"}),
    ("gpt2_small", {LAYERS: 4, STRATEGY: "fsdp"}),
    ("llama_1b", {LAYERS: 2}),
    ("llama_1b", {LAYERS: 2, STRATEGY: "zero1"}),
    ("gpt2_small", {LAYERS: 4, STRATEGY: "1f1b"} | PIPED),
    ("gpt2_small", {LAYERS: 2, MICROBATCHES_OF: 1, ROWS: 120}),
    ("llama_1b", {LAYERS: 2, REMAT: "none"}),
    ("gpt2_small", {LAYERS: 2, REMAT: "full", STRATEGY: "fsdp"}),
    ("llama_1b", {LAYERS: 2, STRATEGY: "tensor"} | OF_FOUR),
    ("llama_1b", {LAYERS: 2, "model.loss_chunk": 128}),
    (
        "gpt2_small",
        {LAYERS: 2, STRATEGY: "fsdp", MICROBATCHES_OF: 1, ROWS: 120},
    ),
    ("llama_1b", {LAYERS: 2, STRATEGY: "shard_map"}),
    ("llama_1b", {LAYERS: 2, STRATEGY: "zero2"}),
    ("llama_1b", {LAYERS: 2, STRATEGY: "hybrid"} | OF_EIGHT),
    ("llama_1b", {LAYERS: 2, STRATEGY: "jit"}),
)


def absent_cells() -> list[Line]:
    return [
        {"part": "absent", "model": model, "topology": "tpu-v5e:2x4", "overrides": changed}
        for model, changed in ABSENT
    ]


def compiled_cells() -> list[Line]:
    """Return 100 cells to compile on eight emulated devices."""
    return [
        {"part": "compiled", "strategy": name, "shape": shape, "accumulation": number}
        for shape, name in itertools.product(range(len(SHAPES)), MESHES)
        for number in MICROBATCHES.get(name, (1, 4))
    ]


def timed_cells() -> list[Line]:
    """Return the cells to time between two processes; four numbers decide a plan."""
    return [
        {
            "part": "timed", "strategy": name, "shape": shape, "accumulation": number,
            "rate": rate, "time": time,
        }
        for shape, name, number, rate, time in itertools.product(
            range(len(TIMED_SHAPES)), TIMED, (1, 4), RATES, range(TIMES)
        )
    ]  # fmt: skip


def overrides(cell: Line) -> dict[str, Any]:
    """Return what a cell changes in configs/tiny.py."""
    shapes = TIMED_SHAPES if cell["part"] == "timed" else SHAPES
    shape = dict(zip(NAMES, shapes[cell["shape"]], strict=True))
    mesh = {} if cell["part"] == "timed" else MESHES[cell["strategy"]]
    return (
        shape
        | mesh
        | {
            "parallel.strategy": cell["strategy"],
            "parallel.accumulation": cell["accumulation"],
        }
    )


def config_of(cell: Line) -> Experiment:
    config = read_config_file("configs/tiny.py")
    return fields.override(dataclasses.replace(config), overrides(cell))
