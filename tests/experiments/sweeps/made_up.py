"""Made-up runs whose answers are known, in memory and as files of a sweep."""

import dataclasses
import json
import math
import pathlib

from configs import fields
from configs.base import Experiment
from experiments.sweeps.rows import Row


def row(
    name="r", devices=1, rate=100.0, loss=3.0, batch=8, emulated=False, curve=(),
    config=(), **more,
) -> Row:  # fmt: skip
    """Make a run; `curve` has (tokens, validation loss), `more` goes into its summary."""
    summary = {
        "devices": devices, "emulated": emulated, "tokens_per_second": rate,
        "val_loss": loss, "val_perplexity": math.exp(min(loss, 99.0)), "shifted_loss": 4.0,
        "bigram_loss": 3.5, "val_bits_per_byte": loss / 2, "steps": 1000,
        "model_flops_per_token": 10.0, "device_kind": "cpu",
        "core_share": 0.5, "tokens": 1000, "peak_memory_bytes": 2e9,
        "seconds": {"step": 1.0}, "versions": {"python": "3", "jax": "0"},
    }  # fmt: skip
    settings = {
        "data.batch_size": batch, "data.seq_len": 1, "seed": 0, "steps": 1000,
        "optim.warmup_steps": 10, "parallel.data": devices,
    }  # fmt: skip
    records = [{"split": "train", "step": 0, "loss": 2.5, "tokens": 0, "step_seconds": 1}]
    for step, (tokens, value) in enumerate(curve, 1):
        train = {"split": "train", "step": step, "loss": 2.5, "tokens": tokens}
        records.append(train | {"step_seconds": 1})
        records.append({"split": "eval", "step": step, "loss": value, "tokens": 99})
    return Row(name, settings | dict(config), summary | more, records)


def write_run(workdir: pathlib.Path, row: Row) -> pathlib.Path:
    workdir.mkdir(parents=True)
    config = fields.override(Experiment(), dict(row.config))
    values = dataclasses.asdict(config) | {"family": "transformer", "fingerprint": "text"}
    (workdir / "config.json").write_text(json.dumps(values))
    (workdir / "summary.json").write_text(json.dumps(row.summary))
    lines = "".join(json.dumps(record) + "\n" for record in row.records)
    (workdir / "metrics.jsonl").write_text(lines)
    return workdir


def write_sweep(folder: pathlib.Path, rows: list[Row]) -> pathlib.Path:
    for each in rows:
        write_run(folder / each.name, each)
    (folder / "sweep.json").write_text(json.dumps({each.name: {} for each in rows}))
    return folder
