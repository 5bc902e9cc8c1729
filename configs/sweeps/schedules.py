"""Which learning-rate schedule? All of them, with equal tokens and the same highest rate.

Command:  python -m experiments.sweep --sweep=configs/sweeps/schedules.py \
              --workdir=runs/schedules
"""

from configs.sweeps.combine import Member, each, product
from lm.optim import SCHEDULES


def get_sweep() -> list[Member]:
    fixed = {"config": "configs/tiny.py", "devices": 8, "steps": 100, "eval_every": 20}
    fixed |= {"optim.warmup_steps": 10, "optim.decay_every": 25, "optim.window": 10}
    return product([fixed], each("optim.schedule", *SCHEDULES))
