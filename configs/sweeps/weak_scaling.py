"""Do more processes do more? The batch grows with the number of processes.

Command:  python -m experiments.sweep --sweep=configs/sweeps/weak_scaling.py \
              --workdir=runs/weak
          On a machine with accelerators, vary "devices" instead of "processes".
"""

from configs.sweeps.combine import Member, each, product, zipped
from configs.sweeps.strong_scaling import A_CORE_EACH, REPEATS


def get_sweep() -> list[Member]:
    spread = zipped(
        each("processes", 1, 2), each("devices", 1, 2), each("data.batch_size", 32, 64)
    )
    return product([A_CORE_EACH], REPEATS, spread)
