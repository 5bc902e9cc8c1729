"""Are more processes faster? The same batch over more of them, a core each.

Command:  python -m experiments.sweep --sweep=configs/sweeps/strong_scaling.py \
              --workdir=runs/strong
          On a machine with accelerators, let "devices" count them instead.
"""

from configs.sweeps.combine import Member, each, product, zipped

REPEATS = 3  # a machine that is shared with others is noisy


def get_sweep() -> list[Member]:
    fixed = {
        "config": "configs/tiny.py",
        "parallel.strategy": "shard_map",
        "cores": 1,  # of each process: the device is a core
        "steps": 60,
        "optim.warmup_steps": 6,
        "eval_batches": 2,
        "data.batch_size": 64,
    }
    spread = zipped(each("processes", 1, 2), each("devices", 1, 2))
    return product([fixed], each("seed", *range(REPEATS)), spread)
