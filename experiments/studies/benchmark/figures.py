"""The table of a benchmark."""

import statistics

from experiments.studies.benchmark.shapes import (
    LOADER_BATCHES,
    PRODUCT,
    Shape,
    flops_per_token,
)
from experiments.sweeps.tables import markdown

REFERENCES = ("nanogpt-eager", "lockstep")  # what the others are compared with


def report(shape: Shape, seconds: dict, peak: dict, first_step: dict, loss: dict) -> None:
    limit = None
    if "products" in seconds:
        limit = 2 * PRODUCT**3 / statistics.median(seconds.pop("products"))
        print(f"products of {PRODUCT} x {PRODUCT}: {limit / 1e9:.0f} GFLOP/s\n")
    tokens = shape.batch_size * shape.seq_len
    for name in [name for name in seconds if name.startswith("loader")]:
        rate = LOADER_BATCHES * tokens / statistics.median(seconds.pop(name))
        print(f"{name} alone: {rate / 1e6:.1f} M tokens/s\n")
    if not seconds:
        return
    references = [name for name in REFERENCES if name in seconds]
    head = ["", "tokens/s", *(f"times {name}" for name in references)]
    head += ["of the limit", "peak memory", "first step", "first loss"]
    body = []
    for name, times in seconds.items():
        rate = tokens / statistics.median(times)
        ratios = [
            statistics.median(b / a for a, b in zip(times, seconds[r], strict=True))
            for r in references
        ]
        share = f"{rate * flops_per_token(shape) / limit:.0%}" if limit else ""
        cells = [name, f"{rate:.0f}", *(f"{ratio:.2f}" for ratio in ratios), share]
        cells += [f"{peak[name] / 1e9:.2f} GB", f"{first_step[name]:.1f} s"]
        body.append([*cells, f"{loss[name]:.4f}"])
    print(markdown(head, body))
