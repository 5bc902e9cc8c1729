"""The folder of one run: its config, and whose it is.

config.json      the resolved config, the family of its model, the fingerprint of its data
tokenizer.json   so that a run can be evaluated without the data cache
metrics.jsonl    one JSON object a line
lock             held by the process that trains here
tensorboard/     event files
checkpoints/     Orbax
summary.json     the final block; it is there when the run is complete
"""

import dataclasses
import json
import pathlib
from typing import Any

import filelock
from jax.experimental import multihost_utils

from configs.base import FAMILIES, Experiment
from experiments.processes.files import write_whole
from lm.data.prepare import Data

# What may differ when a run goes on: how it is spread, what is watched and where caches
# lie. Everything else decides the numbers.
MAY_DIFFER = (
    "parallel.",
    "data.cache",
    "data.tfds_dir",
    "eval_every",
    "eval_batches",
    "save_every",
    "keep",
    "on_nonfinite",
    "spike_sigmas",
    "trace_norms",
    "prompt",
    "model.remat",
    "model.attention",
    "model.loss_chunk",
)

# What a run that was killed at its very start may leave.
FIRST_FILES = ("lock", "config.partial")


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def claim(
    workdir: pathlib.Path, config: Experiment, data: Data, write: bool
) -> filelock.FileLock | None:
    """Make the workdir this run's, or check that it is (ValueError if not).

    `write` is false in all processes but one; that one holds the returned lock for as long
    as it lives, so that no two runs share a workdir.
    """
    file = workdir / "config.json"
    mine = dataclasses.asdict(config) | {
        "family": family_name(config),
        "fingerprint": data.meta["fingerprint"],
    }
    if file.exists():
        ours = flatten(mine)
        theirs = flatten(json.loads(file.read_text(encoding="utf-8")))
        differing = [
            f"{name} is {value!r} there and {ours.get(name)!r} here"
            for name, value in theirs.items()
            if ours.get(name) != value and not name.startswith(MAY_DIFFER)
        ]
        if differing:
            raise ValueError(
                f"{workdir} belongs to another config: {'; '.join(differing)}. "
                "Give another --workdir, or the config it was made with"
            )
    elif workdir.exists() and any(f.name not in FIRST_FILES for f in workdir.iterdir()):
        raise ValueError(
            f"{workdir} is not empty and holds no config.json, so it is not a run's; "
            "give another --workdir"
        )
    # Else a process that is late could find the files of one that is early.
    multihost_utils.sync_global_devices("workdir checked")
    if not write:
        return None
    workdir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(workdir / "lock", timeout=5)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(
            f"{workdir} is in use by another run; give another --workdir"
        ) from None
    write_whole(file, json.dumps(mine, indent=2) + "\n")
    write_whole(workdir / "tokenizer.json", data.tokenizer.to_str())
    return lock


def read_config(workdir: pathlib.Path) -> Experiment:
    file = workdir / "config.json"
    if not file.exists():
        raise ValueError(f"{workdir} holds no run: there is no {file}")
    values = json.loads(file.read_text(encoding="utf-8"))
    # Runs from before there were families are transformers.
    family = FAMILIES[values.get("family", "transformer")]
    return from_dict(Experiment, values | {"model": from_dict(family, values["model"])})


def family_name(config: Experiment) -> str:
    return next(name for name, cls in FAMILIES.items() if cls is type(config.model))


def from_dict(cls: type, values: dict[str, Any]):
    """Build a nested config dataclass; fields that it does not have are ignored."""
    arguments = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            value = values[field.name]
            nested = dataclasses.is_dataclass(field.type) and isinstance(value, dict)
            arguments[field.name] = from_dict(field.type, value) if nested else value
    return cls(**arguments)
