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
# Programs that are timed between two processes: name -> what is changed.
ALGORITHM, K = "parallel.exchange.algorithm", "parallel.accumulation"
TIMED: dict[str, dict[str, Any]] = {
    "psum": {"parallel.strategy": "shard_map"},
    "fsdp, 4 microbatches": {"parallel.strategy": "fsdp", K: 4},
    "zero2, 2 microbatches": {"parallel.strategy": "zero2", K: 2},
    "zero1": {"parallel.strategy": "zero1"},
    "jit, 2 microbatches": {"parallel.strategy": "jit", K: 2},
    "ring, 4 microbatches": {"parallel.strategy": "shard_map", ALGORITHM: "ring", K: 4},
    "fsdp, 2 microbatches": {"parallel.strategy": "fsdp", K: 2},
    "all_gather": {"parallel.strategy": "shard_map", ALGORITHM: "all_gather"},
    "zero2, 4 microbatches": {"parallel.strategy": "zero2", K: 4},
}
TIMED_SHAPES = (
    (64, 2, 4, 256, 128, 16, 4096),  # much to send, little to compute
    (192, 4, 4, 512, 256, 16, 512),  # much to compute
    (256, 2, 4, 512, 128, 16, 1024),
    (128, 4, 4, 352, 128, 32, 2048),
)
RATES = (0.0, 200.0, 100.0, 50.0)  # megabits a second; 0: no limit
TIMES = 2  # each cell is measured twice, which gives the noise

LAYERS, REMAT, ROWS = "model.num_layers", "model.remat", "data.batch_size"
STRATEGY = "parallel.strategy"
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
    ("gpt2_small", {LAYERS: 2, K: 1, ROWS: 120}),
    ("llama_1b", {LAYERS: 2, REMAT: "none"}),
    ("gpt2_small", {LAYERS: 2, REMAT: "full", STRATEGY: "fsdp"}),
    ("llama_1b", {LAYERS: 2, STRATEGY: "tensor"} | OF_FOUR),
    ("llama_1b", {LAYERS: 2, "model.loss_chunk": 128}),
    (
        "gpt2_small",
        {LAYERS: 2, STRATEGY: "fsdp", K: 1, ROWS: 120},
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
    """Return the cells to time between two processes, shape by shape."""
    return [
        {"part": "timed", "shape": shape, "plan": name, "rate": rate, "time": time}
        for shape, name, time, rate in itertools.product(
            range(len(TIMED_SHAPES)), TIMED, range(TIMES), RATES
        )
    ]


def overrides(cell: Line) -> dict[str, Any]:
    """Return what a cell changes in configs/tiny.py."""
    if cell["part"] == "timed":
        shape = dict(zip(NAMES, TIMED_SHAPES[cell["shape"]], strict=True))
        return shape | TIMED[cell["plan"]]
    shape = dict(zip(NAMES, SHAPES[cell["shape"]], strict=True))
    numbers = {"parallel.strategy": cell["strategy"], K: cell["accumulation"]}
    return shape | MESHES[cell["strategy"]] | numbers


def config_of(cell: Line) -> Experiment:
    config = read_config_file("configs/tiny.py")
    return fields.override(dataclasses.replace(config), overrides(cell))
