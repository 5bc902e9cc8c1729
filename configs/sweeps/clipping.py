"""Does clipping help? No clipping, or by norm, element or unit; at two learning rates.

Command:  python -m experiments.sweep --sweep=configs/sweeps/clipping.py \
              --workdir=runs/clipping
"""

from configs.sweeps.combine import Member, each, product


def get_sweep() -> list[Member]:
    fixed = {"config": "configs/tiny.py", "devices": 8, "steps": 100, "eval_every": 20}
    fixed |= {"optim.warmup_steps": 10, "optim.clip_norm": 0.0}
    ways = [
        {},
        {"optim.clip_norm": 1.0},
        {"optim.clip_value": 0.01},
        {"optim.clip_adaptive": 0.1},
    ]
    return product([fixed], each("optim.learning_rate", 3e-3, 3e-2), ways)
