"""What does each precision cost, and what does it lose?

Command:  python -m experiments.sweep --sweep=configs/sweeps/precision.py \
              --workdir=runs/precision
"""

from configs.sweeps.combine import Member, each, product


def get_sweep() -> list[Member]:
    fixed = {"config": "configs/tiny.py", "devices": 8, "steps": 100}
    fixed |= {"optim.warmup_steps": 10, "parallel.strategy": "shard_map"}
    return product([fixed], each("precision.compute", "float32", "bfloat16", "float16"))
