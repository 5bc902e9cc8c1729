"""Cells for absent TPUs near the limit of a chip's memory.

Two models of four layers in a loop: one keeps the inputs of its layers alone, the other
keeps all. Their layers are large, and one is compiled for all, so a cell takes about a
minute of a core. The rows of a batch were chosen so that the plan comes out at 0.6, 0.88,
0.95, 1.05, 1.12 or 1.5 of the limit. No constant of the planner was fitted to them.
"""

from typing import Any

from experiments.sweeps.results import Line
from parallel.cost.machine import parse

LOOPED = {
    "model.num_layers": 4,
    "model.scan_layers": True,
    "data.vocab_size": 32_768,
}
# name -> a file in configs/, and what is changed in it
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "wide": ("llama_1b", LOOPED | {"data.seq_len": 1024}),
    "plain": (
        "gpt2_small",
        LOOPED | {"model.width": 1280, "model.num_heads": 20, "data.seq_len": 512},
    ),
}
# model, topology, strategy, microbatches, rows of a batch
LIMITS = (
    ("wide", "tpu-v5e:2x4", "shard_map", 1, 416),
    ("plain", "tpu-v5e:2x2", "shard_map", 1, 396),
    ("wide", "tpu-v5e:2x2", "fsdp", 1, 924),
    ("plain", "tpu-v6e:2x2", "fsdp", 1, 940),
    ("wide", "tpu-v6e:2x2", "zero1", 1, 328),
    ("plain", "tpu-v5e:4x4", "zero1", 1, 2464),
    ("wide", "tpu-v5e:4x4", "zero2", 1, 1072),
    ("plain", "tpu-v5e:2x4", "zero2", 1, 856),
    ("wide", "tpu-v5e:2x4", "jit", 1, 368),
    ("plain", "tpu-v5e:2x2", "jit", 1, 428),
    ("wide", "tpu-v5e:2x2", "hsdp", 1, 408),
    ("plain", "tpu-v6e:2x2", "hsdp", 1, 1244),
    ("wide", "tpu-v5e:2x2", "shard_map", 1, 240),
    ("plain", "tpu-v6e:2x2", "shard_map", 1, 700),
    ("wide", "tpu-v6e:2x2", "fsdp", 1, 2592),
    ("plain", "tpu-v5e:4x4", "fsdp", 1, 992),
    ("wide", "tpu-v5e:4x4", "zero1", 1, 1760),
    ("plain", "tpu-v5e:2x4", "zero1", 1, 752),
    ("wide", "tpu-v5e:2x4", "zero2", 1, 592),
    ("plain", "tpu-v5e:2x2", "zero2", 1, 348),
    ("wide", "tpu-v5e:2x2", "jit", 1, 264),
    ("plain", "tpu-v6e:2x2", "jit", 1, 460),
    ("wide", "tpu-v6e:2x2", "hsdp", 1, 3356),
    ("plain", "tpu-v5e:4x4", "hsdp", 1, 1568),
    ("wide", "tpu-v6e:2x2", "shard_map", 1, 476),
    ("plain", "tpu-v5e:4x4", "shard_map", 1, 1712),
    ("wide", "tpu-v5e:4x4", "fsdp", 1, 2688),
    ("plain", "tpu-v5e:2x4", "fsdp", 1, 1272),
    ("wide", "tpu-v5e:2x4", "zero1", 1, 504),
    ("plain", "tpu-v5e:2x2", "zero1", 1, 416),
    ("wide", "tpu-v5e:2x2", "zero2", 1, 228),
    ("plain", "tpu-v6e:2x2", "zero2", 1, 932),
    ("wide", "tpu-v6e:2x2", "jit", 1, 288),
    ("plain", "tpu-v5e:4x4", "jit", 1, 2368),
    ("wide", "tpu-v5e:4x4", "hsdp", 1, 4256),
    ("plain", "tpu-v5e:2x4", "hsdp", 1, 856),
    ("wide", "tpu-v5e:4x4", "shard_map", 1, 1056),
    ("plain", "tpu-v5e:2x4", "shard_map", 1, 712),
    ("wide", "tpu-v5e:2x4", "fsdp", 1, 2400),
    ("plain", "tpu-v5e:2x2", "fsdp", 1, 356),
    ("wide", "tpu-v5e:2x2", "zero1", 1, 304),
    ("plain", "tpu-v6e:2x2", "zero1", 1, 780),
    ("wide", "tpu-v6e:2x2", "zero2", 1, 636),
    ("plain", "tpu-v5e:4x4", "zero2", 1, 1424),
    ("wide", "tpu-v5e:4x4", "jit", 1, 1056),
    ("plain", "tpu-v5e:2x4", "jit", 1, 712),
    ("wide", "tpu-v5e:2x4", "hsdp", 1, 2224),
    ("plain", "tpu-v5e:2x2", "hsdp", 1, 332),
    ("wide", "tpu-v5e:2x4", "shard_map", 2, 736),
    ("plain", "tpu-v5e:2x2", "shard_map", 2, 768),
    ("wide", "tpu-v5e:2x2", "fsdp", 2, 1808),
    ("plain", "tpu-v6e:2x2", "fsdp", 2, 1872),
    ("wide", "tpu-v6e:2x2", "zero1", 2, 1120),
    ("plain", "tpu-v5e:4x4", "zero1", 2, 3360),
    ("wide", "tpu-v5e:4x4", "zero2", 2, 1952),
    ("plain", "tpu-v5e:2x4", "zero2", 2, 1824),
    ("wide", "tpu-v5e:2x4", "jit", 2, 736),
    ("plain", "tpu-v5e:2x2", "jit", 2, 768),
    ("wide", "tpu-v5e:2x2", "hsdp", 2, 1416),
    ("plain", "tpu-v6e:2x2", "hsdp", 2, 1816),
    ("wide", "tpu-v5e:2x2", "shard_map", 2, 432),
    ("plain", "tpu-v6e:2x2", "shard_map", 2, 1376),
    ("wide", "tpu-v6e:2x2", "fsdp", 2, 5136),
    ("plain", "tpu-v5e:4x4", "fsdp", 2, 3200),
    ("wide", "tpu-v5e:4x4", "zero1", 2, 2304),
    ("plain", "tpu-v5e:2x4", "zero1", 2, 1376),
    ("wide", "tpu-v5e:2x4", "zero2", 2, 1280),
    ("plain", "tpu-v5e:2x2", "zero2", 2, 760),
    ("wide", "tpu-v5e:2x2", "jit", 2, 432),
    ("plain", "tpu-v6e:2x2", "jit", 2, 1376),
    ("wide", "tpu-v6e:2x2", "hsdp", 2, 4752),
    ("plain", "tpu-v5e:4x4", "hsdp", 2, 3136),
)


def limit_cells() -> list[Line]:
    return [
        {
            "part": "limit", "model": model, "topology": topology, "strategy": strategy,
            "accumulation": number, "rows": rows,
        }
        for model, topology, strategy, number, rows in LIMITS
    ]  # fmt: skip


def limit_overrides(cell: Line) -> tuple[str, dict[str, Any]]:
    """Return the cell's file in configs/, and what the cell changes in it."""
    name, changed = MODELS[cell["model"]]
    mesh = {}
    if cell["strategy"] == "hsdp":
        half = parse(cell["topology"]).num_devices // 2
        mesh = {"parallel.data": 2, "parallel.fsdp": half}
    return name, changed | mesh | {
        "parallel.strategy": cell["strategy"],
        "parallel.accumulation": cell["accumulation"],
        "data.batch_size": cell["rows"],
    }
