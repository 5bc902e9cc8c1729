"""Cells for absent TPUs near the limit of a chip's memory.

Models of four layers in a loop. `plain` and `kept` keep all for the backward pass,
`products` keeps the products of matrices, the others the inputs of layers alone. Their
layers are large, and one is compiled for all, so a cell takes one or two minutes of a
core. The rows of a batch were chosen so that the plan, as it was then, came out at 0.6,
0.88, 0.95, 1.05, 1.12 or 1.5 of the limit. The plan was corrected five times: with 3 cells
of an earlier choice of rows in sight, with 35 of these, with all 86 of `plain`, `wide`,
`tall` and `square` that there were, with the 16 after them, all near the limit, of which 13
had agreed, and with 12 more, of which 11 had. The last 12 came after that.
"""

from typing import Any

from experiments.sweeps.results import Line
from parallel.cost.machine import parse

NUM_SEEN = 114  # lines of the results that were in sight when the plan was corrected
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
    "tall": (
        "llama_1b",
        LOOPED | {"data.seq_len": 2048, "model.width": 1024, "model.mlp_width": 4096},
    ),
    "square": (
        "gpt2_small",
        LOOPED
        | {
            "data.seq_len": 1024,
            "model.width": 1536,
            "model.num_heads": 24,
            "model.remat": "full",
            "model.loss_chunk": 256,
        },
    ),
    "products": ("llama_1b", LOOPED | {"data.seq_len": 1024, "model.remat": "dots"}),
    "kept": (
        "llama_1b",
        LOOPED
        | {
            "data.seq_len": 1024,
            "model.width": 1536,
            "model.num_heads": 24,
            "model.mlp_width": 4096,
            "model.remat": "none",
        },
    ),
}
# model, topology, strategy, microbatches, rows of a batch
LIMITS = (
    ("wide", "tpu-v5e:2x4", "shard_map", 1, 496),
    ("plain", "tpu-v5e:2x2", "shard_map", 1, 396),
    ("wide", "tpu-v5e:2x2", "fsdp", 1, 304),
    ("plain", "tpu-v6e:2x2", "fsdp", 1, 940),
    ("wide", "tpu-v6e:2x2", "zero1", 1, 392),
    ("plain", "tpu-v5e:4x4", "zero1", 1, 2464),
    ("wide", "tpu-v5e:4x4", "zero2", 1, 1280),
    ("plain", "tpu-v5e:2x4", "zero2", 1, 856),
    ("wide", "tpu-v5e:2x4", "jit", 1, 440),
    ("plain", "tpu-v5e:2x2", "jit", 1, 428),
    ("wide", "tpu-v5e:2x2", "hsdp", 1, 132),
    ("plain", "tpu-v6e:2x2", "hsdp", 1, 1244),
    ("wide", "tpu-v5e:2x2", "shard_map", 1, 288),
    ("plain", "tpu-v6e:2x2", "shard_map", 1, 700),
    ("wide", "tpu-v6e:2x2", "fsdp", 1, 852),
    ("plain", "tpu-v5e:4x4", "fsdp", 1, 992),
    ("wide", "tpu-v5e:4x4", "zero1", 1, 2112),
    ("plain", "tpu-v5e:2x4", "zero1", 1, 752),
    ("wide", "tpu-v5e:2x4", "zero2", 1, 712),
    ("plain", "tpu-v5e:2x2", "zero2", 1, 348),
    ("wide", "tpu-v5e:2x2", "jit", 1, 320),
    ("plain", "tpu-v6e:2x2", "jit", 1, 460),
    ("wide", "tpu-v6e:2x2", "hsdp", 1, 1104),
    ("plain", "tpu-v5e:4x4", "hsdp", 1, 1568),
    ("wide", "tpu-v6e:2x2", "shard_map", 1, 572),
    ("plain", "tpu-v5e:4x4", "shard_map", 1, 1712),
    ("wide", "tpu-v5e:4x4", "fsdp", 1, 880),
    ("plain", "tpu-v5e:2x4", "fsdp", 1, 1272),
    ("wide", "tpu-v5e:2x4", "zero1", 1, 600),
    ("plain", "tpu-v5e:2x2", "zero1", 1, 416),
    ("wide", "tpu-v5e:2x2", "zero2", 1, 276),
    ("plain", "tpu-v6e:2x2", "zero2", 1, 932),
    ("wide", "tpu-v6e:2x2", "jit", 1, 348),
    ("plain", "tpu-v5e:4x4", "jit", 1, 2368),
    ("wide", "tpu-v5e:4x4", "hsdp", 1, 1392),
    ("plain", "tpu-v5e:2x4", "hsdp", 1, 856),
    ("wide", "tpu-v5e:4x4", "shard_map", 1, 1280),
    ("plain", "tpu-v5e:2x4", "shard_map", 1, 712),
    ("wide", "tpu-v5e:2x4", "fsdp", 1, 792),
    ("plain", "tpu-v5e:2x2", "fsdp", 1, 356),
    ("wide", "tpu-v5e:2x2", "zero1", 1, 364),
    ("plain", "tpu-v6e:2x2", "zero1", 1, 780),
    ("wide", "tpu-v6e:2x2", "zero2", 1, 768),
    ("plain", "tpu-v5e:4x4", "zero2", 1, 1424),
    ("wide", "tpu-v5e:4x4", "jit", 1, 1280),
    ("plain", "tpu-v5e:2x4", "jit", 1, 712),
    ("wide", "tpu-v5e:2x4", "hsdp", 1, 736),
    ("plain", "tpu-v5e:2x2", "hsdp", 1, 332),
    ("wide", "tpu-v5e:2x4", "shard_map", 2, 880),
    ("plain", "tpu-v5e:2x2", "shard_map", 2, 768),
    ("wide", "tpu-v5e:2x2", "fsdp", 2, 592),
    ("plain", "tpu-v6e:2x2", "fsdp", 2, 1872),
    ("wide", "tpu-v6e:2x2", "zero1", 2, 1352),
    ("plain", "tpu-v5e:4x4", "zero1", 2, 3360),
    ("wide", "tpu-v5e:4x4", "zero2", 2, 2336),
    ("plain", "tpu-v5e:2x4", "zero2", 2, 1824),
    ("wide", "tpu-v5e:2x4", "jit", 2, 880),
    ("plain", "tpu-v5e:2x2", "jit", 2, 768),
    ("wide", "tpu-v5e:2x2", "hsdp", 2, 464),
    ("plain", "tpu-v6e:2x2", "hsdp", 2, 1816),
    ("wide", "tpu-v5e:2x2", "shard_map", 2, 520),
    ("plain", "tpu-v6e:2x2", "shard_map", 2, 1376),
    ("wide", "tpu-v6e:2x2", "fsdp", 2, 1688),
    ("plain", "tpu-v5e:4x4", "fsdp", 2, 3200),
    ("wide", "tpu-v5e:4x4", "zero1", 2, 2752),
    ("plain", "tpu-v5e:2x4", "zero1", 2, 1376),
    ("wide", "tpu-v5e:2x4", "zero2", 2, 1536),
    ("plain", "tpu-v5e:2x2", "zero2", 2, 760),
    ("wide", "tpu-v5e:2x2", "jit", 2, 520),
    ("plain", "tpu-v6e:2x2", "jit", 2, 1376),
    ("wide", "tpu-v6e:2x2", "hsdp", 2, 1560),
    ("plain", "tpu-v5e:4x4", "hsdp", 2, 3136),
    ("tall", "tpu-v5e:2x2", "fsdp", 1, 476),
    ("square", "tpu-v5e:2x4", "shard_map", 1, 1160),
    ("tall", "tpu-v6e:2x2", "zero1", 1, 1044),
    ("square", "tpu-v5e:2x2", "fsdp", 1, 676),
    ("tall", "tpu-v5e:2x4", "hsdp", 2, 1600),
    ("square", "tpu-v6e:2x2", "hsdp", 1, 1268),
    ("tall", "tpu-v5e:4x4", "zero2", 1, 3536),
    ("square", "tpu-v5e:4x4", "jit", 2, 3680),
    ("tall", "tpu-v5e:2x2", "shard_map", 1, 428),
    ("square", "tpu-v5e:2x4", "zero1", 1, 2584),
    ("tall", "tpu-v5e:4x4", "jit", 2, 3616),
    ("square", "tpu-v5e:2x2", "zero2", 1, 668),
    ("tall", "tpu-v6e:2x2", "fsdp", 1, 848),
    ("square", "tpu-v5e:4x4", "fsdp", 1, 3152),
    ("tall", "tpu-v5e:2x2", "zero1", 1, 440),
    ("square", "tpu-v6e:2x2", "jit", 1, 1528),
    ("products", "tpu-v5e:2x4", "shard_map", 1, 296),
    ("kept", "tpu-v5e:2x2", "fsdp", 1, 128),
    ("tall", "tpu-v5e:2x4", "fsdp", 2, 2096),
    ("square", "tpu-v5e:2x2", "hsdp", 1, 852),
    ("products", "tpu-v5e:2x2", "zero2", 1, 192),
    ("kept", "tpu-v5e:4x4", "jit", 2, 1056),
    ("tall", "tpu-v5e:4x4", "shard_map", 1, 1824),
    ("square", "tpu-v5e:2x4", "zero2", 2, 3248),
    ("products", "tpu-v6e:2x2", "fsdp", 1, 416),
    ("kept", "tpu-v5e:2x4", "zero1", 1, 272),
    ("tall", "tpu-v6e:2x2", "jit", 1, 1088),
    ("square", "tpu-v5e:2x2", "fsdp", 2, 1928),
    ("products", "tpu-v5e:2x2", "hsdp", 2, 400),
    ("kept", "tpu-v6e:2x2", "shard_map", 1, 308),
    ("tall", "tpu-v5e:2x4", "zero2", 1, 864),
    ("tall", "tpu-v5e:4x4", "hsdp", 1, 2128),
    ("tall", "tpu-v5e:2x4", "jit", 1, 1472),
    ("square", "tpu-v5e:4x4", "shard_map", 1, 2992),
    ("square", "tpu-v6e:2x2", "fsdp", 1, 2020),
    ("square", "tpu-v5e:4x4", "hsdp", 2, 4128),
    ("products", "tpu-v5e:2x2", "jit", 1, 180),
    ("products", "tpu-v5e:4x4", "zero1", 1, 752),
    ("products", "tpu-v5e:2x4", "fsdp", 2, 1328),
    ("kept", "tpu-v5e:2x4", "hsdp", 1, 320),
    ("kept", "tpu-v5e:2x2", "zero2", 2, 232),
    ("kept", "tpu-v6e:2x2", "zero1", 1, 160),
    ("tall", "tpu-v5e:2x4", "shard_map", 2, 1600),
    ("tall", "tpu-v6e:2x2", "hsdp", 1, 1048),
    ("tall", "tpu-v5e:2x2", "zero2", 1, 748),
    ("square", "tpu-v5e:4x4", "zero1", 1, 3264),
    ("square", "tpu-v5e:2x4", "jit", 1, 1816),
    ("square", "tpu-v6e:2x2", "zero2", 2, 2024),
    ("products", "tpu-v5e:4x4", "shard_map", 1, 688),
    ("products", "tpu-v6e:2x2", "zero2", 1, 368),
    ("products", "tpu-v5e:4x4", "hsdp", 1, 1248),
    ("kept", "tpu-v5e:4x4", "fsdp", 1, 656),
    ("kept", "tpu-v5e:2x4", "shard_map", 1, 216),
    ("kept", "tpu-v5e:2x2", "jit", 2, 128),
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
