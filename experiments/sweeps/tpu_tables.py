"""The tables of what fits on absent TPUs, from the lines of experiments.studies.tpu."""

import math

from experiments.processes.messages import size
from experiments.sweeps.results import Line

STRATEGIES = [
    "jit", "pmap", "shard_map", "zero1", "zero2", "fsdp", "hsdp", "tensor", "hybrid",
    "gpipe", "1f1b", "interleaved", "local_sgd-8", "diloco-50", "streaming_diloco-50",
]  # fmt: skip
CONFIGS = ["gpt2_small", "llama_1b", "lm1b"]  # files in configs/
SLICES = ["tpu-v5e:2x4", "tpu-v5p:2x2x2"]  # of 8 chips


def latest(lines: list[Line]) -> dict[tuple[str, str, str], Line]:
    """Return the last line of each (topology, model, member)."""
    return {(x["topology"], x["model"], x["member"]): x for x in lines}


def tables(lines: list[Line]) -> dict[str, str]:
    """Return the tables of the page by name."""
    return {place(t): table(lines, t, CONFIGS, STRATEGIES) for t in SLICES}


def place(topology: str) -> str:
    return topology.replace(":", "-")


def table(lines: list[Line], topology: str, models: list[str], members: list[str]) -> str:
    """Return a row a member, with memory and bytes sent of each model."""
    found = latest(lines)
    heads = [f"{m}: {figure}" for m in models for figure in ("memory", "sent a step")]
    rows = ["| strategy | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for member in members:
        parts = [shown(found.get((topology, model, member))) for model in models]
        rows.append(f"| {member} | " + " | ".join(parts) + " |")
    return "\n".join(rows)


def shown(line: Line | None) -> str:
    """Return the two cells of a model."""
    if line is None:
        return "not compiled | "
    if "error" in line:
        reason = line["error"].rpartition("does not fit: ")[2].partition(";")[0]
        return f"no: {reason} | "
    total, chip = line["total_bytes"], line["chip_bytes"]
    fits = f"{total / chip:.0%}" if total <= chip else "does not fit"
    differs = line["sent_bytes"] / line["expected_bytes"] - 1
    form = "" if math.isnan(differs) else f" ({differs:+.0%})"
    return f"{size(total)}, {fits} | {size(line['sent_bytes'])}{form}"
