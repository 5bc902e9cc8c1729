"""configs/tiny.py over 2, then 8, then 4 devices, and part of the way with few meetings.

Command:  python -m experiments.train --config=configs/phases.py --workdir=runs/phases \
              --devices=8
"""

from configs import tiny
from configs.base import Experiment
from parallel.config import ParallelConfig, PhaseConfig


def get_config() -> Experiment:
    config = tiny.get_config()
    config.parallel = ParallelConfig(
        strategy="shard_map",
        data=2,
        phases=(
            PhaseConfig(after=100, strategy="fsdp", data=8),
            PhaseConfig(after=200, strategy="local_sgd", data=4),
            PhaseConfig(after=300, strategy="zero1", data=8),
        ),
    )
    return config
