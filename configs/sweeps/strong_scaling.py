"""Are more processes faster? The same batch on more processes, each with one core.

Command:  python -m experiments.sweep --sweep=configs/sweeps/strong_scaling.py \
              --workdir=runs/strong
          On a machine with accelerators, vary "devices" instead of "processes".
"""

from configs.sweeps.combine import Member, each, product, zipped

# Shared with weak_scaling.py. Each process has one core, which is its device.
A_CORE_EACH = {
    "config": "configs/tiny.py",
    "parallel.strategy": "shard_map",
    "cores": 1,
    "steps": 60,
    "optim.warmup_steps": 6,
    "eval_batches": 2,
}
REPEATS = each("seed", 0, 1, 2)  # timings on a shared machine are noisy


def get_sweep() -> list[Member]:
    spread = zipped(each("processes", 1, 2), each("devices", 1, 2))
    return product([A_CORE_EACH | {"data.batch_size": 64}], REPEATS, spread)
