"""What is compared: stale pushes under remedies, and workers of which one is slower."""

from configs.base import Experiment
from configs.sweeps.combine import Member
from lm.data.config import DataConfig
from lm.models.transformer.config import TransformerConfig
from lm.optim import OptimConfig

SLOW = (1, 1, 1, 4)  # one of four workers is four times slower
# The rows of a number in as many pieces as it has rows: a row each.
PIECES = {"parallel.server.pieces": 16}
MODES: dict[str, Member] = {
    "sync": {},
    "by speed": PIECES | {"parallel.server.policy": "by_speed"},
    "backup": PIECES | {"parallel.server.policy": "backup"},
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


def uneven(mode: str, floor: float) -> Member:
    return {
        "parallel.strategy": "parameter_server",
        "parallel.data": 1,
        "parallel.server.pool": "ray",
        "parallel.server.slow": SLOW,
        "parallel.server.floor": floor,
        **MODES[mode],
    }


# Islands, of which one is four times slower, and how their pushes are merged.
PERIOD = {"parallel.merge.momentum_every": len(SLOW)}
MERGES: dict[str, Member] = {
    "sync": {"parallel.merge.quorum": len(SLOW)},
    "async": {},
    "delayed Nesterov": PERIOD,
    "delayed Nesterov, steps by speed": PERIOD | {"parallel.merge.by_speed": True},
    "quorum of 3": {"parallel.merge.quorum": len(SLOW) - 1},
}
SYNC, EVERY = "sync", 8
OUTER_RATE = 0.5  # about the best of sync


def outer_middle(merge: str) -> float:
    """Return where the search of an outer rate begins: at the same move per number.

    A merge of fewer pushes is made more often; delayed Nesterov divides each by N.
    """
    given = MERGES[merge]
    quorum = given.get("parallel.merge.quorum", 1)
    return OUTER_RATE * quorum * given.get("parallel.merge.momentum_every", 1) / len(SLOW)


def merged(merge: str, rate: float) -> Member:
    """Islands with AdamW inside; `rate` is that of the outer optimizer."""
    return {
        "parallel.strategy": "async_diloco",
        "parallel.data": 1,
        "parallel.server.shards": 1,
        "parallel.server.slow": SLOW,
        "parallel.local.every": EVERY,
        "parallel.local.learning_rate": rate,
        "optim.name": "adamw",
        "optim.learning_rate": 0.004,
        **MERGES[merge],
    }


def timed(floor: float) -> Member:
    """Islands in processes, of which the fast ones take so many seconds for a number."""
    return {"parallel.server.pool": "ray", "parallel.server.floor": floor}
