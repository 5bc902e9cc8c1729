"""What is compared: ways to make configs/tiny.py smaller, and models at several degrees.

A member of MEMBERS is trained from the beginning, or made of the trained plain model of its
seed (`after`) and then trained for `steps` more, if there are any.
"""

import copy
from typing import NamedTuple

from configs import fields, tiny
from configs.base import Experiment
from configs.sweeps.combine import Member
from lm.compress.structure import narrower

PLAIN = "plain"
RISE = (0.25, 0.75)  # shares of a run between which the sparsity rises
TUNED: Member = {"optim.learning_rate": 1e-3, "optim.warmup_steps": 10}


class Way(NamedTuple):
    overrides: Member
    after: bool = False  # made of the trained plain model
    steps: int = 0  # of training after that
    calibration: str = "largest"
    taught: bool = False  # by the plain model


def quantise(weights: str, **more: int) -> Member:
    return {"compress.quantise.weights": weights} | {
        f"compress.quantise.{name}": value for name, value in more.items()
    }


def prune(kind: str, **more: float | bool) -> Member:
    return {"compress.prune.kind": kind} | {
        f"compress.prune.{name}": value for name, value in more.items()
    }


NARROW: Member = {"model.width": 64}  # matrices of a quarter of the elements
HALVED: Member = {"model.num_heads": 2, "model.mlp_width": 176}

MEMBERS: dict[str, Way] = {
    PLAIN: Way({}),
    "int8, after training": Way(quantise("int8"), after=True),
    "int4, after training": Way(quantise("int4"), after=True),
    "int4 in groups of 32, after training": Way(quantise("int4", group=32), after=True),
    "int4, calibrated by the error": Way(quantise("int4"), after=True, calibration="error"),
    "int4, calibrated by the loss": Way(quantise("int4"), after=True, calibration="loss"),
    "int8, aware": Way(quantise("int8")),
    "int4, aware": Way(quantise("int4")),
    **{
        f"{share:.0%} pruned, {told}": Way(prune(kind, sparsity=share, **more))
        for share in (0.5, 0.8)
        for told, kind, more in [
            ("random", "random", {}),
            ("magnitude", "magnitude", {}),
            ("straight-through", "magnitude", {"straight_through": True}),
        ]
    },
    "2:4, magnitude": Way(prune("n_m")),
    "2:4, straight-through": Way(prune("n_m", straight_through=True)),
    "50% pruned, after training": Way(prune("magnitude"), after=True),
    "half of the heads and columns, after training": Way(HALVED, after=True),
    "half of the heads and columns, then 100 steps": Way(HALVED | TUNED, True, 100),
    "rank 32": Way({"compress.low_rank.kind": "svd", "compress.low_rank.rank": 32}),
    "rank 32, after training": Way(
        {"compress.low_rank.kind": "svd", "compress.low_rank.rank": 32}, after=True
    ),
    "100 steps more": Way(TUNED, True, 100),
    "lora, 100 steps more": Way({"compress.low_rank.kind": "lora"} | TUNED, True, 100),
    "quarter-size student": Way(NARROW),
    "quarter-size student, taught": Way(NARROW, taught=True),
}
QUICK = (PLAIN, "int8, after training", "50% pruned, magnitude")

# The frontier: what shrinks the arrays that are trained, and with them the wire.
MODELS: dict[str, Member] = {
    "plain": {},
    "rank 32": {"compress.low_rank.kind": "svd", "compress.low_rank.rank": 32},
    "rank 16": {"compress.low_rank.kind": "svd", "compress.low_rank.rank": 16},
    "half the MLP": {"model.mlp_width": 176},
    "width 64": NARROW,
}
DEGREES = (1, 2, 4)
ROWS = 8  # of a device in a step: a device more is as many rows more


def base_config(seed: int, steps: int) -> Experiment:
    config = tiny.get_config()
    config.seed, config.steps = seed, steps or config.steps
    config.optim.warmup_steps = min(config.optim.warmup_steps, config.steps // 10)
    config.eval_every = max(config.steps // 10, 1)
    return config


def way_config(way: Way, seed: int, steps: int) -> Experiment:
    """Return the config that a member trains with, last."""
    config = fields.override(base_config(seed, steps), way.overrides)
    if way.after:
        config.model = narrower(tiny.get_config().model, config.model)
        config.steps = way.steps or config.steps
    kind = config.compress.prune.kind
    if kind != "none" and not way.after:
        begin, end = (round(share * config.steps) for share in RISE)
        config.compress.prune.begin = max(begin, 1)
        config.compress.prune.end = 0 if kind == "n_m" else end
    return copy.deepcopy(config)


def frontier_config(model: str, degree: int, seed: int, steps: int) -> Experiment:
    config = fields.override(base_config(seed, steps), MODELS[model])
    config.data.batch_size = ROWS * degree
    config.parallel.strategy, config.parallel.data = "shard_map", degree
    return copy.deepcopy(config)
