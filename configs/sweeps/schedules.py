"""Which learning-rate schedule? All of them, with equal tokens and the same highest rate.

Command:  python -m experiments.sweep --sweep=configs/sweeps/schedules.py \
              --workdir=runs/schedules
"""

from configs.sweeps.combine import Member, product
from lm.optim import SCHEDULES

STAIRS = {"optim.decay_every": 25}
OWN = {"step": STAIRS, "exponential": STAIRS, "plateau": {"optim.window": 10}}


def get_sweep() -> list[Member]:
    fixed = {"config": "configs/tiny.py", "devices": 8, "steps": 100, "eval_every": 20}
    fixed |= {"optim.warmup_steps": 10}
    return product(
        [fixed], [{"optim.schedule": name} | OWN.get(name, {}) for name in SCHEDULES]
    )
