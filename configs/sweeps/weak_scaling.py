"""Do more processes do more? The batch grows with them, so each keeps its share.

Command:  python -m experiments.sweep --sweep=configs/sweeps/weak_scaling.py \
              --workdir=runs/weak
          On a machine with accelerators, let "devices" count them instead.
"""

from configs.sweeps.combine import Member, each, product, zipped

REPEATS = 3


def get_sweep() -> list[Member]:
    fixed = {
        "config": "configs/tiny.py",
        "parallel.strategy": "shard_map",
        "cores": 1,  # of each process: the device is a core
        "steps": 60,
        "optim.warmup_steps": 6,
        "eval_batches": 2,
    }
    spread = zipped(
        each("processes", 1, 2), each("devices", 1, 2), each("data.batch_size", 32, 64)
    )
    return product([fixed], each("seed", *range(REPEATS)), spread)
