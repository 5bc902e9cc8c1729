"""What a step takes beyond rooflines and links, measured in steps of small models.

A roofline says what products of matrices and reads of memory take at least. Whole steps
take more: softmax, norms and copies, and the start of a program. This file times steps of a
few models on one device, and fits for each part of a plan how many times its roofline it
takes, and the seconds that every step takes.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from scipy.optimize import nnls

from configs import fields
from configs.base import Experiment
from experiments.planning.hardware import machine_of
from experiments.planning.shapes import model_of
from experiments.run.check import check
from experiments.run.startup import read_config_file
from experiments.run.trial import build_trial
from parallel.cost.machine import Hardware
from parallel.cost.plan import candidates

FIELDS = (
    "model.width", "model.num_layers", "model.num_heads", "model.mlp_width",
    "data.seq_len", "data.batch_size", "data.vocab_size", "parallel.accumulation",
)  # fmt: skip
# The rows are those of one device. The benchmark of plans has other shapes.
TIMED = (
    (64, 1, 2, 128, 64, 2, 320, 1),
    (64, 2, 4, 192, 128, 8, 3072, 1),
    (160, 2, 4, 448, 192, 8, 768, 1),
    (224, 2, 4, 640, 96, 12, 512, 4),
    (96, 4, 4, 256, 160, 12, 1536, 1),
    (320, 1, 4, 768, 64, 8, 1024, 1),
    (160, 4, 4, 384, 192, 12, 640, 1),
    (144, 3, 4, 384, 144, 16, 1280, 4),
)
# On an accelerator the small ones would take no longer than the start of a program.
TIMED_LARGE = (
    (512, 2, 8, 2048, 512, 8, 8192, 1),
    (640, 2, 10, 2560, 1024, 16, 24_576, 1),
    (1280, 2, 20, 5120, 1024, 8, 4096, 1),
    (1792, 2, 28, 5120, 512, 16, 4096, 4),
    (768, 4, 12, 2048, 1024, 12, 16_384, 1),
    (2560, 1, 40, 6144, 512, 8, 8192, 1),
    (1280, 4, 20, 3072, 1024, 12, 4096, 1),
    (1024, 3, 16, 3072, 1024, 16, 10_240, 4),
)
PARTS = ("compute", "activations", "logits", "optimizer")
FEWEST = 5  # steps


def timed_config(values: tuple[int, ...], compute: str) -> Experiment:
    changed = dict(zip(FIELDS, values, strict=True)) | {"precision.compute": compute}
    config = dataclasses.replace(read_config_file("configs/tiny.py"))
    return fields.override(config, changed | {"parallel.strategy": "shard_map"})


def measure_steps(found: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return the factors and the overhead of a machine of which the rest was found.

    Every process times its own first device. `seconds` is the time for each model.
    """
    hardware, rows, took = Hardware(machine_of(found), (1,)), [], []
    on_cpu = jax.default_backend() == "cpu"
    for values in TIMED if on_cpu else TIMED_LARGE:
        config = timed_config(values, "float32" if on_cpu else "bfloat16")
        mesh = check(config, jax.local_devices()[:1])
        model = model_of(config, jax.default_backend())
        every = candidates(model, hardware, config.parallel, mesh, "none")
        one = next(x for x in every if x.accumulation == config.parallel.accumulation)
        rows.append([one.time[name] for name in PARTS] + [1.0])
        took.append(step_seconds(config, mesh, seconds))
    # A step that processes take together lasts as long as that of the slowest.
    slowest = multihost_utils.process_allgather(np.array(took)).reshape(-1, len(took))
    return fit_steps(np.array(rows), slowest.max(0))


def step_seconds(config: Experiment, mesh, seconds: float) -> float:
    """Return the median seconds of a warm step on tokens that come from nowhere."""
    trial = build_trial(config, config.data.vocab_size, mesh)
    data = config.data
    shape = data.batch_size, data.seq_len + 1
    tokens = np.random.default_rng(0).integers(0, data.vocab_size, shape, np.int32)
    batch, state, times = trial.place(tokens), trial.begin(), []
    began = time.perf_counter()
    while len(times) <= FEWEST or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(trial.step(state, batch))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def fit_steps(rows: np.ndarray, took: np.ndarray) -> dict[str, Any]:
    """Fit seconds = sum of factor x part + overhead, by relative errors, none below 0.

    rows [steps, parts + 1], the last column ones; took [steps].
    """
    found, _ = nnls(rows / took[:, None], np.ones(len(took)))
    *factors, overhead = map(float, found)
    return {"factors": dict(zip(PARTS, factors, strict=True)), "overhead": overhead}
