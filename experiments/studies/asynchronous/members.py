"""What is compared: stale pushes under remedies, and workers of which one is slower."""

from configs.base import Experiment
from configs.sweeps.combine import Member
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig

SLOW = (1, 1, 1, 4)  # one of four workers is four times slower
STALENESS = (0, 1, 2, 4, 8)
RATES = (0.03, 0.1, 0.3, 1.0)
PLAIN = "plain"
METHODS: dict[str, Member] = {
    PLAIN: {},
    "1/staleness": {"parallel.server.weigh": "inverse"},
    "DC-ASGD": {"parallel.server.compensation": 2.0},
    "momentum 0.5": {"optim.b1": 0.5},
    "no momentum": {"optim.b1": 0.0},
}
MODES: dict[str, Member] = {
    "sync": {},
    "async": {"parallel.server.mode": "async"},
    "ssp": {"parallel.server.mode": "ssp", "parallel.server.staleness": 2},
}


def base_config() -> Experiment:
    return Experiment(
        steps=400,
        data=DataConfig(vocab_size=1024, seq_len=64, batch_size=16),
        model=TransformerConfig(width=64, num_layers=1, num_heads=4),
        optim=OptimConfig(
            name="momentum", learning_rate=0.3, warmup_steps=20, weight_decay=0.0
        ),
    )


def stale(staleness: int, method: str, rate: float) -> Member:
    """W workers that take turns push W - 1 updates late, after their first pushes."""
    return {
        "parallel.strategy": "parameter_server",
        "parallel.data": 1,
        "parallel.server.mode": "async",
        "parallel.server.workers": staleness + 1,
        "parallel.server.shards": 1,
        "optim.learning_rate": rate,
        **METHODS[method],
    }


def uneven(mode: str, floor: float) -> Member:
    return {
        "parallel.strategy": "parameter_server",
        "parallel.data": 1,
        "parallel.server.pool": "ray",
        "parallel.server.slow": SLOW,
        "parallel.server.floor": floor,
        **MODES[mode],
    }
