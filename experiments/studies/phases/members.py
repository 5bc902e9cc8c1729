"""The runs that are compared: what each of three phases is spread by."""

from configs import tiny
from configs.base import Experiment
from experiments.sweeps.results import Line
from parallel.config import ParallelConfig, PhaseConfig
from parallel.local import LocalConfig
from parallel.server.config import ServerConfig

NUM_PHASES = 3
SAME = {"strategy": "shard_map", "data": 4}
LOCAL = {"strategy": "local_sgd", "data": 4, "local": LocalConfig(every=10)}
SERVER = {
    "strategy": "parameter_server", "data": 1, "server": ServerConfig(mode="async")
}  # fmt: skip
BASE = "4 devices throughout"
MEMBERS = {
    BASE: (SAME,),
    "2, 8, 4 devices": (
        {"strategy": "shard_map", "data": 2},
        {"strategy": "fsdp", "data": 8},
        {"strategy": "zero1", "data": 4, "accumulation": 2},
    ),
    "meetings every 10 steps in the middle": (SAME, LOCAL, SAME),
    "asynchronous in the middle": (SAME, SERVER, SAME),
    "meetings every 10 steps throughout": (LOCAL,),
    "asynchronous throughout": (SERVER,),
}


def borders(steps: int) -> list[int]:
    """Return after how many steps the second and the third phase begin."""
    return [index * steps // NUM_PHASES for index in range(1, NUM_PHASES)]


def member_config(head: Line) -> Experiment:
    config = tiny.get_config()
    first, *later = MEMBERS[head["member"]]
    phases = tuple(
        PhaseConfig(after=after, **spread)
        for after, spread in zip(borders(head["steps"]), later, strict=False)
    )
    config.parallel = ParallelConfig(**first, phases=phases)
    config.steps, config.seed = head["steps"], head["seed"]
    config.optim.warmup_steps = head["steps"] // 10
    config.eval_every = 0  # only the last evaluation is told
    return config
